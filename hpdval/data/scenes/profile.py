"""Who appears with whom: the label sets of scenes-lt, drawn by a small seeded procedure with exact class counts.

Letters: N images, C classes, T themes.
"""

from __future__ import annotations

import hashlib

import numpy as np

# Sorted training positives of VOC-LT (1,142 images, 2,346 labels; 6 head, 6 medium, 8 tail classes). Which class holds
# which rank is arbitrary: look-alikes (car and bus, dog and cat, bottle and cup) are spread over the groups on purpose.
TRAIN_COUNTS = {
    "person": 775, "tree": 479, "chair": 249, "bottle": 240, "car": 154, "dog": 100,
    "flower": 82, "clock": 64, "boat": 48, "mushroom": 34, "bus": 29, "bird": 20,
    "apple": 17, "umbrella": 14, "cat": 11, "bicycle": 8, "fish": 7, "cup": 6, "airplane": 5, "house": 4,
}  # fmt: skip
CLASSES = tuple(TRAIN_COUNTS)
TRAIN_IMAGES = 1142
TEST_IMAGES = 2000

# scenes-fewshot: every class equally often. Novel are 6 of 20 as in VOC2007: three look like a base class (bus and car,
# cat and dog, cup and bottle), three do not.
FEWSHOT_NOVEL = ("mushroom", "bus", "cat", "bicycle", "fish", "cup")
FEWSHOT_TRAIN = (1600, 200)  # images, positives of each class
FEWSHOT_TEST = (2000, 250)

# Where a class is at home: a partner of the same theme is five times as likely as one of another.
THEMES = {
    "street": ("person", "car", "bus", "bicycle", "house", "tree", "umbrella", "dog"),
    "room": ("person", "chair", "bottle", "clock", "cup", "cat", "apple", "flower"),
    "garden": ("person", "tree", "chair", "flower", "mushroom", "bird", "dog", "apple", "house"),
    "water": ("boat", "fish", "bird", "airplane", "person", "bottle", "umbrella"),
}
AT_HOME = 5.0
CROWDING = 0.7  # an image that has k labels is 0.7**k as likely to get another one


def evaluation_counts() -> np.ndarray:
    """Return the positives per class of the test split, (C,) int64: 97 to 780, much flatter than training.

    >>> counts = evaluation_counts()
    >>> int(counts.min()) >= 50
    True
    """
    train = np.array(list(TRAIN_COUNTS.values()))
    return (80 + 700 * (train / train.max()) ** 0.7).astype(np.int64)


def label_matrix(counts: np.ndarray, images: int, key: str) -> np.ndarray:
    """Draw label sets with exact column sums, (N, C) uint8; every image gets at least one label.

    Each image has a theme.  Classes are dealt out from the rarest to the commonest, without replacement, to images
    weighted by theme and by how few labels they hold; the commonest goes first to those that still have none.

    Args:
        counts: positives per class, (C,), in the order of :data:`CLASSES`.
        images: N.
        key: names the random stream; equal key, equal matrix.
    """
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")))
    themes = list(THEMES.values())
    theme_of = rng.random(images) * len(themes)
    targets = np.zeros((images, len(counts)), np.uint8)
    by_rarity = np.argsort(counts, kind="stable")
    for index in by_rarity:
        home = np.array([CLASSES[index] in members for members in themes])[theme_of.astype(int)]
        labels = targets.sum(1)
        weight = np.where(home, AT_HOME, 1.0) * CROWDING**labels
        if index == by_rarity[-1]:
            weight = np.where(labels == 0, np.inf, weight)
        keys = -np.log(rng.random(images)) / weight  # the n smallest exponential clocks: sampling without replacement
        targets[np.argsort(keys, kind="stable")[: counts[index]], index] = 1
    return targets[_covering_order(targets)]


def _covering_order(targets: np.ndarray) -> np.ndarray:
    """Put one image of each class first, so that a shortened list still has every class."""
    first: list[int] = []
    for index in np.argsort(targets.sum(0), kind="stable"):
        if not targets[first, index].any():
            first.append(int(np.flatnonzero(targets[:, index])[0]))
    return np.array([*first, *np.setdiff1d(np.arange(len(targets)), first)])
