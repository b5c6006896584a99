"""What training took: parameters that were trained and seconds of the training loop, as runs recorded them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hpdval.errors import RunError
from hpdval.run import read_result

Folder = str | os.PathLike[str]
UNTRAINED = "zero-shot"  # what methods that train nothing are called, whatever follows
SHARED_MACHINE = (
    "Seconds are of the machine that the manifest of each run names, and of one run at a time only where no other ran "
    "beside it: machines are shared, so read them as ratios at best."
)
UNITS = ((1e9, " G"), (1e6, " M"), (1e3, " k"))


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run and those it started from took, added up; ``seconds`` is None where nothing was trained."""

    parameters: int
    seconds: float | None


def run_cost(folder: Folder) -> Cost | None:
    """Return what training took, the stages that the run started from included; None where it was not recorded.

    Read from ``trained`` in ``result.json``, which maps each method to ``parameters`` and ``seconds``.  A run without
    it was made before such records were kept, unless its method is zero-shot, which trains nothing.

    Raises:
        RunError: the run is unfinished or damaged, or ``trained`` is no such record.
    """
    result = read_result(folder)
    if "trained" not in result:
        return Cost(parameters=0, seconds=None) if str(result.get("method", "")).startswith(UNTRAINED) else None
    rows = [(one["parameters"], one["seconds"]) for one in result["trained"].values()]
    return Cost(parameters=sum(n for n, _ in rows), seconds=sum(seconds for _, seconds in rows) if rows else None)


def cost_table(runs: Mapping[str, Folder | Sequence[Folder]]) -> pd.DataFrame:
    """Return what training took: a row for each label, means over seeds, the stages it started from included.

    ``parameters`` counts numbers that were trained; ``seconds`` is NaN where nothing was.  With several seeds
    ``seconds sd`` is the sample standard deviation.  Both are NaN where a run of the label has no record.

    Args:
        runs: label -> a folder, or one for each seed.

    Raises:
        RunError: as :func:`run_cost`, or a label has no run.
    """
    rows = []
    for label, given in runs.items():
        folders = [given] if isinstance(given, str | os.PathLike) else list(given)
        if not folders:
            raise RunError(f"no run was given for {label!r}; give one folder for each seed")
        rows.append({"method": label, **_means([run_cost(folder) for folder in folders])})
    table = pd.DataFrame(rows, columns=["method", "parameters", "seconds", "seconds sd"])
    table = table.drop(columns=[] if table["seconds sd"].notna().any() else ["seconds sd"])
    table.attrs = {"digits": {"parameters": 0}, "footnotes": [SHARED_MACHINE]}
    return table


def _means(costs: Sequence[Cost | None]) -> dict[str, float]:
    known = [one for one in costs if one is not None]
    if len(known) < len(costs):
        return dict.fromkeys(("parameters", "seconds", "seconds sd"), math.nan)
    seconds = np.array([math.nan if one.seconds is None else one.seconds for one in known])
    return {
        "parameters": float(np.mean([one.parameters for one in known])),
        "seconds": float(seconds.mean()),
        "seconds sd": float(seconds.std(ddof=1)) if len(seconds) > 1 else math.nan,
    }


def count_text(count: float) -> str:
    """Return a large number to three digits, as papers write it.

    >>> [count_text(n) for n in (0, 512, 5_100, 999_700, 1_016_832, 86_192_640, 1.2e9)]
    ['0', '512', '5.1 k', '1 M', '1.02 M', '86.2 M', '1.2 G']
    """
    rounded = float(f"{count:.3g}")
    unit, name = next(((u, n) for u, n in UNITS if rounded >= u), (1.0, ""))
    return f"{rounded / unit:.3g}{name}"
