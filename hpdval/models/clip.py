"""CLIP as the method needs it: projected class and patch tokens, prompts, and prompts with learnable contexts.

Letters: B images, C prompts or classes, P patches, D joint embedding width, W text transformer width, M context tokens,
L text tokens, S pixels of a side.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from safetensors.torch import save
from torch import Tensor, nn

from hpdval.errors import ConfigError, ModelError
from hpdval.files import atomic_write, write_json
from hpdval.models import text, weights
from hpdval.models.encoder import Encoder, Preprocess
from hpdval.models.towers import patch_grid


class Clip(Encoder):
    """An open_clip model whose patches are projected too; made by :func:`hpdval.models.load.load_clip`.

    Attributes:
        model: the open_clip model, whose state dict keeps open_clip's names.
        name, pretrained, note: what was asked for, and what a reader of results should know (random weights, ...).
        config: JSON from which the architecture can be built again, ``{"model_cfg": ..., "preprocess_cfg": ...}``.
        embed_dim, text_width, context_length, image_size: D, W, L, S.
        patch_grid: (rows, columns), P = rows * columns.
        preprocess: what an image needs before it is encoded.
    """

    stem = "clip"

    def __init__(self, model: nn.Module, config: dict[str, Any], name: str, pretrained: str | None, note: str) -> None:
        super().__init__()
        self.model = model
        self.config, self.name, self.pretrained, self.note = config, name, pretrained, note
        self.prepare(Preprocess.from_json(config["preprocess_cfg"]))
        self.patch_grid = patch_grid(self.visual, name)
        self.embed_dim = int(config["model_cfg"]["embed_dim"])
        self.context_length = int(getattr(model, "text", model).context_length)  # type: ignore[arg-type]
        self.text_width = self.token_embedding.embedding_dim
        self._tokenizer: text.Tokenizer | None = None

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
                (S, M, W), give features (S, C, D), and so do S contexts for each class, (S, C, M, W), which cost more:
                their prompts have no beginning in common.
            classes: C names; underscores become spaces.

        Raises:
            ConfigError: the context is of another shape, or a class name is empty or does not fit.
        """
        width, count = self.text_width, len(classes)
        fits = context.ndim in (2, 3) or (context.ndim == 4 and context.shape[1] == count)
        if not fits or not context.numel() or context.shape[-1] != width:
            shapes = f"(M, {width}) or (S, M, {width}), or (S, {count}, M, {width}) with one for each class,"
            raise ConfigError(f"context must be {shapes} for {self.name}, got {tuple(context.shape)}")
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
