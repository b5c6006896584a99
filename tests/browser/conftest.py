"""The fixture ``lab``, and the order: after nbval, whose finished runs are then shown instead of being made again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from smoke_notebooks import prepare

from .chromium import HINT, find_chromium

if TYPE_CHECKING:
    from .lab import Lab

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
SMOKE = ROOT / "build/smoke"
# what is no test drives the browser, and doctest would import it
collect_ignore_glob = [] if find_spec("playwright") else ["[!t]*.py"]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of this folder last."""
    items.sort(key=lambda item: HERE in item.path.parents)


@pytest.fixture(scope="package")
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Chromium on a JupyterLab that serves smoke copies of all notebooks; skipped, visibly, where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; `make setup` does it")
    executable = find_chromium()
    if not executable:
        pytest.skip(HINT)
    from .lab import Lab
    from .server import JupyterLab

    shots, folder = ROOT / "build/browser", tmp_path_factory.mktemp("lab")
    shots.mkdir(parents=True, exist_ok=True)
    if any(item.path.parent == SMOKE for item in request.session.items):
        copies = sorted(SMOKE.glob("*.ipynb"))
    else:
        copies = prepare(folder / "smoke", chained=False)
    server = JupyterLab(folder, shots / "jupyterlab.log")
    for copy in copies:
        shutil.copy(copy, server.notebooks)
    try:
        with sync_api.sync_playwright() as playwright:
            try:
                lab = Lab(playwright, executable, server, shots)
            except sync_api.Error as error:  # a container without user namespaces, say
                if "HPDVAL_CHROMIUM" in os.environ:
                    raise
                pytest.skip(f"{executable} does not start: {str(error).splitlines()[0]}")
            yield lab
    finally:
        stayed = server.stop()
    assert not stayed, f"processes stayed behind: {stayed}"
