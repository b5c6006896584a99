"""Which images go where: long-tailed subsets, validation carved from training, and proof that splits are disjoint.

Letters: N images, C classes.
"""

from __future__ import annotations

import os
from itertools import combinations

import numpy as np

from hpdval.data.dataset import Dataset
from hpdval.data.store import ImageStore
from hpdval.errors import ConfigError, DataError


def pareto_reference(n_classes: int, minimum: int, maximum: int, b: float = 6.0) -> np.ndarray:
    """Return the reference counts of a long tail, (C,) int64, descending from ``maximum`` to ``minimum``.

    The k-th count follows the density of a Pareto distribution, n_k = maximum * x_k^-(b + 1), at C evenly spaced
    points from x_1 = 1 to x_C = (maximum / minimum)^(1 / (b + 1)).  Source: Wu et al., "Distribution-Balanced Loss",
    ECCV 2020 (b = 6); the even spacing is ours, and comes close to the counts of VOC-LT.

    Raises:
        ConfigError: unless C >= 1, 1 <= minimum <= maximum and b > 0.

    >>> pareto_reference(5, 4, 775).tolist()
    [775, 137, 34, 11, 4]
    """
    if n_classes < 1 or not 1 <= minimum <= maximum or b <= 0:
        raise ConfigError(
            f"n_classes={n_classes}, minimum={minimum}, maximum={maximum}, b={b}; "
            "it must be n_classes >= 1, 1 <= minimum <= maximum, b > 0"
        )
    points = np.linspace(1.0, (maximum / minimum) ** (1 / (b + 1)), n_classes)
    return np.rint(maximum * points ** -(b + 1)).astype(np.int64)


def long_tail_subset(targets: np.ndarray, *, minimum: int, maximum: int, seed: int, b: float = 6.0) -> np.ndarray:
    """Return the indices, ascending, of a random subset whose class counts follow a long tail.

    Classes are ranked by co-occurrence, sum_j n_ij / n_j over the other classes j: what comes with everything becomes
    head. The k-th class has the k-th count of :func:`pareto_reference` as its reference.  From the rarest class up,
    images are added at random until the class meets its reference (or has no more images), those first that fill no
    class beyond its own; then images are dropped at random wherever every class of theirs stays at its reference or
    above.  Because images carry several labels, some counts end above the reference; images without a label are left
    out.  Source: Wu et al., ECCV 2020.

    Args:
        targets: (N, C) of 0 and 1.
        minimum: images of the rarest class.
        maximum: images of the commonest class.
        seed: of the random choices.
        b: shape of the Pareto distribution.

    Raises:
        ConfigError: as :func:`pareto_reference`.
        DataError: a class has fewer than ``minimum`` images.
    """
    labels = np.asarray(targets).astype(bool)
    available = labels.sum(0)
    if (available < minimum).any():
        worst = int(available.argmin())
        raise DataError(f"class {worst} has {available[worst]} images, fewer than minimum={minimum}; ask for fewer")
    together = labels.T.astype(np.int64) @ labels
    share = together / np.maximum(available, 1)  # (C, C): how often class i is there when class j is
    ranked = np.argsort(-(share.sum(1) - share.diagonal()), kind="stable")
    reference = np.empty(len(available), np.int64)
    reference[ranked] = pareto_reference(len(available), minimum, maximum, b)
    reference = np.minimum(reference, available)

    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), bool)
    counts = np.zeros_like(reference)
    for one in ranked[::-1]:
        candidates = rng.permutation(np.flatnonzero(labels[:, one] & ~chosen))
        for may_overfill in (False, True):
            for i in candidates:
                if counts[one] >= reference[one]:
                    break
                if not chosen[i] and (may_overfill or (counts[labels[i]] < reference[labels[i]]).all()):
                    chosen[i] = True
                    counts += labels[i]
    for i in rng.permutation(np.flatnonzero(chosen)):
        if (counts[labels[i]] > reference[labels[i]]).all():
            chosen[i] = False
            counts -= labels[i]
    return np.flatnonzero(chosen)


def class_members(targets: np.ndarray) -> list[np.ndarray]:
    """Return the images of each class, ascending, from one pass over targets (N, C) of 0 and 1.

    >>> [found.tolist() for found in class_members(np.array([[1, 0, 1], [0, 0, 1]]))]
    [[0], [], [0, 1]]
    """
    rows, columns = np.nonzero(targets)
    order = np.argsort(columns, kind="stable")
    return np.split(rows[order], np.bincount(columns, minlength=targets.shape[1]).cumsum()[:-1])


def carve_validation(targets: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (training, validation) indices, ascending, with every class shared out by ``fraction``.

    Iterative stratification: of the classes with images left, the one with fewest is handed out first, each image to
    the part that still wants most of that class.  An image that holds a class's last training positive stays in
    training.  Source: Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-Label Data", ECML PKDD 2011,
    algorithm 1.

    Args:
        targets: (N, C) of 0 and 1; rows without a label are shared out at random.
        fraction: share of validation, above 0 and below 1.
        seed: of the order and of ties.

    Raises:
        ConfigError: ``fraction`` is out of range.

    >>> train, val = carve_validation(np.eye(2, dtype=np.uint8).repeat(10, 0), 0.2, seed=0)
    >>> len(train), len(val)
    (16, 4)
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"fraction is {fraction!r}; it must be above 0 and below 1")
    targets = np.asarray(targets)
    rows, columns = np.nonzero(targets)
    labels = np.split(columns, np.bincount(rows, minlength=len(targets)).cumsum()[:-1])  # classes of each image
    members = class_members(targets)
    rng = np.random.default_rng(seed)
    shares = np.array([1 - fraction, fraction])
    left = np.array([len(own) for own in members])
    wanted = left[:, None] * shares  # (C, 2): positives each part still wants
    wanted_images = len(targets) * shares
    in_train = left.copy()  # positives that are not in validation
    part = np.full(len(targets), -1)

    def give(i: int, one: int | None) -> None:
        mine = labels[i]
        train_first = rng.random() < shares[0]  # the last tie is broken by chance
        keys = [(wanted[one, p] if one is not None else 0.0, wanted_images[p], train_first == (p == 0)) for p in (0, 1)]
        to = int(keys[1] > keys[0] and bool((in_train[mine] > 1).all()))
        part[i] = to
        wanted[mine, to] -= 1
        wanted_images[to] -= 1
        left[mine] -= 1
        if to:
            in_train[mine] -= 1

    while left.any():
        one = int(np.where(left > 0, left, left.max() + 1).argmin())
        for i in rng.permutation(members[one][part[members[one]] < 0]):
            give(int(i), one)
    for i in rng.permutation(np.flatnonzero(part < 0)):
        give(int(i), None)
    return np.flatnonzero(part == 0), np.flatnonzero(part == 1)


def check_disjoint(
    dataset: Dataset, *, size: int | None = None, mode: str = "squash", cache: str | os.PathLike[str] | None = None
) -> None:
    """Make sure that no image is in two of train, validation and test: by name, and by content where ``size`` is given.

    Content is compared by the hashes of the decoded stores at S = ``size``: pass the size and mode a model uses, and
    the stores serve both.  Equal are images whose resized pixels are equal; near duplicates are not found.

    Raises:
        DataError: names the first pair and how many there are.
    """
    parts = {name: getattr(dataset, name) for name in ("train", "val", "test")}
    content = {n: ImageStore.open(s, size, mode=mode, cache=cache).hashes for n, s in parts.items()} if size else {}
    for first, second in combinations(parts, 2):
        ids = parts[first].ids, parts[second].ids
        _refuse_shared(dataset.name, "name", first, second, ids, ids)
        if content:
            _refuse_shared(dataset.name, "content", first, second, ids, (content[first], content[second]))


def _refuse_shared(
    dataset: str,
    what: str,
    first: str,
    second: str,
    ids: tuple[tuple[str, ...], ...],
    keys: tuple[tuple[str, ...], ...],
) -> None:
    places = dict(zip(keys[0], ids[0], strict=True))
    pairs = [(places[key], name) for key, name in zip(keys[1], ids[1], strict=True) if key in places]
    if pairs:
        raise DataError(
            f"{dataset}: {pairs[0][0]} in {first} and {pairs[0][1]} in {second} have the same {what} "
            f"({len(pairs)} such pairs); remove one of each"
        )
