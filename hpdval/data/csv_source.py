"""Own data in one line: a CSV with the columns ``path`` and ``labels``, perhaps ``caption``, and a class list."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from hpdval.data.dataset import Dataset
from hpdval.data.listing import Classes, Listing, assemble, companion, read_classes
from hpdval.errors import DataError, shown


def load_csv(
    source: Path,
    root: Path | None,
    *,
    test: str | os.PathLike[str] | None = None,
    classes: Classes | None = None,
    require_images: bool = True,
) -> Dataset:
    """Return the images of a training CSV and, where given, of a test CSV.

    A row is ``path,labels``: the path relative to ``root`` (default: the folder of ``source``), the labels joined by
    ``;`` (blanks around a label do not matter, nor does a label given twice), or an empty field for no label.  A
    column ``caption``, where there is one, holds a sentence about each image.  Further columns are ignored.

    Args:
        source: the training CSV, UTF-8.
        root: folder of the images.
        test: the test CSV; looked for beside ``source`` too.
        classes: class names in order, or a file with one on each line; default: ``classes.txt`` beside
            ``source``.
        require_images: False allows images that are not there, to work with labels only.

    Raises:
        DataError: names file, line (from 1, with the header) and value.
    """
    if classes is None:
        classes = source.parent / "classes.txt"
        if not classes.is_file():
            raise DataError(f"{source} needs a class list: give classes= (names or a file), or write {classes}")
    if isinstance(classes, str | os.PathLike):
        classes = companion("classes", classes, source)
    names = read_classes(classes)
    for name in names:
        if ";" in name:
            raise DataError(f"class name {name!r} of {shown(classes)} holds ';', which separates labels; rename it")
    index = {name: i for i, name in enumerate(names)}
    folder = root or source.parent
    test_path = companion("test", test, source) if test else None
    train_list = read_csv(source, index)
    test_list = read_csv(test_path, index) if test_path else None
    return assemble(
        f"{source.resolve().parent.name}-{source.stem}",
        names,
        train_list.split(folder, len(names), require_images=require_images),
        test_list.split(folder, len(names), require_images=require_images) if test_list else None,
    )


def read_csv(path: Path, index: dict[str, int]) -> Listing:
    """Return the rows of one CSV; ``index`` maps class names to columns."""
    listing = Listing(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [cell.strip() for cell in next(filter(None, reader), [])]  # blank lines say nothing
            if not header:
                raise DataError(f"{path} is empty; its first line must be: path,labels")
            for wanted in ("path", "labels"):
                if header.count(wanted) != 1:
                    raise DataError(
                        f"{path}, line {reader.line_num}: there must be one column named {wanted}, the columns are "
                        f"{','.join(header)}"
                    )
            path_column, label_column = header.index("path"), header.index("labels")
            if header.count("caption") > 1:
                raise DataError(f"{path}, line {reader.line_num}: two columns are named caption; rename all but one")
            caption_column = header.index("caption") if "caption" in header else None
            for cells in reader:
                if not cells:
                    continue  # a blank line
                if len(cells) != len(header):
                    raise DataError(
                        f"{path}, line {reader.line_num}: {len(cells)} fields instead of {len(header)}; "
                        "quote a path that holds a comma, join labels by ';'"
                    )
                labels = _labels(cells[label_column], index, listing, reader.line_num)
                listing.add(cells[path_column].strip(), labels, reader.line_num)
                if caption_column is not None:
                    listing.captions.append(_caption(cells[caption_column], listing, reader.line_num))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from None
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not valid CSV: {error}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    return listing


def _caption(cell: str, listing: Listing, line: int) -> str:
    caption = " ".join(cell.split())  # a quoted cell may run over lines
    if not caption:
        raise DataError(f"{listing.where(line)}: the caption is empty; write one for each image, or rename the column")
    return caption


def _labels(cell: str, index: dict[str, int], listing: Listing, line: int) -> list[int]:
    found = []
    for label in cell.split(";"):
        name = label.strip()
        if not name:
            continue
        if name not in index:
            known = ", ".join(list(index)[:5]) + (", ..." if len(index) > 5 else "")
            raise DataError(f"{listing.where(line)}: label {name} is not in the class list ({known})")
        found.append(index[name])
    return found
