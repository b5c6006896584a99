"""CoCoOp: contexts that a small network shifts for each image; so each image has texts of its own."""

from __future__ import annotations

from typing import Any

from hpdval.models.conditional_prompts import ConditionalPrompts
from hpdval.rival_configs import CocoopConfig
from hpdval.scoring import HeadScorer, Scorer, clip_of
from hpdval.training.rivals.frozen import fit_head
from hpdval.training.session import TrainingSession, selected


def train_cocoop(session: TrainingSession, config: CocoopConfig) -> Scorer:
    """Train context and meta-network (Zhou et al., "Conditional prompt learning", CVPR 2022, for several labels)."""
    clip, classes = clip_of(session.start), session.dataset.classes
    options: dict[str, Any] = {
        "tokens": config.contexts,
        "init": config.init,
        "reduction": config.reduction,
        "seed": session.experiment.seed,
    }
    head = ConditionalPrompts(clip, classes, **options)
    about: dict[str, Any] = {"method": config.label, "precision": config.precision, **selected(session)}

    def scorer() -> Scorer:
        return HeadScorer(clip, classes, head, ("conditional prompts", options), **about)

    def facts() -> dict[str, Any]:
        return {"context_shift": head.moved()}

    return fit_head(session, config, head, lambda features: head(features, clip), scorer, facts=facts)
