"""Dual-view scores: how well an image as a whole, and its best patches, agree with each class.

Letters: B images, P patches, C classes, D joint embedding width, k patches that count.
"""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpdval.errors import ConfigError

READINGS = ("paper", "released")
CHUNK = 1 << 24  # local similarities held at once: 64 MiB in float32; larger ones are no faster


def dual_view_scores(
    cls: Tensor,
    patches: Tensor,
    text_global: Tensor,
    text_local: Tensor | None = None,
    *,
    alpha: float = 0.4,
    k: int | float = 32,
    reading: str = "paper",
) -> Tensor:
    """Return the fused score of every image and class, unscaled.

    ``paper``: s = alpha * cos(T_G, f_cls) + (1 - alpha) * mean of the k largest cos(T_L, f_p) over patches p
    (HP-DVAL, eq. 4-5).
    ``released``: dot products in place of cosines, each branch divided by its L2 norm over the classes of the image,
    and alpha weighs the *local* branch (the authors' code).

    Args:
        cls, patches: image features, (B, D) and (B, P, D), as ``encode_image`` gives them.
        text_global, text_local: class features (C, D); ``text_local`` is ``text_global`` where it is None.
        alpha: in [0, 1].
        k: a number of patches (int, 1 .. P), or a share of them (float in (0, 1], at least one patch).
        reading: ``"paper"`` or ``"released"``.

    Returns:
        (B, C), float32 also for half-precision features and under autocast (float64 for float64 features).

    Raises:
        ConfigError: shapes that do not fit, or alpha, k or reading out of range.

    >>> eye = torch.eye(2)
    >>> dual_view_scores(eye[:1], eye[None], eye, alpha=0.5, k=1)
    tensor([[1.0000, 0.5000]])
    """
    text_local = text_global if text_local is None else text_local
    _check_shapes(cls, patches, text_global, text_local)
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not 0 <= float(alpha) <= 1:
        raise ConfigError(f"alpha is {alpha!r}; it weighs two branches and lies in [0, 1]")
    if reading not in READINGS:
        raise ConfigError(f"reading is {reading!r}; use one of {', '.join(READINGS)}")
    return fuse(*both_views(cls, patches, text_global, text_local, k=k, reading=reading), float(alpha))


def both_views(
    cls: Tensor, patches: Tensor, text_global: Tensor, text_local: Tensor, *, k: int | float, reading: str
) -> tuple[Tensor, Tensor]:
    """Return the two branches of :func:`dual_view_scores`, (B, C) each: the one that alpha weighs, and the other.

    These are global and local scores in the reading ``paper``, normalised local and global ones in ``released``.
    """
    count = patch_count(k, patches.shape[1])
    with torch.autocast(cls.device.type, enabled=False):  # in half precision ties cost 0.4 AP points
        cls, patches, text_global, text_local = (_at_least_float32(x) for x in (cls, patches, text_global, text_local))
        if reading == "paper":
            cls, patches, text_global, text_local = (
                F.normalize(x, dim=-1) for x in (cls, patches, text_global, text_local)
            )
            return global_scores(cls, text_global), local_scores(patches, text_local, count)
        s_global = F.normalize(global_scores(cls, text_global), dim=-1)  # over the classes of an image
        return F.normalize(local_scores(patches, text_local, count), dim=-1), s_global


def global_scores(cls: Tensor, text: Tensor) -> Tensor:
    """Return s_G = <T, f_cls>, (B, C), of (B, D) and (C, D) (HP-DVAL, eq. 4-5)."""
    return cls @ text.T


def local_scores(patches: Tensor, text: Tensor, k: int) -> Tensor:
    """Return s_L, (B, C): per class the mean of the k largest <T, f_p> over patches (B, P, D) (HP-DVAL, eq. 4-5).

    Memory does not grow with B P C: similarities come ``CHUNK`` at a time, and a backward pass keeps the places of the
    best alone, B C k integers.
    """
    step = max(1, CHUNK // max(1, patches.shape[0] * patches.shape[1]))
    parts = [  # text @ patches is (B, C, P): the patches of a class lie side by side for top-k
        (part @ patches.transpose(1, 2)).topk(k, dim=-1, sorted=False).values.mean(dim=-1) for part in text.split(step)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def patch_scores(patches: Tensor, text: Tensor, reading: str = "paper") -> Tensor:
    """Return the local score of every patch, (B, P, C) float32: cosines (``paper``) or dot products (``released``).

    What :func:`local_scores` takes the k largest of (HP-DVAL, eq. 4-5), and what a heat map shows.

    Args:
        patches: (B, P, D).
        text: (C, D).

    Raises:
        ConfigError: shapes that do not fit, or an unknown reading.

    >>> patch_scores(torch.tensor([[[3.0, 0.0], [0.0, 2.0]]]), torch.eye(2)[:1])
    tensor([[[1.],
             [0.]]])
    """
    if patches.ndim != 3 or text.ndim != 2 or patches.shape[-1] != text.shape[-1]:
        given = f"{tuple(patches.shape)} and {tuple(text.shape)}"
        raise ConfigError(f"patches and text must be (B, P, D) and (C, D), got {given}")
    if reading not in READINGS:
        raise ConfigError(f"reading is {reading!r}; use one of {', '.join(READINGS)}")
    with torch.autocast(patches.device.type, enabled=False):
        patches, text = _at_least_float32(patches), _at_least_float32(text).to(patches.device)
        if reading == "paper":
            patches, text = F.normalize(patches, dim=-1), F.normalize(text, dim=-1)
        return patches @ text.T


def fuse(first: Tensor, second: Tensor, alpha: float) -> Tensor:
    """Return alpha * first + (1 - alpha) * second (HP-DVAL, eq. 4-5)."""
    return alpha * first + (1 - alpha) * second


def patch_count(k: int | float, patches: int) -> int:
    """Return how many patches ``k`` means among ``patches``: an int is a number, a float a share.

    Raises:
        ConfigError: more patches than there are, fewer than one, or a share outside (0, 1].

    >>> patch_count(32, 196), patch_count(32 / 196, 49), patch_count(0.001, 49)
    (32, 8, 1)
    """
    if isinstance(k, Integral) and not isinstance(k, bool) and 1 <= k <= patches:
        return int(k)
    if isinstance(k, Real) and not isinstance(k, Integral) and 0 < float(k) <= 1:
        return max(1, round(float(k) * patches))
    raise ConfigError(f"k is {k!r} of {patches} patches; give an int in 1 .. {patches} or a share, float in (0, 1]")


class LogitScale(nn.Module):
    """Scores to logits for the training objective: logits = scale * scores + bias, both learnable, scale > 0.

    Cosines lie in [-1, 1] and saturate no sigmoid; ranking metrics use the plain scores.

    >>> LogitScale()(torch.tensor([0.5])).item()
    10.0
    """

    def __init__(self, scale: float = 20.0, bias: float = 0.0) -> None:
        super().__init__()
        if not scale > 0:
            raise ConfigError(f"scale is {scale!r}; it must be positive")
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.bias = nn.Parameter(torch.tensor(float(bias)))

    def forward(self, scores: Tensor) -> Tensor:
        """Return logits of the shape of ``scores``."""
        return self.log_scale.exp() * scores + self.bias


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check_shapes(cls: Tensor, patches: Tensor, text_global: Tensor, text_local: Tensor) -> None:
    shapes = [tuple(x.shape) for x in (cls, patches, text_global, text_local)]
    if [len(shape) for shape in shapes] == [2, 3, 2, 2]:
        (b, d), (b2, p, d2), (_, d3), _ = shapes
        if b == b2 and d == d2 == d3 and shapes[2] == shapes[3] and p > 0:
            return
    given = ", ".join(map(str, shapes))
    raise ConfigError(f"cls, patches and texts must be (B, D), (B, P, D), (C, D) and (C, D), got {given}")
