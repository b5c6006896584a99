"""A figure of few-shot results: every episode, and the mean over them with its interval.

Letters: E episodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from hpdval.metrics import episode_mean
from hpdval.plots.style import FAINT, INK, PAGE, Chart, legend_below, method_colours, new_chart, plain, styled, titled


@styled
def episode_dots(
    values: Mapping[str, Sequence[float] | np.ndarray],
    *,
    chance: float | None = None,
    title: str = "Novel classes, episode by episode",
) -> Chart:
    """Draw mAP of each method: a dot for each episode, and the mean with its 95 % interval over episodes.

    Dots of the same episode are joined between methods that were adapted, so that what they share can be seen.  A
    method that was not adapted is the same in every episode: one diamond, without an interval.

    Args:
        values: label -> (E,) mAP in percent, or one value where nothing was adapted.
        chance: mean prevalence in percent, named below the axis, which begins where the methods are.
    """
    labels, found = list(values), {label: np.asarray(v, dtype=float) for label, v in values.items()}
    figure = new_chart(PAGE, 0.9 + 0.52 * len(labels))
    axes = figure.subplots()
    colours, row = method_colours(labels), {label: i for i, label in enumerate(labels)}
    adapted = [label for label in labels if len(found[label]) > 1]
    for one, other in pairwise(adapted):
        if len(found[one]) == len(found[other]):
            ends = np.full(len(found[one]), row[one] + 0.12), np.full(len(found[one]), row[other] + 0.12)
            axes.plot(np.stack([found[one], found[other]]), np.stack(ends), color=FAINT, lw=0.7, zorder=1)
    for label, colour in zip(labels, colours, strict=True):
        mean, at = episode_mean(found[label]), row[label]
        if label in adapted:
            axes.scatter(found[label], np.full(len(found[label]), at + 0.12), s=20, color=colour, alpha=0.75, zorder=2)
            bar: Any = {"fmt": "D", "color": INK, "mfc": colour, "mec": INK, "ms": 6, "lw": 1.6, "capsize": 3}
            axes.errorbar(mean.mean, at - 0.16, xerr=(mean.high - mean.low) / 2, zorder=3, **bar)
        else:
            axes.scatter(mean.mean, at, s=38, marker="D", facecolors=colour, edgecolors=INK, zorder=3)
        text: Any = {"textcoords": "offset points", "ha": "center", "va": "bottom", "fontsize": 7}
        axes.annotate(f"{mean.mean:.1f}", (mean.mean, at - (0.2 if label in adapted else 0.08)), (0, 4), **text)
    handles: list[Any] = []
    if adapted:
        dot: Any = {"ls": "", "marker": "o", "color": "#777777", "ms": 4.5}
        handles.append(axes.plot([], [], label="an episode; lines join the same one", **dot)[0])
        diamond: Any = {"marker": "D", "color": INK, "mfc": "white", "ms": 5.5, "lw": 1.6}
        handles.append(axes.plot([], [], label="mean with 95 % interval over episodes", **diamond)[0])
    axes.set_yticks(range(len(labels)), [plain(label, 40) for label in labels])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(labels) - 0.45, -0.6)
    below = "" if chance is None else f" (chance: {chance:.1f})"
    axes.set_xlabel(f"mean average precision over the novel classes, percent{below}")
    axes.margins(x=0.08)
    axes.grid(axis="x")
    titled(axes, title, 0.7 * PAGE)
    if handles:
        legend_below(figure, handles)
    return figure
