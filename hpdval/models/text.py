"""Prompts to features through open_clip's own text towers, with learnable contexts in place of words.

Letters: C prompts, L text tokens, S sets of M context tokens, W text transformer width, D joint embedding width, R rows
of T tokens that hold all prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import open_clip
import torch
from open_clip.transformer import TextTransformer, Transformer
from torch import Tensor, nn
from torch.nn import functional as F

from hpdval.errors import ConfigError, ModelError
from hpdval.models.packing import one_a_row, pack

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


def text_path(model: nn.Module) -> str:
    """Return how prompts go through a text tower: ``"shared prefix"`` where that is exact, else ``"plain"``.

    It is exact where a token sees only what stands before it, and the feature is read at [EOT]: CLIP's text towers.
    """
    part = _part(model)
    if type(part) not in (open_clip.CLIP, TextTransformer) or type(part.transformer) is not Transformer:
        return "plain"
    causal = part.attn_mask is not None  # open_clip knows one mask, which no weights bring with them
    pool, eos = _pooling(part)
    at_end = pool == "argmax" or (pool == "eos" and eos is not None)
    return "shared prefix" if causal and at_end and getattr(part, "cls_emb", None) is None else "plain"


def text_features(
    model: nn.Module, ids: Tensor, *, context: Tensor | None = None, start: int = 1, plain: bool = False
) -> Tensor:
    """Return text features (C, D), not L2-normalised, of token ids (C, L).

    Args:
        model: an open_clip model.
        ids: from :func:`tokenise`; with a context, all alike up to ``start + M``.
        context: (M, W), takes the place of the token embeddings at ``start`` .. ``start + M``, before positional
            embeddings are added; or S contexts (S, M, W), or S for each prompt (S, C, M, W), for features (S, C, D).
        start: where the context begins.
        plain: encode every prompt by itself and at full length even where :func:`text_path` knows better; for tests and
            benchmarks to compare with.
    """
    if context is not None and context.ndim == 2:
        return text_features(model, ids, context=context[None], start=start, plain=plain)[0]
    if not plain and text_path(model) == "shared prefix":
        features = _shared_prefix(model, ids, context, start)  # (S, C, D)
        return features[0] if context is None else features
    if context is None:
        return _plain(model, ids)
    return torch.stack([_plain(model, ids, one, start) for one in context])


def _plain(model: Any, ids: Tensor, context: Tensor | None = None, start: int = 1) -> Tensor:
    """Return open_clip's own features (C, D) of token ids (C, L), with a context (M, W) or (C, M, W) put in."""
    embedding = _part(model).token_embedding

    def insert(module: nn.Module, inputs: Any, embedded: Tensor) -> Tensor:  # (C, L, W)
        return embedded if context is None else _insert(embedded, context[None], start)

    with embedding.register_forward_hook(insert):
        features = model.encode_text(ids.to(embedding.weight.device), normalize=False)
    return features[0] if isinstance(features, tuple) else features


def _shared_prefix(model: nn.Module, ids: Tensor, contexts: Tensor | None, start: int) -> Tensor:
    """Return the same features (S, C, D) from rows in which the tokens that prompts share stand once.

    Prompts with contexts of their own (S, C, M, W) share none: each has a row, which ends where the longest does.
    """
    part = _part(model)
    pool, eos = _pooling(part)
    ends = (ids if pool == "argmax" else (ids == eos).int()).argmax(dim=-1).tolist()
    prompts = tuple(tuple(row[: end + 1]) for row, end in zip(ids.tolist(), ends, strict=True))
    width, device = part.token_embedding.embedding_dim, part.token_embedding.weight.device
    own = contexts is not None and contexts.ndim == 4
    packed = one_a_row(prompts, device) if own else pack(prompts, width, device)
    dtype = part.transformer.get_cast_dtype()

    x = part.token_embedding(packed.ids).to(dtype)  # (R, T, W)
    if contexts is not None:
        x = _insert(x, contexts, start)  # (S * R, T, W)
    sets = len(x) // len(packed.ids)
    x = x + F.embedding(packed.positions, part.positional_embedding.to(dtype)).repeat(sets, 1, 1)
    mask = torch.zeros_like(packed.visible, dtype=dtype).masked_fill_(~packed.visible, float("-inf"))
    if mask.ndim == 3:
        mask = mask.repeat_interleave(part.transformer.resblocks[0].attn.num_heads, dim=0).repeat(sets, 1, 1)
    x = part.transformer(x, attn_mask=mask)

    row, column = packed.ends
    x = part.ln_final(x.unflatten(0, (sets, -1))[:, row, column])  # (S, C, W)
    projection = part.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Linear) else x @ projection


def _part(model: nn.Module) -> Any:
    """Return the module that has the parts of the text tower: open_clip's CLIP itself, or its ``text``."""
    return getattr(model, "text", model)


def _pooling(part: Any) -> tuple[Any, Any]:
    """Return which token a tower reads its feature at, by name, and the id of [EOT] where the name is ``"eos"``."""
    prefix = "text_" if isinstance(part, open_clip.CLIP) else ""
    return getattr(part, f"{prefix}pool_type", None), getattr(part, f"{prefix}eos_id", None)


def _insert(embedded: Tensor, contexts: Tensor, start: int) -> Tensor:
    """Return embeddings (N, L, W) with each of the contexts (S, M, W) or (S, N, M, W) in its place: (S * N, L, W)."""
    before, after = embedded[:, :start], embedded[:, start + contexts.shape[-2] :]
    middles = [context.to(embedded).expand(len(embedded), -1, -1) for context in contexts]
    return torch.cat([torch.cat([before, middle, after], dim=1) for middle in middles])
