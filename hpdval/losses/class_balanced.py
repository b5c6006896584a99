"""Class-balanced focal loss (Cui et al., CVPR 2019) and focal loss under inverse-frequency weights."""

from __future__ import annotations

import torch
from torch import Tensor

from hpdval.losses.distribution_balanced import class_bias
from hpdval.losses.parts import Counts, choose, counts_for, prepare, weighted_bce

WEIGHTINGS = ("effective", "inverse", "inverse_sqrt")


def class_weights(counts: Tensor, n_train: int, *, weighting: str = "effective", cb_beta: float = 0.9) -> Tensor:
    """Return a weight for each class, (C,).

    ``effective``: (1 - b) / (1 - b^n_i), the inverse of the effective number of samples [Cui et al. eq. 2];
    ``inverse``: n / n_i;  ``inverse_sqrt``: sqrt(n / n_i).
    """
    choose("weighting", weighting, WEIGHTINGS)
    if weighting == "effective":
        return (1.0 - cb_beta) / (1.0 - cb_beta**counts)
    inverse = n_train / counts
    return inverse if weighting == "inverse" else torch.sqrt(inverse)


def class_balanced_focal(
    logits: Tensor,
    targets: Tensor,
    class_counts: Counts,
    n_train: int,
    *,
    weighting: str = "effective",
    cb_beta: float = 0.9,
    scale: float = 10.0,
    kappa: float = 0.0,
    lam: float = 1.0,
    nu: str = "released",
    focal: str = "element",
    gamma: float = 2.0,
    balance: float = 2.0,
    reduction: str = "mean",
) -> Tensor:
    """Return the class-balanced focal loss, mean over B x C [Cui et al. eq. 2, 6; constants of the DB code].

    z = s - nu;  loss = scale w_i balance (1 - e^-l)^gamma [y softplus(-z) + (1 - y) softplus(lambda z) / lambda]

    Without nu and lambda by default (kappa 0, lambda 1); the DB code's own configuration has both (kappa 0.05, lambda 5
    for VOC-LT, 2 for COCO-LT).

    Args:
        logits: (B, C) s.
        targets: (B, C) of 0 and 1.
        class_counts: (C,) training positives n_i, clipped to [1, n - 1].
        n_train: n, training images.
        weighting: ``effective``, ``inverse`` or ``inverse_sqrt``, see `class_weights`.
        cb_beta: b of the effective number.
        scale: factor of the whole, 10 in the DB code with ``effective``, 1 with the others.
        kappa: strength of the class bias.
        lam: lambda, steepness on negatives.
        nu: ``released`` or ``printed``, see `class_bias`.
        focal: ``element``, ``scalar`` or ``none``.
        gamma: focal exponent.
        balance: focal factor.
        reduction: ``mean``, ``sum`` or ``none``.

    >>> class_balanced_focal(torch.zeros(1, 1), torch.ones(1, 1), [1], 100)  # w = 1: 10 * 2 * 0.5^2 * log 2
    tensor(3.4657)
    """
    logits, positive = prepare(logits, targets)
    counts = counts_for(logits, class_counts, n_train)
    return weighted_bce(
        logits - class_bias(counts, n_train, kappa=kappa, lam=lam, nu=nu),
        positive,
        scale * class_weights(counts, n_train, weighting=weighting, cb_beta=cb_beta),
        lam=lam,
        focal=focal,
        gamma=gamma,
        balance=balance,
        reduction=reduction,
    )
