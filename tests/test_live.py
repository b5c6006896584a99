"""A training started detached, watched and stopped; what a widget shows is what the files say, damaged or not."""

from __future__ import annotations

import base64
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pytest
import torch
from PIL import Image
from toys import CLASSES, TINY, coloured, recipe

import hpdval
from hpdval import cli
from hpdval.attempt import INHERITED, attempt
from hpdval.detached import start_training, stop_training
from hpdval.errors import ConfigError, RunError
from hpdval.files import read_json, write_json
from hpdval.lab.live import follow
from hpdval.lab.live.follow import Follower, WatchedRun
from hpdval.lab.live.page import details, heading
from hpdval.lab.live.tail import Tail, log_lines
from hpdval.lab.live.widget import LiveView, watch
from hpdval.launch import train_source
from hpdval.records import metrics_line
from hpdval.run import Run, read_metrics, read_predictions
from hpdval.stopping import REQUEST

UPDATES = 100 * 3  # of stage 1: 13 images less 3 for validation, in batches of 4


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A data set that a source names, a tiny model, and a training of a few seconds."""
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
    overrides = {"clip": str(folder / "tiny.json"), "val": 0.2, "stages": "stage1"}
    stage1 = {"stage1.epochs": 100, "stage1.batch_size": 4, "stage1.lr": 1e-4}
    data = {"test": "test.csv", "classes": list(CLASSES)}
    return {"source": str(folder / "train.csv"), "overrides": {**overrides, **stage1}, "data": data, "device": "cpu"}


def wait_until(condition: Callable[[], Any], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)


def start(folder: Path, **more: Any) -> Run:
    """Open a run that looks like stage 1 of a training of 6 updates in 2 epochs."""
    config = asdict(recipe(**{"stage1.epochs": 2, "stage1.batch_size": 2}))
    return Run(folder, kind="stage1", config=config, inputs={"images": {"train": 5}}, **more)


def log(run: Run, step: int, **values: float) -> None:
    losses = values or {"cls": 1 / step, "kd": 0.5, "loss": 0.5 + 1 / step, "lr": 1e-3}
    run.log(stage="stage1", step=step, epoch=(step - 1) // 3, **losses)


# -- a real training, in a process of its own ------------------------------------------------------------------------


def test_started_detached_watched_stopped_twice_and_continued_no_bit_differs(
    tmp_path: Path, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run = tmp_path / "runs" / "photos"
    began = time.monotonic()
    assert start_training(run=run, **job) == run
    assert time.monotonic() - began < 2, "it returns at once"
    with pytest.raises(RunError, match="photos is in use by another process; watch or stop that one"):
        start_training(run=run, **job)
    with pytest.raises(RunError, match="is in use by another process"):
        train_source(run=run, show=False, **job)

    view = watch(run, every=0.05)  # in a thread, as in a notebook
    assert view.snapshot.state == "running"
    seen: set[int] = set()
    wait_until(lambda: ((stage := view.snapshot.active) and seen.add(stage.update)) or len(seen) > 3)
    active = view.snapshot.active
    assert active is not None
    assert (active.name, active.updates, active.epochs) == ("stage1", UPDATES, 100)
    assert [stage.name for stage in view.snapshot.stages] == ["zero-shot", "stage1"]
    view.stop_button.click()
    assert not view._ended.is_set()
    assert not (run / REQUEST).exists(), "the first click asks"
    view.confirm_button.click()
    wait_until(lambda: view.snapshot.state == "stopped")
    assert view.snapshot.reason.startswith("stage1 stopped on request after update ")
    assert view.snapshot.reason in view.snapshot.log[-1]
    first = len([r for r in read_metrics(run / "stage1") if "loss" in r])
    assert 0 < first < UPDATES

    start_training(run=run, **job)  # the same call continues
    wait_until(lambda: view.snapshot.active and view.snapshot.active.update > first)
    key = read_json(run / "stage1" / "run.json")["key"]
    assert cli.main(["stop", key[:8], "--root", str(tmp_path / "runs")]) == 0
    assert f"asked to stop: {run / 'stage1'}" in capsys.readouterr().out
    wait_until(lambda: view.snapshot.state == "stopped")
    second = len([r for r in read_metrics(run / "stage1") if "loss" in r])
    assert first < second < UPDATES

    start_training(run=run, **job)
    wait_until(lambda: view.snapshot.state == "done")
    assert view.snapshot.active is not None
    assert view.snapshot.active.update == UPDATES
    assert f"{view.snapshot.active.result['total']:.2f}" in view.details.value
    view.close()
    with pytest.raises(RunError, match=r"nothing trains in .*photos; there is nothing to stop"):
        stop_training(run)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = train_source(run=tmp_path / "whole", show=False, **job)["stage 1"]
    torch.set_num_threads(threads)
    assert (whole / "clip.safetensors").read_bytes() == (run / "stage1" / "clip.safetensors").read_bytes()
    assert np.array_equal(read_predictions(whole)["scores"], read_predictions(run / "stage1")["scores"])
    assert read_metrics(whole) == read_metrics(run / "stage1")


def test_what_cannot_start_says_why(tmp_path: Path, job: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"no field 'stage1.rate'"):
        start_training("scenes-lt", run=tmp_path / "a", overrides={"stage1.rate": 1})
    assert not (tmp_path / "a").exists()
    run = start_training(run=tmp_path / "b", **{**job, "source": str(tmp_path / "missing.csv")})
    view = watch(run, every=0.05)
    wait_until(lambda: view.snapshot.state == "failed")
    assert "missing.csv" in view.snapshot.reason
    view.close()


def test_a_detached_process_has_a_session_of_its_own_and_no_standard_input(
    tmp_path: Path, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither Ctrl-C nor the end of the kernel reaches it, and it does not take an empty standard input for that."""
    started: dict[str, Any] = {}

    class Started(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, command: list[str], **options: Any) -> None:
            started.update(options, command=command)
            super().__init__([sys.executable, "-c", "pass"], **options)

    monkeypatch.setenv("HPDVAL_PARENT_HOLDS_STDIN", "1")
    monkeypatch.setattr(subprocess, "Popen", Started)
    start_training(run=tmp_path, **job)
    assert started["start_new_session"]
    assert started["stdin"] == subprocess.DEVNULL
    assert "HPDVAL_PARENT_HOLDS_STDIN" not in started["env"]
    assert started["env"][INHERITED] == str(started["pass_fds"][0])
    parsed = cli.build_parser().parse_args(started["command"][4:])
    assert (parsed.source, parsed.out, parsed.device) == (job["source"], str(tmp_path), "cpu")


def test_an_attempt_says_how_it_ended_and_forgets_older_requests(tmp_path: Path) -> None:
    (tmp_path / REQUEST).touch()
    with attempt(tmp_path, {"source": "x", "runs": []}):
        assert not (tmp_path / REQUEST).exists()
        assert read_json(tmp_path / "train.json")["status"] == "running"
        assert Follower(tmp_path).look().state == "running"
        (tmp_path / REQUEST).touch()
        assert Follower(tmp_path).look().state == "stopping"
    assert read_json(tmp_path / "train.json")["status"] == "done"
    assert not (tmp_path / REQUEST).exists()
    for error, status in ((KeyboardInterrupt(), "stopped"), (ValueError("a\nb"), "failed")):
        with pytest.raises(type(error)), attempt(tmp_path, {"runs": []}):
            raise error
        assert read_json(tmp_path / "train.json")["status"] == status
    assert Follower(tmp_path).look().reason == "ValueError: a b"


# -- reading metrics as they grow ------------------------------------------------------------------------------------


def test_only_new_lines_are_read_and_a_cut_one_waits(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    tail.read()
    assert tail.records == []
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    tail.read()
    assert tail.records == read_metrics(tmp_path) == [{"a": 1}, {"a": 2}]
    with open(path, "r+b") as file:  # of what was read, the last line alone is looked at again
        file.write(b'{"a": 7}')
        file.seek(0, os.SEEK_END)
        file.write(b': 3}\n{"a": 4}\n')
    tail.read()
    assert tail.records == [{"a": 1}, {"a": 2}, {"a": 3}, {"a": 4}]
    assert tail.problem == ""


def test_records_that_a_resumed_run_took_back_are_forgotten(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "metrics.jsonl")
    with start(tmp_path) as run:
        for step in (1, 2, 3, 4):
            log(run, step)
        tail.read()
        for kept in (3, 2, 1, 2):
            run.forget_metrics("stage1", kept)  # replaces the file; its number may be one that there was before
            log(run, kept + 1, loss=7.5 + kept)
            tail.read()
            assert tail.records == read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    tail.read()
    assert tail.records == []


@pytest.mark.parametrize("damage", ["not JSON", "[1]", "\x00\x00\x00", "{" * 20_000, "\ufffd", ""])
def test_a_damaged_line_is_named_and_left_out(tmp_path: Path, damage: str) -> None:
    with start(tmp_path) as run:
        log(run, 1)
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write(f"{damage}\n")
        log(run, 2)
        followed = WatchedRun(tmp_path)
        stage = followed.look()
    assert [record["step"] for record in stage.records] == [1, 2]
    assert followed.problems == ["metrics.jsonl, line 2 is damaged and left out"]


@pytest.mark.parametrize("record", [{"step": "3"}, {"epoch": None}, {"stage": 5}, {"loss": "high"}, {"loss": {}}])
def test_records_of_a_form_that_nobody_knows_are_passed_over(tmp_path: Path, record: dict[str, Any]) -> None:
    with start(tmp_path) as run:
        log(run, 1)
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write(metrics_line({"stage": "stage1", "step": 2, "epoch": 0, "loss": 1.0, **record}))
        assert WatchedRun(tmp_path).look().update == 1


def test_of_a_log_the_last_lines_and_of_a_bar_its_last_state(tmp_path: Path) -> None:
    (tmp_path / "train.log").write_bytes(b"x" * 9000 + b"\n\x1b[31mred\x1b[0m\n\xff\n 10%\r 20%\r\n\n30%\r 40%")
    assert log_lines(tmp_path / "train.log")[-4:] == ("red", "\ufffd", " 20%", " 40%")
    assert log_lines(tmp_path / "none") == ()


# -- what became of a training ---------------------------------------------------------------------------------------


def test_a_run_from_beginning_to_end(tmp_path: Path) -> None:
    follower = Follower(tmp_path)
    assert follower.look().state == "waiting"
    with start(tmp_path / "stage1") as run:
        now = follower.look()
        assert (now.state, now.active and now.active.update) == ("running", 0)
        for step in (1, 2, 3):
            log(run, step)
        log(run, 3, val_map=41.5)
        stage = follower.look().active
        assert stage is not None
        assert (stage.update, stage.updates, stage.epoch, stage.epochs) == (3, 6, 1, 2)
        assert stage.last == {"cls": 1 / 3, "kd": 0.5, "loss": 0.5 + 1 / 3, "lr": 1e-3, "val_map": 41.5}
        assert stage.elapsed is not None
        assert stage.remaining == pytest.approx(stage.elapsed, abs=0.5), "half of the updates are made"
        (tmp_path / "stage1" / REQUEST).touch()
        assert follower.look().state == "stopping"
    now = follower.look()
    assert (now.state, now.reason) == ("interrupted", "its process ended without a word")
    with start(tmp_path / "stage1") as run:
        assert follower.look().state == "running"
        run.finish({"total": 50.0, "head": None, "protocol": "x test, 7 images", "seed": 0, "selection": "none"})
    assert follower.look().state == "done"
    assert "x test, 7 images, seed 0, one run" in details(follower.look())


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (hpdval.run.RunError("the disk\nis full"), "failed", "RunError: the disk is full"),
        (KeyboardInterrupt(), "stopped", ""),
    ],
)
def test_a_run_keeps_what_ended_it(tmp_path: Path, error: BaseException, state: str, reason: str) -> None:
    with pytest.raises(type(error)), start(tmp_path):
        raise error
    now = Follower(tmp_path).look()
    assert (now.state, now.reason) == (state, reason)
    with start(tmp_path):
        pass
    assert Follower(tmp_path).look().state == "interrupted", "that was of an earlier attempt"


def test_of_several_runs_the_one_at_work_is_shown(tmp_path: Path) -> None:
    """As ``hpdval train`` makes them, and a notebook with a run of its own around them."""
    write_json(tmp_path / "train.json", {"runs": ["zero-shot", "stage1", "stage2"], "status": "running"})
    start(tmp_path / "zero-shot").finish({"total": 40.0})
    with start(tmp_path / "stage1") as run:
        log(run, 1)
        now = Follower(tmp_path).look()
        assert [(stage.name, stage.state) for stage in now.stages] == [
            ("zero-shot", "done"),
            ("stage1", "running"),
            ("stage2", "waiting"),
        ]
        assert now.active == now.stages[1]
        run.finish({"total": 41.0})
    assert Follower(tmp_path).look().state == "interrupted", "stage 2 never began, and nobody is at work"
    write_json(tmp_path / "train.json", {"runs": ["zero-shot", "stage1"], "status": "running"})
    assert Follower(tmp_path).look().state == "done"
    with Run(tmp_path, kind="notebook", config={}):
        now = Follower(tmp_path).look()
        assert (now.state, now.active and now.active.name) == ("running", tmp_path.name)


def test_a_notebooks_record_says_what_happened(tmp_path: Path) -> None:
    start(tmp_path / "stage1").close()
    for status, state in (("failed", "failed"), ("killed", "interrupted"), ("running", "interrupted")):
        write_json(
            tmp_path / "notebook.json", {"key": "x", "notebook": "n", "status": status, "error": "ValueError: x"}
        )
        assert Follower(tmp_path).look().state == state


# -- the widget ------------------------------------------------------------------------------------------------------


@pytest.fixture
def running(tmp_path: Path) -> Run:
    """A run at work in this process, after one update."""
    run = start(tmp_path / "stage1")
    log(run, 1)
    return run


def test_the_view_follows_by_itself_and_draws_what_is_new(running: Run) -> None:
    with running:
        view = watch(running.folder.parent, every=0.02)
        assert isinstance(view, ipywidgets.Widget)
        assert "update 1 of 6" in view.state.value
        before = view.curves.value
        assert 'alt="losses of stage1 by update, of which 1 are made"' in before
        assert base64.b64decode(before.partition("base64,")[2].partition('"')[0]).startswith(b"\x89PNG")
        view.refresh()
        assert view.curves.value is before, "nothing is new"
        log(running, 2)
        view._draw_after = 0.0
        wait_until(lambda: "update 2 of 6" in view.state.value and view.curves.value != before, 20)
        view.close()
        log(running, 3)
        time.sleep(0.2)
        assert "update 2 of 6" in view.state.value, "a closed view looks no more"


def test_stop_asks_once_more(running: Run) -> None:
    with running:
        view = watch(running.folder)
        request = running.folder / REQUEST

        def shown() -> list[bool]:
            return [b.layout.display is None for b in (view.stop_button, view.confirm_button, view.cancel_button)]

        assert shown() == [True, False, False]
        view.stop_button.click()
        assert shown() == [False, True, True]
        view.cancel_button.click()
        assert shown() == [True, False, False]
        assert not request.exists()
        view.stop_button.click()
        view.confirm_button.click()
        assert request.exists()
        assert view.snapshot.state == "stopping"
        assert view.stop_button.disabled
    view.refresh()
    assert view.stop_button.disabled, "nothing is at work"
    view.stop()
    assert "there is nothing to stop" in view.details.value
    view.close()


def test_every_part_can_be_found_and_every_button_says_what_it_does(running: Run) -> None:
    with running:
        view = watch(running.folder)
    classes = {name: part for part in vars(view.children[3])["_trait_values"]["children"] for name in part._dom_classes}
    assert set(classes) == {f"hpdval-live-{name}" for name in ("stop", "confirm", "cancel", "refresh")}
    assert all(button.description and button.tooltip for button in classes.values())
    found = {name for part in view.children[:3] for name in part._dom_classes}
    assert found == {f"hpdval-live-{name}" for name in ("state", "curves", "details")}
    view.close()


def test_a_cell_that_is_run_again_takes_its_view_over(running: Run) -> None:
    with running:
        first = watch(running.folder)
        second = watch(running.folder.parent / "stage1" / ".")
        assert first._ended.is_set()
        assert not second._ended.is_set()
        second.close()


def test_what_files_hold_is_shown_as_text(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    folder = tmp_path / evil
    with start(folder / "stage1") as run:
        log(run, 1)
        (folder / "train.log").write_text(evil)
        write_json(folder / "train.json", {"runs": ["stage1", evil], "status": "failed", "error": evil})
        run.finish({"total": 1.0, "protocol": evil, "recipe": evil, "selection": evil})
    view = watch(folder)
    view._message = evil
    view.refresh()
    shown = view._repr_mimebundle_()["text/html"]
    assert shown.count("&lt;img src=x onerror=alert(1)&gt;") > 5
    assert "<img src=x" not in view.state.value + view.details.value + shown


def test_the_static_form_stands_beside_the_widget_and_alone_where_nobody_clicks(
    running: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running:
        view = watch(running.folder)
        bundle = view._repr_mimebundle_()
        assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == view.model_id
        assert "update 1 of 6" in bundle["text/html"]
        assert "data:image/png;base64," in bundle["text/html"]
        monkeypatch.setenv("HPDVAL_HEADLESS", "1")
        alone = watch(running.folder)
        assert set(alone._repr_mimebundle_()) == {"text/plain", "text/html"}
        assert alone._repr_mimebundle_()["text/plain"] == "stage1: running"


@pytest.mark.parametrize("name", ["run.json", "manifest.json", "result.json", "metrics.jsonl"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"status": "done", "key": 3, "files": 7}'])
def test_a_broken_file_is_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    with start(tmp_path) as run:
        log(run, 1)
        run.finish({"total": 1.0})
    (tmp_path / name).write_bytes(content)
    view = watch(tmp_path)
    told = view.snapshot.problems
    assert view.snapshot.state == "damaged"
    assert told
    assert all("\n" not in line for line in told)
    view.close()


def test_whatever_goes_wrong_while_looking_is_a_line_in_the_view(running: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with running:
        view = watch(running.folder, every=0.02)

        def broken(self: Follower) -> None:
            raise ZeroDivisionError("never")

        monkeypatch.setattr(follow.Follower, "look", broken)
        wait_until(lambda: "cannot show stage1: ZeroDivisionError: never" in view.details.value, 20)
        monkeypatch.undo()
        log(running, 2)
        wait_until(lambda: "update 2 of 6" in view.state.value, 20)  # the thread lives on
        assert "cannot show" not in view.details.value
        view.close()


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    for run in ("nothing", tmp_path / "a", "abcdef"):
        with pytest.raises(RunError):
            watch(run, root=tmp_path)
    for every in (0, -1.0, "2", True, None, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=f"^every is {every!r}; it must be a number of seconds above 0$"):
            watch(tmp_path, every=every)  # type: ignore[arg-type]
    assert heading(LiveView(tmp_path, 1.0).snapshot).endswith("No run has begun here yet.</div>")


KERNEL = """
import hashlib, hpdval
view = hpdval.watch({folder!r}, every=0.05)
view
"""


def test_in_a_kernel_curves_are_drawn_between_cells(running: Run) -> None:
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(extra_arguments=["--HistoryManager.enabled=False"])
    try:

        def ask(code: str) -> str:
            answer = client.execute_interactive(
                "None", user_expressions={"x": code}, output_hook=lambda m: None, timeout=60
            )
            return str(answer["content"]["user_expressions"]["x"]["data"]["text/plain"])

        with running:
            outputs: list[Any] = []
            client.execute_interactive(
                KERNEL.format(folder=str(running.folder)), output_hook=outputs.append, timeout=60
            )
            shown = [m["content"]["data"] for m in outputs if m["msg_type"] in ("execute_result", "display_data")]
            assert {"application/vnd.jupyter.widget-view+json", "text/html"} <= set(shown[0])
            before = ask("hashlib.sha256(view.curves.value.encode()).hexdigest()")
            log(running, 2)
            wait_until(lambda: ask("hashlib.sha256(view.curves.value.encode()).hexdigest()") != before, 30)
            assert "update 2 of 6" in ask("view.state.value")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
