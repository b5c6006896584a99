"""Tables of localisation: methods beside maps that know nothing, classes one by one, and paired differences.

Letters: C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from hpdval.errors import ConfigError
from hpdval.groups import class_groups
from hpdval.metrics import Interval, Localisation, class_means, localisation_difference, localisation_interval
from hpdval.metrics.localisation import METRICS
from hpdval.metrics.localisation_intervals import SIZES, Records, size_bounds, size_thirds
from hpdval.tables.scores import group_names, verdict


def localisation_table(
    methods: Mapping[str, Records], class_counts: Sequence[int] | np.ndarray, **options: Any
) -> pd.DataFrame:
    """Return a row for each method and part: pointing game, energy inside and best IoU in percent, with 95 % limits.

    Parts are total, head, medium, tail and thirds by the region's share of the image; ``pairs`` of image and class are
    what the means are over.  Where the thirds divide, and what is known by box alone, stands in ``attrs["footnotes"]``.

    Args:
        methods: label -> record, or a list, one for each seed; all on the same pairs.  Give ``random_map`` and
            ``centre_map`` as methods, too: without them the numbers say little.
        class_counts: (C,) training positives, which decide the groups.
        options: of ``hpdval.metrics.localisation_interval``.

    Raises:
        ConfigError: no method, or records of other pairs.
    """
    first = _first(methods)
    found = {
        label: {metric: localisation_interval(records, class_counts, metric, **options) for metric in METRICS}
        for label, records in methods.items()
    }
    for records in methods.values():  # refuses methods that were measured on other pairs
        localisation_difference(records, first, class_counts, METRICS[0], resamples=2)
    pairs, rows = _pairs(first, class_counts), []
    for label, by_metric in found.items():
        for part, count in pairs.items():
            numbers = [getattr(by_metric[m][part], side) for m in METRICS for side in ("estimate", "low", "high")]
            rows.append((label, part, count, *numbers, len(by_metric[METRICS[0]][part].per_seed)))
    columns = [f"{metric}{side}" for metric in METRICS for side in ("", " low", " high")]
    table = pd.DataFrame(rows, columns=["method", "part", "pairs", *columns, "seeds"])
    table.attrs["footnotes"] = _footnotes(first)
    return table


def localisation_per_class(
    classes: Sequence[str],
    class_counts: Sequence[int] | np.ndarray,
    methods: Mapping[str, Records],
    metric: str = "pointing",
) -> pd.DataFrame:
    """Return a row for each class: group, training positives, pairs, median size of its regions, each method's mean.

    ``size`` is in percent of the image, the others are means over pairs and seeds in percent; NaN without pairs.
    """
    first = _first(methods)
    table = pd.DataFrame({"class": list(classes), "group": group_names(class_counts)})
    table["train"], table["pairs"] = np.asarray(class_counts), np.bincount(first.cls, minlength=len(classes))
    sizes = [first.size[first.cls == c] for c in range(len(classes))]
    table["size"] = [100 * float(np.median(one)) if one.size else float("nan") for one in sizes]
    for label, records in methods.items():
        table[label] = class_means(records, class_counts, metric)
    return table


def localisation_differences(
    pairs: Mapping[str, tuple[Records, Records]], class_counts: Sequence[int] | np.ndarray, **options: Any
) -> pd.DataFrame:
    """Return after - before in points with a 95 % paired interval, for each metric and part.

    ``gain`` is "yes" where the interval lies above 0 and all seeds agree, "loss" where it lies below and all agree,
    else "open".

    Args:
        pairs: label -> (after, before), each a record, or a list, one for each seed.
        class_counts: (C,) training positives, which decide the groups.
        options: of ``hpdval.metrics.localisation_difference``.
    """
    rows = []
    for label, (after, before) in pairs.items():
        for metric in METRICS:
            found: dict[str, Interval] = localisation_difference(after, before, class_counts, metric, **options)
            for part, one in found.items():
                numbers = (one.estimate, one.low, one.high, len(one.per_seed), verdict(one))
                rows.append((label, metric, part, *numbers))
    return pd.DataFrame(rows, columns=["comparison", "metric", "part", "difference", "low", "high", "seeds", "gain"])


def _first(methods: Mapping[str, Records]) -> Localisation:
    if not methods:
        raise ConfigError("there is no method; give at least one label with its record of localisation")
    one = next(iter(methods.values()))
    return one if isinstance(one, Localisation) else one[0]


def _pairs(record: Localisation, class_counts: Sequence[int] | np.ndarray) -> dict[str, int]:
    """Return how many pairs of image and class each part has, in the order of `localisation_interval`."""
    groups = {name: int(np.isin(record.cls, classes).sum()) for name, classes in class_groups(class_counts).items()}
    thirds = np.bincount(size_thirds(record), minlength=len(SIZES))
    return {"total": len(record), **groups, **dict(zip(SIZES, map(int, thirds), strict=True))}


def _footnotes(record: Localisation) -> list[str]:
    low, high = (100 * bound for bound in size_bounds(record))
    notes = [
        f"thirds: regions of up to {low:.2g} %, up to {high:.2g} % and more of the image",
        "iou: at the best threshold of each map, chosen with the region in sight: an upper bound",
    ]
    if not record.by_mask.all():
        notes.append(
            f"{100 * (1 - record.by_mask.mean()):.3g} % of the regions are boxes, whose corners are not object"
        )
    if record.tolerance:
        notes.append(f"pointing: {record.tolerance:g} pixels outside of the region still count")
    return notes
