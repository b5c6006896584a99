"""Train from scratch on the pretraining stream: its pictures, the loop, and the file of weights.

Pictures come from a class-balanced stream (:func:`hpdval.data.scenes.world.stream_scene`) that shares no picture with
scenes-lt.  What is trained, and under which loss, is the caller's affair.

Letters: B images in a batch, N in a pool, V things, S pixels of a side.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from hpdval.data.scenes.world import NAMES, stream_scene
from hpdval.files import atomic_write, sha256_file


def draw_pictures(indices: Sequence[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw pictures of the stream: (N, 3, 64, 64) uint8, and what they show, (N, V) bool."""
    scenes = [stream_scene(i, seed=seed) for i in indices]
    pixels = np.stack([scene.image.transpose(2, 0, 1) for scene in scenes])
    return pixels, np.array([[name in scene.names for name in NAMES] for scene in scenes])


def draw_pool(images: int, seed: int, workers: int, *, first: int = 0) -> tuple[Tensor, np.ndarray]:
    """Draw ``images`` pictures of the stream, from number ``first`` on, in worker processes."""
    end = first + images
    parts = [range(i, min(i + 500, end)) for i in range(first, end, 500)]
    start = time.monotonic()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        drawn = list(pool.map(draw_pictures, parts, [seed] * len(parts)))
    print(f"drew {images} pictures in {time.monotonic() - start:.0f} s", flush=True)
    return torch.from_numpy(np.concatenate([p for p, _ in drawn])), np.concatenate([s for _, s in drawn])


def fast_cpu() -> bool:
    """Say whether this CPU multiplies bfloat16 in hardware."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def fit(
    model: nn.Module,
    pixels: Tensor,
    loss_of: Callable[[list[int], Tensor], Tensor],
    *,
    epochs: int,
    batch: int,
    lr: float,
    weight_decay: float,
    log_every: float = 20.0,
) -> None:
    """Train in place: whole batches in random order, mirrored at random, AdamW under one cycle, clipped at norm 1.

    Args:
        model: whose parameters are changed; vectors and scalars are not decayed.
        pixels: the pool, (N, 3, S, S) uint8.
        loss_of: from the places of a batch in the pool and its mirrored pixels (B, 3, S, S) uint8 to the loss.
        epochs: passes over the pool; what is left over when N is no multiple of B is another part in each pass.
        batch: B.
        lr: the highest of the cycle.
        weight_decay: of matrices.
        log_every: seconds between lines.
    """
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=lr, betas=(0.9, 0.98), fused=True,
    )  # fmt: skip
    steps = epochs * (len(pixels) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    order: list[int] = []
    start = said = time.monotonic()
    mean_loss = 0.0
    for step in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(pixels)).tolist()
        chosen, order = order[:batch], order[batch:]
        images = pixels[chosen]
        mirror = torch.rand(batch) < 0.5
        images[mirror] = images[mirror].flip(-1)
        loss = loss_of(chosen, images)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean_loss += 0.02 * (loss.item() - mean_loss) if step else loss.item()
        if time.monotonic() - said > log_every or step + 1 == steps:
            said = time.monotonic()
            print(f"step {step + 1}/{steps} loss {mean_loss:.3f} {said - start:.0f} s", flush=True)


def save_weights(model: nn.Module, path: Path, note: dict[str, str]) -> str:
    """Write float16 safetensors with ``note`` as metadata, whole or not at all; print what was written.

    Returns:
        The file's SHA-256.
    """
    tensors = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    with atomic_write(path) as file:
        file.write(save(tensors, metadata=note))
    digest = sha256_file(path)
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB, sha256 {digest}")
    return digest


def read_arguments(parser: argparse.ArgumentParser, config: type, given: Sequence[str] | None) -> tuple[Any, Path, str]:
    """Return a ``config`` from options of its fields' names, the folder ``--out`` and the name of a device."""
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for field in fields(config):
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=type(field.default), default=field.default, help=f"default: {field.default}")
    values = vars(parser.parse_args(given))
    out, device = values.pop("out"), values.pop("device")
    return config(**values), out, device
