"""Scale: what is done once for a data set, against its images up to a million and its classes up to 10,000."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from benchmarks.common import cpu_seconds, exponent, options, peak_memory, write_report
from benchmarks.growth import TINY
from hpdval.data import carve_validation, check_disjoint, load_dataset
from hpdval.data.dataset import Dataset, Split
from hpdval.data.splits import class_members
from hpdval.data.store import ImageStore
from hpdval.files import digest, write_json
from hpdval.losses import LOSSES, build_loss
from hpdval.metrics import Interval, evaluate
from hpdval.models import Clip, ImageFeatures, load_clip
from hpdval.models.prompts import hand_crafted
from hpdval.plots.data import class_frequency
from hpdval.plots.results import class_change
from hpdval.plots.style import figure_bytes
from hpdval.recipes import get_recipe
from hpdval.rival_recipes import linear_probe
from hpdval.run import Run
from hpdval.scoring import label_digest
from hpdval.training.batches import Plan
from hpdval.training.objective import Objective
from hpdval.training.rivals import train_rival
from hpdval.training.sampling import class_aware
from hpdval.training.stage1 import DualViewAlignment, train_stage1
from hpdval.training.stage2 import PromptTuning, train_stage2

SIDE = 16  # pixels of an image
LINKS = 64  # files that all images of a split are hard links of: a file system allows some 65,000 of each
CLASSES = 20
BATCH = 32
Case = Callable[[Path, int, int], Callable[[], Any]]  # (folder, images, classes) -> what is measured


# -- data ----------------------------------------------------------------------------------------------------------


def labels_of(n: int, n_classes: int, seed: int = 0) -> np.ndarray:
    """Return long-tailed labels, (N, 3) int64; where there are enough images every class has one."""
    drawn = (np.random.default_rng(seed).random((n, 3)) ** 4 * n_classes).astype(np.int64)
    drawn[:, 0] = np.where(np.arange(n) < n_classes, np.arange(n) % n_classes, drawn[:, 0])
    return drawn


def targets_of(n: int, n_classes: int, seed: int = 0) -> np.ndarray:
    """Return the same as targets (N, C) uint8."""
    targets = np.zeros((n, n_classes), np.uint8)
    np.put_along_axis(targets, labels_of(n, n_classes, seed), 1, axis=1)
    return targets


def names_of(part: str, n: int) -> list[str]:
    """Return the paths of n images, a thousand in a folder."""
    return [f"{part}/{i // 1000:04d}/{i:07d}.jpg" for i in range(n)]


def write_images(folder: Path, part: str, n: int) -> None:
    """Make n files that hold ``LINKS`` different images of noise, of no other part."""
    rng = np.random.default_rng(len(part))
    sources = [folder / f"{part}-{k}.jpg" for k in range(LINKS)]
    for source in sources:
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(source)
    for i, name in enumerate(names_of(part, n)):
        if i % 1000 == 0:
            (folder / name).parent.mkdir(parents=True)
        os.link(sources[i % LINKS], f"{folder}/{name}")


def write_lists(folder: Path, n: int, n_classes: int, forms: Sequence[str] = ("csv", "txt", "json")) -> None:
    """Write train and test of n images, and a hundredth, as CSV, published lists with captions, and COCO json."""
    classes = [f"kind-{i}" for i in range(n_classes)]
    (folder / f"classes-{n_classes}.txt").write_text("\n".join(classes) + "\n", encoding="utf-8")
    for part, count in (("train", n), ("test", max(100, n // 100))):
        rows = list(zip(names_of(part, count), labels_of(count, n_classes, len(part)).tolist(), strict=True))
        stem = folder / f"{part}-{n}"
        if "csv" in forms:
            lines = [f"{name},{';'.join(classes[k] for k in own)}\n" for name, own in rows]
            stem.with_suffix(".csv").write_text("path,labels\n" + "".join(lines), encoding="utf-8")
        if "txt" in forms:
            lines = [f"{name} {' '.join(map(str, own))}\n" for name, own in rows]
            stem.with_suffix(".txt").write_text("".join(lines), encoding="utf-8")
            if part == "train":
                captions = "".join(f"{name} a picture of noise\n" for name, _ in rows)
                (folder / f"captions-{n}.txt").write_text(captions, encoding="utf-8")
        if "json" in forms:
            box = {"bbox": [1.0, 2.0, 3.0, 4.0], "iscrowd": 0}
            objects = [(i, k) for i, (_, own) in enumerate(rows) for k in own]
            content = {
                "categories": [{"id": k + 1, "name": name} for k, name in enumerate(classes)],
                "images": [
                    {"id": i, "file_name": name, "width": SIDE, "height": SIDE} for i, (name, _) in enumerate(rows)
                ],
                "annotations": [
                    {"id": j, "image_id": i, "category_id": k + 1, **box} for j, (i, k) in enumerate(objects)
                ],
            }
            stem.with_suffix(".json").write_text(json.dumps(content), encoding="utf-8")


def load(folder: Path, n: int, n_classes: int, *, form: str = "csv", **more: Any) -> Dataset:
    """Return the data set that :func:`write_lists` wrote."""
    classes = {} if form == "json" else {"classes": folder / f"classes-{n_classes}.txt"}
    test = folder / f"test-{n}.{form}"
    return load_dataset(folder / f"train-{n}.{form}", root=folder, test=test, **classes, **more)


def split_of(n: int, n_classes: int) -> Split:
    """Return a split of names and labels alone."""
    names = tuple(names_of("train", n))
    return Split(ids=names, targets=targets_of(n, n_classes), read=lambda i: np.zeros(0), fingerprints=names)


# -- what is measured ----------------------------------------------------------------------------------------------


def loading(folder: Path, n: int, n_classes: int, *, captions: bool = False, **more: Any) -> Callable[[], Any]:
    """Return the loading of images from a list."""
    more |= {"captions": folder / f"captions-{n}.txt"} if captions else {}
    return partial(load, folder, n, n_classes, **more)


def _disjoint(folder: Path, n: int, n_classes: int) -> Callable[[], Any]:
    dataset = load(folder, n, n_classes)
    # a new store each time: a repeat that found one would measure nothing
    return lambda: check_disjoint(dataset, size=SIDE, cache=mkdtemp(dir=folder))


def _digest(folder: Path, n: int, n_classes: int) -> Callable[[], Any]:
    return partial(label_digest, split_of(n, n_classes))


def _order(folder: Path, n: int, n_classes: int) -> Callable[[], Any]:
    return partial(Plan(n, BATCH, 1, 1, 0).micro_batches, 0)


def _class_aware(folder: Path, n: int, n_classes: int) -> Callable[[], Any]:
    targets = targets_of(n, n_classes)
    return lambda: class_aware(targets)(0, 0)


def _carve(folder: Path, n: int, n_classes: int) -> Callable[[], Any]:
    return partial(carve_validation, targets_of(n, n_classes), 0.1, 0)


def _evaluate(folder: Path, n: int, n_classes: int) -> Callable[[], Any]:
    targets = targets_of(n, n_classes)
    scores = np.random.default_rng(0).random(targets.shape, dtype=np.float32)
    return partial(evaluate, scores, targets, targets.sum(0, dtype=np.int64))


def _predictions(folder: Path, n: int, n_classes: int) -> Callable[[], Any]:
    split = split_of(n, n_classes)
    scores = np.random.default_rng(0).random(split.targets.shape, dtype=np.float32)
    run = Run(folder / f"run-{n}-{n_classes}", kind="scale", config={})
    return partial(run.save_predictions, split.ids, scores, split.targets, [f"kind-{i}" for i in range(n_classes)])


def _scored(folder: Path, n: int, n_classes: int) -> Callable[[], Any]:
    return _evaluate(folder, 1_000, n_classes)


def _result(folder: Path, n: int, n_classes: int) -> Callable[[], Any]:
    result = _evaluate(folder, 100, n_classes)()
    return lambda: write_json(folder / f"result-{n_classes}.json", result.as_dict())


def tiny_clip(folder: Path) -> Clip:
    """Return a CLIP of one small layer, with random weights, for images of ``SIDE`` pixels."""
    model = {**TINY["model_cfg"], "vision_cfg": {"image_size": SIDE, "layers": 1, "width": 64, "patch_size": 4}}
    path = folder / "tiny.json"
    path.write_text(json.dumps({**TINY, "model_cfg": model}), encoding="utf-8")
    return load_clip(path)


def _texts(folder: Path, n: int, n_classes: int) -> Callable[[], Any]:
    clip, names = tiny_clip(folder), [f"kind-{i}" for i in range(n_classes)]
    return torch.no_grad()(partial(hand_crafted, clip, names, "a photo of a {}."))


def _update(folder: Path, n: int, n_classes: int, *, stage: str) -> Callable[[], Any]:
    clip, teacher, names = tiny_clip(folder), tiny_clip(folder), [f"kind-{i}" for i in range(n_classes)]
    experiment, targets = get_recipe("scenes"), torch.from_numpy(targets_of(BATCH, n_classes)).float()
    config = getattr(experiment, stage)
    counts = torch.full((n_classes,), 50)
    objective = Objective(config, experiment.score, counts, 1_000)
    generator = torch.Generator().manual_seed(0)
    if stage == "stage1":
        task: Any = DualViewAlignment(clip, teacher, names, objective, experiment)
        images = torch.randint(0, 256, (BATCH, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
        batch: dict[str, Any] = {"images": images, "targets": targets}
    else:
        task = PromptTuning(clip, names, hand_crafted(clip, names, experiment.template), objective, experiment, counts)
        encoded = torch.randn(BATCH, 1 + 16, clip.embed_dim, generator=generator)
        batch = {"features": ImageFeatures(encoded[:, 0], encoded[:, 1:]), "targets": targets}
    optimizer = torch.optim.AdamW(task.parameter_groups())

    def step() -> None:
        torch.stack(list(task.losses(batch).values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _losses(folder: Path, n: int, n_classes: int) -> Callable[[], Any]:
    targets = torch.from_numpy(targets_of(BATCH, n_classes))
    losses = [build_loss(name, torch.full((n_classes,), 50), 1_000) for name in LOSSES]
    logits = torch.zeros(BATCH, n_classes, requires_grad=True)
    return lambda: torch.stack([loss(logits, targets) for loss in losses]).sum().backward()


def _figures(folder: Path, n: int, n_classes: int) -> Callable[[], Any]:
    names, counts = [f"kind-{i}" for i in range(n_classes)], np.arange(1, n_classes + 1)
    changes = [
        Interval(estimate=c % 7 - 3.0, low=c % 7 - 4.0, high=c % 7 - 2.0, level=0.95, per_seed=()) for c in counts
    ]

    def draw() -> None:
        for figure in (class_frequency(names, counts), class_change(names, counts, changes)):
            figure_bytes(figure, "png")

    return draw


BY_IMAGES: Mapping[str, tuple[Case, int]] = {  # and the most images that are measured
    "load a CSV": (loading, 1_000_000),
    "load published lists": (partial(loading, form="txt"), 1_000_000),
    "load published lists with captions": (partial(loading, form="txt", captions=True), 1_000_000),
    "load COCO json": (partial(loading, form="json"), 1_000_000),
    "load a CSV, a tenth for validation": (partial(loading, val=0.1), 1_000_000),
    "load a CSV, decode and skip": (partial(loading, on_error="skip"), 100_000),
    "splits disjoint by content, with the image store": (_disjoint, 100_000),
    "digest of ids and labels": (_digest, 1_000_000),
    "order of an epoch": (_order, 1_000_000),
    "order of an epoch, class-aware": (_class_aware, 1_000_000),
    "mAP and groups": (_evaluate, 1_000_000),
    "predictions.npz": (_predictions, 1_000_000),
}
BY_CLASSES: Mapping[str, Case] = {
    "load a CSV": partial(loading, require_images=False),
    "load COCO json": partial(loading, form="json", require_images=False),
    "digest of ids and labels": _digest,
    "order of an epoch, class-aware": _class_aware,
    "validation carved": _carve,
    "text features, packed prompts": _texts,
    "update of stage 1, batch 32": partial(_update, stage="stage1"),
    "update of stage 2, batch 32": partial(_update, stage="stage2"),
    "all losses and gradients, batch 32": _losses,
    "mAP and groups of 1,000 images": _scored,
    "result.json": _result,
    "two figures of all classes": _figures,
}


def measured(case: Case, folder: Path, n: int, n_classes: int, repeats: int = 3) -> tuple[float, float]:
    """Return CPU seconds, the least of the repeats where they are short, and MiB above what was held before."""
    torch.set_num_threads(1)
    os.environ["HPDVAL_CACHE"] = str(folder / "cache")
    run, seconds = case(folder, n, n_classes), []

    def timed() -> Any:
        began = cpu_seconds()
        kept = run()
        seconds.append(cpu_seconds() - began)
        return kept

    memory = peak_memory(timed)
    for _ in range(repeats - 1 if seconds[0] < 0.5 else 0):
        timed()
    return min(seconds), memory


def training(folder: Path, n: int) -> list[tuple[str, float, float]]:
    """Return (phase, CPU seconds, MiB) of a training on n images: one epoch of each stage, and of a rival."""
    torch.set_num_threads(1)
    os.environ["HPDVAL_CACHE"] = str(folder / "cache")
    clip, found, rows, memory = tiny_clip(folder), {}, [], []
    short = {"epochs": 1, "batch_size": 256}
    experiment = get_recipe("scenes")
    rival = replace(linear_probe(), rival=replace(linear_probe().rival, **short))
    experiment = replace(
        experiment,
        stage1=replace(experiment.stage1, **short),
        stage2=replace(experiment.stage2, init="normal", **short),
    )

    def phase(name: str, run: Callable[[], Any]) -> None:
        def kept() -> Any:
            began = cpu_seconds()
            found[name] = run()
            rows.append((name, cpu_seconds() - began))
            return found[name]

        memory.append(peak_memory(kept))

    show = {"show": False, "device": "cpu"}
    one, two, three = (folder / f"training-{n}" / name for name in ("stage1", "stage2", "probe"))
    phase("load", lambda: load(folder, n, CLASSES))
    dataset = found["load"]
    phase("image store", lambda: ImageStore.open(dataset.train, SIDE, mode=experiment.resize))
    phase("stage 1: views, updates, test scores", lambda: train_stage1(dataset, experiment, run=one, clip=clip, **show))
    phase(
        "stage 2: features, updates, test scores", lambda: train_stage2(dataset, experiment, run=two, start=one, **show)
    )
    phase("linear probe, the same", lambda: train_rival(dataset, rival, run=three, clip=clip, **show))
    return [(*row, peak) for row, peak in zip(rows, memory, strict=True)]


# -- the report ----------------------------------------------------------------------------------------------------


def alone(function: Callable[..., Any], *arguments: Any, quick: bool = False) -> Any:
    """Return what a function returns in a process of its own, so that its memory is its own; if quick, in this one."""
    if quick:
        return function(*arguments)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:  # nothing imported again
        return pool.submit(function, *arguments).result()


def rows_of(name: str, axis: str, sizes: Sequence[int], results: Sequence[tuple[float, float]]) -> list[dict[str, str]]:
    """Return the lines of one case, with the exponents of the last three sizes on its last."""
    seconds, memory = zip(*results, strict=True)
    print(f"scale: {name}, {sizes[-1]:,} {axis}: {seconds[-1]:.2f} s, {memory[-1]:,.0f} MiB", flush=True)
    rows = []
    for i, size in enumerate(sizes):
        last = i == len(sizes) - 1 and i > 0
        of_time = exponent(sizes[-3:], seconds[-3:]) if last else float("nan")
        of_memory = exponent(sizes[-3:], memory[-3:]) if last else float("nan")
        rows.append(
            {
                "what": name,
                axis: f"{size:,}",
                "CPU time, s": f"{seconds[i]:.3f}",
                "memory, MiB": f"{memory[i]:,.1f}",
                "exponent of time": "" if not last else f"{of_time:.2f}" if of_time == of_time else "-",
                "exponent of memory": "" if not last else f"{of_memory:.2f}" if of_memory == of_memory else "-",
            }
        )
    return rows


def by_images(folder: Path, sizes: Sequence[int], repeats: int, quick: bool) -> pd.DataFrame:
    """Measure every case of ``BY_IMAGES`` at the sizes that it allows."""
    rows = []
    for name, (case, most) in BY_IMAGES.items():
        chosen = [n for n in sizes if n <= most]
        rows += rows_of(
            name, "images", chosen, [alone(measured, case, folder, n, CLASSES, repeats, quick=quick) for n in chosen]
        )
    return pd.DataFrame(rows)


def by_classes(folder: Path, n: int, sizes: Sequence[int], repeats: int, quick: bool) -> pd.DataFrame:
    """Measure every case of ``BY_CLASSES`` on n images."""
    rows = []
    for c in sizes:
        (folder / f"{c}").mkdir()
        write_lists(folder / f"{c}", n, c, ("csv", "json"))
    for name, case in BY_CLASSES.items():
        results = [alone(measured, case, folder / f"{c}", n, c, repeats, quick=quick) for c in sizes]
        rows += rows_of(name, "classes", sizes, results)
    return pd.DataFrame(rows)


def by_phase(folder: Path, sizes: Sequence[int], quick: bool) -> pd.DataFrame:
    """Measure the phases of a training."""
    results = [alone(training, folder, n, quick=quick) for n in sizes]
    rows: list[dict[str, str]] = []
    for phases in zip(*results, strict=True):
        rows += rows_of(phases[0][0], "images", sizes, [(seconds, memory) for _, seconds, memory in phases])
    return pd.DataFrame(rows)


BEFORE: Mapping[str, tuple[Callable[[Split], Any], Callable[[Split], Any]]] = {  # as it was once, and as it is
    "digest of ids and labels": (lambda split: digest(split.ids, split.targets.tolist()), label_digest),
    "images of each class": (
        lambda split: [np.flatnonzero(column) for column in split.targets.T],
        lambda split: class_members(split.targets),
    ),
    "targets that batches are taken from": (
        lambda split: split.targets.astype(np.float32),
        lambda split: split.targets.copy(),
    ),
}


def _way(name: str, which: int, folder: Path, n: int, n_classes: int) -> Callable[[], Any]:
    return partial(BEFORE[name][which], split_of(n, n_classes))


def before_and_after(folder: Path, n: int, n_classes: int, repeats: int, quick: bool) -> pd.DataFrame:
    """Measure both ways of every entry of ``BEFORE``."""
    rows = []
    for name in BEFORE:
        for which, label in enumerate(("before", "now")):
            case = partial(_way, name, which)
            seconds, memory = alone(measured, case, folder, n, n_classes, repeats, quick=quick)
            rows.append({"what": name, "": label, "CPU time, s": f"{seconds:.3f}", "memory, MiB": f"{memory:,.1f}"})
    return pd.DataFrame(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the report."""
    chosen = options(__doc__ or "", arguments, repeats=3)
    quick, repeats = chosen.quick, chosen.repeats
    sizes, classes = (1_000, 10_000, 100_000, 1_000_000), (10, 100, 1_000, 10_000)
    trained = 20_000, 200_000, 1_000_000
    if quick:
        sizes, classes, trained = (100,), (5,), (100,)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_images(folder, "train", sizes[-1])
        write_images(folder, "test", max(100, sizes[-1] // 100))
        for n in {*sizes, *trained}:
            write_lists(folder, n, CLASSES)
        tables = {
            "Images": by_images(folder, sizes, repeats, quick),
            "Classes": by_classes(folder, 100 if quick else 50_000, classes, repeats, quick),
            "One epoch of training": by_phase(folder, trained, quick),
            "Before and after, 5,000 images of 5,000 classes": before_and_after(
                folder, *((50, 50) if quick else (5_000, 5_000)), repeats, quick
            ),
        }
    write_report(
        "scale",
        chosen,
        title="Scale: a million images, ten thousand classes",
        compared=f"Against images: {CLASSES} classes, three labels of a long tail each, files of {SIDE} x {SIDE} "
        "pixels (hard links), a test split of a hundredth. Against classes: 50,000 images, no files. Training: "
        "a CLIP of one small layer, batches of 256. The exponent b is that of the line log y = a + b log x through the "
        "last three sizes: 1 is linear, 2 would be quadratic.",
        tables=tables,
        notes=[
            f"Every line is measured in a process of its own; the least of {repeats} repeats, one where that takes "
            "more than half a second",
            "Memory above what was held before the call",
            "One thread; CPU time, which other work on the machine changes little",
        ],
    )


if __name__ == "__main__":
    main()
