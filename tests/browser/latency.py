"""How long from a key to the changed picture in the explorer, the whole way through JupyterLab, kernel and Chromium.

cd tests && python -m browser.latency ../reports/benchmarks/explorer-browser.md
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median

import pandas as pd

from hpdval.files import atomic_write
from hpdval.provenance import hardware
from hpdval.tables import to_markdown

from .notebook import NotebookPage
from .record import a_lab

REPEATS = 20
CELL = """import hpdval
data, clip = hpdval.load_dataset("scenes-lt"), hpdval.load_clip("scenes")
both = hpdval.zero_shot_scorer(clip, data.classes, score=hpdval.get_recipe("scenes").score)
view = hpdval.explore(clip, data, other={other}, show=False)
view.settle()
view"""
# from the key that is pressed to the second frame after the part has changed: by then it is on the screen
TIMED = """part => new Promise(done => {
  document.addEventListener("keydown", () => {
    const began = performance.now();
    const seen = new MutationObserver(() => {
      seen.disconnect();
      requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - began)));
    });
    seen.observe(document.querySelector(part), {subtree: true, childList: true, attributes: true, characterData: true});
  }, {capture: true, once: true});
})"""


def press(notebook: NotebookPage, part: str, key: str) -> float:
    """Press a key and return the milliseconds until ``part`` (a CSS selector) shows something else."""
    waiting = notebook.page.evaluate_handle(f"part => ({{time: ({TIMED})(part)}})", part)
    notebook.page.keyboard.press(key)
    took = float(notebook.page.evaluate("async handle => await handle.time", waiting))
    notebook.wait_idle()
    return took


def sliders(notebook: NotebookPage, label: str, part: str) -> list[float]:
    """Return the times of a slider that goes back and forth."""
    notebook.widget(label, ".widget-slider").locator(".noUi-handle").first.focus()
    return [press(notebook, part, "ArrowRight" if i % 2 else "ArrowLeft") for i in range(REPEATS)]


def next_images(notebook: NotebookPage) -> list[float]:
    """Return the times of the button Next."""
    notebook.page.get_by_role("button", name="Next").focus()
    return [press(notebook, ".hpdval-map", "Enter") for _ in range(REPEATS)]


def sentences(notebook: NotebookPage) -> list[float]:
    """Return the times of sentences, each a new one, from Enter."""
    times = []
    for i in range(REPEATS):
        field = notebook.widget("Words", ".widget-text").locator("input")
        field.fill(f"a photo of {i} red things")
        times.append(press(notebook, ".hpdval-map", "Enter"))
    return times


CHANGES: dict[str, Callable[[NotebookPage], list[float]]] = {
    "alpha": lambda notebook: sliders(notebook, "alpha", ".hpdval-scores"),
    "k": lambda notebook: sliders(notebook, "k patches", ".hpdval-map"),
    "opacity": lambda notebook: sliders(notebook, "Opacity", ".hpdval-map"),
    "another image": next_images,
    "words of one's own": sentences,
}


def main(out: str) -> None:
    """Measure with one model and with two, and write the table."""
    rows: dict[str, dict[str, str]] = {name: {"change": name} for name in CHANGES}
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder, a_lab(Path(folder)) as lab:
        for models in (1, 2):
            cell = CELL.format(other="both" if models == 2 else None)
            with lab.open(lab.write(f"latency{models}.ipynb", cell)) as notebook:
                notebook.run_all()
                for name, measure in CHANGES.items():
                    times = sorted(measure(notebook))
                    words = f"{median(times):.0f} ({times[0]:.0f} to {times[-1]:.0f})"
                    rows[name][f"{models} model{'s' * (models > 1)}, ms"] = words
    lines = [
        "# The explorer in the browser",
        "From a key to the second frame after the picture (for alpha: the bars) has changed: through JupyterLab, kernel"
        f" and headless Chromium without a GPU on one machine, median (least to largest) of {REPEATS}; "
        "scenes-lt, 2,000 images. What Python takes of it is in [explorer.md](explorer.md).",
        to_markdown(pd.DataFrame(rows.values())),
        f"- Load average {before[0]:.1f} before, {os.getloadavg()[0]:.1f} after, on {os.cpu_count()} cores "
        f"({hardware().get('cpu', 'CPU')})",
        f"- Command: `cd tests && python -m browser.latency {out}`, {date.today()}",
    ]
    with atomic_write(Path(out), "w") as file:
        file.write("\n\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
