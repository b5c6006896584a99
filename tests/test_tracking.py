"""TensorBoard's event files: what its own reader finds is what ``metrics.jsonl`` holds, however often exported."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpdval import cli, tracking
from hpdval.errors import ConfigError, RunError
from hpdval.files import read_json
from hpdval.run import Run, read_metrics

events = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="the extra `tracking` is not installed"
)
TEST = {"total": 51.25, "head": 60.0, "medium": 50.5, "tail": None}
Curves = dict[str, list[tuple[int, float]]]


def read_back(folder: Path) -> Curves:
    """Tag -> (step, value) as TensorBoard shows them."""
    accumulator = events.EventAccumulator(str(folder), size_guidance={events.SCALARS: 0})
    accumulator.Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def curves(run: Path, *names: str) -> Curves:
    """The same from the lines of ``metrics.jsonl``, with a plain loop."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        f"stage1/{name}": [(r["step"], pytest.approx(r[name], rel=1e-6)) for r in records if name in r]
        for name in names
    }


def log(run: Run, *steps: int) -> None:
    for step in steps:
        run.log(stage="stage1", step=step, epoch=step // 10, cls=1 / (step + 3), loss=2 / (step + 3), lr=1e-4)


def start(folder: Path) -> Run:
    return Run(folder, kind="stage1", config={"name": "scenes"})


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(tracking.EVENTS))


def test_what_tensorboard_reads_is_what_was_logged(tmp_path: Path) -> None:
    with start(tmp_path / "run") as run:
        log(run, *range(1, 21))
        run.log(stage="stage1", step=20, epoch=1, val_map=48.5)
        run.log(stage="stage1", threads=1, numeric="float32", compiled=False, scale=19.5, moved={"global": 0.25})
        run.finish(TEST)
    mirror = tracking.Mirror(tmp_path / "run", tmp_path / "board")
    assert mirror.update() == 23  # 22 lines and the test images
    found = read_back(tmp_path / "board")
    expected = curves(tmp_path / "run", "epoch", "cls", "loss", "lr")
    assert {tag: found[tag] for tag in expected} == expected
    assert found["stage1/val_map"] == [(20, 48.5)]
    assert found["stage1/scale"] == [(20, 19.5)]  # it was logged without a step, when the stage ended
    assert found["stage1/moved/global"] == [(20, 0.25)]
    assert {tag: found[f"test/{tag}"] for tag in ("total", "head", "medium")} == {
        "total": [(20, 51.25)],
        "head": [(20, 60.0)],
        "medium": [(20, 50.5)],
    }
    assert not {"test/tail", "stage1/numeric", "stage1/compiled", "stage1/step"} & found.keys()


def test_a_second_export_appends_what_is_new_and_a_third_nothing(tmp_path: Path) -> None:
    board = tmp_path / "board"
    with start(tmp_path / "run") as run:
        log(run, 1, 2, 3)
        assert tracking.Mirror(run.folder, board).update() == 3
        first = {name: (board / name).read_bytes() for name in files(board)}
        log(run, 4, 5)
        assert tracking.Mirror(run.folder, board).update() == 2
        assert {name: (board / name).read_bytes() for name in first} == first  # nothing was written again
        run.finish(TEST)
    assert tracking.Mirror(run.folder, board).update() == 1
    before = files(board)
    assert tracking.Mirror(run.folder, board).update() == 0
    assert files(board) == before
    assert read_back(board)["stage1/loss"] == curves(run.folder, "loss")["stage1/loss"]
    assert read_back(board)["test/total"] == [(5, 51.25)]


def test_a_run_that_trains_keeps_one_event_file_open(tmp_path: Path) -> None:
    with start(tmp_path / "run") as run:
        mirror = tracking.Mirror(run.folder, tmp_path / "board")
        for step in range(1, 6):
            log(run, step)
            assert mirror.update() == 1
            assert mirror.update() == 0
        assert len(files(tmp_path / "board")) == 1
        assert read_back(tmp_path / "board")["stage1/loss"] == curves(run.folder, "loss")["stage1/loss"]
        mirror.close()


def taken_back(run: Run, board: Path) -> None:
    run.forget_metrics("stage1", 2)
    run.log(stage="stage1", step=3, loss=9.0)


def killed_midway(run: Run, board: Path) -> None:
    state = read_json(board / tracking.STATE)
    (board / tracking.STATE).write_text(json.dumps({**state, "files": None}))
    log(run, 5)


def altered(run: Run, board: Path) -> None:
    (board / files(board)[0]).write_bytes(b"")
    log(run, 5)


@pytest.mark.parametrize("happens", [taken_back, killed_midway, altered])
def test_a_mirror_that_no_longer_agrees_is_made_anew(tmp_path: Path, happens: Callable[[Run, Path], None]) -> None:
    board = tmp_path / "board"
    with start(tmp_path / "run") as run:
        log(run, 1, 2, 3, 4)
        tracking.Mirror(run.folder, board).update()
        watching = events.EventAccumulator(str(board))
        watching.Reload()
        happens(run, board)
        tracking.Mirror(run.folder, board).update()
        assert read_back(board)["stage1/loss"] == curves(run.folder, "loss")["stage1/loss"]
        watching.Reload()  # a TensorBoard that was open all the time sees the same
        seen = [(e.step, e.value) for e in watching.Scalars("stage1/loss")]
        assert seen == curves(run.folder, "loss")["stage1/loss"]


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    with start(tmp_path / "run") as run:
        log(run, 1)
    with pytest.raises(ConfigError, match="is a run folder; choose another"):
        tracking.Mirror(run.folder, run.folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/events.out.tfevents.1.me").write_text("precious")
    with pytest.raises(ConfigError, match="event files that hpdval did not write"):
        tracking.Mirror(run.folder, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["events.out.tfevents.1.me"]


def test_the_command_mirrors_the_chosen_runs_by_name_and_goes_on_past_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a/stage1", 0), ("b/stage1", 1), ("c", 2), ("d", 3)):
        with Run(tmp_path / "runs" / name, kind="stage1", config={"seed": seed}) as run:
            log(run, 1, 2)
    with open(tmp_path / "runs/a/stage1/metrics.jsonl", "r+") as file:
        file.write("rubbish")
    assert cli.main(["runs", "--tensorboard", "board", "--where", "seed<3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("a/stage1 is left out: ")
    assert "line 1 is not JSON" in lines[0]
    assert lines[1:] == ["new in board: 4 records, runs: b/stage1, c"]
    assert sorted(str(p.parent) for p in Path("board").rglob(tracking.EVENTS)) == ["board/b/stage1", "board/c"]
    assert cli.main(["runs", "--tensorboard", "board", "--where", "seed<3", "runs/b", "runs/c"]) == 0
    assert capsys.readouterr().out == "new in board: 0 records, runs: none\n"  # the same names from other folders


def test_two_exports_into_one_folder_do_not_mix(tmp_path: Path) -> None:
    def again() -> list[str]:
        tracking.mirror_runs(lambda: [], tmp_path / "board")
        return []

    with pytest.raises(RunError, match="another process mirrors runs into"):
        tracking.mirror_runs(again, tmp_path / "board")


def test_without_tensorboard_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    start(tmp_path / "run").close()
    assert cli.main(["runs", str(tmp_path), "--tensorboard", str(tmp_path / "board")]) == 2
    assert capsys.readouterr().err == (
        "hpdval: TensorBoard is not installed; install the extra: pip install 'hpdval[tracking]'\n"
    )
    assert not (tmp_path / "board").exists()


def test_follow_mirrors_a_live_run_to_its_end_and_stops_with_ctrl_c(tmp_path: Path) -> None:
    """The run leaves the condition (it is done) before its last numbers are written; they are mirrored all the same."""
    board = tmp_path / "board"

    def wait_for(tag: str, count: int) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if (board / "run" / tracking.STATE).exists() and len(read_back(board / "run").get(tag, [])) == count:
                return
            time.sleep(0.2)
        pytest.fail(f"{tag} never had {count} points")

    code = "import signal, sys; from hpdval import cli; from hpdval.commands import runs; runs.FOLLOW_SECONDS = 0.2; "
    code += "signal.signal(signal.SIGINT, signal.default_int_handler); "  # ignored where tests run in the background
    words = ["runs", str(tmp_path / "runs"), "--where", "status=running", "--tensorboard", str(board), "--follow"]
    with start(tmp_path / "runs/run") as run:
        log(run, 1, 2)
        command = [sys.executable, "-c", f"{code}sys.exit(cli.main({words}))"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            wait_for("stage1/loss", 2)
            log(run, 3)
            wait_for("stage1/loss", 3)
            run.finish(TEST)
            wait_for("test/total", 1)
            process.send_signal(signal.SIGINT)
            out, error = process.communicate(timeout=30)
        finally:
            process.kill()
            process.wait()
    assert (process.returncode, error) == (0, "")
    assert out.splitlines()[0] == f"following until Ctrl-C; to watch: tensorboard --logdir {board}"
    assert out.splitlines()[1] == f"new in {board}: 2 records, runs: run"
    assert len(read_metrics(run.folder)) == 3
