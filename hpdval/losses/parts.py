"""What the losses share: checked inputs, clipped counts, weighted binary cross-entropy with a focal factor.

Letters: B images in a batch, C classes, n training images, n_i training positives of class i, s logits, y targets.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hpdval.errors import ConfigError, shown

Counts = Sequence[int] | np.ndarray | Tensor
REDUCTIONS = ("mean", "sum", "none")
FOCAL = ("none", "element", "scalar")


def choose(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raise ConfigError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def prepare(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits in at least float32 and targets as bool, both (B, C); what is positive (> 0) is a label.

    Raises:
        ConfigError: the shapes are not one and the same (B, C), or the batch is empty.
    """
    if logits.is_complex() or targets.is_complex():
        raise ConfigError(f"logits and targets must be real numbers, got {logits.dtype} and {targets.dtype}")
    if logits.ndim != 2 or logits.shape != targets.shape or logits.numel() == 0:
        raise ConfigError(
            f"logits and targets must be (B, C) alike, not empty, got {tuple(logits.shape)} and {tuple(targets.shape)}"
        )
    return logits.to(torch.promote_types(logits.dtype, torch.float32)), targets > 0


def clip_counts(class_counts: Counts, n_train: int) -> Tensor:
    """Return the counts as int64 (C,), clipped to [1, n - 1] with a warning where that changed any.

    Raises:
        ConfigError: not one row of whole numbers >= 0, or fewer than two training images.

    >>> clip_counts([1, 5], 10)
    tensor([1, 5])
    """
    try:
        counts = torch.as_tensor(class_counts)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"class_counts must be (C,) whole numbers >= 0, got {shown(class_counts)}: {error}") from None
    odd = counts.is_complex() or counts.dtype == torch.bool or counts.ndim != 1
    if odd or counts.numel() == 0 or bool((counts < 0).any()) or bool((counts != counts.round()).any()):
        raise ConfigError(f"class_counts must be (C,) whole numbers >= 0, got {counts.tolist()!r:.80}")
    if n_train < 2:
        raise ConfigError(f"n_train must be at least 2 training images, got {n_train}")
    counts = counts.to(torch.int64)
    clipped = counts.clamp(1, n_train - 1)
    changed = (clipped != counts).nonzero().flatten().tolist()
    if changed:
        warnings.warn(
            f"{len(changed)} class counts (class {changed[0]}: {int(counts[changed[0]])}, ...) were clipped to "
            f"[1, {n_train - 1}]: the loss has no weight for a class that no or every training image has",
            stacklevel=2,
        )
    return clipped


def counts_for(logits: Tensor, class_counts: Counts, n_train: int) -> Tensor:
    """Return clipped counts (C,) on the device of ``logits``, in its precision.

    A tensor is clipped silently, since looking at its values would stall a GPU and break a compiled graph;
    ``build_loss`` has warned before it made one.
    """
    counts = class_counts if isinstance(class_counts, Tensor) else clip_counts(class_counts, n_train)
    if counts.shape != logits.shape[1:]:
        raise ConfigError(f"class_counts must be ({logits.shape[1]},), one for each class, got {tuple(counts.shape)}")
    return counts.to(logits.device, logits.dtype).clamp(1, n_train - 1)


def reduce(loss: Tensor, reduction: str) -> Tensor:
    """Return the mean over B x C, the sum, or the elements (B, C) themselves."""
    choose("reduction", reduction, REDUCTIONS)
    return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()


def weighted_bce(
    logits: Tensor,
    positive: Tensor,
    weight: Tensor | float = 1.0,
    *,
    lam: float = 1.0,
    positive_scale: Tensor | float = 1.0,
    focal: str = "none",
    gamma: float = 2.0,
    balance: float = 2.0,
    reduction: str = "mean",
) -> Tensor:
    """Return the binary cross-entropy under all that the losses of this family put around it.

    x = -w z on positives, lambda z on negatives; l = softplus(x); W = weight on positives, weight / lambda on
    negatives; loss = f W l with the focal factor

    - ``none``: f = 1
    - ``element``: f = balance (1 - e^-l)^gamma, and the gradient flows through it
    - ``scalar``: f = balance (1 - e^-mean(l))^gamma, one number per batch, as LMPT, CPRFL and HP-DVAL's released code
      have it because they average before taking exp.

    Args:
        logits: (B, C) z, already offset.
        positive: (B, C) bool.
        weight: broadcastable to (B, C), no gradient.
        lam: lambda > 0, steepness on negatives.
        positive_scale: w, a number or (C,).
        focal: ``none``, ``element`` or ``scalar``.
        gamma: focusing exponent, 0 or >= 1 (between them the gradient is infinite at a loss of 0).
        balance: factor of the focal term.
        reduction: ``mean``, ``sum`` or ``none``.
    """
    choose("focal", focal, FOCAL)
    if lam <= 0 or not (gamma == 0 or gamma >= 1):
        raise ConfigError(f"lam must be > 0 and gamma 0 or >= 1, got lam {lam} and gamma {gamma}")
    x = torch.where(positive, -positive_scale * logits, lam * logits)  # (B, C)
    loss = -F.logsigmoid(-x)  # softplus, exact where F.softplus goes over to the identity
    weighted = torch.where(positive, loss, loss / lam) * weight
    if focal == "element":
        weighted = balance * torch.sigmoid(x) ** gamma * weighted  # 1 - e^-softplus(x) = sigmoid(x)
    elif focal == "scalar":
        weighted = balance * (-torch.expm1(-loss.mean())) ** gamma * weighted
    return reduce(weighted, reduction)
