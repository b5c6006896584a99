"""Prompts to features through open_clip's own text towers, with learnable contexts in place of words.

Letters: C prompts, L text tokens, M context tokens, W text transformer width, D joint embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import open_clip
import torch
from torch import Tensor, nn
from torch.func import functional_call

from hpdval.errors import ConfigError, ModelError

Tokenizer = Callable[..., Tensor]  # (list of str, context_length=...) -> (C, L) int64
PLACEHOLDER = "X"


def make_tokenizer(config: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer a model configuration names: CLIP's own BPE, or a Hugging Face one that is already here."""
    text_cfg = config["text_cfg"]
    options = dict(text_cfg.get("tokenizer_kwargs") or {})
    length = text_cfg.get("context_length", 77)
    source = text_cfg.get("hf_tokenizer_name")
    if not source:
        return open_clip.SimpleTokenizer(context_length=length, **options)
    try:
        mode = text_cfg.get("tokenizer_mode")
        return open_clip.tokenizer.HFTokenizer(
            source, context_length=length, tokenizer_mode=mode, local_files_only=True, **options
        )
    except (ImportError, OSError, ValueError) as error:
        raise ModelError(
            f"the tokenizer {source!r} is not here; pip install transformers and run: hf download {source} (then again)"
        ) from error


def tokenise(tokenizer: Tokenizer, prompts: Sequence[str], context_length: int, vocabulary: int) -> Tensor:
    """Return token ids (C, L) int64, [SOS] words [EOT] padding, L = ``context_length``.

    Raises:
        ConfigError: no prompts, not strings, or a prompt that does not fit; nothing is cut off silently.
    """
    if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise ConfigError(f"prompts must be a non-empty list of strings, got {prompts!r:.80}")
    ids = tokenizer([*prompts, ""], context_length=context_length + 1)  # one more shows what would be cut
    padding = ids[-1, -1]
    for prompt, row in zip(prompts, ids, strict=False):
        if row[-1] != padding:
            shown = prompt if len(prompt) <= 80 else f"{prompt[:40]} ... {prompt[-35:]}"
            raise ConfigError(
                f"the prompt {shown!r} needs more than the {context_length} tokens of this model; shorten it"
            )
    ids = ids[:-1, :-1]
    if int(ids.max()) >= vocabulary:
        raise ModelError(
            f"the tokenizer gives id {int(ids.max())}, the model has {vocabulary} embeddings; see vocab_size"
        )
    return ids


def prompt_slots(tokenizer: Tokenizer, tokens: int) -> tuple[str, int, int]:
    """Return words that stand for ``tokens`` context vectors, the position of the first, and their token id."""
    one, other = tokenizer([PLACEHOLDER, "photo"])
    start = int((one != other).nonzero()[0])  # after whatever the tokenizer puts first, such as [SOS]
    return " ".join([PLACEHOLDER] * tokens), start, int(one[start])


class _TextTower(nn.Module):
    """The text half of an open_clip model, as one module whose tensors ``functional_call`` can exchange."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        features = self.model.encode_text(ids, normalize=False)  # type: ignore[operator]
        return features[0] if isinstance(features, tuple) else features


def text_features(
    model: nn.Module, ids: Tensor, *, context: Tensor | None = None, start: int = 1, trim: bool = True
) -> Tensor:
    """Return text features (C, D), not L2-normalised, of token ids (C, L).

    ``context`` (M, W) takes the place of the token embeddings at ``start`` .. ``start + M``, before positional
    embeddings are added.  ``trim``: where a tower is causal and reads its features at EOT, what follows the EOT cannot
    reach them, so the batch is cut after its longest prompt: the same numbers for L = 10 instead of 77 tokens.
    """
    part: Any = getattr(model, "text", model)  # open_clip's CLIP holds the text tower's parts itself
    prefix = "model." if part is model else "model.text."
    exchanged: dict[str, Tensor] = {}
    pool = getattr(part, "pool_type", getattr(part, "text_pool_type", None))
    if trim and pool == "argmax" and part.attn_mask is not None and getattr(part, "cls_emb", None) is None:
        length = int(ids.argmax(dim=-1).max()) + 1  # asked before the ids move, so that no GPU is waited for
        ids = ids[:, :length]
        exchanged[f"{prefix}positional_embedding"] = part.positional_embedding[:length]
        exchanged[f"{prefix}attn_mask"] = part.attn_mask[:length, :length]
    ids = ids.to(part.token_embedding.weight.device)
    hook = None
    if context is not None:
        stop = start + len(context)

        def insert(module: nn.Module, inputs: Any, embedded: Tensor) -> Tensor:  # (C, L, W)
            middle = context.to(embedded).expand(len(embedded), -1, -1)
            return torch.cat([embedded[:, :start], middle, embedded[:, stop:]], dim=1)

        hook = part.token_embedding.register_forward_hook(insert)
    try:
        return functional_call(_TextTower(model), exchanged, (ids,))
    finally:
        if hook is not None:
            hook.remove()
