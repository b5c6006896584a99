"""Stage 1, dual-view alignment learning (HP-DVAL section III-B): the ViT learns, the texts stay.

L1 = L_cls + kd_weight * L_kd on augmented views; the teacher is a separate, frozen copy of the model that started.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from hpdval.config import AugmentConfig, Experiment
from hpdval.data.augment import augment
from hpdval.data.dataset import Dataset
from hpdval.data.store import ImageStore
from hpdval.models import Clip
from hpdval.models.numeric import autocast
from hpdval.models.prompts import hand_crafted
from hpdval.run import Run
from hpdval.scoring import Scorer
from hpdval.training.batches import Batch
from hpdval.training.loop import Task, fit
from hpdval.training.objective import Objective, starting_objective, validation_map
from hpdval.training.optim import parameter_groups
from hpdval.training.session import training_session


def distillation_loss(student_cls: torch.Tensor, teacher_cls: torch.Tensor) -> torch.Tensor:
    """L_kd: mean absolute difference of class tokens (B, D), not normalised (HP-DVAL eq. 2 and 16).

    >>> distillation_loss(torch.zeros(2, 3), torch.ones(2, 3))
    tensor(1.)
    """
    return (student_cls.float() - teacher_cls.float()).abs().mean()


class DualViewAlignment(Task):
    """The task of stage 1: everything but the visual encoder, and the objective's scale and bias, is frozen."""

    text: torch.Tensor  # T_H (C, D)

    def __init__(self, clip: Clip, text: torch.Tensor, objective: Objective, experiment: Experiment) -> None:
        super().__init__()
        self.config = experiment.stage1
        self.teacher = copy.deepcopy(clip).requires_grad_(False) if self.config.kd_weight else None
        self.student = clip.requires_grad_(False)
        for parameter in clip.visual.parameters():
            parameter.requires_grad_(True)
        self.objective = objective
        self.register_buffer("text", text)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return AdamW's groups: the encoder's at ``lr``, scale and bias at ``scale_lr``."""
        encoder = parameter_groups(self.student, lr=self.config.lr, weight_decay=self.config.weight_decay)
        return encoder + parameter_groups(self.objective, lr=self.config.scale_lr, weight_decay=0.0)

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return ``cls`` and ``kd`` of a batch with ``images`` (B, 3, S, S) uint8 and ``targets`` (B, C)."""
        device = self.text.device
        images = self.student.normalise(batch["images"].to(device))
        with autocast(device, self.config.precision):
            features = self.student.encode_image(images)
        losses = {"cls": self.objective(features, self.text, self.text, batch["targets"].to(device))}
        if self.teacher is not None:
            with torch.no_grad(), autocast(device, self.config.precision):
                teacher_cls = self.teacher.encode_image(images).cls
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
            session.conclude(_train(session.dataset, session.experiment, session.run, session.start, show))
        return session.scorer


def _train(dataset: Dataset, experiment: Experiment, run: Run, start: Scorer, show: bool) -> Scorer:
    clip = copy.deepcopy(start.clip)
    text = hand_crafted(clip, dataset.classes, experiment.template)
    store = ImageStore.open(dataset.train, clip.image_size, mode=experiment.resize)
    objective = starting_objective(experiment.stage1, experiment, dataset, clip, text, store.images)
    task = DualViewAlignment(clip, text, objective, experiment)

    def scorer() -> Scorer:
        return Scorer(
            clip,
            dataset.classes,
            text,
            score=experiment.score,
            resize=experiment.resize,
            template=experiment.template,
            method="stage 1",
            precision=experiment.stage1.precision,
        )

    fit(
        task,
        ViewBatches(store, dataset, experiment),
        experiment.stage1,
        run,
        stage="stage1",
        n_images=len(dataset.train),
        seed=experiment.seed,
        validate=validation_map(dataset, experiment, scorer),
        keep_best=experiment.selection == "validation",
        show=show,
    )
    run.log(stage="stage1", **objective.record())
    clip.requires_grad_(False)
    return scorer()
