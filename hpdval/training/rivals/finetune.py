"""Full fine-tuning and LoRA: the image tower learns under a classifier, or under the fixed texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hpdval.config import ScoreConfig
from hpdval.models import ImageFeatures
from hpdval.models.heads import Classifier
from hpdval.models.lora import add_lora, merge_lora
from hpdval.models.prompts import hand_crafted
from hpdval.rival_configs import FineTuneConfig
from hpdval.scoring import HeadScorer, Scorer, clip_of, encoder_of
from hpdval.training.rivals.coop import cosines
from hpdval.training.rivals.tuned import fit_encoder
from hpdval.training.session import TrainingSession, scorer_of, selected


def train_finetune(session: TrainingSession, config: FineTuneConfig) -> Scorer:
    """Fine-tune the image tower, whole or by low-rank updates, which are added to its weights at the end."""
    experiment, classes = session.experiment, session.dataset.classes
    encoder = encoder_of(config, session.start.encoder, experiment.seed).requires_grad_(False)
    if config.rank:
        add_lora(encoder.visual, config.rank, scale=config.lora_scale, seed=experiment.seed)
    else:
        encoder.visual.requires_grad_(True)
    about: dict[str, Any] = {"method": config.label, "precision": config.precision}
    head: nn.Module
    scores: Callable[[ImageFeatures], torch.Tensor]
    if config.head == "text":
        clip = clip_of(session.start)
        text = hand_crafted(clip, classes, experiment.template)
        head, own = nn.Identity(), type(clip)

        def scores(features: ImageFeatures) -> torch.Tensor:
            return cosines(features, text)

        def scorer() -> Scorer:
            assert isinstance(encoder, own)
            return scorer_of(session, encoder, text, score=ScoreConfig(alpha=1.0), **about)

    else:
        options = {"seed": experiment.seed}
        head = scores = classifier = Classifier(encoder.embed_dim, len(classes), **options).to(encoder.device)
        if config.backbone is None:
            classifier.start_from(hand_crafted(clip_of(session.start), classes, experiment.template))

        def scorer() -> Scorer:
            return HeadScorer(encoder, classes, classifier, ("classifier", options), **about, **selected(session))

    fit_encoder(session, config, encoder, head, scores, scorer)
    if config.rank:
        merge_lora(encoder.visual)
    return scorer()
