"""Whether a heatmap shows where a class is: pointing game, energy inside and best IoU, and two maps that know nothing.

A *map* is (H, W) of real numbers, larger where the class is said to be; NaN marks pixels that the model's view does
not cover, such as what was cropped away.  A *region* is (H, W) bool, the pixels of the class.  Only covered pixels are
ranked or summed, but the region stays that of the whole image: what a model does not look at it cannot find.

All three numbers depend on how much of the image the region covers, so they mean little without the maps that know
nothing (`random_map`, `centre_map`), brought to the image's size as any other map, beside them.  None of them is
affected by adding a constant to a map or multiplying it by a positive number.

Letters: H x W pixels, M pairs of an image and a class that it shows.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpdval.errors import ConfigError, DataError
from hpdval.files import atomic_write, digest
from hpdval.metrics.average_precision import numbers

METRICS = ("pointing", "energy", "iou")
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def pointing_game(heatmap: ArrayLike, region: ArrayLike, *, tolerance: float = 0.0) -> float:
    """Return 1 where the map's maximum lies in the region, else 0; of several maxima the share that lies inside.

    Zhang et al., "Top-down neural attention by excitation backprop", IJCV 126 (2018), who take one maximum and count it
    up to 15 pixels outside of the box (``tolerance=15``).  Here the default is 0: 15 pixels are a margin in a
    photograph of 500, but a margin on either side of an object is half of a picture of 64.  The share among equals
    keeps a constant map at what chance gives, wherever an argmax would put it.

    Args:
        heatmap: (H, W), NaN where not covered.
        region: (H, W) bool with at least one pixel.
        tolerance: pixels, Euclidean distance from the region's nearest pixel that still counts.

    Raises:
        ConfigError: shapes that differ, an empty region, a map without a finite value, a negative tolerance.

    >>> pointing_game([[0.1, 0.9], [0.9, 0.3]], [[False, True], [False, False]])
    0.5
    """
    values, inside, _ = _covered(heatmap, region, tolerance)
    return float(inside[values == values.max()].mean())


def energy_inside(heatmap: ArrayLike, region: ArrayLike) -> float:
    """Return the share of the map's mass that lies inside the region, the least covered value counted as 0.

    sum over the region of (v - min v) / sum over all of (v - min v), as in the energy-based pointing game of Wang et
    al., "Score-CAM", CVPR workshops 2020.  A constant map has no mass; it gives the region's share of the covered
    pixels, as would any mass spread evenly.  A map that is high everywhere but at one pixel comes near to that share,
    too: the number asks for contrast as well as for place.

    Args, Raises: as in `pointing_game`.

    >>> energy_inside([[0.0, 3.0], [1.0, 0.0]], [[False, True], [False, False]])
    0.75
    """
    values, inside, _ = _covered(heatmap, region)
    mass = values - values.min()
    total = mass.sum()
    return float(mass[inside].sum() / total) if total > 0 else float(inside.mean())


def best_iou(heatmap: ArrayLike, region: ArrayLike) -> float:
    """Return the largest intersection over union of the region and {v >= t}, over all thresholds t.

    The threshold is chosen for this very map by looking at the region: an upper bound of what a threshold fixed
    beforehand would give, and never below the region's share of the image, which the whole image reaches.  It compares
    maps, it is no segmentation accuracy; Choe et al., "Evaluating weakly supervised object localization methods right",
    CVPR 2020, show how thresholds chosen on test images decide such comparisons.  Exact: all values of the map are
    tried, equal ones together.

    Args, Raises: as in `pointing_game`.

    >>> best_iou([[0.2, 0.9], [0.1, 0.8]], [[True, True], [False, False]])
    0.6666666666666666
    """
    values, inside, size = _covered(heatmap, region)
    order = np.argsort(values)[::-1]
    ordered = values[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # of each run of equal values
    hits = np.cumsum(inside[order])[last]
    return float(np.max(hits / (size + last + 1 - hits)))


def random_map(grid: tuple[int, int], key: str) -> NDArray[np.float32]:
    """Return independent standard normal values on a grid (rows, columns), the same for the same ``key``.

    It points at the region about as often as the region's share of the image.

    >>> random_map((7, 7), "test/00003 cat").shape
    (7, 7)
    """
    rng = np.random.default_rng(int(digest("random map", key)[:32], 16))
    return rng.standard_normal(grid, dtype=np.float32)


def centre_map(grid: tuple[int, int]) -> NDArray[np.float32]:
    """Return a Gaussian in the middle of a grid (rows, columns), its standard deviation a quarter of either side.

    Photographers put things in the middle, so this is the harder one of the two to beat.
    """
    rows, columns = (np.exp(-8 * ((np.arange(n) + 0.5) / n - 0.5) ** 2) for n in grid)
    return np.outer(rows, columns).astype(np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Localisation:
    """What a method's maps are worth, one entry for each pair of an image and a class that it shows."""

    image: NDArray[np.int64]  # (M,) index in the split
    cls: NDArray[np.int64]  # (M,) index of the class
    size: Floats  # (M,) share of the image that the region covers
    by_mask: Mask  # (M,) whether the region is of masks; False where a box stood in
    values: Mapping[str, Floats]  # of each metric (M,) in [0, 1]
    tolerance: float = 0.0  # pixels, of the pointing game

    def __post_init__(self) -> None:
        lengths = {len(a) for a in (self.image, self.cls, self.size, self.by_mask, *self.values.values())}
        if len(lengths) > 1 or set(self.values) != set(METRICS):
            raise ConfigError(f"a record has the metrics {', '.join(METRICS)} and arrays of one length, got {lengths}")
        if len(np.unique(np.stack([self.image, self.cls]), axis=1).T) != len(self.image):
            raise ConfigError("a pair of image and class is given twice; unite the regions of a class first")

    def __len__(self) -> int:
        return len(self.image)

    @classmethod
    def measure(
        cls, items: Iterable[tuple[int, int, tuple[Any, bool], ArrayLike]], *, tolerance: float = 0.0
    ) -> Localisation:
        """Return the record of maps as they come: (image index, class index, (region, by_mask), map).

        The third of them is what ``hpdval.data.masks.regions`` gives for the class.

        Raises:
            ConfigError: as in `pointing_game`; image and class are named.
        """
        rows: list[tuple[int, int, float, bool]] = []
        measured: list[tuple[float, float, float]] = []
        for image, one, (region, by_mask), heatmap in items:
            try:
                pointing = pointing_game(heatmap, region, tolerance=tolerance)
                measured.append((pointing, energy_inside(heatmap, region), best_iou(heatmap, region)))
            except ConfigError as error:
                raise ConfigError(f"image {image}, class {one}: {error}") from None
            rows.append((image, one, float(np.mean(region)), by_mask))
        image_of, class_of, size, by_masks = zip(*rows, strict=True) if rows else ((), (), (), ())
        table = np.array(measured, float).reshape(-1, len(METRICS))
        return cls(
            image=np.array(image_of, np.int64),
            cls=np.array(class_of, np.int64),
            size=np.array(size, float),
            by_mask=np.array(by_masks, bool),
            values=dict(zip(METRICS, table.T, strict=True)),
            tolerance=tolerance,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the record as npz, atomically."""
        known: dict[str, Any] = {name: getattr(self, name) for name in _ARRAYS} | dict(self.values)
        with atomic_write(path) as file:
            known["tolerance"] = np.array(self.tolerance, np.float64)
            np.savez(file, **known, checksum=_checksum(known))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Localisation:
        """Read what `save` wrote.

        Raises:
            DataError: there is no such file, or it is damaged or something else; the message names it.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found: dict[str, Any] = {name: arrays[name] for name in arrays.files}
            checksum = found.pop("checksum", None)  # a record of an older version has none
            if checksum is not None and not np.array_equal(checksum, _checksum(found)):
                raise ValueError("its checksum differs")
            known = {name: found[name] for name in _ARRAYS}
            values = {name: found[name] for name in METRICS}
            return cls(**known, values=values, tolerance=float(found["tolerance"]))
        except FileNotFoundError:
            raise DataError(f"{os.fspath(path)} does not exist") from None
        except Exception as error:  # of a damaged file zipfile, zlib and numpy raise as they please
            raise DataError(
                f"{os.fspath(path)} is not a whole record of localisation: {error}; make it again"
            ) from None


_ARRAYS = ("image", "cls", "size", "by_mask")


def _checksum(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """Return a SHA-256 over names, types, shapes and bytes."""
    checksum = sha256()
    for name in sorted(arrays):
        checksum.update(f"{name} {arrays[name].dtype} {arrays[name].shape} ".encode())
        checksum.update(arrays[name].tobytes())
    return np.frombuffer(checksum.digest(), np.uint8)


def _covered(heatmap: ArrayLike, region: ArrayLike, tolerance: float = 0.0) -> tuple[Floats, Mask, int]:
    """Return the covered values (V,), whether each lies in the region (V,), and the region's pixels, covered or not."""
    values, inside = numbers(heatmap, "a map"), numbers(region, "a region")
    if values.ndim != 2 or inside.shape != values.shape or inside.dtype != bool:
        raise ConfigError(
            f"a map and its region must be (H, W), the region bool; got {values.shape}, {inside.shape} {inside.dtype}"
        )
    if not inside.any():
        raise ConfigError("the region is empty; measure only classes that the image shows")
    if not 0 <= tolerance < math.inf:
        raise ConfigError(f"tolerance is {tolerance}; it must be a number of pixels from 0")
    known = ~np.isnan(values)
    found = values[known].astype(float)
    if not np.isfinite(found).all() or not found.size:
        raise ConfigError("a map must have a finite value for at least one pixel, and no infinite one")
    size = int(inside.sum())
    return found, (_widened(inside, tolerance) if tolerance else inside)[known], size


def _widened(region: Mask, radius: float) -> Mask:
    """Return all pixels within ``radius`` of the region, which is widened by the rows of a disc one after another."""
    height, width = region.shape
    result = np.zeros_like(region)
    down = min(int(radius), height - 1)
    for dy in range(-down, down + 1):
        reach = min(int(math.sqrt(radius**2 - dy**2)), width)
        counts = np.cumsum(np.pad(region, ((0, 0), (reach + 1, reach))), axis=1)
        wide = counts[:, 2 * reach + 1 :] > counts[:, : -2 * reach - 1]
        result[max(dy, 0) : height + min(dy, 0)] |= wide[max(-dy, 0) : height - max(dy, 0)]
    return result
