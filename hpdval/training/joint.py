"""Joint training, the paper's ablation of its two stages: encoder and prompts learn at once.

L = L_cls + kd_weight * L_kd + sc_weight * L_sc.  Views, epochs and schedule are those of stage 1; the encoder learns at
``stage1.lr`` and the contexts at ``stage2.lr``.
"""

from __future__ import annotations

import os
from typing import Any, cast

import numpy as np
import torch

from hpdval.config import Experiment
from hpdval.data.dataset import Dataset, Split
from hpdval.data.store import ImageStore
from hpdval.errors import ConfigError
from hpdval.models import Clip
from hpdval.models.numeric import autocast
from hpdval.models.prompts import hand_crafted
from hpdval.run import Run
from hpdval.scoring import DualViewScorer, clip_of, student_of
from hpdval.training.batches import Batch
from hpdval.training.loop import Task
from hpdval.training.objective import Objective, starting_objective, training_counts
from hpdval.training.session import TrainingSession, fit_stage, scorer_of, training_session
from hpdval.training.stage1 import DualViewAlignment, view_batches
from hpdval.training.stage2 import PromptTuning, consistency


class JointTraining(Task):
    """The task of joint training: that of stage 1 with the texts of stage 2 in its scores."""

    def __init__(self, alignment: DualViewAlignment, tuning: PromptTuning) -> None:
        super().__init__()
        self.alignment, self.tuning = alignment, tuning
        self.precision, self.compiled = alignment.precision, alignment.compiled

    @property
    def objective(self) -> Objective:
        """What both share."""
        return self.alignment.objective

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return AdamW's groups: encoder, contexts, and scale and bias, each once."""
        objective = {id(parameter) for parameter in self.objective.parameters()}
        contexts = [g for g in self.tuning.parameter_groups() if not any(id(p) in objective for p in g["params"])]
        return self.alignment.parameter_groups() + contexts

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return ``cls``, ``kd`` and ``sc`` of a batch with ``images`` (B, 3, S, S) uint8 and ``targets`` (B, C)."""
        first, second = self.alignment, self.tuning
        features, teacher_cls = first.features(batch)
        with autocast(second.text.device, first.config.precision):
            texts = second.texts()
        targets = batch["targets"].to(second.text.device, non_blocking=True)
        losses = {"cls": self.objective(features, texts["global"], texts["local"], targets)}
        if teacher_cls is not None:
            losses["kd"] = first.distillation(features, teacher_cls, len(targets))
        return losses | consistency(second.config, second.text, texts)


def train_joint(
    dataset: Dataset,
    experiment: Experiment | str = "scenes",
    *,
    run: Run | str | os.PathLike[str],
    clip: Clip | None = None,
    device: str = "auto",
    show: bool = True,
) -> DualViewScorer:
    """Train encoder and prompts at once and return the scorer; arguments and errors are those of ``train_stage1``.

    Raises:
        ConfigError: the text tower is to learn along, too; then the prompts have nothing to hold on to.
    """
    with training_session("joint", dataset, experiment, run, start=clip, device=device, show=show) as session:
        if session.done is None:
            session.conclude(_train(session))
        return cast(DualViewScorer, session.scorer)


def _train(session: TrainingSession) -> DualViewScorer:
    dataset, experiment, config = session.dataset, session.experiment, session.experiment.stage1
    if config.train_text:
        raise ConfigError("joint training keeps the text tower fixed; set stage1.train_text=false")
    clip = clip_of(session.start)
    student = student_of(experiment, clip)
    store = ImageStore.open(dataset.train, student.image_size, mode=experiment.resize)
    text = hand_crafted(student, dataset.classes, experiment.template)
    objective = starting_objective(config, experiment, dataset, student, text, store.images)
    tuning = PromptTuning(student, dataset.classes, text, objective, experiment, training_counts(dataset))
    task = JointTraining(DualViewAlignment(student, clip, dataset.classes, objective, experiment), tuning)

    def scorer() -> DualViewScorer:
        with torch.no_grad():
            texts = tuning.texts()
        about = {"contexts": tuning.prompts.named_contexts(), "method": "joint", "precision": config.precision}
        return scorer_of(session, student, texts["global"], texts["local"], **about)

    def score(split: Split) -> np.ndarray:
        return scorer().score(split, show=False)

    facts = fit_stage("joint", task, view_batches(store, dataset, experiment, clip), config, session, score)
    session.run.log(stage="joint", **facts, **objective.record(), context_shift=tuning.prompts.moved())
    student.requires_grad_(False)
    return scorer()
