"""The explorer in JupyterLab in Chromium: sliders, words and buttons change what is seen, by keyboard alone."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from .lab import Lab
    from .notebook import NotebookPage

EXPLORER = """import hpdval
data = hpdval.load_dataset("scenes-lt", train=40, test=30)
clip = hpdval.load_clip("scenes")
both = hpdval.zero_shot_scorer(clip, data.classes, score=hpdval.get_recipe("scenes").score)
view = hpdval.explore(clip, data, other=both, show=False)
view"""

SCROLLED = """() => [...document.querySelectorAll(".hpdval-explorer, .hpdval-explorer *")].filter(part =>
  part.clientWidth && part.scrollWidth > part.clientWidth + 1 && /auto|scroll/.test(getComputedStyle(part).overflowX)
).map(part => part.className)"""
CUT_OFF = """() => {
  const right = document.querySelector(".hpdval-explorer").parentElement.getBoundingClientRect().right;
  const parts = document.querySelectorAll(".hpdval-explorer :is(img, table, select, .widget-slider)");
  return [...parts].filter(part => part.getBoundingClientRect().right > right + 1).map(part => part.className);
}"""


def status(notebook: NotebookPage) -> str:
    return notebook.page.locator(".hpdval-status").inner_text()


def words_for(notebook: NotebookPage) -> list[str]:
    """What a screen reader says of the two maps."""
    return [str(image.get_attribute("alt")) for image in notebook.page.locator(".hpdval-map img").all()]


def explored() -> Any:
    """The same explorer in this process, which has nobody to wait for."""
    names: dict[str, Any] = {}
    exec(EXPLORER, names)
    return names["view"]


def wait_listed(notebook: NotebookPage, count: int) -> int:
    """Wait until the list has so many images; how many it has."""

    def listed() -> int:
        found = re.search(r"(?:of|among the) (\d+)", notebook.page.locator(".hpdval-place").inner_text())
        return int(found[1]) if found else 0

    return notebook._until(listed, lambda seen: seen == count, 30)


def test_the_explorer_follows_sliders_words_and_buttons(lab: Lab) -> None:
    with lab.open(lab.write("explorer.ipynb", EXPLORER)) as notebook:
        notebook.run_all()
        first = notebook.picture_bytes()
        assert max(Image.open(io.BytesIO(first)).size) == 360
        scores = notebook.page.locator(".hpdval-scores").first.inner_text()
        notebook.move_slider("alpha", -60)
        assert notebook.page.locator(".hpdval-scores").first.inner_text() != scores
        assert notebook.picture_bytes() == first, "alpha changes scores, no map"
        notebook.move_slider("k patches", 5)
        second = notebook.wait_changed(first)
        notebook.type_text("Words", "a photo of a red thing")
        third = notebook.wait_changed(second)
        assert all("“a photo of a red thing”" in words for words in words_for(notebook))
        notebook.page.get_by_role("button", name="Next").focus()
        notebook.page.keyboard.press("Enter")
        fourth = notebook.wait_changed(third)
        assert fourth
        assert "2 of 30" in notebook.page.locator(".hpdval-place").inner_text()
        assert words_for(notebook)[1].startswith("test/00001: ")
        notebook.page.get_by_label("each model's own alpha and k").check()  # with one alpha both are the same
        notebook.page.get_by_label("Show", exact=True).select_option("wrongly ranked")
        same = explored()
        same.only = "wrong"
        assert wait_listed(notebook, len(same.images)) == len(same.images) < 30
        wrong = len(same.images)
        notebook.page.get_by_label("Order", exact=True).select_option("most improved, B over A")
        same.order = "improved"
        assert wait_listed(notebook, len(same.images)) == len(same.images) < wrong
        notebook.page.get_by_label("Show", exact=True).select_option("all images")
        notebook.page.get_by_label("Order", exact=True).select_option("as stored")
        notebook.page.get_by_label("small objects only").check()
        same.set(only="all", order="stored", small=True)
        assert wait_listed(notebook, len(same.images)) == len(same.images) < 15, "a third of 30, and who ties with it"
        notebook.page.get_by_label("small objects only").uncheck()
        notebook.type_text("Find id", "nothing like it")
        assert "no image is left of 30" in status(notebook)
        notebook.type_text("Words", "word " * 60)
        assert "⚠ the prompt" in status(notebook)
        assert notebook.page.get_by_label("Words", exact=True).input_value() == "a photo of a red thing"


def test_the_explorer_fits_its_cell(lab: Lab) -> None:
    with lab.open(lab.write("narrow.ipynb", EXPLORER)) as notebook:
        notebook.run_all()
        for width, height in ((1400, 900), (1000, 800), (700, 900)):
            notebook.page.set_viewport_size({"width": width, "height": height})
            notebook.page.wait_for_timeout(500)
            assert notebook.page.evaluate(SCROLLED) == [], f"scroll bars at {width} px"
            assert notebook.page.evaluate(CUT_OFF) == [], f"cut off at {width} px"
