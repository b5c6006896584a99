"""Ctrl-C, SIGTERM and ``hpdval stop`` in every long command: its status, its line, no child left, and it goes on."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from crowd import Crowd, check_same, command
from faults import Faults
from processes import wait_for
from test_data_prepare import voc_lt as voc_lt  # a fixture
from test_live import job as job  # a fixture
from test_report import contents, sweep

from hpdval.data.prepare.published import PublishedSet
from hpdval.data.prepare.verify import verify
from hpdval.launch import train_words
from hpdval.run import read_metrics

pytestmark = pytest.mark.fault

LINE = "hpdval: interrupted; the same command continues\n"
SIGNALS = [signal.SIGTERM, signal.SIGINT]
UPDATE = 0.1  # seconds, so that the end is far when the signal comes
UPDATES = 8 * 3  # epochs of 10 images in batches of 4


def interrupted(running: Crowd, number: signal.Signals) -> tuple[int, str]:
    """Send the signal to a command at work; what it had started ends with it."""
    children = psutil.Process(running.processes[0].pid).children(recursive=True)
    assert running.processes[0].is_alive(), "it ended before the signal"
    running.send(number)
    [(code, said)] = running.answers(60)
    assert not psutil.wait_procs(children, timeout=15)[1]
    lines = [line for line in said.splitlines(keepends=True) if line.startswith("hpdval: ")]
    assert len(lines) == 1, (code, said)
    return code, lines[0]


def check_well(running: Crowd) -> None:
    """A command ends as it should."""
    [(code, said)] = running.answers()
    assert code == 0, said


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words(job: dict[str, Any]) -> Callable[[Path], list[str]]:
    """The words of ``hpdval train`` for a training of a second, into a folder."""
    overrides = {**job["overrides"], "stage1.epochs": 8}
    given = {"overrides": overrides, "data": job["data"], "device": "cpu"}
    return lambda run: ["train", *train_words(job["source"], "scenes", run=run, **given)]


@pytest.fixture(scope="module")
def trained(words: Callable[[Path], list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("control")
    check_well(Crowd(command, [(words(folder / "run"),)]))
    return folder / "run"


@pytest.mark.parametrize(
    "way", ["SIGTERM", *(pytest.param(way, marks=pytest.mark.nightly) for way in ("SIGINT", "hpdval stop"))]
)
def test_a_training_that_is_told_to_end_saves_and_goes_on(
    way: str, words: Any, trained: Path, tmp_path: Path, faults: Faults
) -> None:
    run = tmp_path / "run"
    with faults.injected(way, "hpdval train, in stage 1", "saved, status and line; continued bit-identical"):
        running = Crowd(command, [(words(run), None, UPDATE)])
        wait_for(lambda: read_metrics(run / "stage1"), "the first update")
        if way == "hpdval stop":
            check_well(Crowd(command, [(["stop", str(run)],)]))
            [(code, line)] = running.answers(60)
            assert "hpdval: stage1 stopped on request after update " in line
        else:
            code, line = interrupted(running, signal.Signals[way])
        assert code == (130 if way == "SIGINT" else 2)
        assert line == LINE if way == "SIGINT" else line.endswith("run the same command again to continue\n")
        assert 0 < len(read_metrics(run / "stage1")) < len(read_metrics(trained / "stage1"))
        check_well(Crowd(command, [(words(run),)]))
        check_same(run, trained)


@pytest.mark.nightly
@pytest.mark.parametrize("number", SIGNALS)
def test_a_training_may_be_told_to_end_at_any_moment(
    number: signal.Signals, words: Any, trained: Path, tmp_path: Path, faults: Faults
) -> None:
    for seed in range(10):
        run = tmp_path / str(seed)
        with faults.injected(number.name, "hpdval train, any moment", "status and line; continued bit-identical"):
            running = Crowd(command, [(words(run), None, UPDATE)])
            wait_for((run / "train.json").exists, "its beginning")
            moment = random.Random(seed)
            due = moment.randrange(-4, UPDATES // 2)  # before the first update, too
            wait_for(lambda: due <= 0 or len(read_metrics(run / "stage1")) >= due, "that update")  # noqa: B023
            time.sleep(moment.uniform(0.0, UPDATE) if due > 0 else moment.uniform(0.0, 1.0))
            code, line = interrupted(running, number)
            assert (code, line) == (130, LINE) or (code == 2 and "stopped by SIGTERM after update" in line)
            check_well(Crowd(command, [(words(run),)]))
            check_same(run, trained)


# -- reports and data --------------------------------------------------------------------------------------------------


@pytest.mark.nightly
@pytest.mark.parametrize("number", SIGNALS)
def test_a_report_that_is_told_to_end_leaves_the_earlier_one(
    number: signal.Signals, tmp_path: Path, faults: Faults
) -> None:
    runs = sweep(tmp_path / "sweep")
    few = ["report", str(runs), "--figures", "svg", "--resamples", "50", "--permutations", "50"]
    check_well(Crowd(command, [([*few, "-o", str(tmp_path / "page")],)]))
    before = contents(tmp_path / "page")
    many = [*few[:4], "--resamples", "100000", "--permutations", "100000", "-o", str(tmp_path / "page")]
    with faults.injected(number.name, "hpdval report", "the earlier one stays; the next call replaces it"):
        running = Crowd(command, [(many,)])
        wait_for(lambda: psutil.Process(running.processes[0].pid).children(), "its processes")
        assert interrupted(running, number) == (130, LINE)
        assert contents(tmp_path / "page") == before
        check_well(Crowd(command, [([*few, "-o", str(tmp_path / "page")],)]))
        assert contents(tmp_path / "page") == before


@pytest.mark.nightly
@pytest.mark.parametrize("number", SIGNALS)
def test_errors_that_are_told_to_end_leave_nothing(
    number: signal.Signals, trained: Path, tmp_path: Path, faults: Faults
) -> None:
    run = str(trained / "stage1")
    with faults.injected(number.name, "hpdval errors", "no half page; the next call writes it"):
        environment = {"HPDVAL_CACHE": str(tmp_path / "cache")}
        words = ["errors", run, "-o", str(tmp_path / "page"), "--device", "cpu", "--resamples"]
        running = Crowd(command, [([*words, "1000000"],)], environment)
        wait_for(lambda: list((tmp_path / "cache").rglob("*.u8")), "the images that it scores")
        assert interrupted(running, number) == (130, LINE)
        assert not (tmp_path / "page").exists()
        check_well(Crowd(command, [([*words, "20"],)], environment))
        assert (tmp_path / "page" / "index.html").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.nightly)])
def test_a_download_that_is_told_to_end_goes_on(
    number: signal.Signals, voc_lt: PublishedSet, loopback: Any, tmp_path: Path, faults: Faults
) -> None:
    root, archive = tmp_path / "voc", "/VOCtest_06-Nov-2007.tar"
    words = ["data", "prepare", "voc-lt", "--root", str(root)]
    with faults.injected(number.name, "hpdval data prepare, in a download", "status and line; the next call completes"):
        loopback.plans[archive] = iter([("stall", 3000)])
        running = Crowd(command, [(words, voc_lt)])
        wait_for(lambda: any(path == archive for path, _, _ in loopback.log), "the download")
        time.sleep(0.3)
        assert interrupted(running, number) == (130, LINE)
        loopback.release.set()
        check_well(Crowd(command, [(words, voc_lt)]))
        assert verify(voc_lt, root, show=False).ok
