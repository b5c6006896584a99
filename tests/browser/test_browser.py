"""Every notebook runs in JupyterLab in Chromium, without an error in a cell, a callback or the console."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from hpdval.notebook_parameters import notebooks_dir

if TYPE_CHECKING:
    from .lab import Lab

# each encodes or trains again what its smoke run has done; 01, 06, 09, 10 and what has widgets stay
LONG = {
    *("02_zero_shot_baseline", "03_stage1_dual_view_alignment", "04_stage2_hierarchical_prompts", "05_reproduce"),
    *("07_patch_heatmaps", "08_few_shot"),
}
NOTEBOOKS = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.nightly] * (path.stem in LONG))
    for path in sorted(notebooks_dir().glob("*.ipynb"))
]

WIDGETS = """import io
import time
import ipywidgets as widgets
from PIL import Image
red = widgets.IntSlider(description="Red", max=250, step=10)
words = widgets.Text(description="Prompt")
picture = widgets.Image(format="png")
def draw(change=None):
    time.sleep(0.2)
    file = io.BytesIO()
    Image.new("RGB", (64, 32), (red.value, len(words.value), 7)).save(file, "png")
    picture.value = file.getvalue()
for widget in (red, words):
    widget.observe(draw, "value")
draw()
widgets.VBox([red, words, picture])"""
FAILING_CALLBACK = """import ipywidgets as widgets
slider = widgets.IntSlider(description="Red")
slider.observe(lambda change: 1 / 0, "value")
slider"""
BAD_PAGE = """from IPython.display import HTML
HTML("<script>console.error('a complaint')</script><img src='http://192.0.2.1/a.png' alt=''>")"""  # nobody's address


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_notebook_runs_in_jupyterlab(path: Path, lab: Lab) -> None:
    with lab.open(path.name) as notebook:
        notebook.run_all()
        assert notebook.picture_bytes(), "a notebook has a figure"


def colour(picture: bytes) -> tuple[int, ...]:
    return Image.open(io.BytesIO(picture)).convert("RGB").getpixel((0, 0))


def test_slider_and_text_change_the_picture(lab: Lab) -> None:
    with lab.open(lab.write("widgets.ipynb", WIDGETS)) as notebook:
        notebook.run_all()
        first = notebook.picture_bytes()
        assert colour(first) == (0, 0, 7)
        assert notebook.move_slider("Red", 4) == "40"
        second = notebook.wait_changed(first)
        assert colour(second) == (40, 0, 7)
        notebook.type_text("Prompt", "a cat")
        third = notebook.wait_changed(second)
        assert colour(third) == (40, len("a cat"), 7)
        assert notebook.move_slider("Red", -3) == "10"
        assert colour(notebook.picture_bytes()) == (10, len("a cat"), 7), "a move ends when the kernel is done with it"


def test_a_failing_cell_is_shown_with_its_traceback(lab: Lab) -> None:
    with (
        pytest.raises(AssertionError, match=r"(?s)an error in the kernel:.*ZeroDivisionError") as caught,
        lab.open(lab.write("cell.ipynb", "a = 1", "a / 0", "a = 2")) as notebook,
    ):
        notebook.run_all()
    assert any(note.endswith("cell-failed.png") for note in caught.value.__notes__)


def test_a_failing_callback_is_noticed(lab: Lab) -> None:
    with (  # noqa: PT012
        pytest.raises(AssertionError, match="ZeroDivisionError"),
        lab.open(lab.write("callback.ipynb", FAILING_CALLBACK)) as notebook,
    ):
        notebook.run_all()
        notebook.move_slider("Red", 1)


def test_errors_of_the_page_and_requests_to_others_are_noticed(lab: Lab) -> None:
    with (
        pytest.raises(AssertionError, match="a complaint") as caught,
        lab.open(lab.write("page.ipynb", BAD_PAGE)) as notebook,
    ):
        notebook.run_all()
    assert "the page asks another machine: http://192.0.2.1/a.png" in str(caught.value)


@pytest.mark.nightly
def test_a_notebook_that_takes_too_long_is_stopped_and_the_next_one_opens(lab: Lab) -> None:
    name = lab.write("slow.ipynb", "import time\ntime.sleep(600)")
    with pytest.raises(AssertionError, match=r"slow\.ipynb took more than 20 s"), lab.open(name, 20) as notebook:
        notebook.run_all()
    with lab.open(lab.write("next.ipynb", "1 + 1")) as notebook:
        notebook.run_all()
