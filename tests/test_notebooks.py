"""Every notebook has the form that the runner, nbval and a reader expect; nbval itself runs them (`make test`)."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import nbformat
import pytest

from hpdval.notebook_parameters import check_parameters, notebook_parameters, notebooks_dir

NOTEBOOKS = sorted(notebooks_dir().glob("*.ipynb"))
LONGEST_CELL = 10
LONGEST_FUNCTION = 5
MOST_PARAMETERS = 12

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list[Any]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def tags(cell: Any) -> list[str]:
    return cell.metadata.get("tags", [])


def test_the_four_chapters_are_here() -> None:
    assert [path.stem.split("_")[0] for path in NOTEBOOKS][:4] == ["01", "02", "03", "04"]


@each
def test_valid_with_a_title_first(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)


@each
def test_parameters_are_few_plain_scalars_with_a_run_folder(path: Path) -> None:
    parameters = notebook_parameters(path)  # raises unless there is one such cell, of scalars only
    assert "run_dir" in parameters
    assert len(parameters) <= MOST_PARAMETERS


@each
def test_smoke_parameters_are_accepted(path: Path) -> None:
    smoke = read(path).metadata["hpdval"]["smoke"]
    assert smoke
    check_parameters(path, smoke)


@each
def test_cells_are_short_and_functions_shorter(path: Path) -> None:
    for cell in code_cells(path):
        longest = MOST_PARAMETERS if "parameters" in tags(cell) else LONGEST_CELL
        assert len(cell.source.splitlines()) <= longest, cell.source
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < LONGEST_FUNCTION, node.name


@each
def test_outputs_are_committed_only_where_nbval_compares_them(path: Path) -> None:
    for cell in code_cells(path):
        if "nbval-check-output" in tags(cell):
            assert "keep_output" in tags(cell), "nbstripout would remove what nbval compares"
            kinds = {kind for output in cell.outputs for kind in output.get("data", {"text/plain": ""})}
            assert kinds <= {"text/plain"}, "only small text tables are committed"
        else:
            assert not cell.outputs, cell.source
            assert cell.execution_count is None
