"""Record one use of the explorer: screenshots in order, of the drawn scenes alone, for docs/explorer.md and the README.

cd tests && python -m browser.record RUN OTHER ../docs/_static/explorer

RUN and OTHER are finished runs on scenes-lt, such as those of notebooks 02 and 04 that `make demo` leaves.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from .chromium import HINT, find_chromium
from .lab import Lab
from .notebook import NotebookPage
from .server import JupyterLab

CELL = """import hpdval
view = hpdval.explore({run!r}, hpdval.load_dataset("scenes-lt"), other={other!r})
view"""


def choose(notebook: NotebookPage, label: str, option: str) -> None:
    """Choose in a list, as a reader does; classes may have a tick before their names."""
    field = notebook.page.get_by_label(label, exact=True)
    words = [" ".join(text.removeprefix("✓").split()) for text in field.locator("option").all_inner_texts()]
    assert option in words, f"{label} offers {words}"
    field.select_option(index=words.index(option))


def steps(notebook: NotebookPage) -> Iterator[str]:
    """Use the explorer; yield the name of a picture whenever there is something to see."""
    yield "1-opened"
    choose(notebook, "Class", "cat")
    choose(notebook, "Show", "with the class")
    choose(notebook, "Order", "most improved, B over A")
    yield "2-most-improved"
    choose(notebook, "Map", "gradient (slower)")
    yield "3-gradient"
    choose(notebook, "Map", "similarity to patches")
    choose(notebook, "Show", "wrongly ranked")
    choose(notebook, "Order", "worst ranked first")
    yield "4-worst-ranked"
    choose(notebook, "Show", "all images")
    notebook.type_text("Words", "a photo of a red apple")
    choose(notebook, "Order", "highest score first")
    yield "5-own-words"


@contextmanager
def a_lab(folder: Path) -> Iterator[Lab]:
    """JupyterLab and Chromium, as the tests start them."""
    executable = find_chromium()
    if not executable:
        raise SystemExit(HINT)
    server = JupyterLab(folder, folder / "jupyterlab.log")
    try:
        with sync_playwright() as playwright:
            yield Lab(playwright, executable, server, folder)
    finally:
        server.stop()


def main(run: str, other: str, out: str) -> None:
    """Write the screenshots to ``out``."""
    target = Path(out).resolve()
    target.mkdir(parents=True, exist_ok=True)
    cell = CELL.format(run=str(Path(run).resolve()), other=str(Path(other).resolve()))
    with (
        tempfile.TemporaryDirectory() as folder,
        a_lab(Path(folder)) as lab,
        lab.open(lab.write("record.ipynb", cell)) as notebook,
    ):
        notebook.page.set_viewport_size({"width": 1320, "height": 1100})
        notebook.run_all()
        for name in steps(notebook):
            notebook.page.wait_for_timeout(4000)  # ranks and thresholds come when nothing moves
            notebook.wait_idle()
            path = target / f"{name}.png"
            notebook.page.locator(".hpdval-explorer").screenshot(path=path)
            Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)
            print(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
