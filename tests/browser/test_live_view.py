"""The live view in JupyterLab in Chromium: it follows a detached run, outlives a reload of the page, and stops it."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hpdval.detached import start_training, stop_training
from hpdval.errors import HpdvalError
from hpdval.files import lock_held
from hpdval.run import read_metrics

if TYPE_CHECKING:
    from .lab import Lab
    from .notebook import NotebookPage

SLOW = {"stages": "stage1", "stage1.epochs": 400, "stage1.batch_size": 8}  # nobody waits for its end


def state(notebook: NotebookPage) -> str:
    return notebook.page.locator(".hpdval-live-state").last.inner_text()


def wait_for(notebook: NotebookPage, pattern: str, seconds: float = 90) -> str:
    """Wait until the heading of the view says so."""
    said = notebook._until(lambda: state(notebook), lambda text: re.search(pattern, text) is not None, seconds)
    assert re.search(pattern, said), said
    return said


def update(text: str) -> int:
    found = re.search(r"update ([\d,]+)", text)
    assert found, text
    return int(found[1].replace(",", ""))


def stop_and_wait(run: Path) -> None:
    """Leave no training behind, whatever the test found."""
    with suppress(HpdvalError):
        stop_training(run)
    end = time.monotonic() + 60
    while lock_held(run / "train.lock") and time.monotonic() < end:
        time.sleep(0.2)


def test_a_detached_run_is_followed_and_stopped(lab: Lab, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    run = start_training(
        "scenes-lt", "scenes-small", run=tmp_path / "run", overrides=SLOW, data={"train": 40, "test": 20}
    )
    request.addfinalizer(lambda: stop_and_wait(run))
    cell = f"import hpdval\nhpdval.watch({str(run)!r}, every=0.5)"
    with lab.open(lab.write("live.ipynb", cell)) as notebook:
        notebook.run_all()
        first = update(wait_for(notebook, r"running[\s\S]*update [1-9]"))
        assert notebook._until(lambda: update(state(notebook)), lambda n: n > first, 60) > first, (
            "the view stands still"
        )
        notebook.page.keyboard.press("Control+s")
        notebook.page.wait_for_function("!hpdval.panel.context.model.dirty")
        notebook.page.reload()  # the browser was closed and opened again; the kernel lived on
        notebook.page.wait_for_function("hpdval.kernel?.status === 'idle'")
        notebook.page.evaluate("() => hpdval.listen()")
        again = update(wait_for(notebook, r"update [1-9]"))
        assert again >= first
        assert notebook._until(lambda: update(state(notebook)), lambda n: n > again, 60) > again
        notebook.page.locator(".hpdval-live-stop").last.focus()
        notebook.page.keyboard.press("Enter")
        notebook.page.locator(".hpdval-live-confirm").last.click()
        wait_for(notebook, "stopped")
        assert notebook.page.locator(".hpdval-live-stop").last.is_disabled()
    assert list((run / "stage1").glob("checkpoint*"))
    assert read_metrics(run / "stage1")[-1]["step"] >= again
