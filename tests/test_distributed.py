"""Two processes give what one gives, to 1e-5; they stop together, resume together, and leave nobody behind."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from test_rivals import recipe as rival
from test_rivals import said
from toys import CLASSES, TINY, coloured, coloured_set, recipe

import hpdval
from hpdval import distributed, launch
from hpdval.data.dataset import Dataset
from hpdval.errors import ConfigError, DataError, HpdvalError, NonFiniteLossError, RunError
from hpdval.files import write_json
from hpdval.models import Clip, ImageFeatures, load_clip
from hpdval.run import read_manifest, read_metrics, read_predictions
from hpdval.stopping import request_stop
from hpdval.training import loop
from hpdval.training.loop import Interrupted, Trainer
from hpdval.training.stage1 import DualViewAlignment, train_stage1

TESTS, PACKAGE = Path(__file__).parent, Path(hpdval.__file__).parent.parent
SHORT = {
    "stage1.epochs": 2,
    "stage2.epochs": 2,
    "stage1.kd_weight": 0.5,
    "stage1.clip_norm": 0.5,
    "stage2.features": "float32",
}
STILL = {"stage1.augment.flip": False, "stage1.augment.cutout": 0.0, "stage1.augment.randaugment_ops": 0}
FIRST = {"stage1.batch_size": 16, "stage2.batch_size": 16}
SCALAR = {"stage1.loss.name": "db", "stage1.loss.focal": "scalar", "stage1.loss.pos_scale": 5.0}
TRAININGS: dict[str, dict[str, Any]] = {
    # 49 images in batches of 16: the last has a single image, so that the second process has none of its own
    "sequence": {"stages": "sequence", **FIRST},
    "scalar focal": {"stages": "stage1", "stage1.batch_size": 16, "stage1.train_text": True, **SCALAR},
    # a head, because L_kd has no gradient where student and teacher agree, and rounding would choose its sign
    "accumulated": {
        "stages": "stage1",
        "stage1.batch_size": 9,
        "stage1.accumulate": 4,
        "stage1.ema_decay": 0.9,
        "stage1.projection": "head",
        **STILL,
    },
    "joint": {"stages": "joint", "stage1.batch_size": 20, "stage1.scale_lr": 1e-2},
}
# the last batch has a single image here, too; SGD, to which a gradient twice as large is not the same
SGD = {"rival.epochs": 2, "rival.batch_size": 16, "rival.optimizer": "sgd"}
RIVALS: dict[str, dict[str, Any]] = {
    "lmpt": {**SGD, "rival.lr": 0.1, "rival.features": "float32"},
    "cocoop": {**SGD, "rival.lr": 0.1, "rival.features": "float32"},
    "fine-tuning": {**SGD, "rival.lr": 0.1, "rival.sampling": "class-aware"},
    "cprfl": {**SGD, "rival.lr": 0.1, "rival.dropout": 0.0},
}


# -- what the two processes do, and the one ----------------------------------------------------------------------------


def world(folder: Path) -> tuple[Dataset, Clip]:
    """Return 49 training and 37 test images of colours, and the tiny CLIP."""
    write_json(folder / "tiny.json", TINY)  # both processes write it, and neither may read half of it
    return coloured_set(49, 37), load_clip(folder / "tiny.json", seed=0)


def train_everything(folder: Path) -> None:
    data, clip = world(folder)
    for name, values in TRAININGS.items():
        hpdval.train(data, recipe(**SHORT, **values), run=folder / name, clip=clip, show=False)
    words = said(data.train.targets)
    captioned = replace(data, train=replace(data.train, captions=lambda i: words[i]))
    for name, values in RIVALS.items():
        hpdval.train(captioned, rival(name, **values), run=folder / name, clip=clip, show=False)


def fail_and_go_on(folder: Path) -> None:
    """Let the second process be told to stop, ask for it, see a NaN, then raise; what each says is written down."""
    data, clip = world(folder)
    said: dict[str, list[str]] = {}
    step, features = Trainer.step, DualViewAlignment.features

    def stopped(self: Trainer, batches: Any) -> None:
        if distributed.rank() == 1 and self.update == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, batches)

    def asked(self: Trainer, batches: Any) -> None:
        if distributed.rank() == 1 and self.update == 4:  # any process may ask, also one that does not train
            request_stop(folder / "requested")
        step(self, batches)

    def poisoned(self: DualViewAlignment, batch: Any) -> Any:
        found, teacher = features(self, batch)
        return (ImageFeatures(found.cls * float("nan"), found.patches) if distributed.rank() else found), teacher

    def tell(name: str, error: type[HpdvalError], act: Any) -> None:
        with pytest.raises(error) as caught:
            act()
        said[name] = distributed.everyones(str(caught.value))

    def resumed(name: str = "resumed") -> None:
        train_stage1(data, recipe(**SHORT, **FIRST), run=folder / name, clip=clip, show=False)

    def refused() -> None:
        with distributed.same_error():
            if distributed.rank() == 1:
                raise DataError("a.jpg is missing")

    Trainer.step = stopped  # type: ignore[method-assign]
    tell("stopped", Interrupted, resumed)
    Trainer.step = asked  # type: ignore[method-assign]
    loop.LOOK_SECONDS = 0.0
    tell("requested", Interrupted, lambda: resumed("requested"))
    Trainer.step = step  # type: ignore[method-assign]
    resumed()
    resumed("requested")
    DualViewAlignment.features = poisoned  # type: ignore[method-assign]
    lone = recipe(**SHORT, **{"stage1.batch_size": 16})
    tell("not finite", NonFiniteLossError, lambda: train_stage1(data, lone, run=folder / "n", clip=clip, show=False))
    tell("refused", HpdvalError, refused)
    if distributed.rank() == 0:
        (folder / "said.json").write_text(json.dumps(said))


WORKER = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import test_distributed as steps
steps.train_everything(Path(sys.argv[1]))
steps.fail_and_go_on(Path(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all trainings in this process."""
    folder = tmp_path_factory.mktemp("one")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train_everything(folder)
    torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same trainings in two processes, started once for all tests."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "worker.py").write_text(WORKER)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, str(folder / "worker.py"), str(folder)],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((str(PACKAGE), str(TESTS)))},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def assert_equal_weights(first: Path, second: Path, atol: float = 1e-5) -> None:
    """Compare two files, without the keys' biases: softmax ignores them, so that their gradient is rounding alone."""
    a, b = load_file(first), load_file(second)
    assert a.keys() == b.keys()
    for name in a:
        if name.endswith("attn.in_proj_bias"):
            query_and_value = np.arange(len(a[name])) // (len(a[name]) // 3) != 1
            a[name], b[name] = a[name][query_and_value], b[name][query_and_value]
        assert np.abs(a[name] - b[name]).max() <= atol, name


# -- the same result ---------------------------------------------------------------------------------------------------


RUNS = [
    ("sequence", "stage1"),
    ("sequence", "stage2"),
    ("scalar focal", "stage1"),
    ("accumulated", "stage1"),
    ("joint", "joint"),
]


@pytest.mark.parametrize(("name", "stage"), RUNS)
def test_two_processes_train_what_one_trains(one: Path, two: Path, name: str, stage: str) -> None:
    for file in ("clip.safetensors", "model.safetensors"):
        assert_equal_weights(one / name / stage / file, two / name / stage / file)
    a, b = (read_predictions(folder / name / stage) for folder in (one, two))
    assert a["ids"].tolist() == b["ids"].tolist()
    assert a["scores"].shape == b["scores"].shape == (37, 3)
    assert np.abs(a["scores"] - b["scores"]).max() < 1e-5
    start = read_predictions(two / name / "zero-shot")["scores"]
    assert np.abs(b["scores"] - start).max() > 1e-2, "something was learnt"


@pytest.mark.parametrize("name", list(RIVALS))
def test_two_processes_train_the_rival_that_one_trains(one: Path, two: Path, name: str) -> None:
    kind = rival(name).rival.kind
    single, double = (folder / name / kind for folder in (one, two))
    assert [read_manifest(folder)["hardware"]["processes"] for folder in (single, double)] == [1, 2]
    for file in ("clip.safetensors", "model.safetensors"):
        assert_equal_weights(single / file, double / file)
    a, b = (read_predictions(folder)["scores"] for folder in (single, double))
    assert a.shape == b.shape == (37, 3)
    assert np.abs(a - b).max() < 1e-5
    logs = [[record for record in read_metrics(folder) if "loss" in record] for folder in (single, double)]
    assert len(logs[0]) == len(logs[1]) == 8
    for first, second in zip(*logs, strict=True):
        assert second["loss"] == pytest.approx(first["loss"], abs=1e-5)
    start = two / name / "zero-shot"
    assert np.abs(b - read_predictions(start)["scores"]).max() > 1e-2, "something was learnt"
    tower = [load_file(folder / "clip.safetensors")["visual.conv1.weight"] for folder in (start, double)]
    assert bool(np.abs(tower[0] - tower[1]).max() > 1e-4) is (name in ("fine-tuning", "cprfl"))


@pytest.mark.parametrize(("name", "stage"), RUNS)
def test_every_update_is_logged_once_with_the_losses_of_the_whole_batch(
    one: Path, two: Path, name: str, stage: str
) -> None:
    a, b = (read_metrics(folder / name / stage) for folder in (one, two))
    assert [record.keys() for record in a] == [record.keys() for record in b]
    assert sum("loss" in record for record in b) > 2
    for first, second in zip(a, b, strict=True):
        for key in first.keys() & {"cls", "kd", "sc", "loss", "scale", "bias"}:
            assert second[key] == pytest.approx(first[key], abs=1e-4 if key in ("scale", "bias") else 1e-5), key


def test_two_processes_extract_and_score_what_one_does(one: Path, two: Path) -> None:
    a, b = (read_predictions(folder / "joint" / "zero-shot") for folder in (one, two))
    assert a["ids"].tolist() == b["ids"].tolist()
    assert a["scores"].shape == b["scores"].shape == (37, 3), "19 images and 18"
    assert np.abs(a["scores"] - b["scores"]).max() < 1e-6


def test_the_manifest_says_how_many_processes_there_were(one: Path, two: Path) -> None:
    manifests = [read_manifest(folder / "sequence" / "stage1") for folder in (one, two)]
    assert [manifest["hardware"]["processes"] for manifest in manifests] == [1, 2]
    assert manifests[0]["key"] == manifests[1]["key"], "either can continue the other's run"


# -- stopped together, resumed together --------------------------------------------------------------------------------


def test_stopped_in_one_process_all_save_and_the_resumed_run_is_bit_identical(two: Path) -> None:
    said = json.loads((two / "said.json").read_text())["stopped"]
    assert said[0] == said[1]
    assert "after update 3 of 8" in said[0]
    requested = json.loads((two / "said.json").read_text())["requested"]
    assert requested[0] == requested[1]
    after = int(requested[0].removeprefix("stage1 stopped on request after update ").split()[0])
    assert after in (5, 6), "the first process may have looked just before it was asked"
    for name in ("resumed", "requested"):
        files = [load_file(two / folder / "clip.safetensors") for folder in ("sequence/stage1", name)]
        assert all(np.array_equal(files[0][name], files[1][name]) for name in files[0])
        assert read_metrics(two / name) == read_metrics(two / "sequence" / "stage1")


def test_what_is_not_finite_in_one_process_stops_all_and_names_the_images(two: Path) -> None:
    said = json.loads((two / "said.json").read_text())["not finite"]
    assert said[0] == said[1]
    order = np.random.default_rng((0, 0)).permutation(49)[:16]
    assert said[0].endswith(", ".join(f"1/{i}" for i in order))
    assert "loss" not in (two / "n" / "metrics.jsonl").read_text()


def test_what_one_process_refuses_all_refuse(two: Path) -> None:
    assert json.loads((two / "said.json").read_text())["refused"] == [
        "a.jpg is missing (process 1)",
        "a.jpg is missing",
    ]


# -- shares ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("n", [0, 1, 2, 7, 8, 9, 64])
def test_shares_make_the_whole_and_none_is_empty(monkeypatch: pytest.MonkeyPatch, size: int, n: int) -> None:
    monkeypatch.setattr(distributed, "size", lambda: size)
    found: list[int] = []
    for rank in range(size):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        own = list(range(n))[distributed.share(n)]
        assert own or n == 0
        found += [*own, *[-1] * (-(-n // size) - len(own))]  # as gather pads them
    assert found[:n] == list(range(n))


# -- from a notebook ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set that a source names: a CSV with 13 training and 7 test images, and a model."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    for name, n, seed in (("train", 13, 1), ("test", 7, 2)):
        split = coloured(n, seed)
        with open(folder / f"{name}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "labels"])
            for i in range(n):
                Image.fromarray(split.read(i)).save(folder / f"{name}{i}.png")
                writer.writerow([f"{name}{i}.png", ";".join(np.array(CLASSES)[split.targets[i] > 0])])
    return folder


def job(photos: Path) -> dict[str, Any]:
    overrides = {"clip": str(photos / "tiny.json"), "stages": "stage1", "stage1.epochs": 30, "stage1.batch_size": 6}
    return {
        "source": str(photos / "train.csv"),
        "overrides": {**overrides, "stage1.lr": 1e-5},  # 90 small updates: time for one of the processes to be ended
        "data": {"test": "test.csv", "classes": list(CLASSES)},
        "show": False,
    }


def below() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def wait_until(condition: Any, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_a_process_that_dies_ends_the_others_and_the_same_call_continues(photos: Path, tmp_path: Path) -> None:
    run, before = tmp_path / "two", set(below())
    log = run / "stage1" / "metrics.jsonl"

    def kill_the_second() -> None:
        if wait_until(lambda: log.exists() and log.stat().st_size, 200):
            next(p for p in set(below()) - before if p.environ().get("RANK") == "1").kill()

    killer = threading.Thread(target=kill_the_second)
    killer.start()
    with pytest.raises(RunError, match=r"^training in 2 processes failed: process 1 was ended by SIGKILL$"):
        launch.launch_training(run=run, processes=2, **job(photos))
    killer.join()
    assert wait_until(lambda: not set(below()) - before, 5), "an orphan is left"
    assert len(read_metrics(run / "stage1")) < 90
    runs = launch.launch_training(run=run, processes=2, **job(photos))
    assert list(runs) == ["zero-shot", "stage 1"]
    single = launch.train_source(run=tmp_path / "one", **job(photos))
    a, b = (read_predictions(folders["stage 1"])["scores"] for folders in (single, runs))
    assert a.shape == (7, 3)
    assert np.abs(a - b).max() < 1e-5


def test_the_first_failure_is_told_in_one_line(tmp_path: Path) -> None:
    for name, text in (("1", "RunError: the folder is in use"), ("0", "RuntimeError: Connection closed by peer")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "error.json").write_text(json.dumps({"message": {"message": text}}))
        time.sleep(0.01)
    assert launch._reason(tmp_path, []) == "process 1: RunError: the folder is in use"
    assert launch._reason(tmp_path / "none", ["No module named x", ""]) == "No module named x"


def test_interrupted_the_launcher_ends_what_it_started(tmp_path: Path) -> None:
    """Ctrl-C reaches the main thread while it reads lines."""
    before = set(below())
    wait = f"import signal; open({str(tmp_path / 'on')!r}, 'w'); print('on', flush=True); signal.pause()"

    def interrupt() -> None:
        wait_until((tmp_path / "on").exists, 60)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore Ctrl-C
    try:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            launch._follow([sys.executable, "-c", wait], show=False)
        thread.join()
    finally:
        signal.signal(signal.SIGINT, handler)
    assert not set(below()) - before


def test_processes_end_when_their_launcher_is_gone() -> None:
    code = "from hpdval.launch import _end_with_parent; _end_with_parent()"
    done = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, timeout=60)
    assert done.returncode == -signal.SIGTERM


def test_what_cannot_be_used_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="processes is 0"):
        launch.launch_training("scenes-lt", run=tmp_path / "a", processes=0)
    with pytest.raises(ConfigError, match=r"stage1\.lr"):
        launch.launch_training("scenes-lt", run=tmp_path / "a", processes=2, overrides={"stage1.rl": 1})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("device", "said"), [("cuda:0", "each process takes a GPU"), ("cuda", "one too many for 1")])
def test_devices_are_given_by_torchrun(monkeypatch: pytest.MonkeyPatch, device: str, said: str) -> None:
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=said):
        distributed.join(device)
