"""CPRFL: category prompts from class embeddings, refined by the visual tokens of each image."""

from __future__ import annotations

from typing import Any

import torch

from hpdval.models.cprfl import Cprfl
from hpdval.models.heads import CategoryPrompts
from hpdval.models.semantic import class_embeddings
from hpdval.rival_configs import CprflConfig
from hpdval.scoring import HeadScorer, Scorer, clip_of, encoder_of
from hpdval.training.rivals.tuned import fit_encoder
from hpdval.training.session import TrainingSession, selected


def semantic_embeddings(session: TrainingSession, config: CprflConfig) -> torch.Tensor:
    """Return the class embeddings W (C, T) that the config names: CLIP's texts, random ones, or word vectors."""
    clip = clip_of(session.start)
    return class_embeddings(session.dataset.classes, config.semantic, clip=clip, seed=session.experiment.seed)


def train_cprfl(session: TrainingSession, config: CprflConfig) -> Scorer:
    """Train encoder and category prompts together (Yan et al., "Category-Prompt Refined Feature Learning", MM 2024)."""
    experiment, classes = session.experiment, session.dataset.classes
    encoder = encoder_of(config, session.start.encoder, experiment.seed).requires_grad_(False)
    encoder.visual.requires_grad_(config.tune_encoder)
    names = ("width", "tau", "heads", "head_width", "initialise", "interact", "residual", "dropout")
    options: dict[str, Any] = {"seed": experiment.seed, **{name: getattr(config, name) for name in names}}
    head = CategoryPrompts(Cprfl(semantic_embeddings(session, config), encoder.embed_dim, **options))
    head.to(encoder.device)
    about: dict[str, Any] = {"method": config.label, "precision": config.precision, **selected(session)}

    def scorer() -> Scorer:
        return HeadScorer(encoder, classes, head, ("category prompts", options), **about)

    fit_encoder(session, config, encoder, head, head, scorer)
    return scorer()
