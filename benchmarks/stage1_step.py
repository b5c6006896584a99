"""Stage 1: images per second of our update against one as the released script makes it, at ViT-B/16 size.

The released update runs the student, the teacher, the moving average and the moving average's teacher, and encodes all
texts at 77 tokens twice, once with gradients.  Random weights and pixels; one update of each in alternating order.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import alternate, options, ratio, spread, write_report
from hpdval.config import Experiment
from hpdval.data.voc import CLASSES
from hpdval.models import Clip, load_clip
from hpdval.models.numeric import resolve_device
from hpdval.models.prompts import class_prompts
from hpdval.models.student import make_student
from hpdval.models.text import text_features
from hpdval.overrides import override
from hpdval.recipes import get_recipe
from hpdval.run import Run
from hpdval.training.batches import Plan
from hpdval.training.objective import Objective
from hpdval.training.optim import parameter_groups
from hpdval.training.stage1 import DualViewAlignment, distillation_loss
from hpdval.training.trainer import Trainer

Step = Callable[[], None]


def released_step(clip: Clip, batch: dict[str, Any], experiment: Experiment, counts: torch.Tensor) -> Step:
    """Return one update of the released script: every pass it makes, plain AdamW and a loop over the moving average."""
    student, teacher, average = (make_student(clip) for _ in range(3))
    average_teacher = make_student(clip).requires_grad_(False)
    teacher.requires_grad_(False)
    average.requires_grad_(False)
    objective = Objective(experiment.stage1, experiment.score, counts, 1142).to(clip.device)
    optimizer = torch.optim.AdamW(parameter_groups(student, lr=1e-5, weight_decay=1e-4), foreach=False)
    ids = clip.tokenise(class_prompts(CLASSES))

    def step() -> None:
        images = student.normalise(batch["images"])
        features, text = student.encode_image(images), text_features(student.model, ids, plain=True)
        with torch.no_grad():
            teacher_cls = teacher.encode_image(images).cls
        loss = objective(features, text, text, batch["targets"]) + distillation_loss(features.cls, teacher_cls)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        float(loss.detach())  # it is printed, so the device is waited for
        with torch.no_grad():
            for mean, value in zip(average.parameters(), student.parameters(), strict=True):
                mean.copy_(0.998 * mean + 0.002 * value)
            average.encode_image(images)
            average_teacher.encode_image(images)
            text_features(average.model, ids, plain=True)

    return step


def our_step(
    clip: Clip, batch: dict[str, Any], experiment: Experiment, counts: torch.Tensor, run: Run, name: str
) -> Step:
    """Return one update of the package's own loop."""
    student = make_student(clip)
    objective = Objective(experiment.stage1, experiment.score, counts, 1142).to(clip.device)
    task = DualViewAlignment(student, copy.deepcopy(clip), CLASSES, objective, experiment)
    trainer = Trainer(task, experiment.stage1, Plan(1142, len(batch["ids"]), 1, 10_000, 0), run, name)
    return lambda: trainer.step([batch])


def matmul_flops(device: torch.device, dtype: torch.dtype, size: int, repeats: int) -> float:
    """Return the multiply-add rate of a large matrix product, in FLOP/s: the best of ``repeats``."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = alternate({"matmul": lambda: _synchronised(lambda: a @ b, device)}, repeats=repeats)["matmul"].wall
    return 2 * size**3 / min(times)


def _synchronised(run: Callable[[], Any], device: torch.device) -> None:
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the report."""
    chosen = options(__doc__ or "", arguments)
    device = resolve_device("auto")
    cuda = device.type == "cuda"
    size = (32 if cuda else 4) if not chosen.quick else 2
    clip = load_clip("ViT-B-16", device=device) if not chosen.quick else load_clip("scenes", device=device)
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (size, 3, clip.image_size, clip.image_size), dtype=np.uint8)
    targets = (random.random((size, len(CLASSES))) < 0.1).astype(np.float32)
    batch = {
        "images": torch.from_numpy(pixels).to(device),
        "targets": torch.from_numpy(targets).to(device),
        "ids": list(range(size)),
    }
    counts = torch.arange(4, 4 + 20 * len(CLASSES), 20)
    usual = override(get_recipe("hpdval"), {"stage1.ema_decay": 0.998, "stage1.precision": "float32"})
    modes = {
        "ours, float32": {},
        "ours, pure-bfloat16": {"stage1.precision": "pure-bfloat16"},
        "ours, bfloat16 (autocast)": {"stage1.precision": "bfloat16"},
    }
    if cuda:
        modes["ours, bfloat16, compiled"] = {"stage1.precision": "bfloat16", "stage1.compile": True}
    with tempfile.TemporaryDirectory() as folder, Run(folder, kind="benchmark", config={}) as run:
        steps = {"released update, float32": released_step(clip, batch, usual, counts)}
        for number, (name, changes) in enumerate(modes.items()):
            steps[name] = our_step(clip, batch, override(usual, changes), counts, run, f"case{number}")
        with FlopCounterMode(display=False) as counter:
            our_step(clip, batch, usual, counts, run, "flops")()
        cases = {name: lambda step=step: _synchronised(step, device) for name, step in steps.items()}
        times = alternate(cases, repeats=chosen.repeats)
    flops = counter.get_total_flops()
    peaks = {
        name: matmul_flops(device, dtype, 512 if chosen.quick else 8192 if cuda else 3072, 5)
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    }
    slow = times["released update, float32"]
    rows = []
    for name, taken in times.items():
        seconds, own = taken.wall, flops / float(np.median(taken.wall))
        peak = peaks["float32" if "float32" in name else "bfloat16"]
        rows.append(
            {
                "update": name,
                "seconds": spread(seconds, "s", 3),
                "images/s": f"{size / np.median(seconds):.2f}",
                "times as fast": str(ratio(slow.wall, seconds)),
                "by CPU time": str(ratio(slow.cpu, taken.cpu)) if not cuda else "-",
                "share of a matmul": f"{100 * own / peak:.0f} %" if name.startswith("ours") else "-",
            }
        )
    write_report(
        "stage1_step",
        chosen,
        title="One update of stage 1",
        compared=f"{__doc__.split(chr(10), 2)[2].strip()} Batch {size}, {len(CLASSES)} classes, {clip.name}, "
        f"{device.type}.",
        tables={"Updates": pd.DataFrame(rows)},
        notes=[
            f"FLOPs of our update: {flops / 1e9:.0f} G; large matrix products of the same run reach "
            + ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {name}" for name, rate in peaks.items()),
        ],
    )


if __name__ == "__main__":
    main()
