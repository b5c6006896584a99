"""Tables of errors: each class with its threshold and companions, its mistakes one by one, and the calibration.

Letters: N images, C classes.  AP, precision, recall and F1 are in percent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from hpdval.metrics import Leakage, Mistake, Reliability, average_precision
from hpdval.tables.scores import group_names

FALSE_POSITIVE, FALSE_NEGATIVE = "false positive", "false negative"


def class_error_table(
    classes: Sequence[str],
    class_counts: np.ndarray,
    targets: np.ndarray,
    scores: np.ndarray,
    *,
    thresholds: np.ndarray | None = None,
) -> pd.DataFrame:
    """Return a row for each class: group, training and test positives, chance and AP, and decisions at its threshold.

    Args:
        class_counts: (C,) training positives, which decide the groups.
        targets, scores: (N, C) of the test images.
        thresholds: (C,) on the scale of the scores, of ``hpdval.metrics.best_f1_thresholds`` on *other* images; NaN
            where a class has none.

    >>> scores, targets = np.array([[0.9], [0.6]]), np.array([[1], [0]])
    >>> table = class_error_table(["cat"], np.array([5]), targets, scores, thresholds=np.array([0.5]))
    >>> table[["class", "group", "chance", "AP", "precision", "recall"]]
      class group  chance     AP  precision  recall
    0   cat  tail    50.0  100.0       50.0   100.0
    """
    table = pd.DataFrame({"class": list(classes), "group": group_names(class_counts)})
    table["train"], table["test"] = np.asarray(class_counts), targets.sum(axis=0, dtype=np.int64)
    table["chance"], table["AP"] = 100.0 * targets.mean(axis=0), 100.0 * average_precision(scores, targets)
    if thresholds is None:
        return table
    predicted, positive = scores >= thresholds, targets == 1  # NaN predicts nothing
    hits, chosen = (predicted & positive).sum(axis=0), predicted.sum(axis=0)
    with np.errstate(invalid="ignore"):
        table["threshold"] = thresholds
        table["precision"], table["recall"] = 100.0 * hits / chosen, 100.0 * hits / table["test"]
        table["F1"] = 200.0 * hits / (chosen + table["test"])
    table.loc[np.isnan(thresholds), ["precision", "recall", "F1"]] = math.nan
    table.attrs["digits"] = {"threshold": 4}
    return table


def mistake_table(
    classes: Sequence[str],
    ids: Sequence[str],
    targets: np.ndarray,
    false_positives: Sequence[Sequence[Mistake]],
    false_negatives: Sequence[Sequence[Mistake]],
) -> pd.DataFrame:
    """Return a row for each mistake of each class, false positives first.

    ``rank`` is that of the image in the class's ranking, ``AP lost`` what the AP would gain in points were this image
    right, ``labels`` what the image truly shows, joined by ";"; ``index`` is the image's place among the test images.

    Args:
        ids: N names of images.
        targets: (N, C) of the test images.
        false_positives, false_negatives: C lists, of ``hpdval.metrics.best_false_positives`` and of
            ``worst_false_negatives``.
    """
    rows = []
    for name, *both in zip(classes, false_positives, false_negatives, strict=True):
        for kind, found in zip((FALSE_POSITIVE, FALSE_NEGATIVE), both, strict=True):
            for one in found:
                labels = ";".join(classes[int(k)] for k in np.flatnonzero(targets[one.image]))
                rows.append((name, kind, one.image, ids[one.image], one.rank, one.score, one.ap_lost, labels))
    columns = ["class", "mistake", "index", "image", "rank", "score", "AP lost", "labels"]
    table = pd.DataFrame(rows, columns=columns)
    table.attrs["digits"] = {"score": 4}
    return table


def leakage_table(classes: Sequence[str], class_counts: np.ndarray, leakages: Sequence[Leakage]) -> pd.DataFrame:
    """Return a row for each class: its companions, AP without and with them beside chance, and the leakage, 0.5 none.

    Args:
        leakages: one for each class, of ``hpdval.metrics.co_occurrence_leakage``.
    """
    table = pd.DataFrame({"class": list(classes), "group": group_names(class_counts)})
    table["companions"] = [companion_names(one, classes) for one in leakages]
    for words, name in (("without", "without"), ("with", "with_companion")):
        parts = [getattr(one, name) for one in leakages]
        table[f"images {words}"] = [part.images for part in parts]
        table[f"positives {words}"] = [part.positives for part in parts]
        table[f"chance {words}"] = [part.chance for part in parts]
        for column, side in (("AP", "estimate"), ("low", "low"), ("high", "high")):
            table[f"{column} {words}"] = [getattr(part.ap, side) for part in parts]
    table["leakage"] = [one.leakage for one in leakages]
    table["low"], table["high"] = [one.low for one in leakages], [one.high for one in leakages]
    return table


def companion_names(leakage: Leakage, classes: Sequence[str]) -> str:
    """Return the companions with the share of the class's training images that show them: "tree 50 %, cat 25 %"."""
    return ", ".join(f"{classes[d]} {100 * share:.0f} %" for d, share in leakage.companions.items())


def calibration_table(groups: Mapping[str, Reliability]) -> pd.DataFrame:
    """Return a row for each bin of each group: probability predicted, share observed with its interval, in percent."""
    rows = [
        (name, b + 1, 100 * one.predicted[b], 100 * one.observed[b], 100 * one.low[b], 100 * one.high[b], one.count[b])
        for name, one in groups.items()
        for b in range(one.count.size)
    ]
    return pd.DataFrame(rows, columns=["classes", "bin", "predicted", "observed", "low", "high", "pairs"])


def calibration_summary(groups: Mapping[str, Reliability]) -> pd.DataFrame:
    """Return expected calibration error (percentage points) and Brier score of each group that has a pair."""
    known = {name: one for name, one in groups.items() if one.count.size}
    rows = [(name, int(one.count.sum()), 100 * one.ece, one.brier) for name, one in known.items()]
    table = pd.DataFrame(rows, columns=["classes", "pairs", "ECE", "Brier"])
    table.attrs["digits"] = {"Brier": 4}
    return table
