"""Label-distribution-aware margin loss (Cao et al., NeurIPS 2019), for independent binary classes."""

from __future__ import annotations

import torch
from torch import Tensor

from hpdval.losses.parts import Counts, counts_for, prepare, weighted_bce


def ldam(
    logits: Tensor,
    targets: Tensor,
    class_counts: Counts,
    n_train: int,
    *,
    max_margin: float = 0.5,
    reduction: str = "mean",
) -> Tensor:
    """Return the margin loss, mean over B x C [Cao et al. eq. 12-13, as binary cross-entropy].

    m_i = max_margin (n_i / min_j n_j)^(-1/4);  loss = y softplus(-(s - m_i)) + (1 - y) softplus(s)

    Args:
        logits: (B, C) s.
        targets: (B, C) of 0 and 1.
        class_counts: (C,) training positives n_i, clipped to [1, n - 1].
        n_train: n, training images.
        max_margin: margin of the rarest class, in logits.
        reduction: ``mean``, ``sum`` or ``none``.

    >>> ldam(torch.tensor([[0.5, 0.25]]), torch.tensor([[1, 1]]), [1, 16], 100)  # the margins
    tensor(0.6931)
    """
    logits, positive = prepare(logits, targets)
    counts = counts_for(logits, class_counts, n_train)
    margins = max_margin * (counts / counts.min()) ** -0.25  # (C,)
    return weighted_bce(torch.where(positive, logits - margins, logits), positive, reduction=reduction)
