"""Figures of errors: how far probabilities can be trusted, and what a class owes to the company it keeps.

Letters: C classes.  AP is in percent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from hpdval.groups import GROUPS
from hpdval.metrics import Leakage, Reliability
from hpdval.plots.data import group_colours, group_legend
from hpdval.plots.style import (
    FAINT,
    GROUP_COLOURS,
    GROUP_MARKERS,
    INK,
    NAMED,
    PAGE,
    Chart,
    legend_below,
    new_chart,
    plain,
    styled,
    tick_size,
    titled,
)


@styled
def calibration_curve(groups: Mapping[str, Reliability], *, title: str = "Predicted and observed") -> Chart:
    """Draw the observed share against the predicted probability, in bins with Wilson intervals, for total and groups.

    Points below the diagonal are probabilities that are too high.  The right panel shows the same on logarithmic axes,
    where the many small probabilities of rare classes lie; a share of 0 has no place there.

    Args:
        groups: ``total``, ``head``, ``medium``, ``tail`` -> of ``hpdval.metrics.group_reliability``.
    """
    figure = new_chart(PAGE, 3.9)
    linear, logarithmic = figure.subplots(1, 2)
    shown = {name: groups[name] for name in ("total", *GROUPS) if name in groups and groups[name].count.size}
    handles = []
    for name, one in shown.items():
        colour, marker, width = (INK, "D", 2.0) if name == "total" else (GROUP_COLOURS[name], GROUP_MARKERS[name], 1.2)
        drawn: Any = {"color": colour, "marker": marker, "ms": 4, "lw": width, "elinewidth": 0.8, "capsize": 1.5}
        for axes, some in ((linear, one.count > 0), (logarithmic, (one.observed > 0) & (one.predicted > 0))):
            x, y = 100 * one.predicted[some], 100 * one.observed[some]
            spread = [y - 100 * one.low[some], 100 * one.high[some] - y]
            axes.errorbar(x, y, np.maximum(spread, 0), zorder=3 if name == "total" else 2, **drawn)
        label = f"{name} (ECE {100 * one.ece:.1f})"
        handles.append(Line2D([], [], color=colour, marker=marker, ms=4, lw=width, label=label))
    points = [values[values > 0] for one in shown.values() for values in (one.predicted, one.observed)]
    lowest = max(70 * min((values.min() for values in points if values.size), default=0.01), 1e-4)
    for axes, low in ((linear, 0.0), (logarithmic, lowest)):
        axes.plot([low, 100], [low, 100], color="#777777", ls="--", lw=1.0, zorder=1)
        axes.set_xlabel("predicted probability, percent")
        axes.grid()
    linear.set(xlim=(-2, 102), ylim=(-2, 102), ylabel="observed share, percent")
    logarithmic.set(xscale="log", yscale="log", xlim=(lowest, 130), ylim=(lowest, 130))
    for axis in (logarithmic.xaxis, logarithmic.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    titled(linear, title, PAGE / 2)
    logarithmic.set_title("the same, logarithmic")
    handles.append(Line2D([], [], color="#777777", ls="--", lw=1.0, label="as predicted"))
    legend_below(figure, handles, title="ECE: expected calibration error, percentage points")
    return figure


@styled
def leakage_by_class(
    classes: Sequence[str],
    class_counts: Sequence[int] | np.ndarray,
    leakages: Sequence[Leakage],
    *,
    title: str = "With and without the usual companions",
) -> Chart:
    """Draw the AP of each class that has companions without (hollow) and with them (full), and the leakage.

    Classes stand by frequency, the commonest on top.  Chance is drawn as a tick, because the two parts differ in it;
    intervals are 95 % over test images.

    Args:
        leakages: one for each class, of ``hpdval.metrics.co_occurrence_leakage``.
    """
    counts = np.asarray(class_counts)
    order = [int(c) for c in np.argsort(counts, kind="stable") if leakages[c].companions]
    known, order = len(order), order[-NAMED:]
    size = tick_size(len(order))
    figure = new_chart(PAGE, max(2.4, (0.27 if size > 7 else 0.16) * len(order) + 1.5))
    left, right = figure.subplots(1, 2, width_ratios=[1.7, 1], sharey=True)
    colours = group_colours(counts)
    for row, c in enumerate(order):
        one = leakages[c]
        for part, shift, face in ((one.with_companion, 0.17, colours[c]), (one.without, -0.17, "white")):
            y = row + shift
            left.plot([part.ap.low, part.ap.high], [y, y], color=colours[c], lw=1.0)
            left.plot(part.chance, y, marker="|", color="#555555", ms=6, mew=1.2)
            left.plot(part.ap.estimate, y, marker="o", ms=4.5, mfc=face, mec=colours[c], ls="")
        right.plot([one.low, one.high], [row, row], color=colours[c], lw=1.2)
        right.plot(one.leakage, row, marker="D", color=colours[c], ms=4)
    names = [f"{plain(classes[c], 18)} ({counts[c]})" for c in order]
    left.set_yticks(range(len(order)), names)
    left.tick_params(axis="y", labelsize=size, length=0)
    left.set_ylabel("" if len(order) == known else f"the {NAMED} commonest of {known:,} classes")
    right.tick_params(axis="y", length=0)
    left.set(xlim=(0, 102), ylim=(-0.7, max(len(order), 1) - 0.3), xlabel="average precision, percent")
    right.set(xlim=(0, 1), xlabel="P(with above without),\nimages that lack the class")
    right.axvline(0.5, color=INK, lw=1.0, ls="--")
    for axes in (left, right):
        axes.grid(axis="x")
        axes.hlines(np.arange(len(order) - 1) + 0.5, *axes.get_xlim(), color=FAINT, lw=0.3)
    titled(left, title, 3.6)
    right.set_title("leakage (dashed: none)")
    marks = [
        Line2D([], [], ls="", marker="o", ms=4.5, mfc=INK, mec=INK, label="with"),
        Line2D([], [], ls="", marker="o", ms=4.5, mfc="white", mec=INK, label="without"),
        Line2D([], [], ls="", marker="|", ms=6, mew=1.2, color="#555555", label="chance"),
    ]
    group_legend(figure, counts, *marks)
    return figure
