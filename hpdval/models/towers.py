"""Projected tokens from open_clip's image towers: which towers have them, and how they are read out.

Letters: B images, P patches, W transformer width, D joint embedding width, S pixels of a side.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import open_clip
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from hpdval.errors import ModelError
from hpdval.models.backbone import Backbone


class ImageFeatures(NamedTuple):
    """What an image becomes, neither L2-normalised: by a CLIP, both in the joint space."""

    cls: (
        Tensor  # (B, D) the tower's own global embedding: the class token, or the mean of the patches where it pools so
    )
    patches: (
        Tensor  # (B, P, D) every patch through the same final norm and the same projection, rows of the grid in order
    )


class ProjectedTower(nn.Module):
    """An image tower made of a trunk, open_clip's or timm's, and a head that projects every token of it.

    Stage 1 trains such a tower where a reading does without CLIP's own ``visual.proj``.
    """

    def __init__(self, trunk: nn.Module, head: nn.Module, image_size: int) -> None:
        super().__init__()
        self.trunk, self.head, self.image_size = trunk, head, (image_size, image_size)

    def forward(self, images: Tensor) -> Tensor:
        """Return f_cls (B, D) of normalised images (B, 3, S, S), as an open_clip model asks of its image tower."""
        return image_features(self, images).cls


def image_features(visual: nn.Module, images: Tensor) -> ImageFeatures:
    """Return f_cls and f_patch of normalised images (B, 3, S, S): f = ln_post(tokens) @ proj, for both.

    open_clip's own ``output_tokens`` gives the patches without ``proj``, which lie in no common space with text.  Of a
    CNN f_patch are the places of the last feature map, row by row, and f_cls is their mean.
    """
    tower: Any = visual
    if isinstance(visual, Backbone):
        tokens = visual(images).flatten(2).transpose(1, 2)  # (B, P, F)
        return ImageFeatures(tokens.mean(dim=1), tokens)
    if isinstance(visual, TimmModel):
        return _timm_features(visual, images)
    if isinstance(visual, ProjectedTower):
        pooled, tokens = (_timm_tokens if hasattr(tower.trunk, "forward_head") else _tokens)(tower.trunk, images)
        return ImageFeatures(tower.head(pooled), tower.head(tokens))
    pooled, tokens = _tokens(tower, images)
    return ImageFeatures(pooled @ tower.proj, tokens @ tower.proj)


def _tokens(tower: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    x = tower.transformer(tower._embeds(images))  # (B, 1 + P, W)
    pooled, tokens = tower._pool(x)  # (B, W), (B, P, W), both after ln_post ...
    if tower.final_ln_after_pool:  # ... except where the norm follows the pooling
        tokens = tower.ln_post(tokens)
    return pooled, tokens


def _timm_tokens(trunk: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    x = trunk.forward_features(images)  # (B, prefix + P, W)
    return trunk.forward_head(x, pre_logits=True), trunk.fc_norm(x[:, trunk.num_prefix_tokens :])


def _timm_features(visual: Any, images: Tensor) -> ImageFeatures:
    trunk = visual.trunk
    x = trunk.forward_features(images)  # (B, prefix + P, W)
    tokens = trunk.head(
        trunk.fc_norm(x[:, trunk.num_prefix_tokens :])
    )  # timm's head is the projection, or the identity
    return ImageFeatures(visual.head(trunk.forward_head(x)), visual.head(tokens))


def patch_grid(visual: nn.Module, name: str) -> tuple[int, int]:
    """Return the (rows, columns) of patches of a tower that gives projected patch tokens.

    Raises:
        ModelError: the tower cannot give them (ResNet, ConvNeXt, attentional pooling as in SigLIP and CoCa, ...).
    """
    if isinstance(visual, ProjectedTower):
        if isinstance(visual.trunk, VisionTransformer):
            return patch_grid(visual.trunk, name)
        return _timm_grid(visual.trunk, visual.image_size, name)
    if isinstance(visual, VisionTransformer):
        tower: Any = visual
        if tower.attn_pool is not None:
            _refuse(name, "pools its patches by attention, after which there are no patches")
        if tower.pool_type not in ("tok", "avg"):
            _refuse(name, f"has no global embedding (pool_type {tower.pool_type!r})")
        if not all(
            hasattr(tower, part) for part in ("_embeds", "_pool", "transformer", "ln_post", "final_ln_after_pool")
        ):
            raise ModelError(f"open_clip {open_clip.__version__} lacks what hpdval uses; install open_clip_torch>=3.0")
        return tuple(tower.grid_size)
    if not isinstance(visual, TimmModel):
        _refuse(name, f"has a {type(visual).__name__}, which has no patch tokens")
    return _timm_grid(visual.trunk, tuple(cast(Any, visual).image_size), name)


def grid_extent(visual: nn.Module, image_size: int) -> tuple[float, float]:
    """Return the share of the input's (height, width) that the patches cover: below 1 where S is no multiple of theirs.

    Patches start at the upper left corner; what is left over at the other sides no patch has seen.
    """
    trunk: Any = getattr(visual, "trunk", visual)
    patch = trunk.patch_size if hasattr(trunk, "patch_size") else trunk.patch_embed.patch_size
    rows, columns = patch_grid(visual, "the image tower")
    return min(1.0, rows * patch[0] / image_size), min(1.0, columns * patch[1] / image_size)


def _timm_grid(trunk: Any, asked: tuple[int, int], name: str) -> tuple[int, int]:
    parts = ("forward_features", "forward_head", "fc_norm", "head", "num_prefix_tokens", "patch_embed")
    if not all(hasattr(trunk, part) for part in parts) or not hasattr(trunk.patch_embed, "grid_size"):
        _refuse(name, f"has timm's {type(trunk).__name__}, which has no patch tokens")
    if trunk.global_pool not in ("token", "avg") or getattr(trunk, "attn_pool", None) is not None:
        _refuse(name, f"pools its patches by {trunk.global_pool!r}, whose projection does not apply to a patch")
    native = tuple(trunk.patch_embed.img_size)
    if native != asked:
        raise ModelError(f"{name} takes images of {native[0]} pixels only, not {asked[0]}; change image_size")
    return tuple(trunk.patch_embed.grid_size)


def _refuse(name: str, why: str) -> None:
    raise ModelError(
        f"{name} {why}; the method needs projected patch tokens: use a ViT such as 'ViT-B-16' or 'EVA02-B-16'"
    )
