"""All stages that an experiment names, one run folder each: ``hpdval.train``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpdval.config import Experiment
from hpdval.data.dataset import Dataset
from hpdval.distributed import join, rank, same_error
from hpdval.losses import build_loss
from hpdval.models import Clip, load_clip
from hpdval.models.numeric import resolve_device
from hpdval.models.prompts import context_init
from hpdval.recipes import get_recipe
from hpdval.scoring import open_run, report_run, shared_folder, zero_shot_scorer
from hpdval.training.joint import train_joint
from hpdval.training.rivals import check_rival, train_rival
from hpdval.training.stage1 import train_stage1
from hpdval.training.stage2 import train_stage2


def run_folders(run: str | os.PathLike[str], experiment: Experiment) -> dict[str, Path]:
    """Return where :func:`train` puts the run of each method, in the order in which they are made."""
    if experiment.rival is not None:
        return {"zero-shot": Path(run) / "zero-shot", experiment.rival.label: Path(run) / experiment.rival.kind}
    return {method: Path(run) / method.replace(" ", "") for method in ("zero-shot", *experiment.methods)}


def train(
    dataset: Dataset,
    experiment: Experiment | str = "scenes",
    *,
    run: str | os.PathLike[str],
    shared: str | os.PathLike[str] | None = None,
    clip: Clip | None = None,
    device: str = "auto",
    show: bool = True,
) -> dict[str, Path]:
    """Run zero-shot and every stage of the experiment, and return the folder of each finished run by its method.

    ``experiment.stages`` says which: ``sequence`` (stage 1, and stage 2 on its encoder), ``separate`` (both from CLIP,
    as the released scripts do), ``stage1``, ``stage2``, ``joint``, or ``rival``, another method.  What is finished
    below ``run`` is skipped, what was interrupted continues.

    Args:
        run: the folder below which ``zero-shot``, ``stage1``, ``stage2``, ``joint`` or the rival's are made.
        shared: a folder for the runs of zero-shot and stage 1, each under its key, which experiments that agree in all
            that they depend on share; None keeps them below ``run``.
        clip: the model to start from; by default what the experiment names.

    Raises:
        RunError: a folder is in use or holds another run.
        NonFiniteLossError: the loss became NaN or infinite; nothing was updated from it.
    """
    experiment = get_recipe(experiment) if isinstance(experiment, str) else experiment
    join(device)
    show = show and rank() == 0
    runs, stages = run_folders(run, experiment), experiment.stages
    where = str(resolve_device(device))
    clip = (clip or load_clip(experiment.clip, pretrained=experiment.pretrained, device=where)).to(where)
    check_experiment(dataset, experiment, clip)
    prompts: dict[str, Any] = {"template": experiment.template, "resize": experiment.resize}
    plain = zero_shot_scorer(clip, dataset.classes, **prompts)
    if shared is not None:
        with same_error():
            runs["zero-shot"] = shared_folder(shared, "zero-shot", dataset, experiment, plain)
            if "stage 1" in runs:
                both_views = zero_shot_scorer(clip, dataset.classes, score=experiment.score, **prompts)
                runs["stage 1"] = shared_folder(shared, "stage1", dataset, experiment, both_views)
    with open_run(runs["zero-shot"], "zero-shot", dataset, experiment, plain) as opened:
        if not opened.finished:
            report_run(opened, plain, dataset, experiment, show=show)
    if "stage 1" in runs:
        train_stage1(dataset, experiment, run=runs["stage 1"], clip=clip, device=device, show=show)
    if "stage 2" in runs:
        start = runs["stage 1"] if stages == "sequence" else plain
        train_stage2(dataset, experiment, run=runs["stage 2"], start=start, device=device, show=show)
    if "joint" in runs:
        train_joint(dataset, experiment, run=runs["joint"], clip=clip, device=device, show=show)
    if experiment.rival is not None:
        train_rival(dataset, experiment, run=runs[experiment.rival.label], clip=plain, device=device, show=show)
    return runs


def check_experiment(dataset: Dataset, experiment: Experiment, clip: Clip) -> None:
    """Refuse what a later stage would refuse, before an earlier one has taken its hours."""
    counts, n = torch.from_numpy(dataset.train.targets.sum(0, dtype=np.int64)), len(dataset.train)
    tuned = {"stage 2", "joint"} & {*experiment.methods}
    if tuned:
        context_init(clip, experiment.stage2.contexts, experiment.stage2.init)
    if experiment.rival is not None:
        check_rival(dataset, experiment, zero_shot_scorer(clip, dataset.classes))
    if {"stage 1", "joint"} & {*experiment.methods}:
        build_loss(experiment.stage1.loss, counts, n)
    if "stage 2" in tuned:
        build_loss(experiment.stage2.loss, counts, n)
