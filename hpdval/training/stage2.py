"""Stage 2, hierarchical prompt tuning (HP-DVAL section III-C): two sets of contexts learn, every encoder stays.

L2 = L_cls + sc_weight * L_sc.  The ViT is frozen and the view fixed, so features are computed once and kept in a store.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch

from hpdval.config import Experiment, Stage2Config
from hpdval.data.dataset import Dataset, Split
from hpdval.models import Clip
from hpdval.models.prompts import SETS, HierarchicalPrompts, hand_crafted
from hpdval.models.student import make_student
from hpdval.run import Run
from hpdval.scoring import DualViewScorer, Scorer, clip_of
from hpdval.training.batches import Batch
from hpdval.training.features import FeatureBatches, FrozenFeatures
from hpdval.training.loop import Task
from hpdval.training.objective import Objective, starting_objective, training_counts
from hpdval.training.optim import parameter_groups
from hpdval.training.session import TrainingSession, fit_stage, scorer_of, training_session


def semantic_consistency_loss(fixed: torch.Tensor, learned: torch.Tensor) -> torch.Tensor:
    """L_sc: mean absolute difference of text embeddings (C, D), not normalised (HP-DVAL eq. 10 and 17).

    >>> semantic_consistency_loss(torch.zeros(2, 3), torch.full((2, 3), 2.0))
    tensor(2.)
    """
    return (fixed.float() - learned.float()).abs().mean()


def consistency(
    config: Stage2Config, fixed: torch.Tensor, texts: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return ``sc``, weighted, of the anchored sets of ``texts`` (C, D) each; nothing where the weight is 0."""
    if not config.sc_weight:
        return {}
    anchored = SETS if config.sc_anchor == "both" else (config.sc_anchor,)
    distances = [semantic_consistency_loss(fixed, texts[name]) for name in anchored]
    return {"sc": config.sc_weight * torch.stack(distances).sum()}


class PromptTuning(Task):
    """The task of stage 2: contexts (M, W) of the global and the local prompts, and the objective's scale and bias.

    ``class_counts`` (C,), training positives, are for ``stage2.shrinkage``, which gives classes contexts of their own.
    """

    text: torch.Tensor  # T_H (C, D)

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        text: torch.Tensor,
        objective: Objective,
        experiment: Experiment,
        class_counts: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        config = self.config = experiment.stage2
        self.encoder = clip.requires_grad_(False)
        self.objective = objective
        self.register_buffer("text", text)
        learned = SETS if config.prompts == "both" else (config.prompts,)
        self.prompts = HierarchicalPrompts(
            clip,
            classes,
            tokens=config.contexts,
            init=config.init,
            seed=experiment.seed,
            learned=learned,
            class_counts=class_counts,
            shrinkage=config.shrinkage,
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return AdamW's groups: the contexts at ``lr``, scale and bias at ``scale_lr``."""
        contexts = parameter_groups(self.prompts, lr=self.config.lr, weight_decay=self.config.weight_decay)
        return contexts + parameter_groups(self.objective, lr=self.config.scale_lr, weight_decay=0.0)

    def texts(self) -> dict[str, torch.Tensor]:
        """Return T_G and T_L (C, D); a set that is not learned stays hand-crafted."""
        return dict(zip(SETS, self.prompts(self.encoder, self.text), strict=True))

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return ``cls`` and ``sc`` of a batch with ``features`` and ``targets`` (B, C)."""
        texts = self.texts()
        losses = {"cls": self.objective(batch["features"], texts["global"], texts["local"], batch["targets"])}
        return losses | consistency(self.config, self.text, texts)


def train_stage2(
    dataset: Dataset,
    experiment: Experiment | str = "scenes",
    *,
    run: Run | str | os.PathLike[str],
    start: Scorer | str | os.PathLike[str] | None = None,
    device: str = "auto",
    show: bool = True,
) -> DualViewScorer:
    """Tune global and local prompts on a frozen encoder and return the scorer.

    Args:
        experiment: a recipe's name or an experiment.
        run: a folder, which is then trained, evaluated on the test split and finished (and merely loaded when it
            already is), or an open :class:`Run`, which the caller finishes.
        start: the scorer of stage 1, or the folder of its run; None starts from CLIP as the experiment names it.  Its
            encoders are frozen and moved to the device; its classes and texts do not matter here.

    Raises:
        RunError: the folder is in use or holds another run, or ``start`` is not a finished run.
        NonFiniteLossError: the loss became NaN or infinite; nothing was updated from it.
    """
    with training_session("stage2", dataset, experiment, run, start=start, device=device, show=show) as session:
        if session.done is None:
            session.conclude(_train(session))
        return cast(DualViewScorer, session.scorer)


def _train(session: TrainingSession) -> DualViewScorer:
    dataset, experiment, config = session.dataset, session.experiment, session.experiment.stage2
    clip = clip_of(session.start)
    clip = clip if experiment.normalise else make_student(clip, normalise=False)
    text = hand_crafted(clip, dataset.classes, experiment.template)
    frozen = FrozenFeatures(clip, session, precision=config.precision, dtype=config.features)
    features = frozen.of(dataset.train, show=session.show)
    objective = starting_objective(config, experiment, dataset, clip, text, features)
    task = PromptTuning(clip, dataset.classes, text, objective, experiment, training_counts(dataset))

    def scorer() -> DualViewScorer:
        with torch.no_grad():
            texts = task.texts()
        about = {"contexts": task.prompts.named_contexts(), "method": "stage 2", "precision": config.precision}
        result = scorer_of(session, clip, texts["global"], texts["local"], **about)
        result.share_encoder_of(session.start)
        return result

    def score(split: Split) -> np.ndarray:
        return frozen.scores(scorer(), split)

    facts = fit_stage("stage2", task, FeatureBatches(features, dataset), config, session, score)
    session.run.log(stage="stage2", **facts, **objective.record(), context_shift=task.prompts.moved())
    return scorer()
