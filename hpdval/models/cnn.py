"""A CNN as an encoder: places of its last feature map stand for patches, their mean for the class token.

Letters: F width of the features, S pixels of a side.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hpdval.errors import ConfigError, ModelError, shown
from hpdval.files import read_json
from hpdval.models.backbone import RESNET101, Backbone, make_backbone
from hpdval.models.encoder import Encoder, Preprocess
from hpdval.models.numeric import resolve_device


class Cnn(Encoder):
    """A backbone of timm with what its images need; made by :func:`load_cnn`.

    Batch normalisation keeps the statistics of its weights, also while the rest is trained: small batches of few images
    would replace those of ImageNet by their own noise, and a resumed run could not repeat them.
    """

    stem = "cnn"

    def __init__(self, backbone: Backbone, image_size: int, pretrained: str | None) -> None:
        super().__init__()
        self.backbone, self.name, self.pretrained = backbone, backbone.name, pretrained
        self.model = backbone.trunk  # what is saved: under timm's names, as load_trunk reads it
        self.config = {"backbone": backbone.name, "image_size": image_size}
        self.prepare(Preprocess(size=image_size, mean=backbone.mean, std=backbone.std, resize_mode="squash"))
        self.embed_dim = backbone.width
        self.note = "random weights: nothing was loaded (pretrained=None)" if pretrained is None else ""
        self.eval()
        with torch.no_grad():
            rows, columns = backbone(torch.zeros(1, 3, image_size, image_size)).shape[2:]
        self.patch_grid = (int(rows), int(columns))

    @property
    def visual(self) -> nn.Module:
        """The backbone."""
        return self.backbone

    def train(self, mode: bool = True) -> Cnn:
        """Set the mode of everything but batch normalisation, whose statistics stay."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


def load_cnn(
    name: str | os.PathLike[str] = RESNET101,
    pretrained: str | os.PathLike[str] | None = None,
    *,
    image_size: int = 448,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Cnn:
    """Load a CNN of timm as an encoder, in float32, in eval mode.

    Args:
        name: a CNN of timm such as ``"resnet101.tv_in1k"``, or the json that a run left of one.
        pretrained: a local checkpoint, ``"timm"`` to fetch the weights of ``name``, or None for random ones.
        image_size: S.
        device: where the model goes; ``"auto"`` is CUDA where there is one.
        seed: of random weights.

    Raises:
        ConfigError: an image size below 32.
        ModelError: an unknown model or one that gives no feature map, or weights that do not fit or would run code.

    >>> cnn = load_cnn("resnet18", image_size=64)
    >>> cnn.embed_dim, cnn.patch_grid
    (512, (2, 2))
    """
    if str(name).endswith(".json"):
        known: Any = read_json(name)
        if not isinstance(known, dict) or not {"backbone", "image_size"} <= known.keys():
            raise ModelError(f"{name} describes no CNN; it needs backbone and image_size")
        name, image_size = known["backbone"], known["image_size"]
    if not isinstance(image_size, int) or not 32 <= image_size <= 4096:
        raise ConfigError(f"image_size is {shown(image_size)}; a CNN needs at least 32 pixels, and at most 4096 here")
    backbone = make_backbone(str(name), pretrained, seed=seed)
    origin = None if pretrained is None else str(Path(pretrained)) if pretrained != "timm" else "timm"
    return Cnn(backbone, image_size, origin).to(resolve_device(device)).eval()
