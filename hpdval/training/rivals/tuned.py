"""What rivals share whose encoder learns: augmented views, an encoder, a head, one loss.

Letters: B images, C classes, S pixels of a side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from hpdval.data.dataset import Split
from hpdval.data.store import ImageStore
from hpdval.models import Encoder
from hpdval.models.numeric import image_encoder
from hpdval.rival_configs import TunedConfig
from hpdval.scoring import Scorer
from hpdval.training.batches import Batch
from hpdval.training.loop import Task
from hpdval.training.objective import Objective, fitted_objective
from hpdval.training.optim import parameter_groups
from hpdval.training.rivals.frozen import ScoresOf
from hpdval.training.sampling import draw_for
from hpdval.training.session import TrainingSession, fit_stage
from hpdval.training.views import ViewBatches


class EncoderTask(Task):
    """Encoder and head learn on views; of the encoder, what requires a gradient when the task is made."""

    def __init__(
        self, encoder: Encoder, head: nn.Module, scores: ScoresOf, objective: Objective, config: TunedConfig
    ) -> None:
        super().__init__()
        self.config, self.encoder, self.head, self.objective, self.scores = config, encoder, head, objective, scores
        self.precision, self.stochastic = config.precision, getattr(config, "stochastic", False)
        self.encode = image_encoder(encoder.visual, config.precision)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the groups of encoder and head at ``lr``, scale and bias at ``scale_lr``."""
        options = {"lr": self.config.lr, "weight_decay": self.config.weight_decay}
        own = parameter_groups(self.encoder, **options) + parameter_groups(self.head, **options)
        return own + parameter_groups(self.objective, lr=self.config.scale_lr, weight_decay=0.0)

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return ``cls`` of a batch with ``images`` (B, 3, S, S) uint8 and ``targets`` (B, C)."""
        device = self.encoder.device
        with parametrize.cached():  # an attention reads its weights several times; LoRA adds up its update once
            features = self.encode(self.encoder.normalise(batch["images"].to(device, non_blocking=True)))
        targets = batch["targets"].to(device, non_blocking=True)
        return {"cls": self.objective.of_scores(self.scores(features), targets)}


def fit_encoder(
    session: TrainingSession,
    config: TunedConfig,
    encoder: Encoder,
    head: nn.Module,
    scores: ScoresOf,
    scorer: Callable[[], Scorer],
) -> None:
    """Train encoder and head in place.

    Args:
        encoder: what of it learns requires a gradient.
        scores: what the head makes of features while it learns, (B, C).
        scorer: gives the scorer of encoder and head as they are now.
    """
    dataset, experiment = session.dataset, session.experiment
    store = ImageStore.open(dataset.train, encoder.image_size, mode=experiment.resize)
    objective = fitted_objective(config, experiment, dataset, scorer(), store.images)
    task = EncoderTask(encoder, head, scores, objective, config)
    options: dict[str, Any] = {"seed": experiment.seed, "device": encoder.device, "workers": config.workers}

    def score(split: Split) -> np.ndarray:
        return scorer().score(split, show=False)

    views = ViewBatches(store, dataset, config.augment, draw=draw_for(config, dataset.train.targets), **options)
    how = fit_stage(config.kind, task, views, config, session, score)
    session.run.log(stage=config.kind, **how, **objective.record())
    encoder.requires_grad_(False)
