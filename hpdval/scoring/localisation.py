"""How well the maps of a model show where classes are: maps of a split, measured against its boxes or masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from hpdval.data.dataset import Dataset, Split
from hpdval.data.masks import Region, regions
from hpdval.data.store import ImageStore
from hpdval.errors import ConfigError
from hpdval.metrics.localisation import Localisation, centre_map, random_map
from hpdval.models.attention import attention_rollout, gradient_attention
from hpdval.models.dual_view import patch_scores
from hpdval.progress import progress
from hpdval.scoring.dual_view import DualViewScorer, with_views
from hpdval.scoring.features import encode_split
from hpdval.scoring.maps import METHODS, default_prompts, grid_box, pairs_at_once, texts_of, upsample

BLIND = ("random", "centre")  # maps that know nothing of the image


def localise(
    scorer: DualViewScorer,
    dataset: Dataset,
    *,
    split: str = "test",
    method: str = "similarity",
    prompts: str | None = None,
    reading: str | None = None,
    tolerance: float = 0.0,
    known: Sequence[dict[int, Region]] | None = None,
    show: bool = True,
) -> Localisation:
    """Return what the maps of a model are worth for each pair of an image and a class that it shows.

    Args:
        scorer: knows the classes of the data set, in any order.
        dataset: of a source that knows boxes: scenes-lt, COCO or VOC; masks count where they are known.
        split: ``"test"``, ``"val"`` or ``"train"``.
        method: one of :data:`hpdval.scoring.maps.METHODS`; or ``"random"`` or ``"centre"``, on the grid of this model.
        prompts, reading: as for :func:`hpdval.heatmaps`.
        tolerance: in pixels, of the pointing game.
        known: the regions of every image, ``[regions(part, i) for i in range(len(part))]``, for several calls.

    Raises:
        ConfigError: an unknown method, set of prompts or reading, or a class that the model does not know.
        DataError: the source knows no boxes.

    >>> import hpdval
    >>> data = hpdval.load_dataset("scenes-lt", train=20, test=20)
    >>> model = hpdval.zero_shot_scorer(hpdval.load_clip("scenes"), data.classes)
    >>> record = localise(model, data, method="centre")
    >>> len(record), int(data.test.targets.sum()), sorted(record.values)
    (53, 53, ['energy', 'iou', 'pointing'])
    """
    scorer = with_views(scorer)
    if method not in (*METHODS, *BLIND):
        raise ConfigError(f"method is {method!r}; use one of {', '.join(map(repr, (*METHODS, *BLIND)))}")
    part, columns = _part(dataset, split), _columns(scorer, dataset)
    known = [regions(part, i) for i in range(len(part))] if known is None else known
    classes = [[columns[c] for c in found] for found in known]
    if method in BLIND:
        maps = _blind(method, scorer, part, classes)
    else:
        options: dict[str, Any] = {"method": method, "prompts": prompts, "reading": reading, "show": show}
        maps = maps_of_split(scorer, part, classes, **options)
    return Localisation.measure(_items(scorer, known, maps), tolerance=tolerance)


def _part(dataset: Dataset, split: str) -> Split:
    if split not in ("train", "val", "test"):
        raise ConfigError(f"split is {split!r}; use 'train', 'val' or 'test'")
    part: Split = getattr(dataset, split)
    return part


def _columns(scorer: DualViewScorer, dataset: Dataset) -> list[int]:
    """Return where the model has each class of the data set: by name, for orders may differ."""
    place = {name: i for i, name in enumerate(scorer.classes)}
    unknown = [name for name in dataset.classes if name not in place]
    if unknown:
        raise ConfigError(f"the model does not know {unknown[0]!r} ({len(unknown)} of {len(dataset.classes)} classes)")
    return [place[name] for name in dataset.classes]


def localise_models(
    models: Mapping[str, DualViewScorer],
    dataset: Dataset,
    *,
    split: str = "test",
    methods: Sequence[str] = ("similarity", "gradient"),
    **options: Any,
) -> dict[str, Localisation]:
    """Return the records of several models by several methods, and first of the maps that know nothing.

    Their names are ``"random"``, ``"centre"``, then ``"similarity: zero-shot"`` and so on.

    Args:
        models: the first one's grid of patches is that of the maps that know nothing.
        options: of :func:`localise`.
    """
    part = _part(dataset, split)
    options |= {"known": [regions(part, i) for i in range(len(part))], "split": split}
    first = next(iter(models.values()))
    records = {blind: localise(first, dataset, method=blind, **options) for blind in BLIND}
    for method in methods:
        records |= {f"{method}: {name}": localise(m, dataset, method=method, **options) for name, m in models.items()}
    return records


def _items(
    scorer: DualViewScorer, known: Sequence[dict[int, Region]], maps: Iterator[np.ndarray]
) -> Iterator[tuple[int, int, Region, np.ndarray]]:
    """Yield image, class, region and the map over the image of each pair."""
    for index, (found, values) in enumerate(zip(known, maps, strict=True)):
        if found:
            shape = next(iter(found.values())).mask.shape
            pixels = upsample(values, shape, grid_box(scorer, shape))  # (n, H, W)
            for (c, region), heatmap in zip(found.items(), pixels, strict=True):
                yield index, c, region, heatmap


def _blind(method: str, scorer: DualViewScorer, split: Split, classes: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
    rows, columns = scorer.clip.patch_grid
    for name, wanted in zip(split.ids, classes, strict=True):
        maps = np.zeros((len(wanted), rows, columns), np.float32)
        for values, c in zip(maps, wanted, strict=True):
            same = method == "centre"
            values[:] = (
                centre_map((rows, columns)) if same else random_map((rows, columns), f"{name} {scorer.classes[c]}")
            )
        yield maps


def maps_of_split(
    scorer: DualViewScorer,
    split: Split,
    classes: Sequence[Sequence[int]],
    *,
    method: str = "similarity",
    prompts: str | None = None,
    reading: str | None = None,
    show: bool = True,
) -> Iterator[np.ndarray]:
    """Yield the maps (n, rows, columns) float32 of every image of a split, in its order, n for its chosen classes.

    Similarities come from the split's stored features, attention from its stored pixels.

    Args:
        classes: for each image the indices of the classes to show, any number of them.
        method, prompts, reading: as for :func:`heatmaps`; ``"rollout"`` repeats its one map.
    """
    if len(classes) != len(split):
        raise ConfigError(f"classes are given for {len(classes)} of {len(split)} images; give a list for each")
    texts = texts_of(scorer, prompts or default_prompts(method))
    grid = scorer.clip.patch_grid
    if method == "similarity":
        rows = _similarities(scorer, split, classes, texts, reading or scorer.score_config.reading, show)
    else:
        rows = _attentions(scorer, split, classes, texts, method, show)
    for wanted in classes:
        yield np.stack(list(islice(rows, len(wanted)))).reshape(-1, *grid) if len(wanted) else np.zeros((0, *grid))
    next(rows, None)  # lets it end, and its progress bar with it


def _similarities(
    scorer: DualViewScorer,
    split: Split,
    classes: Sequence[Sequence[int]],
    texts: torch.Tensor,
    reading: str,
    show: bool,
) -> Iterator[np.ndarray]:
    """Yield the map (P,) of each pair of image and class, from stored features."""
    options: Any = {"resize": scorer.resize, "precision": scorer.precision, "show": show}
    index = 0
    for features in encode_split(scorer.clip, split, **options).batches():
        scores = patch_scores(features.patches, texts, reading).cpu().numpy()  # (B, P, C)
        for row in scores:
            yield from row.T[list(classes[index])]
            index += 1


def _attentions(
    scorer: DualViewScorer,
    split: Split,
    classes: Sequence[Sequence[int]],
    texts: torch.Tensor,
    method: str,
    show: bool,
) -> Iterator[np.ndarray]:
    """Yield the map (P,) of each pair of image and class, from stored pixels."""
    images = ImageStore.open(split, scorer.clip.image_size, mode=scorer.resize).images
    image_of = np.repeat(np.arange(len(split)), [len(wanted) for wanted in classes])
    if method == "rollout":  # one map, whatever the class
        wanted_images, repeats = np.unique(image_of, return_counts=True)
        for start in _chunks(len(wanted_images), pairs_at_once(scorer), "rollout maps", show):
            values = attention_rollout(scorer.clip, torch.from_numpy(images[wanted_images[start]])).cpu().numpy()
            yield from np.repeat(values, repeats[start], axis=0)
        return
    class_of = torch.tensor([int(c) for wanted in classes for c in wanted], device=texts.device)
    for start in _chunks(len(image_of), pairs_at_once(scorer), "gradient maps", show):
        view = torch.from_numpy(images[image_of[start]])
        yield from gradient_attention(scorer.clip, view, texts[class_of[start]]).cpu().numpy()


def _chunks(count: int, size: int, words: str, show: bool) -> Iterator[slice]:
    starts = range(0, count, size)
    for start in progress(iter(starts), words, total=len(starts), show=show):
        yield slice(start, start + size)
