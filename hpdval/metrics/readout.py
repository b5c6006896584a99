"""Read-outs: what is done to the scores of an image before classes are ranked (method, section 7)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpdval.errors import ConfigError

READOUTS = ("raw", "softmax", "l2")


def apply_readout(scores: ArrayLike, readout: str = "raw") -> NDArray[np.float64]:
    """Return the scores under a protocol's read-out, in float64.

    ``raw``: as they are.  ``softmax``: exp(s_c) / sum_j exp(s_j) over the classes of an image (LMPT, LM-CLIP).
    ``l2``: s_c / sqrt(sum_j s_j^2) over the classes of an image (HP-DVAL's released code); a row of zeros stays zero.
    The last two change the ranking of images within a class, so numbers under different read-outs do not compare.

    Args:
        scores: (N, C).
        readout: one of ``READOUTS``.

    Raises:
        ConfigError: an unknown read-out.

    >>> apply_readout([[3.0, 4.0]], "l2")
    array([[0.6, 0.8]])
    """
    values = np.asarray(scores, dtype=np.float64)
    if readout == "raw":
        return values
    if readout == "softmax":
        exponentials = np.exp(values - values.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)
    if readout == "l2":
        norm = np.linalg.norm(values, axis=1, keepdims=True)
        return values / np.where(norm > 0, norm, 1.0)
    raise ConfigError(f"readout must be one of {', '.join(READOUTS)}, got {readout!r}")
