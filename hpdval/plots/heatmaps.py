"""Heat maps over images: what one model sees for several classes, and one class before and after each stage.

Letters: n maps, H x W pixels, k patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from hpdval.plots.overlay import COLOURS, Limits, limits_of, outline, overlay
from hpdval.plots.style import INK, Chart, new_chart, plain, styled

BOX = "#D55E00"  # not a colour of the map, and always dashed


class Maps(Protocol):
    """What :func:`hpdval.heatmaps` returns, as far as a figure needs it."""

    @property
    def unit(self) -> str:
        """Of the values; maps of different units do not compare."""

    @property
    def names(self) -> tuple[str, ...]:
        """What each map shows."""

    @property
    def pixels(self) -> np.ndarray:
        """The maps over the image, (n, H, W), NaN where the model has seen nothing."""

    def top_patches(self, k: int | float) -> list[np.ndarray]:
        """Return for each map the k best patches, (k, 4) rows of x, y, width, height."""


@dataclass(frozen=True)
class Panel:
    """One map over the image, and the patches that are outlined on it."""

    values: np.ndarray  # (H, W)
    patches: np.ndarray  # (k, 4)
    name: str
    unit: str


@styled
def heatmaps(
    image: np.ndarray,
    maps: Maps | np.ndarray | Sequence[Maps | np.ndarray],
    titles: Sequence[str] | None = None,
    *,
    top: int | float | None = None,
    boxes: np.ndarray | None = None,
    columns: int = 4,
    shared: bool = True,
    title: str = "",
) -> Chart:
    """Draw an image and, beside it, maps over it, their k best patches outlined.

    Args:
        image: (H, W, 3) uint8.
        maps: of :func:`hpdval.heatmaps`, one or several, or (n, H, W) arrays; every map becomes a panel.
        titles: above the maps; default: their names.
        top: k, a number of patches or a share of them; None outlines none. Arrays have no patches.
        boxes: (n, 5) rows of class index, x, y, width, height in pixels, drawn dashed.
        columns: panels in a row, the image among them.
        shared: whether the maps are on one scale of colours, which is then shown with their unit; maps of different
            units, which do not compare, have each a range of their own in any case.
    """
    panels = panels_of(maps if isinstance(maps, Sequence) else [maps], top)
    names = [panel.name for panel in panels] if titles is None else list(titles)
    count = len(panels) + 1
    columns, rows = min(columns, count), math.ceil(count / columns)
    figure = new_chart(2.1 * columns + 0.6, (2.1 * aspect([image]) + 0.3) * rows + (0.3 if title else 0) + 0.25)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    draw_image(grid.flat[0], image, boxes)
    grid.flat[0].set_title("image", fontsize=9, fontweight="normal")
    _draw_maps(figure, list(grid.flat), image, panels, boxes, shared)
    for axes, name in zip(grid.flat[1:], names, strict=False):
        axes.set_title(plain(name, 32), fontsize=9)
    explain_lines(figure, any(len(p.patches) for p in panels), boxes is not None)
    if title:
        figure.suptitle(plain(title, 120), fontsize=10, fontweight="bold", x=0.01, ha="left")
    return figure


@styled
def heatmap_grid(
    images: Sequence[np.ndarray],
    maps: Sequence[Sequence[Maps | np.ndarray]],
    columns: Sequence[str],
    *,
    rows: Sequence[str] = (),
    captions: Sequence[Sequence[str]] | None = None,
    top: int | float | None = None,
    boxes: Sequence[np.ndarray] | None = None,
    title: str = "",
) -> Chart:
    """Draw a row for each image: the image, then one map of each model on the row's own scale of colours.

    Models whose maps have different units do not compare: their maps have each a range of their own, and no scale.

    The layout of HP-DVAL's figure 6: columns are zero-shot and the stages.

    Args:
        images: (H, W, 3) uint8 each.
        maps: for each image one map (n = 1) of each model, of :func:`hpdval.heatmaps` or as (1, H, W) arrays.
        columns: names of the models.
        rows: what each row shows, such as its class.
        captions: below each map, such as its score.
        top: k, a number of patches or a share of them, outlined; None outlines none.
        boxes: for each image (n, 5) rows of class index, x, y, width, height in pixels, drawn dashed.
    """
    side = 1.75
    heights = [aspect([image]) for image in images]
    below = 0.22 if captions is not None else 0.06
    figure = new_chart(
        side * (len(columns) + 1) + 0.9, sum(side * h + below for h in heights) + 0.5 + (0.3 if title else 0)
    )
    grid = figure.subplots(len(images), len(columns) + 1, squeeze=False, height_ratios=heights)
    for row, image in enumerate(images):
        shown = None if boxes is None else boxes[row]
        draw_image(grid[row, 0], image, shown)
        _draw_maps(figure, list(grid[row]), image, panels_of(maps[row], top), shown, True)
        for axes, caption in zip(grid[row, 1:], captions[row] if captions is not None else (), strict=False):
            axes.set_xlabel(plain(caption, 32), fontsize=8, labelpad=2)
        if row < len(rows):
            grid[row, 0].set_ylabel(plain(rows[row], 20), fontsize=9)
    for axes, name in zip(grid[0], ["image", *columns], strict=True):
        axes.set_title(plain(name, 24), fontsize=9, loc="center", fontweight="normal" if name == "image" else "bold")
    explain_lines(figure, top is not None, boxes is not None)
    if title:
        figure.suptitle(plain(title, 120), fontsize=10, fontweight="bold", x=0.01, ha="left")
    return figure


def panels_of(maps: Sequence[Maps | np.ndarray], top: int | float | None) -> list[Panel]:
    """Return a panel for every map; ``top`` patches of each are outlined, where the maps know patches."""
    panels = []
    for item in maps:
        if isinstance(item, np.ndarray):
            panels += [Panel(values, np.zeros((0, 4)), "", "") for values in item.reshape(-1, *item.shape[-2:])]
        else:
            best = item.top_patches(top) if top is not None else [np.zeros((0, 4))] * len(item.names)
            panels += [Panel(*parts, item.unit) for parts in zip(item.pixels, best, item.names, strict=True)]
    return panels


def _draw_maps(
    figure: Figure, axes: list[Axes], image: np.ndarray, panels: list[Panel], boxes: np.ndarray | None, shared: bool
) -> None:
    """Draw maps into all axes but the first, on one scale where they have one."""
    one_scale = shared and len({panel.unit for panel in panels}) == 1
    common = limits_of(panel.values for panel in panels)
    for own, panel in zip(axes[1:], panels, strict=False):
        draw_map(own, image, panel, common if one_scale else limits_of([panel.values]), boxes)
    if one_scale:
        colour_bar(figure, axes, common, panels[0].unit)


def aspect(images: Sequence[np.ndarray]) -> float:
    """Return height over width of the tallest image, as far as a figure gives it room."""
    return max(min(image.shape[0] / image.shape[1], 1.4) for image in images)


def draw_image(axes: Axes, image: np.ndarray, boxes: np.ndarray | None) -> None:
    """Draw an image and the boxes of its objects."""
    axes.imshow(image)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    for *_, x, y, width, height in boxes if boxes is not None else ():
        for line, style, colour in ((2.2, "-", "white"), (1.3, (0, (3, 2)), BOX)):
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), width, height, fill=False, lw=line, ls=style, ec=colour))


def draw_map(axes: Axes, image: np.ndarray, panel: Panel, limits: Limits, boxes: np.ndarray | None) -> None:
    """Draw a map over an image, its patches and the boxes of the image's objects."""
    draw_image(axes, overlay(image, panel.values, limits), boxes)
    sides = outline(panel.patches).reshape(-1, 2, 2) - 0.5
    for width, colour in ((2.6, "black"), (1.2, "white")):  # seen on dark and on light ground
        axes.add_collection(LineCollection(list(sides), linewidths=width, colors=colour, capstyle="projecting"))


def colour_bar(figure: Figure, axes: list[Axes], limits: Limits, unit: str) -> None:
    """Put a scale of colours beside axes."""
    bar = figure.colorbar(ScalarMappable(Normalize(*limits), COLOURS), ax=axes, aspect=24, pad=0.01, fraction=0.03)
    bar.set_label(plain(unit), fontsize=8)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(labelsize=7, length=2)
    bar.locator = MaxNLocator(4)
    bar.update_ticks()


def explain_lines(figure: Figure, patches: bool, boxes: bool, caption: str = "") -> None:
    """Say what lines mean, below all panels; a figure without lines says nothing."""
    handles = []
    if patches:
        handles.append(Line2D([], [], color=INK, lw=1.2, label="best patches (top k)"))
    if boxes:
        handles.append(Line2D([], [], color=BOX, lw=1.3, ls=(0, (3, 2)), label="objects as annotated"))
    if handles or caption:
        title: Any = {"title": plain(caption, 160), "title_fontsize": 8} if caption else {}
        figure.legend(
            handles=handles,
            loc="outside lower left",
            ncols=2,
            fontsize=8,
            handlelength=2.2,
            alignment="left",
            **title,
        )
