"""What one image looks like to one or more models: the image, a map, and bars of scores with thresholds.

Letters: C classes, k patches.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from hpdval.plots.heatmaps import BOX, Maps, aspect, colour_bar, draw_image, draw_map, panels_of
from hpdval.plots.overlay import Limits, limits_of
from hpdval.plots.style import INK, Chart, new_chart, plain, styled

TRUE, OTHER = "#0072B2", "#8A8A8A"
DASHED = (0, (3, 2))
LINE = 130  # characters of a line of the caption


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """What one model says of one image.

    Attributes:
        name: of the model.
        maps: one map (n = 1), of :func:`hpdval.heatmaps`.
        scores: (C,).
        thresholds: (C,), NaN where there is none; None for none at all.
        top: k, outlined; None outlines none.
        reading: of the scores, ``paper`` or ``released``; models of one reading share an axis.
    """

    name: str
    maps: Maps
    scores: np.ndarray
    thresholds: np.ndarray | None = None
    top: int | float | None = None
    reading: str = "paper"


@styled
def explained_image(
    image: np.ndarray,
    models: Sequence[Explanation],
    targets: np.ndarray,
    classes: Sequence[str],
    *,
    boxes: np.ndarray | None = None,
    others: np.ndarray | None = None,
    rows: int = 10,
    caption: str = "",
    title: str = "",
) -> Chart:
    """Draw a row for each model: the image, its map, and its best scores; ✓ marks classes that are in the image.

    Maps of one unit share a scale of colours, and bars of one reading an axis.  A bar is filled where a score reaches
    the class's threshold, which is a black line.

    Args:
        image: (H, W, 3) uint8.
        targets: (C,) of 0 and 1.
        boxes: (n, 4) rows of x, y, width, height in pixels, of the objects of the class that is shown: orange.
        others: (n, 4) rows alike, of the image's other objects: white.
        rows: bars, at most; present classes further down are counted.
        caption: below the figure, such as where the thresholds come from.
    """
    rows, side = min(rows, len(classes)), 2.3
    height = max(side * aspect([image]), 0.2 * rows) + 0.35
    figure = new_chart(2 * side + 3.2, height * len(models) + (0.35 if title else 0) + 0.3 + (0.25 if caption else 0))
    grid = figure.subplots(len(models), 3, squeeze=False, width_ratios=[1, 1, 1.05])
    panels = [panels_of([model.maps], model.top)[0] for model in models]
    units = np.array([panel.unit for panel in panels])
    limits = {
        unit: limits_of(p.values for p, own in zip(panels, units, strict=True) if own == unit) for unit in set(units)
    }
    for line, model, panel in zip(grid, models, panels, strict=True):
        draw_image(line[0], image, boxes)
        draw_map(line[1], image, panel, limits[panel.unit], boxes)
        for axes in line[:2]:
            _draw_others(axes, others)
        line[0].set_title("image", fontsize=9, fontweight="normal")
        line[1].set_title(plain(f"{model.name}: {panel.name}", 40), fontsize=9)
        axis = _axis([other for other in models if other.reading == model.reading])
        _score_bars(line[2], model, targets, classes, rows, axis)
    for unit in dict.fromkeys(units):
        colour_bar(figure, list(grid[units == unit, 1]), limits[unit], unit)
    _explain(figure, [any(model.top is not None for model in models), _any(boxes), _any(others)], caption)
    if title:
        figure.suptitle(plain(title, 120), fontsize=10, fontweight="bold", x=0.01, ha="left")
    return figure


def _any(boxes: np.ndarray | None) -> bool:
    return boxes is not None and len(boxes) > 0


def _draw_others(axes: Axes, boxes: np.ndarray | None) -> None:
    for x, y, width, height in boxes if boxes is not None else ():
        for line, style, colour in ((1.6, "-", "black"), (1.0, DASHED, "white")):
            box = Rectangle((x - 0.5, y - 0.5), width, height, fill=False, lw=line, ls=style, ec=colour)
            axes.add_patch(box)


def _explain(figure: Figure, lines: Sequence[bool], caption: str) -> None:
    """Say what the lines mean that there are, below all panels, and the caption, which may have several lines."""
    handles = [
        Line2D([], [], color=INK, lw=1.2, label="best patches (top k)"),
        Line2D([], [], color=BOX, lw=1.3, ls=DASHED, label="objects of the class"),
        Line2D(
            [],
            [],
            color="white",
            lw=1.0,
            ls=DASHED,
            label="other objects",
            path_effects=[withStroke(linewidth=2.2, foreground="black")],
        ),
    ]
    words = "\n".join(textwrap.fill(plain(line, 400), LINE) for line in caption.splitlines())
    figure.legend(
        handles=[handle for handle, shown in zip(handles, lines, strict=True) if shown],
        loc="outside lower left",
        ncols=3,
        fontsize=8,
        handlelength=2.2,
        alignment="left",
        title=words,
        title_fontsize=8,
    )


def _axis(models: Sequence[Explanation]) -> Limits:
    values = np.concatenate([m.scores for m in models] + [m.thresholds for m in models if m.thresholds is not None])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    margin = 0.04 * ((high - low) or 1.0)
    return low - margin, high + margin


def _score_bars(
    axes: Axes, model: Explanation, targets: np.ndarray, classes: Sequence[str], rows: int, axis: Limits
) -> None:
    limits = np.full(len(classes), np.nan) if model.thresholds is None else model.thresholds
    best = np.argsort(-model.scores, kind="stable")[:rows]
    for place, c in enumerate(best):
        colour, over = TRUE if targets[c] else OTHER, bool(model.scores[c] >= limits[c])
        axes.barh(
            place,
            model.scores[c] - axis[0],
            0.7,
            axis[0],
            color=colour if over else "white",
            edgecolor=colour,
            linewidth=0.8,
        )
        if not np.isnan(limits[c]):
            axes.plot([limits[c]] * 2, [place - 0.42, place + 0.42], color="black", lw=1.6)
    axes.set_yticks(range(rows), [f"{'✓ ' if targets[c] else ''}{plain(classes[c], 18)}" for c in best])
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set(xlim=axis, ylim=(rows - 0.4, -0.6))
    missed = int(targets.sum() - targets[best].sum())
    axes.set_title("scores (✓ in the image)", fontsize=9, fontweight="normal", color=INK)
    if missed:
        axes.set_xlabel(f"{missed} more of the image {'is' if missed == 1 else 'are'} further down", fontsize=8)
