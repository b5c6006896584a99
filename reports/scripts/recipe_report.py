"""Write reports/recipes-scenes-lt.md and .csv from the runs of recipe_runs.py: stored predictions and metrics only.

python reports/scripts/recipe_report.py runs/recipes reports/recipes-scenes-lt
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from recipe_runs import DIFFERENCES, RECIPES, SHORT, folder

from hpdval.files import atomic_write, read_json
from hpdval.run import read_manifest, read_metrics
from hpdval.tables import comparison_table, difference_table, read_runs, score_table, to_markdown

COLUMNS = ("total", "head", "medium", "tail")
STAGES = {"zero-shot": "zero-shot", "stage 1": "stage1", "stage 2": "stage2", "joint": "joint"}


def seeds(out: Path, name: str, stage: str) -> list[Path]:
    """Return the finished runs of one stage, a folder for each seed."""
    parents = sorted(folder(out, name, 0).parent.glob("seed-*"))
    return [path / stage for path in parents if (path / stage / "manifest.json").exists()]


def row(folders: list[Path], readout: str | None = None) -> dict[str, Any]:
    """Return mean and spread over seeds of one method, under its own read-out or the one given."""
    found = read_runs(folders)
    table = score_table(
        {"it": found["scores"]}, found["targets"], found["class_counts"], readout=readout or found["readout"]
    )
    return table.set_index("method").loc["it"].to_dict()


def shown(numbers: dict[str, Any]) -> dict[str, str]:
    """Return mean (spread) of each column."""
    spread = {name: numbers.get(f"{name} sd") for name in COLUMNS}
    return {
        name: f"{numbers[name]:.2f}" + (f" ({spread[name]:.2f})" if spread[name] is not None else "")
        for name in COLUMNS
    }


def recipes_table(out: Path) -> pd.DataFrame:
    """Return the stages of each recipe under the recipe's own protocol, and total mAP under raw scores."""
    rows = []
    for name in (*RECIPES, "hpdval, joint"):
        for method, stage in STAGES.items():
            folders = seeds(out, name, stage)
            if not folders or (method == "zero-shot" and name == "hpdval, joint"):
                continue
            result = read_json(folders[0] / "result.json")
            mark = "a" if result["selection"].endswith("TEST images") else ""
            mark += "b" if result["readout"] != "raw" else ""
            numbers = shown(row(folders[:1] if method == "zero-shot" else folders))
            marked = {column: value + (f" {mark}" if mark else "") for column, value in numbers.items()}
            raw = shown(row(folders[:1] if method == "zero-shot" else folders, "raw"))["total"]
            raw += " a" if "a" in mark else ""
            rows.append({"recipe": name, "method": method, **marked, "total, raw read-out": raw})
    return pd.DataFrame(rows)


def optimism(out: Path) -> list[str]:
    """Return what selection on test images gave: best against last epoch, from the curves that were logged."""
    lines = []
    for stage in ("stage1", "stage2"):
        curves = []
        for path in seeds(out, "released", stage):
            curves.append([record["test_map"] for record in read_metrics(path) if "test_map" in record])
        gains = [max(curve) - curve[-1] for curve in curves]
        epochs = ", ".join(str(int(np.argmax(curve)) + 1) for curve in curves)
        lasts = [curve[-1] for curve in curves]
        lines.append(
            f"- {stage} of `released`: best epochs {epochs} of {len(curves[0])}; the last epoch has "
            f"{np.mean(lasts):.2f} ({np.std(lasts, ddof=1):.2f}) total mAP, so choosing on test images adds "
            f"{np.mean(gains):.2f} points ({min(gains):.2f} to {max(gains):.2f})."
        )
    return lines


def differences_table(out: Path) -> tuple[pd.DataFrame, int]:
    """Return base and single differences: mAP, and difference of the total to the base with its interval."""
    base = read_runs(seeds(out, "base", "stage1"))
    rows = [{"setting": "base", **shown(row(seeds(out, "base", "stage1"))), "difference": ""}]
    for name in list(DIFFERENCES)[1:]:
        if not seeds(out, name, "stage1"):
            continue
        found = read_runs(seeds(out, name, "stage1"))
        pairs = {name: (found["scores"], base["scores"][: len(found["scores"])])}
        table = difference_table(pairs, base["targets"], base["class_counts"], readout="raw")
        total = table[table["classes"] == "total"].iloc[0]
        verdict = {"yes": "gain", "loss": "loss", "open": "open"}[total["gain"]]
        text = f"{total['difference']:+.2f} [{total['low']:.2f}, {total['high']:.2f}] {verdict}"
        rows.append({"setting": name, **shown(row(seeds(out, name, "stage1"))), "difference": text})
    return pd.DataFrame(rows), len(base["scores"])


def comparisons(out: Path) -> pd.DataFrame:
    """Return paired differences between stages and recipes that share the protocol: raw read-out, last epoch."""
    pairs = {
        "hpdval: stage 1 - zero-shot": (("hpdval", "stage1"), ("hpdval", "zero-shot")),
        "hpdval: stage 2 - stage 1": (("hpdval", "stage2"), ("hpdval", "stage1")),
        "hpdval: joint - stage 2": (("hpdval, joint", "joint"), ("hpdval", "stage2")),
        "paper: stage 2 - stage 1": (("paper", "stage2"), ("paper", "stage1")),
        "paper - hpdval, both after stage 2": (("paper", "stage2"), ("hpdval", "stage2")),
    }
    return comparison_table({label: (seeds(out, *a), seeds(out, *b)) for label, (a, b) in pairs.items()})


def contexts(out: Path) -> list[str]:
    """Return how far the contexts moved in stage 2, root mean square, mean over seeds."""
    lines = []
    for name in RECIPES:
        moved = [
            r["context_shift"] for p in seeds(out, name, "stage2") for r in read_metrics(p) if "context_shift" in r
        ]
        text = ", ".join(f"{view} {np.mean([m[view] for m in moved]):.4f}" for view in moved[0])
        lines.append(f"- `{name}`: {text}")
    return lines


def main(out: Path, target: Path) -> None:
    """Write the report."""
    table = recipes_table(out)
    single, count = differences_table(out)
    newest = read_manifest(seeds(out, "released", "stage1")[-1])
    wall = sum(read_json(path)["wall_seconds"] for path in out.rglob("manifest.json"))
    images, code, machine = newest["inputs"]["images"], newest["code"], newest["hardware"]
    commits = sorted({read_json(path)["code"]["commit"][:10] for path in out.rglob("manifest.json")})
    lines = [
        "# The recipes of paper, released code and hpdval on scenes-lt",
        "",
        f"{images['train']} training and {images['test']} test images, 20 classes; small CLIP and ViT of this package "
        "(`get_recipe(name, dataset='scenes-lt')`). Mean average precision in percent, all-point, ties grouped; mean "
        "(sample standard deviation) over 3 seeds, zero-shot has none. Every number under its recipe's own protocol; "
        "the last column ranks the same scores without a read-out.",
        "",
        to_markdown(table),
        "",
        "a: epoch selected on test images, an upper bound; b: l2 read-out. Different marks do not compare.",
        "",
        *optimism(out),
        "",
        "How far the contexts moved in stage 2 (root mean square; `paper` starts them from N(0, 0.02), the others from "
        "words):",
        "",
        *contexts(out),
        "",
        "Differences in points with 95 % paired bootstrap intervals over test images; gain: the interval lies above 0 "
        "and all seeds agree, loss: below.",
        "",
        to_markdown(comparisons(out)),
        "",
        "## One difference at a time",
        "",
        f"Stage 1 of `hpdval` with {', '.join(f'{k}={v}' for k, v in SHORT.items())}, and one difference each; "
        f"{count} seeds, last epoch, raw read-out. Difference of the total in points with a 95 % paired bootstrap "
        "interval over test images; gain or loss: the interval excludes 0 and all seeds agree. Fifteen comparisons, "
        "not corrected for their number.",
        "",
        to_markdown(single),
        "",
    ]
    date = time.strftime("%Y-%m-%d", time.gmtime(newest["finished"]))
    lines += [
        f"Made on {date} by hpdval {code['version']}, commits {', '.join(commits)}, "
        f"torch {newest['packages']['torch']}, CPU ({machine['machine']}, {machine['cores']} cores, "
        f"{machine['threads']} thread a run); "
        f"{wall / 60:.0f} min of runs in all.",
        "",
        "    python reports/scripts/recipe_runs.py --out runs/recipes --jobs 2",
        "    python reports/scripts/recipe_report.py runs/recipes reports/recipes-scenes-lt",
    ]
    with atomic_write(target.with_name(target.name + ".md"), "w") as file:
        file.write("\n".join(lines) + "\n")
    with atomic_write(target.with_name(target.name + ".csv"), "w") as file:
        pd.concat([table, single.rename(columns={"setting": "method"})]).to_csv(file, index=False, lineterminator="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
