"""``hpdval.explore``: from a run or a model and a data set to the explorer."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hpdval.data.dataset import Dataset, Split
from hpdval.errors import ConfigError, DataError
from hpdval.models import Clip
from hpdval.run import read_manifest
from hpdval.scoring.dual_view import DualViewScorer, zero_shot_scorer
from hpdval.scoring.runs import label_digest, load_run

if TYPE_CHECKING:
    from hpdval.lab.explorer import Explorer

Model = str | os.PathLike[str] | DualViewScorer | Clip
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
    thresholds: bool = True,
    show: bool = True,
) -> Explorer:
    """Browse the images of a data set with a model's maps and scores, or with those of two models side by side.

    Images are encoded once, into the store of features that training uses; a second start reads them.  Thresholds are
    those of highest F1 on validation images, or on training images where there are none, never on test images.  A run
    that was made with other images than the data set has here may have been trained on these: a warning and the words
    below the bars say so.  What each control does is in ``docs/explorer.md``; each can be set in Python, too:
    ``view.klass = "boat"``.

    Args:
        model: the folder of a finished run, a :class:`DualViewScorer`, or a :class:`Clip`, which is used zero-shot.
        dataset: of :func:`hpdval.load_dataset`, with the classes that the model knows.
        other: a second model, to be compared with the first.
        split: ``"test"``, ``"val"`` or ``"train"``.
        images: which to look at: indices in the split, or how many from its start; default: all.
        height: of the pictures' longer side, in pixels.
        thresholds: False encodes no other images than those that are looked at, and shows no thresholds.
        show: progress while images are encoded.

    Raises:
        RunError: the run is unfinished or was altered.
        ConfigError: no data set, classes that the model does not know, an unknown split, or images out of range.
        DataError: the split has no images, or one cannot be decoded.
    """
    from hpdval.lab.explorer import Explorer
    from hpdval.lab.view import View, check_classes

    if not isinstance(dataset, Dataset):
        hint = f"load_dataset({dataset!r})" if isinstance(dataset, str) else "load_dataset(...)"
        raise ConfigError(f"dataset is a {type(dataset).__name__}; give what hpdval.{hint} returns")
    shown = _chosen(dataset, split, images)
    if isinstance(height, bool) or not isinstance(height, int) or not 64 <= height <= 2000:
        raise ConfigError(f"height is {height!r}; it must be a number of pixels in 64 .. 2000")
    fitted, caption = _fitted(dataset) if thresholds else (dataset.train.subset([]), "No thresholds, as asked for")
    given = [model] if other is None else [model, other]
    scorers = [_scorer(one, dataset) for one in given]
    for scorer in scorers:
        check_classes(scorer, dataset.classes)
    doubts = [_doubt(one, dataset) for one in given]
    for doubt in filter(None, doubts):
        warnings.warn(doubt, stacklevel=2)
    fits = [f"{caption}. Mind: {doubt}" if doubt else caption for doubt in doubts]
    views = [
        View(name, scorer, shown, fitted, dataset.classes, fit=fit, show=show)
        for name, scorer, fit in zip(_names(given, scorers), scorers, fits, strict=True)
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


def _doubt(model: Model, dataset: Dataset) -> str:
    """Say if a run was made with other images than the data set has here; "" where it was not, or trained nothing."""
    if not isinstance(model, str | os.PathLike):
        return ""
    manifest = read_manifest(model)
    recorded = manifest.get("inputs", {}).get("labels", {})
    other = [name for name in SPLITS if recorded.get(name) != label_digest(getattr(dataset, name))]
    if not other or manifest.get("kind") == "zero-shot":
        return ""
    config = manifest.get("config", {})
    return (
        f"{Path(model).name} was made with other {', '.join(other)} images than {dataset.name} has here and may "
        f"have been trained on these; load it with val={config.get('val')}, val_seed={config.get('seed')}"
    )


def _scorer(model: Model, dataset: Dataset) -> DualViewScorer:
    found: object = load_run(model) if isinstance(model, str | os.PathLike) else model
    if isinstance(found, DualViewScorer):
        return found
    if isinstance(found, Clip):
        return zero_shot_scorer(found, dataset.classes)
    what = f"{model} scores by a {type(found).__name__}" if found is not model else f"model is a {type(model).__name__}"
    raise ConfigError(f"{what}; the explorer shows texts on patches: give a run or scorer with two views, or a Clip")


def _names(models: Sequence[Model], scorers: Sequence[DualViewScorer]) -> list[str]:
    names = [scorer.method or "model" for scorer in scorers]
    if len(set(names)) < len(names):  # the same method twice: the first fact that tells them apart
        facts = zip(*map(_facts, models, scorers), strict=True)
        apart = next((pair for pair in facts if pair[0] != pair[1]), ("", ""))
        names = [", ".join(filter(None, pair)) for pair in zip(names, apart, strict=True)]
    return names if len(names) == 1 else [f"{letter}: {name}" for letter, name in zip("AB", names, strict=True)]


def _facts(model: Model, scorer: DualViewScorer) -> list[str]:
    """Return what may tell two models of one method apart."""
    folder = Path(model).resolve() if isinstance(model, str | os.PathLike) else None
    score, clip = scorer.score_config, scorer.clip
    return [
        folder.name if folder else "",
        f"{folder.parent.name}/{folder.name}" if folder else "",
        f"{clip.name} {Path(clip.pretrained or '').name}".strip(),
        f"{score.reading} reading",
        f"alpha {score.alpha:g}",
        f"k {score.k:.3g}",
    ]
