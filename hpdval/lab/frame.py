"""From a state to all that the page shows of it: pictures, bars, and the words for them.

Letters: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpdval.data.dataset import Dataset, Split
from hpdval.groups import class_groups
from hpdval.lab import markup
from hpdval.lab.filters import rank_among
from hpdval.lab.picture import Picture, draw
from hpdval.lab.state import State
from hpdval.lab.view import View
from hpdval.plots.overlay import limits_of
from hpdval.scoring.maps import Heatmaps

THUMBNAIL = 200  # pixels of the longer side


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """What is shown of one model.

    Attributes:
        png: the picture.
        picture: the same as HTML, with words for what is seen.
        bars: the scores as HTML.
        maps, scores, thresholds, k: what they are made from; thresholds are None while they are not known.
        drawn: what the picture depends on.
    """

    png: bytes
    picture: str
    bars: str
    maps: Heatmaps
    scores: np.ndarray
    thresholds: np.ndarray | None
    k: int
    drawn: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """All that is shown of a state: a part for each model, the image as it is, the scale of colours, and the words."""

    parts: tuple[Part, ...]
    image: str
    scale: str
    words: str
    unit: str


def settings(view: View, state: State) -> tuple[float, int]:
    """Return the alpha and k with which a model scores: its own, or those of the sliders."""
    return (view.alpha, view.k) if state.own else (state.alpha, state.k)


def compose(
    state: State,
    views: Sequence[View],
    split: Split,
    dataset: Dataset,
    picture: Picture,
    fitted: str,
    before: Frame | None,
) -> Frame:
    """Return what a state shows; pictures that are as they were ``before`` are not drawn again."""
    one: int | str = state.text or dataset.classes.index(state.klass)
    maps = [view.map(state.image, one, state.method, state.prompts, picture.shape) for view in views]
    values = [picture.values(m) for m in maps]
    limits = limits_of(values)
    boxes, others = _boxes(state, split, one)
    scores = [view.scores(state.image, *settings(view, state), state.prompts) for view in views]
    fits = [view.thresholds(*settings(view, state), state.prompts) for view in views]
    targets = split.targets[state.image]
    rows = [_rows(state, view, s, t, targets, dataset) for view, s, t in zip(views, scores, fits, strict=True)]
    axis = _axis(rows)
    caption = f"{fitted}; axis from {axis[0]:.2f} to {axis[1]:.2f}"
    parts = []
    for i, view in enumerate(views):
        k = settings(view, state)[1]
        outlined = k if state.method == "similarity" else 0
        drawn = (state.image, one, state.method, state.prompts, state.opacity, state.boxes, outlined, limits)
        last = before.parts[i] if before else None
        if last is not None and last.drawn == drawn:
            png = last.png
        else:
            patches = maps[i].top_patches(k)[0] if outlined else np.zeros((0, 4))
            lines = {"patches": patches, "boxes": boxes, "others": others}
            png = draw(picture, values[i], limits, opacity=state.opacity, **lines)
        words = f"{split.ids[state.image]}: {_what(state)}, {view.name}; highest {markup.place_of(values[i])}"
        parts.append(
            Part(
                png=png,
                picture=markup.picture(png, picture.size, words),
                bars=markup.bars(rows[i], axis, len(dataset.classes), caption),
                maps=maps[i],
                scores=scores[i],
                thresholds=fits[i],
                k=k,
                drawn=drawn,
            )
        )
    said = "; ".join(_score_words(state, view, s, dataset) for view, s in zip(views, scores, strict=True))
    unit = views[0].unit(state.method, one)
    return Frame(
        parts=tuple(parts),
        image=_plain(split.ids[state.image], picture, boxes, others),
        scale=markup.scale(
            limits, unit, parts[0].k if state.method == "similarity" else 0, bool(len(boxes) + len(others))
        ),
        words=f"{_what(state)}. {said}",
        unit=unit,
    )


def _boxes(state: State, split: Split, one: int | str) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes of the class that is shown, and of others, (n, 4) each."""
    if not state.boxes or split.boxes is None:
        return np.zeros((0, 4)), np.zeros((0, 4))
    rows = split.boxes(state.image)
    here = rows[:, 0] == one if not isinstance(one, str) else np.zeros(len(rows), bool)
    return rows[here, 1:], rows[~here, 1:]


def _plain(name: str, picture: Picture, boxes: np.ndarray, others: np.ndarray) -> str:
    """Return the image as it is, small, with its objects."""
    small = picture.smaller(THUMBNAIL)
    none = np.zeros(small.size[::-1], np.float32)
    png = draw(small, none, (0, 1), opacity=0, patches=np.zeros((0, 4)), boxes=boxes, others=others)
    return markup.picture(png, small.size, f"{name}: the image")


def _rows(
    state: State,
    view: View,
    scores: np.ndarray,
    thresholds: np.ndarray | None,
    targets: np.ndarray,
    dataset: Dataset,
) -> list[markup.Bar]:
    groups = np.full(len(dataset.classes), "", dtype=object)
    for name, members in class_groups(dataset.class_counts).items():
        groups[members] = name
    shown = "" if state.text else state.klass
    rows = markup.bars_of(scores, targets, dataset.classes, thresholds, list(groups), shown)
    if state.text and view.reading == "paper":  # the released reading's scores are on another scale
        score = view.sentence_score(state.image, *settings(view, state), state.text)
        rows.insert(0, markup.Bar(state.text, score, shown=True))
    return rows


def _axis(rows: Sequence[Sequence[markup.Bar]]) -> tuple[float, float]:
    """Return the ends of the bars' axis, shared by all models: a little below the lowest, and the highest."""
    values = np.array([[bar.score, bar.threshold] for bars in rows for bar in bars])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    margin = 0.06 * (high - low) or 1e-6
    return low - margin, high + margin


def _what(state: State) -> str:
    name = f"“{state.text}”" if state.text else state.klass
    if state.method == "rollout":
        return "attention rollout, the same for every class"
    if state.method == "gradient":
        return f"{name}, gradient-weighted attention"
    return f"{name}, similarity to patches" + ("" if state.text else f", {state.prompts} prompts")


def _score_words(state: State, view: View, scores: np.ndarray, dataset: Dataset) -> str:
    alpha, k = settings(view, state)
    klass = dataset.classes.index(state.klass)
    whole = f"alpha {alpha:.2f}, k {k}"
    if state.text:
        score = view.sentence_score(state.image, alpha, k, state.text)
        found = view.ranked_by(alpha, k, state.text) if state.order == "score" else None
        among = "" if found is None else f", rank {rank_among(found, state.image)} of {len(found)} images"
        return f"{view.name} ({whole}): score {score:.3f}{among}"
    ranked = view.ranked(alpha, k, state.prompts)
    among = "" if ranked is None else f", {rank_among(ranked[:, klass], state.image)} of {len(ranked)} images"
    place = f"rank {rank_among(scores, klass)} of {len(scores)} classes"
    return f"{view.name} ({whole}): score {scores[klass]:.3f}, {place}{among}"
