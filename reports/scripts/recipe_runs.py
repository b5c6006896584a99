"""Train the recipes of paper, released code and hpdval on scenes-lt, and hpdval with one difference at a time.

    python reports/scripts/recipe_runs.py --out runs/recipes --jobs 2

Each run goes to OUT/<name>/seed-<s>; what is finished there is skipped.  recipe_report.py writes the report from them.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

DATASET = "scenes-lt"
RECIPES = ("hpdval", "paper", "released")
SHORT = {"stage1.epochs": 8, "stage1.precision": "bfloat16"}  # of the single differences, which are many
PAPERS_LOSS = {"stage1.loss.name": "db_star", "stage1.loss.denominator": "all"}
RELEASED_SCORE = {"score.reading": "released"}
DIFFERENCES: dict[str, dict[str, Any]] = {
    "base": {},
    "student ViT trained with labels, CLIP's projection": {"stage1.student": "scenes"},
    "embedding head on CLIP's ViT": {"stage1.projection": "head"},
    "student ViT trained with labels, embedding head": {"stage1.student": "scenes", "stage1.projection": "head"},
    "DB* (eq. 14-15), r over the image's positives": {"stage1.loss.name": "db_star"},
    "DB* (eq. 14-15), r over all classes (eq. 11)": PAPERS_LOSS,
    "scalar focal, positives times 10": {
        "stage1.loss.name": "db",
        "stage1.loss.focal": "scalar",
        "stage1.loss.pos_scale": 10.0,
    },
    "released score (dot products, l2 per view, alpha local)": RELEASED_SCORE,
    "released score without scale and bias": {
        **RELEASED_SCORE,
        "stage1.scale": 1.0,
        "stage1.bias": 0.0,
        "stage1.scale_lr": 0.0,
    },
    "images not normalised": {"normalise": False},
    "text tower learns along": {"stage1.train_text": True},
    "no teacher (or the student as its own)": {"stage1.teacher": "same"},
    "moving average 0.998": {"stage1.ema_decay": 0.998},
    "constant learning rate": {"stage1.schedule": "constant"},
    "batch 16": {"stage1.batch_size": 16},
    "no mirroring": {"stage1.augment.flip": False},
}


def plan(seeds: int) -> list[tuple[str, str, dict[str, Any], int]]:
    """Return (name, recipe, overrides, seed) of every run, the recipes first."""
    runs: list[tuple[str, str, dict[str, Any], int]] = []
    for seed in range(seeds):
        runs += [(name, name, {}, seed) for name in RECIPES]
        runs += [("hpdval, joint", "hpdval", {"stages": "joint"}, seed)]
    for seed in range(seeds):
        runs += [(name, "hpdval", {**SHORT, "stages": "stage1", **d}, seed) for name, d in DIFFERENCES.items()]
    return runs


def folder(out: Path, name: str, seed: int) -> Path:
    """Return where a run lies."""
    words = "".join(c if c.isalnum() else " " for c in name).split()
    return out / "-".join(words).lower() / f"seed-{seed}"


def train(job: tuple[str, str, dict[str, Any], int], out: Path, threads: int) -> str:
    """Run all stages of one job."""
    import torch

    import hpdval

    torch.set_num_threads(threads)
    name, recipe, overrides, seed = job
    experiment = hpdval.get_recipe(recipe, dataset=DATASET, seed=seed, **overrides)
    data = hpdval.load_dataset(DATASET)
    hpdval.train(data, experiment, run=folder(out, name, seed), show=False)
    return f"{name}, seed {seed}"


def main() -> None:
    """Run what is not finished, ``jobs`` at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="names that begin with this")
    options = parser.parse_args()
    jobs = [job for job in plan(options.seeds) if job[0].startswith(options.only)]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        done = [pool.submit(train, job, options.out, options.threads) for job in jobs]
        for number, future in enumerate(as_completed(done), 1):
            print(f"{number}/{len(jobs)} {future.result()}", flush=True)


if __name__ == "__main__":
    main()
