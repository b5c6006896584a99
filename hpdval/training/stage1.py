"""Stage 1, dual-view alignment learning (HP-DVAL section III-B): the ViT learns, the texts stay.

L1 = L_cls + kd_weight * L_kd on augmented views; the teacher is a separate, frozen CLIP.  In the released reading the
text tower learns along, and the teacher is the student itself.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch

from hpdval.config import Experiment
from hpdval.data.dataset import Dataset, Split
from hpdval.data.store import ImageStore
from hpdval.distributed import gather, share
from hpdval.models import Clip, ImageFeatures
from hpdval.models.numeric import autocast, image_encoder
from hpdval.models.prompts import class_prompts, hand_crafted
from hpdval.run import Run
from hpdval.scoring import DualViewScorer, clip_of, encode, student_of
from hpdval.training.batches import Batch
from hpdval.training.loop import Task
from hpdval.training.objective import Objective, starting_objective
from hpdval.training.optim import parameter_groups
from hpdval.training.sampling import draw_for
from hpdval.training.session import TrainingSession, fit_stage, scorer_of, training_session
from hpdval.training.views import ViewBatches


def distillation_loss(student_cls: torch.Tensor, teacher_cls: torch.Tensor) -> torch.Tensor:
    """L_kd: mean absolute difference of class tokens (B, D), not normalised (HP-DVAL eq. 2 and 16).

    >>> distillation_loss(torch.zeros(2, 3), torch.ones(2, 3))
    tensor(1.)
    """
    return (student_cls.float() - teacher_cls.float()).abs().mean()


class DualViewAlignment(Task):
    """The task of stage 1: the student's visual encoder learns, and its text tower where the config says so.

    Each model normalises the view with its own mean and standard deviation.
    """

    text: torch.Tensor  # T_H (C, D)

    def __init__(
        self, student: Clip, teacher: Clip, classes: Sequence[str], objective: Objective, experiment: Experiment
    ) -> None:
        super().__init__()
        self.config, self.classes, self.template = experiment.stage1, tuple(classes), experiment.template
        self.precision, self.compiled = self.config.precision, self.config.compile
        self.student = student.requires_grad_(False)
        student.visual.requires_grad_(True)
        for parameter in student.text_parameters if self.config.train_text else ():
            parameter.requires_grad_(True)
        apart = self.config.kd_weight and self.config.teacher == "separate"
        self.teacher = teacher.requires_grad_(False) if apart else None
        self.encode = image_encoder(student.visual, self.precision, compiled=self.compiled)
        if self.teacher is not None:
            self.encode_teacher = image_encoder(teacher.visual, self.precision, compiled=self.compiled)
        self.objective = objective
        self.register_buffer("text", hand_crafted(student, classes, experiment.template))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return AdamW's groups: the encoder's at ``lr``, scale and bias at ``scale_lr``."""
        encoder = parameter_groups(self.student, lr=self.config.lr, weight_decay=self.config.weight_decay)
        return encoder + parameter_groups(self.objective, lr=self.config.scale_lr, weight_decay=0.0)

    def texts(self) -> torch.Tensor:
        """Return T_H (C, D): fixed, or as the text tower gives it now where that learns, too."""
        if not self.config.train_text:
            return self.text
        return self.student.encode_text(class_prompts(self.classes, self.template))

    def features(self, batch: Batch) -> tuple[ImageFeatures, torch.Tensor | None]:
        """Return the student's features of this process's views, and the teacher's f_cls of the same if L_kd counts."""
        views = batch["images"].to(self.text.device, non_blocking=True)
        features = self.encode(self.student.normalise(views))
        if not self.config.kd_weight:
            return features, None
        if self.teacher is None:
            return features, features.cls.detach()
        if "teacher" in batch:  # the views never change, so that it was asked once
            return features, batch["teacher"][share(len(batch["teacher"]))]
        with torch.no_grad():
            return features, self.encode_teacher(self.teacher.normalise(views)).cls

    def distillation(self, features: ImageFeatures, teacher_cls: torch.Tensor, n: int) -> torch.Tensor:
        """Return L_kd, weighted, of the n images of the whole batch."""
        student, teacher = (gather(cls.float(), n) for cls in (features.cls, teacher_cls))
        return self.config.kd_weight * distillation_loss(student, teacher)

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return ``cls`` and ``kd`` of a batch with ``images`` (B, 3, S, S) uint8 and ``targets`` (B, C).

        Of several processes each has its share of the images, and all targets.
        """
        features, teacher_cls = self.features(batch)
        with autocast(self.text.device, self.config.precision):
            text = self.texts()
        targets = batch["targets"].to(self.text.device, non_blocking=True)
        losses = {"cls": self.objective(features, text, text, targets)}
        if teacher_cls is not None:
            losses["kd"] = self.distillation(features, teacher_cls, len(targets))
        return losses


def view_batches(store: ImageStore, dataset: Dataset, experiment: Experiment, teacher: Clip) -> ViewBatches:
    """Return the views of stage 1; a teacher is asked once where the views never change."""
    config, known = experiment.stage1, None
    asked = config.kd_weight and config.teacher == "separate"
    if asked and not (config.augment.flip or config.augment.randaugment_ops or config.augment.cutout):
        options: dict[str, Any] = {"precision": config.precision, "description": "teacher", "show": False}
        own = encode(teacher, store.images[share(len(store))], **options)
        known = gather(torch.cat([part.cls for part in own]), len(store))
    options = {"seed": experiment.seed, "device": teacher.device, "workers": config.workers}
    draw = draw_for(config, dataset.train.targets)
    return ViewBatches(store, dataset, config.augment, teacher=known, draw=draw, **options)


def train_stage1(
    dataset: Dataset,
    experiment: Experiment | str = "scenes",
    *,
    run: Run | str | os.PathLike[str],
    clip: Clip | None = None,
    device: str = "auto",
    show: bool = True,
) -> DualViewScorer:
    """Train the visual encoder by dual-view alignment and return its scorer.

    Args:
        experiment: a recipe's name or an experiment.
        run: a folder, which is then trained, evaluated on the test split and finished (and merely loaded when it
            already is), or an open :class:`Run`, which the caller finishes.
        clip: the model to start from; its weights are left as they were, but it is moved to the device and frozen.  By
            default what the experiment names.

    Raises:
        RunError: the folder is in use or holds another run.
        NonFiniteLossError: the loss became NaN or infinite; nothing was updated from it.
    """
    with training_session("stage1", dataset, experiment, run, start=clip, device=device, show=show) as session:
        if session.done is None:
            session.conclude(_train(session))
        return cast(DualViewScorer, session.scorer)


def _train(session: TrainingSession) -> DualViewScorer:
    dataset, experiment, config = session.dataset, session.experiment, session.experiment.stage1
    clip = clip_of(session.start)
    student = student_of(experiment, clip)
    store = ImageStore.open(dataset.train, student.image_size, mode=experiment.resize)
    text = hand_crafted(student, dataset.classes, experiment.template)
    objective = starting_objective(config, experiment, dataset, student, text, store.images)
    task = DualViewAlignment(student, clip, dataset.classes, objective, experiment)

    def scorer() -> DualViewScorer:
        with torch.no_grad():
            texts = task.texts()
        return scorer_of(session, student, texts, method="stage 1", precision=config.precision)

    def score(split: Split) -> np.ndarray:
        return scorer().score(split, show=False)

    facts = fit_stage("stage1", task, view_batches(store, dataset, experiment, clip), config, session, score)
    session.run.log(stage="stage1", **facts, **objective.record())
    student.requires_grad_(False)
    return scorer()
