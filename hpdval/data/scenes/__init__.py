"""scenes-lt: a long-tailed multi-label data set that the package draws itself (nothing to download)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from hpdval.data.dataset import Dataset, Split
from hpdval.data.scenes.profile import CLASSES, TEST_IMAGES, TRAIN_COUNTS, TRAIN_IMAGES, evaluation_counts, label_matrix
from hpdval.data.scenes.world import VERSION, Scene, draw_scene
from hpdval.errors import ConfigError

__all__ = ["CLASSES", "load_scenes"]


def load_scenes(*, train: int = TRAIN_IMAGES, test: int = TEST_IMAGES, seed: int = 0, size: int = 64) -> Dataset:
    """Return scenes-lt: 20 classes, training positives as in VOC-LT (4 to 775), pictures drawn when asked for.

    Args:
        train: training images, 20 to 1,142: the first of one fixed list, which start with every class once.
        test: test images, 20 to 2,000, likewise; all 2,000 hold at least 98 positives of each class.
        seed: another seed gives other label sets and other pictures with the same counts.
        size: S, pixels of a side, 32 to 512.

    Returns:
        Dataset "scenes-lt"; ``class_counts`` are those of the full list whatever ``train`` is.

    Raises:
        ConfigError: a number is out of its range.

    >>> world = load_scenes(train=30, test=20)
    >>> len(world.train), world.train.image(3).shape, world.class_counts[:3].tolist()
    (30, (64, 64, 3), [775, 479, 249])
    """
    limits = {"train": (train, 20, TRAIN_IMAGES), "test": (test, 20, TEST_IMAGES), "size": (size, 32, 512)}
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise ConfigError(f"scenes-lt: {name} = {value}; give {low} to {high}")
    counts = np.array(list(TRAIN_COUNTS.values()), np.int64)
    train_labels = label_matrix(counts, TRAIN_IMAGES, f"{VERSION}:{seed}:train:labels")
    test_labels = label_matrix(evaluation_counts(), TEST_IMAGES, f"{VERSION}:{seed}:test:labels")
    return Dataset(
        name="scenes-lt",
        classes=CLASSES,
        train=_split(train_labels[:train], "train", seed, size),
        val=_split(train_labels[:0], "val", seed, size),
        test=_split(test_labels[:test], "test", seed, size),
        class_counts=counts,
    )


def _split(targets: np.ndarray, name: str, seed: int, size: int) -> Split:
    keys = tuple(f"{VERSION}:{seed}:{name}:{i}" for i in range(len(targets)))

    @lru_cache(maxsize=16)  # whoever wants an image and its boxes has it drawn once
    def scene(index: int) -> Scene:
        return draw_scene([CLASSES[c] for c in np.flatnonzero(targets[index])], keys[index], size=size)

    def boxes(index: int) -> np.ndarray:
        drawn = scene(index)
        return np.column_stack([[CLASSES.index(n) for n in drawn.names], drawn.boxes()]).astype(np.float32)

    return Split(
        ids=tuple(f"{name}/{i:05d}" for i in range(len(targets))),
        targets=targets,
        read=lambda i: scene(i).image.copy(),
        fingerprints=tuple(f"{key}:{size}" for key in keys),
        boxes=boxes,
        masks=lambda i: scene(i).masks.copy(),
    )
