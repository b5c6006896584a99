"""Sweeps: a grid means what it says, each run is made once, and what dies in the middle is finished by the next."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
import yaml
from faults import Faults
from nbformat.v4 import new_code_cell, new_notebook

from hpdval.cli import main
from hpdval.comparisons import read_sweep
from hpdval.errors import ConfigError, RunError
from hpdval.run import Run
from hpdval.sweep import cluster, execute
from hpdval.sweep.execute import sweep
from hpdval.sweep.grid import grid_names, read_grid, text
from hpdval.sweep.plan import Plan, make_plan

PARAMETERS = 'seed = 0\nrate = 0.5\nname = "a"\nseconds = 0.0\nrun_dir = ""'
TRAIN = """import os, pathlib, time
import numpy as np
from hpdval.run import Run
with open(pathlib.Path(run_dir).parent / "starts.txt", "a") as file:
    file.write(f"{name} {seed} {os.getpid()}\\n")
pathlib.Path(run_dir, "environment.txt").write_text(" ".join(os.environ))
time.sleep(seconds)"""
FAIL = 'if name == "broken":\n    raise ValueError("this setting cannot work")'
FINISH = """run = Run(run_dir, kind="toy", config={"rate": rate, "name": name, "seed": seed})
targets = np.eye(6, 3, dtype=np.uint8)
run.save_predictions([str(i) for i in range(6)], rate * targets + seed, targets, ["x", "y", "z"])
run.finish({"method": "toy", "seed": seed})"""


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    """One that takes `seconds` and leaves predictions; no torch, so a run takes a second or two."""
    first = new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    path = tmp_path / "toy.ipynb"
    nbformat.write(new_notebook(cells=[first, *map(new_code_cell, (TRAIN, FAIL, FINISH))]), path)
    return path


@pytest.fixture
def grid(tmp_path: Path) -> Callable[..., Path]:
    def write(**content: Any) -> Path:
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return path

    return write


def starts(folder: Path) -> list[str]:
    """Each start of a run, "name seed", in order."""
    path = folder / "runs" / "starts.txt"
    return [line.rpartition(" ")[0] for line in path.read_text().splitlines()] if path.exists() else []


def statuses(folder: Path) -> dict[str, str]:
    return {name: run["status"] for name, run in json.loads((folder / "sweep.json").read_text())["runs"].items()}


# -- grids ---------------------------------------------------------------------------------------------------------


def test_every_combination_of_a_plain_grid(notebook: Path, grid: Callable[..., Path]) -> None:
    plan = make_plan(notebook, read_grid(grid(grid={"rate": [0.1, 0.2], "name": ["a", "b", "c"]})), seeds=2)
    assert len(plan.jobs) == 2 * 3 * 2
    labels = [cell["label"] for cell in plan.comparisons[0]["cells"]]
    assert labels[:2] == ["rate = 0.1, name = a", "rate = 0.1, name = b"]
    assert [job.seed for job in plan.jobs.values()] == [0] * 6 + [1] * 6  # a whole first seed before the second
    assert plan.comparisons[0]["reference"] == labels[0]


def test_one_numeric_name_makes_a_curve(notebook: Path, grid: Callable[..., Path]) -> None:
    [comparison] = make_plan(notebook, read_grid(grid(grid={"rate": [0.4, "default", "1e-3"]})), seeds=1).comparisons
    assert comparison["axis"] is None  # not all of them are numbers
    [comparison] = make_plan(notebook, read_grid(grid(grid={"rate": ["1e-4", 0.4]})), seeds=1).comparisons
    assert [cell["value"] for cell in comparison["cells"]] == [1e-4, 0.4]  # as YAML reads 1e-4
    [comparison] = make_plan(notebook, read_grid(grid(grid={"rate": [0.4, 0.1]})), seeds=1).comparisons
    assert comparison["axis"] == "rate"
    assert [cell["value"] for cell in comparison["cells"]] == [0.1, 0.4]


def test_default_is_the_value_of_notebook_or_recipe_and_the_reference(grid: Callable[..., Path]) -> None:
    comparisons = {"k": {"axis": "k", "vary": {"score.k": [0.5, "default", 1.0]}}}
    plan = make_plan("05", read_grid(grid(base={"recipe": "scenes"}, comparisons=comparisons)), seeds=1)
    [comparison] = plan.comparisons
    assert [cell["label"] for cell in comparison["cells"]] == [text(32 / 196), "0.5", "1"]
    assert comparison["reference"] == text(32 / 196)


def test_what_is_the_same_in_other_words_is_one_run(grid: Callable[..., Path]) -> None:
    comparisons = {
        "alpha": {"axis": "alpha", "vary": {"score.alpha": ["default", 0.4, 0.8]}},  # 0.4 is the recipe's
        "lr": {"cells": {"as it is": {}, "other": {"stage2.lr": 0.01}}},
    }
    plan = make_plan("05", read_grid(grid(base={"recipe": "scenes"}, comparisons=comparisons)), seeds=1)
    assert len(plan.jobs) == 3
    cells = {c["name"]: {cell["label"]: cell["runs"]["0"] for cell in c["cells"]} for c in plan.comparisons}
    assert [*cells["alpha"]] == ["0.4", "0.8"]
    assert cells["alpha"]["0.4"] == cells["lr"]["as it is"]
    assert plan.jobs[cells["lr"]["other"]].needs == cells["lr"]["as it is"]  # they differ in stage 2 alone
    assert plan.jobs[cells["alpha"]["0.8"]].needs is None


def test_stage_1_alone_is_taken_from_a_run_of_both_stages(grid: Callable[..., Path]) -> None:
    comparisons = {"kd": {"set": {"stages": "stage1"}, "vary": {"stage1.kd_weight": ["default", 0.5]}}}
    alone = make_plan("05", read_grid(grid(base={"recipe": "scenes"}, comparisons=comparisons)), seeds=1)
    assert all("method" not in cell or cell["method"] is None for cell in alone.comparisons[0]["cells"])
    both = {**comparisons, "all": {"cells": {"both": {}, "again": {"stage2.lr": 0.02}}}}
    plan = make_plan("05", read_grid(grid(base={"recipe": "scenes"}, comparisons=both)), seeds=1)
    default = plan.comparisons[0]["cells"][0]
    assert default["method"] == "stage 1"
    assert default["runs"] == plan.comparisons[1]["cells"][0]["runs"]
    assert len(plan.jobs) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"grid": {"rate": [1]}, "comparisons": {}}, "either 'grid' or 'comparisons'"),
        ({"grid": {"rate": 0.5}}, "rate is 0.5; give a list of values"),
        ({"grid": {"rate": [[1]]}}, "rate is [1]; it must be text, a number"),
        ({"grid": {"rat": [1]}}, "no parameter 'rat'; did you mean rate"),
        ({"grid": {"rate": ["fast"]}}, "parameter rate is 'fast'; it must be a number"),
        ({"grid": {"seed": [1]}}, "seed is set by the sweep itself"),
        ({"grid": {}}, "it must be a mapping"),
        ({"gird": {}}, "has 'gird'; allowed: base, comparisons, grid, title"),
        ({"base": {"seed": 1}, "grid": {"rate": [1]}}, "seed is set by the sweep itself"),
        ({"comparisons": {"a/b": {"vary": {"rate": [1]}}}}, "'a/b' names files"),
        ({"comparisons": {"a": {"vary": {"rate": [1]}, "cells": {}}}}, "either 'vary' or 'cells'"),
        ({"comparisons": {"a": {"reference": "2", "vary": {"rate": [1]}}}}, "reference '2' is none of 1"),
        ({"comparisons": {"a": {"axis": "x", "vary": {"name": ["one"]}}}}, "its values must be numbers"),
        ({"comparisons": {"a": {"cells": {"x": {"rate": None}}}}}, "rate is None; it must be text"),
        ({"grid": {"rate": [{"unless": {"name": "a"}}]}}, "has no 'value'"),
        ({"grid": {"rate": [{"value": 1, "unless": {"mane": "a"}}]}}, "neither the notebook nor its recipe has 'mane'"),
        ({"grid": {"rate": [{"value": 1, "unless": {"name": "a"}}]}}, "leaves out every setting"),
    ],
)
def test_a_grid_that_cannot_be_used(
    notebook: Path, grid: Callable[..., Path], content: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        make_plan(notebook, read_grid(grid(**content)), seeds=1)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


NO_GRIDS = ["- a\n- b", "a: [1", "just text", "", "\x00", "a: &a [*a]", "grid: !!timestamp abc"]


@pytest.mark.parametrize("content", NO_GRIDS)
def test_a_file_that_is_no_grid(tmp_path: Path, content: str) -> None:
    (tmp_path / "grid.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        read_grid(tmp_path / "grid.yaml")
    assert "\n" not in str(error.value)


def test_references_are_written_as_labels_are(notebook: Path, grid: Callable[..., Path]) -> None:
    for reference in (1.0, 1, "1"):
        one = {"reference": reference, "vary": {"rate": [0.5, 1.0]}}
        assert make_plan(notebook, read_grid(grid(comparisons={"a": one})), seeds=1).comparisons[0]["reference"] == "1"


@pytest.mark.parametrize("cell", [{"method": "zero-shoot"}, {"method": "stage 1", "stages": "stage2"}])
def test_a_method_that_no_run_trains(grid: Callable[..., Path], cell: dict[str, str]) -> None:
    source = grid(base={"recipe": "scenes"}, comparisons={"a": {"cells": {"x": cell}}})
    with pytest.raises(ConfigError, match=r"comparison a: method is .*; its runs give zero-shot, stage"):
        make_plan("05", read_grid(source), seeds=1)


def test_names_that_are_not_there(notebook: Path, grid: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"neither a file nor a grid of this project: ablations"):
        read_grid("ablation")
    with pytest.raises(ConfigError, match="no comparison 'beta'; it has components, views"):
        read_grid("ablations", only=("beta",))
    with pytest.raises(ConfigError, match="seeds is 0"):
        make_plan(notebook, read_grid(grid(grid={"rate": [1.0]})), seeds=0)


@pytest.mark.parametrize("name", grid_names())
@pytest.mark.parametrize("other", [{}, {"recipe": "hpdval", "dataset": "coco-lt", "root": "somewhere"}])
def test_the_grids_of_this_project_fit_small_and_published_data(name: str, other: dict[str, str]) -> None:
    plan = make_plan("05", read_grid(name), seeds=3, parameters=other)
    assert len(plan.jobs) % 3 == 0
    for comparison in plan.comparisons:
        assert comparison["reference"] in [cell["label"] for cell in comparison["cells"]]
        for cell in comparison["cells"]:
            assert [*cell["runs"]] == ["0", "1", "2"]
            assert {plan.jobs[run].seed for run in cell["runs"].values()} == {0, 1, 2}


def test_the_ablations_are_those_of_the_paper() -> None:
    grid = read_grid("ablations")
    names = {question.name for question in grid.questions}
    assert names >= {"components", "views", "alpha", "k", "contexts", "init", "loss", "kd", "consistency", "anchor"}
    assert names >= {"reading", "student"}
    values = {q.name: [s.label for s in q.settings if s.label] for q in grid.questions}
    assert values["alpha"] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert [round(float(k) * 196) for k in values["k"]] == [12, 48, 64, 196]  # 32 is the default
    assert values["contexts"] == ["2", "4", "8", "16", "32", "64"]
    for other, last in (({}, "16"), ({"recipe": "hpdval", "dataset": "voc-lt"}, "64")):  # the small CLIP has 24 tokens
        [contexts] = make_plan("05", read_grid("ablations", ("contexts",)), seeds=1, parameters=other).comparisons
        assert contexts["cells"][-1]["label"] == last
    assert {"bce", "multilabel_soft_margin", "cb_focal", "asl", "db_star"} < set(values["loss"])


def test_a_dry_run_says_what_would_be_done_and_does_nothing(
    notebook: Path, grid: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = grid(title="Rates", comparisons={"rates": {"vary": {"rate": ["default", 0.1]}}})
    arguments = ["sweep", str(notebook), "--grid", str(source), "--seeds", "2", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Rates: toy, seeds 0, 1"
    assert [line.split()[-2:] for line in lines[1:5]] == [["rates:", "0.5"], ["rates:", "0.1"]] * 2
    assert lines[5] == "4 runs, 0 on a stage 1 that another one makes; 4 to do"
    assert not (tmp_path / "out").exists()


# -- running -------------------------------------------------------------------------------------------------------


def test_runs_failures_and_resuming(
    notebook: Path, grid: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = grid(comparisons={"names": {"title": "Names", "claim": "b wins", "vary": {"name": ["a", "broken", "b"]}}})
    out = tmp_path / "out"
    with pytest.raises(RunError, match="2 of 6 runs failed; the same command tries them again"):
        sweep(notebook, source, seeds=2, out=out, workers=2, show=False, command="the command")
    printed = capsys.readouterr().out
    assert "6 of 6 runs to do; workers: 2 on this machine" in printed
    assert printed.count("failed in cell 4: ValueError: this setting cannot work") == 2
    assert "(names: broken)" in printed
    assert "ValueError: this setting cannot work" in printed.splitlines()[-1]
    assert sorted(starts(out)) == ["a 0", "a 1", "b 0", "b 1", "broken 0", "broken 1"]
    assert sorted(statuses(out).values()) == ["done"] * 4 + ["failed"] * 2

    record = read_sweep(out)
    [comparison] = record.comparisons
    assert (comparison.title, comparison.claim, comparison.reference) == ("Names", "b wins", "a")
    assert [(cell.label, sorted(cell.runs)) for cell in comparison.cells] == [
        ("a", [0, 1]),
        ("broken", []),
        ("b", [0, 1]),
    ]
    assert len(record.missing) == 2
    assert record.missing[0].startswith("names, broken, seed 0: failed: ValueError")

    moved = tmp_path / "moved"
    out.rename(moved)  # nothing in it depends on where it lies
    [comparison] = read_sweep(moved).comparisons
    assert all(path.is_relative_to(moved) for cell in comparison.cells for path in cell.runs.values())

    with pytest.raises(RunError, match="2 of 6 runs failed"):
        sweep(notebook, source, seeds=2, out=moved, workers=1, show=False)
    assert "2 of 6 runs to do" in capsys.readouterr().out
    assert sorted(starts(moved))[:2] == ["a 0", "a 1"]  # only what had failed was tried again
    assert starts(moved).count("broken 0") == 2


def test_finished_runs_are_skipped_without_a_cluster(
    notebook: Path, grid: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = grid(grid={"rate": [0.1]})
    sweep(notebook, source, seeds=1, out=tmp_path / "out", workers=1, show=False)
    monkeypatch.setattr(execute, "open_cluster", lambda *a, **k: pytest.fail("nothing was to be done"))
    sweep(notebook, source, seeds=1, out=tmp_path / "out", show=False)
    assert starts(tmp_path / "out") == ["a 0"]
    [environment] = (tmp_path / "out" / "runs").glob("*/environment.txt")
    names = environment.read_text().split()
    assert "MALLOC_TRIM_THRESHOLD_" not in names, "which dask sets for its workers, and which makes training slow"
    assert {"OMP_NUM_THREADS", "HPDVAL_LOCK_WAIT"} <= {*names}


def test_a_run_has_the_cores_its_worker_has_to_give(
    notebook: Path, grid: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = "str([os.environ[n] for n in __import__('hpdval.sweep.execute').sweep.execute.THREADS])"
    source = notebook.read_text()
    notebook.write_text(source.replace(json.dumps('" ".join(os.environ)')[1:-1], listed))
    for name in execute.THREADS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cluster, "cores", lambda: 6)
    before = dict(os.environ)
    sweep(notebook, grid(grid={"rate": [0.1]}), seeds=1, out=tmp_path / "out", workers=2, show=False)
    [environment] = (tmp_path / "out" / "runs").glob("*/environment.txt")
    assert environment.read_text() == str(["3", "3", "3"])
    assert {n: os.environ.get(n) for n in execute.THREADS} == {n: before.get(n) for n in execute.THREADS}


def test_done_is_believed_only_where_it_is_true(
    notebook: Path, grid: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.Cluster, "run", lambda self, jobs, *a: ((n, {"status": "done"}) for n in jobs))
    with pytest.raises(RunError, match="1 of 1 runs failed"):
        sweep(notebook, grid(grid={"rate": [0.1]}), seeds=1, out=tmp_path / "out", workers=1, show=False)
    assert [*statuses(tmp_path / "out").values()] == ["failed"]


def test_what_a_record_says_of_shared_and_lost_runs(tmp_path: Path) -> None:
    with Run(tmp_path / "shared", kind="toy", config={}) as run:
        run.finish({"method": "zero-shot"})
    for name in ("a", "b"):
        with Run(tmp_path / "runs" / name, kind="toy", config={}) as run:
            run.finish({"folders": {"zero-shot": "../../shared"}})
    cells = [{"label": "zero-shot", "runs": {"0": "a", "1": "b"}}, {"label": "lost", "runs": {"0": "gone"}}]
    comparison = {"name": "n", "title": "N", "claim": "", "axis": None, "reference": "zero-shot", "cells": cells}
    runs = {name: {"status": "done"} for name in ("a", "b", "gone")}
    record = {"title": "T", "command": "c", "comparisons": [comparison], "runs": runs}
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    found = read_sweep(tmp_path)
    shared, lost = found.comparisons[0].cells
    assert shared.runs == {0: (tmp_path / "shared").resolve()}, "one run, however many seeds point to it"
    assert not lost.runs
    assert found.missing == (
        "n, lost, seed 0: not usable: removed or damaged since, or without this method; run the sweep again",
    )
    for damaged in ({}, {**record, "runs": {}}, {**record, "comparisons": [1]}, []):
        (tmp_path / "sweep.json").write_text(json.dumps(damaged))
        with pytest.raises(RunError, match=r"is no record of a sweep \(.*\); run the sweep again"):
            read_sweep(tmp_path)


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[str]]]]:
    """A scheduler and two workers without nannies, as separate processes, as on a cluster."""
    environment = {**os.environ, "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "5"}
    options: Any = {"env": environment, "cwd": tmp_path, "text": True, "stderr": subprocess.DEVNULL}
    dask = [sys.executable, "-m", "distributed.cli"]
    address_file = tmp_path / "scheduler.json"
    first = [*dask[:2], "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    processes = [subprocess.Popen([*first, "--scheduler-file", str(address_file)], **options)]
    try:
        wait_for(address_file.exists, "the scheduler")
        address = json.loads(address_file.read_text())["address"]
        worker = [*dask[:2], "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
        processes += [subprocess.Popen(worker, **options) for _ in range(2)]
        yield address, processes
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not come"
        time.sleep(0.1)


@pytest.mark.fault
def test_a_worker_killed_in_the_middle_costs_no_run(
    notebook: Path,
    grid: Callable[..., Path],
    tmp_path: Path,
    scheduler: tuple[str, list[subprocess.Popen[str]]],
    faults: Faults,
) -> None:
    address, processes = scheduler
    source, out = grid(base={"seconds": 3.0}, grid={"name": ["a", "b", "c"]}), tmp_path / "out"
    command = [sys.executable, "-m", "hpdval.cli", "sweep", str(notebook), "--grid", str(source), "--seeds", "1"]
    running = subprocess.Popen([*command, "--out", str(out), "--scheduler", address], text=True, stdout=subprocess.PIPE)
    wait_for(lambda: len(starts(out)) == 2, "the second run")  # both workers are at work
    left = psutil.Process(processes[1].pid).children(recursive=True)
    assert left, "the notebook and its kernel"
    with faults.injected("kill -9", "sweep's worker", "another worker finishes the run"):
        processes[1].kill()
        printed, _ = running.communicate(timeout=120)
        assert running.returncode == 0, printed
        assert "3 of 3 runs are done" in printed
        assert set(statuses(out).values()) == {"done"}
        begun = starts(out)
        assert sorted(set(begun)) == ["a 0", "b 0", "c 0"]
        assert len(begun) == 4  # the one that lost its worker began twice
        for cell in read_sweep(out).comparisons[0].cells:
            assert len(cell.runs) == 1
        assert not psutil.wait_procs(left, timeout=30)[1], "its notebook and kernel have ended, too"


@pytest.mark.fault
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_nothing_stays_behind_and_the_same_command_continues(
    notebook: Path, grid: Callable[..., Path], tmp_path: Path, number: signal.Signals, faults: Faults
) -> None:
    source, out = grid(comparisons={"n": {"cells": {"quick": {}, "slow": {"seconds": 60.0}}}}), tmp_path / "out"
    command = [sys.executable, "-c", "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
               "from hpdval.cli import main; sys.exit(main(sys.argv[1:]))", "sweep", str(notebook), "--grid",
               str(source), "--seeds", "1", "--out", str(out), "--workers", "1"]  # fmt: skip
    running = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(lambda: len(starts(out)) == 2, "the slow run")
    family = psutil.Process(running.pid).children(recursive=True)
    with faults.injected(number.name, "hpdval sweep", "status and line, workers ended; the same command continues"):
        running.send_signal(number)
        _, errors = running.communicate(timeout=60)
        assert running.returncode == 130
        assert errors.strip().splitlines()[-1] == "hpdval: interrupted; the same command continues"
        psutil.wait_procs(family, timeout=30)
        assert not [process for process in family if process.is_running()]
        assert sorted(statuses(out).values()) == ["done", "pending"]

    plan = plan_of(notebook, source)
    slow = next(name for name, job in plan.jobs.items() if job.values.get("seconds"))
    done = next(name for name in plan.jobs if name != slow)
    finished = (out / "runs" / done / "manifest.json").read_bytes()
    text_of_grid = source.read_text().replace("60.0", "0.5")
    source.write_text(text_of_grid)
    sweep(notebook, source, seeds=1, out=out, workers=1, show=False)
    assert (out / "runs" / done / "manifest.json").read_bytes() == finished
    assert set(statuses(out).values()) == {"done"}


def plan_of(notebook: Path, source: Path) -> Plan:
    return make_plan(notebook, read_grid(source), seeds=1)


def test_two_sweeps_in_one_folder(notebook: Path, grid: Callable[..., Path], tmp_path: Path) -> None:
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / "sweep.lock"), pytest.raises(RunError, match="in use by another sweep"):
        sweep(notebook, grid(grid={"rate": [0.1]}), seeds=1, out=tmp_path / "out", show=False)


def test_no_scheduler_there_and_no_extra(
    notebook: Path, grid: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = grid(grid={"rate": [0.1]})
    with pytest.raises(RunError, match="no scheduler answers at nonsense://x"):
        sweep(notebook, source, seeds=1, out=tmp_path / "out", scheduler="nonsense://x", show=False)
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'hpdval\[sweep\]'"):
        sweep(notebook, source, seeds=1, out=tmp_path / "out", show=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "0"], "--workers is 0; it must be at least 1"),
        (["--retries", "-1"], "--retries is -1"),
        (["--memory", "0"], "--memory is 0; it must be more than 0"),
        (["--timeout", "-2"], "--timeout is -2"),
        (["-p", "rate"], "'rate' is not name=value"),
    ],
)
def test_wrong_arguments(
    notebook: Path, grid: Callable[..., Path], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(notebook), "--grid", str(grid(grid={"rate": [0.1]})), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_each_worker_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[str | None] = []

    def note(*arguments: Any, **options: Any) -> None:
        seen.append(os.environ.get("CUDA_VISIBLE_DEVICES"))

    monkeypatch.setattr(execute, "run_notebook", note)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setenv("HPDVAL_LOCK_WAIT", "")  # what a job sets is forgotten with the test
    monkeypatch.setenv("HPDVAL_GPUS", "")
    monkeypatch.chdir(tmp_path)
    job = {"cwd": str(tmp_path), "folder": str(tmp_path), "name": "x", "notebook": "", "values": {}, "timeout": None}
    for worker in (0, 1, 0):
        monkeypatch.setattr(execute, "worker_number", lambda worker=worker: worker)
        assert execute.run_job(job, 2, None)["status"] == "done"
    assert seen == ["4", "6", "4"]


def test_an_outcome_that_was_given_is_not_made_again_when_its_worker_dies(tmp_path: Path) -> None:
    """While the sweep is busy with an outcome, it holds no result that the scheduler would have to make anew."""

    def job(folder: str, gpus: int, threads: int | None) -> dict[str, Any]:
        with open(f"{folder}/runs", "a") as file:
            file.write("x")
        return {"status": "killed", "worker": os.getpid()}

    with cluster.open_cluster(None, workers=1, retries=5, memory=3.0) as opened:
        outcomes = opened.run({"a": str(tmp_path)}, {}, job)
        _, outcome = next(outcomes)
        time.sleep(0.5)  # the scheduler has been told
        os.kill(outcome["worker"], signal.SIGKILL)
        _, other = next(opened.run({"b": str(tmp_path)}, {}, job))  # by the worker after it
        assert other["worker"] != outcome["worker"]
        time.sleep(1)
        assert list(outcomes) == []
    assert (tmp_path / "runs").read_text() == "xx"


def test_no_more_workers_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "visible_gpus", lambda: 2)
    with (
        pytest.raises(ConfigError, match="3 workers for 2 GPUs"),
        cluster.open_cluster(None, workers=3, retries=0, memory=3.0),
    ):
        pass


def test_workers_are_as_many_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "cores", lambda: 8)
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 10 * 2**30)
    assert cluster.workers_that_fit(3.0) == 3
    assert cluster.workers_that_fit(0.5) == 8
    assert cluster.workers_that_fit(64.0) == 1
