"""Start-up: importing the package and the help of every command, beside Python itself and ``import torch``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import partial

import pandas as pd

from benchmarks.common import alternate, options, ratio, spread, write_report

TARGETS = {"import hpdval": "300", "hpdval --help": "500"}
PYTHON = "python -c pass"


def commands(quick: bool) -> dict[str, list[str]]:
    """Return what is started, by the name it has in the table."""
    python, hpdval = [sys.executable, "-c"], [sys.executable, "-m", "hpdval.cli"]
    some = {
        PYTHON: [*python, "pass"],
        "import hpdval": [*python, "import hpdval"],
        "hpdval --help": [*hpdval, "--help"],
    }
    if quick:
        return some
    more = {f"hpdval {name} --help": [*hpdval, name, "--help"] for name in ("demo", "run", "study", "predict", "data")}
    return some | more | {"import torch": [*python, "import torch"]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the report."""
    chosen = options(__doc__ or "", arguments, repeats=11)
    cases = {
        name: partial(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
        for name, command in commands(chosen.quick).items()
    }
    times = alternate(cases, repeats=chosen.repeats)
    rows = [
        {
            "command": name,
            "CPU time, ms": spread(each.cpu),
            "wall time, ms": spread(each.wall),
            "target, ms": TARGETS.get(name, "-"),
            "CPU time / Python's": "1" if name == PYTHON else str(ratio(each.cpu, times[PYTHON].cpu)),
        }
        for name, each in times.items()
    ]
    write_report(
        "startup",
        chosen,
        title="Start-up",
        compared="A fresh process each time, with byte code and files in the system's cache. `import hpdval` loads no "
        "torch; the last line says what that saves.",
        tables={"Time of a process": pd.DataFrame(rows)},
        notes=[
            f"Median of {chosen.repeats} alternating repeats (least to largest); ratios of medians, of single repeats",
            "The targets are held against CPU time; wall time also waits for whatever else runs (see the load)",
        ],
    )


if __name__ == "__main__":
    main()
