"""An epoch of stage 2 from stored features, against steps that run every encoder as the released code does.

The models have the size of ViT-B/16 and random weights, pictures are noise: speed does not depend on what they are.

    python benchmarks/stage2_features.py --threads 1
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import open_clip
import torch
from torch import Tensor

from hpdval.config import Experiment
from hpdval.data.dataset import Dataset, Split
from hpdval.data.voc import CLASSES
from hpdval.files import atomic_write
from hpdval.models import Clip, ImageFeatures, load_clip
from hpdval.models.prompts import class_prompts, hand_crafted
from hpdval.recipes import get_recipe
from hpdval.run import Run
from hpdval.scoring import Features, FeatureStore, encode, features
from hpdval.training.loop import fit
from hpdval.training.objective import starting_objective
from hpdval.training.stage2 import FeatureBatches, PromptTuning, semantic_consistency_loss

DTYPES = ("float32", "float16")


class Timed(NamedTuple):
    """Seconds by the clock, and of this process's CPU time."""

    wall: float
    cpu: float


def timed(function: Callable[[], Any], device: str) -> tuple[Timed, Any]:
    """Return how long a call takes, and what it gives."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    wait()
    return Timed(time.perf_counter() - wall, time.process_time() - cpu), result


def noise(count: int, size: int) -> Dataset:
    """Return a data set of noise with random labels over VOC's classes, every class with a positive."""
    generator = np.random.default_rng(0)
    targets = (generator.random((count, len(CLASSES))) < 0.1).astype(np.uint8)
    targets[np.arange(len(CLASSES)) % count, np.arange(len(CLASSES))] = 1

    def read(index: int) -> np.ndarray:
        return np.random.default_rng(index).integers(0, 256, (size, size, 3), dtype=np.uint8)

    ids = tuple(map(str, range(count)))
    train = Split(ids=ids, targets=targets, read=read, fingerprints=tuple(f"noise:{name}" for name in ids))
    counts = targets.sum(0).astype(np.int64)
    rest = train.subset([])
    return Dataset(name="noise", classes=tuple(CLASSES), train=train, val=rest, test=rest, class_counts=counts)


def random_features(clip: Clip, images: np.ndarray, *, batch_size: int, **_: Any) -> Iterator[ImageFeatures]:
    """Stand for :func:`hpdval.scoring.encode`, so that filling a store measures the store."""
    generator, patches = torch.Generator().manual_seed(0), clip.patch_grid[0] * clip.patch_grid[1]
    for start in range(0, len(images), batch_size):
        tokens = torch.randn(min(batch_size, len(images) - start), 1 + patches, clip.embed_dim, generator=generator)
        yield ImageFeatures(tokens[:, 0], tokens[:, 1:])


class Stage2:
    """Stage 2 of recipe ``hpdval`` in both ways, on one model and one data set."""

    def __init__(self, model: str, images: int, device: str, folder: Path) -> None:
        self.device, self.folder = device, folder
        self.experiment: Experiment = get_recipe(
            "hpdval", **{"stage2.epochs": 1, "stage2.precision": "float32", "stage2.bias": 0.0}
        )
        self.config = self.experiment.stage2
        self.clip = load_clip(model, device=device).requires_grad_(False)
        self.dataset = noise(images, self.clip.image_size)
        self.text = hand_crafted(self.clip, CLASSES)
        self.ids = self.clip.tokenise(class_prompts(CLASSES)).to(device)

    def task(self) -> PromptTuning:
        """Return the task at its start."""
        sample = np.zeros((0, 1, 1, 3), np.uint8)  # the bias is given, so that no image is asked for
        objective = starting_objective(self.config, self.experiment, self.dataset, self.clip, self.text, sample)
        return PromptTuning(self.clip, CLASSES, self.text, objective, self.experiment)

    def batch(self) -> dict[str, Any]:
        """Return the pixels (B, S, S, 3) and targets (B, C) of the first images."""
        size = min(self.config.batch_size, len(self.dataset.train))
        pixels = np.stack([self.dataset.train.image(i) for i in range(size)])
        targets = torch.from_numpy(self.dataset.train.targets[:size].astype(np.float32))
        return {"images": pixels, "targets": targets.to(self.device), "ids": self.dataset.train.ids[:size]}

    def full_text(self, context: Tensor | None = None) -> Tensor:
        """Return features (C, D) of all prompts at full length, 77 tokens, as CoOp's and the released code do."""
        model = self.clip.model
        x = model.token_embedding(self.ids)  # (C, L, W)
        if context is not None:  # four words stand where "a photo of a" does
            rows = context.expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], rows, x[:, 1 + len(context) :]], dim=1)
        x = model.transformer(x + model.positional_embedding, attn_mask=model.attn_mask)
        x = model.ln_final(x)[torch.arange(len(x)), self.ids.argmax(dim=-1)]
        return x @ model.text_projection

    def released_loss(self, task: PromptTuning, batch: dict[str, Any]) -> Tensor:
        """Return the loss of a batch by the image tower and three text towers, only two of them with a gradient."""
        with torch.no_grad():
            found = self.clip.encode_image(torch.from_numpy(batch["images"]))
            fixed = self.full_text()
        texts = [self.full_text(task.prompts.contexts[name]) for name in ("global", "local")]
        return task.objective(found, *texts, batch["targets"]) + semantic_consistency_loss(fixed, texts[0])

    def released_step(self, task: PromptTuning, batch: dict[str, Any]) -> float:
        """Make one update as the released code does, and return its loss."""
        optimizer = torch.optim.AdamW(task.parameter_groups())
        loss = self.released_loss(task, batch)
        loss.backward()
        optimizer.step()
        return loss.item()

    def encoded(self, batch: dict[str, Any]) -> ImageFeatures:
        """Return the features of a batch by the encoder itself."""
        return next(encode(self.clip, batch["images"], precision="float32", show=False))

    def difference(self) -> float:
        """Return by how much the losses of both ways differ on the same pictures, relative to the loss."""
        task, batch = self.task(), self.batch()
        ours = torch.stack(list(task.losses({**batch, "features": self.encoded(batch)}).values())).sum().item()
        with torch.no_grad():
            theirs = self.released_loss(task, batch).item()
        return abs(ours - theirs) / abs(theirs)

    def store(self, dtype: str) -> FeatureStore:
        """Return the store of all images."""
        options: dict[str, Any] = {"dtype": dtype, "precision": "float32", "show": False}
        return FeatureStore.open(self.clip, self.dataset.train, **options, cache=self.folder / "features")

    def epoch(self, store: FeatureStore, name: str) -> None:
        """Train one epoch from the store, by the package's own loop, which logs and saves a checkpoint."""
        read = Features(store, torch.device(self.device))
        with Run(self.folder / name, kind="benchmark", config={}) as run:
            batches = FeatureBatches(read, self.dataset)
            count = len(self.dataset.train)
            fit(self.task(), batches, self.config, run, stage="stage2", n_images=count, seed=0, show=False)


def measure(options: argparse.Namespace, folder: Path) -> str:
    """Return the page: both ways in turn, in alternating order."""
    model = "scenes" if options.quick else "ViT-B-16"
    stage, say = Stage2(model, options.images, options.device, folder), sys.stderr
    updates = options.images / stage.config.batch_size
    difference = stage.difference()
    filled, opened, encoded = {}, {}, []
    original, features.encode = features.encode, random_features
    for dtype in DTYPES:
        filled[dtype], _ = timed(partial(stage.store, dtype), options.device)
        opened[dtype], _ = timed(partial(stage.store, dtype), options.device)
    features.encode = original
    batch, stores = stage.batch(), {dtype: stage.store(dtype) for dtype in DTYPES}
    stage.released_step(stage.task(), batch)  # warm-up
    times: dict[str, list[Timed]] = {name: [] for name in ("released", *DTYPES)}
    for repeat in range(options.repeats):
        for name in list(times) if repeat % 2 == 0 else list(times)[::-1]:
            if name == "released":
                step, _ = timed(partial(stage.released_step, stage.task(), batch), options.device)
                found = Timed(step.wall * updates, step.cpu * updates)
            else:
                found, _ = timed(partial(stage.epoch, stores[name], f"{name}-{repeat}"), options.device)
            times[name].append(found)
            print(f"{name}: {found.wall:.1f} s an epoch, {found.cpu:.1f} s of CPU time", file=say)
        spent, _ = timed(partial(stage.encoded, batch), options.device)
        encoded.append(spent.wall / len(batch["images"]))
    lines = [row(name, times) for name in times]
    once = [
        f"| {dtype} | {store.path.stat().st_size / 2**20:.0f} | {filled[dtype].wall:.2f} | {opened[dtype].wall:.2f} |"
        for dtype, store in stores.items()
    ]
    return page(lines, once, median(encoded), difference, stage, options)


def row(name: str, times: dict[str, list[Timed]]) -> str:
    """Return a row of the table: seconds of an epoch, and ratios to the released way within a repeat."""
    pairs = list(zip(times["released"], times[name], strict=True))
    cells = ["steps as released" if name == "released" else f"store in {name}"]
    for kind in ("wall", "cpu"):
        values = [getattr(one, kind) for one in times[name]]
        cells.append(f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})")
    for kind in ("wall", "cpu"):
        ratios = [getattr(slow, kind) / getattr(fast, kind) for slow, fast in pairs]
        cells.append("1" if name == "released" else f"{median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})")
    return f"| {' | '.join(cells)} |"


def processor() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text(encoding="utf-8")) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def page(
    lines: Sequence[str],
    once: Sequence[str],
    encoded: float,
    difference: float,
    stage: Stage2,
    options: argparse.Namespace,
) -> str:
    """Return the page as Markdown."""
    on = torch.cuda.get_device_name() if options.device == "cuda" else f"{processor()}, {os.cpu_count()} cores"
    load = f"{options.load:.1f} and {os.getloadavg()[0]:.1f}"
    asked = (
        f"--threads {options.threads} --images {options.images} --repeats {options.repeats} --device {options.device}"
    )
    command = f"python benchmarks/stage2_features.py {asked}{' --quick' if options.quick else ''}"
    rows, store_rows = "\n".join(lines), "\n".join(once)
    size = stage.config.batch_size
    return f"""# Stage 2 from stored features

One epoch of stage 2 over {options.images} images at ViT-B/16's size: random weights, {len(CLASSES)} classes (VOC's),
batches of {size}, four context vectors in both sets, everything computed in float32. As released: each step runs
the image tower without gradient and three text towers at 77 tokens, backward through two. The other rows are whole
epochs of `hpdval`'s loop from a store, with its log and checkpoint. The ways are measured in turn, in alternating
order, ratios within a repeat. CPU time is that of the process; other programs on the machine hardly change it.

| way | an epoch, s | CPU time, s | ratio | ratio of CPU time |
|---|---|---|---|---|
{rows}

Median (least to largest) of {options.repeats} repeats. A step as released always costs the same, so one full step is
measured a repeat and taken {options.images}/{size} times. On the same pictures both ways give the same loss: they
differ by {difference:.0e} of it.

What is paid once: encoding, {encoded:.3f} s an image ({encoded * options.images:.0f} s for all, scaled from {size}),
and the store itself:

| store | size, MiB | written and hashed, s | opened and checked, s |
|---|---|---|---|
{store_rows}

Features in these stores are random numbers. "Opened" includes the hashes of the model's weights and of all pixels.

- Hardware: {on}; device {options.device}; torch threads: {torch.get_num_threads()}
- Load average before and after: {load}
- torch {torch.__version__}, open_clip {open_clip.__version__}, Python {platform.python_version()}
- {time.strftime("%Y-%m-%d")}, `{command}`
"""


def main(arguments: Sequence[str]) -> None:
    """Measure, print and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--images", type=int, default=1142, help="N; VOC-LT has 1,142")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"), help="folder of stage2_features.md")
    parser.add_argument("--quick", action="store_true", help="a smoke test: the small CLIP, eight images, once")
    options = parser.parse_args(arguments)
    if options.quick:
        options.images, options.repeats = 8, 1
    options.load = os.getloadavg()[0]
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HPDVAL_CACHE"] = str(Path(folder) / "cache")
        text = measure(options, Path(folder))
    print(text)
    with atomic_write(options.out / "stage2_features.md", "w") as file:
        file.write(text)


if __name__ == "__main__":
    main(sys.argv[1:])
