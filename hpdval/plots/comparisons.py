"""Figures of a comparison: curves over a setting, what each class adds to a gain, and ranks over classes.

Letters: K settings, C classes.  mAP is in percent, differences are in points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from hpdval.groups import GROUPS
from hpdval.metrics import Interval
from hpdval.plots.data import group_colours, group_legend
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
)

WIDE = 20  # the factor from which a setting's values stand on a logarithmic axis
NAMED = 40  # so many class names stand side by side on a page; of more, the outermost are named


@styled
def sensitivity(
    values: Sequence[float],
    intervals: Sequence[Mapping[str, Interval]],
    *,
    axis: str,
    reference: float | None = None,
    title: str = "Sensitivity",
) -> Chart:
    """Draw mAP in total and by group against a setting: means over seeds, bands for 95 % bootstrap intervals.

    The panels have scales of their own that span equally many points.  The setting's axis is logarithmic where all
    values are positive and the largest is more than 20 times the smallest.

    Args:
        values: (K,) of the setting.
        intervals: for each value what ``hpdval.metrics.bootstrap`` returned.
        axis: what the setting is called.
        reference: the value with which the others are compared, marked by a line.
    """
    order = np.argsort(values, kind="stable")
    x, found = np.array(values, dtype=float)[order], [intervals[i] for i in order]
    names = [name for name in ("total", *GROUPS) if not all(math.isnan(one[name].estimate) for one in found)]
    figure = new_chart(PAGE, 2.5)
    panels = figure.subplots(1, len(names), sharex=True, squeeze=False)[0]
    for panel, name in zip(panels, names, strict=True):
        colour, marker = (INK, "D") if name == "total" else (GROUP_COLOURS[name], GROUP_MARKERS[name])
        middle, low, high = (np.array([getattr(one[name], n) for one in found]) for n in ("estimate", "low", "high"))
        panel.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)
        panel.plot(x, middle, color=colour, marker=marker, ms=4, lw=1.6)
        if reference is not None:
            panel.axvline(reference, color="#777777", ls=":", lw=1.2)
        panel.set_title(name)
        panel.grid(axis="y")
        panel.yaxis.set_major_locator(MaxNLocator(5))
        _value_axis(panel, x)
    _equal_spans(panels)
    panels[0].set_ylabel("mAP, percent")
    figure.supxlabel(plain(axis, 80), fontsize=9)
    figure.suptitle(plain(title, 110), fontsize=10, fontweight="bold", x=0.01, ha="left")
    handles: list[Any] = [
        panels[0].plot([], [], color=INK, marker="D", ms=4, lw=1.6, label="mean over seeds")[0],
        panels[0].fill_between([], [], color=INK, alpha=0.2, lw=0, label="95 % bootstrap interval over test images"),
    ]
    if reference is not None:
        handles.append(panels[0].plot([], [], color="#777777", ls=":", lw=1.2, label=f"reference: {reference:g}")[0])
    legend_below(figure, handles)
    return figure


def _value_axis(panel: Any, x: np.ndarray) -> None:
    """Ticks at the values that were tried, as far as they stand apart, on a logarithmic axis where they span far."""
    logarithmic = x.min() > 0 and x.max() / x.min() > WIDE
    if logarithmic:
        panel.set_xscale("log")
    places = np.log(x) if logarithmic else x
    gap = (places.max() - places.min()) / 5 if len(x) > 1 else 0.0
    shown: list[int] = []
    for i in range(len(x)):
        if not shown or places[i] - places[shown[-1]] >= gap:
            shown.append(i)
    panel.set_xticks(x[shown])
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.tick_params(axis="x", labelsize=7)


def _equal_spans(panels: Sequence[Any]) -> None:
    span = max(high - low for low, high in (panel.get_ylim() for panel in panels))
    for panel in panels:
        middle = sum(panel.get_ylim()) / 2
        panel.set_ylim(middle - span / 2, middle + span / 2)


@styled
def gain_waterfall(
    classes: Sequence[str],
    class_counts: Sequence[int] | np.ndarray,
    gains: np.ndarray,
    *,
    title: str = "What each class adds to the gain",
) -> Chart:
    """Draw how the gain in mAP adds up: each class, largest gain first, adds its own gain divided by the classes.

    Args:
        class_counts: (C,) training positives, which decide the groups.
        gains: (C,) differences of AP in points; NaN for a class without test positives, which is left out.
    """
    known = np.flatnonzero(~np.isnan(gains))
    order = known[np.argsort(-gains[known], kind="stable")]
    steps = gains[order] / max(len(order), 1)
    ends = np.cumsum(steps)
    figure = new_chart(PAGE, 3.3)
    axes = figure.subplots()
    colours, total = group_colours(class_counts), float(ends[-1]) if len(ends) else 0.0
    places = np.arange(len(order))
    axes.bar(places, steps, 0.78, bottom=ends - steps, color=[colours[c] for c in order])
    axes.hlines(ends, places - 0.39, places + 1.39, color=FAINT, lw=0.7, zorder=1)
    axes.bar(len(order), total, 0.78, color=INK)
    below = total < 0
    where: Any = {"textcoords": "offset points", "ha": "center", "va": "top" if below else "bottom", "fontsize": 8}
    axes.annotate(f"{total:+.2f}", (len(order), total), (0, -2 if below else 2), **where)
    axes.axhline(0, color=INK, lw=0.8)
    shown = [*range(len(order))]
    if len(order) > NAMED:
        shown = [i for i in shown if i < NAMED // 2 - 1 or i > len(order) - NAMED // 2]
    names = [plain(classes[order[i]], 18) for i in shown]
    axes.set_xticks([*shown, len(order)], [*names, "mAP"], rotation=90 if len(order) > 25 else 55)
    axes.tick_params(axis="x", labelsize=7, length=0)
    if len(order) <= 25:
        for text in axes.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.7, len(order) + 0.7)
    axes.margins(y=0.12)
    axes.grid(axis="y")
    axes.set_ylabel("gain in mAP so far, points")
    axes.set_title(plain(title, 110))
    group_legend(figure, class_counts)
    return figure


@styled
def class_ranks(ranks: pd.DataFrame, *, title: str = "Mean rank over classes") -> Chart:
    """Draw mean ranks over classes, best first; bars join settings whose ranks do not differ significantly.

    Args:
        ranks: of :func:`hpdval.tables.rank_table`, with the groups of settings in ``attrs["cliques"]``.
    """
    labels, means = ranks["setting"].tolist(), ranks["mean rank"].to_numpy()
    cliques = [group for group in ranks.attrs["cliques"] if len(group) > 1]
    figure = new_chart(PAGE, 1.25 + 0.22 * len(labels))
    axes = figure.subplots()
    rows = np.arange(len(labels))
    axes.hlines(rows, 1, means, color=FAINT, lw=1.0, zorder=1)
    axes.scatter(means, rows, s=28, color=INK, zorder=3)
    for row, value in zip(rows, means, strict=True):
        axes.annotate(f"{value:.2f}", (value, row), (6, 0), textcoords="offset points", va="center", fontsize=7)
    step = 0.035
    for i, group in enumerate(cliques):
        first, last = labels.index(group[0]), labels.index(group[-1])
        where = 1.02 + step * i
        bar: Any = {"color": "#0072B2", "lw": 3.5, "solid_capstyle": "butt", "clip_on": False}
        axes.plot([where] * 2, [first - 0.25, last + 0.25], transform=axes.get_yaxis_transform(), **bar)
    axes.set_yticks(rows, [plain(label, 44) for label in labels])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlim(1, max(len(labels), 2) + 0.25)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("mean rank of the class's AP (1 is best)" + "; bars join what does not differ" * bool(cliques))
    axes.grid(axis="x")
    axes.set_title(plain(title, 100))
    return figure
