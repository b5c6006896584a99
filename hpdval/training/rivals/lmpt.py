"""LMPT: CoOp whose prompts are also pulled to the captions of their images.

Letters: N images, B in a batch, C classes, D joint width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hpdval.data.dataset import Split
from hpdval.errors import ConfigError, DataError
from hpdval.losses.class_embedding import class_embedding_loss
from hpdval.models import Clip
from hpdval.rival_configs import LmptConfig
from hpdval.scoring import Scorer, clip_of
from hpdval.training.batches import Batch
from hpdval.training.objective import training_counts
from hpdval.training.rivals.coop import contexts_scorer, cosines, make_contexts, scores_by
from hpdval.training.rivals.frozen import HeadTask, fit_head
from hpdval.training.session import TrainingSession

CAPTIONS_AT_ONCE = 256


class CaptionedPrompts(HeadTask):
    """The task of LMPT: L = mix * L_cls + (1 - mix) * L_cse, on text embeddings of prompts and captions."""

    class_counts: torch.Tensor

    def __init__(self, *parts: Any, class_counts: torch.Tensor) -> None:
        super().__init__(*parts)
        self.register_buffer("class_counts", class_counts.to(self.encoder.device), persistent=False)

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return ``cls`` and ``cse`` of a batch with ``features``, ``captions`` (B, D) and ``targets`` (B, C)."""
        config, text = self.config, self.head(self.encoder)
        assert isinstance(config, LmptConfig)
        cls = self.objective.of_scores(cosines(batch["features"], text), batch["targets"])
        options: dict[str, Any] = {"margin": config.margin, "gamma": config.gamma, "form": config.form}
        cse = class_embedding_loss(batch["captions"], text, batch["targets"], self.class_counts, **options)
        return {"cls": config.mix * cls, "cse": (1 - config.mix) * cse}


@torch.no_grad()
def caption_embeddings(clip: Clip, split: Split) -> torch.Tensor:
    """Return text embeddings (N, D) of a split's captions; of one too long for the text tower the end is cut off.

    Raises:
        DataError: the split has no captions.
    """
    read = check_captions(split)
    captions = [fitting(clip, read(i)) for i in range(len(split))]
    starts = range(0, len(captions), CAPTIONS_AT_ONCE)
    return torch.cat([clip.encode_text(captions[start : start + CAPTIONS_AT_ONCE]).float() for start in starts])


def check_captions(split: Split) -> Callable[[int], str]:
    """Return what reads a split's captions.

    Raises:
        DataError: it has none.
    """
    if split.captions is None:
        raise DataError("these images have no captions, which LMPT learns from; docs/data.md says how to give some")
    return split.captions


def fitting(clip: Clip, caption: str) -> str:
    """Return a caption without the words at its end that the text tower has no room for."""
    words = caption.split()
    for count in range(len(words), 1, -1):
        shorter = " ".join(words[:count])
        try:
            clip.tokenise([shorter])
        except ConfigError:
            continue
        return shorter
    return words[0]


def train_lmpt(session: TrainingSession, config: LmptConfig) -> Scorer:
    """Train contexts with the class-specific embedding loss (Xia et al., "LMPT", ALVR 2024).

    Captions and prompts are compared as whole texts, by the embeddings of the frozen text tower; the released code
    compares word embeddings before the text tower, where only the last context vector could learn from it.
    """
    dataset, clip = session.dataset, clip_of(session.start)
    contexts, captions = make_contexts(session, config), caption_embeddings(clip, dataset.train)
    counts = training_counts(dataset)

    def task(*parts: Any) -> HeadTask:
        return CaptionedPrompts(*parts, class_counts=counts)

    def facts() -> dict[str, Any]:
        return {"context_shift": contexts.moved()}

    scorer = contexts_scorer(session, config, contexts)
    more = {"captions": captions}
    return fit_head(session, config, contexts, scores_by(clip, contexts), scorer, task=task, more=more, facts=facts)
