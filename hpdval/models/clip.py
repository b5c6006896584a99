"""CLIP as the method needs it: projected class and patch tokens, prompts, and prompts with learnable contexts.

Letters: B images, C prompts or classes, P patches, D joint embedding width, W text transformer width, M context tokens,
L text tokens, S pixels of a side.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
from safetensors.torch import save
from torch import Tensor, nn

from hpdval.errors import ConfigError, ModelError
from hpdval.files import atomic_write, digest, write_json
from hpdval.models import text, weights
from hpdval.models.towers import ImageFeatures, image_features, patch_grid


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


class Clip(nn.Module):
    """An open_clip model whose patches are projected too; made by :func:`hpdval.models.load.load_clip`.

    Attributes:
        model: the open_clip model, whose state dict keeps open_clip's names.
        name, pretrained, note: what was asked for, and what a reader of results should know (random weights, ...).
        config: JSON from which the architecture can be built again, ``{"model_cfg": ..., "preprocess_cfg": ...}``.
        embed_dim, text_width, context_length, image_size: D, W, L, S.
        patch_grid: (rows, columns), P = rows * columns.
        preprocess: what an image needs before :meth:`encode_image`.
    """

    mean: Tensor  # (3, 1, 1), as in preprocess
    std: Tensor

    def __init__(self, model: nn.Module, config: dict[str, Any], name: str, pretrained: str | None, note: str) -> None:
        super().__init__()
        self.model = model
        self.config, self.name, self.pretrained, self.note = config, name, pretrained, note
        self.preprocess = Preprocess.from_json(config["preprocess_cfg"])
        self.image_size, self.patch_grid = self.preprocess.size, patch_grid(self.visual, name)
        self.embed_dim = int(config["model_cfg"]["embed_dim"])
        self.context_length = int(getattr(model, "text", model).context_length)  # type: ignore[arg-type]
        self.text_width = self.token_embedding.embedding_dim
        self._tokenizer: text.Tokenizer | None = None
        # on the device beforehand: a copy made for each batch would be waited for
        self.register_buffer("mean", torch.tensor(self.preprocess.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.preprocess.std).view(3, 1, 1), persistent=False)

    @property
    def tokenizer(self) -> text.Tokenizer:
        """The tokenizer the configuration names, made when first needed: ``tokenizer(list of str) -> (C, L) int64``."""
        if self._tokenizer is None:
            self._tokenizer = text.make_tokenizer(self.config["model_cfg"])
        return self._tokenizer

    @property
    def visual(self) -> nn.Module:
        """The image tower, a part of :attr:`model`: what stage 1 trains."""
        return cast(nn.Module, self.model.visual)

    @property
    def text_parameters(self) -> list[nn.Parameter]:
        """The parameters of the text tower: everything in :attr:`model` but the image tower and the logit scale."""
        return [p for name, p in self.model.named_parameters() if not name.startswith(("visual.", "logit_"))]

    @property
    def text_path(self) -> str:
        """How prompts are encoded: ``"shared prefix"`` where the text tower allows it, else ``"plain"``, which is slow.

        Both give the same features; see :func:`hpdval.models.text.text_path`.
        """
        return text.text_path(self.model)

    @property
    def token_embedding(self) -> nn.Embedding:
        """The embeddings of tokens (vocabulary, W), a part of :attr:`model`."""
        return cast(nn.Embedding, getattr(self.model, "text", self.model).token_embedding)

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
        """Return f_cls (B, D) and f_patch (B, P, D), both projected into the joint space, not L2-normalised.

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

    def tokenise(self, prompts: Sequence[str]) -> Tensor:
        """Return token ids (C, L) int64 of prompts; one that is too long is an error that names it."""
        return text.tokenise(self.tokenizer, prompts, self.context_length, self.token_embedding.num_embeddings)

    def encode_tokens(self, ids: Tensor) -> Tensor:
        """Return features (C, D), not L2-normalised, of token ids (C, L) from :meth:`tokenise`."""
        return text.text_features(self.model, ids)

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Return features (C, D), not L2-normalised, of prompts such as ``"a photo of a dog."``.

        Raises:
            ConfigError: no prompts, or one that does not fit the context; nothing is cut off silently.
        """
        return self.encode_tokens(self.tokenise(prompts))

    def encode_prompts(self, context: Tensor, classes: Sequence[str]) -> Tensor:
        """Return features (C, D) of [SOS][v_1 .. v_M][class name][.][EOT], differentiable in the context.

        Args:
            context: v, (M, W) float, on the scale of token embeddings; shared by all classes.  S contexts at once,
                (S, M, W), give features (S, C, D).
            classes: C names; underscores become spaces.

        Raises:
            ConfigError: the context is of another shape, or a class name is empty or does not fit.
        """
        width = self.text_width
        if context.ndim not in (2, 3) or not context.numel() or context.shape[-1] != width:
            given = tuple(context.shape)
            raise ConfigError(f"context must be (M, {width}) or (S, M, {width}) for {self.name}, got {given}")
        tokens = context.shape[-2]
        words, start, slot = text.prompt_slots(self.tokenizer, tokens)
        ids = self.tokenise([f"{words} {name}." for name in class_names(classes)])
        head = ids[:, : start + tokens]
        if not bool((head == head[0]).all() and (head[0, start:] == slot).all()):
            raise ModelError(f"the tokenizer of {self.name} leaves no place for learnable context tokens")
        return text.text_features(self.model, ids, context=context, start=start)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write configuration and weights so that ``load_clip(folder)``, or open_clip's ``local-dir:``, reads them."""
        write_json(Path(folder) / weights.FOLDER_CONFIG, self.config)
        state = {key: value.detach().cpu().contiguous() for key, value in self.model.state_dict().items()}
        with atomic_write(Path(folder) / weights.FOLDER_FILES[0]) as file:
            file.write(save(state))


def class_names(classes: Sequence[str]) -> list[str]:
    """Return class names as words: underscores become spaces.

    >>> class_names(["tv_monitor", "dog"])
    ['tv monitor', 'dog']
    """
    names = [name.replace("_", " ").strip() for name in classes]
    if not all(names):
        raise ConfigError(f"class names must not be empty, got {list(classes)!r:.80}")
    return names
