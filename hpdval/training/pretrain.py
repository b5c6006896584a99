"""Train the small CLIP of the embedded world from scratch: ``python -m hpdval.training.pretrain --out DIR``.

Pictures are those of :mod:`hpdval.training.stream`.  The loss is SigLIP's sigmoid loss (Zhai et al., ICCV 2023, eq. 1)
with every true pair a positive: a text is true of a picture when the picture shows everything it names.  Texts are one
prompt for each thing and captions.

Letters: B images in a batch, P patches, T texts, V things, D joint width, S pixels of a side.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpdval.assets import asset_path
from hpdval.data.scenes.world import NAMES, TEMPLATES, caption
from hpdval.files import read_json, write_json
from hpdval.training.stream import draw_pool, fast_cpu, fit, read_arguments, save_weights


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Everything the shipped weights depend on."""

    images: int = 30_000  # drawn once, seen `epochs` times, mirrored at random
    epochs: int = 8
    batch: int = 64
    text_steps: int = 150
    captions: int = 34  # of a batch; with the thirty prompts 64 texts
    lr: float = 1e-3
    weight_decay: float = 0.05
    local_weight: float = 0.5
    topk: int = 10  # of 64 patches, as 32 of 196
    seed: int = 0
    workers: int = 2


class Towers(nn.Module):
    """An open_clip model that returns what the loss needs."""

    mean: Tensor
    std: Tensor

    def __init__(self, clip: open_clip.CLIP, local: bool) -> None:
        super().__init__()
        self.clip, self.local = clip, local
        self.clip.visual.output_tokens = local
        self.bias = nn.Parameter(torch.tensor(-3.0))
        self.register_buffer("mean", torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(open_clip.OPENAI_DATASET_STD).view(1, 3, 1, 1) * 255)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Return unit text embeddings, (T, D) float32."""
        return F.normalize(self.clip.encode_text(tokens).float(), dim=-1)

    def forward(self, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return cosines of pictures (B, 3, S, S) uint8 with texts (T, L): (B, T), and of patches (B, P, T)."""
        out = self.clip.visual((pixels.float() - self.mean) / self.std)
        cls, patches = out if self.local else (out, None)
        text = self.encode_text(tokens)  # (T, D)
        glob = F.normalize(cls.float(), dim=-1) @ text.T  # (B, T)
        if patches is None:
            return glob, None
        return glob, F.normalize((patches @ self.clip.visual.proj).float(), dim=-1) @ text.T


def sigmoid_loss(cosines: Tensor, truth: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Sum over texts and mean over pictures of softplus(-z (scale s + bias)), z = 1 for true pairs, else -1.

    Args:
        cosines: s, (B, T).
        truth: (B, T), 0 or 1.
        scale: positive scalar.
        bias: scalar.

    >>> s = torch.zeros(1, 2)
    >>> round(sigmoid_loss(s, torch.tensor([[1.0, 0.0]]), torch.tensor(10.0), torch.tensor(0.0)).item(), 4)
    1.3863
    """
    return F.binary_cross_entropy_with_logits(scale * cosines + bias, truth, reduction="none").sum(1).mean()


def batch_texts(shows: np.ndarray, captions: int, r: Random) -> tuple[list[str], np.ndarray]:
    """Return V prompts and ``captions`` captions of the batch, and which picture each is true of, (B, V + captions)."""
    texts = [(TEMPLATES[0] if r.random() < 0.5 else r.choice(TEMPLATES)).format(name) for name in NAMES]
    told = np.zeros((captions, len(NAMES)), bool)
    for row, picture in zip(told, r.sample(range(len(shows)), captions), strict=True):
        names = [int(v) for v in np.flatnonzero(shows[picture])]
        row[r.sample(names, r.randint(min(2, len(names)), len(names)))] = True
        texts.append(caption([NAMES[v] for v in np.flatnonzero(row)], r))
    everything = np.concatenate([np.eye(len(NAMES), dtype=bool), told])
    return texts, ~(everything[None] & ~shows[:, None]).any(2)


def warm_text(towers: Towers, tokenizer: Callable[[list[str]], Tensor], config: PretrainConfig, r: Random) -> None:
    """Train the text tower alone for a moment: captions in the place of pictures, the same loss.

    At open_clip's start prompts that differ in one word have a cosine of 0.94, which holds the image tower on a plateau
    for thousands of steps; after this it learns as fast as with a free weight vector for each thing.
    """
    optimizer = torch.optim.AdamW(towers.parameters(), lr=config.lr)
    for _ in range(config.text_steps):
        shows = np.zeros((config.batch, len(NAMES)), bool)
        for row in shows:
            row[r.sample(range(len(NAMES)), r.randint(1, 3))] = True
        captions = [caption([NAMES[v] for v in np.flatnonzero(row)], r) for row in shows]
        texts, truth = batch_texts(shows, 0, r)
        device = towers.bias.device
        told, asked = (towers.encode_text(tokenizer(t).to(device)) for t in (captions, texts))
        target = torch.from_numpy(truth).float().to(device)
        loss = sigmoid_loss(told @ asked.T, target, towers.clip.logit_scale.exp(), towers.bias)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def pretrain(config: PretrainConfig, *, device: str = "cpu", log_every: float = 20.0) -> open_clip.CLIP:
    """Draw the stream, train, and return the open_clip model in float32 on the CPU."""
    torch.manual_seed(config.seed)
    r = Random(config.seed)
    pixels, shows = draw_pool(config.images, config.seed, config.workers)
    clip_config = read_json(asset_path("scenes_clip.json"))
    towers = Towers(open_clip.CLIP(**clip_config), config.local_weight > 0).to(device)
    tokenizer = open_clip.SimpleTokenizer(context_length=clip_config["text_cfg"]["context_length"])
    start = time.monotonic()
    warm_text(towers, tokenizer, config, r)
    print(f"text tower told the things apart after {time.monotonic() - start:.0f} s", flush=True)
    low = fast_cpu() or device != "cpu"
    forward = torch.compile(towers) if low else towers

    def loss_of(chosen: list[int], images: Tensor) -> Tensor:
        texts, truth = batch_texts(shows[chosen], config.captions, r)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=low):
            cosines, local = forward(images.to(device), tokenizer(texts).to(device))
        target = torch.from_numpy(truth).float().to(device)
        scale = towers.clip.logit_scale.exp()
        loss = sigmoid_loss(cosines, target, scale, towers.bias)
        if local is not None:
            top = local.topk(config.topk, dim=1).values.mean(1)
            loss = loss + config.local_weight * sigmoid_loss(top, target, scale, towers.bias)
        return loss

    fit(
        towers, pixels, loss_of, epochs=config.epochs, batch=config.batch, lr=config.lr,
        weight_decay=config.weight_decay, log_every=log_every,
    )  # fmt: skip
    towers.clip.visual.output_tokens = False
    return towers.clip.float().cpu().eval()


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and write ``scenes_clip.safetensors`` and a copy of its configuration into a folder."""
    parser = argparse.ArgumentParser(prog="python -m hpdval.training.pretrain", description=__doc__)
    config, out, device = read_arguments(parser, PretrainConfig, arguments)
    clip = pretrain(config, device=device)
    note = {"format": "pt", "config": json.dumps(vars(config)), "torch": str(torch.__version__), "device": device}
    save_weights(clip, out / "scenes_clip.safetensors", note)
    write_json(out / "scenes_clip.json", read_json(asset_path("scenes_clip.json")))


if __name__ == "__main__":
    main()
