"""Rivals that train nothing: the prompt ensemble, and k nearest neighbours."""

from __future__ import annotations

from typing import Any

import torch

from hpdval.config import ScoreConfig
from hpdval.models.heads import NearestNeighbours
from hpdval.models.prompts import TEMPLATE_SETS, ensemble
from hpdval.rival_configs import EnsembleConfig, NeighboursConfig
from hpdval.scoring import DualViewScorer, HeadScorer, Scorer, clip_of
from hpdval.scoring.scorer import NOTHING_TRAINED
from hpdval.training.features import FrozenFeatures
from hpdval.training.session import TrainingSession, scorer_of


def prompt_ensemble(session: TrainingSession, config: EnsembleConfig) -> DualViewScorer:
    """Return CLIP's global view with the mean embedding of many templates."""
    clip = clip_of(session.start)
    text = ensemble(clip, session.dataset.classes, TEMPLATE_SETS[config.templates])
    about: dict[str, Any] = {"method": config.label, "precision": config.precision, "selection": NOTHING_TRAINED}
    scorer = scorer_of(session, clip, text, score=ScoreConfig(alpha=1.0), **about)
    scorer.share_encoder_of(session.start)
    return scorer


def nearest_neighbours(session: TrainingSession, config: NeighboursConfig) -> Scorer:
    """Return the vote of the nearest training images, by the features of the session's encoder."""
    dataset, encoder = session.dataset, session.start.encoder
    frozen = FrozenFeatures(encoder, session, precision=config.precision, dtype=config.features)
    bank = torch.cat([part.cls for part in frozen.of(dataset.train, show=session.show).batches()])
    options: dict[str, Any] = {"k": config.k, "temperature": config.temperature}
    head = NearestNeighbours(bank, torch.from_numpy(dataset.train.targets).to(bank.device), **options)
    about: dict[str, Any] = {"resize": session.experiment.resize, "method": config.label, "selection": NOTHING_TRAINED}
    scorer = HeadScorer(encoder, dataset.classes, head, ("neighbours", options), precision=config.precision, **about)
    scorer.share_encoder_of(session.start)
    return scorer
