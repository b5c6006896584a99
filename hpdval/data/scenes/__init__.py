"""scenes-lt and scenes-fewshot: multi-label data sets that the package draws itself (nothing to download)."""

from __future__ import annotations

from functools import lru_cache
from random import Random

import numpy as np

from hpdval.data.dataset import Dataset, Split
from hpdval.data.scenes.profile import (
    CLASSES,
    FEWSHOT_TEST,
    FEWSHOT_TRAIN,
    TEST_IMAGES,
    TRAIN_COUNTS,
    TRAIN_IMAGES,
    evaluation_counts,
    label_matrix,
)
from hpdval.data.scenes.world import VERSION, Scene, caption, draw_scene
from hpdval.errors import ConfigError

__all__ = ["CLASSES", "load_fewshot_scenes", "load_scenes"]


def load_scenes(*, train: int = TRAIN_IMAGES, test: int = TEST_IMAGES, seed: int = 0, size: int = 64) -> Dataset:
    """Return scenes-lt: 20 classes, training positives as in VOC-LT (4 to 775), pictures drawn when asked for.

    Args:
        train: training images, 20 to 1,142: the first of one fixed list, which start with every class once.
        test: test images, 20 to 2,000, likewise; all 2,000 hold at least 97 positives of each class.
        seed: another seed gives other label sets and other pictures with the same counts.
        size: S, pixels of a side, 32 to 512.

    Every image has a caption, the generator's own: one of its sentences with all labelled things, each once, in any
    order, and never a thing without a label.  It depends on the picture's name alone, like the picture.

    Returns:
        Dataset "scenes-lt"; ``class_counts`` are those of the full list whatever ``train`` is.

    Raises:
        ConfigError: a number is out of its range.

    >>> world = load_scenes(train=30, test=20)
    >>> len(world.train), world.train.image(3).shape, world.class_counts[:3].tolist()
    (30, (64, 64, 3), [775, 479, 249])
    """
    counts = np.array(list(TRAIN_COUNTS.values()), np.int64)
    parts = {"train": (train, TRAIN_IMAGES, counts), "test": (test, TEST_IMAGES, evaluation_counts())}
    return _world("scenes-lt", "", parts, seed, size)


def load_fewshot_scenes(
    *, train: int = FEWSHOT_TRAIN[0], test: int = FEWSHOT_TEST[0], seed: int = 0, size: int = 64
) -> Dataset:
    """Return scenes-fewshot: the world of scenes-lt, other pictures, and each of the 20 classes equally often.

    The whole lists hold 200 training and 250 test positives of each.  `hpdval.data.fewshot.PROTOCOLS` says which six
    classes are novel.  Captions are as in :func:`load_scenes`.

    Args:
        train: training images, 20 to 1,600: the first of one fixed list, which start with every class once.
        test: test images, 20 to 2,000, likewise.
        seed: another seed gives other label sets and other pictures with the same counts.
        size: S, pixels of a side, 32 to 512.

    Raises:
        ConfigError: a number is out of its range.

    >>> load_fewshot_scenes(train=30, test=20).class_counts[:3].tolist()
    [200, 200, 200]
    """
    parts = {
        name: (images, most, np.full(len(CLASSES), positives))
        for name, images, (most, positives) in (("train", train, FEWSHOT_TRAIN), ("test", test, FEWSHOT_TEST))
    }
    return _world("scenes-fewshot", "fewshot-", parts, seed, size)


def _world(name: str, prefix: str, parts: dict[str, tuple[int, int, np.ndarray]], seed: int, size: int) -> Dataset:
    """Return the data set of ``parts``: images asked for, images at most, and positives by class in all of those."""
    limits = {"size": (size, 32, 512), **{part: (asked, 20, most) for part, (asked, most, _) in parts.items()}}
    for option, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise ConfigError(f"{name}: {option} = {value}; give {low} to {high}")
    splits = {}
    for part, (asked, most, counts) in parts.items():
        labels = label_matrix(counts, most, f"{VERSION}:{seed}:{prefix}{part}:labels")
        splits[part] = _split(labels[:asked], f"{prefix}{part}", seed, size)
    return Dataset(
        name=name,
        classes=CLASSES,
        train=splits["train"],
        val=splits["train"].subset([]),
        test=splits["test"],
        class_counts=parts["train"][2],
    )


def _split(targets: np.ndarray, name: str, seed: int, size: int) -> Split:
    keys = tuple(f"{VERSION}:{seed}:{name}:{i}" for i in range(len(targets)))

    def shown(index: int) -> list[str]:
        return [CLASSES[c] for c in np.flatnonzero(targets[index])]

    @lru_cache(maxsize=16)  # whoever wants an image and its boxes has it drawn once
    def scene(index: int) -> Scene:
        return draw_scene(shown(index), keys[index], size=size)

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
        size=lambda i: (size, size),
        captions=lambda i: caption(shown(i), Random(f"{keys[i]}:caption")),  # a stream of its own: no pixel moves
    )
