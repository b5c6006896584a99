"""Tables from finished runs: read through ``predictions.npz``, ``result.json`` and the manifest, nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from hpdval.data.dataset import Dataset
from hpdval.errors import RunError
from hpdval.metrics.protocol import SELECTED_ON_TEST, selection_rule
from hpdval.run import read_predictions, read_result
from hpdval.tables.scores import difference_table, score_table
from hpdval.tables.significance import significance_table, with_holm

Folder = str | os.PathLike[str]
Pairs = Mapping[str, tuple[Folder | Sequence[Folder], Folder | Sequence[Folder]]]


def read_runs(folders: Folder | Sequence[Folder]) -> dict[str, Any]:
    """Return the predictions of finished runs that differ in the seed only: ``scores`` is a list of (N, C).

    Raises:
        RunError: a run is unfinished or damaged, or two were not made on the same images, classes and protocol.
    """
    listed = [folders] if isinstance(folders, str | os.PathLike) else list(folders)
    if not listed:
        raise RunError("no run was given; give one folder for each seed")
    found: dict[str, Any] = {}
    for folder in listed:
        predictions, result = read_predictions(folder), read_result(folder, "class_counts", "readout")
        run = {
            "ids": predictions["ids"],
            "classes": predictions["classes"],
            "targets": predictions["targets"],
            "class_counts": np.asarray(result["class_counts"]),
            "readout": result["readout"],
            "selection": selection_rule(result.get("selection", "not stated")),
            "folder": folder,
        }
        refuse_other_images(found or run, run, "readout", "selection")
        found = found or {**run, "scores": []}
        found["scores"].append(predictions["scores"])
    return found


def refuse_other_images(first: Mapping[str, Any], other: Mapping[str, Any], *more: str) -> None:
    """Refuse what :func:`read_runs` returned of runs on other images or classes, or that differ in ``more``.

    Raises:
        RunError: the first thing in which they differ is named.
    """
    for name in ("ids", "classes", "targets", "class_counts", *more):
        if not np.array_equal(first[name], other[name]):
            raise RunError(
                f"{first['folder']} and {other['folder']} differ in {name}; compare runs on the same test images only"
            )


def stored_scores(folder: Folder, dataset: Dataset) -> np.ndarray:
    """Return the scores (N, C) that a finished run gave to the test images of ``dataset``.

    Raises:
        RunError: the run is unfinished or damaged, or was made on other images or classes.
    """
    found = read_predictions(folder)
    for name, here in (("classes", dataset.classes), ("ids", dataset.test.ids)):
        if found[name].tolist() != list(here):
            raise RunError(
                f"{folder} was made with other {name} than {dataset.name} has; "
                "load it with the options of the run, such as test and root, or give another run"
            )
    return found["scores"]


def results_table(runs: Mapping[str, Folder | Sequence[Folder]]) -> pd.DataFrame:
    """Return :func:`score_table` of finished runs: label -> a folder, or one for each seed.

    Raises:
        RunError: a run is unfinished, damaged, or not comparable with the others.
    """
    found = {label: read_runs(folders) for label, folders in runs.items()}
    first = next(iter(found.values()))
    for other in found.values():
        refuse_other_images(first, other, "readout")
    scores = {f"{label}{_mark(run)}": run["scores"] for label, run in found.items()}
    table = score_table(scores, first["targets"], first["class_counts"], readout=first["readout"])
    return _with_footnote(table, found.values())


def _mark(*runs: Mapping[str, Any]) -> str:
    return " *" if any(run["selection"] == SELECTED_ON_TEST for run in runs) else ""


def _with_footnote(table: pd.DataFrame, runs: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    if _mark(*runs):
        table.attrs["footnotes"] = [f"*: {SELECTED_ON_TEST}: an upper bound, and no basis for a claim"]
    return table


def comparison_table(pairs: Pairs, **options: Any) -> pd.DataFrame:
    """Return :func:`difference_table` of finished runs, paired over the same test images and, in order, over seeds.

    Args:
        pairs: label -> (after, before), each a folder, or one for each seed.

    Raises:
        RunError: a run is unfinished, damaged, or not comparable with the others.
    """
    table, runs = _compared(difference_table, pairs, options)
    return _with_footnote(table, runs)


def comparison_significance(pairs: Pairs, **options: Any) -> pd.DataFrame:
    """Return :func:`significance_table` of finished runs; Holm's families are the comparisons in ``pairs``.

    Args:
        pairs: label -> (after, before), each a folder, or one for each seed.
        options: of :func:`significance_table`.

    Raises:
        RunError: a run is unfinished, damaged, or not comparable with the others.
    """
    table, runs = _compared(significance_table, pairs, options)
    return _with_footnote(with_holm(table), runs)


def _compared(
    table_of: Callable[..., pd.DataFrame], pairs: Pairs, options: Mapping[str, Any]
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Return the tables of all pairs as one, labels marked, and the runs that were read."""
    if not pairs:
        raise RunError("no comparison was given; give label -> (runs after, runs before)")
    tables, runs = [], []
    for label, (after, before) in pairs.items():
        a, b = read_runs(after), read_runs(before)
        refuse_other_images(a, b, "readout")
        chosen, marked = {"readout": a["readout"], **options}, f"{label}{_mark(a, b)}"
        tables.append(table_of({marked: (a["scores"], b["scores"])}, a["targets"], a["class_counts"], **chosen))
        runs += [a, b]
    return pd.concat(tables, ignore_index=True), runs
