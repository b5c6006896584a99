"""The form of the catalogue: what a published data set is made of, and what it counts when it is complete."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from hpdval.data.dataset import Dataset
from hpdval.data.listing import read_lines, safe_path
from hpdval.errors import DataError


@dataclass(frozen=True, kw_only=True)
class File:
    """One file at its public home; a list lies in the root under its name."""

    name: str
    url: str
    size: int | None = None  # bytes, where known
    sha256: str | None = None  # where known
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class Archive(File):
    """A zip or tar, and what of it a data set needs, as paths that are the same in it and below the root."""

    members: tuple[str, ...] = ()
    listing: str = ""  # file below the root that names images: a list, an image set, or a COCO json
    needs: tuple[str, ...] = ()  # for each listed image, with {stem}; the image itself is first
    wants: tuple[str, ...] = ()  # the same, of files that may be missing
    holds: int = 1  # images in the whole archive
    each: str = ""  # URL of a single image, with {path}, where there is one

    def stems(self, root: Path) -> list[str]:
        """Return the names of the listed images without folder and suffix; none while the listing is not there."""
        path = root / self.listing
        if not self.listing or not path.is_file():
            return []
        state = path.stat()
        return list(_stems(path, state.st_size, state.st_mtime_ns))

    def images(self, stems: list[str]) -> list[str]:
        """Return the paths of images, for the stems of the listing."""
        return [self.needs[0].format(stem=stem) for stem in stems] if self.needs else []

    def needed(self, stems: list[str]) -> list[str]:
        """Return the paths of all files that must be there, for the stems of the listing."""
        return [*self.members, *(pattern.format(stem=stem) for pattern in self.needs for stem in stems)]

    def wanted(self, stems: list[str]) -> list[str]:
        """Return the paths of all files worth having, for the stems of the listing."""
        return [*self.needed(stems), *(pattern.format(stem=stem) for pattern in self.wants for stem in stems)]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a complete data set counts."""

    images: tuple[int, int]  # training, test
    classes: int
    labels: tuple[int, int] | None = None  # training, test
    extremes: tuple[int, int] | None = None  # training positives of the rarest and of the commonest class
    groups: tuple[int, int, int] | None = None  # classes in head, medium, tail
    unlabelled: tuple[int, int] | None = None  # images without a label: training, test


@dataclass(frozen=True, kw_only=True)
class PublishedSet:
    """A data set that ``load_dataset(name, root=...)`` knows."""

    name: str
    archives: tuple[Archive, ...]
    facts: Facts
    loader: Callable[..., Dataset]
    source: str  # of the loader, below the root
    companions: dict[str, str]  # options of the loader that are files below the root
    lists: tuple[File, ...] = ()
    annotations: tuple[str, ...] = ()  # COCO jsons that the lists can be compared with


@lru_cache(8)  # a listing of COCO is half a gigabyte of JSON
def _stems(listing: Path, size: int, time: int) -> tuple[str, ...]:
    if listing.suffix == ".json":
        try:
            names = [entry["file_name"] for entry in json.loads(listing.read_bytes())["images"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{listing} is not a COCO json ({error}); remove it and prepare again") from None
    else:
        names = [line.split()[0] for line in read_lines(listing) if line]
    return tuple(PurePosixPath(safe_path(str(name), str(listing))).stem for name in names)
