"""Every file that is written and read again, damaged on disk: named in one line, made again, or the same result.

Each file meets each damage and is then read by whoever reads it; the result is compared with that of the whole file.
What cannot be noticed is not injected: a run's folder exchanged as a whole, manifest included, is another run.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from faults import Faults
from PIL import Image
from toys import TINY, coloured

import hpdval
from hpdval.attempt import attempt
from hpdval.cli import main
from hpdval.comparisons import SWEEP
from hpdval.data import ImageStore
from hpdval.data.dataset import Dataset, Split
from hpdval.errors import HpdvalError, RunError
from hpdval.files import read_sealed, write_json, write_sealed
from hpdval.lab.live.follow import Follower
from hpdval.metrics.localisation import Localisation
from hpdval.models import Clip, load_clip
from hpdval.recipes import get_recipe
from hpdval.records import read_checked
from hpdval.report.folder import write_folder
from hpdval.report.gather import gather
from hpdval.run import Run, read_manifest, read_metrics, read_predictions, read_result
from hpdval.scoring import load_run
from hpdval.scoring.features import BATCH, FeatureStore
from hpdval.scoring.runs import load_scorer
from hpdval.stopping import Interrupted
from hpdval.tables import cost_table, results_table
from hpdval.tables.inventory import list_runs
from hpdval.tracking import STATE, mirror_runs
from hpdval.training.trainer import Trainer

pytestmark = pytest.mark.fault

NAMED, REMADE, BEFORE = "named in one line", "remade, same result", "the checkpoint before it, same result"
SAME, SHORTER, UNFINISHED = "same result", "the records before the cut", "no finished run any more"
CLASSES = ("red", "green", "blue")

# -- damages: what a file's bytes become; None removes it --------------------------------------------------------------


@dataclass(frozen=True)
class Damage:
    """Bytes before to bytes after, by a generator and the same file of another run; ``random``: each seed differs."""

    name: str
    strike: Callable[[np.random.Generator, bytes, bytes | None], bytes | None]
    random: bool = True


def flipped(rng: np.random.Generator, data: bytes, count: int) -> bytes:
    """``count`` bits; half of the time near the ends, where headers and directories are."""
    found = bytearray(data)
    for _ in range(count):
        near = rng.random() < 0.5
        place = int(rng.integers(min(len(data), 600) if near else len(data)))
        found[-1 - place if near and rng.random() < 0.5 else place] ^= 1 << int(rng.integers(8))
    return bytes(found)


def zeroed(rng: np.random.Generator, data: bytes) -> bytes:
    """The whole file, or one block of the disk."""
    start = 0 if rng.random() < 0.3 else int(rng.integers(len(data))) // 512 * 512
    stop = len(data) if start == 0 else min(start + 512, len(data))
    return data[:start] + bytes(stop - start) + data[stop:]


def other_value(rng: np.random.Generator, data: bytes) -> bytes | None:
    """One value of a JSON file, or of one of its lines, becomes another, perhaps of another type."""
    lines = data.splitlines(keepends=True) if data.count(b"\n{") else [data]
    which = int(rng.integers(len(lines)))
    try:
        whole = json.loads(lines[which])
    except ValueError:
        return data
    places: list[tuple[Any, Any]] = []

    def collect(value: Any) -> None:
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            places.append((value, key))
            collect(value[key])

    collect(whole)
    holder, key = places[int(rng.integers(len(places)))]
    old = holder[key]
    near: list[Any] = [old + 1, old * 0.5] if isinstance(old, int | float) and not isinstance(old, bool) else []
    near += [f"{old}x", old[1:]] if isinstance(old, str) and old else []
    holder[key] = [None, True, 0, -1, 1e300, "", "x", [], {}, [1], {"a": 1}, *near][int(rng.integers(11 + len(near)))]
    lines[which] = json.dumps(whole, ensure_ascii=False).encode() + b"\n"
    return b"".join(lines)


DAMAGES = (
    Damage("truncated", lambda rng, data, twin: data[: int(rng.integers(len(data)))]),
    Damage("bit flipped", lambda rng, data, twin: flipped(rng, data, 1)),
    Damage("bits flipped", lambda rng, data, twin: flipped(rng, data, int(rng.integers(2, 17)))),
    Damage("zeroed", lambda rng, data, twin: zeroed(rng, data)),
    Damage("JSON value changed", lambda rng, data, twin: other_value(rng, data)),
    Damage("emptied", lambda rng, data, twin: b"", random=False),
    Damage("removed", lambda rng, data, twin: None, random=False),
    Damage("swapped for another run's", lambda rng, data, twin: twin, random=False),
)


# -- the files: some finished and some interrupted runs, stores, a sweep, a report -------------------------------------


@dataclass(frozen=True)
class Seen:
    """What a reader made of files: its result line by line, and what it told of problems."""

    result: tuple[str, ...]
    told: tuple[str, ...] = ()


@dataclass
class World:
    """A folder with everything in it; ``other`` is one of the same kinds by another seed."""

    folder: Path
    dataset: Dataset
    clip: Clip
    stored: tuple[Split, Split]  # images in stores, and those of another store of the same size
    control: dict[Any, Seen] = field(default_factory=dict)
    places: dict[Any, Path] = field(default_factory=dict)

    def train(self, folder: Path, seed: int = 0, stages: str = "sequence") -> dict[str, Path]:
        values: dict[str, Any] = {"stages": stages, "stage1.epochs": 2, "stage1.batch_size": 16}
        values |= {"stage2.epochs": 2, "stage2.init": "normal"}
        name, values = ("linear-probe-small", {"rival.epochs": 2}) if stages == "rival" else ("scenes", values)
        experiment = get_recipe(name, dataset="colours", **values, seed=seed)
        return hpdval.train(self.dataset, experiment, run=folder, clip=self.clip, device="cpu", show=False)


def pictures(folder: Path, name: str, n: int, seed: int) -> None:
    split = coloured(n, seed)
    (folder / name).mkdir(parents=True)
    rows = ["path,labels"]
    for i in range(n):
        Image.fromarray(split.read(i)).save(folder / name / f"{i}.png")
        labels = ";".join(c for c, has in zip(CLASSES, split.targets[i], strict=True) if has)
        rows.append(f"{name}/{i}.png,{labels}")
    (folder / f"{name}.csv").write_text("\n".join(rows) + "\n")
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")


def interrupt(world: World, folder: Path, seed: int, stages: str) -> None:
    """Train until SIGTERM comes in the last epoch: two checkpoints are left."""
    step = Trainer.step

    def stopped(self: Trainer, batches: Sequence[Any]) -> None:
        if self.update == self.plan.updates_per_epoch + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", stopped)
        with pytest.raises(Interrupted):
            world.train(folder, seed, stages)


def make_sweep(folder: Path, runs: dict[str, Path], title: str) -> None:
    """As ``hpdval sweep`` leaves it: two settings, a run each."""
    cells, entries = [], {}
    for i, (label, run) in enumerate(runs.items()):
        name = f"run-{i}"
        shutil.copytree(run, folder / "runs" / name)
        values = {"epochs": i}
        about = {"notebook": "01_look_at_the_data.ipynb", "key": f"{i}{title}", "parameters": values}
        write_sealed(folder / "runs" / name / "notebook.json", {**about, "status": "done", "seconds": 2.5 + i})
        cells.append({"label": label, "value": 0.5 + i, "runs": {"0": name}})
        entries[name] = {"seed": 0, "values": values, "needs": None, "status": "done", "seconds": 2.5 + i}
    one = {"name": "epochs", "title": title, "cells": cells, "reference": next(iter(runs)), "axis": "epochs"}
    record = {"title": title, "command": "hpdval sweep", "comparisons": [one], "runs": entries}
    write_sealed(folder / SWEEP, record)


def localisation(seed: int) -> Localisation:
    rng = np.random.default_rng(seed)
    maps = [(i, i % 3, (rng.random((8, 8)) > 0.5, True), rng.random((8, 8))) for i in range(30)]
    return Localisation.measure(maps)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("damage")
    for name, n, seed in (("train", 48, 1), ("test", 24, 2)):
        pictures(folder / "data", name, n, seed)
    (folder / "tiny.json").write_text(json.dumps(TINY))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HPDVAL_CACHE", str(folder / "cache"))
        dataset = hpdval.load_dataset(folder / "data" / "train.csv", test="test.csv")
        clip = load_clip(folder / "tiny.json", seed=0).requires_grad_(False)
        made = World(folder, dataset, clip, (coloured(BATCH + 20, 5), coloured(BATCH + 20, 6)))
        for seed, name in ((0, "done"), (1, "other")):
            about = {"source": "colours", "recipe": "scenes", "runs": ["zero-shot", "stage1", "stage2"], "seed": seed}
            with attempt(folder / name, about):
                runs = made.train(folder / name, seed)
            made.train(folder / f"{name}-probe", seed, "rival")
            interrupt(made, folder / f"{name}-cut", seed, "stage1")
            interrupt(made, folder / f"{name}-cut-probe", seed, "rival")
            make_sweep(folder / f"{name}-sweep", runs, title=f"sweep {seed}")
            localisation(seed).save(folder / f"{name}.npz")
            files = {"index.html": b"page", f"tables/{name}.csv": b"1,2\n"}
            write_folder(folder / f"{name}-report", "a report", files, {"seed": seed})
            mirror_runs(lambda runs=runs: [*runs.values()], folder / f"{name}-mirror", below=folder, tell=str)
        yield made


# -- who reads --------------------------------------------------------------------------------------------------------


def arrays(**found: np.ndarray) -> tuple[str, ...]:
    return tuple(
        f"{name} {array.dtype} {array.shape} {hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()}"
        for name, array in found.items()
    )


def seen_predictions(world: World, run: Path) -> Seen:
    return Seen(arrays(**read_predictions(run)))


def seen_result(world: World, run: Path) -> Seen:
    return Seen((repr(read_result(run)),))


def seen_manifest(world: World, run: Path) -> Seen:
    return Seen((repr(read_manifest(run)),))


def seen_metrics(world: World, run: Path) -> Seen:
    return Seen(tuple(map(repr, read_metrics(run))))


def seen_data(world: World, run: Path) -> Seen:
    return Seen((repr(read_checked(run, "data.json")),))


def scores(scorer: Any, world: World) -> Seen:
    about = (repr(scorer.classes), scorer.method, scorer.precision, scorer.selection, repr(scorer.trained))
    return Seen((*about, *arrays(scores=scorer.score(world.dataset.test, show=False))))


def seen_run(world: World, run: Path) -> Seen:
    return scores(load_run(run, device="cpu"), world)


def seen_scorer(world: World, run: Path) -> Seen:
    return scores(load_scorer(run, device="cpu"), world)


def finished(folder: Path) -> Seen:
    """All that counts of the runs below a folder: every result, and the hash of every file that numbers come from."""
    lines = []
    for run in sorted(path.parent for path in folder.glob("*/manifest.json")):
        read_predictions(run), read_metrics(run)
        result = {name: value for name, value in read_result(run).items() if name != "trained"}  # which holds seconds
        kept = ("predictions.npz", "metrics.jsonl", "clip.safetensors", "model.safetensors")
        files = read_manifest(run)["files"]
        for name in kept[2:]:
            assert hashlib.sha256((run / name).read_bytes()).hexdigest() == files[name]
        plain = {k: files[k] for k in kept if k != "metrics.jsonl"}
        lines += [f"{run.name} {plain}", repr(result), *map(repr, map(untimed, read_metrics(run)))]
    return Seen(tuple(lines))


def untimed(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if "seconds" not in name}


def trained(world: World, run: Path, stages: str = "sequence") -> Seen:
    """The same command in the same folder: it continues, or finds that all is done."""
    world.train(run.parent, stages=stages)
    return finished(run.parent)


def trained_stage1(world: World, run: Path) -> Seen:
    return trained(world, run, "stage1")


def trained_rival(world: World, run: Path) -> Seen:
    return trained(world, run, "rival")


def seen_table(world: World, run: Path) -> Seen:
    folders = [run.parent / "zero-shot", run]
    table = results_table({path.name: path for path in folders})
    cost = cost_table({path.name: path for path in folders})
    return Seen((table.to_csv(), cost.to_csv(), repr(gather(folders).comparisons)))


def cells(row: Any) -> str:
    """What a row says; of which type a column is depends on other rows."""
    known = {name: value for name, value in row.items() if pd.notna(value)}
    return repr({n: float(v) if isinstance(v, int | float | np.number) else str(v) for n, v in known.items()})


def seen_list(world: World, run: Path) -> Seen:
    """``hpdval runs`` to a CSV: rows that are done are the result, the others are told."""
    table = list_runs(run.parent)
    rows = [(row["status"], row["folder"], cells(row)) for _, row in table.iterrows()]
    good = tuple(text for status, _, text in rows if status == "done")
    return Seen(good, tuple(f"{folder}: {status}" for status, folder, _ in rows if status != "done"))


def seen_live(world: World, run: Path) -> Seen:
    snapshot = Follower(run.parent).look()
    lines = []
    for one in snapshot.stages:
        facts = (one.name, one.state, one.update, one.updates, one.epoch, one.epochs, dict(one.last), one.result)
        lines += [repr(facts), *map(repr, one.records)] if one.state == "done" else [*map(repr, one.records)]
    problems = [*snapshot.problems, *(one.reason for one in snapshot.stages if one.state in ("failed", "damaged"))]
    problems += [f"{one.folder} is {one.state}" for one in snapshot.stages if one.state in ("waiting", "interrupted")]
    return Seen(tuple(lines), tuple(problems))


def seen_mirror(world: World, run: Path) -> Seen:
    """TensorBoard's files of a run, written anew."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    told: list[str] = []
    target = world.folder / "fresh-mirror"
    shutil.rmtree(target, ignore_errors=True)
    mirror_runs(lambda: [run], target, below=run.parent, tell=told.append)
    told = [line for line in told if "left out" in line]
    lines = [
        repr((event.step, [(v.tag, v.tensor.float_val[:]) for v in event.summary.value]))
        for path in sorted(target.rglob("events*"))
        for event in EventFileLoader(str(path)).Load()
    ]
    return Seen(tuple(lines), tuple(told))


def command(*words: str) -> None:
    """Run ``hpdval`` in this process; its one line on standard error becomes the error that it was."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    lines = [line for line in err.getvalue().splitlines() if line.startswith("hpdval: ")]
    assert code in (0, 2)
    assert "Traceback" not in err.getvalue()
    if code:
        raise HpdvalError(lines[-1])


def pages(folder: Path) -> tuple[str, ...]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple(f"{p.relative_to(folder)} {hashlib.sha256(p.read_bytes()).hexdigest()}" for p in files)


def seen_report(world: World, run: Path) -> Seen:
    target = world.folder / "fresh-report"
    shutil.rmtree(target, ignore_errors=True)
    words = ("--resamples", "20", "--permutations", "20", "--figures", "svg")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "cpu_count", lambda: 1)  # no process pool for so little
        command("report", str(run.parent / "zero-shot"), str(run), "--out", str(target), *words)
    return Seen(pages(target))


def seen_errors(world: World, run: Path) -> Seen:
    target = world.folder / "fresh-errors"
    shutil.rmtree(target, ignore_errors=True)
    command("errors", str(run), "--out", str(target), "-n", "1", "--resamples", "20", "--device", "cpu")
    return Seen(pages(target))


def seen_images(world: World, path: Path) -> Seen:
    store = ImageStore.open(world.stored[0], 32)
    return Seen((*store.hashes, *arrays(images=store.images)))


def seen_features(world: World, path: Path) -> Seen:
    store = FeatureStore.open(world.clip, world.stored[0], show=False)
    return Seen(arrays(tokens=store.tokens.view(torch.int16).numpy()))


def seen_continued(world: World, part: Path) -> Seen:
    """The store is gone; what a killed process left of it is taken up."""
    store = FeatureStore.open(world.clip, world.stored[0], show=False)
    store.path.unlink()
    return seen_features(world, part)


def seen_sweep(world: World, record: Path) -> Seen:
    gathered = gather([record.parent])
    assert all(cell.runs for one in gathered.comparisons for cell in one.cells)
    return Seen((repr(gathered),))


def seen_reported(world: World, manifest: Path) -> Seen:
    files = {"index.html": b"page", "tables/new.csv": b"3,4\n"}
    write_folder(manifest.parent, "a report", files, {"seed": 0})
    return Seen(pages(manifest.parent))


def seen_mirrored(world: World, state: Path) -> Seen:
    """An export that goes on in a folder of TensorBoard's files: readers see every number once, and no other."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = world.folder / "done" / "stage1"
    mirror_runs(lambda: [run], state.parents[2], below=world.folder, tell=str)
    reader = EventAccumulator(str(state.parent), size_guidance={"scalars": 0, "tensors": 0})
    reader.Reload()
    tags = sorted(reader.Tags()["scalars"])
    return Seen(tuple(repr([tag, *((e.step, e.value) for e in reader.Scalars(tag))]) for tag in tags))


def seen_localisation(world: World, path: Path) -> Seen:
    found = Localisation.load(path)
    parts = {name: getattr(found, name) for name in ("image", "cls", "size", "by_mask")}
    return Seen((*arrays(**parts, **dict(found.values)), repr(found.tolerance)))


Reader = Callable[[World, Path], Seen]
SWAPPED = "swapped for another run's"


@dataclass(frozen=True)
class File:
    """A file, who reads it often (cheap) and seldom (costly).

    ``copied``: readers write, too, and get a copy of the first folder of ``path``; ``itself``: they are given the file,
    not its folder; ``unless``: damages that nobody could notice.
    """

    where: str
    path: str  # below the world; "done" in it becomes "other" for the file of another run
    often: tuple[Reader, ...]
    seldom: tuple[Reader, ...] = ()
    copied: bool = False
    itself: bool = False
    unless: tuple[str, ...] = ()
    seeds: int = 40  # of each damage that is a chance

    def place(self, world: World, root: str = "done") -> Path:
        stores: dict[str, Callable[[Split], Path]] = {
            "IMAGES": lambda split: ImageStore.open(split, 32).path,
            "FEATURES": lambda split: FeatureStore.open(world.clip, split, show=False).path,
        }
        if self.path == "PART":
            return half_made(FeatureStore.open(world.clip, world.stored[root != "done"], show=False))
        if self.path in stores:
            if (self.path, root) not in world.places:
                world.places[self.path, root] = stores[self.path](world.stored[root != "done"])
            return world.places[self.path, root]
        return world.folder / self.path.replace("done", root)


def half_made(store: FeatureStore) -> Path:
    """What a process leaves that is killed after its first batch."""
    part = store.path.with_name(f".{store.path.name}.part")
    part.write_bytes(store.path.read_bytes()[: store.record * BATCH + 100])
    return part


WRITERS = (trained, trained_stage1, trained_rival)
WHOLE: tuple[Reader, ...] = (seen_report, seen_errors)


def of_finished(run: str, again: Reader, whole: tuple[Reader, ...] = ()) -> list[File]:
    """The files of a finished run, each with those who read it."""
    stem = run.split("/")[-1]
    shown = (seen_list, seen_live)
    weights = [
        File("weights", f"{run}/{name}", (seen_run, seen_scorer), (again, *whole[1:]))
        for name in ("clip.json", "clip.safetensors", "model.safetensors")
    ]
    return [
        File(
            "manifest",
            f"{run}/manifest.json",
            (seen_manifest, *shown, seen_predictions, seen_result, seen_metrics, seen_table, seen_mirror, seen_run),
            (again, *whole),
        ),
        File("run record", f"{run}/run.json", (*shown, seen_manifest), (again,)),
        File("metrics", f"{run}/metrics.jsonl", (seen_metrics, seen_live, seen_mirror), (again, *whole[:1])),
        File("checkpoint", f"{run}/checkpoint-{stem}.safetensors", (seen_manifest, seen_run), (again,), seeds=10),
        File("predictions", f"{run}/predictions.npz", (seen_predictions, seen_table), (again, *whole)),
        File("result", f"{run}/result.json", (seen_result, *shown, seen_table, seen_mirror), (again, *whole)),
        *([File("data record", f"{run}/data.json", (seen_data,), (seen_errors,))] if whole else []),
        *weights,
    ]


def of_interrupted(run: str, again: Reader) -> list[File]:
    """The files that a resumed run reads; both of its checkpoints."""
    stem = run.split("/")[-1]
    names = ("run.json", "metrics.jsonl", f"checkpoint-{stem}.safetensors", f"checkpoint-{stem}.previous.safetensors")
    kinds = ("run record", "metrics", "checkpoint", "checkpoint")
    return [File(where, f"{run}/{name}", (again,), seeds=4) for where, name in zip(kinds, names, strict=True)]


def within(reader: Reader) -> Reader:
    """For those who look below a folder."""
    return lambda world, folder: reader(world, folder / "any")


FILES = [
    *of_finished("done/stage1", trained, WHOLE),
    *of_finished("done/stage2", trained),
    *of_finished("done-probe/probe", trained_rival),
    *of_interrupted("done-cut/stage1", trained_stage1),
    *of_interrupted("done-cut-probe/probe", trained_rival),
    File("metrics", "done-cut/stage1/metrics.jsonl", (seen_metrics, seen_live), unless=(SWAPPED,)),
    # whose records these are nobody can tell but by the folder in which they lie
    File("training record", "done/train.json", (within(seen_live),), unless=(SWAPPED,)),
    File("notebook record", "done-sweep/runs/run-0/notebook.json", (within(seen_list),), unless=(SWAPPED,)),
    File("sweep record", f"done-sweep/{SWEEP}", (seen_sweep,), itself=True, unless=(SWAPPED,)),
    File("localisation record", "done.npz", (seen_localisation,), itself=True, unless=(SWAPPED,)),
    File("image store", "IMAGES", (seen_images,), itself=True),
    File("feature store", "FEATURES", (seen_features,), itself=True),
    File("feature store, half made", "PART", (seen_continued,), itself=True),
    File("report", "done-report/manifest.json", (seen_reported,), copied=True, itself=True),
    File("TensorBoard's state", f"done-mirror/done/stage1/{STATE}", (seen_mirrored,), copied=True, itself=True),
]


# -- the check --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def own_copy(world: World, file: File, path: Path, reader: Reader) -> Iterator[Path]:
    """Give the file, in a copy of its folder where the reader writes."""
    if not (file.copied or reader in WRITERS):
        yield path
        return
    inside = path.relative_to(world.folder)
    copied = world.folder / "copy" / inside.parts[0]

    def link_or_copy(source: str, target: str) -> None:  # weights are replaced, never written to
        (os.link if source.endswith(".safetensors") else shutil.copy2)(source, target)

    shutil.copytree(world.folder / inside.parts[0], copied, copy_function=link_or_copy)
    try:
        yield world.folder / "copy" / inside
    finally:
        shutil.rmtree(copied)


def control(world: World, file: File, reader: Reader) -> Seen:
    """What the reader makes of the whole file, once."""
    path = file.place(world)
    key = path if file.itself else path.parent, reader
    if key not in world.control:
        with own_copy(world, file, path, reader) as own:
            seen = reader(world, own if file.itself else own.parent)
        assert not seen.told, "there is nothing to tell of whole files"
        assert seen.result
        world.control[key] = seen
    return world.control[key]


def verdict(file: File, path: Path, damage: Damage, read: Callable[[], Seen], whole: Seen) -> str:
    """Return what came of a damage, one of those above; anything else fails."""

    def named(text: str) -> bool:
        return "\n" not in text and (path.name in text or str(path.parent) in text)

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            seen = read()
        except HpdvalError as error:
            seen = Seen((), (str(error),))
    if seen.told:
        assert any(map(named, seen.told)), seen.told
        assert set(seen.result) <= set(whole.result), "what is shown beside a problem is right"
        return NAMED
    if damage.name == "removed" and file.where in ("manifest", "run record") and seen.result != whole.result:
        assert set(seen.result) <= set(whole.result), "what makes a folder a finished run is gone"
        return UNFINISHED
    if file.unless and file.where == "metrics" and len(seen.result) < len(whole.result):
        assert seen.result == whole.result[: len(seen.result)], "of an unfinished run, what was written so far"
        return SHORTER
    assert seen.result == whole.result
    fallen_back = any(named(str(one.message)) for one in warned)
    if file.where == "checkpoint" and (fallen_back or (damage.name == "removed" and not path.exists())):
        return BEFORE
    return REMADE if fallen_back or damage.name == "removed" else SAME


def strike(world: World, file: File, damage: Damage, reader: Reader, seed: int, faults: Faults) -> bool:
    """Damage the file, have it read, and put it right again; False where there is nothing to damage."""
    whole = control(world, file, reader)
    path, rng = file.place(world), np.random.default_rng((seed, *damage.name.encode(), *file.path.encode()))
    data, twin = path.read_bytes(), file.place(world, "other").read_bytes() if damage.name == SWAPPED else None
    damaged = damage.strike(rng, data, twin)
    if damaged == data:
        return False
    with own_copy(world, file, path, reader) as own:
        own.unlink()  # the file may be linked
        if damaged is not None:
            own.write_bytes(damaged)
        try:
            with faults.injected(damage.name, file.where, "") as entry:
                read = partial(reader, world, own if file.itself else own.parent)
                entry.outcome = verdict(file, own, damage, read, whole)
        finally:
            if own == path:
                path.unlink(missing_ok=True)
                path.write_bytes(data)
    return True


def readers(file: File, damage: Damage, seeds: int) -> list[tuple[int, Reader]]:
    """Seeds and who reads: cheap readers in turn, a costly one last; what is no chance once for each reader."""
    everyone = (*file.often, *file.seldom) if seeds > 1 else file.often[:1]
    if damage.name == SWAPPED:  # without the manifest nobody can tell another head on the same encoder
        everyone = tuple(reader for reader in everyone if reader is not seen_scorer)
    if not damage.random:
        return [*enumerate(everyone)]
    turns = [(seed, file.often[seed % len(file.often)]) for seed in range(seeds)]
    if seeds > 1 and file.seldom:
        turns[-1] = seeds - 1, file.seldom[DAMAGES.index(damage) % len(file.seldom)]
    return turns


@pytest.mark.parametrize(
    ("file", "seeds"),
    [pytest.param(file, 1, id=file.path) for file in FILES]
    + [pytest.param(file, file.seeds, id=f"{file.path}-all", marks=pytest.mark.nightly) for file in FILES],
)
def test_a_damaged_file_is_named_or_made_again(world: World, faults: Faults, file: File, seeds: int) -> None:
    damages = [damage for damage in DAMAGES if damage.name not in file.unless]
    if seeds == 1 and file.often[0] in WRITERS:
        damages = damages[:1] if file.where == "run record" else damages[1:2]
    turns = [(damage, *turn) for damage in damages for turn in readers(file, damage, seeds)]
    struck = sum(strike(world, file, damage, reader, seed, faults) for damage, seed, reader in turns)
    assert struck >= len(turns) / 2


def test_where_no_checkpoint_is_whole_each_is_named(world: World, faults: Faults) -> None:
    """There is nothing to fall back on, and a start from nothing would pass for a continuation."""
    file = next(file for file in FILES if file.path == "done-cut/stage1/checkpoint-stage1.safetensors")
    path = file.place(world)
    with own_copy(world, file, path, trained_stage1) as own:
        for one in own.parent.glob("checkpoint-*"):
            data = one.read_bytes()
            one.unlink()
            one.write_bytes(flipped(np.random.default_rng(0), data, 1))
        names = [one.name for one in own.parent.glob("checkpoint-*")]
        assert len(names) == 2
        with (
            faults.injected("bit flipped", "both checkpoints", NAMED),
            pytest.warns(RuntimeWarning, match="trying the checkpoint before it"),
            pytest.raises(RunError, match="no checkpoint can be read") as caught,
        ):
            trained_stage1(world, own.parent)
        assert all(name in str(caught.value) for name in names)


def test_a_damaged_file_is_not_hashed_anew(world: World, faults: Faults) -> None:
    """A notebook that ends a finished run once more takes hashes again: not of what changed while nobody wrote."""
    file = next(file for file in FILES if file.path == "done/stage1/predictions.npz")
    path = file.place(world)
    start = read_sealed(path.parent / "run.json")
    with own_copy(world, file, path, trained) as own:
        damaged = flipped(np.random.default_rng(1), own.read_bytes(), 1)
        own.write_bytes(damaged)
        os.utime(own, (1e9, 1e9))
        with faults.injected("bit flipped", "predictions", NAMED):
            with (
                Run(own.parent, kind=start["kind"], config=start["config"], inputs=start["inputs"]) as run,
                pytest.raises(RunError, match=r"predictions\.npz differs from its hash"),
            ):
                run.finish()
            with pytest.raises(RunError, match=r"predictions\.npz differs from its hash"):
                read_predictions(own.parent)


def test_records_of_before_there_were_seals_are_read(world: World) -> None:
    run = world.folder / "done" / "stage1"
    old = world.folder / "old" / "stage1"
    shutil.copytree(run, old)
    for name in ("run.json", "manifest.json"):
        write_json(old / name, read_sealed(run / name))
    lines = [json.dumps(record) for record in read_metrics(run)]
    (old / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    manifest = read_sealed(old / "manifest.json")
    files = {name: hashlib.sha256((old / name).read_bytes()).hexdigest() for name in manifest["files"]}
    write_json(old / "manifest.json", {**manifest, "files": files})
    for reader in (seen_result, seen_predictions, seen_metrics, seen_run):
        assert reader(world, old) == reader(world, run)
