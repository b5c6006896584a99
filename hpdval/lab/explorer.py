"""The explorer: images, maps and scores of one or two models, in JupyterLab or as an object in Python.

Letters: N images, C classes.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ipywidgets as widgets
import numpy as np

from hpdval.data.dataset import Dataset, Split
from hpdval.errors import HpdvalError
from hpdval.lab import markup
from hpdval.lab.controls import Controls, page
from hpdval.lab.frame import Frame, compose
from hpdval.lab.later import Later
from hpdval.lab.listing import Listing
from hpdval.lab.panel import Panel
from hpdval.lab.parts import close_parts
from hpdval.lab.picture import Picture
from hpdval.lab.state import NAMES, WHICH, Limits, State
from hpdval.lab.view import View
from hpdval.plots import Chart, Explanation, explained_image, figure_bytes

REPORT = 0.5  # seconds between two words on how far long work is
PICTURES = 16  # decoded and resized, kept


class Explorer(widgets.VBox):
    """What :func:`hpdval.explore` returns; each attribute of :class:`hpdval.lab.state.State` can be read and set.

    ``view.image = 12``, ``view.klass = "boat"``, ``view.alpha = 0.3`` and ``view.text = "a red thing"`` do what the
    controls do; :meth:`set` changes several at once.  Nothing is shown of a change that fails.

    Attributes:
        state: what is shown.
        controls: the controls, see :class:`hpdval.lab.controls.Controls`.
        images: indices of the images in the list, in its order.
    """

    dataset: Dataset
    split: Split
    views: tuple[View, ...]
    side: int
    state: State
    controls: Controls
    images: np.ndarray

    def __init__(self, dataset: Dataset, split: Split, views: Sequence[View], side: int) -> None:
        self.dataset, self.split, self.views, self.side = dataset, split, tuple(views), side
        self._limits = Limits(
            images=len(split),
            classes=dataset.classes,
            patches=min(view.patches for view in views),
            models=len(views),
            boxes=split.boxes is not None,
        )
        present = np.flatnonzero(split.targets[0])
        first = views[0]
        self.state = State(
            image=0,
            klass=dataset.classes[int(present[0]) if len(present) else 0],
            alpha=first.alpha,
            k=min(first.k, self._limits.patches),
        )
        self._pictures: OrderedDict[int, Picture] = OrderedDict()
        self._frame: Frame | None = None
        self._listing = Listing(dataset, split, self.views)
        self._later = Later(self._guarded_step)
        self._worked, self._reported, self._took = False, 0.0, 0.0
        self._to_first = False  # a new order was asked for, and its first image is not known yet
        self.images = np.arange(len(split))
        self.controls = Controls(self._limits, self.state, self._moved)
        self._panels = [Panel(side, len(views) == 1) for _ in views]
        self._scale, self._status = widgets.HTML(), widgets.HTML()
        self._status.add_class("hpdval-status")
        models = [panel.box for panel in self._panels]
        super().__init__(page(self.controls.column(), models, [self._scale, self._status]))
        self.add_class("hpdval-explorer")
        self._show(self.state)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_") or name in Explorer.__annotations__ or hasattr(type(self), name):
            super().__setattr__(name, value)
        else:
            self.set(**{name: value})  # which knows no such name, and says so

    # -- what is shown --------------------------------------------------------------------------------------------

    def set(self, **changes: Any) -> None:
        """Change several attributes of the state at once.

        Raises:
            ConfigError: an unknown name or a value out of range; nothing has changed then.
            DataError: the image cannot be decoded.
        """
        with self.controls.turn:
            self._show(self._limits.changed(self.state, changes), changes)

    def go(self, step: int) -> None:
        """Go on by some images in the list, around its ends."""
        if not len(self.images):
            return
        at = np.flatnonzero(self.images == self.state.image)
        place = int(at[0]) + step if len(at) else 0
        self.set(image=int(self.images[place % len(self.images)]))

    def png(self, model: int = 0) -> bytes:
        """Return the picture of a model (0 or 1) as a PNG."""
        return self._shown.parts[model].png

    @property
    def status(self) -> str:
        """What the line below the pictures says."""
        return self._frame.words if self._frame else ""

    def settle(self) -> None:
        """Finish all work that waits for a pause: ranks, thresholds, and lists that depend on them."""
        self._later.finish()

    def figure(self) -> Chart:
        """Return what is shown as a static figure."""
        self.settle()
        frame, state = self._shown, self.state
        models = [
            Explanation(
                name=view.name,
                maps=part.maps,
                scores=part.scores,
                thresholds=part.thresholds,
                top=part.k if state.method == "similarity" else None,
                reading=view.reading,
            )
            for view, part in zip(self.views, frame.parts, strict=True)
        ]
        fits = {view.fit: view.name for view in self.views}  # a caption for each, where they differ
        return explained_image(
            self.split.image(state.image),
            models,
            self.split.targets[state.image],
            self.dataset.classes,
            boxes=frame.boxes[0],
            others=frame.boxes[1],
            caption="\n".join(f"{name}: {fit}" if len(fits) > 1 else fit for fit, name in fits.items()),
            title=f"{self.dataset.name}: {self.split.ids[state.image]}",
        )

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """Return the widget with a static figure beside it, and that alone where nobody can use widgets."""
        static: dict[str, Any] = {"text/plain": self.status, "image/png": figure_bytes(self.figure(), "png", dpi=100)}
        if os.environ.get("HPDVAL_HEADLESS"):
            return static
        return {**(super()._repr_mimebundle_(**options) or {}), **static}

    def close(self) -> None:
        """End the explorer."""
        self._later.stop()
        close_parts(self)
        super().close()

    # -- from a change to the page --------------------------------------------------------------------------------

    @property
    def _shown(self) -> Frame:
        assert self._frame is not None  # since __init__
        return self._frame

    def _show(self, state: State, changed: Sequence[str] | dict[str, Any] = ()) -> None:
        """Compute all that a state shows, and only then show it."""
        began = time.perf_counter()
        images, note = self._listing.images(state, self.images)
        chosen = bool({*WHICH, "klass"} & set(changed)) and "image" not in changed
        if chosen and len(images) and state.image not in images:
            state = replace(state, image=int(images[0]))  # what was asked for; a slider of scores leads nowhere else
        self._to_first = "image" not in changed and (self._to_first or "order" in changed)
        state = self._led_to_first(state, images)
        self._compose(state, images, note)
        self._took = 1000 * (time.perf_counter() - began)
        self._say(self.status)
        self._later.start()

    def _led_to_first(self, state: State, images: np.ndarray) -> State:
        """Whoever sorts wants to see what comes first: go there as soon as it is known."""
        if not self._to_first or not len(images) or self._listing.missing(state)[0] is not None:
            return state
        self._to_first = False
        return replace(state, image=int(images[0]))

    def _compose(self, state: State, images: np.ndarray, note: str) -> None:
        """Show a state with the list of its images, and a word on that list, if any."""
        frame = compose(state, self.views, self.split, self.dataset, self._picture(state.image), self._frame)
        if note:
            frame = replace(frame, words=f"{note}. {frame.words}")
        self.state, self.images, self._frame = state, images, frame
        self._publish(frame)

    def _publish(self, frame: Frame) -> None:
        for panel, part, view in zip(self._panels, frame.parts, self.views, strict=True):
            panel.show(view.name, part.picture, part.bars)
        self._scale.value = frame.scale
        self.controls.image.value = frame.image
        present = [self.dataset.classes[c] for c in np.flatnonzero(self.split.targets[self.state.image])]
        self.controls.show(self.state, self.images.tolist(), present, self._listing.place(self.state, self.images))

    def _say(self, words: str, problem: bool = False) -> None:
        self._status.value = markup.status(words if problem else f"{words} ({self._took:.0f} ms)", problem)

    def _picture(self, image: int) -> Picture:
        if image not in self._pictures:
            self._pictures[image] = Picture.of(self.split.image(image), self.side)
            if len(self._pictures) > PICTURES:
                self._pictures.popitem(last=False)
        return self._pictures[image]

    # -- what users do --------------------------------------------------------------------------------------------

    def _moved(self, name: str, value: Any) -> None:
        """Do what a control asks for; what goes wrong is a line on the page, and the page stays as it was."""
        self._guard(lambda: self._apply(name, value))

    def _apply(self, name: str, value: Any) -> None:
        if name in ("previous", "next"):
            self.go(1 if name == "next" else -1)
        elif name == "clear":
            self.set(text="")
        elif name == "position":
            if len(self.images):
                self.set(image=int(self.images[min(value, len(self.images)) - 1]))
        else:
            self.set(**{name: value})

    def _guard(self, action: Callable[[], None]) -> bool:
        with self.controls.turn:
            try:
                action()
            except Exception as error:  # nobody else would catch it: a traceback of a callback is seen by no user
                words = str(error) if isinstance(error, HpdvalError) else f"{type(error).__name__}: {error}"
                self._publish(self._shown)
                self._say(" ".join(words.split()), problem=True)
                return False
        return True

    # -- what takes longer ----------------------------------------------------------------------------------------

    def _guarded_step(self) -> bool:
        more = False

        def step() -> None:
            nonlocal more
            more = self._step()

        return self._guard(step) and more

    def _step(self) -> bool:
        """Do a slice of what is missing for what is shown; when nothing is, show it all again."""
        missing, words = self._listing.missing(self.state)
        if missing is not None:
            missing()
            self._worked = True
            if time.monotonic() - self._reported > REPORT:
                self._reported = time.monotonic()
                self._say(f"{self._shown.words} … {words}")
            return True
        if self._worked:
            self._worked = False
            images, note = self._listing.images(self.state, self.images)
            self._compose(self._led_to_first(self.state, images), images, note)
            self._say(self.status)
        return False


def _property(name: str) -> property:
    def get(self: Explorer) -> Any:
        return getattr(self.state, name)

    def put(self: Explorer, value: Any) -> None:
        self.set(**{name: value})

    return property(get, put, doc=f"``state.{name}``; setting it shows the change.")


for _name in NAMES:
    setattr(Explorer, _name, _property(_name))
