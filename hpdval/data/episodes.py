"""Episodes: the few images of novel classes that a base model is adapted on, drawn by seed from any data set.

Letters: N images, C novel classes, K shots, n images of an episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hpdval.data.dataset import Dataset, Split
from hpdval.data.fewshot import images_of, novel_columns, restrict
from hpdval.data.splits import check_disjoint
from hpdval.errors import ConfigError, DataError

TRIES = 20  # draws of one episode, of which the one nearest to K positives of each class is kept


@dataclass(frozen=True, kw_only=True)
class Episode:
    """The support of one adaptation: training images and their novel labels.  The test set is not part of it.

    ``targets`` are the labels of the episode; in a published one they are those of its list.
    """

    name: str  # such as voc2007-5shot-3
    shots: int  # K
    number: int  # from 1
    seed: int | None  # None: published, not drawn here
    classes: tuple[str, ...]  # novel, in the order of the data set
    ids: tuple[str, ...]
    indices: np.ndarray  # (n,) int64, in the data set's training images
    targets: np.ndarray  # (n, C) uint8

    def __post_init__(self) -> None:
        n = len(self.ids)
        if self.indices.shape != (n,) or self.targets.shape != (n, len(self.classes)) or len(set(self.ids)) != n:
            raise DataError(f"{self.name}: ids, indices and targets must be of the same images, each once")
        short = [name for name, count in zip(self.classes, self.counts, strict=True) if count < self.shots]
        if short:
            raise DataError(f"{self.name}: {short[0]} has fewer than {self.shots} positives")

    @property
    def counts(self) -> np.ndarray:
        """Positives of each class, (C,) int64: K, or more where that could not be avoided."""
        return self.targets.sum(0, dtype=np.int64)

    def dataset(self, dataset: Dataset, test: Split) -> Dataset:
        """Return support as training images and ``test`` as test images, over the novel classes.

        Args:
            dataset: the set, over all classes, that the episode was drawn from or read for.
            test: of the novel classes, see :func:`hpdval.data.fewshot.novel_test`.

        Raises:
            DataError: the data set has other images at these indices, or ``test`` shares one with the support.
        """
        there = tuple(dataset.train.ids[i] for i in self.indices if i < len(dataset.train))
        if there != self.ids:
            raise DataError(f"{self.name} is not of these training images; load {dataset.name} as when it was made")
        support = restrict(dataset.train, self.indices, novel_columns(dataset, self.classes))
        made = Dataset(
            name=self.name,
            classes=self.classes,
            train=replace(support, targets=self.targets),
            val=support.subset([]),
            test=test,
            class_counts=self.counts,
            notes=dataset.notes,
        )
        check_disjoint(made)
        return made


def make_episodes(
    dataset: Dataset, novel: Sequence[str], *, shots: int, episodes: int = 10, seed: int = 0, mixed: bool = True
) -> tuple[Episode, ...]:
    """Return episodes with K positives of each novel class, drawn from the training images.

    From the rarest class up, images of the class are drawn until it has K positives, at random among those that take
    the fewest classes beyond K.  Then every image is dropped without which each of its classes still has K.  Of up to
    20 such draws the first with exactly K of every class is taken, else the one with the fewest positives too many:
    where a class comes only with others, these overshoot, and ``Episode.counts`` tells.  Episode e of a data set
    depends on ``seed``, K and e, not on how many are asked for.

    Args:
        dataset: over all classes.
        novel: names of the novel classes.
        shots: K, at least 1.
        episodes: how many.
        seed: at least 0.
        mixed: whether images with base labels may be drawn.

    Raises:
        ConfigError: a number or a class name is wrong.
        DataError: a class has fewer than K training images, or train and test share an image.

    >>> from hpdval.data import load_dataset
    >>> world = load_dataset("scenes-fewshot")
    >>> one, two = make_episodes(world, ["cat", "bus"], shots=5, episodes=2)
    >>> one.name, one.classes, one.counts.tolist()
    ('scenes-fewshot-5shot-1', ('bus', 'cat'), [5, 5])
    """
    for name, value, low in (("shots", shots, 1), ("episodes", episodes, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
            raise ConfigError(f"{name} is {value!r}; give a whole number from {low}")
    columns = novel_columns(dataset, novel)
    classes = tuple(dataset.classes[i] for i in columns)
    pool = images_of(dataset.train.targets, columns, mixed=mixed)
    targets = dataset.train.targets[np.ix_(pool, columns)]
    for name, count in zip(classes, targets.sum(0, dtype=np.int64), strict=True):
        if count < shots:
            alone = "" if mixed else " without base labels"
            raise DataError(
                f"novel class {name} has {count} training images{alone} in {dataset.name}, fewer than shots={shots}; "
                "ask for fewer shots, or leave the class out"
            )
    check_disjoint(dataset)
    made = []
    for number in range(1, episodes + 1):
        rows = _draw(targets.astype(bool), shots, np.random.default_rng([seed, shots, number]))
        made.append(
            Episode(
                name=f"{dataset.name}-{shots}shot-{number}",
                shots=shots,
                number=number,
                seed=seed,
                classes=classes,
                ids=tuple(dataset.train.ids[i] for i in pool[rows]),
                indices=pool[rows],
                targets=targets[rows],
            )
        )
    return tuple(made)


def _draw(labels: np.ndarray, shots: int, rng: np.random.Generator) -> np.ndarray:
    """Return the rows, ascending, of the best of several greedy draws."""
    best, least = np.array([], np.int64), np.inf
    for _ in range(TRIES):
        rows = _greedy(labels, shots, rng)
        surplus = labels[rows].sum() - shots * labels.shape[1]
        if surplus < least:
            best, least = rows, surplus
        if not surplus:
            break
    return best


def _greedy(labels: np.ndarray, shots: int, rng: np.random.Generator) -> np.ndarray:
    taken = np.zeros(len(labels), bool)
    counts = np.zeros(labels.shape[1], np.int64)
    for one in np.argsort(labels.sum(0), kind="stable"):
        candidates = _shuffled(np.flatnonzero(labels[:, one]), rng)
        while counts[one] < shots:
            candidates = candidates[~taken[candidates]]
            beyond = labels[np.ix_(candidates, counts >= shots)].sum(1)
            i = candidates[beyond.argmin()]
            taken[i] = True
            counts += labels[i]
    for i in _shuffled(np.flatnonzero(taken), rng):
        if (counts[labels[i]] > shots).all():
            taken[i] = False
            counts -= labels[i]
    return np.flatnonzero(taken)


def _shuffled(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return values[np.argsort(rng.random(len(values)), kind="stable")]  # `permutation` may change between NumPy versions
