"""Figures of a training: losses as they fell, and how far prompts moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from hpdval.plots.data import group_colours, group_legend
from hpdval.plots.style import (
    FAINT,
    INK,
    METHOD_COLOURS,
    PAGE,
    Chart,
    legend_below,
    method_colours,
    new_chart,
    plain,
    styled,
    tick_size,
)

LOSSES = {  # title and colour
    "cls": ("classification", "#0072B2"),
    "kd": ("distillation", "#D55E00"),
    "sc": ("semantic consistency", "#009E73"),
    "cse": ("class-specific embedding", "#E69F00"),
    "loss": ("total", INK),
}
WATCHED = {"val_map": "mAP on validation, percent", "test_map": "mAP on TEST images, percent"}


@styled
def loss_curves(metrics: Sequence[Mapping[str, Any]], stage: str, *, title: str = "") -> Chart:
    """Draw each loss of a stage with its epoch means, the mAP that was watched, if any, and the learning rate.

    Args:
        metrics: records of ``run.metrics()``.
        stage: the kind of the run: ``"stage1"``, ``"stage2"``, ``"joint"``, or a rival's, such as ``"coop"``.
    """
    own = [r for r in metrics if r.get("stage") == stage]
    records = [r for r in own if "loss" in r]
    names = [name for name in LOSSES if any(name in r for r in records)]
    watched = [name for name in WATCHED if any(name in r for r in own)]
    count = len(names) + len(watched) + 1
    figure = new_chart(2.9 * count, 2.7)
    panels = figure.subplots(1, count)
    steps, epochs = (np.array([r[key] for r in records]) for key in ("step", "epoch"))
    for panel, name in zip(panels, names, strict=False):
        values = np.array([r.get(name, np.nan) for r in records])
        panel.plot(steps, values, color=FAINT, lw=0.8)
        ends = [e for e in np.unique(epochs) if np.isfinite(values[epochs == e]).any()]
        means = [values[epochs == e].mean() for e in ends]
        panel.plot([steps[epochs == e].mean() for e in ends], means, "o-", color=LOSSES[name][1], ms=3.5, lw=1.5)
        panel.set_title(LOSSES[name][0])
        panel.set_xlabel("update (dots: epoch means)")
        panel.set_ylim(bottom=0)
    for panel, name in zip(panels[len(names) :], watched, strict=False):
        points = np.array([(r["step"], r[name]) for r in own if name in r])
        panel.plot(*points.T, "o-", color="#CC79A7", ms=3.5, lw=1.5)
        panel.plot(*points[points[:, 1].argmax()], "*", color=INK, ms=9)
        panel.set_title(WATCHED[name])
        panel.ticklabel_format(axis="y", useOffset=False)  # 21.385, not 0.005 and an offset in the corner
        panel.set_xlabel("update (star: best epoch)")
    panels[-1].plot(steps, [r["lr"] for r in records], color=INK, lw=1.2)
    panels[-1].set_title("learning rate")
    panels[-1].set_xlabel("update")
    panels[-1].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    panels[-1].set_ylim(bottom=0)
    for panel in panels:
        panel.grid(axis="y")
    if title:
        figure.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
    return figure


@styled
def training_bands(runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], *, title: str = "Training") -> Chart:
    """Draw the loss of each method, and the mAP that was watched, by epoch: mean over seeds, band lowest to highest.

    Losses of methods that minimise different things do not compare by their height.

    Args:
        runs: label -> for each seed the records of ``metrics.jsonl``.
    """
    names = {"loss": "loss, mean of each epoch", **WATCHED}
    records = [record for seeds in runs.values() for seed in seeds for record in seed]
    shown = [name for name in names if any(name in record for record in records)]
    figure = new_chart(PAGE, 2.9)
    panels = figure.subplots(1, max(1, len(shown)), squeeze=False)[0]
    colours, handles = method_colours(runs), []
    for m, (label, seeds) in enumerate(runs.items()):
        dashes = "--" if colours[m] in colours[:m] else "-"
        for panel, name in zip(panels, shown, strict=False):
            curves = epoch_means(seeds, name)
            if not curves.size:
                continue
            x = np.arange(curves.shape[1])
            panel.fill_between(x, curves.min(axis=0), curves.max(axis=0), color=colours[m], alpha=0.2, lw=0)
            panel.plot(x, curves.mean(axis=0), dashes, color=colours[m], marker="." if len(x) < 30 else "", lw=1.4)
        handles += panels[0].plot([], [], dashes, color=colours[m], lw=1.4, label=plain(label, 60))
    for panel, name in zip(panels, shown, strict=False):
        panel.set_title(names[name])
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(axis="y")
    figure.suptitle(plain(title, 110), fontsize=10, fontweight="bold", x=0.01, ha="left")
    legend_below(figure, handles, title="mean over seeds; bands: lowest to highest seed")
    return figure


def epoch_means(seeds: Sequence[Sequence[Mapping[str, Any]]], name: str) -> np.ndarray:
    """Return the mean of a quantity in each epoch that every seed has, (seeds, epochs); seeds without it are left out.

    >>> epoch_means([[{"epoch": 0, "loss": 3.0}, {"epoch": 0, "loss": 1.0}, {"epoch": 1, "loss": 1.0}]], "loss")
    array([[2., 1.]])
    """
    curves = []
    for records in seeds:
        values: dict[int, list[float]] = {}
        for record in records:
            if name in record and "epoch" in record:
                values.setdefault(int(record["epoch"]), []).append(float(record[name]))
        if values:
            curves.append([float(np.mean(values[epoch])) for epoch in sorted(values)])
    shortest = min(map(len, curves), default=0)
    return np.array([curve[:shortest] for curve in curves])


@styled
def context_shift(
    shift: Mapping[str, float],
    similarity: Mapping[str, np.ndarray],
    classes: Sequence[str],
    class_counts: Sequence[int] | np.ndarray,
    *,
    spread: float,
    title: str = "How far the prompts moved",
) -> Chart:
    """Draw the change of each context set, and how far each class's text embedding turned away from T_H.

    Args:
        shift: ``global`` and ``local`` -> root mean square change of a context's entries; ``global residual``, too.
        similarity: set -> (C,) cosine between the learned and the hand-crafted embedding of each class.
        spread: root mean square entry of the contexts, to which a change compares.
    """
    figure = new_chart(9.5, 3.8)
    left, right = figure.subplots(1, 2, width_ratios=[1, 3.2])
    names = list(shift)
    left.bar(
        [name.replace(" ", "\n") for name in names],
        [shift[name] for name in names],
        color=METHOD_COLOURS["stage 2"],
        width=0.6,
    )
    left.axhline(spread, color=INK, lw=1.0, ls="--")
    note, where = "size of an entry\nof the contexts", ("axes fraction", "data")
    left.annotate(note, (0.02, spread), (0, 3), xycoords=where, textcoords="offset points", fontsize=7)
    left.set_ylim(0, 1.35 * max(spread, *shift.values()))
    left.set_ylabel("change, root mean square")
    left.set_title("context vectors")
    views = [name for name in names if name in similarity]  # not the residuals of a set
    order = np.argsort(np.minimum.reduce([similarity[name] for name in views]), kind="stable")
    colours = group_colours(class_counts)
    for name, marker, size in zip(views, "oD", (28, 18), strict=False):
        face = [colours[c] for c in order] if marker == "o" else "white"
        edges, values = [colours[c] for c in order], similarity[name][order]
        right.scatter(range(len(order)), values, s=size, c=face, marker=marker, edgecolors=edges, label=name)
    right.set_xticks(range(len(order)), [plain(classes[c]) for c in order], rotation=90 if len(order) > 30 else 55)
    right.tick_params(axis="x", labelsize=tick_size(len(order)), length=0)
    if len(order) <= 30:
        for text in right.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor")
    right.grid(axis="y")
    right.set_ylabel("cosine with the hand-crafted prompt")
    right.set_title("text embeddings (full: " + views[0] + (", hollow: " + views[1] if len(views) > 1 else "") + ")")
    group_legend(figure, class_counts)
    figure.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
    return figure
