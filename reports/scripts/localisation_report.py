"""Measure the maps of finished runs against boxes or masks, and write reports/localisation-NAME.{md,csv,png,svg}.

python reports/scripts/localisation_report.py NAME DATASET RUNS [-d test=FILE ...] [--also LABEL=FOLDERS ...]

RUNS is what `hpdval study --out RUNS` left: zero-shot and, for each seed, stage 1 and stage 2.  FOLDERS is a pattern of
further runs of stage 1, one for each seed.  Records of localisation are kept in RUNS/localisation and not made again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import hpdval
from hpdval import plots, tables
from hpdval.data.dataset import Dataset
from hpdval.data.masks import regions
from hpdval.files import atomic_write
from hpdval.launch import json_values
from hpdval.metrics import Localisation
from hpdval.plots.style import write_figure
from hpdval.provenance import code_state
from hpdval.run import read_manifest
from hpdval.scoring.localisation import BLIND, localise

STAGES = {"zero-shot": "02*", "stage 1": "seed-*/03*", "stage 2": "seed-*/04*"}
WAYS = {
    "similarity": ("zero-shot", "stage 1", "stage 2"),
    "gradient": ("zero-shot", "stage 1", "stage 2"),
    "rollout": ("zero-shot", "stage 1"),
}
SHOWN = (
    "similarity: zero-shot",
    "similarity: stage 1",
    "similarity: stage 2",
    "gradient: zero-shot",
    "gradient: stage 1",
)
COMPARED = (
    ("similarity: stage 1", "similarity: zero-shot"),
    ("similarity: stage 2", "similarity: stage 1"),
    ("gradient: stage 1", "gradient: zero-shot"),
    ("gradient: stage 2", "gradient: stage 1"),
    ("rollout: stage 1", "rollout: zero-shot"),
    ("gradient: zero-shot", "similarity: zero-shot"),
    ("gradient: stage 1", "similarity: stage 1"),
)


class Measured:
    """Records of localisation on the test images, kept in a folder by model and method."""

    def __init__(self, dataset: Dataset, folder: Path) -> None:
        self.dataset, self.folder = dataset, folder
        self.known = [regions(dataset.test, i) for i in range(len(dataset.test))]

    def __call__(self, run: Path, method: str) -> Localisation:
        """Return the record of a run by a method, from the folder where it is there."""
        key = read_manifest(run)["key"] if method not in BLIND else "blind"
        path = self.folder / f"{method}-{key[:16]}.npz"
        if not path.exists():
            print(f"measuring {method} of {run}", flush=True)
            localise(hpdval.load_run(run), self.dataset, method=method, known=self.known, show=False).save(path)
        return Localisation.load(path)


def records_of(measured: Measured, runs: Path, also: Mapping[str, str]) -> dict[str, list[Localisation]]:
    """Return the records of every method, a list over seeds; first those of the maps that know nothing."""
    folders = {stage: sorted(runs.glob(pattern)) for stage, pattern in STAGES.items()}
    found = {blind: [measured(folders["zero-shot"][0], blind)] for blind in BLIND}
    for method, stages in WAYS.items():
        found |= {f"{method}: {stage}": [measured(run, method) for run in folders[stage]] for stage in stages}
        if method != "rollout":
            extra = {label: sorted(Path().glob(pattern)) for label, pattern in also.items()}
            found |= {f"{method}: {label}": [measured(run, method) for run in r] for label, r in extra.items()}
    return found


def page(title: str, found: Mapping[str, Sequence[Localisation]], data: Any, command: str, also: Sequence[str]) -> str:
    """Return the report as Markdown."""
    counts = data.class_counts
    table = tables.localisation_table(found, counts)
    total = table[table["part"] == "total"].drop(columns=["part", "pairs"])
    parts = table.pivot(index="method", columns="part", values="pointing").loc[
        list(found), list(table["part"].unique())
    ]
    compared = [*COMPARED, *((f"{m}: {label}", f"{m}: stage 1") for m in ("similarity", "gradient") for label in also)]
    pairs = {f"{after} - {before}": (found[after], found[before]) for after, before in compared}
    differences = tables.localisation_differences(pairs, counts)
    named = differences[differences["part"] == "total"].drop(columns="part")
    whom = differences[(differences["part"] != "total") & (differences["metric"] == "pointing")].drop(columns="metric")
    written = f"{time.strftime('%Y-%m-%d')} by hpdval {hpdval.__version__}, commit {str(code_state()['commit'])[:10]}"
    lines = [
        f"# Where the maps point: {title}",
        f"{len(data.test)} test images, {len(found['centre'][0])} pairs of an image and a class that it shows, "
        f"{len(data.classes)} classes. Percent, means over classes, 95 % intervals over test images; "
        "[what the numbers mean](../docs/localisation.md).",
        "## All classes",
        tables.to_markdown(total, 1),
        f"![Pointing game, energy and IoU by group and object size](localisation-{title}.png)",
        "## Pointing game by group of classes and by object size",
        tables.to_markdown(parts.reset_index(), 1),
        "## Differences, all classes",
        "Points, paired 95 % intervals; gain: the interval lies above 0 and all seeds agree, loss: below.",
        tables.to_markdown(named, 1),
        "## For whom? Differences in the pointing game",
        tables.to_markdown(whom, 1),
        f"Made on {written}.",
        f"    {command}",
    ]
    return "\n\n".join(lines) + "\n"


def main() -> None:
    """Read the command line, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the report")
    parser.add_argument("dataset")
    parser.add_argument("runs", type=Path)
    parser.add_argument("-d", dest="data", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--also", action="append", default=[], metavar="LABEL=FOLDERS")
    parser.add_argument("--out", type=Path, default=Path("reports"))
    given = parser.parse_args()
    data = hpdval.load_dataset(given.dataset, **json_values(given.data))
    also = dict(text.rsplit("=", 1) for text in given.also)
    found = records_of(Measured(data, given.runs / "localisation"), given.runs, also)

    stem = given.out / f"localisation-{given.name}"
    command = f"python reports/scripts/localisation_report.py {given.name} {given.dataset} {given.runs}"
    command += "".join(f" -d {word}" for word in given.data) + "".join(f" --also '{word}'" for word in given.also)
    with atomic_write(stem.with_name(stem.name + ".md"), "w") as file:
        file.write(page(given.name, found, data, command, list(also)))
    frames = [
        tables.localisation_per_class(data.classes, data.class_counts, found, metric).assign(metric=metric)
        for metric in ("pointing", "energy", "iou")
    ]
    with atomic_write(stem.with_name(stem.name + ".csv"), "w") as file:
        pd.concat(frames).to_csv(file, index=False, float_format="%.3f", lineterminator="\n")
    shown = tables.localisation_table({label: found[label] for label in (*BLIND, *SHOWN)}, data.class_counts)
    write_figure(plots.localisation_dots(shown, title=f"Where the maps point: {given.name}"), stem)


if __name__ == "__main__":
    main()
