"""Which pixels an object covers: polygons and run lengths of COCO, boxes, and the region of each class in an image.

A pixel belongs to a polygon or a box where its centre lies inside it, the upper and the left edge included.  So corners
keep their fractions, and a rectangle of 3 x 2 pixels covers 3 x 2; Pillow's polygons drop the fractions and paint the
outline, too.

Letters: H x W pixels, n objects.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpdval.data.dataset import Split
from hpdval.errors import DataError, shown

Mask = NDArray[np.bool_]
FARTHEST = 1e6  # pixels: a corner farther out is a mistake, and its products would overflow


class Region(NamedTuple):
    """The pixels of one class in an image."""

    mask: Mask  # (H, W)
    by_mask: bool  # False where at least one of the objects is known by its box alone


def regions(split: Split, index: int) -> dict[int, Region]:
    """Return the region of each class with objects in image ``index``: the union of them, by ascending class index.

    An object counts by its mask where that is known and shows a pixel, else by its box, cut at the image's edges.  A
    box between two centres takes the pixel in its middle; a class whose objects all lie outside the image is left out.

    Raises:
        DataError: the source knows no boxes, or boxes or masks do not fit the image.
    """
    if split.boxes is None:
        raise DataError("this source knows no boxes; regions need a COCO json, a VOC devkit or scenes-lt")
    boxes = split.boxes(index)
    masks = split.masks(index) if split.masks is not None else None
    height, width = masks.shape[1:] if masks is not None else split.image(index).shape[:2]
    found: dict[int, Region] = {}
    for k, row in enumerate(boxes):
        known = masks is not None and bool(masks[k].any())
        mask = masks[k] if masks is not None and known else box_mask(row[1:], height, width)
        if mask.any():
            before = found.get(int(row[0]), Region(np.zeros((height, width), bool), True))
            found[int(row[0])] = Region(before.mask | mask, before.by_mask and known)
    return dict(sorted(found.items()))


def box_mask(box: Any, height: int, width: int) -> Mask:
    """Return the pixels (H, W) of a box (x, y, width, height); none where it lies outside the image.

    >>> box_mask((0.6, -3, 2, 4.6), 3, 4).astype(int).tolist()
    [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    """
    x, y, across, down = (float(value) for value in box)
    mask = np.zeros((height, width), bool)
    mask[_pixels(y, down, height), _pixels(x, across, width)] = True
    return mask


def _pixels(start: float, length: float, size: int) -> slice:
    first, end = math.ceil(start - 0.5), math.ceil(start + length - 0.5)
    if first == end:  # no centre inside: the pixel in which the middle lies
        first = math.floor(start + length / 2)
        end = first + 1
    return slice(min(max(first, 0), size), min(max(end, 0), size))


def segmentation_mask(segmentation: Any, height: int, width: int, where: str) -> Mask:
    """Return the pixels (H, W) of a COCO ``segmentation``: polygons, or run lengths as a list or as a string.

    Args:
        segmentation: a list of polygons ``[x, y, x, y, ...]``, whose union counts, or ``{"counts": ..., "size": [H,
            W]}`` with run lengths down the columns, of pixels outside and inside in turn.
        where: file and annotation, for errors.

    Raises:
        DataError: it is none of these or does not fit the image.
    """
    if isinstance(segmentation, list) and segmentation:
        masks = [polygon_mask(_corners(polygon, where), height, width) for polygon in segmentation]
        return np.asarray(np.logical_or.reduce(masks))
    if not isinstance(segmentation, dict):
        raise DataError(f"{where} has segmentation {shown(segmentation)}; give polygons or run lengths")
    if segmentation.get("size") != [height, width]:
        raise DataError(
            f"{where} has run lengths of size {shown(segmentation.get('size'))}, but the image has [{height}, {width}]"
        )
    counts = segmentation.get("counts")
    runs: Any = _unpacked(counts, where) if isinstance(counts, str) else counts
    good = isinstance(runs, list) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in runs)
    if not good or sum(runs) != height * width:
        total = shown(sum(runs)) if good else "no whole numbers from 0"
        raise DataError(f"{where} has run lengths whose sum is {total}; it must be {height} x {width}")
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(width, height).T


def polygon_mask(corners: NDArray[np.float64], height: int, width: int) -> Mask:
    """Return the pixels (H, W) whose centres lie inside a closed polygon, by the even-odd rule.

    Args:
        corners: (n, 2) of x and y, in pixels from the image's upper left corner.

    >>> polygon_mask(np.array([[1, 0], [3, 0], [3, 2], [1, 2.0]]), 3, 4).astype(int).tolist()
    [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    """
    crossed = np.zeros((height, width + 1), bool)  # an odd number of edges between this pixel and its left neighbour
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        top, bottom = (min(max(math.ceil(y - 0.5), 0), height) for y in sorted((y0, y1)))
        rows = np.arange(top, bottom)
        if rows.size:  # an edge that passes the centre of a row, so y0 != y1
            x = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            crossed[rows, np.clip(np.ceil(x - 0.5), 0, width).astype(np.intp)] ^= True
    return np.asarray(np.logical_xor.accumulate(crossed, axis=1)[:, :-1])


def _corners(polygon: Any, where: str) -> NDArray[np.float64]:
    good = isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
    if not good or not all(type(v) in (int, float) and abs(v) <= FARTHEST for v in polygon):
        raise DataError(
            f"{where} has polygon {shown(polygon)}; it must be x and y of at least 3 corners in turn, finite numbers"
        )
    return np.array(polygon, float).reshape(-1, 2)


def _unpacked(text: str, where: str) -> list[int]:
    """Return the run lengths of a compressed string, as ``rleFrString`` of pycocotools reads them.

    A number is written in characters of five bits each, the lowest first, counted from "0"; bit 6 says that more follow
    and the highest bit of the last is the sign.  From the fourth on a number is the difference from the last but one.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise DataError(f"{where} has run lengths with {character!r}, which is not of the compressed form")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) // 16 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    if shift:
        raise DataError(f"{where} has run lengths that end in the middle of a number")
    return runs
