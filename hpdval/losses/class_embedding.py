"""The class-specific embedding loss of LMPT (Xia et al., 2023): captions of images against prompts of classes.

It is not one of ``LOSSES``: it sees texts, not logits, and stands beside a loss of the logits.

Letters: B images in a batch, C classes, L places of a text, D width of an embedding, n_i training positives of class i.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from hpdval.errors import ConfigError
from hpdval.losses.parts import Counts, choose

FORMS = ("corrected", "released")


def class_embedding_loss(
    captions: Tensor,
    prompts: Tensor,
    targets: Tensor,
    class_counts: Counts | None,
    *,
    margin: float = 0.2,
    gamma: float = 2.0,
    form: str = "corrected",
) -> Tensor:
    """Return the class-specific embedding loss, mean over B x C, a scalar in at least float32.

    d_bi = sum over places l of 1 - cos(caption_b[l], prompt_i[l]);  m_i = margin / n_i^(1/4);
    w_i = n_i^-gamma / sum_j n_j^-gamma;  y in {0, 1}

    - ``corrected``: w_i [y d + (1 - y) relu(m_i - d)], a hinge embedding loss: a class's prompt comes closer to the
      captions of its images, and leaves a caption of another image when it is nearer than m_i;
    - ``released``: w_i relu(m_i - (2 y - 1) d), the formula of the released code.  There d is a distance where the
      formula needs a similarity, so the sign is inverted: positives nearer than m_i are pushed away (others are left
      alone), and negatives are pulled closer.  It reproduces that code; it is no recommendation.

    The released code does not run as published: its weights sum over ``dim=2`` of a matrix, an IndexError, and its
    counts are softmax(n), whose zeros give NaN.  ``released`` sums over the classes and takes n_i as they are; rare
    classes then have nearly all the weight (gamma 2), and the mean over C makes the loss small: w sums to 1.
    The margin belongs to d, which is a *sum* over places: with dozens of them hardly a negative is nearer than m_i.
    LMPT takes token embeddings, those of the caption from its start and those of the prompt behind its context, cut to
    one length.

    Source: Xia et al., "LMPT: Prompt Tuning with Class-Specific Embedding Loss for Long-tailed Multi-Label Visual
    Recognition", 2023 (arXiv 2305.04536), and its code (``lmpt/csel.py``, ``lmpt/train.py``).

    Args:
        captions: (B, L, D), or (B, D) for one place; any length, since only directions count.  A row of zeros has the
            distance 1 from everything.
        prompts: (C, L, D) or (C, D), likewise.
        targets: (B, C) of 0 and 1; what is positive (> 0) is a label.
        class_counts: (C,) n_i >= 0, or None for m_i = margin and w_i = 1.  Shares n_i / sum n do as well and give a
            wider margin.  A class of none counts as the rarest that has any, at most as 1: with a warning, except for a
            tensor, which is clipped silently (looking at its values would stall a GPU).
        margin: > 0, in units of d.
        gamma: >= 0, how strongly rare classes weigh more.
        form: ``corrected`` or ``released``.

    Raises:
        ConfigError: shapes that do not fit, an empty batch, impossible counts, or a value out of its range.

    >>> caption, prompts = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    >>> class_embedding_loss(caption, prompts, torch.tensor([[1, 0]]), None)  # (1 + 0.2) / 2: both are wrong
    tensor(0.6000)
    """
    choose("form", form, FORMS)
    if not margin > 0 or not gamma >= 0:
        raise ConfigError(f"margin must be > 0 and gamma >= 0, got margin {margin} and gamma {gamma}")
    if (
        captions.ndim not in (2, 3)
        or captions.shape[1:] != prompts.shape[1:]
        or targets.shape != (len(captions), len(prompts))
        or 0 in (captions.numel(), prompts.numel())
    ):
        shapes = ", ".join(str(tuple(one.shape)) for one in (captions, prompts, targets))
        raise ConfigError(
            f"captions (B, L, D), prompts (C, L, D) and targets (B, C) must fit and not be empty, got {shapes}"
        )
    distance = summed_distance(captions, prompts)  # (B, C)
    positive = targets > 0
    margins, weights = _margins_and_weights(distance, class_counts, margin, gamma)
    if form == "released":
        return (weights * torch.relu(margins - torch.where(positive, distance, -distance))).mean()
    return (weights * torch.where(positive, distance, torch.relu(margins - distance))).mean()


def summed_distance(captions: Tensor, prompts: Tensor) -> Tensor:
    """Return the sum over places of 1 - cosine, (B, C), of (B, L, D) and (C, L, D), or (B, D) and (C, D).

    One matrix product of unit vectors laid end to end: nothing of B x C x L is made.  Float32 or better, also under
    autocast, since 1 - cosine of near texts is a small difference.
    """
    dtype = torch.promote_types(torch.promote_types(captions.dtype, prompts.dtype), torch.float32)
    places = captions.shape[1] if captions.ndim == 3 else 1
    with torch.autocast(captions.device.type, enabled=False):
        cosines = _unit(captions.to(dtype)).flatten(1) @ _unit(prompts.to(dtype)).flatten(1).T  # summed over L, (B, C)
    return places - cosines


def _unit(vectors: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / torch.where(length > 0, length, 1.0)  # zeros stay zeros, with a finite gradient


def _margins_and_weights(
    like: Tensor, class_counts: Counts | None, margin: float, gamma: float
) -> tuple[Tensor | float, Tensor | float]:
    """Return m_i and w_i, (C,) each, or the numbers that stand for all classes where no counts are given."""
    if class_counts is None:
        return margin, 1.0
    counts = class_counts if isinstance(class_counts, Tensor) else _checked(class_counts)
    if counts.shape != like.shape[1:]:
        raise ConfigError(f"class_counts must be ({like.shape[1]},), one for each class, got {tuple(counts.shape)}")
    counts = counts.to(like.device, like.dtype)
    rarest = torch.where(counts > 0, counts, 1.0).min()
    counts = torch.where(counts > 0, counts, rarest)
    rarity = (counts.min() / counts) ** gamma  # n^-gamma, from the rarest class up: it cannot overflow
    return margin * counts**-0.25, rarity / rarity.sum()


def _checked(class_counts: Counts) -> Tensor:
    counts = torch.as_tensor(class_counts, dtype=torch.float64)
    if counts.ndim != 1 or not counts.numel() or not bool((counts >= 0).all()) or bool(counts.isinf().any()):
        raise ConfigError(f"class_counts must be (C,) finite numbers >= 0, got {counts.tolist()!r:.80}")
    none = (counts == 0).nonzero().flatten().tolist()
    if none:
        warnings.warn(
            f"{len(none)} class counts (class {none[0]}: 0, ...) were clipped: the loss has no weight for a class that "
            "no training image has; it counts as the rarest of the others, at most as 1",
            stacklevel=4,
        )
    return counts
