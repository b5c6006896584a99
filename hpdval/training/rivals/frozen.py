"""What rivals on a frozen encoder share: a head learns on features that were encoded once.

Letters: B images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from hpdval.config import TrainingConfig
from hpdval.data.dataset import Split
from hpdval.models import Encoder, ImageFeatures
from hpdval.rival_configs import FrozenConfig
from hpdval.scoring import Scorer
from hpdval.training.batches import Batch
from hpdval.training.features import FeatureBatches, FrozenFeatures
from hpdval.training.loop import Task
from hpdval.training.objective import Objective, fitted_objective
from hpdval.training.optim import parameter_groups
from hpdval.training.session import TrainingSession, fit_stage

ScoresOf = Callable[[ImageFeatures], torch.Tensor]  # features to scores (B, C), with gradients


class HeadTask(Task):
    """A head learns; the encoder, whose text tower it may need, is fixed.

    Args:
        scores: what the head makes of features, (B, C).
    """

    def __init__(
        self, head: nn.Module, encoder: Encoder, scores: ScoresOf, objective: Objective, config: TrainingConfig
    ) -> None:
        super().__init__()
        self.config, self.head, self.objective = config, head, objective
        self.encoder = encoder.requires_grad_(False)
        self.scores = scores

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the groups of the head at ``lr``, scale and bias at ``scale_lr``."""
        own = parameter_groups(self.head, lr=self.config.lr, weight_decay=self.config.weight_decay)
        return own + parameter_groups(self.objective, lr=self.config.scale_lr, weight_decay=0.0)

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return ``cls`` of a batch with ``features`` and ``targets`` (B, C)."""
        return {"cls": self.objective.of_scores(self.scores(batch["features"]), batch["targets"])}


def fit_head(
    session: TrainingSession,
    config: FrozenConfig,
    head: nn.Module,
    scores: ScoresOf,
    scorer: Callable[[], Scorer],
    *,
    task: Callable[..., HeadTask] = HeadTask,
    more: Mapping[str, torch.Tensor] | None = None,
    facts: Callable[[], Mapping[str, Any]] = dict,
) -> Scorer:
    """Train a head on the features of the session's encoder, and return the scorer of its result.

    Args:
        scores: what the head makes of features while it learns, (B, C).
        scorer: gives the scorer of the head as it is now.
        task: makes the task; what a rival adds to the loss is there.
        more: of :class:`FeatureBatches`.
        facts: what else the run's log is to hold at the end.
    """
    dataset, experiment, encoder = session.dataset, session.experiment, session.start.encoder
    frozen = FrozenFeatures(encoder, session, precision=config.precision, dtype=config.features)
    features = frozen.of(dataset.train, show=session.show)
    objective = fitted_objective(config, experiment, dataset, scorer(), features)
    learning = task(head, encoder, scores, objective, config)

    def now() -> Scorer:
        result = scorer()
        result.share_encoder_of(session.start)
        return result

    def score(split: Split) -> np.ndarray:
        return frozen.scores(now(), split)

    how = fit_stage(config.kind, learning, FeatureBatches(features, dataset, more), config, session, score)
    session.run.log(stage=config.kind, **how, **objective.record(), **facts())
    return now()
