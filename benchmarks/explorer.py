"""The explorer: how long each change takes in Python, from the control to the page, with one model and with two."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

import hpdval
from benchmarks.common import alternate, options, spread, write_report
from hpdval.data.dataset import Dataset
from hpdval.lab.explorer import Explorer
from hpdval.models import Clip

TARGET_MS = 100


def photographs(folder: Path, count: int) -> Dataset:
    """Return noise of the shape of photographs, as a CSV with labels."""
    rng, classes = np.random.default_rng(0), [f"class {c}" for c in range(80)]
    for name in ("train", "test"):
        lines = ["path,labels"]
        for i in range(count):
            pixels = rng.integers(0, 256, (20, 30, 3), np.uint8)
            Image.fromarray(pixels).resize((500, 333), Image.Resampling.BICUBIC).save(folder / f"{name}{i}.jpg")
            lines.append(f"{name}{i}.jpg,{';'.join(rng.choice(classes, 3, replace=False))}")
        (folder / f"{name}.csv").write_text("\n".join(lines), encoding="utf-8")
    return hpdval.load_dataset(folder / "train.csv", test="test.csv", classes=classes)


def changes(view: Explorer, texts: Sequence[str]) -> dict[str, Callable[[], Any]]:
    """Return what a user does, each call with another value than the one before."""
    values: Mapping[str, Sequence[Any]] = {
        "alpha": [0.2, 0.3, 0.4, 0.5],
        "k": [2, 4, 6, 8],
        "class": view.dataset.classes[:4],
        "image": [1, 2, 3, 4],
        "set of prompts": ["global", "local"],
        "opacity": [0.3, 0.4, 0.5, 0.6],
        "words of one's own": texts,
    }
    names = {"class": "klass", "set of prompts": "prompts", "words of one's own": "text"}
    streams = {what: cycle(given) for what, given in values.items()}

    def one(what: str) -> Callable[[], None]:
        return lambda: view.set(**{names.get(what, what): next(streams[what])})

    return {what: one(what) for what in values}


def explored(clip: Clip, dataset: Dataset, models: int) -> Explorer:
    """Return an explorer of one model, or of CLIP's one view beside both."""
    both = hpdval.zero_shot_scorer(clip, dataset.classes, score=hpdval.get_recipe("scenes").score)
    view: Explorer = hpdval.explore(clip, dataset, other=both if models == 2 else None, show=False)
    view.settle()
    return view


def table(clip: Clip, dataset: Dataset, repeats: int) -> pd.DataFrame:
    """Return a row for each change: CPU time with one model and with two."""
    texts = [f"a photo of {i} red things" for i in range(2 * repeats + 4)]  # each is encoded once
    columns = {}
    for models in (1, 2):
        times = alternate(changes(explored(clip, dataset, models), texts), repeats=repeats)
        columns[f"{models} model{'s' * (models > 1)}, CPU ms"] = {what: spread(t.cpu) for what, t in times.items()}
        columns[f"{models} model{'s' * (models > 1)}, ms"] = {what: spread(t.wall) for what, t in times.items()}
    return pd.DataFrame(columns).rename_axis("change").reset_index()


def main(arguments: Sequence[str] | None = None) -> None:
    """Write OUT/explorer.md."""
    chosen = options(__doc__, arguments, repeats=15)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HPDVAL_CACHE"] = folder
        scenes = (
            hpdval.load_dataset("scenes-lt", train=20, test=20) if chosen.quick else hpdval.load_dataset("scenes-lt")
        )
        tables = {"scenes-lt, the shipped CLIP": table(hpdval.load_clip("scenes"), scenes, chosen.repeats)}
        if not chosen.quick:
            place = Path(folder) / "photographs"
            place.mkdir()
            large = hpdval.load_clip("ViT-B-16", seed=0)
            tables["60 pictures of 500 x 333, ViT-B/16 with random weights"] = table(
                large, photographs(place, 60), chosen.repeats
            )
    write_report(
        "explorer",
        chosen,
        title="The explorer",
        compared="Python time of a change, from the attribute that is set to the finished page (picture, bars, words), "
        f"from stored features, median (least to largest). The aim is {TARGET_MS} ms. What JupyterLab and the browser "
        "add is in [explorer-browser.md](explorer-browser.md).",
        tables=tables,
        notes=[f"scenes-lt: {len(scenes.test):,} images, {len(scenes.classes)} classes; photographs: 60 and 80"],
    )


if __name__ == "__main__":
    main()
