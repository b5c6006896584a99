"""Features of images by an encoder that stays as it is: what every training takes whose encoder is frozen.

Letters: N images, B in a batch, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from hpdval.data.dataset import Dataset, Split
from hpdval.distributed import share
from hpdval.models import Encoder
from hpdval.scoring import Features, Scorer, encode_split
from hpdval.scoring.features import queued
from hpdval.training.batches import Batch
from hpdval.training.session import TrainingSession


class FrozenFeatures:
    """The features of splits by one encoder, each split encoded once."""

    def __init__(self, encoder: Encoder, session: TrainingSession, *, precision: str, dtype: str) -> None:
        self.encoder = encoder
        self.options = {"resize": session.experiment.resize, "precision": precision, "dtype": dtype}
        self._seen: dict[int, Features] = {}

    def of(self, split: Split, *, show: bool = False) -> Features:
        """Return the features of a split, in its order."""
        if id(split) not in self._seen:
            self._seen[id(split)] = encode_split(self.encoder, split, show=show, **self.options)
        return self._seen[id(split)]

    def scores(self, scorer: Scorer, split: Split) -> np.ndarray:
        """Return the scores (N, C) that a scorer with this encoder gives to a split."""
        return torch.cat([scorer.score_features(batch).cpu() for batch in self.of(split).batches()]).numpy()


class FeatureBatches:
    """Batches of features that were computed once, their targets (B, C) float32 and ids.

    ``more`` are tensors (N, ...) of which a batch has its rows, such as what captions say of the images.
    """

    def __init__(self, features: Features, dataset: Dataset, more: Mapping[str, torch.Tensor] | None = None) -> None:
        self.features, self.ids, self.more = features, dataset.train.ids, dict(more or {})
        self.targets = torch.from_numpy(dataset.train.targets.copy())  # (N, C) uint8

    def __call__(self, indices: Sequence[np.ndarray], epoch: int) -> Iterator[Batch]:
        """Yield one batch for each array of image indices; the view is fixed, so ``epoch`` changes nothing."""
        for batch in indices:
            targets = queued(self.targets[batch].float(), self.features.device)
            features = self.features[batch[share(len(batch))]]
            rows = {name: queued(values[batch], self.features.device) for name, values in self.more.items()}
            yield {"features": features, "targets": targets, "ids": [self.ids[i] for i in batch], **rows}
