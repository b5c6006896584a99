"""The layer table of CONTRIBUTING.md is true: imports only point down it, and ``import hpdval`` stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import hpdval

PACKAGE = Path(hpdval.__file__).parent

# The rows of the table in CONTRIBUTING.md, from the foundation up: rooms, and what they may import besides rooms of
# their own layer.  A room is a module or a folder of the package.
BELOW: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "foundation": (("errors", "files", "groups", "progress", "assets"), ()),
    "configuration": (("config", "recipes"), ("foundation",)),
    "data": (("data",), ("foundation", "configuration")),
    "metrics": (("metrics",), ("foundation",)),
    "losses": (("losses",), ("foundation", "configuration")),
    "models": (("models",), ("foundation", "configuration")),
    "run": (("run", "checkpoint"), ("foundation", "configuration")),
    "scoring": (("scoring",), ("foundation", "configuration", "data", "metrics", "models", "run")),
    "training": (
        ("training",),
        ("foundation", "configuration", "data", "metrics", "losses", "models", "run", "scoring"),
    ),
    "report": (("plots", "tables"), ("foundation", "configuration", "data", "metrics", "run", "scoring")),
}
FRONT = ("notebook_parameters", "notebook_process", "notebook_runner", "study", "doctor", "cli")  # may import everything
LONG = {"hpdval/data/scenes/draw.py"}  # one short function for each of the things that are drawn
LAYER = {room: layer for layer, (rooms, _) in BELOW.items() for room in rooms}

MODULES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path) for path in MODULES}


def room(module: str) -> str:
    """``hpdval.data.scenes.world`` is in the room ``data``; ``hpdval`` itself in none."""
    return module.split(".")[1] if "." in module else ""


def imports(path: Path, *, at_import_only: bool = False) -> set[str]:
    """Modules of the package that a file imports: everywhere in it, or only what runs when it is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    nodes = list(ast.walk(tree))
    if at_import_only:
        nodes = [n for n in tree.body if not isinstance(n, ast.If)]  # `if TYPE_CHECKING:`
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively; write the whole name"
            assert node.module is not None
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in NAMES else node.module for name in inner}
    return {name for name in found if name.split(".")[0] == "hpdval"}


def test_every_module_has_a_room_in_the_table() -> None:
    rooms = {room(name) for name in NAMES} - {""}
    assert rooms - set(LAYER) - set(FRONT) == set(), "add the room to CONTRIBUTING.md and to this table"


def test_the_table_of_the_page_names_every_room() -> None:
    page = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = {room(name) for name in NAMES} - {""}
    missing = [name for name in rooms if f"`{name}.py`" not in page and f"{name}/" not in page]
    assert not missing, f"CONTRIBUTING.md does not name {missing}"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_only_point_down(path: Path) -> None:
    own = room(module_name(path))
    if own in FRONT or own == "":
        return  # the front may import everything; hpdval/__init__.py resolves public names on first use
    allowed = {own, *BELOW[LAYER[own]][0], *(r for layer in BELOW[LAYER[own]][1] for r in BELOW[layer][0])}
    wrong = {name for name in imports(path) if room(name) and room(name) not in allowed}
    assert not wrong, f"{module_name(path)} ({LAYER[own]}) must not import {sorted(wrong)}"


def test_there_is_no_cycle() -> None:
    graph = {module_name(path): imports(path) - {"hpdval", module_name(path)} for path in MODULES if path.parent}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names the cycle


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_no_star_import_and_no_bare_except(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not (isinstance(node, ast.ImportFrom) and node.names[0].name == "*")
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None)


def test_long_modules_are_named() -> None:
    lengths = {str(p.relative_to(PACKAGE.parent)): len(p.read_text(encoding="utf-8").splitlines()) for p in MODULES}
    assert {name: n for name, n in lengths.items() if n > 300 and name not in LONG} == {}


@pytest.mark.parametrize("module", ["hpdval", "hpdval.cli", "hpdval.study", "hpdval.notebook_runner", "hpdval.recipes"])
def test_import_is_light(module: str) -> None:
    """Neither torch nor matplotlib, nor what takes a second by itself, is loaded before it is needed."""
    heavy = ["torch", "matplotlib", "pandas", "open_clip", "papermill", "sklearn", "IPython"]
    code = f"import sys, time; t = time.perf_counter(); import {module}; t = time.perf_counter() - t; "
    code += f"print(t, *[m for m in {heavy} if m in sys.modules])"
    seconds, *loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert loaded == []
    assert float(seconds) < 1.0  # about 0.03 s; the bound allows for a busy machine


def test_the_metrics_know_no_torch() -> None:
    code = "import sys, hpdval.metrics.evaluate, hpdval.config, hpdval.data.dataset; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
