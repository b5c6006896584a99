"""What all trainings share: logits from scores, the classification loss, and where their pieces come from."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import torch
from torch import nn

from hpdval.config import Experiment, ScoreConfig, TrainingConfig
from hpdval.data.dataset import Dataset
from hpdval.distributed import gather
from hpdval.losses import build_loss
from hpdval.models import Clip, ImageFeatures
from hpdval.models.dual_view import LogitScale, dual_view_scores
from hpdval.scoring import DualViewScorer, Features, Scorer

FIT_IMAGES = 512


class Objective(nn.Module):
    """L_cls: a multi-label loss on ``scale * scores + bias``, which belong to the objective alone."""

    def __init__(self, config: TrainingConfig, score: ScoreConfig, class_counts: torch.Tensor, n_train: int) -> None:
        super().__init__()
        self.score_config = asdict(score)
        self.loss = build_loss(config.loss, class_counts, n_train)
        self.logits = LogitScale(config.scale, config.bias or 0.0).requires_grad_(config.scale_lr > 0)

    def fit_bias(self, scores: torch.Tensor, targets: torch.Tensor) -> None:
        """Set the bias to where the loss of scores (N, C) is least, with the scale as it is."""
        bias = torch.tensor(-float(self.logits.log_scale.detach().exp() * scores.mean()), requires_grad=True)
        search = torch.optim.LBFGS([bias], max_iter=50, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            search.zero_grad()
            loss: torch.Tensor = self.loss(self.logits.log_scale.detach().exp() * scores + bias, targets)
            loss.backward()
            return loss

        search.step(closure)
        with torch.no_grad():
            self.logits.bias.copy_(bias)

    def record(self) -> dict[str, float]:
        """Return scale and bias as they are now."""
        return {"scale": float(self.logits.log_scale.detach().exp()), "bias": float(self.logits.bias.detach())}

    def forward(
        self, features: ImageFeatures, text_global: torch.Tensor, text_local: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        """Return the scalar loss of features (B, D), (B, P, D), texts (C, D) and targets (B, C).

        Of several processes each has the features of its share of the batch, and the targets of the whole.
        """
        scores = dual_view_scores(features.cls, features.patches, text_global, text_local, **self.score_config)
        return self.of_scores(scores, targets)

    def of_scores(self, scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the scalar loss of scores (B, C), of this process's share of the batch, and all targets (B, C)."""
        loss: torch.Tensor = self.loss(self.logits(gather(scores, len(targets))), targets)
        return loss


def training_counts(dataset: Dataset) -> torch.Tensor:
    """Return n_i, the positives of each class in the part trained on, (C,) int64."""
    return torch.from_numpy(dataset.train.targets.sum(0).astype(np.int64))


def starting_objective(
    config: TrainingConfig,
    experiment: Experiment,
    dataset: Dataset,
    clip: Clip,
    text: torch.Tensor,
    images: np.ndarray | Features,
) -> Objective:
    """Return :func:`fitted_objective` for dual-view scores that start with T_H (C, D), ``text``."""
    fixed = DualViewScorer(clip, dataset.classes, text, score=experiment.score, precision=config.precision)
    return fitted_objective(config, experiment, dataset, fixed, images)


def fitted_objective(
    config: TrainingConfig, experiment: Experiment, dataset: Dataset, start: Scorer, images: np.ndarray | Features
) -> Objective:
    """Return the objective; its bias, where the config leaves it open, fits the starting scores of training images.

    Cosines of CLIP lie around 0.2, so without a bias every pair would begin as a confident positive, and the first
    updates would bend encoder or prompts only to mend that.

    Args:
        config: of the stage.
        start: gives the scores before the first update.
        images: the training images as the store keeps them (N, S, S, 3), or their features; a sample is used.
    """
    targets = dataset.train.targets
    objective = Objective(config, experiment.score, torch.from_numpy(targets.sum(0).astype(np.int64)), len(targets))
    if config.bias is None:
        sample = np.sort(np.random.default_rng(experiment.seed).permutation(len(targets))[:FIT_IMAGES])
        if isinstance(images, np.ndarray):
            scores = torch.from_numpy(start.score_array(images[sample], show=False))
        else:
            scores = start.score_features(images[sample]).cpu()
        objective.fit_bias(scores, torch.from_numpy(targets[sample]))
    return objective.to(start.encoder.device)
