"""What encodes images, whatever it is: a CLIP's image tower, or a CNN; and how its input is prepared.

Letters: B images, P patches, D width of the features, S pixels of a side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import open_clip
import torch
from torch import Tensor, nn

from hpdval.errors import ConfigError
from hpdval.files import digest
from hpdval.models import weights
from hpdval.models.towers import ImageFeatures, image_features


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """What must happen to an image before it is encoded; it travels with the weights and belongs in every cache key."""

    size: int = 224
    mean: tuple[float, ...] = open_clip.OPENAI_DATASET_MEAN
    std: tuple[float, ...] = open_clip.OPENAI_DATASET_STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"

    @classmethod
    def from_json(cls, options: Mapping[str, Any]) -> Preprocess:
        """Return the fields found in open_clip's ``preprocess_cfg``, and CLIP's own values for the rest."""
        known = {field.name for field in fields(cls)}
        chosen = {key: value for key, value in options.items() if key in known and value is not None}
        lists: Any = {key: tuple(value) for key, value in chosen.items() if isinstance(value, list)}
        return cls(**{**chosen, **lists})


class Encoder(nn.Module):
    """Images to a global embedding (B, D) and one for each place of a grid (B, P, D).

    Attributes:
        model: what is saved, with the names of the library it comes from.
        name: as the library knows it.
        config: JSON from which the architecture can be built again.
        embed_dim, image_size: D, S.
        patch_grid: (rows, columns), P = rows * columns.
        preprocess: what an image needs before :meth:`encode_image`.
        stem: of the files that a run keeps of it.
    """

    stem: ClassVar[str]
    model: nn.Module
    mean: Tensor  # (3, 1, 1), as in preprocess
    std: Tensor
    name: str
    config: dict[str, Any]
    embed_dim: int
    image_size: int
    patch_grid: tuple[int, int]
    preprocess: Preprocess

    def prepare(self, preprocess: Preprocess) -> None:
        """Keep ``preprocess``, and its constants on the device: a copy made for each batch would be waited for."""
        self.preprocess, self.image_size = preprocess, preprocess.size
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).view(3, 1, 1), persistent=False)

    @property
    def visual(self) -> nn.Module:
        """The part of ``model`` that encodes images: what is trained where the encoder learns."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the parameters as they are now (about a second for a ViT-B)."""
        return weights.weights_digest(self.model)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that image features depend on: parameters, architecture (QuickGELU too) and preprocessing."""
        return digest(self.config, self.weights_sha256)

    def normalise(self, images: Tensor) -> Tensor:
        """Return (images / 255 - mean) / std as (B, 3, S, S) float, on the model's device.

        Args:
            images: (B, 3, S, S) or (B, S, S, 3) uint8; a NumPy array will do.
        """
        images = torch.as_tensor(images)
        if images.dtype != torch.uint8 or images.ndim != 4 or 3 not in (images.shape[1], images.shape[3]):
            raise ConfigError(
                f"images must be (B, 3, S, S) or (B, S, S, 3) uint8, got {tuple(images.shape)} {images.dtype}"
            )
        if images.shape[1] != 3:
            images = images.permute(0, 3, 1, 2)
        first = next(self.parameters())
        images = images.to(first.device, non_blocking=True).to(first.dtype)
        return (images / 255 - self.mean) / self.std

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Return f_cls (B, D) and f_patch (B, P, D), neither L2-normalised; of a CLIP both lie in the joint space.

        Args:
            images: (B, 3, S, S) float, already normalised; or uint8 in either layout, normalised here first.

        Raises:
            ConfigError: the shape is not the model's.
        """
        images = torch.as_tensor(images)
        if not images.is_floating_point():
            images = self.normalise(images)
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, self.image_size, self.image_size):
            size = self.image_size
            raise ConfigError(f"images must be (B, 3, {size}, {size}) for {self.name}, got {tuple(images.shape)}")
        first = next(self.parameters())
        return image_features(self.visual, images.to(first.device, first.dtype))
