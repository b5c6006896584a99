"""Print what reports/ablations-findings.md says beyond the tables of reports/ablations, from runs of `make ablations`.

python reports/scripts/ablation_findings.py runs/ablations
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hpdval
from hpdval.comparisons import Comparison, read_sweep
from hpdval.files import read_json
from hpdval.run import read_metrics, read_result
from hpdval.tables import comparison_significance, to_markdown
from hpdval.training.objective import Objective

SCALES = (5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 80.0, 120.0)
FIT_IMAGES = 512  # as many as the objective is fitted to


def folders(comparison: Comparison) -> dict[str, list[Path]]:
    """Return the run folders of each setting, in the order of seeds."""
    return {cell.label: [cell.runs[seed] for seed in sorted(cell.runs)] for cell in comparison.cells}


def stage1_of(stage2: Path) -> Path:
    """Return the run of stage 1 that a run of stage 2 started from."""
    notebook = stage2.parent
    return (notebook / read_result(notebook)["folders"]["stage 1"]).resolve()


def print_parts(parts: dict[str, list[Path]]) -> None:
    """Compare the parts of the method otherwise than through zero-shot."""
    whole = parts["stage 1 + prompts + consistency"]
    pairs = {
        "prompts - stage 1": (parts["stage 1 + prompts"], parts["stage 1"]),
        "prompts + consistency - stage 1": (whole, parts["stage 1"]),
        "joint - two stages": (parts["joint"], whole),
        "joint - stage 1": (parts["joint"], parts["stage 1"]),
    }
    print(to_markdown(comparison_significance(pairs)))


def print_stages(cells: dict[str, list[Path]]) -> None:
    """Print total mAP of both stages for each seed, the mean difference, and losses and scales of stage 2."""
    for label, runs in cells.items():
        after = [read_result(run)["total"] for run in runs]
        before = [read_result(stage1_of(run))["total"] for run in runs]
        losses = [[record["cls"] for record in read_metrics(run) if "cls" in record] for run in runs]
        scales = [record["scale"] for run in runs for record in read_metrics(run) if "scale" in record]
        print(
            f"{label}: stage 1 {', '.join(f'{value:.2f}' for value in before)}; "
            f"stage 2 {np.mean(after):.2f} ({np.std(after, ddof=1):.2f}); "
            f"difference {np.mean(after) - np.mean(before):+.2f}; "
            f"first and last loss of stage 2 {np.mean([run[0] for run in losses]):.3f}, "
            f"{np.mean([run[-1] for run in losses]):.3f}; scale at the end {np.mean(scales):.1f}"
        )


def print_fit(stage2: Path) -> None:
    """Print the loss of stage 1's scores of training images at each scale, with the best bias for it."""
    config: dict[str, Any] = read_json(stage2 / "run.json")["config"]
    loss, seed = config["stage2"]["loss"]["name"], config["seed"]
    recipe = hpdval.get_recipe(config["name"], dataset=config["dataset"], **{"stage2.loss.name": loss})
    data = hpdval.load_dataset(recipe.dataset)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(data.train))[:FIT_IMAGES])
    part = data.train.subset(chosen.tolist())
    scores = torch.from_numpy(hpdval.load_run(stage1_of(stage2), device="cpu").score(part, show=False))
    counts, found = torch.from_numpy(data.train.targets.sum(0).astype(np.int64)), {}
    for scale in SCALES:
        objective = Objective(recipe.stage2, recipe.score, counts, len(data.train))
        objective.logits.log_scale.data.fill_(np.log(scale))
        objective.fit_bias(scores, torch.from_numpy(part.targets))
        with torch.no_grad():
            found[scale] = float(objective.loss(objective.logits(scores), torch.from_numpy(part.targets)))
    print(f"{loss}, seed {seed}:", ", ".join(f"scale {scale:g}: {value:.4f}" for scale, value in found.items()))


def main(folder: str) -> None:
    """Print everything."""
    comparisons = {one.name: folders(one) for one in read_sweep(folder).comparisons}
    print_parts(comparisons["components"])
    for name in ("scale", "loss"):
        print(f"\n{name}")
        print_stages(comparisons[name])
    print("\nloss of the starting scores of stage 2")
    for loss in ("bce", "db", "db_focal", "cb_focal"):
        print_fit(comparisons["loss"][loss][-1])


if __name__ == "__main__":
    main(sys.argv[1])
