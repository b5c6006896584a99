"""The frame around every training: resolve what was given, open the run, skip what is done, evaluate and finish."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hpdval.config import Experiment
from hpdval.data.dataset import Dataset
from hpdval.models import Clip, load_clip
from hpdval.models.numeric import resolve_device
from hpdval.recipes import get_recipe
from hpdval.run import Run
from hpdval.scoring import Scorer, load_run, open_run, report_run, zero_shot_scorer


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

    @property
    def scorer(self) -> Scorer:
        """The result."""
        assert self.done is not None
        return self.done

    def conclude(self, scorer: Scorer) -> None:
        """Save the model; where the run belongs to this session, evaluate on the test split and finish it, too."""
        self.done = scorer
        if self.owned:
            report_run(self.run, scorer, self.dataset, self.experiment, show=self.show)
        else:
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
    where = resolve_device(device)
    scorer = _start(start, dataset, experiment, str(where))
    owned = not isinstance(run, Run)
    opened = run if isinstance(run, Run) else open_run(run, kind, dataset, experiment, scorer)
    session = TrainingSession(dataset, experiment, opened, scorer, owned, show)
    try:
        if opened.finished:
            session.done = load_run(opened.folder, device=str(where))
        yield session
    finally:
        if owned:
            opened.close()


def _start(
    start: Clip | Scorer | str | os.PathLike[str] | None, dataset: Dataset, experiment: Experiment, device: str
) -> Scorer:
    """Return the scorer to start from: a given one, a finished run's, or CLIP with hand-crafted prompts."""
    if isinstance(start, (str, os.PathLike)):
        start = load_run(start, device=device)
    if isinstance(start, Scorer):
        start.clip.to(device)
        return start
    clip = start or load_clip(experiment.clip, pretrained=experiment.pretrained, device=device)
    clip.to(device)
    return zero_shot_scorer(
        clip, dataset.classes, template=experiment.template, score=experiment.score, resize=experiment.resize
    )
