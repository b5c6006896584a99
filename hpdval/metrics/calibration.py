"""Decisions and probabilities from scores: a threshold and a logistic curve for each class, and how far to trust them.

Nothing here may be fitted on test images.  Fitted on the training images of a fine-tuned model it is optimistic: such a
model scores what it was trained on too well, so thresholds tend to be too high and probabilities too sure.  Use the
validation part where there is one; :class:`Platt` keeps the name of the part it was fitted on.

Letters: N images, C classes, B bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpdval.errors import ConfigError
from hpdval.groups import class_groups
from hpdval.metrics.average_precision import checked, numbers
from hpdval.metrics.evaluate import check_class_counts

SPLITS = ("training", "validation")
Floats = NDArray[np.float64]


def best_f1_thresholds(scores: ArrayLike, targets: ArrayLike) -> Floats:
    """Return the threshold of each class at which its F1 = 2 TP / (predicted + positives) is highest.

    A label is predicted where score >= threshold, as in :func:`hpdval.metrics.decision_scores`.  The threshold lies
    midway between the two neighbouring distinct scores that it tells apart; where predicting every image is best, it is
    the lowest score.  Of thresholds with the same F1 the highest is taken, which predicts the fewest images.

    Args:
        scores: (N, C), finite, of training or validation images, never of test images.
        targets: (N, C) of 0 and 1.

    Returns:
        (C,) float64 on the scale of the scores; NaN for a class without positives.

    Raises:
        ConfigError: unusable scores or targets.

    >>> best_f1_thresholds([[0.9, 0.1], [0.7, 0.2], [0.1, 0.3]], [[1, 0], [1, 0], [0, 0]])
    array([0.4, nan])
    """
    values, labels = checked(scores, targets)
    return np.array([_best_threshold(v, p) for v, p in zip(values.T, labels.T, strict=True)])


def _best_threshold(scores: Floats, positive: NDArray[np.bool_]) -> float:
    if not positive.any():
        return math.nan
    order = np.argsort(-scores, kind="stable")
    falling, hits = scores[order], positive[order].cumsum()
    last = np.append(falling[1:] != falling[:-1], True)  # where a stretch of equal scores ends: the only possible cuts
    places = np.flatnonzero(last)
    best = places[np.argmax(2 * hits[places] / (places + 1 + hits[-1]))]  # equal ratios of integers are equal floats
    lowest = float(falling[best])
    if best == len(falling) - 1:
        return lowest
    below = float(falling[best + 1])
    middle = below / 2 + lowest / 2  # the sum of two huge scores would overflow
    return middle if below < middle <= lowest else lowest  # neighbouring floats have nothing between them


@dataclass(frozen=True, kw_only=True, eq=False)
class Platt:
    """Probabilities p = 1 / (1 + exp(-(slope s + offset))) of each class; ``split`` names what they were fitted on."""

    slope: Floats  # (C,) at least 0; NaN for a class without positives or without negatives
    offset: Floats  # (C,)
    split: str

    def probabilities(self, scores: ArrayLike) -> Floats:
        """Return the probabilities in [0, 1] of scores (..., C); NaN for a class that could not be fitted."""
        return _sigmoid(np.asarray(scores, dtype=np.float64) * self.slope + self.offset)


def platt(scores: ArrayLike, targets: ArrayLike, *, split: str = "training") -> Platt:
    """Return the logistic calibration of each class, fitted by maximum likelihood to smoothed targets.

    Minimises -sum_i [t_i log p_i + (1 - t_i) log(1 - p_i)] with t = (P + 1) / (P + 2) for the P positives of a class
    and t = 1 / (N - P + 2) for its negatives, so that one positive does not make it certain [Platt, 1999; Newton's
    method with backtracking after Lin, Lin and Weng, 2007, algorithm 1].  A slope below 0 would reverse the ranking,
    which a few positives can ask for by chance: it is set to 0, and the class gets one probability for all images.

    Args:
        scores: (N, C), finite, of training or validation images, never of test images.
        targets: (N, C) of 0 and 1.
        split: "training" or "validation", kept with the result.

    Raises:
        ConfigError: unusable scores or targets, or another split.

    >>> fitted = platt([[-2.0], [-1.0], [1.0], [2.0]], [[0], [0], [1], [1]], split="validation")
    >>> fitted.probabilities([[-1.5], [0.0], [1.5]]).round(2).ravel(), fitted.split
    (array([0.27, 0.5 , 0.73]), 'validation')
    """
    if split not in SPLITS:
        raise ConfigError(f"split is {split!r}; calibrate on {' or '.join(SPLITS)} scores, never on those tested on")
    values, labels = checked(scores, targets)
    fits = [_fit(v, p) for v, p in zip(values.T, labels.T, strict=True)]
    slope, offset = np.array(fits).T
    return Platt(slope=slope, offset=offset, split=split)


def _fit(scores: Floats, positive: NDArray[np.bool_]) -> tuple[float, float]:
    count, n = int(positive.sum()), positive.size
    if count in (0, n):
        return math.nan, math.nan
    wanted = np.where(positive, (count + 1) / (count + 2), 1 / (n - count + 2))
    middle, spread = scores.mean(), scores.std()
    level = math.log(wanted.mean() / (1 - wanted.mean()))
    if not spread > 0:
        return 0.0, level
    z = (scores - middle) / spread  # Newton's steps then do not depend on the scale of the scores
    slope, offset = _newton(z, wanted, level)
    if slope <= 0:
        return 0.0, level
    return slope / spread, offset - slope * middle / spread


def _newton(z: Floats, wanted: Floats, level: float) -> tuple[float, float]:
    """Minimise the convex loss from (slope 0, offset ``level``); targets inside (0, 1) make the minimum finite."""
    point = np.array([0.0, level])
    loss = _loss(z, wanted, point)
    for _ in range(100):
        p = _sigmoid(point[0] * z + point[1])
        gradient = np.array([((p - wanted) * z).sum(), (p - wanted).sum()])
        if np.abs(gradient).max() < 1e-10 * len(z):
            break
        w = p * (1 - p)
        hessian = np.array([[(w * z * z).sum(), (w * z).sum()], [(w * z).sum(), w.sum()]]) + 1e-12 * np.eye(2)
        step, length = np.linalg.solve(hessian, -gradient), 1.0
        while length > 1e-10:
            tried = point + length * step
            new = _loss(z, wanted, tried)
            if new < loss + 1e-4 * length * float(gradient @ step):
                break
            length /= 2
        else:
            break  # no shorter step lowers the loss: rounding decides now
        point, loss = tried, new
    return float(point[0]), float(point[1])


def _loss(z: Floats, wanted: Floats, point: Floats) -> float:
    logits = point[0] * z + point[1]
    return float((np.logaddexp(0.0, logits) - wanted * logits).sum())


def _sigmoid(logits: Floats) -> Floats:
    with np.errstate(invalid="ignore"):  # NaN of a class that could not be fitted stays NaN
        return np.exp(-np.logaddexp(0.0, -logits))


@dataclass(frozen=True, kw_only=True, eq=False)
class Reliability:
    """Predicted against observed in bins of equal count, from the least to the most probable.

    ``ece`` = sum over bins of ``count / all * |observed - predicted|``; ``brier`` = mean of (probability - target)^2,
    both in [0, 1] and NaN without a pair.
    """

    predicted: Floats  # (B,) mean probability
    observed: Floats  # (B,) share of positives
    low: Floats  # (B,) Wilson's interval of the share
    high: Floats
    count: NDArray[np.int64]  # (B,) pairs of an image and a class
    ece: float
    brier: float


def reliability(probabilities: ArrayLike, targets: ArrayLike, *, bins: int = 10, level: float = 0.95) -> Reliability:
    """Return how often what was given a probability came true, over all pairs of an image and a class.

    Equal probabilities stay in one bin, so there can be fewer bins, and of unequal count.  The interval takes pairs as
    independent [Wilson, 1927]; pairs of one image are not, which makes it somewhat too narrow.

    Args:
        probabilities: (N, C) in [0, 1]; a class that is NaN throughout (not calibrated) is left out.
        targets: (N, C) of 0 and 1.
        bins: B, at most.
        level: of the interval.

    Raises:
        ConfigError: probabilities outside [0, 1], unusable targets, no bin, or a level outside (0, 1).

    >>> result = reliability([[0.1], [0.1], [0.9], [0.9]], [[0], [0], [1], [0]], bins=2)
    >>> result.predicted, result.observed, round(result.ece, 3), round(result.brier, 3)
    (array([0.1, 0.9]), array([0. , 0.5]), 0.25, 0.21)
    """
    if bins < 1 or not 0 < level < 1:
        raise ConfigError(f"need at least 1 bin and a level between 0 and 1, got {bins} and {level}")
    p, y = _pairs(probabilities, targets)
    order = np.argsort(p, kind="stable")
    p, y = p[order], y[order]
    if not p.size:
        none = np.array([])
        return Reliability(
            predicted=none,
            observed=none,
            low=none,
            high=none,
            count=np.array([], np.int64),
            ece=math.nan,
            brier=math.nan,
        )
    starts = np.unique(np.searchsorted(p, p[np.arange(bins) * p.size // bins]))  # a bin begins with the first of equals
    count = np.diff(np.append(starts, p.size))
    predicted, observed = (np.add.reduceat(values, starts) / count for values in (p, y))
    low, high = wilson(observed, count, level)
    return Reliability(
        predicted=predicted,
        observed=observed,
        low=low,
        high=high,
        count=count.astype(np.int64),
        ece=float((count * np.abs(observed - predicted)).sum() / p.size),
        brier=float(((p - y) ** 2).mean()),
    )


def group_reliability(
    probabilities: ArrayLike,
    targets: ArrayLike,
    class_counts: Sequence[int] | NDArray[np.integer[Any]],
    *,
    bins: int = 10,
    level: float = 0.95,
) -> dict[str, Reliability]:
    """Return :func:`reliability` for ``total``, ``head``, ``medium`` and ``tail``, each with bins of its own.

    Args:
        class_counts: (C,) training positives, which decide the groups.
        probabilities, targets, bins, level: as in `reliability`.
    """
    p, y = numbers(probabilities, "probabilities").astype(np.float64), numbers(targets, "targets")
    check_class_counts(class_counts, p.shape[-1])
    chosen = {"total": np.arange(p.shape[-1]), **class_groups(class_counts)}
    return {name: reliability(p[:, c], y[:, c], bins=bins, level=level) for name, c in chosen.items()}


def wilson(share: Floats, count: ArrayLike, level: float = 0.95) -> tuple[Floats, Floats]:
    """Return the limits of Wilson's score interval of a share that was observed among ``count``.

    >>> [round(float(limit), 3) for limit in wilson(np.array(0.0), 10)]
    [0.0, 0.278]
    """
    z2 = NormalDist().inv_cdf(0.5 + level / 2) ** 2
    n = np.asarray(count, dtype=np.float64)
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return np.clip(middle - half, 0.0, share), np.clip(middle + half, share, 1.0)  # no limit beyond by rounding


def _pairs(probabilities: ArrayLike, targets: ArrayLike) -> tuple[Floats, Floats]:
    p, y = numbers(probabilities, "probabilities").astype(np.float64), numbers(targets, "targets")
    if p.ndim != 2 or p.shape != y.shape:
        raise ConfigError(f"probabilities and targets must be (N, C) alike, got shapes {p.shape} and {y.shape}")
    known = ~np.isnan(p).all(axis=0)
    p, y = p[:, known], y[:, known]
    if not p.size:
        return np.array([]), np.array([])
    values, labels = checked(p, y)
    if values.min() < 0 or values.max() > 1:
        raise ConfigError(
            f"probabilities must lie in [0, 1], got {values.min():g} to {values.max():g}; calibrate first"
        )
    return values.ravel(), labels.ravel().astype(np.float64)
