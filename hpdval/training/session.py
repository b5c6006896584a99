"""The frame around every training: resolve what was given, open the run, skip what is done, evaluate and finish."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from hpdval.config import Experiment, TrainingConfig
from hpdval.data.dataset import Dataset, Split
from hpdval.distributed import join, rank
from hpdval.metrics import evaluate
from hpdval.models import Clip, load_clip
from hpdval.models.numeric import resolve_device
from hpdval.recipes import get_recipe
from hpdval.run import Run
from hpdval.scoring import DualViewScorer, Scorer, load_run, open_run, report_run, zero_shot_scorer
from hpdval.scoring.scorer import NOTHING_TRAINED
from hpdval.training.batches import Batches
from hpdval.training.loop import Task, fit
from hpdval.training.sampling import draw_for
from hpdval.training.views import lost_workers

SELECTION = {
    "last": "none (last epoch)",
    "validation": "best epoch on validation",
    "test": "best epoch on TEST images",
}


@dataclass
class TrainingSession:
    """One training under way: everything resolved, and ``done`` once there is a scorer."""

    dataset: Dataset
    experiment: Experiment
    run: Run
    start: Scorer
    owned: bool
    show: bool
    done: Scorer | None = None
    cost: dict[str, float] = field(default_factory=dict)  # what training took: parameters, seconds

    @property
    def scorer(self) -> Scorer:
        """The result."""
        assert self.done is not None
        return self.done

    def conclude(self, scorer: Scorer) -> None:
        """Save the model; where the run belongs to this session, evaluate on the test split and finish it, too."""
        self.done = scorer
        before, own = self.start.trained, {scorer.method: self.cost} if self.cost else {}
        scorer.trained = None if before is None else {**before, **own}
        if self.owned:
            report_run(self.run, scorer, self.dataset, self.experiment, show=self.show)
        elif self.run.writes:
            scorer.save(self.run.folder)


@contextmanager
def training_session(
    kind: str,
    dataset: Dataset,
    experiment: Experiment | str,
    run: Run | str | os.PathLike[str],
    *,
    start: Clip | Scorer | str | os.PathLike[str] | None,
    device: str,
    show: bool,
) -> Iterator[TrainingSession]:
    """Resolve recipe, start and device; open ``run`` where it is a folder, and release it at the end."""
    experiment = get_recipe(experiment) if isinstance(experiment, str) else experiment
    join(device)
    where = resolve_device(device)
    scorer = _start(start, dataset, experiment, str(where))
    owned = not isinstance(run, Run)
    opened = run if isinstance(run, Run) else open_run(run, kind, dataset, experiment, scorer)
    session = TrainingSession(dataset, experiment, opened, scorer, owned, show and rank() == 0)
    try:
        if opened.finished:
            session.done = load_run(opened.folder, device=str(where))
        yield session
    finally:
        if owned:
            opened.close(sys.exception())


def _start(
    start: Clip | Scorer | str | os.PathLike[str] | None, dataset: Dataset, experiment: Experiment, device: str
) -> Scorer:
    """Return the scorer to start from: a given one, a finished run's, or CLIP with hand-crafted prompts."""
    if isinstance(start, (str, os.PathLike)):
        start = load_run(start, device=device)
    if isinstance(start, Scorer):
        start.encoder.to(device)
        return start
    clip = start or load_clip(experiment.clip, pretrained=experiment.pretrained, device=device)
    clip.to(device)
    return zero_shot_scorer(
        clip, dataset.classes, template=experiment.template, score=experiment.score, resize=experiment.resize
    )


def scorer_of(
    session: TrainingSession,
    clip: Clip,
    text_global: torch.Tensor,
    text_local: torch.Tensor | None = None,
    **options: Any,
) -> DualViewScorer:
    """Return the scorer of encoders and texts (C, D), evaluated and selected as the session's experiment says."""
    experiment = session.experiment
    known = {"score": experiment.evaluation_score, "template": experiment.template, **selected(session)}
    return DualViewScorer(clip, session.dataset.classes, text_global, text_local, **{**known, **options})


def selected(session: TrainingSession) -> dict[str, str]:
    """Return what every scorer of this session has in common: how images are resized, how its epoch was selected."""
    own, before = SELECTION[session.experiment.selection], session.start.selection
    inherited = "" if before in (NOTHING_TRAINED, SELECTION["last"], own) else f"; its start: {before}"
    return {"resize": session.experiment.resize, "selection": own + inherited}


def fit_stage(
    stage: str,
    task: Task,
    batches: Batches,
    config: TrainingConfig,
    session: TrainingSession,
    score: Callable[[Split], np.ndarray],
) -> dict[str, Any]:
    """Follow the task's losses under the session's selection rule, and return how that was computed.

    What it took goes into ``session.cost``.

    Args:
        score: gives the scores (N, C) of a split by the weights as they are now.
    """
    dataset, experiment = session.dataset, session.experiment
    with lost_workers():
        facts = fit(
            task,
            batches,
            config,
            session.run,
            stage=stage,
            n_images=len(dataset.train),
            draw=draw_for(config, dataset.train.targets),
            seed=experiment.seed,
            watch=watched_map(dataset, experiment, score),
            keep_best=experiment.selection != "last",
            show=session.show,
        )
    session.cost = {name: facts.pop(name) for name in ("parameters", "seconds")}
    return facts


def watched_map(
    dataset: Dataset, experiment: Experiment, score: Callable[[Split], np.ndarray]
) -> tuple[str, Callable[[], float]] | None:
    """Return what is logged after each epoch: its name, and a function that gives a mAP in percent.

    ``val_map`` on the validation part, where there is one; ``test_map`` where the experiment selects on test images.
    """
    name, split = ("test_map", dataset.test) if experiment.selection == "test" else ("val_map", dataset.val)
    if len(split) == 0:
        return None

    def value() -> float:
        return evaluate(score(split), split.targets, dataset.class_counts, readout=experiment.readout).total

    return name, value
