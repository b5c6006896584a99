"""A Chromium is found where one works, and only there; without playwright the tests of this folder are still found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .chromium import find_chromium


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("HPDVAL_CHROMIUM", raising=False)
    return tmp_path


def put(path: Path, status: int) -> str:
    path.write_text(f"#!/bin/sh\nexit {status}\n")
    path.chmod(0o755)
    return str(path)


def test_none_is_found_where_none_is(folder: Path) -> None:
    assert find_chromium() is None


def test_one_that_does_not_start_is_passed_over(folder: Path) -> None:
    put(folder / "chromium", status=1)  # as Ubuntu's, which asks for a snap
    assert find_chromium() is None
    chrome = put(folder / "google-chrome", status=0)
    assert find_chromium() == chrome


def test_the_environment_names_one_or_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder / "chromium", status=0)
    monkeypatch.setenv("HPDVAL_CHROMIUM", "/opt/chrome")
    assert find_chromium() == "/opt/chrome"
    monkeypatch.setenv("HPDVAL_CHROMIUM", "")
    assert find_chromium() is None


def test_without_playwright_the_folder_is_collected() -> None:
    """So that its tests are skipped, visibly, instead of ending every other test, too."""
    blocked = "import sys; sys.modules['playwright'] = None; import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    here = Path(__file__).resolve().parent
    asked = ["--collect-only", "-q", "-p", "no:cacheprovider", str(here)]
    run = subprocess.run([sys.executable, "-c", blocked, *asked], cwd=here.parents[1], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "test_explorer.py::" in run.stdout
