"""Tables of few-shot results: means over episodes, paired differences, and ours beside published rows; no torch.

Letters: E episodes, N test images, C novel classes, M rows of a balanced test set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from hpdval.errors import ConfigError, RunError
from hpdval.fewshot_recipes import BASELINES
from hpdval.metrics import EpisodeMean, Protocol, episode_mean, evaluate, paired_bootstrap, paired_episodes
from hpdval.metrics.protocol import selection_rule
from hpdval.run import read_predictions, read_result
from hpdval.tables.protocols import Row, marked_table, model_of, published_rows
from hpdval.tables.runs import Folder
from hpdval.tables.scores import COLUMNS

PUBLISHED_NAMES = {"voc2007": "voc", "coco2014": "coco"}  # of protocols in the published tables
NATURAL, BALANCED = "natural", "balanced"


@dataclass(frozen=True, kw_only=True, eq=False)
class FewShotResults:
    """Scores that methods gave the same novel test images, of a method that was adapted in every episode.

    ``balanced`` are rows of a class-balanced set of these images (:func:`hpdval.data.balanced_rows`), where wanted.
    """

    name: str  # such as voc-fewshot-5
    targets: np.ndarray  # (N, C)
    scores: Mapping[str, tuple[np.ndarray, ...]]  # label -> E times (N, C), or once where nothing was adapted
    readout: str
    selections: Mapping[str, str]  # label -> rule
    models: Mapping[str, str]  # label -> the model
    balanced: np.ndarray | None = None  # (M,)

    @property
    def test_sets(self) -> dict[str, np.ndarray]:
        """Rows of each test set that is reported, by its name."""
        natural = {NATURAL: np.arange(len(self.targets))}
        return natural if self.balanced is None else {**natural, BALANCED: self.balanced}

    def episode_maps(self, label: str, test: str = NATURAL) -> np.ndarray:
        """Return mAP in percent of a method in each episode, (E,); (1,) where nothing was adapted."""
        rows, none = self.rows(test), np.zeros(self.targets.shape[1], np.int64)
        found = [
            evaluate(scores[rows], self.targets[rows], none, readout=self.readout).total for scores in self._of(label)
        ]
        return np.array(found)

    def rows(self, test: str) -> np.ndarray:
        """Return the rows of a test set.

        Raises:
            ConfigError: it is not one of these.
        """
        if test not in self.test_sets:
            raise ConfigError(f"there is no test set {test!r} here; there are {', '.join(self.test_sets)}")
        return self.test_sets[test]

    def chance(self, test: str = NATURAL) -> float:
        """Return the mean prevalence of the classes in percent."""
        return 100.0 * float(self.targets[self.rows(test)].mean())

    def _of(self, label: str) -> tuple[np.ndarray, ...]:
        if label not in self.scores:
            raise ConfigError(f"there is no method {label!r}; there are {', '.join(self.scores)}")
        return self.scores[label]


def read_fewshot(
    runs: Mapping[str, Sequence[Folder]], *, protocol: str, shots: int, balanced: np.ndarray | None = None
) -> FewShotResults:
    """Return the results of finished runs: label -> a folder for each episode, as ``hpdval.train_fewshot`` returns.

    Args:
        protocol: such as "voc2007".
        shots: K.
        balanced: rows of the class-balanced test set, where it is to be reported.

    Raises:
        RunError: a run is unfinished or damaged, or two were not made on the same images, classes and read-out.
    """
    first: dict[str, Any] = {}
    scores: dict[str, tuple[np.ndarray, ...]] = {}
    selections: dict[str, str] = {}
    models: dict[str, str] = {}
    for label, folders in runs.items():
        rules = []
        for folder in folders:
            found, result = read_predictions(folder), read_result(folder)
            about = {name: found[name] for name in ("ids", "classes", "targets")} | {"readout": result["readout"]}
            first = first or {**about, "folder": folder}
            for name, value in about.items():
                if not np.array_equal(first[name], value):
                    raise RunError(
                        f"{first['folder']} and {folder} differ in {name}; give runs of the same test images"
                    )
            scores[label] = (*scores.get(label, ()), found["scores"])
            rules.append(selection_rule(result.get("selection", "not stated")))
        if len(set(rules)) != 1:
            raise RunError(
                f"{label}: the episodes differ in how epochs were selected; give finished runs of one recipe"
            )
        selections[label], models[label] = rules[0], model_of(folders[0])
    if not first:
        raise RunError("no run was given; give method -> a folder for each episode")
    return FewShotResults(
        name=f"{PUBLISHED_NAMES[protocol]}-fewshot-{shots}" if protocol in PUBLISHED_NAMES else f"{protocol}-{shots}",
        targets=first["targets"],
        scores=scores,
        readout=first["readout"],
        selections=selections,
        models=models,
        balanced=balanced,
    )


def fewshot_table(results: FewShotResults) -> pd.DataFrame:
    """Return mAP in percent on the novel classes: a row ``chance`` and one for each method, on each test set.

    ``mAP`` is the mean over episodes, ``low`` and ``high`` its 95 % interval (Student's, over episodes), ``sd`` the
    sample standard deviation; "-" where there is one value, since nothing was adapted.
    """
    rows: list[dict[str, Any]] = []
    for test in results.test_sets:
        rows.append({"test set": test, "method": "chance", "mAP": results.chance(test)})
        for label in results.scores:
            mean = episode_mean(results.episode_maps(label, test))
            numbers = {"mAP": mean.mean, "low": mean.low, "high": mean.high, "sd": mean.sd}
            rows.append({"test set": test, "method": label, **numbers, "episodes": len(mean.values)})
    columns = ["test set", "method", "mAP", "low", "high", "sd", "episodes"]
    table = pd.DataFrame(rows, columns=columns).astype({"episodes": "Int64"})
    if table["test set"].nunique() == 1:
        table = table.drop(columns="test set")
    table.attrs["footnotes"] = [
        f"{results.name}: mAP in percent over {results.targets.shape[1]} novel classes, {len(results.targets)} test "
        f"images, read-out {results.readout}; low and high: 95 % interval of the mean over episodes (Student's t)"
    ]
    return table


def episode_table(results: FewShotResults) -> pd.DataFrame:
    """Return mAP in percent in each episode: a row for each test set and episode, a column for each method."""
    tables = []
    for test in results.test_sets:
        maps = {label: results.episode_maps(label, test) for label in results.scores}
        episodes = max(map(len, maps.values()))
        columns = {label: np.broadcast_to(values, episodes) for label, values in maps.items()}
        tables.append(pd.DataFrame({"test set": test, "episode": np.arange(1, episodes + 1), **columns}))
    return pd.concat(tables, ignore_index=True)


def episode_differences(
    results: FewShotResults, pairs: Sequence[tuple[str, str]] | None = None, *, resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Return mAP(after) - mAP(before) in points, paired over episodes, a row for each pair and test set.

    ``low`` and ``high`` are the 95 % interval of the mean difference over episodes (Student's t), ``in favour`` says in
    how many of them the difference is above 0.  ``images low`` and ``images high`` are the paired bootstrap over test
    images of the mean over these episodes, on the natural set alone: rows that repeat images are no sample.  A claim
    needs both.

    Args:
        pairs: (after, before), labels of methods; by default each adapted method with every baseline, nearest first,
            and each with the one before it.
        resamples, seed: of ``hpdval.metrics.paired_bootstrap``.
    """
    rows = []
    for test in results.test_sets:
        for after, before in _pairs(results) if pairs is None else pairs:
            difference = paired_episodes(results.episode_maps(after, test), results.episode_maps(before, test))
            limits = _over_images(results, after, before, resamples, seed) if test == NATURAL else (np.nan, np.nan)
            rows.append((test, f"{after} - {before}", *_numbers(difference), *limits))
    columns = ["test set", "comparison", "difference", "low", "high", "sd", "in favour", "images low", "images high"]
    table = pd.DataFrame(rows, columns=columns)
    return table.drop(columns="test set") if table["test set"].nunique() == 1 else table


def _pairs(results: FewShotResults) -> list[tuple[str, str]]:
    still = [label for label in results.scores if label in BASELINES]
    adapted = [label for label in results.scores if label not in BASELINES]
    steps = [(after, before) for chain in (still, adapted) for before, after in pairwise(chain)]
    return [(after, before) for after in adapted for before in reversed(still)] + steps


def _numbers(difference: EpisodeMean) -> tuple[Any, ...]:
    one = len(difference.values) == 1
    favour = "-" if one else f"{difference.in_favour} of {len(difference.values)}"
    return difference.mean, difference.low, difference.high, difference.sd, favour


def _over_images(results: FewShotResults, after: str, before: str, resamples: int, seed: int) -> tuple[float, float]:
    none = np.zeros(results.targets.shape[1], np.int64)
    a, b = list(results.scores[after]), list(results.scores[before])
    options: dict[str, Any] = {"resamples": resamples, "seed": seed, "readout": results.readout}
    interval = paired_bootstrap(a, b, results.targets, none, **options)["total"]
    return interval.low, interval.high


def fewshot_protocol_table(
    results: FewShotResults, published: pd.DataFrame | None = None, *, test: str = NATURAL, context: bool = False
) -> pd.DataFrame:
    """Return our means beside published rows, every number of another protocol with a mark.

    As :func:`hpdval.tables.protocol_table`; the columns are method, model, total, episodes, protocol and source, and in
    brackets stands the sample standard deviation over episodes.  Adapted methods come first.

    Args:
        published: rows of :func:`hpdval.tables.published_results`, such as of "voc-fewshot-5".
        test: which test set ours are shown on.
        context: True lets in rows of another test set, each marked "for orientation only".

    Raises:
        ConfigError: rows of another test set without ``context``.
    """
    order = sorted(results.scores, key=lambda label: label in BASELINES)
    rows = [_own_row(results, label, test) for label in order] + published_rows(published)
    table = marked_table(rows, mark=True, context=context, over="episodes")
    return _kept(
        table.rename(columns={"seeds": "episodes"}), ["method", "model", "total", "episodes", "protocol", "source"]
    )


def _kept(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    kept = table[columns].copy()
    kept.attrs = dict(table.attrs)
    return kept


def _own_row(results: FewShotResults, label: str, test: str) -> Row:
    mean = episode_mean(results.episode_maps(label, test))
    episodes = len(mean.values)
    empty = dict.fromkeys(COLUMNS, np.nan)
    return Row(
        method=f"ours: {label}" + f", {test} test set" * (results.balanced is not None),
        model=results.models[label],
        means={**empty, "total": mean.mean},
        deviations={**empty, "total": mean.sd} if episodes > 1 else {},
        seeds=episodes,
        protocol=Protocol(
            dataset=results.name,
            n_images=len(results.rows(test)),
            readout=results.readout,
            selection=results.selections[label],
            episodes=episodes,
        ),
        source="this work",
        note="",
    )
