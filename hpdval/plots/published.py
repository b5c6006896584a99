"""A figure of our result beside a published one.

Letters: C classes.  AP is in percent.
"""

from __future__ import annotations

from textwrap import fill
from typing import Any

import pandas as pd
from matplotlib.lines import Line2D

from hpdval.groups import GROUPS
from hpdval.plots.style import FAINT, GROUP_COLOURS, GROUP_MARKERS, INK, Chart, new_chart, plain, styled, tick_size


@styled
def against_published(table: pd.DataFrame, *, title: str | None = None) -> Chart:
    """Draw for each class the published AP (hollow) and ours (full), commonest class on top, coloured by group.

    Below stands how either was measured.  Over several seeds ours is the mean, with a bar of one sample deviation.

    Args:
        table: of :func:`hpdval.tables.per_class_comparison`, C rows.
        title: default: names the published method.
    """
    rows = table.sort_values("train", ascending=False, kind="stable").reset_index(drop=True)
    method = str(table.attrs.get("method", "published"))
    few = len(rows) <= 30
    figure = new_chart(6.8, (0.21 if few else 0.125) * len(rows) + 1.7)
    axes = figure.subplots()
    axes.hlines(rows.index, rows["published"], rows["ours"], color=FAINT, lw=1.6 if few else 1.1, zorder=1)
    size = 30 if few else 15
    for group in GROUPS:
        part, colour = rows[rows["group"] == group], GROUP_COLOURS[group]
        style: Any = {"s": size, "marker": GROUP_MARKERS[group], "edgecolors": colour}
        axes.scatter(part["published"], part.index, facecolors="white", zorder=2, **style)
        if "ours sd" in part:
            bar: Any = {"fmt": "none", "ecolor": INK, "lw": 0.9, "capsize": 2}
            axes.errorbar(part["ours"], part.index, xerr=part["ours sd"], zorder=4, **bar)
        axes.scatter(part["ours"], part.index, facecolors=colour, zorder=3, **style)
    names = [f"{plain(name)}  {count:,}" for name, count in zip(rows["class"], rows["train"], strict=True)]
    axes.set_yticks(range(len(rows)), names)
    axes.tick_params(axis="y", labelsize=tick_size(len(rows)), length=0)
    axes.set_ylim(len(rows) - 0.3, -0.7)
    axes.set_xlim(0, 102)
    axes.grid(axis="x")
    bars = "; bars: one standard deviation over seeds" if "ours sd" in rows else ""
    axes.set_xlabel(f"average precision, percent{bars}")
    axes.set_ylabel("class, and its training images")
    axes.set_title(title or f"Ours against {plain(method)}, class by class")
    _legend(figure, rows["group"], method)
    below = [fill(plain(note, 400), 112, break_on_hyphens=False) for note in table.attrs.get("footnotes", [])]
    where: Any = {"xycoords": "axes fraction", "textcoords": "offset points"}
    axes.annotate("\n".join(below), (0, 0), (0, -36), va="top", fontsize=6.5, linespacing=1.3, color=INK, **where)
    return figure


def _legend(figure: Chart, groups: pd.Series[str], method: str) -> None:
    sizes = groups.value_counts()
    handles = [
        Line2D([], [], ls="", color=GROUP_COLOURS[g], marker=GROUP_MARKERS[g], label=f"{g} ({sizes[g]} classes)")
        for g in GROUPS
        if g in sizes
    ]
    handles.append(Line2D([], [], ls="", color=INK, marker="o", label="full: ours"))
    handles.append(Line2D([], [], ls="", color=INK, marker="o", mfc="white", label=f"hollow: {plain(method)}"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), handletextpad=0.2, columnspacing=1.2)
