"""How good the labelled ViT is on scenes-lt: its own outputs, and linear probes on class tokens.

A probe is scikit-learn's logistic regression (C = 1, standardised features) for each class, fitted to the 1,142
training pictures and scored on the 2,000 test pictures.  Nothing is chosen here: each line is computed once, with these
settings.

    python reports/scripts/probe_vit.py
"""

from __future__ import annotations

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hpdval.assets import asset_path
from hpdval.data.scenes import load_scenes
from hpdval.files import read_json
from hpdval.metrics.evaluate import evaluate
from hpdval.models import load_clip
from hpdval.training.pretrain_vit import make_vit, normalize


def pictures(split) -> torch.Tensor:
    """Return the pictures of a split, (N, 3, 64, 64) uint8."""
    return torch.from_numpy(np.stack([split.image(i) for i in range(len(split))])).permute(0, 3, 1, 2)


def probe(train: np.ndarray, targets: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Fit one logistic regression for each class; return test scores, (N, C)."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=2000))
    return np.column_stack([model.fit(train, column).decision_function(test) for column in targets.T])


@torch.inference_mode()
def main() -> None:
    """Print one line for each way to score."""
    torch.manual_seed(0)  # of the untrained one
    world, layout = load_scenes(), read_json(asset_path("scenes_vit.json"))
    train, test = pictures(world.train), pictures(world.test)
    untrained, vit, clip = make_vit(layout).eval(), make_vit(layout).eval(), load_clip("scenes")
    vit.load_state_dict({k: v.float() for k, v in load_file(asset_path("scenes_vit.safetensors")).items()})
    tokens = {
        "untrained ViT": lambda x: untrained.forward_features(normalize(x, layout))[:, 0],
        "labelled ViT": lambda x: vit.forward_features(normalize(x, layout))[:, 0],
        "scenes CLIP": lambda x: clip.encode_image(clip.normalise(x)).cls,
    }
    seen = vit.forward_features(normalize(test, layout))  # (N, 1 + P, W)
    answers = vit.head(seen)[:, :, : len(world.classes)]
    lines = {
        "its outputs, class token": answers[:, 0].numpy(),
        "its outputs, mean of the ten best patches": answers[:, 1:].topk(10, dim=1).values.mean(1).numpy(),
    }
    for name, token in tokens.items():
        lines[f"probe, {name}"] = probe(token(train).numpy(), world.train.targets, token(test).numpy())
    for name, scores in lines.items():
        print(f"{name}: {evaluate(scores, world.test.targets, world.class_counts)}")


if __name__ == "__main__":
    main()
