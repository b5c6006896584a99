"""Asymmetric loss (Ridnik et al., ICCV 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from hpdval.errors import ConfigError
from hpdval.losses.parts import prepare, reduce


def asl(
    logits: Tensor,
    targets: Tensor,
    *,
    gamma_pos: float = 0.0,
    gamma_neg: float = 4.0,
    clip: float = 0.05,
    eps: float = 1e-8,
    detach_focal: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Return the asymmetric loss, mean over B x C [Ridnik et al. eq. 4-7].

    p = sigmoid(s), p_m = max(p - clip, 0);
    loss = -y (1 - p)^gamma_pos log(max(p, eps)) - (1 - y) p_m^gamma_neg log(max(1 - p_m, eps))

    Args:
        logits: (B, C) s.
        targets: (B, C) of 0 and 1.
        gamma_pos: focusing exponent of positives, 0 or >= 1.
        gamma_neg: focusing exponent of negatives, 0 or >= 1.
        clip: probability shift; negatives below it cost nothing.
        eps: floor of the logarithms.
        detach_focal: no gradient through the focusing weights, as every released runner has it.
        reduction: ``mean``; ``sum`` (no 1 / B, the released few-shot code); or ``none``.

    >>> asl(torch.zeros(1, 2), torch.tensor([[1, 1]]))
    tensor(0.6931)
    """
    for name, value in (("gamma_pos", gamma_pos), ("gamma_neg", gamma_neg)):
        if not (value == 0 or value >= 1):
            raise ConfigError(f"{name} must be 0 or >= 1, got {value}")
    logits, positive = prepare(logits, targets)
    p = torch.sigmoid(logits)  # (B, C)
    complement = (torch.sigmoid(-logits) + clip).clamp(max=1.0)  # 1 - p_m, without cancellation
    truth = torch.where(positive, p, complement)  # the probability that the model gives the truth
    focus = torch.where(positive, torch.sigmoid(-logits) ** gamma_pos, (p - clip).clamp(min=0.0) ** gamma_neg)
    if detach_focal:
        focus = focus.detach()
    return reduce(-torch.log(truth.clamp(min=eps)) * focus, reduction)
