"""Few-shot protocols: which classes are base and which novel, which images train the base, and which images test.

An image is *mixed* when it shows base and novel classes.  LaSO, whose protocol COCO follows, keeps it on both sides,
with the labels of the side alone; VOC2007's published lists leave it out of both.  An image without a label of a side
is never in it.

Letters: N images, C classes, M draws.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpdval.data.dataset import Dataset, Split
from hpdval.data.load import load_dataset
from hpdval.data.scenes.profile import FEWSHOT_NOVEL
from hpdval.errors import ConfigError, DataError

# LaSO: base are the 64 of random.seed(0); random.sample(range(80), 64), novel the rest, in the order of category ids
COCO_NOVEL = (
    *("bicycle", "boat", "stop sign", "bird", "backpack", "frisbee", "snowboard", "surfboard", "cup", "fork", "spoon"),
    *("broccoli", "chair", "keyboard", "microwave", "vase"),
)
# the columns of the lists released with HP-DVAL (commit c7f98f3, idx/voc)
VOC_NOVEL = ("cat", "dog", "pottedplant", "sheep", "sofa", "tvmonitor")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How one data set is cut: its novel classes (all others are base), its rule for mixed images, how it is loaded."""

    name: str  # of the data set, as `load_dataset` knows it
    novel: tuple[str, ...]
    mixed: bool
    options: Mapping[str, Any] = field(default_factory=dict)  # of `load_dataset`
    images: tuple[int, int, int, int] | None = None  # published: training base, novel; test base, novel

    def load(self, root: str | os.PathLike[str] | None = None, **options: Any) -> Dataset:
        """Return the data set over all its classes, with the labels that the protocol counts.

        Raises:
            DataError: as `load_dataset`, or the sides are not as large as published.
        """
        dataset = load_dataset(self.name, root=root, **{**self.options, **options})
        self.check(dataset)
        return dataset

    def check(self, dataset: Dataset) -> None:
        """Raise DataError unless the sides of ``dataset`` are as large as published, where that is known."""
        novel = novel_columns(dataset, self.novel)
        base = np.setdiff1d(np.arange(len(dataset.classes)), novel)
        training = np.vstack([dataset.train.targets, dataset.val.targets])
        parts = [(targets, side) for targets in (training, dataset.test.targets) for side in (base, novel)]
        found = tuple(len(images_of(targets, side, mixed=self.mixed)) for targets, side in parts)
        if self.images and found != self.images:
            options = ", ".join(f"{name}={value}" for name, value in self.options.items())
            raise DataError(
                f"{dataset.name} has {found} images (training base, novel; test base, novel), published are "
                f"{self.images}; load the whole set with {options or 'its defaults'}"
            )


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(name="scenes-fewshot", novel=FEWSHOT_NOVEL, mixed=True),
        Protocol(
            name="voc2007", novel=VOC_NOVEL, mixed=False, options={"difficult": False}, images=(3575, 895, 3562, 926)
        ),
        Protocol(name="coco2014", novel=COCO_NOVEL, mixed=True, options={"crowd": False}),
    )
}


def novel_columns(dataset: Dataset, novel: Sequence[str]) -> np.ndarray:
    """Return the columns of the classes ``novel``, ascending, whatever their order here.

    Raises:
        ConfigError: not names, none, one twice, or one that the data set does not have.
    """
    if isinstance(novel, str) or not all(isinstance(name, str) for name in novel) or not len(novel):
        raise ConfigError(f"novel is {novel!r}; give the names of some classes, such as {list(dataset.classes[-2:])}")
    odd = [name for i, name in enumerate(novel) if name not in dataset.classes or name in novel[:i]]
    if odd:
        reason = "given twice" if odd[0] in dataset.classes else f"no class of {dataset.name}"
        raise ConfigError(f"novel class {odd[0]!r} is {reason}; the classes are {', '.join(dataset.classes)}")
    return np.array(sorted(dataset.classes.index(name) for name in novel), np.int64)


def images_of(targets: np.ndarray, columns: np.ndarray, *, mixed: bool) -> np.ndarray:
    """Return the images, ascending, with a label among ``columns`` and, unless ``mixed``, none elsewhere.

    Args:
        targets: (N, C) of 0 and 1.
        columns: of the wanted classes.
        mixed: whether an image may have labels of other classes too.

    >>> images_of(np.array([[1, 0], [1, 1], [0, 1], [0, 0]]), np.array([0]), mixed=False)
    array([0])
    """
    inside = targets[:, columns].any(1)
    outside = np.delete(targets, columns, 1).any(1)
    return np.flatnonzero(inside if mixed else inside & ~outside)


def restrict(split: Split, images: np.ndarray, columns: np.ndarray) -> Split:
    """Return the images at ``images`` with the classes at ``columns`` alone: targets, boxes and masks.

    Captions stay as they are: of a mixed image they may name classes of the other side.
    """
    part = split.subset(images)
    position = {int(column): i for i, column in enumerate(columns)}
    boxes = masks = None
    if part.boxes:
        whole = part.boxes

        def boxes(index: int) -> np.ndarray:
            rows = whole(index)
            rows = rows[np.isin(rows[:, 0], columns)]
            rows[:, 0] = [position[int(column)] for column in rows[:, 0]]
            return rows

    if part.boxes and part.masks:
        read, every = part.masks, part.boxes

        def masks(index: int) -> np.ndarray | None:
            found = read(index)
            return None if found is None else found[np.isin(every(index)[:, 0], columns)]

    return Split(
        ids=part.ids,
        targets=np.ascontiguousarray(part.targets[:, columns]),
        read=part.read,
        fingerprints=part.fingerprints,
        boxes=boxes,
        masks=masks,
        size=part.size,
        captions=part.captions,
    )


def base_dataset(dataset: Dataset, novel: Sequence[str], *, mixed: bool = True) -> Dataset:
    """Return train, validation and test over the base classes, which are all but ``novel``.

    Kept are images with a base label; with ``mixed=False`` those whose labels are all base.  Novel labels are gone: to
    the base model a novel object of a mixed image is background.

    Raises:
        ConfigError: ``novel`` is not some of the classes, or all of them.
    """
    columns = np.setdiff1d(np.arange(len(dataset.classes)), novel_columns(dataset, novel))
    if not len(columns):
        raise ConfigError(f"novel names all {len(dataset.classes)} classes of {dataset.name}; leave some as base")
    parts = {
        name: restrict(split, images_of(split.targets, columns, mixed=mixed), columns)
        for name, split in (("train", dataset.train), ("val", dataset.val), ("test", dataset.test))
    }
    counts = dataset.class_counts[columns]
    if not mixed:  # positives went with the images that were left out
        counts = (parts["train"].targets.sum(0, dtype=np.int64)) + parts["val"].targets.sum(0, dtype=np.int64)
    left = {name: len(getattr(dataset, name)) - len(split) for name, split in parts.items()}
    rule = "without a base label" if mixed else "without a base label or with a novel one"
    left_out = f"{left['train'] + left['val']} training and {left['test']} test images"
    return Dataset(
        name=f"{dataset.name}-base",
        classes=tuple(dataset.classes[i] for i in columns),
        class_counts=counts,
        notes=(*dataset.notes, f"base classes only; left out {rule}: {left_out}"),
        train=parts["train"],
        val=parts["val"],
        test=parts["test"],
    )


def novel_test(dataset: Dataset, novel: Sequence[str], *, mixed: bool = True) -> Split:
    """Return the test images of the novel classes, each once, in the order of the data set.

    They have a novel label; with ``mixed=False`` novel labels alone (the 926 of VOC2007).  On COCO this is the natural
    set; for the class-balanced one, :func:`balanced_rows` says how often each image counts.

    Raises:
        ConfigError: as :func:`novel_columns`.
        DataError: a novel class has no test image.
    """
    columns = novel_columns(dataset, novel)
    test = restrict(dataset.test, images_of(dataset.test.targets, columns, mixed=mixed), columns)
    absent = [dataset.classes[column] for column in columns[~test.targets.any(0)]]
    if absent:
        raise DataError(f"{dataset.name} has no test image of novel class {absent[0]}; give another test set or class")
    return test


def balanced_rows(targets: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Return rows of a class-balanced test set, (M,) int64, with repetitions: index scores and targets with them.

    LaSO's rule: draw m, from 0, first picks a class at random and keeps it if no other was shown less often by the
    draws so far, else takes the first of those shown least.  Of that class's images, in their order, it takes number m
    modulo how many there are.  LaSO makes as many draws as val2014 has images, 40,504, without a seed and with a count
    of what was shown in each loader process; here there is a seed, and one count.  Source: Alfassy et al., "LaSO",
    CVPR 2019, as in its released code (``CocoDatasetAugmentation``).

    Args:
        targets: (N, C) of the natural set, every class with a positive.
        draws: M, for LaSO's set ``len(dataset.test)``.
        seed: of the ties.

    Raises:
        ConfigError: ``draws`` is below 1 or ``seed`` below 0.
        DataError: a class has no positive.

    >>> balanced_rows(np.array([[1, 0], [1, 0], [1, 0], [0, 1]]), 6, seed=0).tolist().count(3)
    3
    """
    if draws < 1 or seed < 0:
        raise ConfigError(f"draws={draws}, seed={seed}; give draws >= 1 and seed >= 0")
    images = [np.flatnonzero(column) for column in np.asarray(targets).T]
    if not all(map(len, images)):
        raise DataError(f"class {[len(i) for i in images].index(0)} has no test image to draw; leave the class out")
    chance = np.random.default_rng(seed).integers(len(images), size=draws)
    shown = np.zeros(len(images), np.int64)
    rows = np.empty(draws, np.int64)
    for draw, one in enumerate(chance):
        if shown[one] > shown.min():
            one = shown.argmin()
        rows[draw] = images[one][draw % len(images[one])]
        shown += targets[rows[draw]]
    return rows
