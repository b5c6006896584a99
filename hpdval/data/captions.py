"""Captions of images: read from ``path text`` lines, and their digest for the key of what learns from them."""

from __future__ import annotations

from pathlib import Path

from hpdval.data.dataset import Split
from hpdval.data.listing import Listing, read_lines, safe_path
from hpdval.errors import DataError
from hpdval.files import digest


def caption_digest(split: Split) -> str | None:
    """Return the digest of a split's images and what is said of them, or None where no captions are known.

    It belongs to the key of whatever learns from captions; it follows their words alone, not the file they came from.

    >>> from hpdval.data.scenes import load_scenes
    >>> short, long = load_scenes(train=20).train, load_scenes(train=30).train
    >>> caption_digest(short) == caption_digest(long.subset(range(20)))
    True
    """
    read = split.captions
    return None if read is None else digest(split.ids, [read(i) for i in range(len(split))])


def read_captions(path: Path, listing: Listing) -> list[str]:
    """Return what the ``path text`` lines of a file say of each image of ``listing``, in its order.

    Raises:
        DataError: a line without text, of an image that is not listed, or of one that had a line; a listed image that
            has none.
    """
    listed, found = set(listing.ids), dict[str, tuple[int, str]]()
    for line, text in enumerate(read_lines(path), 1):
        if not text:
            continue
        where = f"{path}, line {line}"
        given, *words = text.split()
        name = safe_path(given, where)
        if name not in listed:
            raise DataError(f"{where}: {given} is not in {listing.source}; give captions of its images alone")
        if name in found:
            raise DataError(f"{where}: {given} has a caption already (on line {found[name][0]}); give it one line")
        if not words:
            raise DataError(f"{where}: {given} has no caption; write it behind the path")
        found[name] = (line, " ".join(words))
    for row, name in enumerate(listing.ids):
        if name not in found:
            raise DataError(
                f"{path} has no caption of {name} ({listing.where(listing.lines[row])}; {len(listed) - len(found)} of "
                f"{len(listed)} images have none); give each image one line"
            )
    return [found[name][1] for name in listing.ids]
