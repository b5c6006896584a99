"""Whether a difference of mAP is more than chance, and how large one would have to be to be seen.

The permutation test asks what the paired bootstrap does not: were the two methods exchangeable, image by image, how
often would their mAPs differ as much as they do?  A permutation exchanges A's and B's scores of an image, of all
classes and seeds together, with probability 1/2 [Good, 2005, ch. 3].

Scores of two methods have different offsets and scales, and a cosine put in the place of a logit would end at an edge
of the ranking.  AP depends on the order within a class alone, so each method's scores of a class are first replaced by
their ranks (ties averaged), which leaves every AP as it was and makes the exchange meaningful.  Every rank then occurs
in A and in B, and as ties these would blunt T* at the top of the ranking; a random order of the images, the same for
both methods, decides which comes first.  Ranks of which some are exchanged are no longer 1 to N, so the test is exact
only in the limit of many positives.

Measured: percentage of simulations with p <= 0.05 for one class of 1,000 images, two methods that share 64 % of their
variance, one of them as 3 x + 1, without a difference and with one of 0.3 deviations (1,000 simulations, +- 1.4;
``docs/statistics.md`` has the bootstrap beside it, and the command):

    positives        10    20    50   100   10 (3 seeds)  50 (3 seeds)
    no difference   5.0   6.2   4.2   4.4            7.3           5.4
    A is ahead     13.7  23.7  41.8  71.5

and without a difference of 20 classes 5.5 (10 positives each) and 5.0 (50), also where each is better in half of them
(200 simulations, +- 3.1).

Letters: N images, C classes, R permutations, T the difference of mAPs, T* that of a permutation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpdval.errors import ConfigError
from hpdval.groups import GROUPS, class_groups
from hpdval.metrics.average_precision import checked, numbers
from hpdval.metrics.evaluate import check_class_counts
from hpdval.metrics.ranking import Ranking
from hpdval.metrics.statistics import CHUNK, Floats, Interval, Scores, known_mean, paired_runs

TOLERANCE = 1e-12  # sums of the same APs in another order are the same difference
COVERED_FROM = 50  # test positives from which intervals cover as they say (the table in ``statistics.py``)


def permutation_test(
    scores_a: Scores,
    scores_b: Scores,
    targets: ArrayLike,
    class_counts: Sequence[int] | NDArray[np.integer[Any]],
    *,
    permutations: int = 2000,
    seed: int = 0,
    readout: str = "raw",
) -> dict[str, float]:
    """Return two-sided p-values of mAP(A) - mAP(B) for ``total``, ``head``, ``medium`` and ``tail``.

    ``p = (1 + #{|T*| >= |T|}) / (1 + R)``, T the mean over paired seeds [Phipson and Smyth, 2010, eq. 2], where each
    permutation exchanges the within-class ranks of A and B for a random half of the images (see the module).

    Args:
        scores_a, scores_b, targets, class_counts, readout: as in `paired_bootstrap`.
        permutations: R; no p-value is below 1 / (1 + R).
        seed: of the permutations; the same seed gives the same p-values.

    Returns:
        ``{"total": p, "head": ..., "medium": ..., "tail": ...}``, NaN for a group without a class with positives;
        exchanging A and B changes nothing.

    Raises:
        ConfigError: unusable scores, targets or counts, seeds that cannot be paired, no permutations.

    >>> rng = np.random.default_rng(0)
    >>> targets = rng.random((200, 2)) < 0.3
    >>> noise = rng.normal(size=(200, 2))
    >>> permutation_test(3 * targets + noise, targets + noise, targets, [120, 10], permutations=99)["total"]
    0.01
    """
    runs_a, runs_b, labels = paired_runs(scores_a, scores_b, targets, readout)
    if permutations < 1:
        raise ConfigError(f"permutations must be at least 1, got {permutations}; 2000 resolve p = 0.0005")
    n_images, n_classes = labels.shape
    check_class_counts(class_counts, n_classes)
    seeds = max(len(runs_a), len(runs_b))
    pairs = list(zip(_repeated(runs_a, seeds), _repeated(runs_b, seeds), strict=True))
    rng = np.random.default_rng(seed)
    first = rng.random(len(labels))  # which image goes first among equal ranks
    pooled = [[_pooled(a[:, c], b[:, c], labels[:, c], first) for a, b in pairs] for c in range(n_classes)]
    chunks = []
    for kept in _exchanges(n_images, permutations, rng):
        of_a = np.concatenate([kept, 1 - kept])  # (2N, R): which of the pooled ranks stand for A
        chunks.append([np.mean([ranking.split(of_a) for ranking in rankings], axis=0) for rankings in pooled])
    drawn = np.concatenate(chunks, axis=1)  # (C, 1 + R)
    groups = {"total": np.arange(n_classes), **class_groups(class_counts)}
    return {group: _p_value(known_mean(drawn[classes])) for group, classes in groups.items()}


def _repeated(runs: list[Floats], seeds: int) -> list[Floats]:
    return runs * (seeds if len(runs) == 1 else 1)


def _pooled(a: Floats, b: Floats, positive: NDArray[np.bool_], first: Floats) -> Ranking:
    """Sort the ranks of both methods in a class as one sample of 2 N, A's images first."""
    return Ranking.of(np.concatenate([_ranks(a, first), _ranks(b, first)]), np.concatenate([positive, positive]))


def _ranks(values: Floats, first: Floats) -> Floats:
    """Return ranks from 1, ties averaged, plus half of ``first``, in [0, 1), at the image that begins a tie, (N,).

    Two ranks of one method differ by 1 or more, those of two by 1/2 or more unless they are equal, so no order changes.
    """
    _, image, place, counts = np.unique(values, return_index=True, return_inverse=True, return_counts=True)
    return np.asarray((counts.cumsum() - (counts - 1) / 2 + first[image] / 2)[place])


def _exchanges(n_images: int, permutations: int, rng: np.random.Generator) -> Iterator[NDArray[np.float32]]:
    """Yield (N, R) parts of 1, where an image keeps its scores, and 0; the first of all exchanges nothing."""
    yield np.ones((n_images, 1), dtype=np.float32)
    for start in range(0, permutations, CHUNK):
        width = min(CHUNK, permutations - start)
        yield rng.integers(0, 2, (width, n_images), dtype=np.int8).T.astype(np.float32, order="C")


def _p_value(differences: Floats) -> float:
    """Return the share of differences, of which the first is the observed one, that are as large as it."""
    sizes = np.abs(differences)
    return math.nan if np.isnan(sizes[0]) else float(np.mean(sizes >= sizes[0] - TOLERANCE))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Return Holm's step-down adjusted p-values: with p_(1) <= ... <= p_(m), max over j <= i of (m - j + 1) p_(j).

    They hold the chance of any false claim among m comparisons below the level, however these depend on one another
    [Holm, 1979].  NaN stays NaN and does not count among the m.

    Args:
        p_values: (K,) in [0, 1] or NaN.

    Returns:
        (K,) float64 in the order given, at most 1.

    Raises:
        ConfigError: not one row of numbers in [0, 1].

    >>> holm([0.01, 0.04, 0.03]).round(4)
    array([0.03, 0.06, 0.06])
    """
    p = numbers(p_values, "p_values").astype(np.float64)
    known = np.flatnonzero(~np.isnan(p)) if p.ndim == 1 else None
    if known is None or (p[known] < 0).any() or (p[known] > 1).any():
        raise ConfigError(f"p_values must be one row of numbers from 0 to 1 (or NaN), got {p_values!r}")
    rising = known[np.argsort(p[known], kind="stable")]
    adjusted = np.full(p.shape, math.nan)
    adjusted[rising] = np.minimum(np.maximum.accumulate(p[rising] * np.arange(rising.size, 0, -1)), 1)
    return adjusted


def detectable_difference(interval: Interval, *, power: float = 0.8) -> float:
    """Return the true difference in points that a comparison with this interval's standard error finds with ``power``.

    (z_(1 - a/2) + z_power) se, with se = (high - low) / (2 z_(1 - a/2)) and a = 1 - level; NaN for an empty group.

    Args:
        interval: of `paired_bootstrap`.
        power: share of such comparisons whose interval would exclude 0, from 0.5 to below 1.

    Raises:
        ConfigError: a power outside [0.5, 1).

    >>> interval = Interval(estimate=0.3, low=-1.66, high=2.26, level=0.95, per_seed=(0.3,))
    >>> round(detectable_difference(interval), 2)
    2.8
    """
    if not 0.5 <= power < 1:
        raise ConfigError(f"power must be at least 0.5 and below 1, got {power}; 0.8 is usual")
    z = NormalDist().inv_cdf(0.5 + interval.level / 2)
    return (z + NormalDist().inv_cdf(power)) * (interval.high - interval.low) / (2 * z)


def power_note(
    targets: ArrayLike, class_counts: Sequence[int] | NDArray[np.integer[Any]], intervals: Mapping[str, Interval]
) -> list[str]:
    """Return a line for each group that has a class with positives: how many positives, and what would be missed.

    Args:
        targets: (N, C) of 0 and 1.
        class_counts: (C,) training positives, which decide the groups.
        intervals: of one comparison, as `paired_bootstrap` returns them.

    >>> targets = np.arange(400)[:, None] < [98, 120]
    >>> interval = Interval(estimate=0.3, low=-1.66, high=2.26, level=0.95, per_seed=(0.3,))
    >>> power_note(targets, [9, 4], {"tail": interval})
    ['tail: 2 classes with 98 to 120 test positives; differences below 2.8 points would be missed more than one time in
    five']
    """
    _, labels = checked(targets, targets)
    check_class_counts(class_counts, labels.shape[1])
    positives, groups, notes = labels.sum(axis=0), class_groups(class_counts), []
    for group in [name for name in GROUPS if name in intervals]:
        counts = positives[groups[group]]
        counts = np.sort(counts[counts > 0])
        if not counts.size:
            continue
        few = int((counts < COVERED_FROM).sum())
        span = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
        notes.append(
            f"{group}: {counts.size} class{'es' * (counts.size > 1)} with {span} test positives; differences below "
            f"{detectable_difference(intervals[group]):.1f} points would be missed more than one time in five"
            + f"; {few} of them below {COVERED_FROM}, where intervals may cover less than they say"
            * (few > 0)
        )
    return notes
