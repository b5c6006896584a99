"""What is said twice is the same twice: pyproject.toml, environment.yml, CITATION.cff, the workflow, the wheel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

import hpdval

ROOT = Path(__file__).resolve().parent.parent
CONDA_NAMES = {"torch": "pytorch", "open_clip_torch": "open-clip-torch", "build": "python-build"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def by_name(requirements: list[str]) -> dict[str, str]:
    pairs = (re.fullmatch(r"([\w.-]+)(>=.*)", text) for text in requirements)
    return {match[1]: match[2] for match in pairs if match}


def test_conda_and_pip_ask_for_the_same(project: dict[str, Any]) -> None:
    extras = [text for texts in project["optional-dependencies"].values() for text in texts]  # conda has no extras
    wanted = by_name([*project["dependencies"], *extras])
    listed = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    packages, pip = [item for item in listed if isinstance(item, str)], listed[-1]["pip"]
    conda = by_name(packages)
    assert conda.pop("python") == project["requires-python"]
    assert conda == {CONDA_NAMES.get(name, name): bound for name, bound in wanted.items()}
    assert len(conda) == len(packages) - 2  # python, and pip without a bound
    assert pip == ["--editable ."]


def test_citation_licence_and_version_agree(project: dict[str, Any]) -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == hpdval.__version__
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] == project["license"] == "MIT"
    assert citation["references"][0]["year"] == 2025
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert licence.startswith("MIT License\n\nCopyright (c) 2026 The hpdval developers\n")
    assert "WITHOUT WARRANTY OF ANY KIND" in licence


def test_the_code_that_the_page_of_the_method_names_is_there() -> None:
    names = re.findall(r"`(hpdval\.[\w.]+)`", (ROOT / "docs/method.md").read_text(encoding="utf-8"))
    assert len(names) > 10
    for name in names:
        module, _, item = name.rpartition(".")
        assert getattr(import_module(module), item).__doc__


def numbers(text: str) -> set[int]:
    """The equations that a text names: "2, 16", "eq. 11-15", "equations 11 to 15", "eq. 10 and 17"."""
    found: set[int] = set()
    for first, last in re.findall(r"\b(\d{1,2})\b(?:(?:-| to )(\d{1,2})\b)?", text):
        found |= set(range(int(first), int(last or first) + 1))
    return found


def test_every_equation_is_named_where_it_is_computed() -> None:
    page = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?:[^|]+ \| )?([\d, -]+) \| [^|]+ \| `(hpdval[\w.]+)` \|$", page, re.MULTILINE)
    seen: set[int] = set()
    for equations, name in rows:
        module, _, item = name.rpartition(".")
        words = getattr(import_module(module), item).__doc__
        said = {n for part in re.findall(r"eq\.((?:,|;| and|-| |\d)+)", words) for n in numbers(part)}
        if equations.strip(" -"):
            assert numbers(equations) <= said, name
        seen |= numbers(equations)
    assert {2, 4, 5, 10, 11, 12, 13, 14, 15, 16, 17} <= seen, "all that the package computes"


def test_the_source_distribution_holds_what_tests_read() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    included = tools["hatch"]["build"]["targets"]["sdist"]["include"]
    assert all((ROOT / name).exists() for name in included)
    assert all(any((ROOT / name).rglob("*")) for name in included if (ROOT / name).is_dir())
    assert {"docs", "CONTRIBUTING.md", "CITATION.cff", "environment.yml"} <= set(included)


def test_the_workflow_and_ci_run_the_two_commands() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    assert [step["run"] for step in jobs["test"]["steps"] if "run" in step] == ["make test", "make demo"]
    script = ROOT / ".ci/run"
    assert script.read_text(encoding="utf-8").splitlines()[-1] == "exec make test"
    assert os.access(script, os.X_OK)


def test_make_explains_a_missing_python() -> None:
    result = subprocess.run(
        ["make", "-B", "--no-print-directory", "setup", "PYTHON="], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode != 0
    assert "No Python 3.11 or newer found" in result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed; `make setup` installs it")
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    result = subprocess.run(build, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_everything(wheel: Path, project: dict[str, Any]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = f"hpdval-{hpdval.__version__}.dist-info"
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    assert "hpdval/py.typed" in names
    assert {f"{info}/licenses/LICENSE", f"{info}/licenses/NOTICE.md"} <= names
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "hpdval").rglob("*.py")}
    shipped = {str(p.relative_to(ROOT)) for p in (ROOT / "hpdval/assets").iterdir() if p.is_file()}
    notebooks = {f"hpdval/_notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert sources | shipped | notebooks <= names
    assert not [name for name in names if "tests/" in name or "__pycache__" in name]
    assert "hpdval = hpdval.cli:main" in entry_points


@pytest.mark.nightly
def test_the_wheel_installs_and_its_command_works(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(wheel)], check=True)
    command = [str(tmp_path / "env/bin/hpdval")]
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert version.stdout == f"hpdval {hpdval.__version__}\n"
    report = subprocess.run([*command, "doctor"], capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    assert "_notebooks" in report
    assert "scenes: shipped" in report
