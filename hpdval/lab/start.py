"""``hpdval.explore``: from a run or a model and a data set to the explorer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hpdval.data.dataset import Dataset, Split
from hpdval.errors import ConfigError, DataError
from hpdval.models import Clip
from hpdval.scoring.runs import load_run
from hpdval.scoring.scorer import Scorer, zero_shot_scorer

if TYPE_CHECKING:
    from hpdval.lab.explorer import Explorer

Model = str | os.PathLike[str] | Scorer | Clip
SPLITS = ("train", "val", "test")
FITTED = 4000  # training images that thresholds are fitted on, at most: all of them must be encoded once


def explore(
    model: Model,
    dataset: Dataset,
    *,
    other: Model | None = None,
    split: str = "test",
    images: int | Sequence[int] | None = None,
    height: int = 360,
    show: bool = True,
) -> Explorer:
    """Browse the images of a data set with a model's maps and scores, or with those of two models side by side.

    Images are encoded once, into the store of features that training uses; a second start reads them.  Thresholds are
    those of highest F1 on validation images, or on training images where there are none, never on test images.  What
    each control does is in ``docs/explorer.md``; each can be set in Python, too: ``view.klass = "boat"``.

    Args:
        model: the folder of a finished run, a :class:`Scorer`, or a :class:`Clip`, which is used zero-shot.
        dataset: of :func:`hpdval.load_dataset`, with the classes that the model knows.
        other: a second model, to be compared with the first.
        split: ``"test"``, ``"val"`` or ``"train"``.
        images: which to look at: indices in the split, or how many from its start; default: all.
        height: of the pictures' longer side, in pixels.
        show: progress while images are encoded.

    Raises:
        RunError: the run is unfinished or was altered.
        ConfigError: classes that the model does not know, an unknown split, or images out of range.
        DataError: the split has no images, or one cannot be decoded.
    """
    from hpdval.lab.explorer import Explorer
    from hpdval.lab.view import View, check_classes

    shown = _chosen(dataset, split, images)
    if isinstance(height, bool) or not isinstance(height, int) or not 64 <= height <= 2000:
        raise ConfigError(f"height is {height!r}; it must be a number of pixels in 64 .. 2000")
    fitted, caption = _fitted(dataset)
    given = [model] if other is None else [model, other]
    scorers = [_scorer(one, dataset) for one in given]
    for scorer in scorers:
        check_classes(scorer, dataset.classes)
    names = _names(given, scorers)
    views = [
        View(name, scorer, shown, fitted, dataset.classes, fit=caption, show=show)
        for name, scorer in zip(names, scorers, strict=True)
    ]
    return Explorer(dataset, shown, views, height)


def _chosen(dataset: Dataset, split: str, images: int | Sequence[int] | None) -> Split:
    if split not in SPLITS:
        raise ConfigError(f"split is {split!r}; use one of {', '.join(map(repr, SPLITS))}")
    found: Split = getattr(dataset, split)
    if not len(found):
        full = ", ".join(name for name in SPLITS if len(getattr(dataset, name))) or "none"
        raise DataError(f"{dataset.name} has no {split} images; splits with images: {full}")
    if images is None:
        return found
    rows = np.arange(images) if isinstance(images, int) and not isinstance(images, bool) else np.asarray(images)
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or not rows.size or rows.min() < 0 or rows.max() >= len(found):
        raise ConfigError(
            f"images is {images!r}; give indices in 0 .. {len(found) - 1}, or how many, 1 .. {len(found)}"
        )
    return found.subset(rows)


def _fitted(dataset: Dataset) -> tuple[Split, str]:
    """Return the images that thresholds are fitted on, and what the page says of them."""
    if len(dataset.val):
        return dataset.val, f"Tick: threshold of best F1 on the {len(dataset.val)} validation images"
    total = len(dataset.train)
    if not total:
        return dataset.train, "No thresholds: there are no training or validation images"
    rows = np.unique(np.linspace(0, total - 1, min(FITTED, total)).round().astype(int))
    count = str(total) if len(rows) == total else f"{len(rows)} of {total}"
    words = f"Tick: threshold of best F1 on {count} training images, too high if the model was trained on them"
    return dataset.train.subset(rows), words


def _scorer(model: Model, dataset: Dataset) -> Scorer:
    if isinstance(model, Scorer):
        return model
    if isinstance(model, Clip):
        return zero_shot_scorer(model, dataset.classes)
    if isinstance(model, str | os.PathLike):
        return load_run(model)
    raise ConfigError(f"model is a {type(model).__name__}; give the folder of a finished run, a Scorer or a Clip")


def _names(models: Sequence[Model], scorers: Sequence[Scorer]) -> list[str]:
    names = [scorer.method or "model" for scorer in scorers]
    if len(set(names)) < len(names):  # the same method twice: folders tell them apart
        names = [
            f"{name}, {Path(model).name}" if isinstance(model, str | os.PathLike) else name
            for name, model in zip(names, models, strict=True)
        ]
    return names if len(names) == 1 else [f"{letter}: {name}" for letter, name in zip("AB", names, strict=True)]
