"""Much use in little time: notebooks, sweeps, trainings again and again, with kills; nothing leaks, nothing is lost."""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import psutil
import pytest
from faults import Faults
from nbformat.v4 import new_code_cell, new_notebook
from processes import Family, struck, wait_for
from processes import family as family  # the fixture
from test_report import made
from toys import coloured_set, recipe, tiny

import hpdval
from hpdval.data.store import ImageStore
from hpdval.files import read_json
from hpdval.lab.start import explore
from hpdval.report import build_report
from hpdval.scoring import FeatureStore
from hpdval.stopping import request_stop

pytestmark = pytest.mark.fault

# -- eight notebooks at once -------------------------------------------------------------------------------------------

PARAMETERS = 'seed = 0\nrate = 0.0\nend = "done"\nrun_dir = ""'
BEGIN = """import os, pathlib, signal, time
from hpdval.run import Run
here = pathlib.Path(run_dir)
first = not (here / "starts").exists()
(here / "starts").open("a").write("x")
run = Run(run_dir, kind="soak", config={"seed": seed, "rate": rate})
(here / "ready").touch()"""
MISFORTUNE = """if first and end == "failed":
    raise ValueError("this cannot work")
if first and end == "kernel killed":
    os.kill(os.getpid(), signal.SIGKILL)
from hpdval.stopping import Interrupted, take_request
while first and end != "done":
    time.sleep(0.05)
    if take_request():
        raise Interrupted("stopped on request; run the same command again to continue")"""
FINISH = """(here / "ends").open("a").write("x")
print("value", 7 * seed + rate)
run.finish({"value": 7 * seed + rate})"""
# how a notebook ends at its first attempt: what its record says then, and what the runner's exit status is
ENDS = {
    "done": ("done", 0),
    "failed": ("failed", 2),
    "kernel killed": ("killed", 2),
    "process killed": ("killed", 2),
    "stopped": ("stopped", 2),
    "runner told to end": ("killed", 130),
    "runner killed": ("killed", -signal.SIGKILL),
}
FAULTS = {
    "done": "eight notebooks at once",
    "failed": "cell raises",
    "kernel killed": "kill -9",
    "process killed": "kill -9",
    "stopped": "stop request",
    "runner told to end": "SIGTERM",
    "runner killed": "kill -9",
}
WHERE = {
    "kernel killed": "notebook's kernel",
    "process killed": "process that executes a notebook",
    "runner told to end": "hpdval run",
    "runner killed": "hpdval run",
}


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    """One that ends as its parameter says at its first attempt, and well at the next."""
    cells = [new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
    cells += map(new_code_cell, (BEGIN, MISFORTUNE, FINISH))
    nbformat.write(new_notebook(cells=cells), tmp_path / "soak.ipynb")
    return tmp_path / "soak.ipynb"


def started(family: Family, notebook: Path, seed: int, end: str, folder: Path) -> subprocess.Popen[str]:
    return family.start("run", str(notebook), "-p", f"seed={seed}", "-p", f"end={end}", "--out", str(folder))


def ended(runner: subprocess.Popen[str], end: str, folder: Path) -> None:
    """Make the misfortune that comes from outside, and check status and line."""
    if end in ("process killed", "stopped", "runner told to end", "runner killed"):
        wait_for((folder / "ready").exists, f"the cell of {folder.name}")
    if end == "stopped":
        request_stop(folder)
    if end == "process killed":
        [process] = psutil.Process(runner.pid).children()
        process.kill()
    if end in ("runner told to end", "runner killed"):
        said = struck(runner, signal.SIGTERM if end == "runner told to end" else signal.SIGKILL)
    else:
        said = runner.communicate(timeout=300)[1]
    assert runner.returncode == ENDS[end][1], said
    lines = [line for line in said.splitlines() if line.startswith("hpdval: ")]
    assert len(lines) == (end not in ("done", "runner killed")), said


def check_record(folder: Path, status: str) -> None:
    """One record, of this end, without remains of another; no half-written file once it is done."""
    record = wait_for(lambda: (r := read_json(folder / "notebook.json"))["status"] != "running" and r, "a record")
    assert record["status"] == status, record
    assert ("error" in record) == (status != "done"), record
    assert (folder / "executed.ipynb").exists() == (status == "done")
    assert status != "done" or not list(folder.glob(".*.tmp"))  # a run that was killed may have been writing


def check_done(folder: Path, seed: int, attempts: int) -> None:
    """Done once, with the right result and a whole executed notebook."""
    check_record(folder, "done")
    assert read_json(folder / "result.json") == {"value": 7 * seed}
    assert ((folder / "starts").read_text(), (folder / "ends").read_text()) == ("x" * attempts, "x")
    executed = nbformat.read(folder / "executed.ipynb", 4)
    nbformat.validate(executed)
    cells = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert cells[-1].outputs[0].text == f"value {7.0 * seed}\n"
    assert not (folder / "partial.ipynb").exists()


@pytest.mark.parametrize(
    ("turns", "ends"),
    [
        (1, ["done", "done", "kernel killed"]),
        pytest.param(20, [*ENDS, "done"], marks=pytest.mark.nightly),
    ],
)
def test_notebooks_at_once_end_as_they_should_and_a_rerun_completes(
    turns: int, ends: list[str], notebook: Path, tmp_path: Path, family: Family, faults: Faults
) -> None:
    for turn in range(turns):
        order = random.Random(turn).sample(ends, len(ends))
        folders = {seed: tmp_path / f"{turn}-{seed}" for seed in range(len(order))}
        with ExitStack() as injections:
            for end in order:
                outcome = f"{ENDS[end][0]}, then done" if end != "done" else "one record, done"
                injections.enter_context(faults.injected(FAULTS[end], WHERE.get(end, "notebook"), outcome))
            runners = [started(family, notebook, seed, order[seed], folders[seed]) for seed in folders]
            for seed, end in enumerate(order):
                ended(runners[seed], end, folders[seed])
            family.check_gone()
            for seed, end in enumerate(order):
                check_record(folders[seed], ENDS[end][0])
            again = [started(family, notebook, seed, order[seed], folders[seed]) for seed in folders]
            said = [(runner.communicate(timeout=240)[1], runner.returncode) for runner in again]
            # a kernel may have last words: Jupyter interrupts it after the last cell, before it asks it to shut down
            assert {(code, "hpdval: " in text) for text, code in said} == {(0, False)}, said
            for seed, end in enumerate(order):
                check_done(folders[seed], seed, 1 + (end != "done"))
            family.check_gone()


# -- a sweep whose workers are killed ----------------------------------------------------------------------------------

ENOUGH = 20  # lost workers that a run may cost
MOST_GROWTH = 16.0  # MiB of the sweep's parent in the second half of a soak; a leak of 1 MB a kill or 0.2 a run is more


class Watched:
    """A sweep as a process of its own; its memory and handles over time, and who is killed below it."""

    def __init__(self, family: Family, sweep: subprocess.Popen[str], seed: int) -> None:
        self.family, self.sweep, self.random = family, sweep, random.Random(seed)
        self.parent = psutil.Process(sweep.pid)
        self.kills: Counter[str] = Counter()
        self.samples: list[tuple[float, float, int, int]] = []  # minutes, MiB, handles, threads

    def victims(self, kind: str) -> list[psutil.Process]:
        """The workers, the processes that run notebooks, or their kernels."""
        mark = {"worker": "spawn_main", "runner": "hpdval.notebook_process", "kernel": "ipykernel_launcher"}[kind]
        found = []
        for process in self.family.members():
            with suppress(psutil.NoSuchProcess):
                if any(mark in word for word in process.cmdline()):
                    found.append(process)
        return sorted(found, key=lambda process: process.pid)

    def kill(self, *kinds: str) -> None:
        """Kill one of these with signal 9, if there is one."""
        kind = self.random.choice(kinds)
        if victims := self.victims(kind):
            self.random.choice(victims).kill()
            self.kills[kind] += 1

    def sample(self) -> None:
        """Note what the parent holds."""
        with suppress(psutil.NoSuchProcess), self.parent.oneshot():
            held = self.parent.memory_info().rss / 2**20, self.parent.num_fds(), self.parent.num_threads()
            self.samples.append((time.monotonic() / 60, *held))

    def follow(self, out: Path) -> None:
        """Kill somebody every few seconds until the sweep ends; in between a run ends, or a slow one never ends."""
        due, ended, seen = 0.0, 0, -1
        while self.sweep.poll() is None:
            if (out / "sweep.json").exists():
                statuses = [run["status"] for run in read_json(out / "sweep.json")["runs"].values()]
                ended = len(statuses) - statuses.count("pending")
                if ended < len(statuses):  # what it lets go of at its end would hide what it kept until then
                    self.sample()
            if time.monotonic() > due and ended > seen and self.victims("kernel"):
                self.kill(*["worker"] * 4, "kernel", "runner")
                due, seen = time.monotonic() + self.random.uniform(2, 8), ended
            time.sleep(1)

    def growth(self, column: int) -> float:
        """How much a column of the samples grows in the second half, by a straight line through it."""
        half = np.array(self.samples[len(self.samples) // 2 :])
        minutes, values = half[:, 0] - half[0, 0], half[:, column]
        return float(np.polyfit(minutes, values, 1)[0] * minutes[-1])


def check_runs(out: Path, count: int) -> list[str]:
    """Return how the runs of a sweep ended: its record and theirs agree, and each has the result of its parameters."""
    runs = read_json(out / "sweep.json")["runs"]
    assert len(runs) == count
    assert sorted(path.name for path in (out / "runs").iterdir()) == sorted(runs)
    for name, run in runs.items():
        check_record(out / "runs" / name, run["status"])
        if run["status"] == "done":
            value = 7 * run["seed"] + run["values"]["rate"]
            assert read_json(out / "runs" / name / "result.json") == {"value": value}
            nbformat.validate(nbformat.read(out / "runs" / name / "executed.ipynb", 4))
    return [run["status"] for run in runs.values()]


@pytest.mark.nightly
@pytest.mark.parametrize(("rates", "seeds"), [(20, 10)])
def test_a_sweep_whose_workers_are_killed_every_few_seconds_loses_nothing(
    rates: int, seeds: int, notebook: Path, tmp_path: Path, family: Family, faults: Faults
) -> None:
    (tmp_path / "grid.yaml").write_text(json.dumps({"grid": {"rate": [i / 10 for i in range(rates)]}}))
    words = ["sweep", str(notebook), "--grid", str(tmp_path / "grid.yaml"), "--seeds", str(seeds)]
    out = tmp_path / "out"
    words += ["--out", str(out), "--workers", "2", "--retries", str(ENOUGH)]
    with ExitStack() as injections:
        lost = injections.enter_context(faults.injected("kill -9", "sweep's worker", "another worker finishes the run"))
        killed = injections.enter_context(
            faults.injected("kill -9", "notebook's kernel or process in a sweep", "killed, then done")
        )
        with open(tmp_path / "errors.txt", "w") as errors:
            watched = Watched(family, family.start(*words, stderr=errors), seed=0)
            watched.follow(out)
        lost.times, killed.times = watched.kills["worker"], watched.kills["kernel"] + watched.kills["runner"]
        said, counts = (tmp_path / "errors.txt").read_text(), Counter(check_runs(out, rates * seeds))
        assert counts["done"] + counts["killed"] == rates * seeds, (counts, said)
        assert counts["killed"] <= killed.times, "whose notebook was killed, never whose worker was"
        assert watched.sweep.returncode == (2 if counts["killed"] else 0), said
        family.check_gone()
        again = family.start(*words)
        assert (again.communicate(timeout=600)[1].strip().count("\n"), again.returncode) == (0, 0)
        assert set(check_runs(out, rates * seeds)) == {"done"}
        family.check_gone()
    minutes = watched.samples[-1][0] - watched.samples[0][0]
    what = f"a sweep of {rates * seeds} runs with workers killed: growth of its parent in the second half"
    memory, handles, threads = (watched.growth(column) for column in (1, 2, 3))
    held = f"memory {memory:+.1f} MiB, open files {handles:+.1f}, threads {threads:+.1f}"
    faults.measured(what, f"{held}; {minutes:.0f} minutes, {lost.times} workers killed")
    assert memory < MOST_GROWTH
    assert max(handles, threads) < 1 + lost.times / 8, "less than one for each worker that was killed in that time"


# -- the same again and again in one process ---------------------------------------------------------------------------

# MiB of one process between the first and the last quarter of its repetitions, after a warm-up. The smallest that is
# held by mistake here, the weights of the tiny CLIP, is 3 MiB, and so is a figure: from ten repetitions on that is more
MOST_HELD = 24.0


def growth(action: Callable[[int], object], times: int, warm: int) -> tuple[float, float, float]:
    """Repeat, and return how MiB, open files and threads grew from the first to the last quarter after ``warm``."""
    process, held = psutil.Process(), []
    for i in range(warm + times):
        action(i)
        gc.collect()
        held.append((process.memory_info().rss / 2**20, process.num_fds(), process.num_threads()))
    first, last = (np.median(part, axis=0) for part in (held[warm : warm + times // 4], held[-(times // 4) :]))
    memory, handles, threads = (last - first).tolist()
    return memory, handles, threads


def check_growth(what: str, action: Callable[[int], object], times: int, warm: int, faults: Faults) -> None:
    """Nothing that is repeated grows; a few repetitions say something of handles and threads alone."""
    memory, handles, threads = growth(action, times, warm)
    if times >= 40:
        faults.measured(f"{times} times {what}", f"memory {memory:+.1f} MiB, files {handles:+g}, threads {threads:+g}")
        assert memory < MOST_HELD
    assert (handles, threads) <= (0, 0)


class Repeated:
    """What a long session does over and over; the inputs are made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clip, self.data = tiny(folder), coloured_set()
        self.experiment = recipe(**{"stage1.epochs": 1, "stage2.epochs": 1})
        self.runs = [made(folder / "runs" / str(i), 1 + i, 0) for i in range(2)]
        self.train(-1)
        self.scorer = hpdval.load_run(folder / "-1" / "stage2", device="cpu")

    def train(self, i: int) -> None:
        """All stages of a training, into a folder of its own."""
        hpdval.train(self.data, self.experiment, run=self.folder / str(i), clip=self.clip, show=False)

    def load(self, i: int) -> None:
        """A run loaded, and scores from it."""
        hpdval.load_run(self.folder / "-1" / "stage2", device="cpu").score(self.data.test, show=False)

    def report(self, i: int) -> None:
        """A report with figures in three formats."""
        build_report(self.runs, self.folder / "page", resamples=5, permutations=5, show=False)
        assert not plt.get_fignums(), "figures that nobody closed"

    def stores(self, i: int) -> None:
        """Both stores opened, mapped and read."""
        images = ImageStore.open(self.data.train, 24, cache=self.folder / "cache").images
        tokens = FeatureStore.open(self.clip, self.data.train, cache=self.folder / "cache", show=False).tokens
        assert images[-1].any()
        assert tokens[-1].any()

    def live(self, i: int) -> None:
        """A live view of a run, closed when it has shown it."""
        view = hpdval.watch(self.folder / "-1", every=0.01)
        assert view.snapshot.state == "done"
        view.close()

    def explorer(self, i: int) -> None:
        """An explorer of a model, with its pictures and maps drawn, then closed."""
        explore(self.scorer, self.data, show=False).close()


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> Repeated:
    return Repeated(tmp_path_factory.mktemp("repeated"))


ACTIONS = {"train": 200, "load": 200, "report": 40, "stores": 200, "live": 200, "explorer": 100}


@pytest.mark.parametrize(
    ("action", "times", "warm"),
    [
        *((name, 4, 2) for name in ACTIONS if name != "report"),
        *(pytest.param(name, times, times // 4, marks=pytest.mark.nightly) for name, times in ACTIONS.items()),
    ],
)
def test_nothing_grows_however_often_it_is_repeated(
    action: str, times: int, warm: int, repeated: Repeated, faults: Faults
) -> None:
    shutil.rmtree(repeated.folder / "0", ignore_errors=True)
    work = getattr(repeated, action)
    check_growth(work.__doc__.split(",")[0].rstrip(".").lower(), work, times, warm, faults)


def test_what_leaks_is_seen() -> None:
    kept: list[object] = []
    handles = growth(lambda i: kept.append(os.dup(2)), 8, 2)[1]
    assert handles >= 4
    memory = growth(lambda i: kept.append(np.ones(5 * 2**20)), 8, 2)[0]  # 40 MiB each: never from the heap
    assert memory > MOST_HELD
