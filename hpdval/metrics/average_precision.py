"""Average precision, all-point and VOC's 11-point, per class and pooled (method, section 7).

Letters: N images, C classes.  Everything is computed in float64 and returned in [0, 1].
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpdval.errors import ConfigError


def checked(scores: ArrayLike, targets: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return scores (N, C) as float64 and targets (N, C) as bool.

    Raises:
        ConfigError: not numbers, not (N, C) alike, empty, scores not finite, or targets other than 0 and 1.
    """
    values, labels = numbers(scores, "scores").astype(np.float64, copy=False), numbers(targets, "targets")
    if values.ndim != 2 or 0 in values.shape:
        raise ConfigError(f"scores must be a non-empty (N, C) array, got shape {values.shape}")
    if labels.shape != values.shape:
        raise ConfigError(f"targets must have the shape of scores, {values.shape}, got {labels.shape}")
    finite = np.isfinite(values)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise ConfigError(
            f"scores must be finite, got {values[row, column]} for image {row}, class {column} "
            f"({values.size - np.count_nonzero(finite)} in all); look for a diverged model"
        )
    binary = (labels == 0) | (labels == 1)
    if not binary.all():
        row, column = np.argwhere(~binary)[0]
        raise ConfigError(f"targets must be 0 or 1, got {labels[row, column]} for image {row}, class {column}")
    return values, labels == 1


def numbers(values: ArrayLike, name: str) -> NDArray[Any]:
    """Return an array of real numbers as they come; float64 copies of 0 and 1 would take eight times the memory.

    Raises:
        ConfigError: they are no real numbers, or not in CPU memory; the message has ``name``.
    """
    try:
        array = np.asarray(values)
        if array.dtype.kind in "cmMVSU":  # NumPy would drop imaginary parts, count seconds, read texts
            raise TypeError(f"{array.dtype} is no real number")
        return array if array.dtype.kind in "biuf" else array.astype(np.float64)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, text, tensors on a GPU or with a gradient
        raise ConfigError(f"{name} must be numbers in CPU memory (tensor.detach().float().cpu()): {error}") from None


def average_precision(scores: ArrayLike, targets: ArrayLike) -> NDArray[np.float64]:
    """Return the non-interpolated average precision of each class, ties grouped.

    AP = sum over thresholds t of (R_t - R_(t-1)) P_t = mean over positives p of TP(s_p) / (number of scores >= s_p),
    which is scikit-learn's ``average_precision_score``; it depends on the scores through their order only.

    Args:
        scores: (N, C) finite numbers; half precision makes ties that cost accuracy, so score in float32.
        targets: (N, C) of 0 and 1.

    Returns:
        (C,) float64 in [0, 1]; NaN for a class without positives.

    Raises:
        ConfigError: wrong shapes, scores not finite, targets not binary.

    >>> average_precision([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]], [[1, 0], [0, 0], [1, 0]]).round(4)
    array([0.8333,    nan])
    """
    values, labels = checked(scores, targets)
    return np.array([_class_ap(v, p) for v, p in zip(values.T, labels.T, strict=True)])


def _class_ap(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    # Sorting values (vectorised in numpy) and looking up the positives is several times faster than an argsort.
    hits = np.sort(scores[positive])
    if not hits.size:
        return float("nan")
    true_above = hits.size - np.searchsorted(hits, hits)  # positives scoring at least as high
    all_above = scores.size - np.searchsorted(np.sort(scores), hits)
    return float(np.mean(true_above / all_above))


def mean_average_precision(scores: ArrayLike, targets: ArrayLike) -> float:
    """Return the mean AP over the classes that have a positive, in [0, 1]; NaN where none has.

    >>> mean_average_precision([[0.9, 0.1], [0.8, 0.2]], [[1, 0], [0, 0]])
    1.0
    """
    per_class = average_precision(scores, targets)
    valid = ~np.isnan(per_class)
    return float(per_class[valid].mean()) if valid.any() else float("nan")


def micro_average_precision(scores: ArrayLike, targets: ArrayLike) -> float:
    """Return the AP of all (image, class) pairs pooled into one ranking, in [0, 1]; NaN without positives.

    >>> micro_average_precision([[0.9, 0.1], [0.8, 0.2]], [[1, 0], [0, 1]])
    0.8333333333333333
    """
    values, labels = checked(scores, targets)
    return _class_ap(values.ravel(), labels.ravel())


def voc11_average_precision(scores: ArrayLike, targets: ArrayLike) -> NDArray[np.float64]:
    """Return VOC2007's 11-point AP of each class.

    AP = 1/11 sum over i = 0..10 of max{precision at a rank where recall >= i/10}; recall is compared in integers
    (10 TP >= i positives), because 0.3, 0.6 and 0.7 are not what ``np.arange`` makes of them.  As in the VOC
    development kit ties are not grouped: they keep the order of the images.

    Returns:
        (C,) float64 in [0, 1]; NaN for a class without positives.

    >>> voc11_average_precision([[0.9], [0.8], [0.7]], [[1], [0], [1]]).round(4)
    array([0.8485])
    """
    values, labels = checked(scores, targets)
    hits = np.take_along_axis(labels, np.argsort(-values, axis=0, kind="stable"), axis=0).cumsum(axis=0)  # (N, C)
    precision = hits / np.arange(1, len(hits) + 1)[:, None]
    best_after = np.maximum.accumulate(precision[::-1], axis=0)[::-1]  # the best precision at this rank or later
    total = hits[-1]
    points = [
        np.take_along_axis(best_after, np.argmax(10 * hits >= i * total, axis=0)[None], axis=0)[0] for i in range(11)
    ]
    return np.where(total > 0, np.mean(points, axis=0), np.nan)
