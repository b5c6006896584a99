"""The list of images that the explorer goes through: filters that combine, an order, what must be known first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from hpdval.data.dataset import Dataset, Split
from hpdval.lab import filters
from hpdval.lab.frame import settings
from hpdval.lab.state import ANY, COMPARED, State
from hpdval.lab.view import Pass, View

MOMENT = 0.02  # seconds between two looks at what the user does


class Listing:
    """Images of a split as the filters want them; with two models, filters by scores follow the first one."""

    def __init__(self, dataset: Dataset, split: Split, views: Sequence[View]) -> None:
        self._dataset, self._split, self._views = dataset, split, views
        self._sizes = np.full(split.targets.shape, np.nan)
        self._sized = 0
        self._last: tuple[object, ...] = ()
        self._found: tuple[np.ndarray, str] = np.arange(len(split)), ""

    def images(self, state: State, before: np.ndarray) -> tuple[np.ndarray, str]:
        """Return the indices of the list, and a word on it, if any; ``before`` while scores are not known."""
        alpha_k = tuple(settings(view, state) for view in self._views)
        needed = [one.done for one in self._passes(state)], self._measuring(state)
        key = (
            state.only,
            state.order,
            state.group,
            state.small,
            state.find,
            state.klass,
            state.text,
            state.prompts,
            alpha_k,
            needed,
        )
        if key != self._last:
            if not self._ready(state):
                return before, "the list follows when all images are known"
            self._found, self._last = self._list(state), key
        return self._found

    def place(self, state: State, images: np.ndarray) -> str:
        """Return where the image stands in the list, and its id, as HTML."""
        at = np.flatnonzero(images == state.image)
        outside = f"not among the {len(images)} now" if len(images) else "no image in the list"
        where = f"<b>{f'{int(at[0]) + 1} of {len(images)}' if len(at) else outside}</b>"
        return f'<div style="overflow-wrap:anywhere">{where} &nbsp; {escape(self._split.ids[state.image])}</div>'

    def missing(self, state: State) -> tuple[Callable[[], None] | None, str]:
        """Return the next slice of work that this state still needs, or None, and how far what work is."""
        ranking, measuring = self._passes(state), self._measuring(state)
        step = next((one.step for one in ranking if not one.done), None)
        if step is not None:
            shares = [min(1.0, one.position / max(1, len(one.branches[0]))) for one in ranking]
            return step, f"ranking all images, {np.mean(shares):.0%}"
        return (
            self._measure if measuring else None
        ), f"measuring objects, {self._sized / max(1, len(self._split)):.0%}"

    def _passes(self, state: State) -> list[Pass]:
        """Return the passes over whole splits that a state needs."""
        passes: list[Pass] = []
        for view in self._views:
            k = settings(view, state)[1]
            passes += [view.whole("shown", k, state.prompts), view.whole("fitted", k, state.prompts)]
            if state.text and state.order == "score":
                passes.append(view.whole("shown", k, "", state.text))
        return passes

    def _measuring(self, state: State) -> bool:
        """Whether the objects' sizes are needed and not all known."""
        return (state.small or state.order == "smallest") and self._sized < len(self._split)

    def _measure(self) -> None:
        """Look at the boxes of images for a moment: read at once, unless the picture has to be drawn for them."""
        end = time.monotonic() + MOMENT
        while self._sized < len(self._split):
            self._sizes[self._sized] = filters.smallest_boxes(self._split, self._sized)
            self._sized += 1
            if time.monotonic() > end:
                return

    def _ready(self, state: State) -> bool:
        if self._measuring(state):
            return False
        if state.only in ("first", "wrong") or state.order in ("worst", *COMPARED):
            return all(self._scores(state, view) is not None for view in self._views)
        if state.order == "score":
            view = self._views[0]
            return (self._words(state, view) if state.text else self._scores(state, view)) is not None
        return True

    def _scores(self, state: State, view: View) -> np.ndarray | None:
        return view.ranked(*settings(view, state), state.prompts)

    def _words(self, state: State, view: View) -> np.ndarray | None:
        return view.ranked_by(*settings(view, state), state.text)

    def _list(self, state: State) -> tuple[np.ndarray, str]:
        masks, values = self._masks(state), self._values(state)
        found = filters.ordered(values, masks, len(self._split))
        if not len(found):
            return found, filters.why_none(values, masks, len(self._split))
        return found, next((name for name in masks if name.startswith("with a small")), "")

    def _masks(self, state: State) -> dict[str, np.ndarray]:
        targets, name = self._split.targets, state.klass
        klass = self._dataset.classes.index(name)
        masks: dict[str, np.ndarray] = {}
        if state.only == "with":
            masks[f"with {name}"] = targets[:, klass] > 0
        elif state.only == "without":
            masks[f"without {name}"] = targets[:, klass] == 0
        elif state.only in ("first", "wrong"):
            scores = self._known(state, self._views[0])
            if state.only == "first":
                masks[f"{name} ranked first"] = np.asarray(scores.argmax(1) == klass)
            else:
                masks["wrongly ranked"] = np.asarray(filters.misranked(scores, targets) > 0)
        if state.group != ANY:
            masks[f"with a {state.group} class"] = np.asarray(targets[:, self._dataset.groups[state.group]].any(1))
        if state.small:
            name, mask = filters.small(self._smallest(state), state.klass if state.only == "with" else "")
            masks[name] = mask
        if state.find.strip():
            masks[f"id has '{state.find.strip()}'"] = filters.matching(self._split.ids, state.find)
        return masks

    def _values(self, state: State) -> np.ndarray | None:
        """Return what images are sorted by, highest first; None for the order in which they are stored."""
        targets, klass = self._split.targets, self._dataset.classes.index(state.klass)
        chosen = klass if state.only in ("with", "without") else None
        if state.order == "score":
            return self._words(state, self._views[0]) if state.text else self._known(state, self._views[0])[:, klass]
        if state.order == "worst":
            return filters.misranked(self._known(state, self._views[0]), targets)
        if state.order == "smallest":
            return -self._smallest(state)
        if state.order in COMPARED:
            before, after = (self._known(state, view) for view in self._views)
            moved = filters.change(before, after, targets, chosen) * (1 if state.order == "improved" else -1)
            return np.where(moved > 0, moved, np.nan)
        return None

    def _smallest(self, state: State) -> np.ndarray:
        """Return the share of each image that its smallest box covers, or that of the class "with the class", (N,)."""
        klass = self._dataset.classes.index(state.klass)
        return np.fmin.reduce(self._sizes[:, [klass]] if state.only == "with" else self._sizes, axis=1)

    def _known(self, state: State, view: View) -> np.ndarray:
        scores = self._scores(state, view)
        assert scores is not None  # see _ready
        return scores
