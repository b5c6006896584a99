"""Stage 1, dual-view alignment learning (HP-DVAL section III-B): the ViT learns, the texts stay.

L1 = L_cls + kd_weight * L_kd on augmented views; the teacher is a separate, frozen CLIP.  In the released reading the
text tower learns along, and the teacher is the student itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from hpdval.config import AugmentConfig, Experiment
from hpdval.data.augment import augment
from hpdval.data.dataset import Dataset, Split
from hpdval.data.store import ImageStore
from hpdval.models import Clip, ImageFeatures
from hpdval.models.numeric import autocast
from hpdval.models.prompts import class_prompts, hand_crafted
from hpdval.run import Run
from hpdval.scoring import Scorer, student_of
from hpdval.training.batches import Batch
from hpdval.training.loop import Task
from hpdval.training.objective import Objective, starting_objective
from hpdval.training.optim import parameter_groups
from hpdval.training.session import TrainingSession, fit_stage, scorer_of, training_session


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
        self.student = student.requires_grad_(False)
        student.visual.requires_grad_(True)
        for parameter in student.text_parameters if self.config.train_text else ():
            parameter.requires_grad_(True)
        apart = self.config.kd_weight and self.config.teacher == "separate"
        self.teacher = teacher.requires_grad_(False) if apart else None
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

    def features(self, images: torch.Tensor) -> tuple[ImageFeatures, torch.Tensor | None]:
        """Return the student's features, and the teacher's f_cls (B, D) if L_kd counts, of views (B, 3, S, S) uint8."""
        images = images.to(self.text.device)
        with autocast(images.device, self.config.precision):
            features = self.student.encode_image(images)
            if not self.config.kd_weight:
                return features, None
            if self.teacher is None:
                return features, features.cls.detach()
            with torch.no_grad():
                return features, self.teacher.encode_image(images).cls

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return ``cls`` and ``kd`` of a batch with ``images`` (B, 3, S, S) uint8 and ``targets`` (B, C)."""
        features, teacher_cls = self.features(batch["images"])
        with autocast(self.text.device, self.config.precision):
            text = self.texts()
        losses = {"cls": self.objective(features, text, text, batch["targets"].to(self.text.device))}
        if teacher_cls is not None:
            losses["kd"] = self.config.kd_weight * distillation_loss(features.cls, teacher_cls)
        return losses


class _Views(TorchDataset[Any]):
    """Augmented views of one epoch; a view depends on (seed, epoch, image) and on nothing else."""

    def __init__(self, store: ImageStore, epoch: int, seed: int, config: AugmentConfig) -> None:
        self.store, self.epoch, self.seed, self.config = store, epoch, seed, config

    def __getitem__(self, index: int) -> torch.Tensor:
        image = torch.from_numpy(np.array(self.store.images[index])).permute(2, 0, 1)  # (3, S, S)
        return augment(image, seed=self.seed, epoch=self.epoch, index=int(index), config=self.config)


class ViewBatches:
    """Batches of augmented views, their targets (B, C) float32 and ids."""

    def __init__(self, store: ImageStore, dataset: Dataset, experiment: Experiment) -> None:
        self.store, self.train, self.experiment = store, dataset.train, experiment
        self.targets = torch.from_numpy(dataset.train.targets.astype(np.float32))

    def __call__(self, indices: Sequence[np.ndarray], epoch: int) -> Iterator[Batch]:
        """Yield one batch for each array of image indices."""
        config = self.experiment.stage1
        views = _Views(self.store, epoch, self.experiment.seed, config.augment)
        lists = [batch.tolist() for batch in indices]
        loader = DataLoader(views, batch_sampler=lists, num_workers=config.workers)  # type: ignore[arg-type]
        for batch, images in zip(indices, loader, strict=True):
            yield {"images": images, "targets": self.targets[batch], "ids": [self.train.ids[i] for i in batch]}


def train_stage1(
    dataset: Dataset,
    experiment: Experiment | str = "scenes",
    *,
    run: Run | str | os.PathLike[str],
    clip: Clip | None = None,
    device: str = "auto",
    show: bool = True,
) -> Scorer:
    """Train the visual encoder by dual-view alignment and return its scorer.

    Args:
        experiment: a recipe's name or an experiment.
        run: a folder, which is then trained, evaluated on the test split and finished (and merely loaded when it
            already is), or an open :class:`Run`, which the caller finishes.
        clip: the model to start from; its weights are left as they were, but it is moved to the device.  By default
            what the experiment names.

    Raises:
        RunError: the folder is in use or holds another run.
        NonFiniteLossError: the loss became NaN or infinite; nothing was updated from it.
    """
    with training_session("stage1", dataset, experiment, run, start=clip, device=device, show=show) as session:
        if session.done is None:
            session.conclude(_train(session))
        return session.scorer


def _train(session: TrainingSession) -> Scorer:
    dataset, experiment, config = session.dataset, session.experiment, session.experiment.stage1
    student = student_of(experiment, session.start.clip)
    store = ImageStore.open(dataset.train, student.image_size, mode=experiment.resize)
    text = hand_crafted(student, dataset.classes, experiment.template)
    objective = starting_objective(config, experiment, dataset, student, text, store.images)
    task = DualViewAlignment(student, session.start.clip, dataset.classes, objective, experiment)

    def scorer() -> Scorer:
        with torch.no_grad():
            texts = task.texts()
        return scorer_of(session, student, texts, method="stage 1", precision=config.precision)

    def score(split: Split) -> np.ndarray:
        return scorer().score(split, show=False)

    fit_stage("stage1", task, ViewBatches(store, dataset, experiment), config, session, score)
    session.run.log(stage="stage1", **objective.record())
    student.requires_grad_(False)
    return scorer()
