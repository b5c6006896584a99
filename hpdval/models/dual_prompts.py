"""DualCoOp: a positive and a negative prompt for each class, compared where the image shows the class.

Letters: B images, P patches, C classes, D joint embedding width, M context tokens, W text transformer width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hpdval.errors import ConfigError
from hpdval.models.clip import Clip
from hpdval.models.dual_view import patch_scores
from hpdval.models.prompts import context_init
from hpdval.models.towers import ImageFeatures

TEMPERATURE = 0.05  # the released code: a softmax of 20 cosines
SCALE = 100.0  # and 5 times what it pools of them


def region_pooling(
    patches: Tensor, text_pos: Tensor, text_neg: Tensor, *, temperature: float = TEMPERATURE, scale: float = SCALE
) -> Tensor:
    """Return logits (B, C) that an image shows a class, pooled over the patches that look like the class.

    w_p = softmax over p of cos(f_p, T+) / temperature;  s+ = scale * sum_p w_p cos(f_p, T+), and s- of T- with the same
    weights;  logit = s+ - s-, of which the sigmoid is the paper's softmax over the two prompts.

    Sun, Hu and Saenko, "DualCoOp: Fast Adaptation to Multi-Label Recognition with Limited Annotations", NeurIPS 2022
    (class-specific region feature aggregation).  Defaults are those of the released code, ``models/dualcoop.py`` of
    sunxm2357/DualCoOp, where the weights come from the positive prompt alone, too.

    Args:
        patches: (B, P, D).
        text_pos, text_neg: T+ and T-, (C, D) each.
        temperature, scale: > 0, in units of cosines.

    Returns:
        (B, C), float32 also for half-precision features and under autocast (float64 for float64 features).

    Raises:
        ConfigError: shapes that do not fit, or a temperature or scale that is not positive.

    >>> region_pooling(torch.eye(2)[None], torch.eye(2)[:1], -torch.eye(2)[:1], temperature=1.0, scale=1.0)
    tensor([[1.4621]])
    """
    _check_positive(temperature=temperature, scale=scale)
    if text_pos.shape != text_neg.shape:
        given = f"{tuple(text_pos.shape)} and {tuple(text_neg.shape)}"
        raise ConfigError(f"text_pos and text_neg must both be (C, D), got {given}")
    positive, negative = patch_scores(patches, text_pos), patch_scores(patches, text_neg)  # (B, P, C) each
    with torch.autocast(patches.device.type, enabled=False):
        weights = (positive / temperature).softmax(dim=1)
        return scale * (weights * (positive - negative)).sum(dim=1)


class DualPrompts(nn.Module):
    """The positive and the negative context of DualCoOp, (M, W) each for all classes or (C, M, W) for each of them.

    Sun, Hu and Saenko, NeurIPS 2022.  The text tower stays outside: only the contexts are parameters here.

    Args:
        tokens, init: of :func:`context_init`; the released code has 16 and ``"normal"``.  Words start both contexts.
        per_class: a pair for each class; the released code's ``--csc``, which its authors advise against where labels
            are very few.
        seed: of the two normal draws.
    """

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        tokens: int = 16,
        init: str = "normal",
        per_class: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.classes = tuple(classes)
        count = len(self.classes) if per_class else None
        starts = [context_init(clip, tokens, init, 2 * seed + i, classes=count) for i in range(2)]
        self.positive, self.negative = map(nn.Parameter, starts)  # (M, W) or (C, M, W)
        self.starts = [start.clone() for start in starts]

    def texts(self, clip: Clip) -> tuple[Tensor, Tensor]:
        """Return T+ and T-, (C, D) each, not L2-normalised, encoded in one pass."""
        positive, negative = clip.encode_prompts(torch.stack([self.positive, self.negative]), self.classes)
        return positive, negative

    def moved(self) -> dict[str, float]:
        """Return how far each context has moved: the root mean square of its change, in units of embeddings."""
        now = {"positive": self.positive, "negative": self.negative}
        pairs = zip(now.items(), self.starts, strict=True)
        return {name: float((v.detach().cpu() - start.cpu()).square().mean().sqrt()) for (name, v), start in pairs}


class RegionPooling(nn.Module):
    """What trained :class:`DualPrompts` come to: T+ and T- as buffers, so that scoring needs no text tower.

    >>> model = RegionPooling(torch.randn(20, 512), torch.randn(20, 512))
    >>> model(ImageFeatures(torch.randn(2, 512), torch.randn(2, 196, 512))).shape
    torch.Size([2, 20])
    """

    text_pos: Tensor  # (C, D)
    text_neg: Tensor

    def __init__(
        self, text_pos: Tensor, text_neg: Tensor, *, temperature: float = TEMPERATURE, scale: float = SCALE
    ) -> None:
        super().__init__()
        _check_positive(temperature=temperature, scale=scale)
        self.temperature, self.scale = temperature, scale
        self.register_buffer("text_pos", text_pos.detach().clone())
        self.register_buffer("text_neg", text_neg.detach().clone())

    def forward(self, features: ImageFeatures, encoder: Any = None) -> Tensor:
        """Return the logits (B, C) of :func:`region_pooling`; an encoder is not needed."""
        options = {"temperature": self.temperature, "scale": self.scale}
        return region_pooling(features.patches, self.text_pos, self.text_neg, **options)


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ConfigError(f"{name} is {value!r}; use a positive number")
