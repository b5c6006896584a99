"""Parameter groups, schedules and the moving average: each a small function of its arguments."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def parameter_groups(module: nn.Module, *, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups of the trainable parameters: weight decay on matrices, none on biases, norms and scalars.

    >>> [len(group["params"]) for group in parameter_groups(nn.Linear(2, 3), lr=1e-3, weight_decay=0.1)]
    [1, 1]
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    matrices = [p for p in trainable if p.ndim > 1]
    vectors = [p for p in trainable if p.ndim <= 1]
    groups = [
        {"params": matrices, "lr": lr, "weight_decay": weight_decay},
        {"params": vectors, "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(name: str, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Return AdamW, Adam (whose weight decay is part of the gradient) or SGD with momentum 0.9, over parameter groups.

    >>> make_optimizer("sgd", [{"params": [nn.Parameter(torch.ones(1))], "lr": 0.1}]).defaults["momentum"]
    0.9
    """
    if name == "sgd":
        return torch.optim.SGD(groups, lr=groups[0]["lr"], momentum=0.9, fused=True)
    return {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[name](groups, fused=True)


def lr_factor(update: int, total: int, schedule: str = "constant", warmup: float = 0.1) -> float:
    """Return the factor on the learning rate for update ``update`` of ``total``, counted from 0.

    ``one-cycle`` is PyTorch's OneCycleLR: a cosine from 1/25 up to 1 over the share ``warmup``, then a cosine down to
    1/250,000 (Smith and Topin, 2018).

    >>> lr_factor(0, 100), round(lr_factor(0, 100, "one-cycle"), 6)
    (1.0, 0.04)
    """
    if schedule == "constant":
        return 1.0
    low, end = 1 / 25, 1 / 25 / 1e4
    peak = warmup * total - 1
    last = total - 1
    if update <= peak:
        return _cosine(low, 1.0, update / peak) if peak > 0 else 1.0
    return _cosine(1.0, end, (update - peak) / (last - peak)) if last > peak else 1.0


def _cosine(start: float, stop: float, share: float) -> float:
    return stop + (start - stop) / 2 * (1 + math.cos(math.pi * share))


class MovingAverage:
    """Exponential moving average of trainable parameters: ``average = decay * average + (1 - decay) * value``."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.average = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the current values."""
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - self.decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange average and current values; call it twice to look at the average and come back."""
        for parameter, average in zip(self.parameters, self.average, strict=True):
            current = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(current)
