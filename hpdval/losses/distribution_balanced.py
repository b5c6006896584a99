"""Distribution-balanced loss (DB) and HP-DVAL's DB* (method, section 5).

Sources: Wu et al., "Distribution-Balanced Loss", ECCV 2020; HP-DVAL, equations 11 to 15.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hpdval.losses.parts import Counts, choose, counts_for, prepare, weighted_bce


def rebalance_weight(
    positive: Tensor, counts: Tensor, *, tau: float, beta: float, mu: float, denominator: str = "positives"
) -> Tensor:
    """Return r^ (B, C), the smoothed weight that undoes the sampling of an image for the sake of its other labels.

    r_i(x) = (1 / n_i) / sum_j (1 / n_j);  r^ = tau + sigmoid(beta (r - mu))  [HP-DVAL eq. 11, 12].
    The sum is over the image's ``positives`` (DB paper and all code) or over ``all`` classes (as HP-DVAL prints it).
    An image without positives has r^ = tau + 1, the limit of an empty sum.
    """
    choose("denominator", denominator, ("positives", "all"))
    inverse = 1.0 / counts  # (C,)
    if denominator == "all":
        return (tau + torch.sigmoid(beta * (inverse / inverse.sum() - mu))).expand(positive.shape)
    total = (positive * inverse).sum(dim=1, keepdim=True)  # (B, 1)
    weight = tau + torch.sigmoid(beta * (inverse / torch.where(total > 0, total, 1.0) - mu))
    return torch.where(total > 0, weight, tau + 1.0)


def class_bias(counts: Tensor, n_train: int, *, kappa: float, lam: float, nu: str = "released") -> Tensor:
    """Return nu (C,), the offset that negative-tolerant regularisation subtracts from the logits.

    ``released``: nu_i = (kappa / lambda) log(n / n_i - 1) [DB eq. 6, all code];
    ``printed``: nu_i = kappa log(n / n_i - 1) [HP-DVAL eq. 13].
    """
    choose("nu", nu, ("released", "printed"))
    bias = kappa * torch.log((n_train - counts) / counts)
    return bias / lam if nu == "released" else bias


def positive_weights(counts: Tensor, weights: str | float) -> Tensor | float:
    """Return w, the factor of positive exponents: n_i / max_j n_j for ``frequency`` [HP-DVAL eq. 15], or the number."""
    if not isinstance(weights, str):
        return weights
    choose("weights", weights, ("frequency",))
    return counts / counts.max()


def distribution_balanced(
    logits: Tensor,
    targets: Tensor,
    class_counts: Counts,
    n_train: int,
    *,
    tau: float = 0.1,
    beta: float = 10.0,
    mu: float = 0.3,
    kappa: float = 0.05,
    lam: float = 5.0,
    nu: str = "released",
    denominator: str = "positives",
    weights: str | float = 1.0,
    pos_scale: float = 1.0,
    focal: str = "none",
    gamma: float = 2.0,
    balance: float = 2.0,
    reduction: str = "mean",
) -> Tensor:
    """Return the distribution-balanced loss in all its variants, mean over B x C [HP-DVAL eq. 11-15; DB eq. 4-8].

    z = s - nu;  loss = r^ [y softplus(-w z) + (1 - y) softplus(lambda z) / lambda], optionally times the focal factor.

    DB has w = 1; DB-focal adds ``focal="element"``.  DB* has w_i = n_i / max_j n_j and ``nu="printed"``: a rare class
    has w_i near 0, so its positives hardly pull on the logit (d loss / d s = -r^ w_i sigmoid(-w_i z)).  This is what
    the paper prints, and is not mended here.

    Args:
        logits: (B, C) s.
        targets: (B, C) of 0 and 1.
        class_counts: (C,) training positives n_i, clipped to [1, n - 1].
        n_train: n, training images.
        tau: floor of the weight r^.
        beta: slope of the weight.
        mu: centre of the weight; 0.3 for VOC-LT, 0.2 for COCO-LT.
        kappa: strength of the class bias nu.
        lam: lambda, steepness on negatives; 5 for VOC-LT, 2 for COCO-LT.
        nu: ``released`` or ``printed``, see `class_bias`.
        denominator: ``positives`` or ``all``, see `rebalance_weight`.
        weights: w; ``"frequency"`` for DB*, or one number for all classes.
        pos_scale: a further constant in the positive exponent; 10 (VOC-LT), 5 (COCO-LT) in HP-DVAL's released stage 1.
        focal: ``none``; ``element`` for DB-focal; ``scalar`` for what LMPT, CPRFL and HP-DVAL released.
        gamma: focal exponent.
        balance: focal factor.
        reduction: ``mean``, ``sum`` or ``none``.

    Raises:
        ConfigError: wrong shapes, an unknown variant, counts that are not counts.

    >>> logits, targets = torch.zeros(1, 2), torch.tensor([[1, 0]])
    >>> distribution_balanced(logits, targets, [50, 50], 100, lam=1.0, beta=0.0, tau=0.5)  # r^ = 1
    tensor(0.6931)
    """
    logits, positive = prepare(logits, targets)
    counts = counts_for(logits, class_counts, n_train)
    return weighted_bce(
        logits - class_bias(counts, n_train, kappa=kappa, lam=lam, nu=nu),
        positive,
        rebalance_weight(positive, counts, tau=tau, beta=beta, mu=mu, denominator=denominator),
        lam=lam,
        positive_scale=pos_scale * positive_weights(counts, weights),
        focal=focal,
        gamma=gamma,
        balance=balance,
        reduction=reduction,
    )
