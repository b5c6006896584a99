"""Figures of single images: what they show, and how a method ranks their classes.

Letters: N images, C classes, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from hpdval.plots.style import INK, Chart, new_chart, plain, styled


@styled
def example_images(
    images: Sequence[np.ndarray],
    targets: np.ndarray,
    classes: Sequence[str],
    *,
    boxes: Sequence[np.ndarray] | None = None,
    captions: Sequence[str] | None = None,
    columns: int = 4,
    title: str = "",
) -> Chart:
    """Draw images with their labels below and, where known, the box of each object with its class.

    Args:
        images: (H, W, 3) uint8 each.
        targets: (n, C) of 0 and 1.
        boxes: for each image (n, 5) rows of class index, x, y, width, height in pixels.
        captions: what to write below the images in place of their labels.
    """
    rows = math.ceil(len(images) / columns)
    tallest = max(min(image.shape[0] / image.shape[1], 1.4) for image in images)
    figure = new_chart(2.2 * columns, (2.2 * tallest + 0.4) * rows + (0.3 if title else 0))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for i, (image, axes) in enumerate(zip(images, grid.flat, strict=False)):
        axes.imshow(image)
        for _, x, y, width, height in boxes[i] if boxes is not None else ():
            for line, colour in ((2.4, "black"), (1.0, "white")):  # seen on dark and on light ground
                axes.add_patch(Rectangle((x - 0.5, y - 0.5), width, height, fill=False, lw=line, ec=colour))
        names = [plain(classes[int(c)], 18) for c in np.flatnonzero(targets[i])]
        words = (_wrapped(names) or "(no label)") if captions is None else plain(captions[i], 40)
        axes.text(0.5, -0.03, words, transform=axes.transAxes, ha="center", va="top", fontsize=8, color=INK)
    if title:
        figure.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
    return figure


def _wrapped(names: Sequence[str], width: int = 27, lines: int = 3) -> str:
    """Join names by commas into at most ``lines`` lines."""
    out: list[str] = []
    for i, name in enumerate(names):
        piece = name + ("," if i < len(names) - 1 else "")
        if out and len(out[-1]) + len(piece) < width:
            out[-1] += " " + piece
        elif len(out) < lines:
            out.append(piece)
        else:
            out[-1] = out[-1].rstrip(",") + f" + {len(names) - i}"
            break
    return "\n".join(out)


@styled
def ranking_examples(
    images: Sequence[np.ndarray],
    scores: np.ndarray,
    targets: np.ndarray,
    classes: Sequence[str],
    *,
    top: int = 5,
    columns: int = 3,
    title: str = "",
) -> Chart:
    """Draw images beside their ``top`` best scores; true classes are full bars with a tick, others hatched.

    Args:
        images: (H, W, 3) uint8 each.
        scores, targets: (n, C).
    """
    top, rows = min(top, len(classes)), math.ceil(len(images) / columns)
    figure = new_chart(3.7 * columns, 1.75 * rows + 0.6)
    grid = figure.subplots(rows, 2 * columns, squeeze=False, width_ratios=[1.0, 0.9] * columns)
    for axes in grid.flat:
        axes.set_axis_off()
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        grid[row, 2 * column].imshow(image)
        _ranking(grid[row, 2 * column + 1], scores[i], targets[i], classes, top)
    if title:
        figure.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
    figure.supxlabel(
        "✓ the class is in the image   ✗ it is not   bar: score, from the lowest to the highest of the image",
        fontsize=8,
    )
    return figure


def _ranking(axes: Axes, scores: np.ndarray, targets: np.ndarray, classes: Sequence[str], top: int) -> None:
    spread = float(scores.max() - scores.min()) or 1.0
    best = np.argsort(-scores, kind="stable")[:top]
    axes.set_xlim(0, 1)
    axes.set_ylim(top - 0.3, -0.8)
    for place, c in enumerate(best):
        right, length = bool(targets[c]), (scores[c] - scores.min()) / spread
        axes.barh(
            place + 0.22,
            length,
            height=0.28,
            color="#0072B2" if right else "white",
            edgecolor="#0072B2" if right else "#888888",
            hatch="" if right else "////",
            linewidth=0.7,
        )
        name = f"{'✓' if right else '✗'} {plain(classes[c], 20)}"
        axes.text(0, place - 0.02, name, va="bottom", fontsize=8, color=INK if right else "#666666")
    missed = [c for c in np.flatnonzero(targets) if c not in best]
    if missed:
        axes.text(0, top - 0.3, f"+ {len(missed)} true further down", va="center", fontsize=7, color="#666666")
