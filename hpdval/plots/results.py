"""Figures of results: AP against frequency and size, changes with intervals.

Letters: N images, C classes.  AP is in percent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from hpdval.groups import GROUPS, class_groups
from hpdval.metrics import Evaluation, Interval
from hpdval.plots.data import group_colours, group_legend, whole_number_axis
from hpdval.plots.style import (
    FAINT,
    GROUP_COLOURS,
    GROUP_MARKERS,
    INK,
    NAMED,
    PAGE,
    Chart,
    legend_below,
    method_colours,
    new_chart,
    plain,
    styled,
    tick_size,
    titled,
)


@styled
def ap_against_frequency(
    class_counts: Sequence[int] | np.ndarray,
    per_class: Mapping[str, np.ndarray],
    classes: Sequence[str],
    *,
    chance: np.ndarray | None = None,
    title: str = "Average precision against class frequency",
) -> Chart:
    """Draw each class's AP against its training positives; the last method is full, an earlier one hollow.

    Args:
        class_counts: (C,) training positives, on a logarithmic axis.
        per_class: label -> (C,) AP in percent; one or two methods.
        classes: C names; written beside the points where there are at most 30.
        chance: (C,) prevalence in percent.
    """
    counts = np.maximum(np.asarray(class_counts), 0.5)
    figure = new_chart(PAGE, 4.6)
    axes = figure.subplots()
    labels = list(per_class)
    last = per_class[labels[-1]]
    if len(labels) > 1:
        first = per_class[labels[0]]
        axes.vlines(counts, first, last, color=FAINT, lw=1.2, zorder=1)
    for position, label in enumerate(labels):
        for group, indices in class_groups(class_counts).items():
            full = position == len(labels) - 1
            colour = GROUP_COLOURS[group]
            face = colour if full else "white"
            size, marker, z = (34, GROUP_MARKERS[group], 3) if full else (24, GROUP_MARKERS[group], 2)
            x, y = counts[indices], per_class[label][indices]
            axes.scatter(x, y, s=size, c=face, marker=marker, edgecolors=colour, zorder=z)
    if chance is not None:
        axes.scatter(counts, chance, 30, color="#555555", marker="_", lw=1.0, zorder=1)
    axes.set_xscale("log")
    whole_number_axis(axes.xaxis)
    axes.set_ylim(0, 105)
    axes.set_xlim(counts.min() / 1.3, counts.max() * 2.0)
    if len(classes) <= 30:
        others = [] if chance is None else [chance]
        _name_points(axes, counts, [*others, *per_class.values()], classes)
    axes.grid(axis="y")
    axes.set_xlabel("training images of the class (logarithmic)")
    axes.set_ylabel("average precision, percent")
    titled(axes, title, PAGE)
    handles = [axes.scatter([], [], color=GROUP_COLOURS[g], marker=GROUP_MARKERS[g], label=g) for g in GROUPS]
    names = [plain(label, 60) for label in labels]
    if len(labels) > 1:
        handles.append(axes.scatter([], [], facecolor="white", edgecolor=INK, marker="o", label=names[0]))
    handles.append(axes.scatter([], [], color=INK, marker="o", label=names[-1]))
    if chance is not None:
        handles.append(axes.scatter([], [], color="#555555", marker="_", label="chance (prevalence)"))
    legend_below(figure, handles)
    return figure


def _name_points(axes: Axes, x: np.ndarray, points: Sequence[np.ndarray], classes: Sequence[str]) -> None:
    """Write names beside the points of the last method, where they cover neither a mark nor another name.

    Positions are fractions of the axes; sizes are those of 7 point text in this figure.
    """
    low, high = np.log10(axes.get_xlim())
    across, top = (np.log10(x) - low) / (high - low), axes.get_ylim()[1]
    height, step, mark = 0.034, 0.0092, (0.010, 0.016)
    marks = [(a, y / top) for values in points for a, y in zip(across, values, strict=True) if not np.isnan(y)]
    taken = [(a - mark[0], b - mark[1], a + mark[0], b + mark[1]) for a, b in marks]
    for i in np.argsort(-np.nan_to_num(points[-1]), kind="stable"):
        if np.isnan(points[-1][i]):
            continue
        name, at, level = plain(classes[i], 16), across[i], points[-1][i] / top
        width = step * len(name)
        places = [
            (at + 0.015 if right else at - 0.015 - width, level + shift * height)
            for shift in (0, 0.6, -0.6, 1.1, -1.1, 1.7, -1.7, 2.4, -2.4, 3.2, -3.2)
            for right in (True, False)
        ]
        boxes = [(left, middle - height / 2, left + width, middle + height / 2) for left, middle in places]
        box = next(
            (b for b in boxes if b[0] >= 0 and b[2] <= 1.02 and not any(_overlap(b, t) for t in taken)), boxes[0]
        )
        taken.append(box)
        middle = (box[1] + box[3]) / 2
        axes.text(box[0], middle, name, transform=axes.transAxes, fontsize=7, va="center", color=INK)
        if abs(middle - level) > 1.3 * height:  # far from its mark: a thread leads back
            end = box[0] if box[0] > at else box[2]
            axes.plot([at, end], [level, middle], transform=axes.transAxes, color=FAINT, lw=0.6, zorder=1)


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@styled
def group_bars(
    intervals: Mapping[str, Mapping[str, Interval]],
    *,
    chance: Mapping[str, float] | None = None,
    title: str = "Mean average precision, with 95 % intervals",
) -> Chart:
    """Draw mAP in total and by group for each method, with bootstrap intervals over the test images.

    Args:
        intervals: label -> ``hpdval.metrics.bootstrap``'s result.
        chance: total, head, medium, tail -> prevalence in percent.
    """
    columns = [name for name in ("total", *GROUPS) if not all(math.isnan(i[name].estimate) for i in intervals.values())]
    figure = new_chart(PAGE, 3.7)
    axes = figure.subplots()
    width, colours = 0.8 / len(intervals), method_colours(intervals)
    upright = 0 if len(intervals) * len(columns) <= 22 else 90  # more numbers would not stand side by side
    handles: list[Any] = []
    for m, (label, values) in enumerate(intervals.items()):
        x = np.arange(len(columns)) + (m - (len(intervals) - 1) / 2) * width
        middle = np.array([values[name].estimate for name in columns])
        hatch = "///" if colours[m] in colours[:m] else None
        bars = axes.bar(
            x, middle, 0.92 * width, color=colours[m], label=plain(label, 60), hatch=hatch, edgecolor="white"
        )
        handles.append(bars)
        low, high = (np.array([getattr(values[name], side) for name in columns]) for side in ("low", "high"))
        axes.errorbar(x, (low + high) / 2, (high - low) / 2, fmt="none", ecolor=INK, lw=1.0, capsize=2.5)
        for position, value, limit in zip(x, middle, high, strict=True):
            at = (position, max(value, limit))
            style: Any = {
                "textcoords": "offset points",
                "ha": "center",
                "fontsize": 7,
                "rotation": upright,
                "va": "bottom",
            }
            axes.annotate(f"{value:.1f}", at, (0, 2), **style)
    if chance is not None:
        for place, name in enumerate(columns):
            line = axes.hlines(chance[name], place - 0.45, place + 0.45, color="black", lw=1.0, ls=(0, (2, 1)))
        line.set_label("chance (prevalence)")
        handles.append(line)
    axes.set_xticks(range(len(columns)), columns)
    axes.tick_params(axis="x", length=0)
    axes.set_ylim(0, min(118.0 if upright else 105.0, (1.3 if upright else 1.2) * axes.dataLim.y1))
    axes.grid(axis="y")
    axes.set_ylabel("mAP, percent")
    titled(axes, title, PAGE)
    legend_below(figure, handles)
    return figure


@styled
def class_change(
    classes: Sequence[str],
    class_counts: Sequence[int] | np.ndarray,
    intervals: Sequence[Interval],
    *,
    measure: str = "AP",
    title: str = "Change of each class",
) -> Chart:
    """Draw the change of each class's AP, largest gain first, with its paired bootstrap interval.

    Args:
        intervals: one for each class, see :func:`hpdval.tables.class_differences` and
            :func:`hpdval.metrics.localisation_class_differences`.
        measure: what has changed, for the axis.
    """
    known = [c for c in range(len(classes)) if not math.isnan(intervals[c].estimate)]
    order = sorted(known, key=lambda c: intervals[c].estimate)
    if len(order) > NAMED:
        order = order[: NAMED // 2] + order[-NAMED // 2 :]
    figure = new_chart(6.8, 0.2 * len(order) + 1.1 if len(order) <= 30 else 0.125 * len(order) + 1.1)
    axes = figure.subplots()
    values, low, high = (np.array([getattr(intervals[c], n) for c in order]) for n in ("estimate", "low", "high"))
    colours = group_colours(class_counts)
    axes.barh(range(len(order)), values, color=[colours[c] for c in order], height=0.72)
    axes.errorbar((low + high) / 2, range(len(order)), xerr=(high - low) / 2, fmt="none", ecolor=INK, lw=0.9, capsize=2)
    axes.axvline(0, color=INK, lw=0.8)
    axes.set_yticks(range(len(order)), [plain(classes[c]) for c in order])
    axes.tick_params(axis="y", labelsize=tick_size(len(order)), length=0)
    axes.set_ylim(-0.7, len(order) - 0.3)
    if len(order) < len(known):
        axes.set_ylabel(f"the {NAMED // 2} largest losses and gains of {len(known):,} classes")
    axes.grid(axis="x")
    axes.set_xlabel(plain(f"change of {measure} in points, with 95 % paired interval", 90))
    axes.set_title(title)
    group_legend(figure, class_counts)
    return figure


@styled
def size_lines(table: pd.DataFrame, *, title: str = "Mean AP by object size") -> Chart:
    """Draw the rows of ``hpdval.tables.size_table``: mAP on small, middle and large objects, a line for each method."""
    figure = new_chart(5.6, 3.4)
    axes = figure.subplots()
    colours = method_colours(table["method"])
    thirds = [name for name in table.columns if str(name).endswith("third")]
    for m, (_, row) in enumerate(table.iterrows()):
        values = row[thirds].astype(float).to_numpy()
        marker = "osD^v"[m % 5]
        axes.plot(
            range(3),
            values,
            marker=marker,
            color=colours[m],
            lw=1.8,
            label=str(row["method"]),
        )
    axes.set_xticks(range(3), [str(name) for name in thirds])
    axes.set_xlim(-0.2, 2.2)
    axes.grid(axis="y")
    axes.set_ylabel("mAP, percent")
    axes.set_xlabel("objects of each class, by the share of the image they cover")
    axes.set_title(title)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@styled
def view_weights(
    results: Mapping[float, Evaluation], *, chosen: float | None = None, title: str = "Weighing the two views"
) -> Chart:
    """Draw mAP in total and by group against alpha.

    Args:
        results: alpha -> ``hpdval.evaluate`` of the scores fused with it.
        chosen: the recipe's alpha, marked by a line.
    """
    figure = new_chart(5.6, 3.4)
    axes = figure.subplots()
    for name in ("total", *GROUPS):
        values = [getattr(result, name) for result in results.values()]
        if not all(map(math.isnan, values)):
            colour, marker = (INK, "D") if name == "total" else (GROUP_COLOURS[name], GROUP_MARKERS[name])
            width = 2.2 if name == "total" else 1.3
            axes.plot(list(results), values, color=colour, marker=marker, ms=4, lw=width, label=name)
    if chosen is not None:
        axes.axvline(chosen, color="#777777", ls=":", lw=1.0, label=f"recipe: α = {chosen:g}")
    axes.grid(axis="y")
    axes.set_xlabel("α: 0 is the local view alone, 1 the global view alone")
    axes.set_ylabel("mAP, percent")
    axes.set_title(title)
    figure.legend(loc="outside right center")
    return figure
