"""What every data source returns: a :class:`Dataset` of three :class:`Split` objects.

Letters: N images in a split, C classes, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, TypeVar

import numpy as np

from hpdval.errors import DataError
from hpdval.groups import class_groups

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Split:
    """Images on demand, and their labels.

    ``ids`` are unique names (relative paths with forward slashes, or generated names).  ``read(i)`` returns image ``i``
    as an (H, W, 3) uint8 RGB array, upright, and raises DataError naming the file when it cannot.  ``fingerprints``
    changes whenever the pixels may have changed (size and modification time of a file, seed and generator version of a
    drawn image) without reading them: it keys the decoded store.  ``boxes(i)``, where a source knows them, returns
    (n, 5) float32 rows of class index, x, y, width, height in pixels of the image as read; ``masks(i)`` the matching
    (n, H, W) bool array, or None for an image whose masks are not known.  ``size(i)``, where a source can tell without
    decoding the image, is its (width, height) as read.  ``captions(i)``, where a source knows them, is one line of
    words about image ``i``, never empty; it may leave things out, and name what is no class.
    """

    ids: tuple[str, ...]
    targets: np.ndarray  # (N, C) uint8, 0 or 1
    read: Callable[[int], np.ndarray]
    fingerprints: tuple[str, ...]
    boxes: Callable[[int], np.ndarray] | None = None
    masks: Callable[[int], np.ndarray | None] | None = None
    size: Callable[[int], tuple[int, int]] | None = None
    captions: Callable[[int], str] | None = None

    def __post_init__(self) -> None:
        n = len(self.ids)
        if self.targets.ndim != 2 or self.targets.shape[0] != n or self.targets.dtype != np.uint8:
            raise DataError(f"targets must be ({n}, C) uint8, got {self.targets.shape} {self.targets.dtype}")
        if len(self.fingerprints) != n:
            raise DataError(f"{len(self.fingerprints)} fingerprints for {n} images; give one for each")
        if len(set(self.ids)) != n:
            raise DataError("image ids of a split must be unique")

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> np.ndarray:
        """Return image ``index`` as (H, W, 3) uint8 RGB."""
        return self.read(index)

    def position(self, name: str) -> int:
        """Return the index of the image with this id.

        Raises:
            DataError: there is none; the message names some that there are.
        """
        return _position("image", name, self.ids)

    def subset(self, indices: Sequence[int] | np.ndarray) -> Split:
        """Return the images at ``indices``, in that order."""
        chosen = [int(i) for i in indices]

        def pick(function: Callable[[int], T] | None) -> Callable[[int], T] | None:
            return None if function is None else lambda i: function(chosen[i])

        return Split(
            ids=tuple(self.ids[i] for i in chosen),
            targets=self.targets[chosen],
            read=lambda i: self.read(chosen[i]),
            fingerprints=tuple(self.fingerprints[i] for i in chosen),
            boxes=pick(self.boxes),
            masks=pick(self.masks),
            size=pick(self.size),
            captions=pick(self.captions),
        )


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Train, validation and test images over one list of classes.

    ``class_counts`` are the positives per class of the *full* training list, before a validation part was carved from
    it: the head, medium and tail groups follow them.  Losses use ``train.targets.sum(0)``.  ``origin`` is what
    ``load_dataset`` was asked for, as JSON has it and with absolute paths; a run keeps it in ``data.json``.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    class_counts: np.ndarray  # (C,) int64
    notes: tuple[str, ...] = field(default=())  # what a reader of results must know (skipped images, missing classes)
    origin: Mapping[str, Any] = field(default_factory=dict)  # empty where no source was loaded

    def __post_init__(self) -> None:
        for name in ("train", "val", "test"):
            columns = getattr(self, name).targets.shape[1]
            if columns != len(self.classes):
                raise DataError(
                    f"{self.name}: the {name} targets have {columns} columns for {len(self.classes)} classes"
                )

    def column(self, name: str) -> int:
        """Return the index of a class.

        Raises:
            DataError: there is none of that name; the message names some that there are.
        """
        return _position("class", name, self.classes)

    @property
    def groups(self) -> dict[str, np.ndarray]:
        """Class indices of head, medium and tail, by ``class_counts``."""
        return class_groups(self.class_counts)


def _position(kind: str, name: str, names: Sequence[str]) -> int:
    if name not in names:
        near = get_close_matches(name, names, 3, 0) if len(names) < 10_000 else names[:3]
        raise DataError(f"there is no {kind} {name!r}; there are {len(names)}, such as {', '.join(near) or 'none'}")
    return names.index(name)
