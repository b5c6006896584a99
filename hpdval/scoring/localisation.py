"""How well the maps of a model show where classes are: maps of a split, measured against its boxes or masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hpdval.data.dataset import Split
from hpdval.data.masks import Region, regions
from hpdval.errors import ConfigError
from hpdval.metrics.localisation import Localisation, centre_map, random_map
from hpdval.scoring.maps import METHODS, grid_box, maps_of_split, upsample
from hpdval.scoring.scorer import Scorer

BLIND = ("random", "centre")  # maps that know nothing of the image


def localise(
    scorer: Scorer,
    split: Split,
    *,
    method: str = "similarity",
    prompts: str | None = None,
    reading: str | None = None,
    tolerance: float = 0.0,
    known: Sequence[dict[int, Region]] | None = None,
    show: bool = True,
) -> Localisation:
    """Return what the maps of a model are worth for each pair of an image and a class that it shows.

    Args:
        scorer: its classes are those of the split.
        split: of a source that knows boxes: scenes-lt, COCO or VOC; masks count where they are known.
        method: one of :data:`hpdval.scoring.maps.METHODS`; or ``"random"`` or ``"centre"``, on the grid of this model.
        prompts, reading: as for :func:`hpdval.heatmaps`.
        tolerance: in pixels, of the pointing game.
        known: the regions of every image, ``[regions(split, i) for i in range(len(split))]``, for several calls.

    Raises:
        ConfigError: an unknown method, set of prompts or reading.
        DataError: the source knows no boxes.

    >>> import hpdval
    >>> data = hpdval.load_dataset("scenes-lt", train=20, test=20)
    >>> model = hpdval.zero_shot_scorer(hpdval.load_clip("scenes"), data.classes)
    >>> record = localise(model, data.test, method="centre")
    >>> len(record), int(data.test.targets.sum()), sorted(record.values)
    (53, 53, ['energy', 'iou', 'pointing'])
    """
    if method not in (*METHODS, *BLIND):
        raise ConfigError(f"method is {method!r}; use one of {', '.join(map(repr, (*METHODS, *BLIND)))}")
    if len(scorer.classes) != split.targets.shape[1]:
        raise ConfigError(f"the model has {len(scorer.classes)} classes, the split {split.targets.shape[1]}")
    known = [regions(split, i) for i in range(len(split))] if known is None else known
    classes = [list(found) for found in known]
    if method in BLIND:
        maps = _blind(method, scorer, split, classes)
    else:
        options: dict[str, Any] = {"method": method, "prompts": prompts, "reading": reading, "show": show}
        maps = maps_of_split(scorer, split, classes, **options)
    return Localisation.measure(_items(scorer, known, maps), tolerance=tolerance)


def _items(
    scorer: Scorer, known: Sequence[dict[int, Region]], maps: Iterator[np.ndarray]
) -> Iterator[tuple[int, int, Region, np.ndarray]]:
    """Yield image, class, region and the map over the image of each pair."""
    for index, (found, values) in enumerate(zip(known, maps, strict=True)):
        if found:
            shape = next(iter(found.values())).mask.shape
            pixels = upsample(values, shape, grid_box(scorer, shape))  # (n, H, W)
            for (c, region), heatmap in zip(found.items(), pixels, strict=True):
                yield index, c, region, heatmap


def _blind(method: str, scorer: Scorer, split: Split, classes: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
    rows, columns = scorer.clip.patch_grid
    for name, wanted in zip(split.ids, classes, strict=True):
        maps = np.zeros((len(wanted), rows, columns), np.float32)
        for values, c in zip(maps, wanted, strict=True):
            same = method == "centre"
            values[:] = (
                centre_map((rows, columns)) if same else random_map((rows, columns), f"{name} {scorer.classes[c]}")
            )
        yield maps


def localise_models(
    models: Mapping[str, Scorer], split: Split, *, methods: Sequence[str] = ("similarity", "gradient"), **options: Any
) -> dict[str, Localisation]:
    """Return the records of several models by several methods, and first of the maps that know nothing.

    Their names are ``"random"``, ``"centre"``, then ``"similarity: zero-shot"`` and so on.

    Args:
        models: on the same classes; the first one's grid of patches is that of the maps that know nothing.
        options: of :func:`localise`.
    """
    options["known"] = [regions(split, i) for i in range(len(split))]
    first = next(iter(models.values()))
    records = {blind: localise(first, split, method=blind, **options) for blind in BLIND}
    for method in methods:
        records |= {f"{method}: {name}": localise(m, split, method=method, **options) for name, m in models.items()}
    return records
