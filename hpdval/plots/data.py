"""Figures of a data set: how often each class occurs, with which others, and how large.

Letters: N images, C classes, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from hpdval.groups import GROUPS, HEAD_MINIMUM, TAIL_BELOW, class_groups
from hpdval.plots.style import GROUP_COLOURS, GROUP_MARKERS, INK, NAMED, Chart, new_chart, plain, styled, tick_size


def group_colours(class_counts: Sequence[int] | np.ndarray) -> list[str]:
    """Return the colour of each class's group."""
    colours = np.empty(len(class_counts), dtype=object)
    for group, indices in class_groups(class_counts).items():
        colours[indices] = GROUP_COLOURS[group]
    return list(colours)


def group_legend(figure: Any, class_counts: Sequence[int] | np.ndarray, *more: Any) -> None:
    """Explain the colours of the groups that have a class, and ``more`` handles, below the axes."""
    sizes = {group: len(indices) for group, indices in class_groups(class_counts).items()}
    handles = [
        Patch(color=GROUP_COLOURS[g], label=f"{g} ({sizes[g]} class{'es' * (sizes[g] > 1)})")
        for g in GROUPS
        if sizes[g]
    ]
    figure.legend(handles=[*handles, *more], loc="outside lower center", ncols=4)


def whole_number_axis(axis: Any) -> None:
    """Label a logarithmic axis with plain whole numbers: 10, 100, 1,000."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.set_minor_formatter(NullFormatter())


@styled
def class_frequency(
    classes: Sequence[str],
    class_counts: Sequence[int] | np.ndarray,
    *,
    reference: np.ndarray | None = None,
    title: str = "Training images of each class",
) -> Chart:
    """Draw the training positives of each class, commonest first, on a logarithmic axis, coloured by group.

    Args:
        class_counts: (C,) training positives.
        reference: (C,) counts of a model of the tail, descending, drawn as a line.
    """
    counts = np.asarray(class_counts)
    order = np.argsort(-counts, kind="stable")
    figure = new_chart(max(6.5, 0.36 * len(counts)) if len(counts) <= 30 else 12.0, 3.6)
    axes = figure.subplots()
    positions, colours = np.arange(len(counts)), group_colours(counts)
    axes.bar(positions, np.maximum(counts[order], 0.5), color=[colours[i] for i in order], width=0.8)
    if len(counts) <= 30:
        above = np.maximum(counts[order], 0.5 if reference is None else reference)
        for x, value, height in zip(positions, counts[order], above, strict=True):
            axes.annotate(f"{value}", (x, height), (0, 4), textcoords="offset points", ha="center", fontsize=7)
    if reference is not None:
        axes.plot(positions, reference, color=INK, lw=1.2, marker=".", ms=4, label="Pareto reference")
    for bound, note in ((HEAD_MINIMUM, f"head\nfrom {HEAD_MINIMUM}"), (TAIL_BELOW, f"tail\nbelow {TAIL_BELOW}")):
        axes.axhline(bound, color="#777777", lw=0.8, ls=":")
        where: Any = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        axes.annotate(note, (1, bound), (3, 0), va="center", fontsize=7, color="#555555", **where)
    axes.set_yscale("log")
    axes.set_ylim(bottom=min(1.0, counts.min() or 0.5), top=2.2 * counts.max())
    whole_number_axis(axes.yaxis)
    named = len(counts) <= NAMED
    names = [plain(classes[i]) for i in order] if named else []
    axes.set_xlabel("" if named else f"{len(counts):,} classes, the commonest first")
    axes.set_xticks(
        positions[: len(names)],
        names,
        rotation=90 if len(counts) > 30 else 45,
        ha="right" if len(counts) <= 30 else "center",
    )
    axes.tick_params(axis="x", labelsize=tick_size(len(counts)), length=0)
    if len(counts) <= 30:
        for text in axes.get_xticklabels():
            text.set_rotation_mode("anchor")
    axes.set_xlim(-0.7, len(counts) - 0.3)
    axes.set_ylabel("training images (logarithmic)")
    axes.set_title(title)
    group_legend(figure, counts, *(axes.get_lines()[:1] if reference is not None else []))
    return figure


@styled
def co_occurrence(classes: Sequence[str], targets: np.ndarray, *, title: str = "Which classes come together") -> Chart:
    """Draw the share of a row class's images that also hold the column class, n_ij / n_i, classes by frequency.

    Args:
        targets: (N, C) of 0 and 1.
    """
    order = np.argsort(-targets.sum(0, dtype=np.int64), kind="stable")[:NAMED]
    labels = targets[:, order].astype(np.float64)  # exact, and many times faster than whole numbers
    together = labels.T @ labels  # (C, C)
    share = 100.0 * together / np.maximum(together.diagonal(), 1)[:, None]
    np.fill_diagonal(share, np.nan)
    count = len(order)
    side = 6.4 if count <= 30 else 8.5
    figure = new_chart(side + 0.9, side)
    axes = figure.subplots()
    axes.set_facecolor("#EEEEEE")
    top = max(1.0, float(np.nanmax(share))) if count > 1 else 1.0
    names = [plain(classes[i]) for i in order]
    written = np.where(share >= 0.5, np.char.mod("%.0f", share), "")
    sns.heatmap(
        share, ax=axes, mask=np.eye(count, dtype=bool), square=True, rasterized=True, cmap="cividis", vmin=0, vmax=top,
        annot=written if count <= 20 else False, fmt="", annot_kws={"fontsize": 6},
        xticklabels=names, yticklabels=names,
        cbar_kws={"shrink": 0.7, "label": "percent of the row's images"},
    )  # fmt: skip
    for text in axes.texts:
        text.set_color("white" if float(text.get_text() or 0) < 0.55 * top else "black")
    axes.tick_params(length=0, labelsize=tick_size(count))
    among = "" if count == len(classes) else f" (the {count} commonest of {len(classes):,})"
    axes.set_xlabel(f"... this share also holds the column's class{among}")
    axes.set_ylabel("of the images with the row's class ...")
    axes.set_title(title)
    return figure


@styled
def object_sizes_by_class(
    classes: Sequence[str], class_counts: Sequence[int] | np.ndarray, sizes: np.ndarray, *, title: str = "Object sizes"
) -> Chart:
    """Draw median and middle half of the share of the image that a class's largest box covers.

    Args:
        sizes: (N, C) in [0, 1], NaN where a class has no box, see ``hpdval.tables.object_sizes``.
    """
    known = [c for c in range(len(classes)) if (~np.isnan(sizes[:, c])).any()]
    quartiles = {c: 100.0 * np.nanpercentile(sizes[:, c], (25, 50, 75)) for c in known}
    order = sorted(known, key=lambda c: float(quartiles[c][1]))
    figure = new_chart(6.5, max(2.2, 0.19 * len(order) + 0.9) if len(order) <= 30 else 8.5)
    axes = figure.subplots()
    names = np.empty(len(classes), dtype=object)
    for group, indices in class_groups(class_counts).items():
        names[indices] = group
    for row, c in enumerate(order):
        low, middle, high = quartiles[c]
        colour = GROUP_COLOURS[names[c]]
        axes.plot([low, high], [row, row], color=colour, lw=3, alpha=0.45, solid_capstyle="round")
        axes.plot(middle, row, GROUP_MARKERS[names[c]], color=colour, ms=5)
    axes.set_yticks(range(len(order)), [plain(classes[c]) for c in order])
    axes.tick_params(axis="y", labelsize=tick_size(len(order)), length=0)
    axes.set_xlim(left=0)
    axes.grid(axis="x")
    axes.set_xlabel("share of the image, percent (median and middle half)")
    axes.set_title(title)
    group_legend(figure, class_counts)
    return figure
