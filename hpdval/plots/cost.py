"""What is reached at what price: mAP against training time or against the number of trained parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from hpdval.errors import ConfigError
from hpdval.metrics import Interval
from hpdval.plots.labels import name_points
from hpdval.plots.style import (
    FAINT,
    GROUP_COLOURS,
    GROUP_MARKERS,
    INK,
    PAGE,
    Chart,
    legend_below,
    new_chart,
    plain,
    styled,
    titled,
)
from hpdval.tables.cost import count_text

AXES = {"seconds": "training time, seconds (logarithmic)", "parameters": "parameters trained (logarithmic)"}
TALLEST = 5.0  # inches of a panel; its names have found a place before


@styled
def map_against_cost(
    costs: Mapping[str, float],
    intervals: Mapping[str, Mapping[str, Interval]],
    *,
    unit: str = "seconds",
    title: str = "What is reached at what price",
) -> Chart:
    """Draw mAP in total and on tail classes against what training took, each method a named dot with its interval.

    Methods that cost nothing stand on the left of a dotted line, since 0 has no place on a logarithmic axis.  Panels
    grow until no name covers another or a mark.

    Args:
        costs: label -> seconds or parameters; 0 where nothing was trained; NaN, unknown, is left out.
        intervals: label -> what ``hpdval.metrics.bootstrap`` returned; bars are 95 % intervals over test images.
        unit: ``seconds`` or ``parameters``.

    Raises:
        ConfigError: another unit, or no cost is known.
    """
    if unit not in AXES:
        raise ConfigError(f"unit is {unit!r}; choose from {', '.join(AXES)}")
    labels = [label for label, cost in costs.items() if not math.isnan(cost)]
    if not labels:
        raise ConfigError("no cost is known; give seconds or parameters of at least one method")
    found = {label: intervals[label] for label in labels}
    names = [n for n in ("total", "tail") if not all(math.isnan(one[n].estimate) for one in found.values())]
    values = np.array([max(costs[label], 0.0) for label in labels])
    for height in np.arange(2.1 + 0.06 * len(labels), TALLEST + 1, 0.8):
        figure, free = _drawn(values, found, names, unit, title, float(height))
        if free:
            break
    return figure


def _drawn(
    values: np.ndarray,
    found: Mapping[str, Mapping[str, Interval]],
    names: list[str],
    unit: str,
    title: str,
    height: float,
) -> tuple[Chart, bool]:
    figure = new_chart(PAGE, height * len(names) + 0.9)
    panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    places = _price_axis(panels[-1], values, unit)
    handles, limits = [], []
    for panel, name in zip(panels, names, strict=True):
        colour, marker = (INK, "D") if name == "total" else (GROUP_COLOURS[name], GROUP_MARKERS[name])
        middle, low, high = (
            np.array([getattr(one[name], side) for one in found.values()]) for side in ("estimate", "low", "high")
        )
        panel.vlines(places, low, high, color=FAINT, lw=1.0, zorder=2)
        panel.scatter(places, middle, s=22, color=colour, marker=marker, zorder=3)
        handles.append(Line2D([], [], ls="", marker=marker, ms=5, color=colour, label=f"mAP, {name}"))
        panel.grid(axis="y")
        panel.margins(y=0.08)
        panel.set_ylabel(f"mAP, {name}, percent")
        if (values == 0).any() and (values > 0).any():
            free = places[values == 0][0]
            panel.axvline((free + places[values > 0].min()) / 2, color="#999999", ls=":", lw=1.0, zorder=1)
        limits.append(np.column_stack([low, high]))
    handles.append(Line2D([], [], color=FAINT, lw=1.2, label="95 % bootstrap interval over test images"))
    titled(panels[0], title, PAGE)
    legend_below(figure, handles)
    shown = [plain(label, 44) for label in found]
    done = []
    for panel, name, soft in zip(panels, names, limits, strict=True):
        middle = np.array([one[name].estimate for one in found.values()])
        there = ~np.isnan(middle)
        named = [label for label, one in zip(shown, there, strict=True) if one]
        done.append(name_points(panel, places[there], middle[there], named, soft[there]))
    return figure, all(done)


def _price_axis(axes: Axes, values: np.ndarray, unit: str) -> np.ndarray:
    """Return where the values stand, (K,): decimal logarithms, and 0 on their left; with ticks that say so."""
    known = values[values > 0]
    logs = np.log10(known) if known.size else np.zeros(1)
    first, last = float(logs.min()), float(logs.max())
    span = max(last - first, 0.5)
    nothing = first - max(0.16 * span, 0.1)
    places = np.where(values > 0, np.log10(np.where(values > 0, values, 1.0)), nothing)
    digits = (1.0,) if span > 2 else (1.0, 2.0, 5.0) if span > 0.7 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    powers = range(math.floor(first - span), math.ceil(last + span) + 1)
    low = (nothing if (values == 0).any() else first) - 0.06 * span
    high = last + 0.22 * span
    ticks = [d * 10.0**p for p in powers for d in digits]
    ticks = [t for t in ticks if first - 0.06 * span <= math.log10(t) <= high] if known.size else []
    zero = [nothing] if (values == 0).any() else []
    text = count_text if unit == "parameters" else "{:g}".format
    where: Any = [*zero, *(math.log10(t) for t in ticks)]
    axes.set_xticks(where, ["nothing\ntrained" for _ in zero] + [text(t) for t in ticks])
    axes.set_xlim(low, high)
    axes.set_xlabel(AXES[unit])
    return places
