"""Names beside points that cover neither a mark nor each other.

Letters: K points, with a label each; A candidate places, T boxes.  Boxes are (left, bottom, right, top).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath

from hpdval.plots.style import INK, STYLE

SIZE = 7.0  # points
LINE = 0.125  # inches from one line of text to the next
GAP, MARK = 0.06, 0.05  # inches from a point to its label, and from its middle to its rim
THREAD = 0.11  # a label farther from its point than this is tied to it
# the cost of an inch, of a box that is covered, of a line that is struck, of a thread through a box
FAR, COVERED, STRUCK, CROSSED = 1.0, 100.0, 0.1, 0.8


def name_points(axes: Axes, x: np.ndarray, y: np.ndarray, names: Sequence[str], soft: np.ndarray) -> bool:
    """Write names beside points and return whether all found a free place; call it when the axes have their size.

    Args:
        x, y: (K,) in data coordinates.
        names: K, as matplotlib shows them.
        soft: (K, 2) ends of vertical lines through the points, in data coordinates, better left uncovered.
    """
    figure: Any = axes.figure
    figure.draw_without_rendering()
    box, inch = axes.get_window_extent(), figure.dpi
    size = np.array([box.width, box.height]) / inch
    points, low, high = (
        (axes.transData.transform(np.column_stack([x, level])) - [box.x0, box.y0]) / inch
        for level in (y, soft[:, 0], soft[:, 1])
    )
    lines = np.column_stack([low - np.array([0.01, 0]), high + np.array([0.01, 0])])
    widths = np.array([text_width(name) for name in names])
    corners, free = place_labels(points, widths, (float(size[0]), float(size[1])), lines)
    for name, point, corner, width in zip(names, points, corners, widths, strict=True):
        end = np.clip(point, corner, corner + np.array([width, LINE]))
        if np.hypot(*(end - point)) > THREAD:
            ends = np.array([point, end]) / size
            axes.plot(*ends.T, transform=axes.transAxes, color="#777777", lw=0.6, zorder=2.5).pop().set_in_layout(False)
        middle = (corner + np.array([0, LINE / 2])) / size
        how: Any = {"transform": axes.transAxes, "fontsize": SIZE, "va": "center_baseline", "color": INK}
        how["path_effects"] = [withStroke(linewidth=2, foreground="white")]  # read above whatever line it crosses
        axes.text(middle[0], middle[1], name, **how).set_in_layout(False)
    return free


def text_width(text: str, weight: str = "normal") -> float:
    """Return how wide a text of 7 points is drawn, in inches."""
    font = FontProperties(family=STYLE["font.family"], weight=weight)
    return float(TextPath((0, 0), text, size=SIZE, prop=font).get_extents().x1) / 72 + 0.02 if text.strip() else 0.0


def place_labels(
    points: np.ndarray, widths: np.ndarray, size: tuple[float, float], soft: np.ndarray
) -> tuple[np.ndarray, bool]:
    """Return the lower left corner of each label (K, 2), and whether no label covers another or a mark.

    Each label in turn, from the top down, takes the cheapest of its candidate places: near its point, inside, on no
    mark, on no other label, and so that threads lead neither through labels nor through each other.  Three rounds,
    since only later ones see all others.

    Args:
        points: (K, 2) in inches.
        widths: (K,) of the labels, in inches; each is one line high.
        size: of the panel, in inches.
        soft: (T, 4) boxes that are better left uncovered.
    """
    marks = np.column_stack([points - MARK, points + MARK])
    corners = np.full(points.shape, np.nan)
    for _ in range(3):
        for k in np.argsort(-points[:, 1], kind="stable"):
            others = np.array([i for i in range(len(points)) if i != k and not np.isnan(corners[i, 0])], dtype=int)
            placed = _boxes(corners[others], widths[others])
            boxes = _boxes(_candidates(points[k], widths[k], size), widths[k])
            ends = np.clip(points[k], boxes[:, :2], boxes[:, 2:])
            far = np.hypot(*(ends - points[k]).T)
            cost = FAR * far + COVERED * _overlaps(boxes, np.concatenate([marks, placed])).sum(axis=1)
            cost += STRUCK * _overlaps(boxes, soft).sum(axis=1)
            best = np.argsort(cost, kind="stable")[:500]  # threads, which take longest, of the cheapest places alone
            boxes, ends, far, cost = boxes[best], ends[best], far[best], cost[best]
            cost += CROSSED * (far > THREAD) * _crossings(points[k], ends, np.concatenate([placed, marks])).sum(axis=1)
            threads = np.clip(points[others], placed[:, :2], placed[:, 2:])
            for point, end in zip(points[others], threads, strict=True):
                if np.hypot(*(end - point)) > THREAD:
                    cost += CROSSED * _crossings(point, end[None], boxes)[0]
                cost += CROSSED * _intersections(points[k], ends, point, end)
            corners[k] = boxes[np.argmin(cost), :2]
    boxes = _boxes(corners, widths)
    covered = _overlaps(boxes, boxes).sum() - len(boxes) + _overlaps(boxes, marks).sum()
    return corners, not covered


def _candidates(point: np.ndarray, width: float, size: tuple[float, float]) -> np.ndarray:
    """Return lower left corners (A, 2) around a point, all inside the panel, near ones first."""
    steps = np.arange(0, size[1], LINE / 2)
    rises = np.concatenate([steps, -steps[1:]])
    # above or below its point, on either side of it; far above, a thread would run along the interval
    across = [-width / 2, *(side for away in (GAP, 0.25, 0.5, 0.8, 1.2, 1.7) for side in (away, -away - width))]
    found = np.array([(point[0] + dx, point[1] - LINE / 2 + dy) for dy in rises for dx in across[int(abs(dy) > 0.3) :]])
    room = np.maximum([size[0] - width, size[1] - LINE], 0.0)
    return np.clip(found, 0.0, room)


def _boxes(corners: np.ndarray, widths: np.ndarray | float) -> np.ndarray:
    return np.column_stack([corners, corners[:, 0] + widths, corners[:, 1] + LINE])


def _overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return whether each of the boxes ``a`` covers a part of each of ``b``, (A, T)."""
    left, right = a[:, None], b[None]
    return np.asarray(((left[..., :2] < right[..., 2:]) & (right[..., :2] < left[..., 2:])).all(axis=-1))


def _crossings(start: np.ndarray, ends: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return whether the line from ``start`` to each end passes through each box, (A, T), by points along it."""
    steps = np.linspace(0.05, 0.95, 24)[:, None, None]
    along = start + steps * (ends - start)  # (24, A, 2)
    inside = (along[:, :, None] > boxes[:, :2]) & (along[:, :, None] < boxes[:, 2:])
    return np.asarray(inside.all(axis=-1).any(axis=0))


def _intersections(start: np.ndarray, ends: np.ndarray, other: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return whether the line from ``start`` to each end cuts the line from ``other`` to ``end``, (A,)."""

    def side(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        return (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])

    apart = side(start, ends, other) * side(start, ends, end)
    return np.asarray((apart < 0) & (side(other, end, start) * side(other, end, ends) < 0))
