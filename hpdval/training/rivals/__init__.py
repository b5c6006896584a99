"""Rivals: other methods on the same data, with the same evaluation and the same runs as HP-DVAL."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hpdval.config import Experiment, TrainingConfig
from hpdval.data.dataset import Dataset
from hpdval.errors import ConfigError
from hpdval.losses import build_loss
from hpdval.models import Clip
from hpdval.models.prompts import context_init
from hpdval.models.semantic import class_embeddings
from hpdval.recipes import get_recipe
from hpdval.rival_configs import (
    CocoopConfig,
    CoopConfig,
    CprflConfig,
    DualCoopConfig,
    EnsembleConfig,
    FineTuneConfig,
    LmptConfig,
    NeighboursConfig,
    ProbeConfig,
)
from hpdval.run import Run
from hpdval.scoring import Scorer, clip_of
from hpdval.training.objective import training_counts
from hpdval.training.rivals.cocoop import train_cocoop
from hpdval.training.rivals.coop import train_coop
from hpdval.training.rivals.cprfl import train_cprfl
from hpdval.training.rivals.dualcoop import train_dualcoop
from hpdval.training.rivals.finetune import train_finetune
from hpdval.training.rivals.lmpt import check_captions, train_lmpt
from hpdval.training.rivals.probe import train_probe
from hpdval.training.rivals.untrained import nearest_neighbours, prompt_ensemble
from hpdval.training.session import training_session

TRAIN: dict[type, Callable[..., Scorer]] = {
    EnsembleConfig: prompt_ensemble,
    NeighboursConfig: nearest_neighbours,
    ProbeConfig: train_probe,
    CoopConfig: train_coop,
    CocoopConfig: train_cocoop,
    LmptConfig: train_lmpt,
    DualCoopConfig: train_dualcoop,
    FineTuneConfig: train_finetune,
    CprflConfig: train_cprfl,
}


def check_rival(dataset: Dataset, experiment: Experiment, start: Scorer) -> None:
    """Refuse what the training of a rival would refuse later, before anything is computed.

    Args:
        start: the scorer whose encoder it starts from.

    Raises:
        ConfigError: a loss or contexts that cannot be made.
        DataError: LMPT on images without captions.
        ModelError: word vectors that cannot be used.
        RunError: prompts on an encoder that is no CLIP.
    """
    config: Any = experiment.rival
    if isinstance(config, TrainingConfig):
        build_loss(config.loss, training_counts(dataset), len(dataset.train))
    if isinstance(config, CoopConfig | CocoopConfig | DualCoopConfig):
        context_init(clip_of(start), config.contexts, config.init)
    if isinstance(config, LmptConfig):
        check_captions(dataset.train)
    if isinstance(config, CprflConfig):
        class_embeddings(dataset.classes, config.semantic, clip=clip_of(start))


def train_rival(
    dataset: Dataset,
    experiment: Experiment | str,
    *,
    run: Run | str | os.PathLike[str],
    clip: Clip | Scorer | str | os.PathLike[str] | None = None,
    device: str = "auto",
    show: bool = True,
) -> Scorer:
    """Train the rival that an experiment names, such as ``get_recipe("coop")``, and return its scorer.

    Args:
        experiment: the name of a rival's recipe, or an experiment with a ``rival``.
        run: a folder, which is then trained, evaluated on the test split and finished (and merely loaded when it
            already is), or an open :class:`Run`, which the caller finishes.
        clip: the model to start from, a scorer or the folder of a run whose encoder to start from; its weights are
            left as they were, but it is moved to the device and frozen.  By default what the experiment names.

    Raises:
        ConfigError: the experiment has no rival.
        DataError: LMPT on images without captions.
        RunError: the folder is in use or holds another run.
        NonFiniteLossError: the loss became NaN or infinite; nothing was updated from it.
    """
    experiment = get_recipe(experiment) if isinstance(experiment, str) else experiment
    config: Any = experiment.rival
    if config is None:
        raise ConfigError(f"the experiment {experiment.name!r} has no rival; use the recipe of one, such as 'coop'")
    with training_session(config.kind, dataset, experiment, run, start=clip, device=device, show=show) as session:
        if session.done is None:
            check_rival(dataset, experiment, session.start)
            session.conclude(TRAIN[type(config)](session, config))
        return session.scorer
