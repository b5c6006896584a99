"""The list of runs: what became of each, conditions and order, and that damaged or foreign folders do not stop it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hpdval import cli
from hpdval.commands import joined
from hpdval.errors import ConfigError, RunError
from hpdval.files import lock_held, write_json
from hpdval.run import Run, read_manifest
from hpdval.tables import list_runs
from hpdval.tables.inventory import find_run

RESULT = {"method": "stage 1", "recipe": "scenes", "selection": "last epoch", "protocol": "scenes-lt test, 2000 images"}


def start(folder: Path, *, kind: str = "stage1", seed: int = 0, lr: float = 1e-4, **config: Any) -> Run:
    stage1 = {"lr": lr, "epochs": 8, "compile": False, "loss": {"gamma": None}}
    described = {"name": "scenes", "stages": "sequence", "seed": seed, "stage1": stage1, **config}
    return Run(folder, kind=kind, config=described, inputs={"dataset": "scenes-lt"})


def finish(folder: Path, total: float, **options: Any) -> None:
    selection = options.pop("selection", RESULT["selection"])
    with start(folder, **options) as run:
        groups = {"head": total + 8, "medium": total, "tail": None}
        run.finish({**RESULT, "selection": selection, "total": total, **groups})


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Two finished runs and one that was closed early, in the order of their folders: 52.5, unfinished, 47.25."""
    finish(tmp_path / "a", 52.5, seed=0)
    start(tmp_path / "b", seed=1, lr=5e-5).close()
    finish(tmp_path / "c/inner", 47.25, seed=2, selection="best epoch on test")
    return tmp_path


# -- one run by its key ---------------------------------------------------------------------------------------------


def test_a_run_is_found_by_its_folder_or_the_first_characters_of_its_key(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = json.loads((three / "b" / "run.json").read_text())["key"]
    for digits in (6, 12, 64):
        assert find_run(key[:digits], three) == three / "b"
    assert find_run(three / "c") == three / "c"
    monkeypatch.chdir(three)
    assert find_run("b") == three / "b", "a folder goes before a key"
    write_json(three / "n" / "notebook.json", {"key": "abcdef012345", "notebook": "x"})
    (three / "n" / "run.json").write_text("damaged")
    assert find_run("abcdef", three) == three / "n"


def test_a_key_of_no_run_or_of_several_is_refused(three: Path) -> None:
    key = json.loads((three / "b" / "run.json").read_text())["key"]
    for wrong in ("nothing", key[:5], key.upper()[:4] + "xyz", ""):
        with pytest.raises(RunError, match="give a run's folder, or at least 6 characters of its key"):
            find_run(wrong or "-", three)
    with pytest.raises(RunError, match=f"the key {'0' * 12} is that of none below .*; see hpdval runs$"):
        find_run("0" * 12, three)
    shutil.copytree(three / "b", three / "d")
    with pytest.raises(RunError, match=r"is that of 2 runs: .*b, .*d; give the folder below"):
        find_run(key[:8], three)


# -- what became of each run ------------------------------------------------------------------------------------------


def test_finished_and_unfinished_runs_are_rows_with_numbers(three: Path) -> None:
    table = list_runs(three)
    assert [os.path.relpath(folder, three) for folder in table["folder"]] == ["a", "b", "c/inner"]
    assert table["status"].tolist() == ["done", "unfinished", "done"]
    assert table["total"].dropna().tolist() == [52.5, 47.25]
    assert table["seed"].tolist() == [0, 1, 2]
    assert table["tail"].isna().all()
    assert table["stage1.lr"].tolist() == [1e-4, 5e-5, 1e-4]
    assert table["method"].tolist() == ["stage 1", "stage1", "stage 1"]  # of the result, else the kind
    manifest = read_manifest(three / "a")
    assert table["minutes"][0] == pytest.approx(manifest["wall_seconds"] / 60)
    assert table["finished"][0].timestamp() == pytest.approx(manifest["finished"], abs=0.01)
    assert table["commit"][0].rstrip("+") == (manifest["code"]["commit"] or "")[:10]
    assert table["selected_on_test"].tolist() == [False, None, True]
    assert str(table["finished"].dtype).endswith("UTC]")


def test_a_run_is_running_while_its_lock_is_held_and_not_after_its_process_died(tmp_path: Path) -> None:
    code = f"""
        import time
        from hpdval.run import Run
        run = Run({str(tmp_path)!r}, kind="test", config={{}})
        print("locked", flush=True)
        time.sleep(60)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "locked"
        assert list_runs(tmp_path)["status"].tolist() == ["running"]
        with pytest.raises(RunError, match="in use by another process"):  # it still is: the question took nothing
            Run(tmp_path, kind="test", config={})
    finally:
        process.kill()
        process.wait()
    assert list_runs(tmp_path)["status"].tolist() == ["unfinished"]


def test_asking_for_a_lock_creates_nothing_and_a_run_that_starts_meanwhile_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl
    import threading

    monkeypatch.delenv("HPDVAL_LOCK_WAIT", raising=False)
    monkeypatch.setattr("hpdval.run.LOCK_SECONDS", 30)  # however busy the machine is
    assert not lock_held(tmp_path / "run.lock")
    assert list(tmp_path.iterdir()) == []
    start(tmp_path).close()
    with open(tmp_path / "run.lock") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # another listing, in the instant in which it asks
        assert not lock_held(tmp_path / "run.lock")  # two listings do not take each other for a training
        timer = threading.Timer(0.05, fcntl.flock, [file, fcntl.LOCK_UN])
        timer.start()
        with start(tmp_path):
            assert lock_held(tmp_path / "run.lock")
        timer.join()


@pytest.mark.parametrize(
    ("record", "status", "error"),
    [
        ({"status": "failed", "cell": 4, "error": "ValueError: no"}, "failed", "cell 4: ValueError: no"),
        ({"status": "killed", "error": "stopped after 5 s"}, "killed", "stopped after 5 s"),
        ({"status": "running"}, "unfinished", None),  # whoever wrote that is gone: nobody holds the lock
    ],
)
def test_notebooks_that_failed_before_a_run_are_rows_too(
    tmp_path: Path, record: dict[str, Any], status: str, error: str | None
) -> None:
    parameters = {"seed": 3, "recipe": "hpdval", "dataset": "scenes-lt"}
    about = {"notebook": "05_reproduce.ipynb", "key": "k", "parameters": parameters, "seconds": 90.0}
    write_json(tmp_path / "notebook.json", {**about, **record})
    row = list_runs(tmp_path).iloc[0]
    assert row[["status", "kind", "recipe", "seed", "minutes"]].tolist() == [status, "05_reproduce", "hpdval", 3, 1.5]
    assert row["error"] == error if error else pd.isna(row["error"])


def test_the_runs_inside_a_notebooks_folder_have_their_own_rows(tmp_path: Path) -> None:
    write_json(tmp_path / "n/notebook.json", {"notebook": "05_reproduce.ipynb", "key": "k", "status": "failed"})
    finish(tmp_path / "n/zero-shot", 47, kind="zero-shot")
    start(tmp_path / "n/stage1").close()
    assert list_runs(tmp_path)["status"].tolist() == ["failed", "unfinished", "done"]
    assert list_runs(tmp_path)["kind"].tolist() == ["05_reproduce", "stage1", "zero-shot"]


# -- what is not a run, or no longer one -------------------------------------------------------------------------------


def test_damaged_runs_are_listed_with_the_reason_and_foreign_files_are_not(three: Path) -> None:
    for name in ("cut", "altered", "other", "absurd"):
        shutil.copytree(three / "a", three / name)
    (three / "cut/run.json").write_text('{"key": "')
    (three / "altered/result.json").write_text('{"total": 99.9}')
    start(three / "elsewhere", seed=9).close()
    shutil.copy(three / "elsewhere/run.json", three / "other/run.json")
    (three / "folder/run.json").mkdir(parents=True)
    (three / "loop").symlink_to(three)
    (three / "dangling").symlink_to(three / "nowhere")
    (three / "web").mkdir()
    (three / "web/manifest.json").write_text('{"name": "an app", "icons": []}')
    (three / "list").mkdir()
    (three / "list/run.json").write_text("[1, 2]")
    absurd = json.loads((three / "absurd/manifest.json").read_text())
    del absurd["seal"]  # as somebody else writes one
    absurd |= {"finished": 10**400, "wall_seconds": "long", "inputs": 3, "code": None, "files": {}}
    absurd["config"] |= {"seed": 2**70}
    (three / "absurd/manifest.json").write_text(json.dumps(absurd))

    table = list_runs(three)
    table.index = pd.Index([os.path.relpath(folder, three) for folder in table["folder"]])
    expected = {"a", "b", "c/inner", "cut", "altered", "other", "absurd", "elsewhere", "folder"}
    assert set(table.index) == expected
    assert len(table) == len(expected)  # the loop was not followed twice
    damaged = table[table["status"] == "damaged"]["error"]
    assert set(damaged.index) == {"cut", "altered", "other", "folder"}
    assert "run.json is not valid JSON" in damaged["cut"]
    assert damaged["altered"] == "result.json differs from its hash in the manifest"
    assert damaged["other"] == "manifest.json is that of another run than run.json"
    assert pd.isna(table.loc["altered", "total"])  # no number that nobody measured
    assert table.loc["absurd", ["seed", "minutes", "finished"]].isna().all()


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    finish(tmp_path / "disk/run", 50)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/linked").symlink_to(tmp_path / "disk")
    assert list_runs(tmp_path / "runs")["folder"].tolist() == [str(tmp_path / "runs/linked/run")]
    assert list_runs(tmp_path)["folder"].tolist() == [str(tmp_path / "disk/run")]
    assert len(list_runs(tmp_path / "runs", tmp_path / "disk", tmp_path)) == 1


def test_a_thousand_runs_take_a_few_seconds(tmp_path: Path) -> None:
    finish(tmp_path / "0", 50)
    for number in range(1, 1000):
        (tmp_path / str(number)).mkdir()
        for name in ("run.json", "manifest.json", "result.json", "run.lock"):
            shutil.copy(tmp_path / "0" / name, tmp_path / str(number) / name)
    began = time.process_time()
    assert list_runs(tmp_path)["total"].sum() == 50_000
    assert time.process_time() - began < 5  # about 0.5 s


# -- conditions, order, columns ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "seeds"),
    [
        ("total>50", [0]),
        ("total >= 47.25", [0, 2]),
        (["total<60", "status=done", "seed!=0"], [2]),
        ("stage1.lr=5e-5", [1]),
        ("stage1.lr!=5e-5", [0, 2]),
        ("total=", [1]),
        ("total!=", [0, 2]),
        ("stage1.compile=False", [0, 1, 2]),
        ("stage1.loss.gamma=2", []),
        ("folder~/C/", [2]),
        ("selected_on_test=true", [2]),
        ("finished>2026-01-31T18:00", [0, 2]),
        ("finished>2999-01-31", []),
        ("protocol=scenes-lt test, 2000 images", [0, 2]),
    ],
)
def test_conditions(three: Path, where: str | list[str], seeds: list[int]) -> None:
    assert list_runs(three, where=where)["seed"].tolist() == seeds


@pytest.mark.parametrize(
    ("sort", "seeds"),
    [
        ("-total", [0, 2, 1]),
        ("total", [2, 0, 1]),
        ("-seed", [2, 1, 0]),
        ("status", [0, 2, 1]),
        ("-finished", [2, 0, 1]),
    ],
)
def test_order_has_what_is_missing_last(three: Path, sort: str, seeds: list[int]) -> None:
    assert list_runs(three, sort=sort)["seed"].tolist() == seeds


def test_a_field_that_holds_numbers_and_words_is_compared_and_sorted(tmp_path: Path) -> None:
    for folder, weights in (("a", "frequency"), ("b", 0.5), ("c", None), ("d", 2)):
        start(tmp_path / folder, weights=weights).close()

    def kept(where: str) -> list[str]:
        return [Path(folder).name for folder in list_runs(tmp_path, where=where)["folder"]]

    assert kept("weights>0.4") == ["b", "d"]
    assert kept("weights=frequency") == ["a"]
    assert kept("weights=2.0") == ["d"]
    assert kept("weights!=frequency") == ["b", "c", "d"]
    assert list_runs(tmp_path, sort="weights")["weights"].tolist() == [0.5, 2, "frequency", None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": "totl>5"}, "there is no column 'totl'; did you mean total"),
        ({"where": "lr=1"}, "there is no column 'lr'; did you mean stage1.lr"),
        ({"where": "qqqq=1"}, "there is no column 'qqqq'; there are status, method, kind.*stage1.lr"),
        ({"where": "total"}, "'total' is not NAME=VALUE; operators are = != > >= < <= ~"),
        ({"where": "total=>5"}, "total is a number; '>5' is none"),
        ({"where": "total=best"}, "total is a number; 'best' is none"),
        ({"where": "recipe>3"}, "recipe is text; compare it with =, != or ~, not >"),
        ({"where": "finished<soon"}, "finished is a time; 'soon' is none"),
        ({"sort": "-totl"}, "there is no column 'totl'; did you mean total"),
    ],
)
def test_wrong_names_and_operators_are_one_line_that_says_what_there_is(
    three: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        list_runs(three, **options)  # type: ignore[arg-type]


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def hpdval_runs(three: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """``hpdval runs`` in the folder of the three runs: exit code, output, errors."""
    monkeypatch.chdir(three)
    monkeypatch.delenv("COLUMNS", raising=False)

    def command(*words: str) -> tuple[int, str, str]:
        code = cli.main(["runs", *words])
        return code, *capsys.readouterr()

    return command


def test_the_command_shows_what_fits_the_terminal(hpdval_runs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, wide, _ = hpdval_runs(".", "--sort", "-total")
    assert wide.splitlines()[0].split()[:5] == ["status", "method", "recipe", "dataset", "seed"]
    folders = [line.split()[-1] for line in wide.splitlines()[1:4]]
    assert folders == ["a", "c/inner", "b"]
    assert "47.25 *" in wide  # chosen on test images: the number never stands alone
    assert wide.splitlines()[-1] == "*: selected on the test images"
    monkeypatch.setenv("COLUMNS", "80")
    _, narrow, _ = hpdval_runs(".")
    assert max(map(len, narrow.splitlines())) <= 80
    assert {"status", "seed", "total", "folder"} < set(narrow.splitlines()[0].split())
    assert "finished" not in narrow.splitlines()[0]


def test_the_command_chooses_columns_and_says_why_a_run_failed(hpdval_runs: Any, three: Path) -> None:
    write_json(three / "d/notebook.json", {"notebook": "x.ipynb", "key": "k", "status": "failed", "error": "no disk"})
    _, out, _ = hpdval_runs(".", "--columns", "seed, stage1.lr,status", "--where", "folder~d", "--where", "seed=")
    assert out == "seed  stage1.lr  status\n   -          -  failed\n\nd: failed: no disk\n"


def test_the_command_writes_a_csv_with_every_digit(hpdval_runs: Any, three: Path) -> None:
    assert hpdval_runs(".", "--csv", "all.csv", "--where", "total>50") == (0, "1 run: all.csv\n", "")
    table = pd.read_csv("all.csv")
    assert table[["total", "stage1.lr", "status"]].to_numpy().tolist() == [[52.5, 1e-4, "done"]]
    hpdval_runs(".", "--csv", "two.csv", "--columns", "folder,total")
    assert list(pd.read_csv("two.csv").columns) == ["folder", "total"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "there is no folder nowhere"),
        ([], "there is no folder runs; give folders that hold runs"),
        ([".", "--columns", "totl"], "there is no column 'totl'; did you mean total"),
        ([".", "--follow"], "--follow needs --tensorboard DIR"),
    ],
)
def test_wrong_options_are_one_line(hpdval_runs: Any, words: list[str], message: str) -> None:
    code, out, error = hpdval_runs(*words)
    assert (code, out) == (2, "")
    assert error.startswith(f"hpdval: {message}")
    assert error.count("\n") == 1


def test_nothing_found_is_said(hpdval_runs: Any, three: Path) -> None:
    (three / "empty").mkdir()
    assert hpdval_runs("empty", "--where", "total>5")[1] == "no run below empty fulfils the conditions\n"
    assert hpdval_runs("empty")[1] == "no run below empty\n"


def test_only_sort_takes_a_value_with_a_dash() -> None:
    assert joined(["--sort", "--where", "a", "-p"]) == ["--sort", "--where", "a", "-p"]
