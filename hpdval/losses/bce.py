"""Binary cross-entropy and its synonym."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from hpdval.losses.parts import prepare, reduce


def bce(logits: Tensor, targets: Tensor, *, reduction: str = "mean") -> Tensor:
    """Return the binary cross-entropy, mean over B x C.

    loss = y softplus(-s) + (1 - y) softplus(s)

    Args:
        logits: (B, C).
        targets: (B, C) of 0 and 1.
        reduction: ``mean``, ``sum`` or ``none``.

    >>> import torch
    >>> bce(torch.zeros(1, 2), torch.tensor([[1, 0]]))
    tensor(0.6931)
    """
    logits, positive = prepare(logits, targets)
    return reduce(F.binary_cross_entropy_with_logits(logits, positive.to(logits.dtype), reduction="none"), reduction)


def multilabel_soft_margin(logits: Tensor, targets: Tensor, *, reduction: str = "mean") -> Tensor:
    """Return torch's multi-label soft margin loss: the mean over classes of binary cross-entropies, so `bce` by value.

    It keeps its name because the paper's loss ablation lists both (HP-DVAL, section IV-D).
    """
    return bce(logits, targets, reduction=reduction)
