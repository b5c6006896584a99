"""DualCoOp: a positive and a negative prompt for each class, compared region by region."""

from __future__ import annotations

from typing import Any

import torch

from hpdval.models import ImageFeatures
from hpdval.models.dual_prompts import DualPrompts, RegionPooling, region_pooling
from hpdval.rival_configs import DualCoopConfig
from hpdval.scoring import HeadScorer, Scorer, clip_of
from hpdval.training.rivals.frozen import fit_head
from hpdval.training.session import TrainingSession, selected


def train_dualcoop(session: TrainingSession, config: DualCoopConfig) -> Scorer:
    """Train both prompts of every class (Sun et al., "DualCoOp", NeurIPS 2022)."""
    clip, classes = clip_of(session.start), session.dataset.classes
    words: dict[str, Any] = {"tokens": config.contexts, "init": config.init, "per_class": config.per_class}
    prompts = DualPrompts(clip, classes, seed=session.experiment.seed, **words)
    options: dict[str, Any] = {"temperature": config.temperature, "scale": config.logit_scale}
    about: dict[str, Any] = {"method": config.label, "precision": config.precision, **selected(session)}

    def scores(features: ImageFeatures) -> torch.Tensor:
        return region_pooling(features.patches, *prompts.texts(clip), **options)

    def scorer() -> Scorer:
        with torch.no_grad():
            head = RegionPooling(*prompts.texts(clip), **options)
        return HeadScorer(clip, classes, head, ("region pooling", options), **about)

    def facts() -> dict[str, Any]:
        return {"context_shift": prompts.moved()}

    return fit_head(session, config, prompts, scores, scorer, facts=facts)
