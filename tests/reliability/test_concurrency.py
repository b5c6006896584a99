"""Several processes at one folder or one cache: one does the work, the others wait or are refused, nobody breaks it."""

from __future__ import annotations

import hashlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from crowd import Crowd, N, check_same, fill_features, fill_images, prepared, report, train
from faults import Faults
from processes import Family, wait_for
from processes import family as family  # the fixture
from test_data_prepare import voc_lt as voc_lt  # another fixture
from test_report import made
from toys import tiny

from hpdval.data.prepare.published import PublishedSet
from hpdval.files import read_json
from hpdval.run import read_metrics

pytestmark = pytest.mark.fault

UPDATES = 2 * 4  # epochs of 60 images in batches of 16
WAIT = {"HPDVAL_LOCK_WAIT": "600"}
SIZES = [2, pytest.param(8, marks=pytest.mark.nightly)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all processes use: the weights, and a cache."""
    folder = tmp_path_factory.mktemp("shared")
    tiny(folder)
    return folder


@pytest.fixture(scope="module")
def control(shared: Path) -> Path:
    """The run that nobody disturbed."""
    assert Crowd(train, [(shared, shared / "control")], cache(shared)).answers() == [UPDATES]
    return shared / "control"


def cache(folder: Path) -> dict[str, str]:
    return {"HPDVAL_CACHE": str(folder / "cache")}


# -- one run -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_of_many_that_start_one_run_one_trains(
    size: int, wait: bool, shared: Path, control: Path, tmp_path: Path, faults: Faults
) -> None:
    outcome = "one trains, the others wait for it" if wait else "one trains, the others are refused"
    with faults.injected("processes start the same run", "run folder", outcome, times=size - 1):
        arguments = [(shared, tmp_path / "run")] * size
        answers = Crowd(train, arguments, {**cache(shared), **(WAIT if wait else {})}).answers()
        numbers = [one for one in answers if isinstance(one, int)]
        assert sorted(numbers)[-1] == sum(numbers) == UPDATES, answers
        for said in set(answers) - {*numbers}:
            assert not wait
            assert "is in use by another process; wait for it or choose another folder" in said
            assert "\n" not in said
        check_same(tmp_path / "run", control)
        assert Crowd(train, arguments, {**cache(shared), **WAIT}).answers() == [0] * size, "it is only loaded"
        check_same(tmp_path / "run", control)


@pytest.mark.parametrize("size", SIZES)
def test_of_different_experiments_in_one_folder_one_is_trained(
    size: int, shared: Path, tmp_path: Path, faults: Faults
) -> None:
    rates = [1e-3 * (1 + i) for i in range(size)]
    with faults.injected("another experiment started", "run folder", "refused, difference named", times=size - 1):
        answers = Crowd(
            train, [(shared, tmp_path / "run", rate) for rate in rates], {**cache(shared), **WAIT}
        ).answers()
        [winner] = [i for i, one in enumerate(answers) if one == UPDATES]
        for i in {*range(size)} - {winner}:
            assert f"holds another run (config.stage1.lr: {rates[winner]} there, {rates[i]} here)" in answers[i]
        assert read_json(tmp_path / "run" / "stage1" / "run.json")["config"]["stage1"]["lr"] == rates[winner]


@pytest.mark.parametrize("size", SIZES)
def test_when_who_holds_the_folder_is_killed_one_that_waits_goes_on(
    size: int, shared: Path, control: Path, tmp_path: Path, faults: Faults
) -> None:
    with faults.injected("kill -9", "process that holds a run folder", "a waiting one finishes, bit-identical"):
        slow = Crowd(train, [(shared, tmp_path / "run", 2e-3, 1, 300.0)], cache(shared))
        wait_for(lambda: read_metrics(tmp_path / "run" / "stage1"), "the first update")
        waiting = Crowd(train, [(shared, tmp_path / "run")] * size, {**cache(shared), **WAIT})
        slow.send(signal.SIGKILL)
        assert slow.answers() == [None]
        assert [process.exitcode for process in slow.processes] == [-signal.SIGKILL]
        answers = waiting.answers()
        assert all(isinstance(one, int) for one in answers), answers
        assert sorted(answers) == [0] * (size - 1) + [max(answers)]
        assert 1 <= max(answers) <= UPDATES
        check_same(tmp_path / "run", control)


def test_who_holds_the_folder_and_stands_still_keeps_it(
    shared: Path, control: Path, tmp_path: Path, faults: Faults
) -> None:
    with faults.injected("SIGSTOP", "process that holds a run folder", "others refused; after SIGCONT bit-identical"):
        slow = Crowd(train, [(shared, tmp_path / "run", 2e-3, 1, 1.0)], cache(shared))
        wait_for(lambda: read_metrics(tmp_path / "run" / "stage1"), "the first update")
        slow.send(signal.SIGSTOP)
        [said] = Crowd(train, [(shared, tmp_path / "run")], cache(shared)).answers()
        assert said.startswith("RunError: ")
        assert "is in use by another process" in said
        slow.send(signal.SIGCONT)
        assert slow.answers() == [UPDATES]
        check_same(tmp_path / "run", control)


# -- one cache ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fill", "work", "name"), [(fill_images, N, "images"), (fill_features, 8, "features")])
@pytest.mark.parametrize("size", SIZES)
def test_many_that_fill_one_store_do_the_work_once(
    size: int, fill: Any, work: int, name: str, shared: Path, tmp_path: Path, faults: Faults
) -> None:
    [(alone, key)] = Crowd(fill, [(shared, tmp_path / "control")], cache(tmp_path)).answers()
    assert alone == work
    with faults.injected("processes fill one store", f"store of {name}", "filled once, same bytes", times=size - 1):
        answers = Crowd(fill, [(shared, tmp_path / "store")] * size, cache(tmp_path)).answers()
        assert sorted(answers) == [(0, key)] * (size - 1) + [(work, key)]
        files, expected = (
            {path.name: path.read_bytes() for path in (tmp_path / one).iterdir() if path.suffix != ".lock"}
            for one in ("store", "control")
        )
        assert files == expected


# -- one folder of something else --------------------------------------------------------------------------------------


@pytest.mark.nightly
@pytest.mark.parametrize("size", [2, 4])
def test_reports_written_to_one_folder_at_once_leave_one_of_them_whole(
    size: int, tmp_path: Path, faults: Faults
) -> None:
    runs = [made(tmp_path / "runs" / str(i), 1 + i / 4, 0) for i in range(size + 1)]
    sources = [runs[i : i + 2] for i in range(size)]
    for i, source in enumerate(sources):
        assert Crowd(report, [(source, tmp_path / "alone" / str(i))]).answers(), "what each of them writes"
    alone = [contents(tmp_path / "alone" / str(i)) for i in range(size)]
    with faults.injected("processes write one folder", "report", "the last one's, whole", times=size - 1):
        answers = Crowd(report, [(source, tmp_path / "page") for source in sources]).answers()
        assert all(isinstance(one, int) for one in answers), answers
        assert contents(tmp_path / "page") in alone
        manifest = read_json(tmp_path / "page" / "manifest.json")
        assert manifest["status"] == "done"
        for name, hashed in manifest["files"].items():
            assert hashlib.sha256((tmp_path / "page" / name).read_bytes()).hexdigest() == hashed


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("size", SIZES)
def test_of_many_that_prepare_a_data_set_one_does(
    size: int, voc_lt: PublishedSet, loopback: Any, tmp_path: Path, faults: Faults
) -> None:
    with faults.injected(
        "processes prepare one folder", "hpdval data prepare", "one does, the others are refused", size - 1
    ):
        answers = Crowd(prepared, [(voc_lt, tmp_path / "voc")] * size).answers()
        done = [one for one in answers if not isinstance(one, str)]
        assert done == [True]
        for said in set(answers) - {*done}:
            assert said.endswith("is being prepared by another process; wait for it or choose another folder")
        asked = [path for path, _, _ in loopback.log]
        assert len(asked) == len({*asked}), "nothing was downloaded twice"


def test_of_several_runners_of_one_notebook_one_runs_it(tmp_path: Path, family: Family, faults: Faults) -> None:
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook
    from test_notebook_runner import COUNT, FINISH, PARAMETERS

    first = new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[first, *map(new_code_cell, (COUNT, FINISH))]), tmp_path / "example.ipynb")
    family.environment |= WAIT
    with faults.injected("processes start the same run", "hpdval run", "one runs it, the others wait for it", times=2):
        words = ["run", str(tmp_path / "example.ipynb"), "--out", str(tmp_path / "run")]
        runners = [family.start(*words) for _ in range(3)]
        assert [(runner.communicate(timeout=120)[1], runner.returncode) for runner in runners] == [("", 0)] * 3
        assert (tmp_path / "run" / "starts").read_text() == "x"
        assert json.loads((tmp_path / "run" / "notebook.json").read_text())["status"] == "done"
        family.check_gone()
