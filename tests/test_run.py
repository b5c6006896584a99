"""A run folder: one writer, one key, resumable, done only by its manifest; files that are whole or refused."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from hpdval.checkpoint import load_checkpoint, load_tensors, save_checkpoint, save_tensors
from hpdval.errors import ConfigError, RunError
from hpdval.files import atomic_write
from hpdval.run import Run, read_manifest, read_metrics, read_predictions, read_result


def start(folder: Path, **config: object) -> Run:
    return Run(folder, kind="test", config=config, inputs={"data": "abc"})


def test_a_run_is_done_only_after_its_manifest(tmp_path: Path) -> None:
    with start(tmp_path, lr=1) as run:
        run.log(stage="s", step=1, loss=0.5)
        assert not run.finished
        with pytest.raises(RunError, match="not a finished run"):
            read_manifest(tmp_path)
        run.save_predictions(["a", "b"], np.eye(2), np.eye(2), ["x", "y"])
        run.finish({"total": 50.0})
    with start(tmp_path, lr=1) as again:
        assert again.finished
    manifest = read_manifest(tmp_path)
    assert manifest["status"] == "done"
    assert manifest["files"].keys() >= {"result.json", "predictions.npz", "metrics.jsonl", "run.json"}
    assert manifest["packages"]["torch"]
    assert manifest["config"] == {"lr": 1}


def test_another_key_is_refused_and_named(tmp_path: Path) -> None:
    start(tmp_path, lr=1, stage={"k": 3}).close()
    with pytest.raises(RunError, match=r"config\.stage\.k: 3 there, 4 here"):
        start(tmp_path, lr=1, stage={"k": 4})
    start(tmp_path, lr=1, stage={"k": 3}).close()  # the refusal released the folder


def test_a_second_process_is_refused_and_a_dead_ones_lock_is_recovered(tmp_path: Path) -> None:
    code = f"""
        import sys, time
        from hpdval.run import Run
        run = Run({str(tmp_path)!r}, kind="test", config={{}}, inputs={{"data": "abc"}})
        print("locked", flush=True)
        time.sleep(60)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "locked"
        with pytest.raises(RunError, match="in use by another process"):
            start(tmp_path)
    finally:
        process.kill()
        process.wait()
    start(tmp_path).close()


def test_who_comes_second_may_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"""
        import time
        from hpdval.run import Run
        with Run({str(tmp_path)!r}, kind="test", config={{}}, inputs={{"data": "abc"}}) as run:
            print("locked", flush=True)
            time.sleep(1)
            run.finish({{"total": 50.0}})
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "locked"
    monkeypatch.setenv("HPDVAL_LOCK_WAIT", "60")
    with start(tmp_path) as run:
        assert run.finished, "it waited for the other one's result"
    process.wait()


def test_a_notebook_cell_that_is_run_again_takes_its_folder_over(tmp_path: Path) -> None:
    first = start(tmp_path, lr=1)
    first.log(stage="s", step=1)
    second = start(tmp_path, lr=1)
    assert [record["step"] for record in second.metrics()] == [1]
    second.finish({})
    assert read_manifest(tmp_path)["wall_seconds"] >= 0


def test_metrics_survive_a_line_cut_off_by_a_crash(tmp_path: Path) -> None:
    with start(tmp_path) as run:
        for step in (1, 2, 3):
            run.log(stage="s", step=step)
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write('{"stage": "s", "st')
        assert [record["step"] for record in run.metrics()] == [1, 2, 3]
        run.forget_metrics("s", 2)
        run.log(stage="s", step=3)
        assert [record["step"] for record in run.metrics()] == [1, 2, 3]
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nrubbish\n{"step": 2}\n')
    with pytest.raises(RunError, match="line 2"):
        read_metrics(tmp_path)


def test_what_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="config: seed is None, not a whole number"):
        Run(tmp_path / "a", kind="x", config={"seed": None})
    run = Run(tmp_path / "b", kind="x", config={})
    run.log(step=1, loss=np.float64(0.5), anything=[None])
    for name, value in (("epoch", 0.5), ("stage", 1), ("loss", "low"), ("val_map", None)):
        with pytest.raises(ConfigError, match=f"a record of metrics: {name} is"):
            run.log(**{name: value})
    assert [record["step"] for record in run.metrics()] == [1]
    with pytest.raises(ConfigError, match="result: notes is None, not a list"):
        run.finish({"notes": None})
    run.finish({"total": None, "classes": ("a", "b"), "class_counts": [1.0, 2.0]})
    assert read_result(run.folder)["total"] is None


def test_altered_predictions_are_refused(tmp_path: Path) -> None:
    with start(tmp_path) as run:
        run.save_predictions(["a"], np.ones((1, 2)), np.ones((1, 2)), ["x", "y"])
        run.finish({})
    assert read_predictions(tmp_path)["scores"].dtype == np.float32
    path = tmp_path / "predictions.npz"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(bytes(damaged))
    with pytest.raises(RunError, match="differs from its hash"):
        read_predictions(tmp_path)


def test_atomic_write_leaves_the_old_file_when_the_block_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    def fail_midway() -> None:
        with atomic_write(path, "w") as file:
            file.write("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_midway()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_disk_full_names_path_and_bytes_and_keeps_what_was_there(tmp_path: Path) -> None:
    code = f"""
        import resource, signal
        from pathlib import Path
        from hpdval.files import atomic_write
        from hpdval.errors import RunError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        path = Path({str(tmp_path)!r}) / "big.bin"
        path.write_bytes(b"old")
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            with atomic_write(path) as file:
                file.write(bytes(100_000))
        except RunError as error:
            print(error)
        assert path.read_bytes() == b"old"
        assert [p.name for p in path.parent.iterdir()] == ["big.bin"]
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert "big.bin" in done.stdout
    assert "bytes written" in done.stdout


# -- checkpoints ---------------------------------------------------------------------------------------------------


def test_checkpoints_return_what_was_saved(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4), "b": torch.tensor(2.0, dtype=torch.bfloat16), "c": torch.arange(5)}
    save_checkpoint(tmp_path / "c.safetensors", tensors, {"update": 7})
    loaded = load_checkpoint(tmp_path / "c.safetensors")
    assert loaded is not None
    assert loaded[1] == {"update": 7}
    for name, value in tensors.items():
        assert torch.equal(loaded[0][name], value)
        assert loaded[0][name].dtype == value.dtype


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "state"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "c.safetensors"
    for update in (1, 2):
        save_checkpoint(path, {"w": torch.full((64,), float(update))}, {"update": update})
    data = bytearray(path.read_bytes())
    if damage == "truncate":
        data = data[:-40]
    elif damage == "flip":
        data[-10] ^= 4
    elif damage == "state":
        altered = bytes(data).replace(b": 2}", b": 3}")
        assert altered != data
        data = bytearray(altered)
    else:
        data = bytearray()
    path.write_bytes(bytes(data))
    with pytest.warns(RuntimeWarning, match=r"c\.safetensors"):
        loaded = load_checkpoint(path)
    assert loaded is not None
    assert loaded[1]["update"] == 1
    (tmp_path / "c.previous.safetensors").write_bytes(b"")
    with pytest.warns(RuntimeWarning), pytest.raises(RunError, match="no checkpoint can be read"):
        load_checkpoint(path)


def test_no_checkpoint_is_none_and_foreign_files_are_refused(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "none.safetensors") is None
    with pytest.raises(RunError, match="does not exist"):
        load_tensors(tmp_path / "none.safetensors")
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(RunError, match="not written by hpdval"):
        load_tensors(tmp_path / "foreign.safetensors")


def test_killed_between_the_two_renames_the_previous_loads(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"w": torch.zeros(1)}, {"update": 1})
    path.rename(tmp_path / "c.previous.safetensors")  # what a kill in the middle of save_checkpoint leaves
    save_tensors(tmp_path / "c.next.safetensors", {"w": torch.ones(1)}, {"update": 2})
    loaded = load_checkpoint(path)
    assert loaded is not None
    assert loaded[1]["update"] == 1


def test_manifest_is_plain_json(tmp_path: Path) -> None:
    with start(tmp_path) as run:
        run.finish({"total": None})
    json.loads((tmp_path / "manifest.json").read_text())
