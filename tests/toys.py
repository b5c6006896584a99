"""Small data and a small model that tests share: images that can be learnt from their pixels, and a random CLIP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from hpdval.config import Experiment
from hpdval.data.dataset import Dataset, Split
from hpdval.models import Clip, load_clip
from hpdval.recipes import get_recipe

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
CLASSES = ("red", "green", "blue")


def tiny(folder: Path) -> Clip:
    """A frozen CLIP with the same random weights for all; its configuration is ``tiny.json`` in the folder."""
    path = folder / "tiny.json"
    if not path.exists():
        path.write_text(json.dumps(TINY))
    return load_clip(path, seed=0).requires_grad_(False)  # frozen, torch takes another path through attention


def coloured(n: int, seed: int) -> Split:
    """Images with a red, green or blue square each, on grey noise: learnable from pixels."""
    generator = np.random.default_rng(seed)
    targets = (generator.random((n, 3)) < 0.5).astype(np.uint8)
    images = generator.integers(90, 160, (n, 32, 32, 3), dtype=np.uint8)
    for image, row in zip(images, targets, strict=True):
        for channel in np.flatnonzero(row):
            top, left = generator.integers(0, 20, 2)
            image[top : top + 12, left : left + 12] = 0
            image[top : top + 12, left : left + 12, channel] = 255
    return Split(
        ids=tuple(f"{seed}/{i}" for i in range(n)),
        targets=targets,
        read=lambda i: images[i],
        fingerprints=tuple(f"coloured:{seed}:{i}" for i in range(n)),
    )


def coloured_set(n_train: int = 60, n_test: int = 40) -> Dataset:
    """So many of these images, none for validation."""
    train, test = coloured(n_train, 1), coloured(n_test, 2)
    counts = train.targets.sum(0).astype(np.int64)
    return Dataset(name="colours", classes=CLASSES, train=train, val=train.subset([]), test=test, class_counts=counts)


def recipe(**overrides: Any) -> Experiment:
    """A short training on them."""
    values = {"stage1.epochs": 6, "stage1.lr": 2e-3, "stage2.epochs": 3, "stage2.lr": 1e-2, "stage2.init": "normal"}
    return get_recipe("scenes", dataset="colours", **{**values, **overrides})
