"""One class sorted once: its AP under any multiplicities of the images, and without each image in turn.

Letters: N images, R resamples, P positives of the class.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Ranking(NamedTuple):
    """One class, sorted once: all that an AP under any multiplicities of the images needs."""

    order: NDArray[np.int32]  # images from the best score down, to the last positive's ties
    starts: NDArray[np.intp]  # where in ``order`` each stretch between two distinct positive scores begins
    stretch: NDArray[np.intp]  # (P,) the stretch in which a positive's score group ends
    positives: NDArray[np.intp]  # (P,) images, best first
    last_tie: NDArray[np.intp]  # (P,) the last positive with the same score
    above: NDArray[np.int32]  # (N,) positives that score strictly higher than the image
    true_positives: NDArray[np.intp]  # (P,) positives scoring at least as high
    predicted: NDArray[np.intp]  # (P,) images scoring at least as high

    @classmethod
    def of(cls, scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> Ranking:
        """Sort the scores (N,) of one class, whose positives are given as bool (N,)."""
        order = np.argsort(-scores, kind="stable")
        falling = -scores[order]
        positives = order[positive[order]]
        hits = -scores[positives]
        predicted = np.searchsorted(falling, hits, side="right")
        true_positives = np.searchsorted(hits, hits, side="right")
        ends = np.unique(predicted)
        return cls(
            order=order[: ends[-1] if ends.size else 0].astype(np.int32),
            starts=np.concatenate([[0], ends[:-1]]).astype(np.intp),
            stretch=np.searchsorted(ends, predicted),
            positives=positives,
            last_tie=true_positives - 1,
            above=np.searchsorted(hits, -scores, side="left").astype(np.int32),
            true_positives=true_positives,
            predicted=predicted,
        )

    @property
    def ap(self) -> float:
        """The AP with every image counted once, in [0, 1]; NaN without positives."""
        return float(np.mean(self.true_positives / self.predicted)) if self.positives.size else math.nan

    def weighted(self, weights: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the AP under each column of multiplicities (N, R), (R,); NaN where no positive was drawn."""
        if not self.positives.size:
            return np.full(weights.shape[1], math.nan)
        predicted = np.add.reduceat(weights[self.order], self.starts, axis=0).cumsum(axis=0)[self.stretch]  # (P, R)
        drawn = weights[self.positives]
        precision = np.divide(drawn.cumsum(axis=0)[self.last_tie], np.maximum(predicted, 1), dtype=np.float64)
        with np.errstate(invalid="ignore"):
            return np.asarray((drawn * precision).sum(axis=0) / drawn.sum(axis=0, dtype=np.float64))

    def split(self, first: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return AP(chosen) - AP(others) under each column of a choice of the images, 1 or 0, (N, R) -> (R,).

        The same as ``weighted(first) - weighted(1 - first)`` for half the work, as counts of the others are what the
        counts of the chosen leave; NaN where either has no positive.
        """
        if not self.positives.size:
            return np.full(first.shape[1], math.nan)
        predicted = np.add.reduceat(first[self.order], self.starts, axis=0).cumsum(axis=0)[self.stretch]  # (P, R)
        drawn = first[self.positives]
        hits = drawn.cumsum(axis=0)[self.last_tie]
        all_hits, all_predicted = (n[:, None].astype(np.float32) for n in (self.true_positives, self.predicted))
        chosen = np.divide(hits, np.maximum(predicted, 1), dtype=np.float64)
        others = np.divide(all_hits - hits, np.maximum(all_predicted - predicted, 1), dtype=np.float64)
        count = drawn.sum(axis=0, dtype=np.float64)
        with np.errstate(invalid="ignore"):
            return np.asarray(
                (drawn * chosen).sum(axis=0) / count - ((1 - drawn) * others).sum(axis=0) / (len(drawn) - count)
            )

    def delete_one(self) -> NDArray[np.float64]:
        """Return the AP without each image in turn, (N,): one less among the predicted of every positive below it."""
        count = self.positives.size
        if count == 0:
            return np.full(self.above.size, math.nan)
        tp, predicted = self.true_positives, self.predicted
        fewer = np.maximum(predicted - 1, 1)
        kept, negative_out, positive_out = (
            np.concatenate([[0.0], np.cumsum(ratio)]) for ratio in (tp / predicted, tp / fewer, (tp - 1) / fewer)
        )
        result = (kept[self.above] + negative_out[-1] - negative_out[self.above]) / count
        own = (tp - 1) / fewer  # a deleted positive does not count itself
        above = self.above[self.positives]
        remaining = kept[above] + positive_out[-1] - positive_out[above] - own
        result[self.positives] = remaining / (count - 1) if count > 1 else math.nan
        return result
