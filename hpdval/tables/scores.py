"""Tables from scores: means over seeds, intervals, paired differences, and classes one by one.

Letters: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from hpdval.groups import GROUPS, class_groups
from hpdval.metrics import Interval, apply_readout, evaluate, paired_bootstrap

COLUMNS = ("total", *GROUPS)
Scores = np.ndarray | Sequence[np.ndarray]


def group_names(class_counts: Sequence[int] | np.ndarray) -> list[str]:
    """Return the group of each class.

    >>> group_names([775, 40, 4])
    ['head', 'medium', 'tail']
    """
    names = np.empty(len(class_counts), dtype=object)
    for group, indices in class_groups(class_counts).items():
        names[indices] = group
    return list(names)


def listed(scores: Scores) -> list[np.ndarray]:
    """Return the scores (N, C) of each seed."""
    return [scores] if isinstance(scores, np.ndarray) and scores.ndim == 2 else list(scores)


def score_table(
    scores: Mapping[str, Scores], targets: np.ndarray, class_counts: np.ndarray, *, readout: str = "raw"
) -> pd.DataFrame:
    """Return mAP in percent: a row ``chance`` (prevalence) and one for each method; total, head, medium, tail.

    Where a method has several seeds the numbers are means, and columns ``total sd``, ... hold the sample standard
    deviation over seeds (NaN for one seed); ``seeds`` says how many.

    Args:
        scores: label -> (N, C), or a list of such arrays, one for each seed.
        targets: (N, C) of 0 and 1.
        class_counts: (C,) training positives, which decide the groups.

    >>> score_table({"mine": np.array([[0.9], [0.1]])}, np.array([[1], [0]]), np.array([120]))["total"].tolist()
    [50.0, 100.0]
    """
    rows: dict[str, dict[str, float]] = {}
    for label, given in scores.items():
        results = [evaluate(values, targets, class_counts, readout=readout) for values in listed(given)]
        numbers = np.array([[getattr(result, name) for name in COLUMNS] for result in results])
        chance = np.where(np.isnan(results[0].per_class), np.nan, results[0].chance)
        rows.setdefault("chance", {"total": results[0].chance_total, **_group_means(chance, class_counts)})
        rows[label] = dict(zip(COLUMNS, numbers.mean(axis=0), strict=True))
        if len(results) > 1:
            rows[label] |= {f"{n} sd": s for n, s in zip(COLUMNS, numbers.std(axis=0, ddof=1), strict=True)}
        rows[label]["seeds"] = len(results)
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("method").reset_index()
    spread = [f"{name} sd" for name in COLUMNS if f"{name} sd" in table]
    seeds = ["seeds"] if spread else []
    table["seeds"] = table["seeds"].astype("Int64")
    return table[["method", *COLUMNS, *spread, *seeds]]


def _group_means(values: np.ndarray, class_counts: np.ndarray) -> dict[str, float]:
    chosen = {name: values[indices] for name, indices in class_groups(class_counts).items()}
    return {name: float(np.nanmean(v)) if (~np.isnan(v)).any() else float("nan") for name, v in chosen.items()}


def difference_table(
    pairs: Mapping[str, tuple[Scores, Scores]], targets: np.ndarray, class_counts: np.ndarray, **options: Any
) -> pd.DataFrame:
    """Return mAP(after) - mAP(before) in points with a 95 % paired bootstrap interval, for total and groups.

    ``gain`` is "yes" where the interval lies above 0 and all seeds agree, "loss" where it lies below and all agree,
    else "open" (method, section 6, point 5).

    Args:
        pairs: label -> (after, before), each (N, C), or a list of such arrays, one for each seed.
        options: of ``hpdval.metrics.paired_bootstrap``.
    """
    rows = []
    for label, (after, before) in pairs.items():
        intervals = paired_bootstrap(listed(after), listed(before), targets, class_counts, **options)
        for name, interval in intervals.items():
            numbers = (interval.estimate, interval.low, interval.high, len(interval.per_seed), verdict(interval))
            rows.append((label, name, *numbers))
    return pd.DataFrame(rows, columns=["comparison", "classes", "difference", "low", "high", "seeds", "gain"])


def verdict(difference: Interval) -> str:
    """Return "yes" for a gain, "loss" for the reverse, else "open" (method, section 6, point 5)."""
    worse = difference.high < 0 and all(value < 0 for value in difference.per_seed)
    return "yes" if difference.gains else "loss" if worse else "open"


def interval_table(intervals: Mapping[str, Mapping[str, Interval]]) -> pd.DataFrame:
    """Return mAP in percent with its interval: label -> what ``hpdval.metrics.bootstrap`` returned."""
    rows = [
        (label, name, interval.estimate, interval.low, interval.high)
        for label, groups in intervals.items()
        for name, interval in groups.items()
    ]
    return pd.DataFrame(rows, columns=["method", "classes", "mAP", "low", "high"])


def class_differences(
    after: np.ndarray, before: np.ndarray, targets: np.ndarray, class_counts: np.ndarray, **options: Any
) -> list[Interval]:
    """Return for each class AP(after) - AP(before) in points with a 95 % paired bootstrap interval.

    Args:
        after, before: (N, C).
        options: of ``hpdval.metrics.paired_bootstrap``; 500 resamples unless said otherwise.
    """
    readout, counts = str(options.pop("readout", "raw")), np.asarray(class_counts)
    after, before = apply_readout(after, readout), apply_readout(before, readout)
    options = {"resamples": 500, **options}
    return [
        paired_bootstrap(after[:, [c]], before[:, [c]], targets[:, [c]], counts[[c]], **options)["total"]
        for c in range(targets.shape[1])
    ]


def per_class_table(
    classes: Sequence[str],
    class_counts: np.ndarray,
    targets: np.ndarray,
    scores: Mapping[str, np.ndarray],
    *,
    readout: str = "raw",
) -> pd.DataFrame:
    """Return a row for each class: group, training and test positives, chance and each method's AP in percent."""
    table = pd.DataFrame({"class": list(classes), "group": group_names(class_counts)})
    table["train"], table["test"] = np.asarray(class_counts), targets.sum(axis=0, dtype=np.int64)
    table["chance"] = 100.0 * targets.mean(axis=0)
    for label, values in scores.items():
        table[label] = evaluate(values, targets, class_counts, readout=readout).per_class
    return table
