"""What a ranking gets wrong, class by class: which images, at what cost, and what the company of other classes does.

An image is a mistake where the ranking of its class is wrong because of it: a negative that scores at least as high as
some positive, a positive that scores no higher than some negative.  No threshold is needed for that.

Letters: N images, C classes, R resamples.  AP and costs are in percent and percentage points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpdval.errors import ConfigError
from hpdval.metrics.average_precision import checked
from hpdval.metrics.ranking import Ranking
from hpdval.metrics.statistics import CHUNK, Interval, bootstrap

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Mistake(NamedTuple):
    """An image that a class's ranking has in the wrong place."""

    image: int  # index among the N
    rank: int  # 1 is the best; images with equal scores share the better rank
    score: float
    ap_lost: float  # by how many points the class's AP would rise if this one image were right; NaN without positives


def best_false_positives(scores: ArrayLike, targets: ArrayLike, c: int, n: int = 8) -> list[Mistake]:
    """Return the negatives of class ``c`` that score highest, best first; of equal scores the earlier image.

    ``ap_lost`` is what the AP gains if the image falls below all others.  Negatives below every positive cost nothing
    and are left out.  Of a class without positives the best negatives are returned; their cost is NaN.

    Args:
        scores: (N, C), finite.
        targets: (N, C) of 0 and 1.
        c: index of the class.
        n: how many, at most.

    Raises:
        ConfigError: unusable scores or targets, no such class, or a negative ``n``.

    >>> best_false_positives([[0.9], [0.8], [0.7], [0.1]], [[1], [0], [1], [0]], 0)
    [Mistake(image=1, rank=2, score=0.8, ap_lost=16.66...)]
    """
    values, positive = _column(scores, targets, c, n)
    lowest = values[positive].min() if positive.any() else -math.inf
    wrong = np.flatnonzero(~positive & (values >= lowest))
    chosen = wrong[np.argsort(-values[wrong], kind="stable")][:n]
    ranking = Ranking.of(values, positive)
    return _mistakes(values, chosen, ranking.delete_one()[chosen] - ranking.ap)


def worst_false_negatives(scores: ArrayLike, targets: ArrayLike, c: int, n: int = 8) -> list[Mistake]:
    """Return the positives of class ``c`` that score lowest, worst first; of equal scores the earlier image.

    ``ap_lost`` is what the AP gains if the image rises above all others.  Positives above every negative cost nothing
    and are left out.

    Args:
        scores, targets, c, n: as in `best_false_positives`.

    Raises:
        ConfigError: as `best_false_positives`.

    >>> worst_false_negatives([[0.9], [0.8], [0.7], [0.1]], [[1], [0], [1], [0]], 0)
    [Mistake(image=2, rank=3, score=0.7, ap_lost=16.66...)]
    """
    values, positive = _column(scores, targets, c, n)
    highest = values[~positive].max() if not positive.all() else -math.inf
    wrong = np.flatnonzero(positive & (values <= highest))
    chosen = wrong[np.argsort(values[wrong], kind="stable")][:n]
    return _mistakes(values, chosen, _gain_on_top(Ranking.of(values, positive), chosen))


def _column(scores: ArrayLike, targets: ArrayLike, c: int, n: int) -> tuple[Floats, Bools]:
    values, labels = checked(scores, targets)
    if not 0 <= c < values.shape[1] or n < 0:
        raise ConfigError(f"class {c}, {n} images: give a class from 0 to {values.shape[1] - 1} and at least 0 images")
    return values[:, c], labels[:, c]


def _mistakes(values: Floats, chosen: NDArray[np.intp], gained: Floats) -> list[Mistake]:
    higher = len(values) - np.searchsorted(np.sort(values), values[chosen], side="right")
    found = zip(chosen, higher, values[chosen], gained, strict=True)
    return [Mistake(int(i), int(above) + 1, float(s), 100.0 * float(gain)) for i, above, s, gain in found]


def _gain_on_top(ranking: Ranking, chosen: NDArray[np.intp]) -> Floats:
    """Return AP with one positive moved to the top, minus AP: those that were above it count one positive more."""
    tp, predicted = ranking.true_positives, ranking.predicted
    own = np.empty(ranking.above.size)
    own[ranking.positives] = tp / predicted
    more = np.concatenate([[0.0], np.cumsum((tp + 1) / (predicted + 1) - tp / predicted)])
    return (1.0 - own[chosen] + more[ranking.above[chosen]]) / max(tp.size, 1)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some of the images: how many, how many of them positive, the AP among them and what chance would give."""

    images: int
    positives: int
    chance: float  # prevalence, percent; NaN without images
    ap: Interval  # percent; NaN without positives


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """What the company of its usual companions does to one class.

    ``leakage`` is the share of pairs in which a negative with a companion scores above a negative without, ties counted
    half: 0.5 where the companions do not matter, 1 where they alone decide; NaN where either kind is missing.
    """

    companions: Mapping[int, float]  # class index -> P(d | c), the commonest first
    everywhere: Part
    without: Part
    with_companion: Part
    leakage: float
    low: float
    high: float


def companions(
    train_targets: ArrayLike, *, share: float = 0.25, lift: float = 1.0, together: int = 2, most: int = 3
) -> list[dict[int, float]]:
    """Return the usual companions of each class with P(d | c), the commonest first; of equals the earlier class.

    d is a companion of c where, among training images, P(d | c) >= ``share``, P(d | c) / P(d) > ``lift``, and at least
    ``together`` images show both; the ``most`` with the highest P(d | c) are kept.

    Args:
        train_targets: (n, C) of 0 and 1, of training images.

    Raises:
        ConfigError: unusable targets, or a parameter out of its range.

    >>> companions([[1, 1, 0], [1, 1, 0], [0, 0, 1], [0, 1, 1]])
    [{1: 1.0}, {0: 0.66...}, {}]
    """
    if not 0 < share <= 1 or lift < 0 or together < 1 or most < 0:
        raise ConfigError(
            f"share {share:g}, lift {lift:g}, together {together}, most {most}: need a share above 0 and at most 1, a "
            "lift of at least 0, together of at least 1 and most of at least 0"
        )
    labels = checked(np.zeros(np.shape(train_targets)), train_targets)[1].astype(np.float64)
    both, n = labels.T @ labels, len(labels)  # (C, C)
    count = both.diagonal()
    given = both / np.maximum(count, 1)[:, None]
    usual = (given >= share) & (both * n > lift * np.outer(count, count)) & (both >= together)
    np.fill_diagonal(usual, False)
    found = []
    for row, chances in zip(usual, given, strict=True):
        listed = np.flatnonzero(row)
        order = np.argsort(-chances[listed], kind="stable")[:most]
        found.append({int(d): float(chances[d]) for d in listed[order]})
    return found


def co_occurrence_leakage(
    scores: ArrayLike,
    targets: ArrayLike,
    train_targets: ArrayLike,
    *,
    share: float = 0.25,
    lift: float = 1.0,
    together: int = 2,
    most: int = 3,
    resamples: int = 500,
    seed: int = 0,
    level: float = 0.95,
) -> list[Leakage]:
    """Return for each class its AP with and without its usual companions, and how far these raise its scores.

    A method that has learned the company instead of the thing ranks a class well where companions are, badly where they
    are not, and scores negatives with a companion above others.  The APs of the two parts have different chance levels
    and do not compare as they stand; ``leakage`` looks at negatives alone and has one level, 0.5.

    Args:
        scores: (N, C) of the test images, finite.
        targets: (N, C) of 0 and 1.
        train_targets: (n, C) of the training images, which decide the companions.
        share, lift, together, most: of :func:`companions`.
        resamples, seed, level: of the intervals over test images: of an AP those of ``bootstrap``, of the leakage
            percentiles.

    Raises:
        ConfigError: unusable scores, targets or parameters.

    >>> rng = np.random.default_rng(0)
    >>> targets = np.repeat([[1, 1], [0, 1], [0, 0]], 20, axis=0)
    >>> company = targets[:, [1, 1]] + rng.normal(size=(60, 2))
    >>> co_occurrence_leakage(company, targets, targets, resamples=50)[0].leakage > 0.7
    True
    """
    values, labels = checked(scores, targets)
    usual = companions(train_targets, share=share, lift=lift, together=together, most=most)
    if len(usual) != values.shape[1]:
        raise ConfigError(f"train_targets have {len(usual)} classes and the scores {values.shape[1]}; give the same")
    options: dict[str, Any] = {"resamples": resamples, "seed": seed, "level": level}
    found = []
    for c, others in enumerate(usual):
        positive, company = labels[:, c], labels[:, list(others)].any(axis=1)
        everywhere, without, along = (
            _part(values[chosen, c], positive[chosen], **options) for chosen in (company | True, ~company, company)
        )
        estimate, low, high = _leakage(values[:, c], ~positive & company, ~positive & ~company, **options)
        found.append(
            Leakage(
                companions=others,
                everywhere=everywhere,
                without=without,
                with_companion=along,
                leakage=estimate,
                low=low,
                high=high,
            )
        )
    return found


def _part(scores: Floats, positive: Bools, *, level: float, **options: Any) -> Part:
    n, count = positive.size, int(positive.sum())
    ap = Interval(estimate=math.nan, low=math.nan, high=math.nan, level=level, per_seed=(math.nan,))
    if n >= 2 and count:
        ap = bootstrap(scores[:, None], positive[:, None], [count], level=level, **options)["total"]
    return Part(images=n, positives=count, chance=100.0 * count / n if n else math.nan, ap=ap)


def _leakage(
    scores: Floats, first: Bools, second: Bools, *, resamples: int, seed: int, level: float
) -> tuple[float, float, float]:
    """Return P(first above second) with ties counted half, and its percentile interval over the images."""
    if not first.any() or not second.any():
        return math.nan, math.nan, math.nan
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(scores[order]) > 0))  # of stretches of equal scores

    def share(weights: NDArray[np.float32]) -> Floats:
        above, below = (
            np.add.reduceat(weights[order] * kind[order, None], starts, axis=0, dtype=np.float64)
            for kind in (first, second)
        )
        won = (above * (below.cumsum(axis=0) - below / 2)).sum(axis=0)
        with np.errstate(invalid="ignore"):  # a resample without one of the kinds is NaN
            return np.asarray(won / (above.sum(axis=0) * below.sum(axis=0)))

    rng, n = np.random.default_rng(seed), len(scores)
    drawn = []
    for start in range(0, resamples, CHUNK):
        width = min(CHUNK, resamples - start)
        draws = [np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(width)]
        drawn.append(share(np.stack(draws, axis=1).astype(np.float32)))
    low, high = np.nanquantile(np.concatenate(drawn), [(1 - level) / 2, (1 + level) / 2])
    return float(share(np.ones((n, 1), np.float32))[0]), float(low), float(high)
