"""Fixtures shared by all tests: where the development data lies, and caches that never leave the test's folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def shared_folder() -> Path:
    """The folder of development data: ``HPDVAL_SHARED``, else ``../shared`` beside the repository."""
    return Path(os.environ.get("HPDVAL_SHARED") or ROOT.parent / "shared").resolve()


def _folder(name: str) -> Path:
    folder = shared_folder() / name
    if not folder.is_dir():
        pytest.skip(f"development data is not here ({folder}); set HPDVAL_SHARED")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """``$HPDVAL_SHARED/data``; the test is skipped, visibly, where it is missing."""
    return _folder("data")


@pytest.fixture(scope="session")
def golden() -> Path:
    """``$HPDVAL_SHARED/golden/public``; the test is skipped, visibly, where it is missing."""
    return _folder("golden/public")


@pytest.fixture(scope="session")
def spec() -> Path:
    """``$HPDVAL_SHARED/spec``; the test is skipped, visibly, where it is missing."""
    return _folder("spec")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One cache for the whole session, made by it: no test depends on what a machine had before."""
    if not os.environ.get("HPDVAL_TEST_CACHE"):
        os.environ["HPDVAL_CACHE"] = str(tmp_path_factory.mktemp("cache"))
