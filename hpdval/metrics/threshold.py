"""Precision, recall and F1 of decisions, overall and per class, at a threshold or for the best k of an image."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpdval.errors import ConfigError
from hpdval.metrics.average_precision import checked


class DecisionScores(NamedTuple):
    """Precision, recall and F1 in [0, 1]: O over all decisions pooled, C as means over classes."""

    OP: float
    OR: float
    OF1: float
    CP: float
    CR: float
    CF1: float


def decision_scores(
    scores: ArrayLike,
    targets: ArrayLike,
    *,
    threshold: float | None = None,
    top_k: int | None = None,
    released: bool = False,
) -> DecisionScores:
    """Return OP, OR, OF1 and CP, CR, CF1 of predicting a label where its score is high enough.

    OP = sum_c TP_c / sum_c predicted_c, OR = sum_c TP_c / sum_c positives_c; CP = mean of TP_c / predicted_c over all
    classes (0 for a class never predicted), CR = mean of TP_c / positives_c over the classes that have a positive;
    F1 = 2 P R / (P + R), 0 where both are 0.

    Args:
        scores: (N, C).
        targets: (N, C) of 0 and 1.
        threshold: a label is predicted where score >= threshold, on the scale of the scores: for logits and a
            probability t give log(t / (1 - t)).
        top_k: a label is predicted only among the k largest scores of its image, usually 3; of equal scores the class
            that comes first.  With a threshold too, both must hold.
        released: count a class that is never predicted as one prediction in OP, as the evaluation code that CPRFL and
            HP-DVAL released does.

    Raises:
        ConfigError: neither threshold nor top_k, top_k outside 1 to C, unusable scores or targets.

    >>> decision_scores([[0.9, 0.1], [0.8, 0.7]], [[1, 0], [0, 1]], threshold=0.5).OP
    0.6666666666666666
    """
    values, labels = checked(scores, targets)
    predicted = _decide(values, threshold, top_k)
    chosen, positives, hits = predicted.sum(axis=0), labels.sum(axis=0), (predicted & labels).sum(axis=0)  # (C,)
    at_least_one = np.maximum(chosen, 1)
    precision = hits.sum() / max(at_least_one.sum() if released else chosen.sum(), 1)
    recall = hits.sum() / max(positives.sum(), 1)
    class_precision = float(np.mean(hits / at_least_one))
    valid = positives > 0
    class_recall = float(np.mean(hits[valid] / positives[valid])) if valid.any() else 0.0
    return DecisionScores(
        OP=float(precision),
        OR=float(recall),
        OF1=_f1(float(precision), float(recall)),
        CP=class_precision,
        CR=class_recall,
        CF1=_f1(class_precision, class_recall),
    )


def _decide(scores: NDArray[np.float64], threshold: float | None, top_k: int | None) -> NDArray[np.bool_]:
    if threshold is None and top_k is None:
        raise ConfigError("give a threshold, top_k, or both: without them every label would be predicted")
    predicted = np.ones(scores.shape, dtype=bool) if threshold is None else scores >= threshold
    if top_k is None:
        return predicted
    if not 1 <= top_k <= scores.shape[1]:
        raise ConfigError(f"top_k must be 1 to {scores.shape[1]}, the number of classes, got {top_k}")
    best = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(best, np.argsort(-scores, axis=1, kind="stable")[:, :top_k], True, axis=1)
    return predicted & best


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
