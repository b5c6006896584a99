"""Ranks of settings over classes: does one do better on most classes, or on a few by much?

Letters: K settings, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import friedmanchisquare, wilcoxon

from hpdval.metrics.significance import holm

LEVEL = 0.05


def rank_table(per_class: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Return the mean rank of each setting over the classes, 1 for the highest AP, best first.

    ``attrs["cliques"]`` lists groups of settings, best first, within which no pair differs: by Wilcoxon's signed-rank
    test over classes, Holm-adjusted over all pairs, at 5 % [Demsar, 2006; Benavoli et al., 2016], and with three
    settings or more only where Friedman's test finds any difference at all; its p-value is ``attrs["friedman"]``.
    Classes of one test set share images, so the tests describe how even a difference is over classes, no more.

    Args:
        per_class: label -> (C,) AP in percent; classes that are NaN anywhere are left out.

    >>> rank_table({"a": np.array([1.0, 2.0, 3.0]), "b": np.array([2.0, 3.0, 4.0])})["setting"].tolist()
    ['b', 'a']
    """
    labels = list(per_class)
    values = np.array([per_class[label] for label in labels], dtype=np.float64)  # (K, C)
    values = values[:, ~np.isnan(values).any(axis=0)]
    ranks = pd.DataFrame(-values).rank(axis=0).mean(axis=1).to_numpy()
    friedman = _friedman(values)
    same = _alike(values, friedman)
    order = np.argsort(ranks, kind="stable")
    cliques = [[labels[i] for i in order[first:last]] for first, last in _stretches(order, same)]
    member = [", ".join(str(n) for n, group in enumerate(cliques, 1) if labels[i] in group) for i in order]
    table = pd.DataFrame({"setting": [labels[i] for i in order], "mean rank": ranks[order], "not told apart": member})
    table.attrs = {"cliques": cliques, "friedman": friedman}
    return table


def _friedman(values: np.ndarray) -> float:
    """Return the p-value, NaN for fewer than three settings or without a class."""
    if len(values) < 3 or values.shape[1] < 2:
        return math.nan
    return 1.0 if (values == values[0]).all() else float(friedmanchisquare(*values).pvalue)


def _alike(values: np.ndarray, friedman: float) -> np.ndarray:
    """Return (K, K) bool: which pairs of settings the tests do not tell apart."""
    same = np.ones((len(values), len(values)), dtype=bool)
    pairs = list(combinations(range(len(values)), 2))
    if friedman < LEVEL or (math.isnan(friedman) and values.shape[1] > 1):
        p = [1.0 if (values[a] == values[b]).all() else float(wilcoxon(values[a] - values[b]).pvalue) for a, b in pairs]
        for (a, b), adjusted in zip(pairs, holm(p), strict=True):
            same[a, b] = same[b, a] = adjusted >= LEVEL
    return same


def _stretches(order: np.ndarray, same: np.ndarray) -> list[tuple[int, int]]:
    """Return the longest stretches of the order in which no pair differs, as (first, one past the last)."""
    found: list[tuple[int, int]] = []
    for first in range(len(order)):
        last = first + 1
        while last < len(order) and same[np.ix_(order[first : last + 1], order[first : last + 1])].all():
            last += 1
        if not found or last > found[-1][1]:
            found.append((first, last))
    return found
