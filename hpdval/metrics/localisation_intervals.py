"""Means of localisation over classes, their intervals over the test images, and differences of two methods.

A class counts by the mean over its pairs (the images that show it), a set of classes by the mean over its classes that
have a pair, so that a class with many images does not drown the others.  *Thirds* divide all pairs by the share of
the image that the region covers, at the 1/3 and 2/3 quantiles (`size_bounds`); within a third the mean is over classes,
too.

The images are the sample: a resample draws N images with replacement, with all their pairs, and only images with a pair
count.  Intervals are made of the resamples as those of mAP are (`hpdval.metrics.statistics`), scaled by the jackknife,
but without its bias: a mean has none.  A mean over classes is linear in the values, so seeds are averaged pair by pair
before anything is drawn, and the difference of two methods is the same mean of the differences.

Letters: N images that have a pair, M pairs, C classes, R resamples, S seeds, X columns of any kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpdval.errors import ConfigError
from hpdval.groups import class_groups
from hpdval.metrics.evaluate import check_class_counts
from hpdval.metrics.localisation import METRICS, Localisation
from hpdval.metrics.statistics import CHUNK, Floats, Interval, centred_interval, known_mean

SIZES = ("smallest third", "middle third", "largest third")
Records = Localisation | Sequence[Localisation]
ClassCounts = Sequence[int] | NDArray[np.integer[Any]]


def localisation_interval(
    records: Records,
    class_counts: ClassCounts,
    metric: str,
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Return the mean over classes in percent for ``total``, ``head``, ``medium``, ``tail`` and the three `SIZES`.

    Limits are cut off at 0 and 100, as those of mAP are.

    Args:
        records: of one method, or a list, one for each training seed, on the same pairs.
        class_counts: (C,) training positives, which decide the groups.
        metric: "pointing", "energy" or "iou".
        resamples: R, number of resamples.
        seed: of the resampling; the same seed gives the same interval.
        level: confidence, 0.95 for 95 %.

    Raises:
        ConfigError: records of other pairs, an unknown metric, other counts, fewer than 2 resamples or images.
    """
    first, values = _values(records, metric)
    found = _intervals(_sample(first, values, class_counts, resamples, seed, level), class_counts, level)
    return {part: interval.within_range() for part, interval in found.items()}


def localisation_difference(
    after: Records,
    before: Records,
    class_counts: ClassCounts,
    metric: str,
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Return after - before in points, both on the same pairs; arguments and parts as in `localisation_interval`.

    A gain is what it is elsewhere (``Interval.gains``): the interval lies above 0 and all seeds agree.  Seeds are
    compared in order where there are as many of both, else the one with each of the others.
    """
    first, values = _differences(after, before, metric)
    return _intervals(_sample(first, values, class_counts, resamples, seed, level), class_counts, level)


def localisation_class_differences(
    after: Records,
    before: Records,
    class_counts: ClassCounts,
    metric: str,
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Interval]:
    """Return after - before of each class in points, NaN for a class without pairs; arguments as above."""
    first, values = _differences(after, before, metric)
    sample = _sample(first, values, class_counts, resamples, seed, level)
    parts = zip(sample.exact[:, 0].T, sample.drawn[0], sample.left_out[0], strict=True)
    return [centred_interval(exact, drawn, left, level, unbiased=True) for exact, drawn, left in parts]


def class_means(records: Records, class_counts: ClassCounts, metric: str) -> Floats:
    """Return the mean of each class over its pairs and over seeds in percent, (C,); NaN for a class without pairs."""
    first, values = _values(records, metric)
    n_classes = _class_number(first, class_counts)
    return 100 * _ratio(np.bincount(first.cls, values.mean(axis=0), n_classes), np.bincount(first.cls, None, n_classes))


def size_bounds(record: Localisation) -> tuple[float, float]:
    """Return the shares of the image up to which a region is in the smallest and in the middle third."""
    low, high = np.quantile(record.size, [1 / 3, 2 / 3])
    return float(low), float(high)


def size_thirds(record: Localisation) -> NDArray[np.intp]:
    """Return for each pair the index of its third in `SIZES`, (M,)."""
    return np.searchsorted(size_bounds(record), record.size, side="left")


class _Sample(NamedTuple):
    """Means of each class; the second axis but one is all pairs, then the thirds."""

    exact: Floats  # (S, 4, C)
    drawn: Floats  # (4, C, R)
    left_out: Floats  # (4, C, N) without each image in turn


def _values(records: Records, metric: str) -> tuple[Localisation, Floats]:
    """Return the first record and the values of all seeds, (S, M), after checking that they are of the same pairs."""
    listed = [records] if isinstance(records, Localisation) else list(records)
    if metric not in METRICS:
        raise ConfigError(f"metric is {metric!r}; choose {', '.join(METRICS)}")
    if not listed:
        raise ConfigError("there is no record of localisation; give at least one")
    for other in listed[1:]:
        _refuse_other_pairs(listed[0], other)
    return listed[0], np.stack([record.values[metric] for record in listed])


def _differences(after: Records, before: Records, metric: str) -> tuple[Localisation, Floats]:
    (first, a), (other, b) = _values(after, metric), _values(before, metric)
    _refuse_other_pairs(first, other)
    if len(a) != len(b) and 1 not in (len(a), len(b)):
        raise ConfigError(f"cannot pair {len(a)} seeds with {len(b)}; give as many, or one of either")
    return first, a - b


def _refuse_other_pairs(one: Localisation, other: Localisation) -> None:
    same = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("image", "cls", "size"))
    if not same or one.tolerance != other.tolerance:
        raise ConfigError(
            "two records of localisation are of other images, classes, regions or tolerances; measure the same pairs"
        )


def _class_number(record: Localisation, class_counts: ClassCounts) -> int:
    n_classes = len(np.asarray(class_counts))
    check_class_counts(class_counts, n_classes)
    if len(record) and not 0 <= record.cls.min() <= record.cls.max() < n_classes:
        raise ConfigError(f"a pair has class {record.cls.max()}, but there are counts of {n_classes} classes")
    return n_classes


def _intervals(sample: _Sample, class_counts: ClassCounts, level: float) -> dict[str, Interval]:
    every = np.arange(sample.drawn.shape[1])
    parts = {"total": (0, every)} | {name: (0, classes) for name, classes in class_groups(class_counts).items()}
    parts |= {name: (k, every) for k, name in enumerate(SIZES, start=1)}
    return {
        name: centred_interval(
            known_mean(sample.exact[:, k, classes].T),
            known_mean(sample.drawn[k, classes]),
            known_mean(sample.left_out[k, classes]),
            level,
            unbiased=True,
        )
        for name, (k, classes) in parts.items()
    }


def _sample(
    record: Localisation, values: Floats, class_counts: ClassCounts, resamples: int, seed: int, level: float
) -> _Sample:
    """Return the class means of the values (S, M) as they are, resampled, and without each image."""
    n_classes = _class_number(record, class_counts)
    _, image = np.unique(record.image, return_inverse=True)
    n_images = int(image.max(initial=-1)) + 1
    if resamples < 2 or not 0 < level < 1 or n_images < 2:
        raise ConfigError(
            f"need at least 2 resamples, 2 images and a level between 0 and 1, got {resamples}, {n_images}, {level}"
        )
    cell, n_cells = size_thirds(record) * n_classes + record.cls, len(SIZES) * n_classes
    counts = np.bincount(cell, minlength=n_cells).astype(float)
    sums = np.stack([np.bincount(cell, seeded, n_cells) for seeded in values])  # (S, cells)
    exact = _by_class(sums.T, np.repeat(counts[:, None], len(values), axis=1), n_classes)

    mean = values.mean(axis=0)
    own, own_counts = (  # of each image, (cells, N)
        np.bincount(image * n_cells + cell, weights, n_images * n_cells).reshape(n_images, n_cells).T
        for weights in (mean, None)
    )
    left_out = _by_class(sums.mean(axis=0)[:, None] - own, counts[:, None] - own_counts, n_classes)

    order = np.argsort(cell, kind="stable")
    filled, starts = np.unique(cell[order], return_index=True)
    rng, drawn = np.random.default_rng(seed), []
    for begin in range(0, resamples, CHUNK):
        width = min(CHUNK, resamples - begin)
        draws = [np.bincount(rng.integers(0, n_images, n_images), minlength=n_images) for _ in range(width)]
        weights = np.stack(draws, axis=1).astype(float)[image[order]]  # (M, width)
        both = np.zeros((2, n_cells, width))
        both[0, filled] = np.add.reduceat(weights * mean[order, None], starts, axis=0)
        both[1, filled] = np.add.reduceat(weights, starts, axis=0)
        drawn.append(_by_class(both[0], both[1], n_classes))
    return _Sample(np.moveaxis(exact, 2, 0), np.concatenate(drawn, axis=2), left_out)


def _by_class(sums: NDArray[Any], counts: NDArray[Any], n_classes: int) -> Floats:
    """Return the means of each class over all pairs and over each third, (4, C, X), from sums and counts (3 C, X)."""
    parts = [part.reshape(len(SIZES), n_classes, -1) for part in (sums, counts)]
    total, number = (np.concatenate([part.sum(axis=0, keepdims=True), part]) for part in parts)
    return _ratio(total, number)


def _ratio(sums: NDArray[Any], counts: NDArray[Any]) -> Floats:
    """Divide; NaN where the count is 0, whatever rounding left of the sum."""
    return np.divide(sums, counts, out=np.full(np.shape(sums), np.nan), where=np.asarray(counts) > 0)
