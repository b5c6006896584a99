"""Where an image tower looks: attention rollout, and attention weighted by the gradient of a class's score.

Letters: B images, h heads, T tokens (class token and its like first, then the patches), P patches, D joint width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpdval.errors import ConfigError, ModelError
from hpdval.models.clip import Clip
from hpdval.models.dual_view import global_scores
from hpdval.models.towers import image_features


@torch.no_grad()
def attention_rollout(clip: Clip, images: Tensor) -> Tensor:
    """Return how much of each patch reaches the global embedding, (B, P) float32, whatever the class.

    R = A_L ... A_1 with A_l = (mean over heads of the attention + I) / 2, the row of the class token (the mean over
    patches, where the tower pools them) over the columns of patches.  Source: Abnar and Zuidema, ACL 2020, eq. 1 and 2.

    Args:
        images: (B, 3, S, S) float, normalised; or uint8 in either layout.

    Raises:
        ModelError: the tower's attention cannot be read.
    """
    with _recorded(clip) as layers:
        clip.encode_image(images)
    relevance = _identity(layers[0])
    for attention in layers:
        relevance = (attention.float().mean(1) + _identity(attention)) / 2 @ relevance  # (B, T, T)
    return _pooled(clip, relevance)


def gradient_attention(clip: Clip, images: Tensor, texts: Tensor) -> Tensor:
    """Return how much each patch speaks for the text of its image, (B, P) float32, at least 0.

    R = I, then R = R + mean over heads of max(0, A_l * ds/dA_l) R for each layer from the first, with the global score
    s = cos(text, f_cls).  Source: Chefer, Gur and Wolf, ICCV 2021, eq. 5 and 6.

    Args:
        images: as for :func:`attention_rollout`.
        texts: (B, D), one text feature for each image.

    Raises:
        ConfigError: not one text for each image.
        ModelError: the tower's attention cannot be read.
    """
    if texts.ndim != 2 or len(texts) != len(images):
        raise ConfigError(f"texts are {tuple(texts.shape)} for {len(images)} images; give one row for each image")
    images = torch.as_tensor(images)
    images = images if images.is_floating_point() else clip.normalise(images)
    first = next(clip.parameters())
    images = images.detach().to(first.device, first.dtype).requires_grad_()  # a graph, though no weight may learn
    with torch.enable_grad(), _recorded(clip) as layers:
        cls = F.normalize(image_features(clip.visual, images).cls.float(), dim=-1)
        scores = global_scores(cls, F.normalize(texts.detach().to(cls), dim=-1)).diagonal()
        gradients = torch.autograd.grad(scores.sum(), layers)  # images do not mix, so each has its own gradient
    relevance = _identity(layers[0])
    for attention, gradient in zip(layers, gradients, strict=True):
        weighted = (attention.detach() * gradient).clamp(min=0).float().mean(1)
        relevance = relevance + weighted @ relevance  # (B, T, T)
    return _pooled(clip, relevance)


def attention_size(clip: Clip) -> tuple[int, int]:
    """Return the layers of the image tower whose attention is read, and the most heads that one of them has.

    Raises:
        ModelError: the tower's attention cannot be read.
    """
    found = _attentions(clip)
    return len(found), max(int(cast(Any, module).num_heads) for module in found)


def _attentions(clip: Clip) -> list[nn.Module]:
    found = [m for m in _trunk(clip).modules() if isinstance(m, nn.MultiheadAttention) or hasattr(m, "fused_attn")]
    if not found:
        raise ModelError(f"{clip.name} has an attention that hpdval cannot read; use method='similarity'")
    return found


def _identity(attention: Tensor) -> Tensor:
    return torch.eye(attention.shape[-1], device=attention.device).expand(len(attention), -1, -1)


def _pooled(clip: Clip, relevance: Tensor) -> Tensor:
    """Return the rows that become the global embedding, over the columns of patches."""
    rows, columns = clip.patch_grid
    prefix = relevance.shape[-1] - rows * columns
    trunk: Any = _trunk(clip)
    pools = (
        prefix == 0 or getattr(trunk, "pool_type", getattr(trunk, "global_pool", "")) == "avg"
    )  # open_clip's, timm's
    return (relevance[:, prefix:].mean(1) if pools else relevance[:, 0])[:, prefix:]


def _trunk(clip: Clip) -> nn.Module:
    return cast(nn.Module, getattr(clip.visual, "trunk", clip.visual))


@contextmanager
def _recorded(clip: Clip) -> Iterator[list[Tensor]]:
    """Collect the attention (B, h, T, T) of every layer during a forward pass, each in the path to what it yields."""
    layers: list[Tensor] = []
    found = _attentions(clip)
    fused: list[Any] = [m for m in found if hasattr(m, "fused_attn")]
    before, training = [m.fused_attn for m in fused], clip.training
    handles = []
    try:
        clip.eval()
        for module in found:
            if isinstance(module, nn.MultiheadAttention):
                handles.append(module.register_forward_hook(_explicit(layers), with_kwargs=True))
            else:  # timm's: without the fused kernel, attention passes through a dropout that does nothing here
                cast(Any, module).fused_attn = False
                drop = cast(nn.Module, module.attn_drop)
                handles.append(drop.register_forward_hook(lambda _, __, output: layers.append(output)))
        yield layers
    finally:
        for handle in handles:
            handle.remove()
        for module, value in zip(fused, before, strict=True):
            module.fused_attn = value
        clip.train(training)


def _explicit(layers: list[Tensor]) -> Any:
    """Return a hook that computes torch's self-attention again, its probabilities in the open."""

    def hook(module: nn.MultiheadAttention, args: Any, kwargs: Any, output: Any) -> Any:
        x = args[0] if module.batch_first else args[0].transpose(0, 1)  # (B, T, W)
        heads = module.num_heads
        q, k, v = F.linear(x, module.in_proj_weight, module.in_proj_bias).unflatten(-1, (3, heads, -1)).unbind(2)
        similarity = torch.einsum("bihd,bjhd->bhij", q, k) / q.shape[-1] ** 0.5
        attention = similarity.softmax(-1)  # (B, h, T, T)
        layers.append(attention)
        out = module.out_proj(torch.einsum("bhij,bjhd->bihd", attention, v).flatten(2))
        return (out if module.batch_first else out.transpose(0, 1)), None

    return hook
