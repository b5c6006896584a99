"""Copies of all notebooks with their own smoke parameters, for nbval: ``python tests/smoke_notebooks.py FOLDER``.

nbval runs a notebook as it is and injects nothing, so papermill prepares the copies.  Each gets a fresh run folder.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import nbformat
import papermill

from hpdval.files import read_json
from hpdval.notebook_parameters import check_parameters, notebook_parameters, notebooks_dir


def prepare(folder: Path, *, chained: bool = True) -> list[Path]:
    """Write one copy of every notebook into ``folder``, which is emptied first.

    ``chained`` copies name the runs of those before them, which must have been run.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    copies, runs = [], {}
    for notebook in sorted(notebooks_dir().glob("*.ipynb")):
        known = notebook_parameters(notebook)
        runs[notebook.stem] = str(folder / "runs" / notebook.stem)
        stages = [run for name, run in runs.items() if "stage" in name and chained]
        given = {
            "run_dir": runs[notebook.stem],
            "stage1_run": (stages or [""])[0],
            "runs": ",".join(stages),
            **read_json(notebook)["metadata"]["hpdval"]["smoke"],
        }
        values = check_parameters(notebook, {name: value for name, value in given.items() if name in known})
        copy = folder / notebook.name
        prepared = papermill.execute_notebook(
            notebook, None, values, prepare_only=True, kernel_name="python3", language="python"
        )
        for cell in prepared.cells:
            if cell.get("outputs"):
                cell.execution_count = 1  # nbstripout removes it, and nbval compares no cell without one
        nbformat.write(prepared, copy)
        copies.append(copy)
    return copies


if __name__ == "__main__":
    prepare(Path(sys.argv[1]).resolve())
