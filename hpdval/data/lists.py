"""The published long-tail lists: lines of ``path index index ...``, a class file of ``name index`` lines, captions."""

from __future__ import annotations

import os
from pathlib import Path

from hpdval.data.captions import read_captions
from hpdval.data.dataset import Dataset
from hpdval.data.listing import Classes, Listing, assemble, check_classes, companion, read_classes, read_lines
from hpdval.errors import DataError


def load_lists(
    source: Path,
    root: Path | None,
    *,
    test: str | os.PathLike[str] | None = None,
    classes: Classes | None = None,
    captions: str | os.PathLike[str] | None = None,
    require_images: bool = True,
) -> Dataset:
    """Return the images of published list files, such as ``voc_lt_train.txt`` and ``voc_lt_test.txt``.

    Args:
        source: the training list.
        root: folder the paths start from (default: the folder of ``source``).
        test: the test list; looked for beside ``source`` too.
        classes: class names in order, or a file of names or of ``name index`` lines; default: ``PREFIX_labels.txt``
            beside ``source``, where PREFIX is what the list's name has before its first underscore.
        captions: a file of ``path text`` lines, one for each training image, such as ``voc_lt_captions.txt``; looked
            for beside ``source`` too.  Test images have none.
        require_images: False allows images that are not there, to work with labels only.

    Raises:
        DataError: names file, line and value; for missing images also how many are.
    """
    if classes is None:
        classes = source.parent / f"{source.stem.split('_')[0]}_labels.txt"
        if not classes.is_file():
            raise DataError(f"{source} needs a class list: give classes= (names or a file), or write {classes}")
    if isinstance(classes, str | os.PathLike):
        names = read_indexed_classes(companion("classes", classes, source))
    else:
        names = read_classes(classes)
    folder = root or source.parent
    test_path = companion("test", test, source) if test else None
    train_list = read_list(source, len(names))
    if captions is not None:
        train_list.captions = read_captions(companion("captions", captions, source), train_list)
    test_list = read_list(test_path, len(names)) if test_path else None
    return assemble(
        source.stem,
        names,
        train_list.split(folder, len(names), require_images=require_images),
        test_list.split(folder, len(names), require_images=require_images) if test_list else None,
    )


def read_list(path: Path, n_classes: int) -> Listing:
    """Return the rows of one list file; an image without an index has no label."""
    listing = Listing(path)
    for line, text in enumerate(read_lines(path), 1):
        name, *indices = text.split() or [""]
        if not name:
            continue
        for index in indices:
            if not (_is_index(index) and int(index) < n_classes):
                raise DataError(
                    f"{path}, line {line}: {index} is not a class index from 0 to {n_classes - 1} "
                    "(a path with blanks needs the CSV form)"
                )
        listing.add(name, [int(index) for index in indices], line)
    return listing


def read_indexed_classes(path: Path) -> tuple[str, ...]:
    """Return class names by index from ``name index`` lines, or in order from plain lines of names."""
    lines = [(line, text) for line, text in enumerate(read_lines(path), 1) if text]
    pairs = [(line, *text.rpartition(" ")[::2]) for line, text in lines]
    if not pairs or not all(name and _is_index(index) for _, name, index in pairs):
        return read_classes(path)
    named: dict[int, tuple[str, str]] = {}
    for line, name, index in pairs:
        if int(index) in named or int(index) >= len(pairs):
            raise DataError(f"{path}, line {line}: index {index} is not one of 0 to {len(pairs) - 1}, each once")
        named[int(index)] = (f"{path}, line {line}", name)
    return check_classes([named[i] for i in range(len(named))], str(path))


def _is_index(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10  # of thousands of digits Python makes no number
