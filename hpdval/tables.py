"""Tables from scores and from finished runs: means over seeds, paired differences, and how they are saved and shown.

A run is read through ``predictions.npz``, ``result.json`` and its manifest, never through notebook outputs.

Letters: N images, C classes.
"""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpdval.data.dataset import Split
from hpdval.errors import DataError, RunError
from hpdval.files import atomic_write, read_json
from hpdval.groups import GROUPS, class_groups
from hpdval.metrics import Interval, apply_readout, average_precision, evaluate, paired_bootstrap
from hpdval.run import read_predictions

COLUMNS = ("total", *GROUPS)
THIRDS = ("smallest third", "middle third", "largest third")
Folder = str | os.PathLike[str]
Scores = np.ndarray | Sequence[np.ndarray]


def group_names(class_counts: Sequence[int] | np.ndarray) -> list[str]:
    """Return the group of each class.

    >>> group_names([775, 40, 4])
    ['head', 'medium', 'tail']
    """
    names = np.empty(len(class_counts), dtype=object)
    for group, indices in class_groups(class_counts).items():
        names[indices] = group
    return list(names)


def _listed(scores: Scores) -> list[np.ndarray]:
    return [scores] if isinstance(scores, np.ndarray) and scores.ndim == 2 else list(scores)


def score_table(
    scores: Mapping[str, Scores], targets: np.ndarray, class_counts: np.ndarray, *, readout: str = "raw"
) -> pd.DataFrame:
    """Return mAP in percent: a row ``chance`` (prevalence) and one for each method; total, head, medium, tail.

    Where a method has several seeds the numbers are means, and columns ``total sd``, ... hold the sample standard
    deviation over seeds (NaN for one seed); ``seeds`` says how many.

    Args:
        scores: label -> (N, C), or a list of such arrays, one for each seed.
        targets: (N, C) of 0 and 1.
        class_counts: (C,) training positives, which decide the groups.

    >>> score_table({"mine": np.array([[0.9], [0.1]])}, np.array([[1], [0]]), np.array([120]))["total"].tolist()
    [50.0, 100.0]
    """
    rows: dict[str, dict[str, float]] = {}
    for label, given in scores.items():
        results = [evaluate(values, targets, class_counts, readout=readout) for values in _listed(given)]
        numbers = np.array([[getattr(result, name) for name in COLUMNS] for result in results])
        chance = np.where(np.isnan(results[0].per_class), np.nan, results[0].chance)
        rows.setdefault("chance", {"total": results[0].chance_total, **_group_means(chance, class_counts)})
        rows[label] = dict(zip(COLUMNS, numbers.mean(axis=0), strict=True))
        if len(results) > 1:
            rows[label] |= {f"{n} sd": s for n, s in zip(COLUMNS, numbers.std(axis=0, ddof=1), strict=True)}
        rows[label]["seeds"] = len(results)
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("method").reset_index()
    spread = [f"{name} sd" for name in COLUMNS if f"{name} sd" in table]
    seeds = ["seeds"] if spread else []
    table["seeds"] = table["seeds"].astype("Int64")
    return table[["method", *COLUMNS, *spread, *seeds]]


def _group_means(values: np.ndarray, class_counts: np.ndarray) -> dict[str, float]:
    chosen = {name: values[indices] for name, indices in class_groups(class_counts).items()}
    return {name: float(np.nanmean(v)) if (~np.isnan(v)).any() else float("nan") for name, v in chosen.items()}


def difference_table(
    pairs: Mapping[str, tuple[Scores, Scores]], targets: np.ndarray, class_counts: np.ndarray, **options: Any
) -> pd.DataFrame:
    """Return mAP(after) - mAP(before) in points with a 95 % paired bootstrap interval, for total and groups.

    ``gain`` is "yes" where the interval lies above 0 and all seeds agree, "loss" where it lies below and all agree,
    else "open" (method, section 6, point 5).

    Args:
        pairs: label -> (after, before), each (N, C), or a list of such arrays, one for each seed.
        options: of ``hpdval.metrics.paired_bootstrap``.
    """
    rows = []
    for label, (after, before) in pairs.items():
        intervals = paired_bootstrap(_listed(after), _listed(before), targets, class_counts, **options)
        for name, interval in intervals.items():
            worse = interval.high < 0 and all(value < 0 for value in interval.per_seed)
            verdict = "yes" if interval.gains else "loss" if worse else "open"
            rows.append((label, name, interval.estimate, interval.low, interval.high, len(interval.per_seed), verdict))
    return pd.DataFrame(rows, columns=["comparison", "classes", "difference", "low", "high", "seeds", "gain"])


def interval_table(intervals: Mapping[str, Mapping[str, Interval]]) -> pd.DataFrame:
    """Return mAP in percent with its interval: label -> what ``hpdval.metrics.bootstrap`` returned."""
    rows = [
        (label, name, interval.estimate, interval.low, interval.high)
        for label, groups in intervals.items()
        for name, interval in groups.items()
    ]
    return pd.DataFrame(rows, columns=["method", "classes", "mAP", "low", "high"])


def class_differences(
    after: np.ndarray, before: np.ndarray, targets: np.ndarray, class_counts: np.ndarray, **options: Any
) -> list[Interval]:
    """Return for each class AP(after) - AP(before) in points with a 95 % paired bootstrap interval.

    Args:
        after, before: (N, C).
        options: of ``hpdval.metrics.paired_bootstrap``; 500 resamples unless said otherwise.
    """
    readout, counts = str(options.pop("readout", "raw")), np.asarray(class_counts)
    after, before = apply_readout(after, readout), apply_readout(before, readout)
    options = {"resamples": 500, **options}
    return [
        paired_bootstrap(after[:, [c]], before[:, [c]], targets[:, [c]], counts[[c]], **options)["total"]
        for c in range(targets.shape[1])
    ]


def per_class_table(
    classes: Sequence[str],
    class_counts: np.ndarray,
    targets: np.ndarray,
    scores: Mapping[str, np.ndarray],
    *,
    readout: str = "raw",
) -> pd.DataFrame:
    """Return a row for each class: group, training and test positives, chance and each method's AP in percent."""
    table = pd.DataFrame({"class": list(classes), "group": group_names(class_counts)})
    table["train"], table["test"] = np.asarray(class_counts), targets.sum(axis=0, dtype=np.int64)
    table["chance"] = 100.0 * targets.mean(axis=0)
    for label, values in scores.items():
        table[label] = evaluate(values, targets, class_counts, readout=readout).per_class
    return table


# -- object sizes ------------------------------------------------------------------------------------------------------


def object_sizes(split: Split) -> np.ndarray:
    """Return the share of the image that the largest box of each class covers, (N, C) in [0, 1], NaN without a box.

    Raises:
        DataError: the source knows no boxes.
    """
    if split.boxes is None:
        raise DataError("this source knows no boxes; sizes need a COCO json, a VOC devkit or scenes-lt")
    sizes = np.full(split.targets.shape, np.nan)
    for i in range(len(split)):
        height, width = split.image(i).shape[:2]
        for one, _, _, box_width, box_height in split.boxes(i):
            share = min(1.0, box_width * box_height / (width * height))
            sizes[i, int(one)] = np.fmax(sizes[i, int(one)], share)
    return sizes


def size_table(
    scores: Mapping[str, np.ndarray], targets: np.ndarray, sizes: np.ndarray, *, minimum: int = 3
) -> pd.DataFrame:
    """Return mAP in percent on the smallest, middle and largest third of each class's objects.

    For a class and a third, the positives of the other thirds are left out and all negatives stay, so prevalence is
    the same in each third; classes with fewer than ``minimum`` positives in a third are left out.

    Args:
        scores: label -> (N, C).
        targets: (N, C) of 0 and 1.
        sizes: (N, C), see :func:`object_sizes`.

    Raises:
        DataError: no class has enough boxes.
    """
    rows = []
    for label, values in scores.items():
        aps = [
            [float(average_precision(values[keep, c : c + 1], targets[keep, c : c + 1])[0]) for keep in thirds]
            for c, thirds in ((c, _thirds(targets[:, c], sizes[:, c])) for c in range(targets.shape[1]))
            if min((targets[keep, c].sum() for keep in thirds), default=0) >= minimum
        ]
        if not aps:
            raise DataError(f"no class has {minimum} boxes in each third of its sizes; sizes need more test images")
        rows.append([label, *(100.0 * np.mean(aps, axis=0)), len(aps)])
    return pd.DataFrame(rows, columns=["method", *THIRDS, "classes"])


def _thirds(targets: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    """Return the images that count for each third of a class's objects: those positives, and all negatives."""
    known = np.flatnonzero((targets == 1) & ~np.isnan(sizes))
    ordered = known[np.argsort(sizes[known], kind="stable")]
    return [np.concatenate([part, np.flatnonzero(targets == 0)]) for part in np.array_split(ordered, 3)]


# -- finished runs -----------------------------------------------------------------------------------------------------


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
        predictions, result = read_predictions(folder), read_json(Path(folder) / "result.json")
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


# -- showing and saving ------------------------------------------------------------------------------------------------


def formatted(table: pd.DataFrame, digits: int = 2) -> pd.DataFrame:
    """Return the table as text: numbers with ``digits``, "-" for NaN, and ``total sd`` in brackets behind ``total``."""
    text = pd.DataFrame(index=table.index)
    for name in table.columns:
        values = [_cell(value, digits) for value in table[name]]
        owner = str(name).removesuffix(" sd")
        if owner != name and owner in text:
            text[owner] = [f"{a} ({b})" if b != "-" else a for a, b in zip(text[owner], values, strict=True)]
        else:
            text[name] = values
    return text


def _cell(value: Any, digits: int) -> str:
    if value is None or value is pd.NA or (isinstance(value, float | np.floating) and np.isnan(value)):
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float | np.floating) else str(value)


def to_markdown(table: pd.DataFrame, digits: int = 2) -> str:
    """Return the table as Markdown; the first column is text, the others are aligned to the right.

    >>> print(to_markdown(pd.DataFrame({"method": ["a|b"], "total": [61.254]})))
    | method | total |
    |:-------|------:|
    | a\\|b   | 61.25 |
    """
    text = formatted(table, digits)
    columns = [[_escaped(str(name)), *map(_escaped, text[name])] for name in text.columns]
    widths = [max(3, *map(len, column)) for column in columns]
    pad = [str.ljust, *[str.rjust] * (len(columns) - 1)]
    lines = [
        "| " + " | ".join(p(cell, w) for p, cell, w in zip(pad, row, widths, strict=True)) + " |"
        for row in zip(*columns, strict=True)
    ]
    rule = [":" + "-" * (w + 1) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([lines[0], "|" + "|".join(rule) + "|", *lines[1:]])


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


class ShownTable:
    """A table as Jupyter shows it: formatted, escaped, and left alone by MathJax; ``frame`` holds the numbers."""

    def __init__(self, frame: pd.DataFrame, digits: int = 2) -> None:
        self.frame, self.digits = frame, digits

    def __repr__(self) -> str:
        return formatted(self.frame, self.digits).to_string(index=False)

    def _repr_html_(self) -> str:
        text = formatted(self.frame, self.digits)
        head = "".join(f"<th>{html.escape(str(name))}</th>" for name in text.columns)
        rows = [f"<td>{'</td><td>'.join(html.escape(value) for value in row)}</td>" for row in text.to_numpy()]
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return (
            f'<table class="tex2jax_ignore mathjax_ignore"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        )


def save_table(table: pd.DataFrame, folder: Folder, name: str, *, digits: int = 2) -> ShownTable:
    """Write ``folder/tables/NAME.csv`` (all digits) and ``NAME.md``, atomically, and return the table to be shown."""
    target = Path(folder) / "tables"
    with atomic_write(target / f"{name}.csv", "w") as file:
        table.to_csv(file, index=False, lineterminator="\n")
    with atomic_write(target / f"{name}.md", "w") as file:
        file.write(to_markdown(table, digits) + "\n")
    return ShownTable(table, digits)
