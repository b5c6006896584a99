"""Figures of a comparison: curves over a setting, what each class adds to a gain, and ranks over classes.

Letters: K settings, C classes.  mAP is in percent, differences are in points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter, MaxNLocator

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
    titled,
)

WIDE = 20  # the factor from which a setting's values stand on a logarithmic axis
OUTERMOST = 20  # of more classes than stand side by side, so many at either end are drawn one by one


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

    The panels have scales of their own that span equally many points.  The setting's axis is logarithmic where no
    value is negative and the largest is more than 20 times the smallest positive one; 0 then stands left of that.

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
        panel.set_xlabel(" ")
        panel.grid(axis="y")
        panel.yaxis.set_major_locator(MaxNLocator(5))
        _value_axis(panel, x)
    _equal_spans(panels)
    panels[0].set_ylabel("mAP, percent")
    # below the first panel, over the width of all: a label of the figure would lie under its legend
    panels[0].set_xlabel(plain(axis, 80), loc="left").set_in_layout(False)
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
    places, least = x, x[x > 0].min(initial=np.inf)
    if x.min() >= 0 and x.max() / least > WIDE:
        if x.min() > 0:
            panel.set_xscale("log")
        else:  # from 0 to the least positive value, the width of a factor of ten
            panel.set_xscale("symlog", linthresh=least, linscale=1.0)
        places = np.where(x > 0, 1 + np.log10(np.maximum(x, least) / least), 0.0)
    inches = 1.35 * (places - places.min()) / (np.ptp(places) or 1.0)
    shown: list[int] = []
    for i in range(len(x)):
        widths = [0.06 * len(f"{x[k]:g}") for k in (i, *shown[-1:])]
        if not shown or inches[i] - inches[shown[-1]] >= sum(widths) / 2 + 0.06:
            shown.append(i)
    panel.set_xticks(x[shown])
    panel.set_xticks([], minor=True)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
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

    Of more than 41 classes the 20 at either end are drawn one by one, those between as one.

    Args:
        class_counts: (C,) training positives, which decide the groups.
        gains: (C,) differences of AP in points; NaN for a class without test positives, which is left out.
    """
    known = np.flatnonzero(~np.isnan(gains))
    order = known[np.argsort(-gains[known], kind="stable")]
    steps = gains[order] / max(len(order), 1)
    colours, names = group_colours(class_counts), [plain(name, 18) for name in classes]
    looks = [(names[c], colours[c]) for c in order]
    if len(order) > 2 * OUTERMOST + 1:
        inner = slice(OUTERMOST, -OUTERMOST)
        steps = np.concatenate([steps[:OUTERMOST], [steps[inner].sum()], steps[-OUTERMOST:]])
        looks[inner] = [(f"{len(order) - 2 * OUTERMOST} others", FAINT)]
    ends, places = np.cumsum(steps), np.arange(len(steps))
    total = float(ends[-1]) if len(ends) else 0.0
    figure = new_chart(PAGE, 3.3)
    axes = figure.subplots()
    axes.bar(places, steps, 0.78, bottom=ends - steps, color=[colour for _, colour in looks])
    axes.hlines(ends, places - 0.39, places + 1.39, color=FAINT, lw=0.7, zorder=1)
    axes.bar(len(steps), total, 0.78, color=INK)
    where: Any = {"textcoords": "offset points", "ha": "center", "va": "top" if total < 0 else "bottom", "fontsize": 8}
    axes.annotate(f"{total:+.2f}", (len(steps), total), (0, -2 if total < 0 else 2), **where)
    axes.axhline(0, color=INK, lw=0.8)
    axes.set_xticks(
        range(len(steps) + 1), [*(name for name, _ in looks), "mAP"], rotation=90 if len(steps) > 25 else 55
    )
    axes.tick_params(axis="x", labelsize=7, length=0)
    if len(steps) <= 25:
        for text in axes.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor")
    low, high = min(0.0, *ends), max(0.0, *ends)
    axes.set_ylim(low - 0.12 * (high - low) * (low < 0), high + 0.12 * (high - low or 1.0))
    axes.set_xlim(-0.7, len(steps) + 0.7)
    axes.grid(axis="y")
    axes.set_ylabel("gain in mAP so far, points")
    titled(axes, title, PAGE)
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
    axes.scatter(means, rows, s=28, color=INK, zorder=3, clip_on=False)
    for row, value in zip(rows, means, strict=True):
        axes.annotate(f"{value:.2f}", (value, row), (6, 0), textcoords="offset points", va="center", fontsize=7)
    count = max(len(labels), 2)
    step = 0.035 * (count - 1)
    for i, group in enumerate(cliques):
        first, last = labels.index(group[0]), labels.index(group[-1])
        where = count + step * (4 + i)
        bar: Any = {"color": "#0072B2", "lw": 3.5, "solid_capstyle": "butt"}
        axes.plot([where] * 2, [first - 0.25, last + 0.25], **bar)
    axes.set_yticks(rows, [plain(label, 44) for label in labels])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlim(1, count + step * (4 + len(cliques)))
    axes.set_xticks(range(1, count + 1))
    axes.set_xlabel("mean rank of the class's AP (1 is best)" + "; bars join what does not differ" * bool(cliques))
    axes.grid(axis="x")
    titled(axes, title, 0.7 * PAGE)
    return figure
