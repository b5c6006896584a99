"""What both stages share: logits from scores, the classification loss, and where their pieces come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch
from torch import nn

from hpdval.config import Experiment, ScoreConfig, TrainingConfig
from hpdval.data.dataset import Dataset
from hpdval.losses import build_loss
from hpdval.metrics import evaluate
from hpdval.models import ImageFeatures
from hpdval.models.dual_view import LogitScale, dual_view_scores
from hpdval.scoring import Scorer

CENTRE_IMAGES = 512


class Objective(nn.Module):
    """L_cls of both stages: a multi-label loss on ``scale * scores + bias``, which belong to the objective alone."""

    def __init__(
        self, config: TrainingConfig, score: ScoreConfig, class_counts: torch.Tensor, n_train: int, mean_score: float
    ) -> None:
        super().__init__()
        self.score_config = asdict(score)
        self.loss = build_loss(config.loss, class_counts, n_train)
        bias = -config.scale * mean_score if config.bias is None else config.bias
        self.logits = LogitScale(config.scale, bias).requires_grad_(config.scale_lr > 0)

    def record(self) -> dict[str, float]:
        """Return scale and bias as they are now."""
        return {"scale": float(self.logits.log_scale.detach().exp()), "bias": float(self.logits.bias.detach())}

    def forward(
        self, features: ImageFeatures, text_global: torch.Tensor, text_local: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        """Return the scalar loss of features (B, D), (B, P, D), texts (C, D) and targets (B, C)."""
        scores = dual_view_scores(features.cls, features.patches, text_global, text_local, **self.score_config)
        loss: torch.Tensor = self.loss(self.logits(scores), targets)
        return loss


def centred(
    config: TrainingConfig, score: ScoreConfig, dataset: Dataset, start: Scorer, images: np.ndarray | ImageFeatures
) -> Objective:
    """Return the objective whose bias, where the config leaves it open, centres the starting logits on training images.

    Cosines of CLIP lie around 0.2 and would all begin as confident positives; the mean starting score of (a sample of)
    the training images is what the bias takes off.
    """
    mean = 0.0
    if config.bias is None:
        fixed = Scorer(start.clip, dataset.classes, start.text_global, start.text_local, score=score)
        if isinstance(images, ImageFeatures):
            sample = fixed.score_features(ImageFeatures(images.cls[:CENTRE_IMAGES], images.patches[:CENTRE_IMAGES]))
            mean = float(sample.double().mean())
        else:
            mean = float(fixed.score_array(images[:CENTRE_IMAGES], show=False).astype(np.float64).mean())
    counts = torch.from_numpy(dataset.train.targets.sum(0).astype(np.int64))
    return Objective(config, score, counts, len(dataset.train), mean)


def validation_map(
    dataset: Dataset, experiment: Experiment, scorer: Callable[[], Scorer]
) -> Callable[[], float] | None:
    """Return a function that gives the validation mAP in percent, or None without a validation split."""
    if len(dataset.val) == 0:
        return None

    def value() -> float:
        scores = scorer().score(dataset.val, show=False)
        return evaluate(scores, dataset.val.targets, dataset.class_counts, readout=experiment.readout).total

    return value
