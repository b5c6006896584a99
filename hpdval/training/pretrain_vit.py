"""Train the small labelled ViT of the embedded world: ``python -m hpdval.training.pretrain_vit --out DIR``.

It stands where an ImageNet ViT stands for photographs: a vision model that was trained with labels on other pictures
and has never seen a text.  Pictures are those of :mod:`hpdval.training.stream`; the loss is binary cross-entropy over
the thirty things, from the class token.  The files are an ordinary timm checkpoint and its configuration.

Letters: B images in a batch, N in a set, V things, S pixels of a side.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpdval.assets import asset_path
from hpdval.data.scenes.world import VERSION
from hpdval.files import read_json, write_json
from hpdval.metrics.average_precision import average_precision
from hpdval.training.stream import draw_pool, fast_cpu, fit, read_arguments, save_weights

RARE = -3.0  # logit at the start: a thing is in one picture of eighteen
HELD_OUT = 2000  # pictures of the stream that follow those of the training


@dataclass(frozen=True, kw_only=True)
class VitConfig:
    """Everything the shipped weights depend on."""

    images: int = 30_000  # drawn once, seen `epochs` times, mirrored at random
    epochs: int = 6
    batch: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.05
    seed: int = 0
    workers: int = 2


def make_vit(config: dict[str, Any]) -> nn.Module:
    """Make timm's model from a configuration in timm's own layout, with random weights."""
    return timm.create_model(
        config["architecture"], pretrained=False, num_classes=config["num_classes"], **config["model_args"]
    )


def normalize(pixels: Tensor, config: dict[str, Any]) -> Tensor:
    """Return what the model wants of pictures (B, 3, S, S) uint8: (pixels / 255 - mean) / std, float32.

    >>> normalize(torch.full((1, 3, 1, 1), 255), {"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}).flatten()
    tensor([1., 1., 1.])
    """
    mean, std = (torch.tensor(config["pretrained_cfg"][name]).view(3, 1, 1) for name in ("mean", "std"))
    return (pixels / 255 - mean) / std


def pretrain_vit(
    config: VitConfig, pixels: Tensor, shows: np.ndarray, *, device: str = "cpu", log_every: float = 20.0
) -> nn.Module:
    """Train on a pool (:func:`hpdval.training.stream.draw_pool`) and return timm's model in float32 on the CPU.

    Args:
        config: the recipe; ``images`` and ``workers`` are about the pool and not read here.
        pixels: (N, 3, 64, 64) uint8.
        shows: (N, V) bool.
        device: where to compute.
        log_every: seconds between lines.
    """
    torch.manual_seed(config.seed)
    layout = read_json(asset_path("scenes_vit.json"))
    model = make_vit(layout).to(device)
    nn.init.constant_(model.get_parameter("head.bias"), RARE)
    low = fast_cpu() or device != "cpu"
    forward = torch.compile(model) if low else model
    targets = torch.from_numpy(shows).float()  # (N, V)

    def loss_of(chosen: list[int], images: Tensor) -> Tensor:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=low):
            logits = forward(normalize(images, layout).to(device))  # (B, V)
        truth = targets[chosen].to(device)
        return F.binary_cross_entropy_with_logits(logits.float(), truth, reduction="none").sum(1).mean()

    fit(
        model, pixels, loss_of, epochs=config.epochs, batch=config.batch, lr=config.lr,
        weight_decay=config.weight_decay, log_every=log_every,
    )  # fmt: skip
    return model.cpu().eval()


def predict(model: nn.Module, pixels: Tensor) -> np.ndarray:
    """Return logits of pictures (N, 3, 64, 64) uint8, (N, V) float32."""
    layout = read_json(asset_path("scenes_vit.json"))
    with torch.inference_mode():
        return torch.cat([model(normalize(part, layout)) for part in pixels.split(250)]).numpy()


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, write ``scenes_vit.safetensors`` and a copy of its configuration, and say how good it is on the stream."""
    parser = argparse.ArgumentParser(prog="python -m hpdval.training.pretrain_vit", description=__doc__)
    config, out, device = read_arguments(parser, VitConfig, arguments)
    pixels, shows = draw_pool(config.images, config.seed, config.workers)
    model = pretrain_vit(config, pixels, shows, device=device)
    note = {
        "format": "pt",
        "config": json.dumps(vars(config)),
        "torch": str(torch.__version__),
        "device": device,
        "world": VERSION,
        "pool_sha256": sha256(pixels.numpy().tobytes() + shows.tobytes()).hexdigest(),
    }
    save_weights(model, out / "scenes_vit.safetensors", note)
    write_json(out / "scenes_vit.json", read_json(asset_path("scenes_vit.json")))
    others, seen = draw_pool(HELD_OUT, config.seed, config.workers, first=config.images)
    found = average_precision(predict(model, others), seen)
    print(f"mAP on {HELD_OUT} pictures of the stream that were not trained on: {100 * np.nanmean(found):.1f} %")


if __name__ == "__main__":
    main()
