"""Tables from finished runs: read through ``predictions.npz``, ``result.json`` and the manifest, nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from hpdval.data.dataset import Dataset
from hpdval.errors import RunError
from hpdval.run import read_predictions, read_result
from hpdval.tables.scores import difference_table, score_table

Folder = str | os.PathLike[str]


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
        predictions, result = read_predictions(folder), read_result(folder)
        run = {
            "ids": predictions["ids"],
            "classes": predictions["classes"],
            "targets": predictions["targets"],
            "class_counts": np.asarray(result["class_counts"]),
            "readout": result["readout"],
            "folder": folder,
        }
        _same(found or run, run)
        found = found or {**run, "scores": []}
        found["scores"].append(predictions["scores"])
    return found


def _same(first: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    for name in ("ids", "classes", "targets", "class_counts", "readout"):
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
            raise RunError(f"{folder} was made with other {name} than {dataset.name} has; give a run on this data set")
    return found["scores"]


def results_table(runs: Mapping[str, Folder | Sequence[Folder]]) -> pd.DataFrame:
    """Return :func:`score_table` of finished runs: label -> a folder, or one for each seed.

    Raises:
        RunError: a run is unfinished, damaged, or not comparable with the others.
    """
    found = {label: read_runs(folders) for label, folders in runs.items()}
    first = next(iter(found.values()))
    for other in found.values():
        _same(first, other)
    scores = {label: run["scores"] for label, run in found.items()}
    return score_table(scores, first["targets"], first["class_counts"], readout=first["readout"])


def comparison_table(
    pairs: Mapping[str, tuple[Folder | Sequence[Folder], Folder | Sequence[Folder]]], **options: Any
) -> pd.DataFrame:
    """Return :func:`difference_table` of finished runs, paired over the same test images and, in order, over seeds.

    Args:
        pairs: label -> (after, before), each a folder, or one for each seed.

    Raises:
        RunError: a run is unfinished, damaged, or not comparable with the others.
    """
    tables = []
    for label, (after, before) in pairs.items():
        a, b = read_runs(after), read_runs(before)
        _same(a, b)
        chosen = {"readout": a["readout"], **options}
        tables.append(difference_table({label: (a["scores"], b["scores"])}, a["targets"], a["class_counts"], **chosen))
    return pd.concat(tables, ignore_index=True)
