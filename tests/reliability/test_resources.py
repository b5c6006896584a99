"""Disks that are full, folders that cannot be written, losses that are not finite, workers of any number that die.

Whatever is being written when the room ends: one line with path and bytes, what stood there before byte for byte as it
was, and the same bytes as without the fault once there is room again.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_data_extract
import test_report
import torch
from conftest import ROOT
from faults import Faults
from fuzz import check_line
from processes import Family, wait_for
from processes import family as family
from test_rivals import recipe as rival
from test_store import noise, split_of
from toys import CLASSES, coloured_set, recipe, tiny

from hpdval import plots, tables
from hpdval.checkpoint import load_checkpoint, save_checkpoint
from hpdval.data.dataset import Dataset
from hpdval.data.prepare.download import download
from hpdval.data.prepare.extract import extract
from hpdval.data.store import ImageStore
from hpdval.errors import ConfigError, HpdvalError, NonFiniteLossError
from hpdval.models import Clip
from hpdval.report import build_report
from hpdval.run import Run, read_metrics, read_predictions
from hpdval.scoring import FeatureStore, zero_shot_scorer
from hpdval.training import loop
from hpdval.training.joint import train_joint
from hpdval.training.rivals import train_rival
from hpdval.training.stage1 import train_stage1
from hpdval.training.stage2 import train_stage2
from hpdval.training.trainer import Trainer

pytestmark = pytest.mark.fault

FULL, STOPPED = "disk full", "stopped with path and bytes; earlier files intact; completed bit-identically"
SAID = r"could not write (\S+)[^(]*(\(\d+ bytes( written)?\))?.*: (File too large|No space left on device)"


@pytest.fixture(scope="module")
def colours() -> Dataset:
    return coloured_set(24, 12)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return tiny(tmp_path_factory.mktemp("tiny"))


# -- a disk that is full -----------------------------------------------------------------------------------------------


@contextmanager
def room_for(count: int) -> Iterator[None]:
    """No file of this process may become longer than ``count`` bytes, as the kernel has it."""
    old, action = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, action)


@dataclass
class World:
    """What the writers write about."""

    colours: Dataset
    clip: Clip
    loopback: Any


def image_store(world: World, folder: Path, version: int) -> None:
    ImageStore.open(split_of(noise(5 + version, seed=version), fingerprint=str(version)), 16, cache=folder)


def feature_store(world: World, folder: Path, version: int) -> None:
    FeatureStore.open(world.clip, split_of(noise(5 + version, seed=version)), cache=folder, show=False)


def checkpoint(world: World, folder: Path, version: int) -> None:
    values = torch.arange(2000.0) * version
    save_checkpoint(folder / "checkpoint.safetensors", {"a": values}, {"version": version})
    found = load_checkpoint(folder / "checkpoint.safetensors")
    assert found is not None
    assert found[1] == {"version": version}


@contextmanager
def half_a_run(folder: Path) -> Iterator[Run]:
    with Run(folder / "run", kind="example", config={}) as run:
        yield run


def predictions(world: World, folder: Path, version: int) -> None:
    scores = np.random.default_rng(version).random((200, 3)).astype(np.float32)
    with half_a_run(folder) as run:
        run.save_predictions(map(str, range(200)), scores, (scores > 0.5).astype(np.uint8), CLASSES)


def manifest(world: World, folder: Path, version: int) -> None:
    for number in range(1, version + 1):
        with Run(folder / f"run{number}", kind="example", config={}) as run:
            if not run.finished:
                run.finish({"total": 1.0})


def metrics(world: World, folder: Path, version: int) -> None:
    """A resumed run takes records back that came after its checkpoint: here all of them."""
    with half_a_run(folder) as run:
        run.forget_metrics("a", -1)
        for step in range(30 * version):
            run.log(stage="a", step=step, loss=1.0)


def figure(kind: str, world: World, folder: Path, version: int) -> None:
    drawn = plots.class_frequency(CLASSES, np.array([9, 5, version]))
    plots.save_figure(drawn, folder, "figure", formats=(kind,))


def table(world: World, folder: Path, version: int) -> None:
    import pandas as pd

    tables.save_table(pd.DataFrame({"a": np.arange(200) / (2 + version)}), folder, "table")


@contextmanager
def given(place: Path) -> Iterator[bool]:
    """Whether what a writer reads is still to be made; that is not what there is no room for."""
    with room_for(resource.RLIM_INFINITY):
        yield not place.exists()


def report(world: World, folder: Path, version: int) -> None:
    run = folder.with_name(f"{folder.name}-run")
    with given(run) as missing:
        if missing:
            test_report.made(run, 1.0, 0)
    options: dict[str, Any] = {"resamples": 5, "permutations": 5, "show": False, "figures": ()}
    build_report([run], folder / "page", title=f"version {version}", **options)


def mirror(world: World, folder: Path, version: int) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tracking` is not installed")
    from test_tracking import read_back

    from hpdval.tracking import mirror_runs

    run = folder.with_name(f"{folder.name}-runs") / "run"
    with given(run), Run(run, kind="stage1", config={}) as opened:
        for step in range(len(opened.metrics()), 60 * version):
            opened.log(stage="stage1", step=step, loss=1.0)
    mirror_runs(lambda: [run], folder, below=run.parent, tell=lambda line: None)
    assert [step for step, _ in read_back(folder / "run")["stage1/loss"]] == [*range(60 * version)]


BODY = np.random.default_rng(0).bytes(20_000)


def fetched(world: World, folder: Path, version: int) -> None:
    path = f"/{version}"
    world.loopback.files[path] = BODY[version:]
    download(f"{world.loopback.url}{path}", folder / f"file{version}", size=len(BODY) - version, pause=0.001)


def unpacked(world: World, folder: Path, version: int) -> None:
    source = folder.with_name(f"{folder.name}-{version}.tar")
    with given(source) as missing:
        if missing:
            test_data_extract.write_tar(source, {f"{i}.bin": BODY[i : 5000 * i] for i in range(1, version + 1)})
    extract(source, folder, lambda name: True)


WRITERS: dict[str, Callable[[World, Path, int], None]] = {
    "image cache": image_store,
    "feature cache": feature_store,
    "checkpoint": checkpoint,
    "predictions": predictions,
    "manifest": manifest,
    "metrics": metrics,
    "figure (svg)": partial(figure, "svg"),
    "figure (png)": partial(figure, "png"),
    "table": table,
    "report folder": report,
    "TensorBoard mirror": mirror,
    "download": fetched,
    "archive": unpacked,
}
LONG = ("report folder", "figure (png)")
TIMED = {"run.json", "manifest.json", "mirrored.json"}  # hold times and names of processes
GOES_ON = (".part", ".part.json", ".lock", ".tmp")  # what a later attempt continues


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(GOES_ON))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def lasting(folder: Path) -> dict[str, bytes]:
    """What two attempts have in common: no times, no names of processes."""
    found = {name: data for name, data in contents(folder).items() if Path(name).name not in TIMED}
    return {re.sub(r"tfevents.*", "", name): b"" if "tfevents" in name else data for name, data in found.items()}


@pytest.mark.parametrize("share", [0.3, *(pytest.param(s, marks=pytest.mark.nightly) for s in (0.0, 0.1, 0.6, 0.98))])
@pytest.mark.parametrize("what", [pytest.param(w, marks=pytest.mark.nightly) if w in LONG else w for w in WRITERS])
def test_a_full_disk_stops_with_path_and_bytes(
    what: str, share: float, tmp_path: Path, colours: Dataset, clip: Clip, loopback: Any, faults: Faults
) -> None:
    """The first version is there, the second does not fit: ``share`` of its largest new file does."""
    world, write = World(colours, clip, loopback), WRITERS[what]
    control, target = tmp_path / "control", tmp_path / "target"
    for version in (1, 2):
        write(world, control, version)
        if version == 1:
            old = contents(control)
    new = [len(data) for name, data in contents(control).items() if old.get(name) != data]
    write(world, target, 1)
    before = contents(target)
    with faults.injected(FULL, what, STOPPED):
        with room_for(int(share * max(new))), pytest.raises(HpdvalError) as caught:
            write(world, target, 2)
        line = str(caught.value)
        check_line(line, tmp_path)
        found = re.match(SAID, line)
        assert found, line
        assert "bytes" in line
        after = contents(target)
        kept = {name: data for name, data in after.items() if name in before}
        assert_intact(what, before, kept, contents(control))
        write(world, target, 2)
        assert lasting(target) == lasting(control)
        assert [path.name for path in target.rglob("*.tmp")] == []


def assert_intact(what: str, before: dict[str, bytes], kept: dict[str, bytes], new: dict[str, bytes]) -> None:
    """Each file is whole: what it was, or, where others came after it, what it was to become.  Only metrics grow."""
    assert kept.keys() == before.keys() or what == "metrics"
    for name, data in before.items():
        if Path(name).name not in {*TIMED, "metrics.jsonl"}:
            assert kept[name] in (data, new.get(name)), name


STAGES: dict[str, Callable[[Dataset, Clip, Path], object]] = {
    "stage 1": lambda data, clip, run: train_stage1(
        data, recipe(**{"stage1.epochs": 2}), run=run, clip=clip, show=False
    ),
    "stage 2": lambda data, clip, run: train_stage2(
        data, recipe(**{"stage2.epochs": 2}), run=run, start=zero_shot_scorer(clip, CLASSES), show=False
    ),
    "joint": lambda data, clip, run: train_joint(data, recipe(**{"stage1.epochs": 2}), run=run, clip=clip, show=False),
    "rival": lambda data, clip, run: train_rival(
        data, rival("fine-tuning", **{"rival.epochs": 2, "rival.lr": 1e-3}), run=run, clip=clip, show=False
    ),
}
NIGHTLY_STAGES = [
    pytest.param(name, marks=() if name == "stage 1" else pytest.mark.nightly, id=name) for name in STAGES
]


def weights(run: Path) -> dict[str, bytes]:
    """What training made, byte for byte."""
    found = {path.name: path.read_bytes() for path in run.glob("*.safetensors") if "checkpoint" not in path.name}
    return {**found, "scores": read_predictions(run)["scores"].tobytes(), "metrics": repr(untimed(run)).encode()}


def untimed(run: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in record.items() if name != "seconds"} for record in read_metrics(run)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, colours: Dataset, clip: Clip) -> Callable[[str], Path]:
    """The run of a stage that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")

    def run(stage: str) -> Path:
        if not (folder / stage).exists():
            STAGES[stage](colours, clip, folder / stage)
        return folder / stage

    return run


@pytest.mark.parametrize("stage", NIGHTLY_STAGES)
@pytest.mark.parametrize(
    "count", [2000, *(pytest.param(n, marks=pytest.mark.nightly) for n in (0, 400, 5000, 20_000, 60_000))]
)
def test_a_training_without_room_completes_when_there_is_some(
    stage: str,
    count: int,
    tmp_path: Path,
    colours: Dataset,
    clip: Clip,
    undisturbed: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    faults: Faults,
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    control, run = undisturbed(stage), tmp_path / "run"
    longest = max(path.stat().st_size for path in control.iterdir())
    assert count < longest, "the limit would strike nobody"
    with faults.injected(FULL, stage, STOPPED):
        with room_for(count), pytest.raises(HpdvalError) as caught:
            STAGES[stage](colours, clip, run)
        check_line(str(caught.value), run)
        assert re.match(SAID, str(caught.value))
        assert not (run / "manifest.json").exists()
        STAGES[stage](colours, clip, run)
        assert weights(run) == weights(control)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB in memory."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_small_file_system_that_is_full(
    small_disk: Path, colours: Dataset, clip: Clip, undisturbed: Callable[[str], Path], faults: Faults
) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(bytes(200_000))
    with faults.injected(FULL, "stage 1, on a real file system", STOPPED):
        with pytest.raises(HpdvalError) as caught:
            STAGES["stage 1"](colours, clip, small_disk / "run")
        assert "No space left on device" in str(caught.value)
        assert re.match(SAID, str(caught.value))
        check_line(str(caught.value), small_disk)
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
        STAGES["stage 1"](colours, clip, small_disk / "run")
        assert weights(small_disk / "run") == weights(undisturbed("stage 1"))


NOTEBOOK_CODE = """
    import resource, signal, sys
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
    from hpdval.cli import main
    sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.nightly
@pytest.mark.parametrize("count", [3000, 12_000])
def test_a_notebook_without_room_fails_by_name_and_runs_again(count: int, tmp_path: Path, faults: Faults) -> None:
    notebook = small_notebook(tmp_path / "small.ipynb")
    words = ["run", str(notebook), "--out", str(tmp_path / "out")]
    with faults.injected(
        FULL, "executed notebook", "stopped with path; earlier files intact; the same command completes"
    ):
        command = [sys.executable, "-c", textwrap.dedent(NOTEBOOK_CODE), str(count), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2, done.stderr
        check_line(done.stderr.strip(), tmp_path / "out", "small")
        assert not (tmp_path / "out" / "executed.ipynb").exists()
        again = subprocess.run(
            [sys.executable, "-m", "hpdval.cli", *words], capture_output=True, text=True, timeout=120
        )
        assert again.returncode == 0, again.stderr
        assert (tmp_path / "out" / "executed.ipynb").exists()


def small_notebook(path: Path) -> Path:
    """A notebook that finishes a run, and prints more than there is room for."""
    import nbformat

    cells = [
        ("run_dir = 'out'", ["parameters"]),
        ("print('a line of output ' * 2000)", []),
        ("from hpdval.run import Run\nrun = Run(run_dir, kind='example', config={})\nrun.finish({'total': 1.0})", []),
    ]
    made = [nbformat.v4.new_code_cell(source, metadata={"tags": tags}) for source, tags in cells]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=made, metadata=kernel), path)
    return path


# -- what may not be written -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["checkpoint", "predictions", "figure (svg)", "table", "image cache", "feature cache"])
def test_a_file_where_a_folder_should_be(
    what: str, tmp_path: Path, colours: Dataset, clip: Clip, loopback: Any, faults: Faults
) -> None:
    (tmp_path / "taken").write_text("somebody's")
    with faults.injected("file where a folder should be", what, "named in one line; the file is intact"):
        with pytest.raises((HpdvalError, OSError)) as caught:
            WRITERS[what](World(colours, clip, loopback), tmp_path / "taken", 1)
        assert "taken" in str(caught.value)
        assert (tmp_path / "taken").read_text() == "somebody's"


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("checkpoint", "checkpoint.next.safetensors"),
        ("predictions", "run/predictions.npz"),
        ("figure (svg)", "figures/figure.svg"),
        ("table", "tables/table.csv"),
        ("manifest", "run1/manifest.json"),
        ("metrics", "run/metrics.jsonl"),
    ],
)
def test_a_folder_where_a_file_should_be(
    what: str, name: str, tmp_path: Path, colours: Dataset, clip: Clip, loopback: Any, faults: Faults
) -> None:
    (tmp_path / name / "inside").mkdir(parents=True)
    with faults.injected("folder where a file should be", what, "named in one line"):
        with pytest.raises((HpdvalError, OSError)) as caught:
            WRITERS[what](World(colours, clip, loopback), tmp_path, 1)
        assert Path(name).name in str(caught.value)
        assert (tmp_path / name / "inside").is_dir()


@contextmanager
def bound_by_permissions() -> Iterator[None]:
    """Root gives up its right to overlook them for a while: its effective CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
    if os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("root may write everywhere")
    libc = ctypes.CDLL(None)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    held = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: the lower 32, then the upper
    assert libc.capget(header, held) == 0
    fewer = (ctypes.c_uint32 * 6)(*held)
    fewer[0] &= ~0b110
    assert libc.capset(header, fewer) == 0
    try:
        yield
    finally:
        assert libc.capset(header, held) == 0


@pytest.mark.parametrize("what", ["checkpoint", "predictions", "figure (svg)", "table", "image cache"])
def test_a_folder_that_may_not_be_written(
    what: str, tmp_path: Path, colours: Dataset, clip: Clip, loopback: Any, faults: Faults
) -> None:
    world, folder = World(colours, clip, loopback), tmp_path / "closed"
    WRITERS[what](world, folder, 1)
    before = contents(folder)
    closed = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for place in closed:
        place.chmod(0o500)
    try:
        with faults.injected("folder that may not be written", what, "named in one line; earlier files intact"):
            with bound_by_permissions(), pytest.raises((HpdvalError, OSError)) as caught:
                WRITERS[what](world, folder, 2)
            assert "closed" in str(caught.value)
            assert contents(folder) == before
    finally:
        for place in closed:
            place.chmod(0o700)


def test_a_file_that_may_only_be_read_is_replaced_as_a_whole(tmp_path: Path, faults: Faults) -> None:
    """Files are replaced, not written into: another name of the old file (a hard link of it) keeps what it had."""
    from hpdval.files import atomic_write

    path, link = tmp_path / "a.txt", tmp_path / "b.txt"
    path.write_text("old")
    path.chmod(0o400)
    link.hardlink_to(path)
    with faults.injected("read-only file", "any file", "replaced as a whole; its other name keeps the old bytes"):
        with atomic_write(path, "w") as file:
            file.write("new")
        assert (path.read_text(), link.read_text()) == ("new", "old")


# -- a loss that is not finite -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", NIGHTLY_STAGES)
@pytest.mark.parametrize("value", [float("nan"), pytest.param(float("inf"), marks=pytest.mark.nightly)])
def test_weights_that_become_nan_stop_the_run_and_spare_the_checkpoint(
    stage: str,
    value: float,
    tmp_path: Path,
    colours: Dataset,
    clip: Clip,
    undisturbed: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    faults: Faults,
) -> None:
    """One weight is spoilt in memory before the last update of the first epoch; the run goes on from what was saved."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    control, run, step = undisturbed(stage), tmp_path / "run", Trainer.step
    saved: list[bytes] = []

    def spoilt(self: Trainer, batches: Any) -> None:
        if self.update == self.plan.updates_per_epoch and not saved:
            saved.append(self.path.read_bytes())
            with torch.no_grad():
                max(self.named.values(), key=torch.Tensor.numel).fill_(value)
        step(self, batches)

    monkeypatch.setattr(Trainer, "step", spoilt)
    with faults.injected(f"a weight that is {value:g}", stage, "no update, images named, resumed bit-identically"):
        with pytest.raises(NonFiniteLossError) as caught:
            STAGES[stage](colours, clip, run)
        line = str(caught.value)
        check_line(line)
        named = line.rpartition("images ")[2].split(", ")
        assert named
        assert set(named) <= set(colours.train.ids)
        (path,) = checkpoints(run)
        assert path.read_bytes() == saved[0], "the last good one stays"
        assert not (run / "manifest.json").exists()
        assert all(np.isfinite(record.get("loss", 0.0)) for record in read_metrics(run))
        STAGES[stage](colours, clip, run)
        assert weights(run) == weights(control)


def checkpoints(run: Path) -> list[Path]:
    return [p for p in run.glob("checkpoint*.safetensors") if "previous" not in p.name and "next" not in p.name]


@pytest.mark.parametrize("name", ["stage1.lr", "stage2.lr", "stage1.scale_lr", "stage1.kd_weight", "score.alpha"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_no_setting_may_be_infinite(name: str, value: float, faults: Faults) -> None:
    with faults.injected(f"a setting that is {value:g}", name, "refused before anything starts"):
        with pytest.raises(ConfigError) as caught:
            recipe(**{name: value})
        check_line(str(caught.value), name.rpartition(".")[2])


# -- workers -----------------------------------------------------------------------------------------------------------


@contextmanager
def started_by(method: str) -> Iterator[None]:
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(method, force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)


def with_workers(workers: int) -> Any:
    return recipe(**{"stage1.epochs": 2, "stage1.workers": workers, "stage1.batch_size": 1})


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, colours: Dataset, clip: Clip) -> Iterator[Path]:
    """Stage 1 without workers; one thread, as the processes that are killed have."""
    run, threads = tmp_path_factory.mktemp("alone") / "run", torch.get_num_threads()
    torch.set_num_threads(1)
    train_stage1(colours, with_workers(0), run=run, clip=clip, show=False)
    yield run
    torch.set_num_threads(threads)


NIGHT = pytest.mark.nightly


@pytest.mark.parametrize(
    ("workers", "method"),
    [(3, "fork"), *(pytest.param(*case, marks=NIGHT) for case in ((1, "fork"), (1, "spawn"), (3, "spawn")))],
)
def test_any_number_of_workers_gives_the_same(
    workers: int, method: str, tmp_path: Path, colours: Dataset, clip: Clip, alone: Path, faults: Faults
) -> None:
    run = tmp_path / "run"
    with faults.injected(f"workers started by {method}", "stage 1", "same order, same result"), started_by(method):
        train_stage1(colours, with_workers(workers), run=run, clip=clip, show=False)
        assert weights(run) == weights(alone)


KILLED = """
    import os, sys
    sys.path[:0] = [{tests!r}, {tests!r} + "/reliability"]
    def main():
        import multiprocessing, torch
        from pathlib import Path
        multiprocessing.set_start_method(sys.argv[2])
        torch.set_num_threads(1)
        from toys import coloured_set, recipe
        from hpdval.errors import HpdvalError
        from hpdval.models import load_clip
        from hpdval.training import loop
        from hpdval.training.stage1 import train_stage1
        loop.CHECKPOINT_SECONDS = 0.0
        run, kill_at = Path(sys.argv[1]), int(sys.argv[3])
        data = coloured_set(24, 12)
        clip = load_clip({config!r}, seed=0).requires_grad_(False)
        step = loop.Trainer.step
        def counted(self, batches):
            if self.update == kill_at:
                children = multiprocessing.active_children()
                os.kill(children[kill_at % len(children)].pid, 9)
                print("struck", len(children), flush=True)
            return step(self, batches)
        loop.Trainer.step = counted
        experiment = recipe(**{{"stage1.epochs": 2, "stage1.workers": 2, "stage1.batch_size": 1}})
        try:
            train_stage1(data, experiment, run=run, clip=clip, show=False)
        except HpdvalError as error:
            print("refused:", error, flush=True)
            sys.exit(2)
    if __name__ == "__main__":
        main()
"""


@pytest.mark.parametrize(
    ("kill_at", "method"),
    [(2, "fork"), *(pytest.param(at, how, marks=NIGHT) for how in ("fork", "spawn") for at in (0, 5, 11, 30))],
)
def test_a_worker_that_is_killed_is_a_line_and_leaves_no_orphan(
    kill_at: int,
    method: str,
    tmp_path: Path,
    colours: Dataset,
    clip: Clip,
    alone: Path,
    family: Family,
    monkeypatch: pytest.MonkeyPatch,
    faults: Faults,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    script, run = tmp_path / "killed.py", tmp_path / "run"  # spawned workers import the main module from its file
    script.write_text(textwrap.dedent(KILLED.format(tests=str(ROOT / "tests"), config=clip.name)))
    command = [sys.executable, str(script), str(run), method, str(kill_at)]
    with faults.injected("kill -9 of a worker", f"stage 1, {method}", "") as injection:
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=family.environment)
        assert "struck 2" in done.stdout, done.stderr
        wait_for(lambda: not family.members(), "the end of all workers", 30)
        if done.returncode == 0:  # all that the worker was asked for had come before
            injection.outcome = "completed, bit-identical"
        else:
            injection.outcome = "one line, no orphan; the same command completes bit-identically"
            assert done.returncode == 2, done.stderr
            line = done.stdout.splitlines()[-1]
            check_line(line, "DataLoader worker")
            assert line.startswith("refused: ")
            assert not (run / "manifest.json").exists()
            train_stage1(colours, with_workers(2), run=run, clip=clip, show=False)
        assert weights(run) == weights(alone)
