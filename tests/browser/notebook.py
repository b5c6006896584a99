"""A notebook in a page of JupyterLab: run it, move what can be moved, look at it.

Cells are run through the menu, sliders and texts changed by keys, as a reader does; what the cells did is read from
JupyterLab's own model (``window.jupyterapp``), since a page may draw only what is in view.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from playwright.sync_api import ConsoleMessage, Locator, Page, Request
from playwright.sync_api import Error as PlaywrightError

START_SECONDS = 90
START_ATTEMPTS = 3
DRAW_SECONDS = 60
WIDTH, HEIGHT = 1280, 900
TALLEST = 16000  # px, of a screenshot
T = TypeVar("T")

# `panel` is the notebook; errors are those of cells and of what widgets call, which show up in no cell.
SCRIPT = """
window.hpdval = {
  errors: [],
  sent: new Set(),
  get panel() {
    const shell = window.jupyterapp?.shell;
    return shell ? [...shell.widgets("main")].find(widget => widget.content?.widgets && widget.sessionContext) : null;
  },
  get kernel() { return this.panel?.sessionContext?.session?.kernel; },
  listen() {
    this.panel.sessionContext.iopubMessage.connect((_, message) => {
      if (message.header.msg_type === "error") this.errors.push(message.content.traceback.join("\\n"));
    });
    this.kernel.anyMessage.connect((_, {msg, direction}) => {  // widgets use threads of the kernel beside its main one
      if (direction === "send" && msg.header.msg_type === "comm_msg") this.sent.add(msg.header.msg_id);
      if (msg.content.execution_state === "idle") this.sent.delete(msg.parent_header.msg_id);
    });
  },
  state() {
    const code = this.panel.content.widgets.filter(w => w.model.type === "code" && w.model.sharedModel.source.trim());
    return {
      kernel: this.kernel?.status ?? "none",
      waiting: code.filter(w => !w.model.executionCount).map(w => w.model.sharedModel.source),
      errors: this.errors,
      sent: this.sent.size,
      dialog: document.querySelector(".jp-Dialog-content")?.innerText ?? "",
    };
  },
  drawn() {
    const images = [...this.panel.node.querySelectorAll(".jp-OutputArea-output img")];
    return images.every(image => image.complete && image.naturalWidth > 0)
      && !/Loading widget|Error displaying widget/.test(this.panel.node.innerText);
  },
  height() {
    const cells = [...this.panel.node.querySelectorAll(".jp-Notebook-cell")];
    this.panel.node.querySelector(".jp-WindowedPanel-outer").scrollTop = 0;
    return Math.ceil(cells.at(-1).getBoundingClientRect().bottom) + 40;
  },
  async answered() { await this.kernel.requestKernelInfo(); return true; },
  async picture(index) {
    const all = [...this.panel.node.querySelectorAll(":is(img, canvas):is(.jp-OutputArea-output *)")];
    const picture = all.filter(p => p.offsetParent && (p.naturalWidth ?? p.width) > 0).at(index);
    if (!picture) return null;
    if (picture.tagName === "CANVAS") return picture.toDataURL().split(",")[1];
    const bytes = new Uint8Array(await (await fetch(picture.src)).arrayBuffer());
    return btoa(bytes.reduce((text, byte) => text + String.fromCharCode(byte), ""));
  },
};
"""


class NotebookPage:
    """One notebook, open in one page; ``problems`` are errors of the page, and requests that leave this machine."""

    def __init__(self, page: Page, url: str, shots: Path) -> None:
        self.page, self.url, self.shots = page, url, shots
        self.problems: list[str] = []
        page.set_default_timeout(DRAW_SECONDS * 1000)
        page.add_init_script(SCRIPT)
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.problems.append(f"the page raised: {error}"))
        page.on("request", self._on_request)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.problems.append(f"console: {message.text} ({message.location.get('url', '')})")

    def _on_request(self, request: Request) -> None:
        if not re.match(r"(https?|wss?)://127\.0\.0\.1[:/]|data:|blob:", request.url):
            self.problems.append(f"the page asks another machine: {request.url}")

    def open(self) -> None:
        """Load the page and wait for the kernel; one that does not start is tried again."""
        for attempt in range(1, START_ATTEMPTS + 1):
            self.page.goto(self.url)
            try:
                self.page.wait_for_function("hpdval.kernel?.status === 'idle'", timeout=START_SECONDS * 1000)
                break
            except PlaywrightError as error:
                if attempt == START_ATTEMPTS or self.page.is_closed():
                    raise AssertionError(f"no kernel after {attempt} attempts: {self.dialog()}") from error
        self.page.evaluate("() => { hpdval.listen(); jupyterapp.shell.collapseLeft(); }")

    def dialog(self) -> str:
        """What a dialog of JupyterLab says, if there is one."""
        return " ".join(self.page.locator(".jp-Dialog-content").all_inner_texts())

    def run_all(self, seconds: float = 300) -> None:
        """Run > Run All Cells; returns when all have run, and fails with the traceback when one failed."""
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        state = self._until(self._state, lambda s: not s["waiting"] and s["kernel"] == "idle", seconds)
        still = "".join(state["waiting"][:1])
        assert not still, f"after {seconds:g} s, with the kernel {state['kernel']}, this has not run:\n{still}"
        self.wait_drawn()

    def _state(self) -> dict[str, Any]:
        """What the cells did so far; fails where it cannot go on."""
        state: dict[str, Any] = self.page.evaluate("() => hpdval.state()")
        assert not state["errors"], "an error in the kernel:\n" + re.sub(r"\x1b\[[\d;]*m", "", state["errors"][0])
        assert not state["dialog"], f"JupyterLab asks: {state['dialog']}"
        assert "restarting" not in state["kernel"], f"the kernel is {state['kernel']}: it died"
        assert state["kernel"] not in ("dead", "none"), f"the kernel is {state['kernel']}"
        return state

    def _until(self, look: Callable[[], T], enough: Callable[[T], bool], seconds: float) -> T:
        """Look until it is enough, at most so long; the last look."""
        end = time.monotonic() + seconds
        while not enough(seen := look()) and time.monotonic() < end:
            self.page.wait_for_timeout(200)
        return seen

    def wait_idle(self, seconds: float = DRAW_SECONDS) -> None:
        """Wait until the kernel has answered all that was sent before, and is idle."""
        for _ in range(2):  # an answer may let a widget send what it held back
            self.page.wait_for_function("hpdval.answered()", timeout=seconds * 1000)
            state = self._until(self._state, lambda s: s["kernel"] == "idle" and not s["sent"], seconds)
            assert not state["sent"], f"the kernel has not answered a widget after {seconds:g} s"
            assert state["kernel"] == "idle", f"the kernel is {state['kernel']} after {seconds:g} s"

    def wait_drawn(self) -> None:
        """Wait until every picture and every widget is on the page."""
        look = lambda: bool(self.problems or self.page.evaluate("() => hpdval.drawn()"))  # noqa: E731
        drawn = self._until(look, bool, DRAW_SECONDS)
        assert not self.problems, "\n".join(self.problems)
        assert drawn, "a picture or a widget was not drawn"

    def widget(self, label: str, kind: str) -> Locator:
        """The widget with this label (``description=``) of a kind such as ``.widget-slider``."""
        named = self.page.locator(".widget-label", has_text=re.compile(rf"^\s*{re.escape(label)}\s*$"))
        return self.page.locator(f".jp-OutputArea-output {kind}", has=named)

    def move_slider(self, label: str, steps: int) -> str:
        """Move a slider by so many steps with the arrow keys, to the left where negative; what it then shows."""
        slider = self.widget(label, ".widget-slider")
        handle = slider.locator(".noUi-handle").first
        handle.scroll_into_view_if_needed()
        handle.focus()
        for _ in range(abs(steps)):
            self.page.keyboard.press("ArrowRight" if steps > 0 else "ArrowLeft")
        self.wait_idle()
        return slider.locator(".widget-readout").inner_text()

    def type_text(self, label: str, text: str) -> None:
        """Replace what is in a text field, key by key, and end with Enter (in a text area by leaving it)."""
        field = self.widget(label, ".widget-text, .jp-OutputArea-output .widget-textarea").locator("input, textarea")
        field.click()
        field.press("ControlOrMeta+a")
        field.press_sequentially(text)
        field.press("Enter" if field.evaluate("field => field.tagName") == "INPUT" else "Tab")
        self.wait_idle()

    def picture_bytes(self, index: int = -1) -> bytes:
        """The file of a picture in the outputs (a canvas as PNG): the last, or the ``index``-th of them."""
        found = None
        try:
            found = self.page.evaluate("index => hpdval.picture(index)", index)
        except PlaywrightError:  # a widget replaces its picture just now
            if self.page.is_closed():
                raise
        return base64.b64decode(found or "")

    def wait_changed(self, before: bytes, index: int = -1, seconds: float = DRAW_SECONDS) -> bytes:
        """Wait until a picture is no longer ``before``, and then until nothing changes it; its new bytes."""
        seen = self._until(lambda: self.picture_bytes(index), lambda now: now not in (before, b""), seconds)
        assert seen not in (before, b""), f"the picture is the same after {seconds:g} s"
        self.wait_idle()
        return self.picture_bytes(index)

    def shot(self, name: str, whole: bool = True) -> Path:
        """``build/browser/NAME.png``: the whole notebook from its first cell, or the window as it is."""
        path = self.shots / f"{name}.png"
        for _ in range(2 * whole):  # what was out of view before may have another height once it is drawn
            height = min(max(HEIGHT, self.page.evaluate("() => hpdval.height()")), TALLEST)
            self.page.set_viewport_size({"width": WIDTH, "height": height})
            self.page.wait_for_timeout(300)
        self.page.screenshot(path=path)
        self.page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
        return path

    def check(self) -> None:
        """No error in the console, in the kernel, or in what is drawn."""
        self.wait_idle()
        self.wait_drawn()

    def close(self) -> None:
        """End the kernel and the page."""
        ended = "Promise.race([hpdval.panel?.sessionContext.shutdown(), new Promise(done => setTimeout(done, 15000))])"
        self.page.evaluate(f"async () => {{ await {ended}; }}")
        self.page.close()
