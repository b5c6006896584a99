"""CoOp: learned context words before the class name, compared with the global embedding.

Letters: B images, C classes, D joint width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from hpdval.config import ScoreConfig
from hpdval.models import Clip, ImageFeatures
from hpdval.models.dual_view import global_scores
from hpdval.models.prompts import PromptContexts
from hpdval.rival_configs import CoopConfig
from hpdval.scoring import Scorer, clip_of
from hpdval.training.rivals.frozen import fit_head
from hpdval.training.session import TrainingSession, scorer_of


def cosines(features: ImageFeatures, text: torch.Tensor) -> torch.Tensor:
    """Return cos(T, f_cls), (B, C) float32, of text embeddings (C, D): CLIP's own score.

    >>> cosines(ImageFeatures(torch.ones(1, 2), torch.ones(1, 4, 2)), 3 * torch.ones(1, 2))
    tensor([[1.]])
    """
    with torch.autocast(text.device.type, enabled=False):  # in half precision ties cost 0.4 AP points
        return global_scores(F.normalize(features.cls.float(), dim=-1), F.normalize(text.float(), dim=-1))


def make_contexts(session: TrainingSession, config: CoopConfig) -> PromptContexts:
    """Return the contexts to start from."""
    clip, classes = clip_of(session.start), session.dataset.classes
    options: dict[str, Any] = {"init": config.init, "seed": session.experiment.seed, "per_class": config.per_class}
    return PromptContexts(clip, classes, tokens=config.contexts, **options)


def contexts_scorer(session: TrainingSession, config: CoopConfig, contexts: PromptContexts) -> Callable[[], Scorer]:
    """Return a function that gives the scorer of contexts as they are now: plain texts, which any view can show."""
    clip = clip_of(session.start)

    def scorer() -> Scorer:
        with torch.no_grad():
            text = contexts(clip)
        about: dict[str, Any] = {
            "contexts": {"global": contexts.contexts},
            "method": config.label,
            "precision": config.precision,
        }
        return scorer_of(session, clip, text, score=ScoreConfig(alpha=1.0), **about)

    return scorer


def scores_by(clip: Clip, contexts: PromptContexts) -> Callable[[ImageFeatures], torch.Tensor]:
    """Return what contexts make of features while they learn."""
    return lambda features: cosines(features, contexts(clip))


def train_coop(session: TrainingSession, config: CoopConfig) -> Scorer:
    """Train contexts, shared or class-specific (Zhou et al., "Learning to prompt", IJCV 2022, for several labels)."""
    contexts, clip = make_contexts(session, config), clip_of(session.start)
    scorer = contexts_scorer(session, config, contexts)

    def facts() -> dict[str, Any]:
        return {"context_shift": contexts.moved()}

    return fit_head(session, config, contexts, scores_by(clip, contexts), scorer, facts=facts)
