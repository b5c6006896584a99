"""``hpdval.watch``: a training as it goes, in a widget that is only a view: all it shows comes from the folder."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from math import inf
from numbers import Real
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import ipywidgets as widgets

from hpdval.detached import stop_training
from hpdval.errors import ConfigError, HpdvalError, one_line
from hpdval.lab.live.follow import DONE, RUNNING, WAITING, Follower, Snapshot
from hpdval.lab.live.page import details, heading, picture
from hpdval.lab.parts import close_parts
from hpdval.plots.style import figure_bytes
from hpdval.plots.training import loss_curves
from hpdval.tables.inventory import find_run

DRAWING_SHARE = 10  # after a drawing that took a second the next one waits for ten

_WATCHED: WeakValueDictionary[Path, LiveView] = WeakValueDictionary()  # a cell that is run again takes its folder over


def watch(run: str | os.PathLike[str], root: str | os.PathLike[str] = "runs", *, every: float = 2.0) -> LiveView:
    """Show a training as it goes, whoever runs it and wherever: another process, another machine, a headless notebook.

    State, update, losses, curves, the last lines of the log and the result are read from the folder, where only new
    bytes are read.  Closing the browser changes nothing: the training does not know of the view, and a page that is
    loaded again, or a cell that is run again, shows what is true then.  "Stop" asks once more, and then asks the
    training to save and stop, as ``hpdval stop`` does; the same command continues it.

    Of a training in this very kernel, text follows it from another thread, but curves are drawn and buttons answer only
    when the cell ends; start it with :func:`hpdval.start_training` instead.  In an executed notebook, where nobody can
    click, a static picture of the moment is shown.

    Args:
        run: a run's folder; the folder of ``hpdval train`` or a notebook, with runs in it; or at least 6 characters of
            a run's key.
        root: where a key is looked for.
        every: seconds between two looks.

    Raises:
        ConfigError: ``every`` is no number above 0.
        RunError: there is no such folder, and no run or more than one with that key.
    """
    if isinstance(every, bool) or not isinstance(every, Real) or not 0 < every < inf:
        raise ConfigError(f"every is {every!r}; it must be a number of seconds above 0")
    folder = find_run(run, root)
    if earlier := _WATCHED.pop(folder, None):
        earlier.close()
    view = _WATCHED[folder] = LiveView(folder, every)
    return view


class LiveView(widgets.VBox):
    """The view of one training; :meth:`refresh` looks at once, :meth:`close` ends it.

    Its parts have the CSS classes ``hpdval-live-state``, ``-curves``, ``-details``, ``-stop``, ``-confirm``,
    ``-cancel`` and ``-refresh``.
    """

    def __init__(self, folder: Path, every: float) -> None:
        self.folder, self.snapshot = folder, Snapshot(folder, WAITING)
        self._follower, self._every, self._message = Follower(folder), every, ""
        self._undrawn = ""
        self._looking, self._ended = threading.Lock(), threading.Event()
        self._drawn: tuple[Any, ...] = ()
        self._draw_after = 0.0
        self.state, self.details = _part(widgets.HTML(), "state"), _part(widgets.HTML(), "details")
        self.curves = _part(widgets.HTML(layout={"display": "none"}), "curves")
        self.stop_button = _button("stop", "Stop …", "Ask the training to save and stop; asks once more first")
        self.confirm_button = _button("confirm", "Save and stop", "Stop after this update; the same command continues")
        self.cancel_button = _button("cancel", "Keep training", "Do not stop")
        self.refresh_button = _button("refresh", "Refresh", "Look at the folder now")
        self.stop_button.on_click(lambda _: self._ask(True))
        self.cancel_button.on_click(lambda _: self._ask(False))
        self.confirm_button.on_click(lambda _: self.stop())
        self.refresh_button.on_click(lambda _: self.refresh())
        self.confirm_button.button_style = "danger"
        buttons = [self.stop_button, self.confirm_button, self.cancel_button, self.refresh_button]
        super().__init__(
            [self.state, self.curves, self.details, widgets.HBox(buttons, layout={"flex_flow": "row wrap"})]
        )
        self._asking = False
        self.add_class("hpdval-live")
        self.refresh()
        self._follow()

    # -- what the buttons do ---------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Look at the folder now, and draw what is new."""
        self._draw_after = 0.0
        self._look()
        self._draw()

    def stop(self) -> None:
        """Ask the training to save and stop."""
        try:
            stop_training(self.folder)
            self._message = ""
        except HpdvalError as error:
            self._message = str(error)
        self._ask(False)
        self.refresh()

    def close(self) -> None:
        """End the view; the training goes on."""
        self._ended.set()
        close_parts(self)
        super().close()

    def _ask(self, asking: bool) -> None:
        self._asking = asking
        self._show_buttons()
        if asking:
            self.confirm_button.focus()  # the keyboard goes on where it was

    def _show_buttons(self) -> None:
        running = self.snapshot.state == RUNNING
        self._asking = self._asking and running
        for button, shown in (
            (self.stop_button, not self._asking),
            (self.confirm_button, self._asking),
            (self.cancel_button, self._asking),
        ):
            button.layout.display = None if shown else "none"
        self.stop_button.disabled = not running

    # -- looking ---------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Look every few seconds until the training is done: in a thread, so that a busy kernel is no hindrance."""
        if os.environ.get("HPDVAL_HEADLESS") or self.snapshot.state == DONE:
            return
        try:
            # curves are drawn between two cells: matplotlib's settings belong to one thread at a time
            draw: Callable[[], object] = partial(asyncio.get_running_loop().call_soon_threadsafe, self._draw)
        except RuntimeError:  # no kernel, no cells
            draw = self._draw
        threading.Thread(target=self._keep_looking, args=(draw,), name="hpdval-watch", daemon=True).start()

    def _keep_looking(self, draw: Callable[[], object]) -> None:
        while not self._ended.wait(self._every):
            self._look()
            with suppress(RuntimeError):  # the loop of a kernel that ends
                draw()
            if self.snapshot.state == DONE:
                return

    def _look(self) -> None:
        """Read what is new and show it; whatever goes wrong is a line in the view."""
        with self._looking:
            try:
                self.snapshot = self._follower.look()
                self.state.value = heading(self.snapshot)
                self.details.value = details(self.snapshot, self._message or self._undrawn)
            except Exception as error:  # files may hold anything, and a thread has nobody who would catch it
                trouble = f"cannot show {self.folder.name}: {one_line(error)}"
                self.details.value = details(Snapshot(self.folder, WAITING), trouble)
            self._show_buttons()

    def _draw(self) -> None:
        """Draw the curves of the run at work, where there is something new and the last drawing is long enough ago."""
        stage = self.snapshot.active
        records = stage.records if stage else ()
        now = (stage.folder, len(records), records[-1]["step"]) if stage and records else ()
        if now == self._drawn or time.monotonic() < self._draw_after or self._ended.is_set():
            return
        if stage is None or not any("loss" in record for record in records):
            self.curves.layout.display = "none"
            return
        began = time.monotonic()
        try:
            figure = loss_curves(records, str(records[-1]["stage"]), title=f"{self.folder.name}: {stage.name}")
            words = f"losses of {stage.name} by update, of which {records[-1]['step']} are made"
            self.curves.value = picture(figure_bytes(figure, "png", dpi=100), words)
            self.curves.layout.display, self._undrawn = None, ""
        except Exception as error:
            self._undrawn = f"the curves cannot be drawn: {one_line(error)}"
        self._drawn = now
        self._draw_after = time.monotonic() + DRAWING_SHARE * (time.monotonic() - began)

    # -- without a front end ---------------------------------------------------------------------------------------

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """Return the widget with a static form beside it, and that alone where nobody can look at widgets."""
        shown = f"{heading(self.snapshot)}{self.curves.value}{details(self.snapshot, self._message)}"
        static: dict[str, Any] = {"text/plain": f"{self.folder.name}: {self.snapshot.state}", "text/html": shown}
        if os.environ.get("HPDVAL_HEADLESS"):
            return static
        return {**(super()._repr_mimebundle_(**options) or {}), **static}


def _part(widget: Any, name: str) -> Any:
    widget.add_class(f"hpdval-live-{name}")
    return widget


def _button(name: str, text: str, tooltip: str) -> Any:
    return _part(widgets.Button(description=text, tooltip=tooltip), name)
