"""Choose the settings of the rivals on validation images: python reports/scripts/choose_rivals.py runs/choose-rivals

Every rival has a few candidates and its recipe for the rest, and is measured on parts carved from the
training images of scenes-lt (20 %; seeds 0 and 1, where the encoder learns seed 0 alone).  The carved part takes the
place of the test images, which are never loaded.  Finished runs are skipped; the table goes to stdout.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import hpdval
from hpdval.data import Dataset
from hpdval.run import read_result
from hpdval.training.rivals import train_rival

LR = "rival.lr"
RATES = ((20, (3e-5, 1e-4, 1e-3)), (5, (3e-4, 1e-3, 3e-3, 1e-2)))  # for each start of the objective's scale
BOTH_SCALES = [f"{LR}={lr} rival.scale={scale}" for scale, rates in RATES for lr in rates]
CANDIDATES: dict[str, list[str]] = {  # settings that differ from the recipe's
    "knn": [f"rival.k={k}" for k in (5, 10, 20, 50, 100)],
    "linear-probe": [f"{LR}={lr}" for lr in (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)],
    "mlp-probe": [f"{LR}={lr}" for lr in (3e-4, 1e-3, 3e-3, 1e-2)],
    "coop": BOTH_SCALES,
    "coop-classes": BOTH_SCALES,
    "lmpt": BOTH_SCALES,
    "cocoop": BOTH_SCALES[2:5],
    "dualcoop": [*(f"{LR}={lr}" for lr in (1e-3, 1e-2, 3e-2)), f"{LR}=0.01 rival.per_class=false"],
    "fine-tuning": [f"{LR}={lr}" for lr in (1e-5, 3e-5, 1e-4, 3e-4)]
    + [f"{LR}={lr} rival.epochs=2" for lr in (3e-5, 1e-4, 3e-4)],
    "lora": [f"{LR}={lr}" for lr in (1e-4, 3e-4, 1e-3, 3e-3)],
    "cprfl": [f"{LR}={lr}" for lr in (3e-5, 1e-4, 3e-4, 1e-3)],
}
LEARNING = ("fine-tuning", "lora", "cprfl")  # the rivals whose encoder learns


def carved(seed: int) -> Dataset:
    """Return scenes-lt without its test images: the part carved from its training images stands there."""
    data = hpdval.load_dataset("scenes-lt", val=0.2, val_seed=seed)
    return replace(data, name="scenes-lt-carved", test=data.val, val=data.val.subset([]), origin={})


def main(out: Path, names: list[str]) -> None:
    """Train every candidate, and print its mAP on the parts."""
    parts = {seed: carved(seed) for seed in (0, 1)}
    for name in names or CANDIDATES:
        for candidate in CANDIDATES[name]:
            totals = []
            for seed, data in [*parts.items()][: 1 if name in LEARNING else None]:
                recipe = hpdval.get_recipe(f"{name}-small", seed=seed, **hpdval.parse_overrides(candidate))
                folder = out / f"{name} {candidate} {seed}"
                train_rival(data, recipe, run=folder, show=False)
                totals.append(read_result(folder)["total"])
            shown = " ".join(f"{total:.2f}" for total in totals)
            print(f"{name:13} {candidate:32} mean {sum(totals) / len(totals):.2f}  parts {shown}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
