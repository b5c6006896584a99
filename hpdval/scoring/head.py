"""Scores by a head on an encoder's features: classifiers, neighbours, prompts that depend on the image.

Letters: B images in a batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hpdval.errors import ModelError
from hpdval.models import Encoder, ImageFeatures
from hpdval.models.conditional_prompts import ConditionalPrompts
from hpdval.models.cprfl import Cprfl
from hpdval.models.dual_prompts import RegionPooling
from hpdval.models.heads import CategoryPrompts, Classifier, NearestNeighbours
from hpdval.models.weights import brief
from hpdval.scoring.scorer import Scorer

Tensors = Mapping[str, torch.Tensor]

# how each kind of head is made again: of its encoder, classes and tensors, and the options it was made with
HEADS: dict[str, Callable[..., nn.Module]] = {
    "classifier": lambda encoder, classes, tensors, **o: Classifier(encoder.embed_dim, len(classes), **o),
    "neighbours": lambda encoder, classes, tensors, **o: NearestNeighbours(tensors["bank"], tensors["targets"], **o),
    "conditional prompts": lambda encoder, classes, tensors, **o: ConditionalPrompts(encoder, classes, **o),
    "region pooling": lambda encoder, classes, tensors, **o: RegionPooling(
        tensors["text_pos"], tensors["text_neg"], **o
    ),
    "category prompts": lambda encoder, classes, tensors, **o: CategoryPrompts(
        Cprfl(tensors["model.embeddings"], encoder.embed_dim, **o)
    ),
}


class HeadScorer(Scorer):
    """An encoder, and a head that turns its features into scores.

    Args:
        head: a module whose ``forward(features, encoder)`` gives scores (B, C).
        made: its name in ``HEADS`` and the options it was made with, plain JSON: how a saved one is made again.
    """

    kind = "head"

    def __init__(
        self,
        encoder: Encoder,
        classes: Sequence[str],
        head: nn.Module,
        made: tuple[str, Mapping[str, Any]],
        **options: Any,
    ) -> None:
        super().__init__(encoder, classes, **options)
        self.head, self.made = head, made

    @torch.no_grad()
    def score_features(self, features: ImageFeatures) -> torch.Tensor:
        """Return (B, C) float32 scores of encoded images.

        Raises:
            ModelError: the head has another number of classes than the scorer.
        """
        training = self.head.training
        self.head.eval()
        try:
            scores: torch.Tensor = self.head(features, self.encoder).float()
        finally:
            self.head.train(training)
        if scores.shape[1] != len(self.classes):
            raise ModelError(f"the head gives {scores.shape[1]} scores, but there are {len(self.classes)} classes")
        return scores

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the head's tensors, and how it was made."""
        name, options = self.made
        return dict(self.head.state_dict()), {"head": name, "options": dict(options)}

    @classmethod
    def from_state(cls, encoder: Encoder, tensors: Tensors, state: Mapping[str, Any], **options: Any) -> HeadScorer:
        """Return the scorer whose :meth:`state` this was; ``options`` are those of every scorer.

        Raises:
            ModelError: the tensors are those of another head, encoder or list of classes.
        """
        name, own = state["head"], state["options"]
        head = HEADS[name](encoder, state["classes"], tensors, **own)
        try:
            head.load_state_dict(dict(tensors))
        except RuntimeError as error:
            what = f"{len(state['classes'])} classes on {encoder.embed_dim} features"
            raise ModelError(f"the tensors do not fit a head {name!r} of {what}: {brief(error)}") from error
        return cls(encoder, state["classes"], head.to(encoder.device), (name, own), **options)
