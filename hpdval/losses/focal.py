"""Focal loss (Lin et al., ICCV 2017), for independent binary classes."""

from __future__ import annotations

from torch import Tensor

from hpdval.losses.parts import prepare, weighted_bce


def focal_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    gamma: float = 2.0,
    balance: float = 2.0,
    focal: str = "element",
    reduction: str = "mean",
) -> Tensor:
    """Return the focal loss, mean over B x C [Lin et al. eq. 4; factor as in the DB code].

    loss = balance (1 - e^-l)^gamma l,  l = y softplus(-s) + (1 - y) softplus(s)

    Args:
        logits: (B, C).
        targets: (B, C) of 0 and 1.
        gamma: focusing exponent.
        balance: factor, 2 in the DB code, 0.25 in its plain ``FocalLoss``.
        focal: ``element``, or ``scalar`` for one factor per batch, as some released code has it.
        reduction: ``mean``, ``sum`` or ``none``.

    >>> import torch
    >>> focal_loss(torch.zeros(1, 2), torch.tensor([[1, 0]]))  # 2 * 0.5^2 * log 2
    tensor(0.3466)
    """
    logits, positive = prepare(logits, targets)
    return weighted_bce(logits, positive, focal=focal, gamma=gamma, balance=balance, reduction=reduction)
