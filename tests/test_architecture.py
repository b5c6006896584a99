"""The layer table of CONTRIBUTING.md is true: imports only point up it, and ``import hpdval`` stays light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import takewhile
from pathlib import Path

import pytest

import hpdval

PACKAGE = Path(hpdval.__file__).parent


@dataclass(frozen=True)
class Row:
    """A row of the table in CONTRIBUTING.md."""

    rooms: tuple[str, ...]  # modules or folders of the package
    modules: tuple[str, ...]  # what the row says is in its folder; empty where it does not say
    never: tuple[str, ...]  # layers, and torch


def read_table() -> dict[str, Row]:
    """Rows by layer, from the foundation up; what stands before the colon of a cell are the rooms."""
    lines = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| layer |")) + 2
    rows: dict[str, Row] = {}
    for line in takewhile(lambda line: line.startswith("|"), lines[start:]):
        layer, cell, _, never = (text.strip() for text in line.strip("|").split("|"))
        rooms, _, inside = cell.partition(":")
        names = [re.findall(r"`(\w+)(?:\.py|/)`", text) for text in (rooms, inside)]
        rows[layer] = Row(*map(tuple, names), tuple(never.split(", ")) if never != "-" else ())
    return rows


TABLE = read_table()
LAYERS = list(TABLE)
LONG = {"hpdval/data/scenes/draw.py"}  # one short function for each of the things that are drawn
LAYER = {room: layer for layer, row in TABLE.items() for room in row.rooms}

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


def test_the_table_names_every_room_and_nothing_else() -> None:
    assert LAYERS[0] == "foundation"
    assert LAYERS[-1] == "front"
    assert set(LAYER) - {"notebooks"} == {room(name) for name in NAMES} - {""}


@pytest.mark.parametrize("layer", [layer for layer, row in TABLE.items() if row.modules])
def test_a_row_that_names_modules_names_all_of_them(layer: str) -> None:
    folder = PACKAGE / TABLE[layer].rooms[0]
    found = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert set(TABLE[layer].modules) == found - {"__init__"}


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_only_point_up_the_table(path: Path) -> None:
    own = room(module_name(path))
    if own == "":
        return  # hpdval/__init__.py resolves public names on first use
    row, above = TABLE[LAYER[own]], LAYERS[: LAYERS.index(LAYER[own])]
    allowed = {*row.rooms, *(r for layer in above if layer not in row.never for r in TABLE[layer].rooms)}
    wrong = {name for name in imports(path) if room(name) and room(name) not in allowed}
    assert not wrong, f"{module_name(path)} ({LAYER[own]}) must not import {sorted(wrong)}"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_who_never_imports_torch_does_not(path: Path) -> None:
    own = room(module_name(path))
    if own and "torch" in TABLE[LAYER[own]].never:
        assert not re.search(r"^\s*(import|from) (torch|open_clip)\b", path.read_text(encoding="utf-8"), re.MULTILINE)


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
    code = f"import sys, time, {module}; print(time.process_time(), *[m for m in {heavy} if m in sys.modules])"
    best = 10.0
    for _ in range(3):  # the first may have to compile the modules
        command = [sys.executable, "-c", code]
        seconds, *loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert loaded == []
        best = min(best, float(seconds))
    assert best < 0.3  # at most 0.1 s; CPU time with Python's own start, so that a busy machine does not matter


def test_the_metrics_know_no_torch() -> None:
    code = "import sys, hpdval.metrics.evaluate, hpdval.config, hpdval.data.dataset; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
