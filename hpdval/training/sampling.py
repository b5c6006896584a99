"""Which images an epoch takes, where it is not each once: rare classes are met as often as common ones.

Letters: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hpdval.config import TrainingConfig
from hpdval.data.splits import class_members
from hpdval.training.batches import Draw

IMAGES_OF_A_CLASS = 3  # one after another


def class_aware(targets: np.ndarray, images: int = IMAGES_OF_A_CLASS) -> Draw:
    """Return the order of images in which class follows class, each with ``images`` of its own.

    Classes come in random order, all before any comes again; those of a class come in random order, too, all before any
    comes again (Shen et al., "Relay backpropagation", ECCV 2016; three images of a class at a time, as in Wu et al.,
    "Distribution-balanced loss", ECCV 2020).  An epoch has N images, so that it is as long as a uniform one: images of
    rare classes come several times, some of common classes not at all.  A class without positives is left out.

    Args:
        targets: (N, C) of 0 and 1.
        images: of a class, one after another.

    >>> draw = class_aware(np.array([[1, 0], [1, 0], [1, 0], [1, 0], [0, 1], [1, 0]]))
    >>> int((draw(0, 0) == 4).sum())
    3
    """
    members = [found for found in class_members(targets) if len(found)]

    def draw(seed: int, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((seed, epoch))
        order = np.empty(len(targets), np.int64)
        classes = _again_and_again(np.arange(len(members)), rng)
        own = [_again_and_again(indices, rng) for indices in members]
        for start in range(0, len(order), images):
            chosen = own[next(classes)]
            for place in range(start, min(start + images, len(order))):
                order[place] = next(chosen)
        return order

    if not members:
        return lambda seed, epoch: np.random.default_rng((seed, epoch)).permutation(len(targets))
    return draw


def draw_for(config: TrainingConfig, targets: np.ndarray) -> Draw | None:
    """Return the order in which a training meets its images; None where it meets each once in an epoch."""
    return class_aware(targets) if config.sampling == "class-aware" else None


def earlier(order: np.ndarray) -> np.ndarray:
    """Return how often each image of an order came before, (n,) int64.

    >>> earlier(np.array([4, 2, 4, 4, 2])).tolist()
    [0, 0, 1, 2, 1]
    """
    places = np.argsort(order, kind="stable")  # those of one image side by side, in their order
    firsts = np.flatnonzero(np.r_[True, np.diff(order[places]) != 0]) if len(order) else np.zeros(0, np.int64)
    counts = np.empty(len(order), np.int64)
    counts[places] = np.arange(len(order)) - np.repeat(firsts, np.diff(np.r_[firsts, len(order)]))
    return counts


def _again_and_again(values: np.ndarray, rng: np.random.Generator) -> Iterator[int]:
    """Yield all values in random order, then all in another, and so on."""
    while True:
        yield from rng.permutation(values).tolist()
