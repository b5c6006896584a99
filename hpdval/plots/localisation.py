"""Figures of localisation: methods and maps that know nothing side by side, by group of classes and by object size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from hpdval.groups import GROUPS
from hpdval.plots.style import PAGE, Chart, legend_below, method_colours, new_chart, plain, styled

NAMES = {"pointing": "pointing game", "energy": "energy inside", "iou": "IoU, best threshold"}
BASELINES = {"random": ":", "centre": (0, (3, 1.5))}  # how the line of each is broken
GREY = "#777777"
MARKERS = "osD^vPX"


@styled
def localisation_dots(
    table: pd.DataFrame, *, baselines: Sequence[str] = tuple(BASELINES), title: str = "Where the maps point"
) -> Chart:
    """Draw every method's three numbers with 95 % intervals, a panel for each number and a row for each part.

    Args:
        table: of :func:`hpdval.tables.localisation_table`.
        baselines: labels of the maps that know nothing, drawn as grey lines without intervals.
    """
    known = table[table["pairs"] > 0]
    parts = list(dict.fromkeys(known["part"]))
    methods = [label for label in dict.fromkeys(table["method"]) if label not in baselines]
    below = [label for label in dict.fromkeys(table["method"]) if label in baselines]
    step = 0.13  # inches between methods of a part
    pitch = max(step * (len(methods) + 0.9), 0.27)
    rows = pitch * np.array(
        [i + 0.35 * ((part != "total") + (part not in ("total", *GROUPS))) for i, part in enumerate(parts)]
    )
    figure = new_chart(PAGE, rows[-1] + pitch + 1.05)
    panels = figure.subplots(1, len(NAMES), sharey=True)
    colours = method_colours(methods)
    for panel, (metric, name) in zip(panels, NAMES.items(), strict=True):
        for position, label in enumerate(methods):
            own = known[known["method"] == label]
            at = rows[[parts.index(part) for part in own["part"]]] + step * (position - (len(methods) - 1) / 2)
            low, high = own[f"{metric} low"], own[f"{metric} high"]
            panel.hlines(at, low, high, color=colours[position], lw=1.4, zorder=2)
            panel.scatter(own[metric], at, s=20, color=colours[position], marker=_marker(position), zorder=3)
        for label in below:
            own = known[known["method"] == label]
            at = rows[[parts.index(part) for part in own["part"]]]
            span = 0.42 * pitch
            panel.vlines(own[metric], at - span, at + span, color=GREY, ls=_dashes(label), lw=1.3, zorder=1)
        panel.set_title(name)
        panel.grid(axis="x")
        panel.set_xlim(left=0)
        panel.tick_params(axis="y", length=0)
    panels[0].set_yticks(rows, [f"{plain(part)} ({_count(known, part):,})" for part in parts])
    panels[0].set_ylim(rows[-1] + 0.62 * pitch, rows[0] - 0.62 * pitch)
    panels[1].set_xlabel("percent, mean over classes, with 95 % interval; in brackets: pairs of image and class")
    figure.suptitle(plain(title, 110), fontsize=10, fontweight="bold", x=0.01, ha="left")
    legend_below(figure, _handles(panels[0], methods, colours, below))
    return figure


def _count(table: pd.DataFrame, part: str) -> int:
    return int(table.loc[table["part"] == part, "pairs"].iloc[0])


def _marker(position: int) -> str:
    return MARKERS[position % len(MARKERS)]


def _dashes(label: str) -> Any:
    return BASELINES.get(label, "-")


def _handles(axes: Any, methods: Sequence[str], colours: Sequence[str], baselines: Sequence[str]) -> list[Any]:
    handles = [
        axes.plot([], [], color=colours[i], marker=_marker(i), ms=4.5, lw=1.4, label=plain(label, 60))[0]
        for i, label in enumerate(methods)
    ]
    lines = [
        axes.plot([], [], color=GREY, ls=_dashes(label), lw=1.3, label=f"{plain(label, 50)} map")[0]
        for label in baselines
    ]
    return handles + lines
