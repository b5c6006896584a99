"""Rivals on real photographs: python reports/scripts/photo_rivals.py DATA miml runs/rivals-miml [--seeds 3]

DATA is the folder with miml/, mosaic/ and coco-photos/.  Encoder: the small CLIP of photographs in DATA/mosaic.  Rivals
keep the settings that were chosen on scenes-lt, HP-DVAL those chosen on composed photographs (reports/selection.md).
LMPT is left out: these images have no captions.  Finished runs are skipped; the last line is the report's command.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import hpdval
from hpdval.models import load_clip

SOURCES = {
    "miml": ("miml/lt_train.csv", {"test": "miml/test.csv"}),
    "mosaic": ("mosaic/train.csv", {"test": "mosaic/test.csv"}),
    "coco-photos": (
        "coco-photos/annotations/instances_train2017.json",
        {"test": "coco-photos/annotations/instances_val2017.json"},
    ),
}
TITLES = {"miml": "natural scenes", "mosaic": "composed photographs", "coco-photos": "COCO photographs"}
RIVALS = (
    *("prompt-ensemble", "knn", "linear-probe", "mlp-probe", "coop", "coop-classes", "cocoop", "dualcoop"),
    *("lora", "fine-tuning", "cprfl"),
)
OURS = {"score.alpha": 0.7, "stage1.kd_weight": 0.3, "stage1.epochs": 8}


def main() -> None:
    """Train every method with every seed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("source", choices=SOURCES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    train, others = SOURCES[options.source]
    dataset = hpdval.load_dataset(options.data / train, **{name: options.data / path for name, path in others.items()})
    photographs = options.data / "mosaic"
    files = {"clip": f"{photographs}/photo_clip.json", "pretrained": f"{photographs}/photo_clip.safetensors"}
    clip = load_clip(files["clip"], pretrained=files["pretrained"])
    where = {"dataset": str(options.data / train), **files}
    folders: list[str] = []
    for seed in range(options.seeds):
        recipes = {"hpdval": hpdval.get_recipe("scenes", seed=seed, **where, **OURS)}
        recipes |= {name: hpdval.get_recipe(f"{name}-small", seed=seed, **where) for name in RIVALS}
        for name, recipe in recipes.items():
            runs = hpdval.train(dataset, recipe, run=options.out / f"{name}-{seed}", clip=clip, show=False)
            print(name, seed, *runs, flush=True)
            alone = name == "hpdval" and seed == 0  # zero-shot is the same for all
            folders += [str(folder) for method, folder in runs.items() if alone or method != "zero-shot"]
    how = f'-o reports/rivals-{options.source} --title "Rivals on {TITLES[options.source]}" --figures svg'
    print(f"hpdval report {' '.join(folders)} {how}")


if __name__ == "__main__":
    main()
