"""From a state to all that the page shows of it: pictures, bars, and the words for them.

Letters: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from hpdval.data.dataset import Dataset, Split
from hpdval.groups import class_groups
from hpdval.lab import markup
from hpdval.lab.filters import rank_among
from hpdval.lab.picture import Picture, draw
from hpdval.lab.state import State
from hpdval.lab.view import View
from hpdval.plots.overlay import Limits, limits_of
from hpdval.scoring.maps import Heatmaps

THUMBNAIL = 200  # pixels of the longer side
T = TypeVar("T")
Boxes = tuple[np.ndarray, np.ndarray]  # of the class that is shown, and of others, (n, 4) each


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
    """All that is shown of a state: a part for each model, the image as it is, scales of colours, words, and boxes."""

    parts: tuple[Part, ...]
    image: str
    scale: str
    words: str
    boxes: Boxes


def settings(view: View, state: State) -> tuple[float, int]:
    """Return the alpha and k with which a model scores: its own, or those of the sliders."""
    return (view.alpha, view.k) if state.own else (state.alpha, state.k)


def compose(
    state: State,
    views: Sequence[View],
    split: Split,
    dataset: Dataset,
    picture: Picture,
    before: Frame | None,
) -> Frame:
    """Return what a state shows; pictures that are as they were ``before`` are not drawn again.

    Models share a scale of colours where the unit of their maps is one, and an axis where they read scores alike.
    """
    one: int | str = state.text or dataset.classes.index(state.klass)
    maps = [view.map(state.image, one, state.method, state.prompts, picture.shape) for view in views]
    values = [picture.values(m) for m in maps]
    limits = _alike(values, [m.unit for m in maps], limits_of)
    boxes, others = _boxes(state, split, one)
    scores = [view.scores(state.image, *settings(view, state), state.prompts) for view in views]
    fits = [view.thresholds(*settings(view, state), state.prompts) for view in views]
    targets = split.targets[state.image]
    rows = [_rows(state, view, s, t, targets, dataset) for view, s, t in zip(views, scores, fits, strict=True)]
    axes = _alike(rows, [view.reading for view in views], _axis)
    parts = []
    for i, view in enumerate(views):
        k = settings(view, state)[1]
        outlined = k if state.method == "similarity" else 0
        drawn = (state.image, one, state.method, state.prompts, state.opacity, state.boxes, outlined, limits[i])
        last = before.parts[i] if before else None
        if last is not None and last.drawn == drawn:
            png = last.png
        else:
            patches = maps[i].top_patches(k)[0] if outlined else np.zeros((0, 4))
            lines = {"patches": patches, "boxes": boxes, "others": others}
            png = draw(picture, values[i], limits[i], opacity=state.opacity, **lines)
        caption = f"{view.fit}; axis from {axes[i][0]:.2f} to {axes[i][1]:.2f}"
        words = f"{split.ids[state.image]}: {_what(state)}, {view.name}; highest {markup.place_of(values[i])}"
        parts.append(
            Part(
                png=png,
                picture=markup.picture(png, picture.size, words),
                bars=markup.bars(rows[i], axes[i], len(dataset.classes), caption),
                maps=maps[i],
                scores=scores[i],
                thresholds=fits[i],
                k=k,
                drawn=drawn,
            )
        )
    said = "; ".join(_score_words(state, view, s, dataset) for view, s in zip(views, scores, strict=True))
    return Frame(
        parts=tuple(parts),
        image=_plain(split.ids[state.image], picture, boxes, others),
        scale=_scales(views, parts, limits, state.method == "similarity", bool(len(boxes) + len(others))),
        words=f"{_what(state)}. {said}",
        boxes=(boxes, others),
    )


def _alike(items: Sequence[T], kinds: Sequence[str], of: Callable[[list[T]], Limits]) -> list[Limits]:
    """Return for each item the limits of all items of its kind: numbers of two kinds have no common scale."""
    return [of([item for item, other in zip(items, kinds, strict=True) if other == kind]) for kind in kinds]


def _scales(views: Sequence[View], parts: Sequence[Part], limits: Sequence[Limits], outlines: bool, boxes: bool) -> str:
    """Return the scale of colours, one for each unit, and what lines mean."""
    counts = [f"{part.k} patches" for part in parts]
    if len(set(counts)) > 1:
        counts = [f"{count} ({letter})" for letter, count in zip("AB", counts, strict=True)]
    lines = [f"white outline: best {', '.join(dict.fromkeys(counts))}"] if outlines else []
    lines += ["dashed: annotated objects"] if boxes else []
    if len({part.maps.unit for part in parts}) == 1:
        return markup.scale(limits[0], parts[0].maps.unit, "; ".join(lines))
    scales = [
        markup.scale(one, part.maps.unit, name=view.name) for view, part, one in zip(views, parts, limits, strict=True)
    ]
    return "".join(scales) + markup.note("; ".join(lines))


def _boxes(state: State, split: Split, one: int | str) -> Boxes:
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


def _axis(rows: Sequence[Sequence[markup.Bar]]) -> Limits:
    """Return the ends of the bars' axis: a little below the lowest, and the highest."""
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
