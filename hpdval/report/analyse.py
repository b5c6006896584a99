"""From a comparison to its numbers: read once, each setting's intervals and each difference computed once.

Letters: N images, C classes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpdval.comparisons import Cell, Comparison
from hpdval.errors import RunError
from hpdval.metrics import Evaluation, Interval, Protocol, bootstrap, evaluate, power_note
from hpdval.metrics.protocol import SELECTED_ON_TEST
from hpdval.report.gather import ZERO_SHOT
from hpdval.run import read_result
from hpdval.tables import (
    group_names,
    rank_table,
    read_runs,
    refuse_other_images,
    score_table,
    significance_table,
    with_holm,
)

Map = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The runs of one setting: what they predicted, and how good that is."""

    cell: Cell
    seeds: tuple[int, ...]
    scores: tuple[np.ndarray, ...]  # (N, C) of each seed
    evaluations: tuple[Evaluation, ...]
    method: str
    selected_on_test: bool
    readout: str  # the one the runs recorded

    @property
    def label(self) -> str:
        """How the setting is called; an asterisk marks a selection on test images."""
        return f"{self.cell.label} *" if self.selected_on_test else self.cell.label

    @property
    def per_class(self) -> np.ndarray:
        """AP in percent, mean over seeds, (C,)."""
        return np.mean([evaluation.per_class for evaluation in self.evaluations], axis=0)


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """All numbers of a comparison."""

    comparison: Comparison
    protocol: Protocol
    classes: tuple[str, ...]
    class_counts: np.ndarray  # (C,)
    targets: np.ndarray  # (N, C)
    cells: tuple[Measured, ...]
    scores: pd.DataFrame  # of tables.score_table, chance first
    intervals: Mapping[str, Mapping[str, Interval]]  # label -> total, head, medium, tail
    differences: pd.DataFrame  # of tables.significance_table, against the reference
    ranks: pd.DataFrame  # of tables.rank_table
    notes: tuple[str, ...]

    @property
    def reference(self) -> Measured | None:
        """The setting the others are compared with; None where none of its runs is finished."""
        return next((one for one in self.cells if one.cell.label == self.comparison.reference), None)

    @property
    def readout(self) -> str:
        """Under which all were scored."""
        return self.cells[0].evaluations[0].readout

    @property
    def best(self) -> Measured | None:
        """The setting with the highest total among those that are neither the reference nor selected on test images."""
        others = [one for one in self.cells if one is not self.reference and not one.selected_on_test]
        return max(others, key=lambda one: self.intervals[one.label]["total"].estimate, default=None)


class Statistics:
    """The expensive part: a setting or a pair that several comparisons share is computed once."""

    def __init__(self, *, resamples: int, permutations: int, mapped: Map = map) -> None:
        self.resamples, self.permutations, self._map = resamples, permutations, mapped
        self._known: dict[Any, Any] = {}

    def intervals(self, cells: Sequence[Measured], *common: Any) -> list[dict[str, Interval]]:
        """Return the bootstrap intervals of each setting; ``common`` is (targets, class counts, read-out)."""
        return self._computed(_bootstrap, [(_key(one), one.scores) for one in cells], *common)

    def differences(self, pairs: Sequence[tuple[Measured, Measured]], *common: Any) -> list[pd.DataFrame]:
        """Return the significance table of each pair (after, before), on its own."""
        wanted = []
        for after, before in pairs:
            found = zip((after, before), common_seeds(after, before), strict=True)
            wanted.append(
                ((_key(after), _key(before)), tuple([one.scores[i] for i in places] for one, places in found))
            )
        return self._computed(_difference, wanted, *common)

    def _computed(self, function: Callable[..., Any], wanted: Sequence[tuple[Any, Any]], *common: Any) -> list[Any]:
        targets, class_counts, readout = common
        keys = [(function.__name__, key, readout) for key, _ in wanted]
        new = {key: data for key, (_, data) in zip(keys, wanted, strict=True) if key not in self._known}
        options = {"resamples": self.resamples, "permutations": self.permutations, "readout": readout}
        task = partial(function, targets=targets, class_counts=class_counts, **options)
        self._known |= zip(new, self._map(task, list(new.values())), strict=True)
        return [self._known[key] for key in keys]


@contextmanager
def workers(count: int) -> Iterator[Map]:
    """Give a ``map`` over so many processes; 1 is this process alone."""
    if count <= 1:
        yield map
        return
    pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_end_with_parent)
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C: only what has begun is waited for


def _end_with_parent() -> None:
    """Leave when the process that started this one is gone, however it ended; a pool's own processes would wait on."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _bootstrap(scores: Any, *, targets: Any, class_counts: Any, permutations: int, **options: Any) -> Any:
    return bootstrap(list(scores), targets, class_counts, **options)


def _difference(pair: Any, *, targets: Any, class_counts: Any, **options: Any) -> pd.DataFrame:
    return significance_table({"": pair}, targets, class_counts, **options)


def _key(measured: Measured) -> tuple[Path, ...]:
    return tuple(measured.cell.runs[seed] for seed in measured.seeds)


def common_seeds(after: Measured, before: Measured) -> tuple[list[int], list[int]]:
    """Return the places of the seeds to be paired, in both; what was not trained stands for every seed, once.

    Raises:
        RunError: they have no seed in common.
    """
    untrained = [one.method.startswith(ZERO_SHOT) for one in (after, before)]
    if any(untrained):
        first, second = (
            [0] if alone else [*range(len(one.seeds))] for one, alone in zip((after, before), untrained, strict=True)
        )
        return first, second
    common = sorted({*after.seeds} & {*before.seeds})
    if not common:
        raise RunError(
            f"{after.label} (seeds {_listed(after.seeds)}) and {before.label} (seeds {_listed(before.seeds)}) have no "
            "seed in common; run both with the same seeds"
        )
    return [after.seeds.index(seed) for seed in common], [before.seeds.index(seed) for seed in common]


def class_gains(after: Measured, before: Measured) -> np.ndarray:
    """Return AP(after) - AP(before) of each class in points, mean over the seeds that are paired, (C,)."""
    found = zip((after, before), common_seeds(after, before), strict=True)
    mine, theirs = (np.mean([one.evaluations[i].per_class for i in places], axis=0) for one, places in found)
    return mine - theirs


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))


def measure(comparison: Comparison) -> tuple[dict[str, Any], list[Measured]]:
    """Return what all runs of a comparison share (images, classes, read-out of the reference), and each setting.

    Raises:
        RunError: a run is damaged, or two were not made on the same test images and classes.
    """
    read = [read_runs(list(cell.runs.values())) for cell in comparison.cells]
    labels = [cell.label for cell in comparison.cells]
    first = read[labels.index(comparison.reference)] if comparison.reference in labels else read[0]
    cells = []
    for cell, runs in zip(comparison.cells, read, strict=True):
        refuse_other_images(first, runs)
        targets, counts, readout = first["targets"], first["class_counts"], first["readout"]
        results = [evaluate(values, targets, counts, readout=readout) for values in runs["scores"]]
        cells.append(
            Measured(
                cell=cell,
                seeds=tuple(cell.runs),
                scores=tuple(runs["scores"]),
                evaluations=tuple(results),
                method=str(read_result(runs["folder"]).get("method", "")),
                selected_on_test=runs["selection"] == SELECTED_ON_TEST,
                readout=runs["readout"],
            )
        )
    return first, cells


def analyse(comparison: Comparison, statistics: Statistics) -> Analysis:
    """Return all numbers of a comparison.

    Raises:
        RunError: as :func:`measure`, or a run's result does not say how it was measured.
    """
    shared, cells = measure(comparison)
    common = (shared["targets"], shared["class_counts"], shared["readout"])
    intervals = dict(zip([one.label for one in cells], statistics.intervals(cells, *common), strict=True))
    notes = [
        f"{one.label}: recorded under read-out {one.readout}; scored here under {shared['readout']}, the reference's"
        for one in cells
        if one.readout != shared["readout"]
    ]
    reference = next((one for one in cells if one.cell.label == comparison.reference), None)
    pairs = []
    for one in cells:
        if reference is not None and one is not reference:
            try:
                common_seeds(one, reference)
                pairs.append((one, reference))
            except RunError as error:
                notes.append(f"no difference: {error}")
    if reference is None:
        notes.append(f"no differences: the reference, {comparison.reference}, has no finished run")
    found = statistics.differences(pairs, *common)
    named = [_claimed(table, after, before) for table, (after, before) in zip(found, pairs, strict=True)]
    differences = with_holm(pd.concat(named, ignore_index=True)) if named else pd.DataFrame(columns=["comparison"])
    power = _power(differences, shared["targets"], shared["class_counts"])
    return Analysis(
        comparison=comparison,
        protocol=_protocol(shared["folder"]),
        classes=tuple(shared["classes"].tolist()),
        class_counts=shared["class_counts"],
        targets=shared["targets"],
        cells=tuple(cells),
        scores=score_table({one.label: list(one.scores) for one in cells}, *common[:2], readout=shared["readout"]),
        intervals=intervals,
        differences=differences,
        ranks=rank_table({one.label: one.per_class for one in cells}),
        notes=(*notes, *power),
    )


def _claimed(table: pd.DataFrame, after: Measured, before: Measured) -> pd.DataFrame:
    """Name the setting, and claim nothing from what was selected on test images."""
    named = table.assign(comparison=after.label)
    return named.assign(gain="not claimed") if after.selected_on_test or before.selected_on_test else named


def _protocol(folder: Path) -> Protocol:
    try:
        return Protocol.of(read_result(folder))
    except KeyError as error:
        raise RunError(
            f"{folder}/result.json has no {error}; give runs of a method, as score_run and notebooks finish them"
        ) from None


def _power(differences: pd.DataFrame, targets: np.ndarray, class_counts: np.ndarray) -> list[str]:
    """Return what would be missed, by the difference with the widest interval of its group."""
    if differences.empty:
        return []
    known = (differences["high"] - differences["low"]).dropna()  # a group without classes has no interval
    widths = known.groupby(differences["classes"]).idxmax()
    rows = {name: differences.loc[row] for name, row in widths.items() if name in {"total", *group_names(class_counts)}}
    widest = {
        str(name): Interval(estimate=row["difference"], low=row["low"], high=row["high"], level=0.95, per_seed=())
        for name, row in rows.items()
    }
    return power_note(targets, class_counts, widest)
