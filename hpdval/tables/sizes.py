"""Average precision by the size of objects, where a source knows boxes.

Letters: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from hpdval.data.dataset import Split
from hpdval.errors import DataError
from hpdval.metrics import average_precision

THIRDS = ("smallest third", "middle third", "largest third")


def object_sizes(split: Split) -> np.ndarray:
    """Return the share of the image that the largest box of each class covers, (N, C) in [0, 1], NaN without a box.

    Raises:
        DataError: the source knows no boxes.
    """
    if split.boxes is None:
        raise DataError("this source knows no boxes; sizes need a COCO json, a VOC devkit or scenes-lt")
    sizes = np.full(split.targets.shape, np.nan)
    for i in range(len(split)):
        height, width = split.image(i).shape[:2]
        for one, _, _, box_width, box_height in split.boxes(i):
            share = min(1.0, box_width * box_height / (width * height))
            sizes[i, int(one)] = np.fmax(sizes[i, int(one)], share)
    return sizes


def size_table(
    scores: Mapping[str, np.ndarray], targets: np.ndarray, sizes: np.ndarray, *, minimum: int = 3
) -> pd.DataFrame:
    """Return mAP in percent on the smallest, middle and largest third of each class's objects.

    For a class and a third, the positives of the other thirds are left out and all negatives stay, so prevalence is
    the same in each third; classes with fewer than ``minimum`` positives in a third are left out.

    Args:
        scores: label -> (N, C).
        targets: (N, C) of 0 and 1.
        sizes: (N, C), see :func:`object_sizes`.

    Raises:
        DataError: no class has enough boxes.
    """
    rows = []
    for label, values in scores.items():
        aps = [
            [float(average_precision(values[keep, c : c + 1], targets[keep, c : c + 1])[0]) for keep in thirds]
            for c, thirds in ((c, _thirds(targets[:, c], sizes[:, c])) for c in range(targets.shape[1]))
            if min((targets[keep, c].sum() for keep in thirds), default=0) >= minimum
        ]
        if not aps:
            raise DataError(f"no class has {minimum} boxes in each third of its sizes; sizes need more test images")
        rows.append([label, *(100.0 * np.mean(aps, axis=0)), len(aps)])
    return pd.DataFrame(rows, columns=["method", *THIRDS, "classes"])


def _thirds(targets: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    """Return the images that count for each third of a class's objects: those positives, and all negatives."""
    known = np.flatnonzero((targets == 1) & ~np.isnan(sizes))
    ordered = known[np.argsort(sizes[known], kind="stable")]
    return [np.concatenate([part, np.flatnonzero(targets == 0)]) for part in np.array_split(ordered, 3)]
