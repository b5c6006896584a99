"""Scores of two views, by text embeddings: what HP-DVAL trains, CLIP as it is, and all that ends in fixed prompts.

Letters: N images, B in a batch, C classes, P patches, D joint width, M context tokens, W text transformer width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from hpdval.config import ScoreConfig
from hpdval.data.dataset import Split
from hpdval.errors import ConfigError, ModelError
from hpdval.models import Clip, ImageFeatures
from hpdval.models.dual_view import dual_view_scores
from hpdval.models.prompts import TEMPLATE, hand_crafted
from hpdval.scoring.scorer import Scorer

GLOBAL_ALPHA = {"paper": 1.0, "released": 0.0}  # the global view alone, in either reading


class DualViewScorer(Scorer):
    """A CLIP and the text embeddings of two views (HP-DVAL eq. 4-5).

    ``text_global`` and ``text_local`` (C, D) are the text embeddings; ``score`` says how the views are fused.
    ``contexts`` holds learned context vectors (M, W), where there are any.
    """

    kind = "dual-view"

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        text_global: torch.Tensor,
        text_local: torch.Tensor | None = None,
        *,
        score: ScoreConfig | None = None,
        template: str = TEMPLATE,
        contexts: Mapping[str, torch.Tensor] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(clip, classes, **options)
        self.clip = clip
        self.text_global = text_global.detach()
        self.text_local = self.text_global if text_local is None else text_local.detach()
        self.score_config = score or ScoreConfig()
        self.template = template
        self.contexts = {name: value.detach() for name, value in (contexts or {}).items()}

    @torch.no_grad()
    def score_features(self, features: ImageFeatures) -> torch.Tensor:
        """Return (B, C) float32 scores of encoded images."""
        device = features.cls.device
        return dual_view_scores(
            features.cls,
            features.patches,
            self.text_global.to(device),
            self.text_local.to(device),
            **asdict(self.score_config),
        )

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return texts and contexts, and how views are fused."""
        tensors = {"text_global": self.text_global, "text_local": self.text_local}
        tensors |= {f"context.{name}": value for name, value in self.contexts.items()}
        return tensors, {"score": asdict(self.score_config), "template": self.template}

    @classmethod
    def from_state(
        cls, encoder: Clip, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any], **options: Any
    ) -> DualViewScorer:
        """Return the scorer whose :meth:`state` this was; ``options`` are those of every scorer.

        Raises:
            ModelError: the texts are those of another encoder or list of classes.
        """
        contexts = {name.removeprefix("context."): t for name, t in tensors.items() if name.startswith("context.")}
        texts = tensors["text_global"], tensors["text_local"]
        size = (len(state["classes"]), encoder.embed_dim)
        if any(tuple(text.shape) != size for text in texts):
            shapes = " and ".join(str(tuple(text.shape)) for text in texts)
            raise ModelError(f"the texts {shapes} are not those of {size[0]} classes on {size[1]} features")
        score, template = ScoreConfig(**state["score"]), state["template"]
        return cls(encoder, state["classes"], *texts, score=score, template=template, contexts=contexts, **options)


def with_views(scorer: object) -> DualViewScorer:
    """Return the scorer if it has texts that patches can be compared with.

    Raises:
        ConfigError: it has none; the message says what does.
    """
    if isinstance(scorer, DualViewScorer):
        return scorer
    raise ConfigError(
        f"{scorer!r:.60} is no scorer of texts on patches; give hpdval.load_run(folder) of a method with prompts, or "
        "hpdval.zero_shot_scorer(clip, classes)"
    )


def zero_shot(
    clip: Clip,
    split: Split,
    classes: Sequence[str],
    *,
    template: str = TEMPLATE,
    alpha: float | None = None,
    k: int | float = 32 / 196,
    reading: str = "paper",
    resize: str | None = None,
    **options: Any,
) -> np.ndarray:
    """Return zero-shot scores (N, C) float32 of a split: cosines with the hand-crafted prompts of the classes.

    By default CLIP's own global view; an ``alpha``, which weighs the view that ``reading`` says, mixes in the mean of
    the k best patches (HP-DVAL eq. 4-5).
    """
    score = ScoreConfig(alpha=GLOBAL_ALPHA.get(reading, 1.0) if alpha is None else alpha, k=k, reading=reading)
    return zero_shot_scorer(clip, classes, template=template, score=score, resize=resize).score(split, **options)


def zero_shot_scorer(
    clip: Clip,
    classes: Sequence[str],
    *,
    template: str = TEMPLATE,
    score: ScoreConfig | None = None,
    resize: str | None = None,
) -> DualViewScorer:
    """Return CLIP as it is, as a :class:`DualViewScorer`; global view only unless ``score`` says otherwise."""
    return DualViewScorer(
        clip,
        classes,
        hand_crafted(clip, classes, template),
        score=score or ScoreConfig(alpha=1.0),
        resize=resize,
        template=template,
        method="zero-shot",
    )
