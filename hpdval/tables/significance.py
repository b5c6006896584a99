"""A table of differences with their p-values, and with those that many comparisons allow."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from hpdval.metrics import holm, permutation_test
from hpdval.tables.scores import Scores, difference_table, listed

ORDER = ["comparison", "classes", "difference", "low", "high", "p", "p_holm", "seeds", "gain"]


def significance_table(
    pairs: Mapping[str, tuple[Scores, Scores]],
    targets: np.ndarray,
    class_counts: np.ndarray,
    *,
    readout: str = "raw",
    permutations: int = 2000,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return :func:`difference_table` with ``p`` of a permutation test and ``p_holm``, adjusted for all comparisons.

    Holm's family are the comparisons of this table within one of total, head, medium and tail.  ``gain`` is what it is
    there and knows no p-value.

    Args:
        pairs: label -> (after, before), each (N, C), or a list of such arrays, one for each seed.
        targets: (N, C) of 0 and 1.
        class_counts: (C,) training positives, which decide the groups.
        readout, permutations, resamples, seed: of ``hpdval.metrics.permutation_test`` and ``paired_bootstrap``.
    """
    table = difference_table(pairs, targets, class_counts, readout=readout, resamples=resamples, seed=seed)
    table["p"] = [
        p
        for after, before in pairs.values()
        for p in permutation_test(
            listed(after), listed(before), targets, class_counts,
            permutations=permutations, seed=seed, readout=readout,
        ).values()
    ]  # fmt: skip
    return with_holm(table)


def with_holm(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with ``p_holm`` over its rows of the same ``classes``, in the order of columns to be shown."""
    adjusted = table.assign(p_holm=table.groupby("classes")["p"].transform(holm))[ORDER]
    adjusted.attrs["digits"] = {"p": 4, "p_holm": 4}
    return adjusted
