"""Logit adjustment (Menon et al., ICLR 2021), for independent binary classes."""

from __future__ import annotations

import torch
from torch import Tensor

from hpdval.losses.parts import Counts, counts_for, prepare, weighted_bce


def logit_adjustment(
    logits: Tensor, targets: Tensor, class_counts: Counts, n_train: int, *, reduction: str = "mean"
) -> Tensor:
    """Return binary cross-entropy of logits offset by the log prior odds, mean over B x C [Menon et al. eq. 10].

    loss = y softplus(-z) + (1 - y) softplus(z),  z = s + log(n_i / (n - n_i))

    The offset is added in training only: what s then learns is a score from which the prior is taken out.

    Args:
        logits: (B, C) s.
        targets: (B, C) of 0 and 1.
        class_counts: (C,) training positives n_i, clipped to [1, n - 1].
        n_train: n, training images.
        reduction: ``mean``, ``sum`` or ``none``.

    >>> logit_adjustment(torch.zeros(1, 1), torch.ones(1, 1), [50], 100)  # even odds: no offset
    tensor(0.6931)
    """
    logits, positive = prepare(logits, targets)
    counts = counts_for(logits, class_counts, n_train)
    return weighted_bce(logits + torch.log(counts / (n_train - counts)), positive, reduction=reduction)
