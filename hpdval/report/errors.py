"""From a run's stored predictions to what its errors are: tables, figures, and what a page says of each class.

Letters: N images, C classes.  All scores are under the run's read-out, so that its APs are those of the result.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from hpdval.data.dataset import Dataset
from hpdval.errors import ConfigError, RunError
from hpdval.groups import class_groups
from hpdval.metrics import (
    Leakage,
    Mistake,
    apply_readout,
    best_f1_thresholds,
    best_false_positives,
    co_occurrence_leakage,
    group_reliability,
    platt,
    worst_false_negatives,
)
from hpdval.plots import Chart
from hpdval.plots.errors import calibration_curve, leakage_by_class
from hpdval.run import read_manifest, read_predictions, read_result
from hpdval.tables import (
    calibration_summary,
    calibration_table,
    class_error_table,
    leakage_table,
    mistake_table,
    stored_scores,
)
from hpdval.tables.errors import companion_names

BINS = 20
SHIFT = 1.5  # by what factor frequencies differ before the page speaks of it


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Scores on which thresholds and probabilities may be fitted: never those of the test images."""

    split: str  # "training" or "validation"
    scores: np.ndarray  # (n, C), raw as the run's model gave them
    targets: np.ndarray  # (n, C)


@dataclass(frozen=True, kw_only=True)
class ClassErrors:
    """What the page shows of one class; ``facts`` is its row of the table of classes."""

    name: str
    facts: dict[Any, Any]
    leakage: Leakage
    companions: str
    false_positives: list[Mistake]
    false_negatives: list[Mistake]


@dataclass(frozen=True, kw_only=True)
class ErrorReport:
    """Everything but pixels."""

    title: str
    about: tuple[str, ...]  # how it was measured, in sentences
    notes: tuple[str, ...]  # of the data set
    names: tuple[str, ...]  # C class names as they can be shown
    classes: tuple[ClassErrors, ...]
    tables: dict[str, pd.DataFrame]  # by the name of the file
    figures: dict[str, tuple[Chart, str]]  # by the name of the file, with what they show in words
    summary: pd.DataFrame | None  # of the calibration
    readout: str
    predictions: str  # sha256


def examine_errors(
    run: str | os.PathLike[str],
    dataset: Dataset,
    fitted: Fitted | None = None,
    *,
    n: int = 8,
    resamples: int = 500,
) -> ErrorReport:
    """Return what the errors of a finished run on the test images of ``dataset`` are.

    Args:
        fitted: what thresholds and calibration are fitted on; without it there are none.
        n: mistakes of each kind and class, at most.
        resamples: of the intervals.

    Raises:
        ConfigError: ``n`` below 1, or fewer than 2 resamples.
        RunError: the run is unfinished or damaged, or was made on other images, classes or labels.
    """
    if n < 1 or resamples < 2:
        raise ConfigError(f"n is {n} and resamples {resamples}; give at least 1 image and 2 resamples")
    raw, targets, result = stored_scores(run, dataset), dataset.test.targets, read_result(run)
    if not np.array_equal(read_predictions(run)["targets"], targets):
        raise RunError(f"{run} was made with other labels than {dataset.name} has; give a run on this data set")
    readout, scores = result["readout"], apply_readout(raw, result["readout"])
    names, counts = tuple(map(shown, dataset.classes)), dataset.class_counts
    leakages = co_occurrence_leakage(scores, targets, dataset.train.targets, resamples=resamples)
    about = [f"{result.get('method', 'run')}, {result.get('protocol', dataset.name)}, read-out {readout}."]
    figures: dict[str, tuple[Chart, str]] = {}
    summary = thresholds = None
    calibration: dict[str, pd.DataFrame] = {}
    if fitted is None:
        about.append("No thresholds and no calibration: the run holds no model to score other images with.")
    else:
        own = apply_readout(fitted.scores, readout)
        thresholds = best_f1_thresholds(own, fitted.targets)
        curve = platt(own, fitted.targets, split=fitted.split)
        groups = group_reliability(curve.probabilities(scores), targets, counts, bins=BINS)
        calibration, summary = {"calibration": calibration_table(groups)}, calibration_summary(groups)
        about += [_fitted_words(fitted), *_shift_words(fitted.targets, targets, counts)]
        words = f"Predicted probability against observed share, fitted on {fitted.split} images"
        figures["calibration"] = (calibration_curve(groups), words)
    if any(one.companions for one in leakages):
        words = "Average precision with and without the usual companions, and leakage of each class"
        figures["leakage"] = (leakage_by_class(names, counts, leakages), words)
    facts = class_error_table(dataset.classes, counts, targets, scores, thresholds=thresholds)
    positives, negatives = (
        [mistakes(scores, targets, c, n) for c in range(len(names))]
        for mistakes in (best_false_positives, worst_false_negatives)
    )
    return ErrorReport(
        title=f"Errors of {result.get('method') or 'a run'} on {shown(dataset.name)}",
        about=tuple(shown(sentence, 500) for sentence in about),
        notes=tuple(shown(note, 500) for note in dataset.notes),
        names=names,
        classes=tuple(
            ClassErrors(
                name=names[c],
                facts=facts.iloc[c].to_dict(),
                leakage=leakages[c],
                companions=companion_names(leakages[c], names),
                false_positives=positives[c],
                false_negatives=negatives[c],
            )
            for c in range(len(names))
        ),
        tables={
            "classes": facts,
            "leakage": leakage_table(dataset.classes, counts, leakages),
            "mistakes": mistake_table(dataset.classes, dataset.test.ids, targets, positives, negatives),
            **calibration,
        },
        figures=figures,
        summary=summary,
        readout=readout,
        predictions=read_manifest(run)["files"]["predictions.npz"],
    )


def _fitted_words(fitted: Fitted) -> str:
    words = f"Thresholds and probabilities were fitted on {len(fitted.targets)} {fitted.split} images"
    if fitted.split == "training":
        return f"{words}: if the model was trained on them they are optimistic, and the thresholds too high."
    return f"{words}."


def _shift_words(fitted: np.ndarray, targets: np.ndarray, class_counts: np.ndarray) -> list[str]:
    """Return a sentence where tail classes are much commoner, or rarer, in the test than in what was fitted on."""
    tail = class_groups(class_counts)["tail"]
    tail = tail[fitted[:, tail].any(axis=0)]  # the others have no probability
    before, after = (100 * part[:, tail].mean() if tail.size else 0.0 for part in (fitted, targets))
    if not before or not after or 1 / SHIFT < after / before < SHIFT:
        return []
    return [
        f"Tail classes are in {before:.1f} % of these images on average and in {after:.1f} % of the test images: their "
        f"probabilities come out too {'low' if after > before else 'high'} for that reason alone (prior shift)."
    ]


def shown(text: str, longest: int = 120) -> str:
    r"""Return text as a page can show it: one line, not too long, nothing that is no character.

    >>> shown("a\n\x00b")
    'a �b'
    """
    line = " ".join(str(text).split())
    joiners = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"  # which some scripts need; what reverses a line is none
    line = "".join(c if c.isprintable() or c in joiners else "\N{REPLACEMENT CHARACTER}" for c in line)
    return line if len(line) <= longest else line[: longest - 1] + "…"


def shown_labels(names: Sequence[str], row: np.ndarray) -> list[str]:
    """Return the names of the classes that a row of targets (C,) holds."""
    return [names[int(c)] for c in np.flatnonzero(row)]
