"""``hpdval demo``: notebooks 01 to 04 on the embedded data set, then one table from their results; no torch here."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpdval.errors import RunError
from hpdval.files import atomic_write, read_json
from hpdval.notebook_parameters import find_notebook, notebook_parameters
from hpdval.notebook_runner import run_notebook

METHODS = {"02": "zero-shot", "03": "stage 1", "04": "stage 2"}  # the notebooks that score the test images
COLUMNS = ("total", "head", "medium", "tail")


def demo(out: str | os.PathLike[str] = "runs/demo", *, seed: int = 0, force: bool = False) -> Path:
    """Run the whole method with one seed, print the table, and return the file that holds it.

    Finished notebooks are skipped; those whose sources, parameters or code changed are run again.

    Raises:
        RunError: a notebook failed; running the same command again continues.
    """
    started, folder = time.monotonic(), Path(out).expanduser().resolve()
    results: dict[str, Mapping[str, Any]] = {}
    runs: dict[str, Path] = {}
    for number in ("01", *METHODS):
        notebook = find_notebook(number)
        runs[number] = folder / notebook.stem
        given = {"dataset": "scenes-lt", "recipe": "scenes", "seed": seed, "stage1_run": str(runs.get("03", ""))}
        wanted = notebook_parameters(notebook)
        parameters = {name: value for name, value in given.items() if name in wanted}
        run_notebook(notebook, parameters, runs[number], force=force, replace_stale=True)
        if number in METHODS:
            results[METHODS[number]] = read_json(runs[number] / "result.json")
    table = summary(results)
    with atomic_write(folder / "summary.md", "w") as file:
        file.write(table + "\n")
    print(f"\nscenes-lt, seed {seed}: mean average precision in percent on the test images\n\n{table}\n")
    print(where(runs, folder))
    print(f"{time.monotonic() - started:.0f} s in all")
    return folder / "summary.md"


def summary(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table (Markdown) of methods against total, head, medium and tail mAP.

    Raises:
        RunError: a result lacks one of the numbers.

    >>> print(summary({"zero-shot": {"total": 61.25, "head": 70.0, "medium": 60.0, "tail": None}}))
    | method    | total |  head | medium |  tail |
    |-----------|------:|------:|-------:|------:|
    | zero-shot | 61.25 | 70.00 |  60.00 |     - |
    """
    lines = ["| method    | total |  head | medium |  tail |", "|-----------|------:|------:|-------:|------:|"]
    for method, result in results.items():
        missing = [name for name in COLUMNS if name not in result]
        if missing:
            raise RunError(f"the result of {method} has no {', '.join(missing)}; run it again with --force")
        total, head, medium, tail = ("-" if result[name] is None else f"{result[name]:.2f}" for name in COLUMNS)
        lines.append(f"| {method:<9} | {total:>5} | {head:>5} | {medium:>6} | {tail:>5} |")
    return "\n".join(lines)


def where(runs: Mapping[str, Path], folder: Path) -> str:
    """Return which files lie where, for a reader who has just seen the table."""

    def short(path: Path) -> str:
        return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)

    lines = ["executed notebooks:", *(f"  {short(run / 'executed.ipynb')}" for run in runs.values())]
    for title, patterns in (("tables", ("*.csv", "*.md")), ("figures", ("*.png", "*.svg"))):
        files = sorted({file for pattern in patterns for file in folder.rglob(pattern)})
        lines += [f"{title}:", *(f"  {short(file)}" for file in files)] if files else []
    return "\n".join(lines)
