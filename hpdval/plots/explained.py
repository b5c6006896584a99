"""What one image looks like to one or more models: the image, a map, and bars of scores with thresholds.

Letters: C classes, k patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from hpdval.plots.heatmaps import Maps, aspect, colour_bar, draw_image, draw_map, explain_lines, panels_of
from hpdval.plots.overlay import Limits, limits_of
from hpdval.plots.style import INK, Chart, new_chart, plain, styled

TRUE, OTHER = "#0072B2", "#8A8A8A"


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """What one model says of one image.

    Attributes:
        name: of the model.
        maps: one map (n = 1), of :func:`hpdval.heatmaps`.
        scores: (C,).
        thresholds: (C,), NaN where there is none; None for none at all.
        top: k, outlined; None outlines none.
        unit: of the maps; models of one unit share a scale of colours.
        reading: of the scores, ``paper`` or ``released``; models of one reading share an axis.
    """

    name: str
    maps: Maps
    scores: np.ndarray
    thresholds: np.ndarray | None = None
    top: int | float | None = None
    unit: str = "cosine"
    reading: str = "paper"


@styled
def explained_image(
    image: np.ndarray,
    models: Sequence[Explanation],
    targets: np.ndarray,
    classes: Sequence[str],
    *,
    boxes: np.ndarray | None = None,
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
        boxes: (n, 5) rows of class index, x, y, width, height in pixels, drawn dashed.
        rows: bars, at most; present classes further down are counted.
        caption: below the figure, such as where the thresholds come from.
    """
    rows, side = min(rows, len(classes)), 2.3
    height = max(side * aspect([image]), 0.2 * rows) + 0.35
    figure = new_chart(2 * side + 3.2, height * len(models) + (0.35 if title else 0) + 0.3 + (0.25 if caption else 0))
    grid = figure.subplots(len(models), 3, squeeze=False, width_ratios=[1, 1, 1.05])
    panels = [panels_of([model.maps], model.top)[0] for model in models]
    units = np.array([model.unit for model in models])
    limits = {
        unit: limits_of(p.values for p, own in zip(panels, units, strict=True) if own == unit) for unit in set(units)
    }
    for line, model, panel in zip(grid, models, panels, strict=True):
        draw_image(line[0], image, boxes)
        draw_map(line[1], image, panel, limits[model.unit], boxes)
        line[0].set_title("image", fontsize=9, fontweight="normal")
        line[1].set_title(plain(f"{model.name}: {panel.name}", 40), fontsize=9)
        axis = _axis([other for other in models if other.reading == model.reading])
        _score_bars(line[2], model, targets, classes, rows, axis)
    for unit in dict.fromkeys(units):
        colour_bar(figure, list(grid[units == unit, 1]), limits[unit], unit)
    explain_lines(figure, any(model.top is not None for model in models), boxes is not None, caption)
    if title:
        figure.suptitle(plain(title, 120), fontsize=10, fontweight="bold", x=0.01, ha="left")
    return figure


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
        colour, over = TRUE if targets[c] else OTHER, bool(model.scores[c] >= limits[c]) or bool(np.isnan(limits[c]))
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
