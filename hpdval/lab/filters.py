"""Which images to look at, and in which order: from scores and labels, numpy alone.

Letters: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import rankdata

from hpdval.data.dataset import Split


def misranked(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return for each image the share of (present, absent) pairs of classes in which the absent one scores higher.

    (N,) in [0, 1], 0 for an image that is ranked rightly; NaN where all classes are present, or none.
    """
    order = np.lexsort((1 - targets.astype(np.int8), -scores), axis=-1)  # among equals the present ones come first
    present = np.take_along_axis(targets, order, axis=1).astype(bool)
    wrong = np.where(present, np.cumsum(~present, axis=1), 0).sum(1)
    pairs = present.sum(1) * (~present).sum(1)
    return np.where(pairs > 0, wrong / np.maximum(pairs, 1), np.nan)


def label_ranking(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the average precision of the classes' ranking in each image, (N,) in (0, 1]; NaN without a label.

    The mean over present classes of (present classes that score at least as high) / (classes that do), whose mean over
    images is scikit-learn's ``label_ranking_average_precision_score``.
    """
    present = targets.astype(bool)
    among_all = rankdata(-scores, method="max", axis=1)
    among_present = rankdata(np.where(present, -scores, np.inf), method="max", axis=1)
    count = present.sum(1)
    total = np.where(present, among_present / among_all, 0).sum(1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def change(before: np.ndarray, after: np.ndarray, targets: np.ndarray, klass: int | None = None) -> np.ndarray:
    """Return by how much each image is ranked better under other scores, (N,); negative where it is worse.

    Without a class: the change of :func:`label_ranking`.  With one: the share of the split by which the image moved in
    the ranking for that class, upward where it has the class and downward where it has not.
    """
    if klass is None:
        return label_ranking(after, targets) - label_ranking(before, targets)
    places = [rankdata(-scores[:, klass]) for scores in (before, after)]
    direction = np.where(targets[:, klass] > 0, 1.0, -1.0)
    return direction * (places[0] - places[1]) / max(len(targets), 1)


def rank_among(values: np.ndarray, place: int) -> int:
    """Return the rank of one value among all, 1 for the highest; of equals each has the best rank.

    >>> rank_among(np.array([0.1, 0.5, 0.5]), 2)
    1
    """
    return int((values > values[place]).sum()) + 1


def smallest_boxes(split: Split, image: int) -> np.ndarray:
    """Return the share of an image that the smallest box of each class covers, (C,) in [0, 1], NaN without a box."""
    width, height = split.size(image) if split.size is not None else split.image(image).shape[1::-1]
    shares = np.full(split.targets.shape[1], np.nan)
    for one, _, _, box_width, box_height in split.boxes(image) if split.boxes is not None else ():
        shares[int(one)] = np.fmin(shares[int(one)], min(1.0, box_width * box_height / (width * height)))
    return shares


def small(smallest: np.ndarray, klass: str = "") -> tuple[str, np.ndarray]:
    """Return which images have a small object, (N,) bool, and the name of that filter, which states the bound.

    Small is what the smallest third of the images has: at most the 1/3 quantile of ``smallest``, the share of an image
    that its smallest box covers, NaN without a box.

    >>> small(np.array([0.5, 0.01, np.nan, 0.2]), "cat")
    ('with a small cat (at most 1.00% of the image, the smallest third of 3)', array([False,  True, False, False]))
    """
    known = smallest[~np.isnan(smallest)]
    bound = float(np.quantile(known, 1 / 3, method="inverted_cdf")) if len(known) else 0.0
    words = f"(at most {bound:.2%} of the image, the smallest third of {len(known)})"
    return f"with a small {klass or 'object'} {words}", smallest <= bound


def ordered(values: np.ndarray | None, masks: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """Return the indices of the images that pass all masks, highest value first; unknown (NaN) values are left out.

    >>> ordered(np.array([1.0, np.nan, 3.0, 2.0]), {"a": np.array([True, True, True, False])}, 4)
    array([2, 0])
    """
    keep = np.ones(count, bool)
    for mask in masks.values():
        keep &= mask
    if values is None:
        return np.flatnonzero(keep)
    found = np.flatnonzero(keep & ~np.isnan(values))
    return found[np.argsort(-values[found], kind="stable")]


def matching(ids: Sequence[str], words: str) -> np.ndarray:
    """Return which ids contain some words, (N,) bool; case does not matter."""
    wanted = words.strip().casefold()
    return np.array([wanted in one.casefold() for one in ids], dtype=bool)


def why_none(values: np.ndarray | None, masks: Mapping[str, np.ndarray], count: int) -> str:
    """Say in words why no image is left, and which filter to relax first: the one without which most images remain.

    >>> why_none(None, {"with boat": np.array([True, False]), "id has 'x'": np.array([False, False])}, 2)
    "no image is left of 2: with boat, id has 'x'; without «id has 'x'» there is 1 image"
    """
    if not masks or not count:
        return f"no image of {count} has what this order needs; choose another order"
    left = {name: len(ordered(values, {n: m for n, m in masks.items() if n != name}, count)) for name in masks}
    best = max(left, key=lambda name: left[name])
    words = f"no image is left of {count}: {', '.join(masks)}"
    if not left[best]:
        return f"{words}; relax more than one of them"
    return f"{words}; without «{best}» there {'is 1 image' if left[best] == 1 else f'are {left[best]} images'}"
