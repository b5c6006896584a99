"""What is compared with what: the comparisons of a sweep, as its ``sweep.json`` names them, over finished runs.

A *comparison* is one question, such as the weight of the global view.  Its *cells* are the answers tried, one of them
the reference; a cell holds a finished run for each seed.  Sweeps write the file, reports read it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpdval.errors import HpdvalError, RunError, one_line
from hpdval.files import check_form, read_sealed
from hpdval.run import read_result

SWEEP = "sweep.json"
_CELL = {"label": str, "value?": (float, None), "method?": (str, None), "runs": {...: str}}
RECORD: Any = {  # what is read of it
    "title": str,
    "command": str,
    "runs": {...: {"status": str, "error?": (str, None)}},
    "comparisons": [
        {
            **{"name": str, "title?": str, "claim?": str, "cells": [_CELL]},
            **dict.fromkeys(("reference?", "axis?"), (str, None)),
        },
    ],
}
Folder = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One setting: its label, its place on the axis of a curve, and a finished run folder for each seed."""

    label: str
    value: float | None = None
    runs: Mapping[int, Path] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Cells that answer one question; ``axis`` names the quantity on the x axis, or is None for categories."""

    name: str
    title: str
    cells: tuple[Cell, ...]
    reference: str  # the label of the cell that the others are compared with
    claim: str = ""  # what the paper says about it
    axis: str | None = None


@dataclass(frozen=True, kw_only=True)
class SweepRecord:
    """What a sweep left: its comparisons with the runs that are finished, and one line for each that is not."""

    folder: Path
    title: str
    command: str
    comparisons: tuple[Comparison, ...]
    missing: tuple[str, ...]  # "alpha = 0.2, seed 1: failed in cell 5: ..."


def read_sweep(folder: Folder) -> SweepRecord:
    """Return the record of a sweep; runs that are not finished are left out of its cells and listed.

    Raises:
        RunError: the folder holds no sweep, or a record that is damaged.
    """
    folder = Path(folder)
    if not os.path.exists(folder / SWEEP):
        raise RunError(f"{folder} holds no {SWEEP}; give the --out folder of a sweep")
    missing: list[str] = []
    try:
        record = read_sealed(folder / SWEEP)
        check_form(record, RECORD, SWEEP)
        comparisons = [_comparison(folder, one, record["runs"], missing) for one in record["comparisons"]]
        about = {name: str(record[name]) for name in ("title", "command")}
    except (RunError, KeyError, ValueError) as error:  # a run that is not in the list, a seed that is no number
        raise RunError(f"{folder / SWEEP} is no record of a sweep ({one_line(error)}); run the sweep again") from None
    return SweepRecord(folder=folder, comparisons=tuple(comparisons), missing=tuple(dict.fromkeys(missing)), **about)


def _comparison(folder: Path, one: Mapping[str, Any], runs: Mapping[str, Any], missing: list[str]) -> Comparison:
    cells = []
    for cell in one["cells"]:
        finished = {}
        for seed, name in cell["runs"].items():
            why, error = runs[name]["status"], runs[name].get("error")
            try:
                if why == "done":
                    finished[int(seed)] = method_folder(folder / "runs" / name, cell.get("method"))
                    continue
            except HpdvalError:  # its words would name a folder, and a report the same wherever its runs lie does not
                why, error = "not usable", "removed or damaged since, or without this method; run the sweep again"
            missing.append(f"{one['name']}, {cell['label']}, seed {seed}: {why}" + (f": {error}" if error else ""))
        if len(set(finished.values())) == 1:  # zero-shot, which all seeds share, is one run
            finished = dict([*finished.items()][:1])
        cells.append(Cell(label=cell["label"], value=cell.get("value"), runs=finished))
    about = {name: one.get(name) or "" for name in ("title", "claim", "reference")}
    return Comparison(name=one["name"], axis=one.get("axis"), cells=tuple(cells), **about)


def method_folder(run: Path, method: str | None = None) -> Path:
    """Return the folder with the predictions of ``method`` (by default the last) in the run of a notebook.

    A notebook that trains one method has them in its own folder; one that trains several names their folders in its
    result.

    Raises:
        RunError: the run is unfinished, or made nothing by that name.
    """
    result = read_result(run)
    folders = result.get("folders", {result.get("method"): "."})
    chosen = method or list(folders)[-1]
    if chosen not in folders:
        raise RunError(f"{run} made {', '.join(map(str, folders))}, not {chosen!r}; choose one of these")
    return (run / folders[chosen]).resolve()
