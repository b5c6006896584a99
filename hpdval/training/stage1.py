"""Stage 1, dual-view alignment learning (HP-DVAL section III-B): the ViT learns, the texts stay.

L1 = L_cls + kd_weight * L_kd on augmented views; the teacher is a separate, frozen CLIP.  In the released reading the
text tower learns along, and the teacher is the student itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from hpdval.config import AugmentConfig, Experiment
from hpdval.data.augment import augment
from hpdval.data.dataset import Dataset, Split
from hpdval.data.store import ImageStore
from hpdval.distributed import gather, share
from hpdval.models import Clip, ImageFeatures
from hpdval.models.numeric import autocast, image_encoder
from hpdval.models.prompts import class_prompts, hand_crafted
from hpdval.run import Run
from hpdval.scoring import Scorer, encode, student_of
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


class _Views(TorchDataset[Any]):
    """Augmented views of one epoch; a view depends on (seed, epoch, image) and on nothing else."""

    def __init__(self, store: ImageStore, epoch: int, seed: int, config: AugmentConfig) -> None:
        self.store, self.epoch, self.seed, self.config = store, epoch, seed, config

    def __getitem__(self, index: int) -> torch.Tensor:
        image = torch.from_numpy(np.array(self.store.images[index])).permute(2, 0, 1)  # (3, S, S)
        return augment(image, seed=self.seed, epoch=self.epoch, index=int(index), config=self.config)


class ViewBatches:
    """Batches of augmented views (B, 3, S, S) uint8, their targets (B, C) float32 and ids.

    Of several processes each draws the views of its share alone; targets and ids are those of the whole batch.

    On CUDA without workers the images stay on the device and views are drawn there; otherwise views are drawn on the
    CPU, by ``workers`` processes if there are any, and cross over from pinned memory.
    """

    def __init__(self, store: ImageStore, dataset: Dataset, experiment: Experiment, teacher: Clip) -> None:
        self.store, self.ids, self.experiment = store, dataset.train.ids, experiment
        self.targets = torch.from_numpy(dataset.train.targets.astype(np.float32))
        config, device = experiment.stage1, teacher.device
        resident = device.type == "cuda" and config.workers == 0
        resident = (
            resident and store.images.nbytes < torch.cuda.mem_get_info(device)[0] // 4
        )  # the rest is for training
        self.images = torch.from_numpy(np.array(store.images)).to(device) if resident else None  # (N, S, S, 3)
        self.pinned = device.type == "cuda"
        self.teacher: torch.Tensor | None = None  # (N, D), where views never change
        asked = config.kd_weight and config.teacher == "separate"
        if asked and not (config.augment.flip or config.augment.randaugment_ops or config.augment.cutout):
            options: dict[str, Any] = {"precision": config.precision, "description": "teacher", "show": False}
            own = encode(teacher, store.images[share(len(store))], **options)
            self.teacher = gather(torch.cat([part.cls for part in own]), len(store))

    def __call__(self, indices: Sequence[np.ndarray], epoch: int) -> Iterator[Batch]:
        """Yield one batch for each array of image indices."""
        own = [chosen[share(len(chosen))] for chosen in indices]
        for chosen, images in zip(indices, self._views(own, epoch), strict=True):
            batch = {"images": images, "targets": self.targets[chosen], "ids": [self.ids[i] for i in chosen]}
            if self.teacher is not None:
                batch["teacher"] = self.teacher[torch.from_numpy(chosen).to(self.teacher.device)]
            yield batch

    def _views(self, indices: Sequence[np.ndarray], epoch: int) -> Iterable[torch.Tensor]:
        config, seed = self.experiment.stage1, self.experiment.seed
        if self.images is None:
            views = _Views(self.store, epoch, seed, config.augment)
            options: dict[str, Any] = {"num_workers": config.workers, "pin_memory": self.pinned}
            return DataLoader(views, batch_sampler=[batch.tolist() for batch in indices], **options)
        resident = self.images.permute(0, 3, 1, 2)  # (N, 3, S, S)
        return (
            torch.stack([augment(resident[i], seed=seed, epoch=epoch, index=int(i), config=config.augment) for i in b])
            for b in indices
        )


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
        clip: the model to start from; its weights are left as they were, but it is moved to the device and frozen.  By
            default what the experiment names.

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

    facts = fit_stage(
        "stage1", task, ViewBatches(store, dataset, experiment, session.start.clip), config, session, score
    )
    session.run.log(stage="stage1", **facts, **objective.record())
    student.requires_grad_(False)
    return scorer()
