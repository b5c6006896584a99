"""Head, medium and tail classes, by the number of training positives (HP-DVAL, section IV-A)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

HEAD_MINIMUM = 100
TAIL_BELOW = 20
GROUPS = ("head", "medium", "tail")


def class_groups(class_counts: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
    """Split class indices into head (>= 100 training positives), medium (20-99) and tail (< 20).

    Args:
        class_counts: training positives per class, (C,) integers.

    Returns:
        ``{"head": ..., "medium": ..., "tail": ...}``, ascending int64 class indices, possibly empty.

    >>> class_groups([775, 40, 4])["tail"]
    array([2])
    """
    counts = np.asarray(class_counts)
    return {
        "head": np.flatnonzero(counts >= HEAD_MINIMUM),
        "medium": np.flatnonzero((counts < HEAD_MINIMUM) & (counts >= TAIL_BELOW)),
        "tail": np.flatnonzero(counts < TAIL_BELOW),
    }
