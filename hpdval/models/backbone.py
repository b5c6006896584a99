"""Backbones of timm: a CNN up to its last feature map; weights of timm's trunks from a file or, on request, fetched.

Letters: B images, F width of the features, S pixels of a side, h and w rows and columns of the feature map.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from hpdval.errors import ModelError
from hpdval.models import weights

RESNET101 = "resnet101.tv_in1k"  # torchvision's first ImageNet-1K weights, which published results start from
HEADS = ("head.", "fc.", "classifier.")  # what timm's and torchvision's classifiers are called


class Backbone(nn.Module):
    """A CNN without its last pooling and classifier; made by :func:`make_backbone`.

    Attributes:
        trunk: timm's model, whose state dict keeps timm's names (for a ResNet torchvision's, too).
        name: as timm knows it.
        width: F.
        mean, std: of the pixels in [0, 1] it was trained with, for each colour.
    """

    def __init__(self, trunk: Any, name: str) -> None:
        super().__init__()
        self.trunk, self.name = trunk, name
        self.mean, self.std = (tuple(trunk.pretrained_cfg[key]) for key in ("mean", "std"))
        self.width = _map_width(trunk, name)

    def forward(self, images: Tensor) -> Tensor:
        """Return the last feature map (B, F, h, w) of normalised images (B, 3, S, S); a ResNet has h = w = S / 32."""
        return self.trunk.forward_features(images)


def make_backbone(
    name: str = RESNET101, pretrained: str | os.PathLike[str] | None = None, *, seed: int = 0
) -> Backbone:
    """Return a CNN backbone of timm.

    Args:
        name: a CNN of timm such as ``"resnet101.tv_in1k"``.
        pretrained: a local checkpoint of timm's or, for a ResNet, torchvision's names (.safetensors, .pt, .pth, .bin);
            ``"timm"`` fetches the weights of ``name``; None draws random ones.
        seed: of random weights.

    Raises:
        ModelError: an unknown model or one that gives no feature map, or weights that do not fit or would run code.

    >>> backbone = make_backbone("resnet18")
    >>> backbone.width, backbone(torch.zeros(2, 3, 64, 64)).shape
    (512, torch.Size([2, 512, 2, 2]))
    """
    if not timm.is_model(name.partition(".")[0]):
        raise ModelError(f"timm has no model {name!r}; use a CNN of it such as {RESNET101!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            trunk = timm.create_model(name, pretrained=False, num_classes=0)
        except Exception as error:  # timm raises as it pleases on wrong tags
            raise ModelError(f"timm cannot build {name}: {weights.brief(error)}") from error
        backbone = Backbone(trunk, name)
    if pretrained is not None:
        fetched = pretrained == "timm"
        state = fetch(name, hint="as pretrained") if fetched else weights.read_state_dict(Path(pretrained))
        load_trunk(trunk, state, f"{name} of timm" if fetched else str(pretrained), name)
    return backbone


def fetch(name: str, *, hint: str) -> dict[str, Tensor]:
    """Return timm's own weights of a model without its classifier, fetched or from timm's cache.

    Raises:
        ModelError: they cannot be had; ``hint`` says where a file can be given.
    """
    try:
        return timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    except Exception as error:  # hub, urllib and ssl each have their own family of errors
        raise ModelError(
            f"could not fetch {name!r} ({weights.brief(error)}); without a network, fetch it elsewhere and give "
            f"the file {hint}"
        ) from error


def load_trunk(trunk: nn.Module, state: Mapping[str, Tensor], origin: str, name: str, *, hint: str = "") -> None:
    """Load weights into timm's model without its classifier; every tensor must fit, whatever its precision.

    Counters of batches, which old checkpoints of torchvision lack, stay as they are.

    Raises:
        ModelError: a tensor too many, too few, of another shape, or not finite.
    """
    own = trunk.state_dict()
    state = {key: value.float() for key, value in state.items() if key in own or not key.startswith(HEADS)}
    missing = {key for key in own.keys() - state.keys() if not key.endswith("num_batches_tracked")}
    wrong = {key for key, value in state.items() if key in own and value.shape != own[key].shape}
    odd = sorted(missing | wrong | (state.keys() - own.keys()))
    if odd:
        more = " ..." if len(odd) > 3 else ""
        raise ModelError(f"{origin} does not fit {name}{hint and ' ' + hint}: {', '.join(odd[:3])}{more}")
    if not all(bool(torch.isfinite(value).all()) for value in state.values()):
        raise ModelError(f"{origin} holds NaN or infinite weights; it is damaged or its training diverged")
    trunk.load_state_dict(state, strict=False)


@torch.no_grad()
def _map_width(trunk: Any, name: str) -> int:
    """Return F of what the trunk makes of one small image; batch statistics stay as they are."""
    try:
        shape = tuple(trunk.eval().forward_features(torch.zeros(1, 3, 64, 64)).shape)
    except Exception as error:  # a ViT of a fixed size raises as it pleases
        raise ModelError(f"{name} takes no image of 64 pixels ({weights.brief(error)}); use a CNN") from error
    finally:
        trunk.train()
    if len(shape) != 4 or shape[1] != trunk.num_features:
        raise ModelError(f"{name} gives features {shape}, no map (B, F, h, w); use a CNN such as {RESNET101!r}")
    return shape[1]
