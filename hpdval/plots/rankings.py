"""What several methods rank first on the same images, and which images to look at.

Letters: n images that are shown, N of the test set, C classes, M methods.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from hpdval.errors import ConfigError, DataError
from hpdval.groups import GROUPS, class_groups
from hpdval.plots.labels import SIZE, text_width
from hpdval.plots.style import GROUP_COLOURS, GROUP_MARKERS, INK, PAGE, Chart, plain, styled

RIGHT, WRONG, GREY = "#D6E9F5", "#EDEDED", "#666666"
LINE, HEAD, GAP = 0.19, 0.32, 0.12  # inches: a class, the name of a method, between blocks
PICTURE, NAMES, CELL = 1.15, 1.2, 1.2  # inches across: the image, its labels, a method
ACROSS = int((PAGE - PICTURE - NAMES) / CELL)  # methods side by side; more stand below
LONGEST, ROOM = 20, 0.75  # characters and inches of a class in a cell


def tail_images(
    targets: np.ndarray, class_counts: Sequence[int] | np.ndarray, *, count: int = 4, seed: int = 0
) -> np.ndarray:
    """Return images to look at that nobody chose for their looks: a seeded draw among those that show a tail class.

    Where too few do, the rest is drawn among those that show a medium class, then a head class, then any.  Scores play
    no part, so no method is flattered; the seed is the only choice, and it is fixed before looking.

    Args:
        targets: (N, C) of 0 and 1.
        class_counts: (C,) training positives, which decide the groups.
        count: how many, at most N.

    Returns:
        (count,) ascending indices of images, int64.

    Raises:
        ConfigError: ``count`` is below 1.

    >>> tail_images(np.array([[1, 0], [0, 1], [1, 1], [1, 0]]), [500, 3], count=2).tolist()
    [1, 2]
    """
    if count < 1:
        raise ConfigError(f"count is {count}; it must be at least 1")
    rng, groups = np.random.default_rng(seed), class_groups(class_counts)
    chosen: list[int] = []
    pools = [np.flatnonzero(targets[:, groups[name]].any(axis=1)) for name in reversed(GROUPS)]
    for pool in (*pools, np.arange(len(targets))):
        left = np.setdiff1d(pool, np.array(chosen, dtype=np.int64))
        chosen += rng.choice(left, min(count - len(chosen), len(left)), replace=False).tolist()
    return np.sort(np.array(chosen, dtype=np.int64))


@styled
def top_predictions(
    images: Sequence[np.ndarray],
    scores_by_method: Mapping[str, np.ndarray],
    targets: np.ndarray,
    classes: Sequence[str],
    *,
    k: int = 3,
    class_counts: Sequence[int] | np.ndarray | None = None,
    title: str = "",
) -> Chart:
    """Draw images with their labels and the ``k`` classes that each method ranks highest, as in figures of CPRFL.

    A class that is in the image has a tick on a plain ground, another one a cross on a hatched ground; below stand the
    ranks of true classes further down.  Methods score on scales of their own, so ranks are shown and no scores.  Where
    ``class_counts`` are given, each class has the mark of its group, and labels begin with the rarest.

    Args:
        images: n of (H, W, 3) uint8.
        scores_by_method: label -> (n, C), of these images alone.
        targets: (n, C) of 0 and 1.
        class_counts: (C,) training positives, which decide the groups.

    Raises:
        ConfigError: ``k`` is below 1, or there is no image or method.
        DataError: scores or targets are not (n, C).

    Source: the figure of top-3 predictions in CPRFL (Yan et al., 2024), whose images were chosen by its authors.
    """
    if k < 1 or not len(images) or not scores_by_method:
        raise ConfigError(f"k is {k}, with {len(images)} images and {len(scores_by_method)} methods; give 1 or more")
    for name, values in {"targets": targets, **scores_by_method}.items():
        if values.shape != (len(images), len(classes)):
            raise DataError(f"{name} is {values.shape}; give {(len(images), len(classes))}, a row for each image shown")
    k = min(k, len(classes))
    groups = _groups(class_counts, len(classes))
    rows = -(-len(scores_by_method) // ACROSS)
    band = HEAD + (k + 1) * LINE  # the height of one row of methods
    block = max(rows * band, PICTURE) + GAP
    top, below = 0.38, 0.56
    width = PICTURE + NAMES + CELL * min(len(scores_by_method), ACROSS)
    width = max(width, 5.6)  # room for the legend
    figure = Chart(figsize=(width, top + block * len(images) + below))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    height = figure.get_figheight()
    axes.set_axis_off()
    for i, image in enumerate(images):
        y = top + i * block
        _picture(axes, image, y)
        _labels(axes, targets[i], classes, groups, class_counts, y, int((block - GAP) / LINE) - 1)
        for m, (name, scores) in enumerate(scores_by_method.items()):
            x = PICTURE + NAMES + CELL * (m % ACROSS)
            _cell(axes, (x, y + band * (m // ACROSS)), name, scores[i], targets[i], classes, groups, k)
        if i:
            axes.plot([0.08, width - 0.08], [y - GAP / 2] * 2, color="#CCCCCC", lw=0.6)
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")  # inches, from the top
    heading = title or f"The {k} classes that each method ranks highest"
    axes.text(0.08, 0.2, plain(heading, 90), fontsize=10, fontweight="bold", va="center", color=INK)
    note = (
        "1 is the method's highest score; scores of different methods have different scales, so only ranks are shown\n"
        "true at: ranks of the classes that are in the image and further down"
    )
    axes.text(width / 2, height - 0.06, note, fontsize=SIZE, ha="center", va="bottom", color=GREY)
    handles = [*_grounds(), *(_group_mark(name) for name in GROUPS if name in groups)]
    how: Any = {
        "loc": "lower center",
        "ncols": len(handles),
        "fontsize": SIZE,
        "handletextpad": 0.4,
        "columnspacing": 1.2,
    }
    figure.legend(handles=handles, bbox_to_anchor=(0.5, 0.34 / height), borderaxespad=0, **how)
    return figure


def _groups(class_counts: Sequence[int] | np.ndarray | None, count: int) -> list[str]:
    """Return the group of each class, or nothing for each where it is not known."""
    found = [""] * count
    for name, indices in class_groups([] if class_counts is None else class_counts).items():
        for c in indices:
            found[int(c)] = name
    return found


def _picture(axes: Axes, image: np.ndarray, y: float) -> None:
    """Show an image as large as it fits into a square, below ``y``."""
    side, (high, wide) = PICTURE - 0.16, image.shape[:2]
    scale = side / max(high, wide)
    axes.imshow(image, extent=(0.08, 0.08 + scale * wide, y + 0.04 + scale * high, y + 0.04))


def _labels(
    axes: Axes,
    targets: np.ndarray,
    classes: Sequence[str],
    groups: Sequence[str],
    class_counts: Sequence[int] | np.ndarray | None,
    y: float,
    most: int,
) -> None:
    """Write what an image truly shows, the rarest first, in at most ``most`` lines below a heading."""
    there = np.flatnonzero(targets)
    if class_counts is not None:
        there = there[np.argsort(np.asarray(class_counts)[there], kind="stable")]
    axes.text(PICTURE + 0.04, y + 0.12, "in the image", fontsize=SIZE, va="center", color=GREY)
    shown = list(there) if len(there) <= most else list(there[: most - 1])
    for line, c in enumerate(shown):
        _class(axes, PICTURE + 0.1, y + 0.3 + LINE * line, classes[int(c)], groups[int(c)])
    if len(shown) < len(there) or not len(there):
        words = f"and {len(there) - len(shown)} more" if len(there) else "(no label)"
        axes.text(PICTURE + 0.04, y + 0.3 + LINE * len(shown), words, fontsize=SIZE, va="center", color=GREY)


def _class(axes: Axes, x: float, y: float, text: str, group: str) -> None:
    """Write a class behind the mark of its group, as much of it as fits; tail classes are bold, too."""
    if group:
        axes.scatter([x], [y], s=16, marker=GROUP_MARKERS[group], color=GROUP_COLOURS[group], zorder=3)
    left, weight = x + (0.08 if group else -0.06), "bold" if group == "tail" else "normal"
    texts = (plain(text, longest) for longest in range(LONGEST, 3, -1))
    fitted = next((one for one in texts if text_width(one, weight) <= ROOM), plain(text, 3))
    axes.text(left, y, fitted, fontsize=SIZE, va="center_baseline", fontweight=weight, color=INK)


def _cell(
    axes: Axes,
    corner: tuple[float, float],
    name: str,
    scores: np.ndarray,
    targets: np.ndarray,
    classes: Sequence[str],
    groups: Sequence[str],
    k: int,
) -> None:
    """Write the name of a method and what it ranks highest, below and right of ``corner``."""
    x, y = corner
    wrapped = textwrap.wrap(" ".join(name.split()), 20)
    lines = wrapped if len(wrapped) <= 2 else [wrapped[0], plain(" ".join(wrapped[1:]), 20)]
    axes.text(x, y + 0.15, plain("\n".join(lines), 60, keep_lines=True), fontsize=SIZE, va="center", linespacing=1.05)
    order = np.argsort(-scores, kind="stable")
    for place, c in enumerate(order[:k]):
        right, line = bool(targets[c]), y + HEAD + LINE * place
        look: Any = {"facecolor": RIGHT} if right else {"facecolor": "white", "hatch": "/////"}
        axes.add_patch(Rectangle((x, line), CELL - 0.08, LINE - 0.03, edgecolor=WRONG, lw=0, **look))
        tick = "✓" if right else "✗"
        axes.text(x + 0.03, line + 0.085, f"{place + 1} {tick}", fontsize=SIZE, va="center_baseline", color=INK)
        _class(axes, x + 0.3, line + 0.085, classes[int(c)], groups[int(c)])
    further = [f"{rank}" for rank in np.flatnonzero(targets[order])[: k + 3] + 1 if rank > k]
    if missed := int(targets.sum() - targets[order[:k]].sum()):
        words = f"true at {', '.join(further[:3])}" + ", …" * (missed > 3)
        axes.text(x + 0.03, y + HEAD + LINE * k + 0.07, words, fontsize=6.5, va="center_baseline", color=GREY)


def _grounds() -> Iterator[Patch]:
    yield Patch(facecolor=RIGHT, edgecolor=WRONG, lw=0, label="✓ in the image")
    yield Patch(facecolor="white", edgecolor="#BBBBBB", hatch="/////", lw=0, label="✗ not in it")


def _group_mark(name: str) -> Line2D:
    return Line2D([], [], ls="", marker=GROUP_MARKERS[name], color=GROUP_COLOURS[name], ms=5, label=f"{name} class")
