"""Growth: time and memory against images, classes and resolution, with the exponent of a line in logarithms."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.common import alternate, exponent, options, peak_memory, spread, write_report
from benchmarks.evaluation import features, forward, ranking
from hpdval.metrics import average_precision
from hpdval.models import load_clip
from hpdval.plots.style import INK, OTHER_COLOURS, Chart, new_chart, styled, write_figure
from hpdval.recipes import get_recipe
from hpdval.scoring import zero_shot_scorer
from hpdval.training.objective import Objective
from hpdval.training.stage1 import DualViewAlignment

NAMES = [f"class {i}" for i in range(20)]


@dataclass
class Curve:
    """What was measured at each size: CPU seconds of every repeat, and MiB."""

    name: str
    sizes: Sequence[int]
    seconds: list[list[float]] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    @property
    def medians(self) -> list[float]:
        """The median time at each size, in seconds."""
        return [median(each) for each in self.seconds]

    @property
    def exponents(self) -> tuple[float, float]:
        """Of time and memory."""
        return exponent(self.sizes, self.medians), exponent(self.sizes, self.memory)


def measured(name: str, cases: Mapping[int, Callable[[], Any]], repeats: int) -> Curve:
    """Return the curve of ``cases`` by size, measured alternately."""
    times = alternate({str(size): run for size, run in cases.items()}, repeats=repeats)
    seconds = [times[str(size)].cpu for size in cases]
    return Curve(name, list(cases), seconds, [peak_memory(run) for run in cases.values()])


def by_images(sizes: Sequence[int], repeats: int) -> list[Curve]:
    """Return encoding and scoring against the number of images, with the shipped CLIP."""
    clip = load_clip("scenes")
    scorer = zero_shot_scorer(clip, NAMES, score=get_recipe("scenes").score)
    side = clip.image_size
    images = np.random.default_rng(0).integers(0, 256, (max(sizes), side, side, 3), dtype=np.uint8)
    cases = {n: partial(scorer.score_array, images[:n], show=False) for n in sizes}
    return [measured("encode and score", cases, repeats)]


def by_classes(sizes: Sequence[int], images: int, repeats: int) -> list[Curve]:
    """Return dual-view scores of 32 images, and the AP of ``images``, against the number of classes."""
    scoring = {c: partial(forward, features(32, c)) for c in sizes}
    ap = {c: partial(average_precision, *ranking(images, c)) for c in sizes}
    return [
        measured("dual-view scores, 32 images", scoring, repeats),
        measured(f"AP, {images:,} images", ap, repeats),
    ]


def stage1_step(clip: str, resolution: int, batch: int, device: str = "cpu") -> Callable[[], None]:
    """Return one update of stage 1 as the recipe ``hpdval`` makes it, with random weights and images.

    Gradients are gone and AdamW's moments are there when this returns, so that memory above that is a step's own.
    """
    experiment = get_recipe("hpdval")
    experiment = replace(experiment, stage1=replace(experiment.stage1, workers=0))
    student, teacher = (load_clip(clip, image_size=resolution, device=device) for _ in range(2))
    objective = Objective(experiment.stage1, experiment.score, torch.full((len(NAMES),), 50), 1_000).to(device)
    task = DualViewAlignment(student, teacher, NAMES, objective, experiment).to(device)
    optimizer = torch.optim.AdamW(task.parameter_groups())
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, resolution, resolution), generator=generator, dtype=torch.uint8)
    targets = (torch.rand(batch, len(NAMES), generator=generator) < 0.2).float()
    data = {"images": images.to(device), "targets": targets.to(device)}

    def step() -> None:
        torch.stack(list(task.losses(data).values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    for parameter in task.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    optimizer.zero_grad()
    return step


def by_resolution(clip: str, sizes: Sequence[int], batch: int, repeats: int) -> list[Curve]:
    """Return the image encoder and a step of stage 1 against the side of an image; one model at a time is loaded."""
    encoding = Curve(f"forward, batch {batch}", sizes)
    training = Curve(f"stage-1 step, batch {batch}", sizes)
    for size in sizes:
        step = stage1_step(clip, size, batch)
        encoder = load_clip(clip, image_size=size)
        images = torch.zeros(batch, 3, size, size)
        for curve, run in ((encoding, partial(_encode, encoder, images)), (training, step)):
            curve.seconds.append(alternate({"": run}, repeats=repeats)[""].cpu)
            curve.memory.append(peak_memory(run))
        del step, encoder, run
    return [encoding, training]


@torch.no_grad()
def _encode(clip: Any, images: torch.Tensor) -> Any:
    return clip.encode_image(images)


def table(size: str, curves: Sequence[Curve]) -> pd.DataFrame:
    """Return what was measured, and the exponents in the last line of each curve."""
    rows = []
    for curve in curves:
        for i, value in enumerate(curve.sizes):
            last = i == len(curve.sizes) - 1
            time, memory = (f"{e:.2f}" if e == e else "-" for e in curve.exponents)
            rows.append(
                {
                    "what": curve.name,
                    size: f"{value:,}",
                    "CPU time, ms": spread(curve.seconds[i]),
                    "memory, MiB": f"{curve.memory[i]:.1f}",
                    "exponent of time": time if last else "",
                    "exponent of memory": memory if last else "",
                }
            )
    return pd.DataFrame(rows)


@styled
def growth_figure(panels: Mapping[str, tuple[str, Sequence[Curve]]]) -> Chart:
    """Draw a panel for each title: its axis, and its curves; time above, memory below, all axes logarithmic."""
    figure = new_chart(9.6, 5.4)
    axes = figure.subplots(2, len(panels), sharex="col", squeeze=False)
    for column, (title, (axis, curves)) in enumerate(panels.items()):
        for row, quantity in enumerate(("CPU time (s)", "memory (MiB)")):
            panel = axes[row, column]
            for curve, colour, marker in zip(curves, OTHER_COLOURS[1:], "os^", strict=False):
                values = [curve.medians, curve.memory][row]
                label = f"{curve.name}: {curve.exponents[row]:.2f}"
                panel.plot(curve.sizes, values, marker=marker, ms=4, lw=1.2, color=colour, label=label)
            panel.set(xscale="log", yscale="log")
            low, high = panel.get_ylim()
            low, high = min(low, high / 10), high * (high / low) ** 0.35  # at least a decade, and room for the legend
            panel.set_ylim(low, max(high, 10 * low))
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
            panel.yaxis.set_minor_locator(NullLocator())
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            panel.grid(axis="y")
            panel.legend(loc="upper left", fontsize=7)
            if column == 0:
                panel.set_ylabel(quantity)
        axes[0, column].set_title(title)
        axes[1, column].set_xlabel(axis)
        axes[1, column].set_xticks(curves[0].sizes, [f"{size:,}" for size in curves[0].sizes])
        axes[1, column].xaxis.set_minor_locator(NullLocator())
    figure.suptitle(
        "Growth on one CPU thread (behind each name: the exponent b of size$^b$)",
        fontsize=10, fontweight="bold", x=0.01, ha="left", color=INK,
    )  # fmt: skip
    return figure


TINY = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    },
    "preprocess_cfg": {},
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the report and its figure."""
    chosen = options(__doc__ or "", arguments, repeats=3)
    quick, repeats = chosen.quick, chosen.repeats
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        tiny = Path(folder) / "tiny.json"
        tiny.write_text(json.dumps(TINY), encoding="utf-8")
        classes = (4, 8) if quick else (20, 80, 300, 1_000, 3_000, 10_000)
        clip, sides = (str(tiny), (32, 64)) if quick else ("ViT-B-16-quickgelu", (224, 336, 448))
        panels = {
            "Images": ("images", by_images((16, 32) if quick else (128, 256, 512, 1_024), repeats)),
            "Classes": ("classes", by_classes(classes, 100 if quick else 2_000, repeats)),
            "Resolution": ("pixels of a side", by_resolution(clip, sides, 2, repeats)),
        }
    write_figure(growth_figure(panels), chosen.out / "growth")
    write_report(
        "growth",
        chosen,
        title="Growth of time and memory",
        compared="Against images: the shipped CLIP (64 pixels), encoding and dual-view scores in batches of 128. "
        "Against classes: dual-view scores (P = 196, D = 512), and AP. Against resolution: ViT-B/16 with random "
        "weights in float32, the image encoder and a whole update of stage 1 with its teacher. The exponent b is that "
        "of the line log y = a + b log x through all sizes.",
        tables={title: table(axis, curves) for title, (axis, curves) in panels.items()},
        notes=[
            f"Median of {repeats} repeats (least to largest), alternating over images and over classes",
            "Memory above what was held before the call (models, inputs, AdamW's moments)",
            "One thread; CPU time, which other work on the machine changes little",
        ],
        figure=True,
    )


if __name__ == "__main__":
    main()
