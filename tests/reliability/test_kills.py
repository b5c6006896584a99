"""kill -9 and SIGTERM anywhere in real work: done again, nothing tells it from work that nobody disturbed.

A kill strikes at a moment of the clock, just before a file is changed, or when half of a write is on the disk.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from faults import Faults
from processes import Family, wait_for
from processes import family as family
from test_sweep import grid as grid
from test_sweep import notebook as notebook
from test_sweep import statuses

from hpdval.checkpoint import load_checkpoint, load_tensors, tensors_digest
from hpdval.comparisons import read_sweep
from hpdval.errors import RunError
from hpdval.files import read_json, sha256_file
from hpdval.run import read_manifest, read_predictions, read_result

pytestmark = pytest.mark.fault

SEEDS = 20
TRIES = 20  # of drawing a moment, as long as the work ends before it comes
WHERE = {
    "stage1": "stage 1",
    "stage2": "stage 2",
    "joint": "joint training",
    "rival": "a rival's training",
    "features": "feature extraction",
    "evaluation": "evaluation and page of errors",
    "report": "report",
    "fewshot": "few-shot episodes",
}
TRAINED = ("stage1", "stage2", "joint", "rival")
SAME = "done again, bit-identical"

# -- running and killing -----------------------------------------------------------------------------------------------


class Server:
    """Does pieces of work in processes that it forks, and kills them; see ``tests/victims.py``."""

    def __init__(self, folder: Path) -> None:
        (folder / "shared").mkdir()
        self.folder, self.controls = folder, dict[str, dict[str, Any]]()
        command = [sys.executable, str(ROOT / "tests" / "victims.py"), str(folder / "shared")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, victim: str, folder: Path, number: int = 9, **moment: Any) -> dict[str, Any]:
        """Let a piece of work be done in ``folder``, up to a moment if one is given."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        folder.mkdir(exist_ok=True)
        when = {"seconds": None, "step": None, **moment}
        request = {"victim": victim, "folder": str(folder), "signal": number, **when}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def whole(self, victim: str, folder: Path) -> None:
        """Do it to its end."""
        answer = self.ask(victim, folder)
        assert answer["code"] == 0, answer["error"]

    def control(self, victim: str) -> dict[str, Any]:
        """The work that nobody disturbed, done once: its folder, what it left, its steps and seconds."""
        if victim not in self.controls:
            folder = self.folder / victim
            answer = self.ask(victim, folder)
            assert answer["code"] == 0, answer["error"]
            self.controls[victim] = {**answer, "folder": folder, "state": state(folder)}
        return self.controls[victim]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("kills"))
    yield server
    assert server.process.stdin is not None
    server.process.stdin.close()
    assert server.process.wait(60) == 0


def drawn(draw: random.Random, kind: str, control: dict[str, Any], part: float = 1.0) -> dict[str, Any]:
    """A moment in the first ``part`` of what the undisturbed work did."""
    if kind == "clock":
        return {"seconds": draw.uniform(0, part * control["seconds"])}
    steps = control["steps"]
    found = [i for i, step in enumerate(steps) if i < part * len(steps) and (step[:5] == "write") is (kind == "write")]
    return {"step": draw.choice(found or range(len(steps)))}


# -- what is compared --------------------------------------------------------------------------------------------------

TIMES = {"started", "opened", "finished", "ended", "elapsed", "wall_seconds", "seconds", "code", "seal"}
WITH_TIMES = ("run.json", "manifest.json", "result.json", "checkpoint")


def untimed(value: Any) -> Any:
    """A record without times, without the state of the code, and without hashes over such."""
    if isinstance(value, list):
        return [untimed(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {k: None if k.startswith(WITH_TIMES) else untimed(v) for k, v in value.items() if k not in TIMES}


def state(folder: Path) -> dict[str, Any]:
    """Every file below a folder but locks, with its content: nothing may be left over, and nothing be missing."""
    return {
        path.relative_to(folder).as_posix(): content(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def check_same(folder: Path, control: dict[str, Any]) -> None:
    """Say what differs from undisturbed work, if anything does."""
    found = state(folder)
    assert not {name for name in {*found, *control["state"]} if found.get(name) != control["state"].get(name)}


def content(path: Path) -> Any:
    if path.suffix == ".json":
        return untimed(read_json(path))
    if path.name.startswith("checkpoint"):
        tensors, about = load_tensors(path)
        return tensors_digest(tensors), untimed(about)
    return sha256_file(path)


def check_what_others_see(folder: Path, whole: Path, earlier: dict[str, Any]) -> None:
    """A run is as undisturbed work leaves it or is refused; a page is the old, the new, or says that it is neither."""
    for start in folder.rglob("run.json"):
        run, control = start.parent, whole / start.parent.relative_to(folder)
        if not (run / "manifest.json").exists():
            for read in (read_predictions, read_result, read_manifest):
                with pytest.raises(RunError, match="not a finished run"):
                    read(run)
            continue
        assert untimed(read_result(run)) == untimed(read_result(control))
        np.testing.assert_equal(read_predictions(run), read_predictions(control))
        files = read_manifest(run)["files"]
        assert {name: sha256_file(run / name) for name in files} == files
    manifest = folder / "page" / "manifest.json"
    if manifest.exists() and read_json(manifest)["status"] == "done":
        found = {name: one for name, one in state(manifest.parent).items() if not name.startswith(".")}  # half a write
        assert found in (earlier, state(whole / "page"))


# -- kill -9 -----------------------------------------------------------------------------------------------------------


def killed(server: Server, victim: str, folder: Path, draw: random.Random, kinds: list[str], again: bool) -> bool:
    """Kill the work at a moment of each kind, one after the other; whether each kill came before its end."""
    control, earlier = server.control(victim), {}
    shutil.rmtree(folder, ignore_errors=True)
    if again:
        server.whole(f"earlier_{victim}", folder)
        earlier = state(folder / "page")
    for number, kind in enumerate(kinds):
        answer = server.ask(victim, folder, **drawn(draw, kind, control, part=1 / (1 + 2 * number)))
        assert answer["code"] in (0, -signal.SIGKILL), answer["error"]
        if answer["code"] == 0:
            return False
        check_what_others_see(folder, control["folder"], earlier)
    return True


def kill_points() -> list[Any]:
    sampled = {"stage1": 3, "stage2": 1, "joint": 2, "rival": 0, "features": 4, "evaluation": 8, "report": 5}
    return [
        pytest.param(victim, seed, marks=[] if sampled.get(victim) == seed else pytest.mark.nightly)
        for victim in WHERE
        for seed in range(SEEDS)
    ]


@pytest.mark.parametrize(("victim", "seed"), kill_points())
def test_killed_anywhere_and_done_again_nothing_tells(
    server: Server, faults: Faults, tmp_path: Path, victim: str, seed: int
) -> None:
    draw, kinds = random.Random(f"{victim} {seed}"), ["clock", "change", "write"]
    kinds = [kinds[seed % 3]] + ([draw.choice(kinds)] if seed % 4 == 3 else [])
    fault = "kill -9" if len(kinds) == 1 else "two kills -9 in a row"
    again = victim == "report" and seed % 2 == 1  # there is an earlier one, which it replaces
    control = server.control(victim)
    with faults.injected(fault, WHERE[victim], SAME):
        tries = (killed(server, victim, tmp_path / "work", draw, kinds, again) for _ in range(TRIES))
        assert any(tries), "never in time"
        server.whole(victim, tmp_path / "work")
        check_same(tmp_path / "work", control)


def saves(control: dict[str, Any]) -> list[int]:
    """The steps that end the writing of a checkpoint: it gets its name."""
    rename = re.compile(r"os\.rename run/checkpoint-\w+\.next\.")
    return [i for i, step in enumerate(control["steps"]) if rename.match(step)]


SAVED = [
    pytest.param(victim, seed, marks=[] if (victim, seed) == ("stage2", 0) else pytest.mark.nightly)
    for victim in TRAINED
    for seed in range(5)
]


@pytest.mark.parametrize(("victim", "seed"), SAVED)
def test_killed_while_writing_a_checkpoint_the_one_before_it_loads(
    server: Server, faults: Faults, tmp_path: Path, victim: str, seed: int
) -> None:
    control, folder = server.control(victim), tmp_path / "work"
    steps, renamed = control["steps"], saves(control)
    among = [i for i, step in enumerate(steps) if "checkpoint-" in step and renamed[0] < i <= renamed[-1]]
    chosen = random.Random(f"{victim} {seed}").choice(among)
    with faults.injected("kill -9 while a checkpoint is written", WHERE[victim], f"the one before loads; {SAME}"):
        assert server.ask(victim, folder, step=chosen)["code"] == -signal.SIGKILL
        path = folder / steps[renamed[0]].split()[-1].replace(".next.", ".")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it is whole, so nothing is said of damage
            loaded = load_checkpoint(path)
        assert loaded is not None
        assert loaded[1]["update"] == sum(i < chosen for i in renamed), "each update saves one"
        server.whole(victim, folder)
        check_same(folder, control)


# -- SIGTERM -----------------------------------------------------------------------------------------------------------


def terminated(server: Server, victim: str, folder: Path, draw: random.Random, kind: str) -> dict[str, Any] | None:
    """Send SIGTERM; what came of it, or None where the work had ended before."""
    shutil.rmtree(folder, ignore_errors=True)
    moment = drawn(draw, kind, server.control(victim))
    answer = server.ask(victim, folder, signal.SIGTERM, **moment)
    came = answer["sent"] or "step" in moment
    assert not (came and answer["code"] == 0), f"SIGTERM at {moment} was not obeyed"
    return answer if came else None


TERMINATED = [
    pytest.param(victim, seed, marks=[] if (victim, seed) == ("stage1", 1) else pytest.mark.nightly)
    for victim in TRAINED
    for seed in range(10)
]


@pytest.mark.parametrize(("victim", "seed"), TERMINATED)
def test_sigterm_saves_and_exits(server: Server, faults: Faults, tmp_path: Path, victim: str, seed: int) -> None:
    draw, folder, control = random.Random(f"term {victim} {seed}"), tmp_path / "work", server.control(victim)
    with faults.injected("SIGTERM", WHERE[victim], f"saved and ended; {SAME}") as injection:
        answers = (terminated(server, victim, folder, draw, ["clock", "change"][seed % 2]) for _ in range(TRIES))
        answer = next(filter(None, answers), None)
        assert answer is not None, "never in time"
        if answer["code"] == -signal.SIGTERM:  # before or after the updates, with nothing to save
            injection.outcome = f"ended at once; {SAME}"
        else:
            assert answer["code"] == 1
            words = answer["error"].split()
            assert words[0] == "Interrupted:", answer["error"]
            assert "stopped by SIGTERM after update" in answer["error"]
            (path,) = (word for word in words if word.startswith(str(folder)))
            loaded = load_checkpoint(Path(path))
            assert loaded is not None
            assert loaded[1]["update"] == int(words[words.index("update") + 1])
        check_what_others_see(folder, control["folder"], {})
        server.whole(victim, folder)
        check_same(folder, control)


def test_sigterm_in_the_last_save_is_not_forgotten(server: Server, faults: Faults, tmp_path: Path) -> None:
    """The loop has looked for the last time; what comes after it, the evaluation, must not begin."""
    control, folder = server.control("stage2"), tmp_path / "work"
    with faults.injected("SIGTERM", WHERE["stage2"], f"ended at once; {SAME}"):
        assert server.ask("stage2", folder, signal.SIGTERM, step=saves(control)[-1])["code"] == -signal.SIGTERM
        assert not (folder / "run" / "predictions.npz").exists()
        server.whole("stage2", folder)
        check_same(folder, control)


# -- a sweep -----------------------------------------------------------------------------------------------------------


def swept(folder: Path) -> dict[str, Any]:
    """What a finished sweep has for each of its runs: the files, the predictions, the result, and how it ended."""
    assert {*statuses(folder).values()} == {"done"}
    found = {}
    for start in sorted(folder.glob("runs/*/run.json")):
        run = start.parent
        files = sorted(path.relative_to(run).as_posix() for path in run.rglob("*") if path.suffix != ".lock")
        scores = read_predictions(run)["scores"].tobytes()
        found[run.name] = (files, scores, untimed(read_result(run)), read_json(run / "notebook.json")["status"])
    return found


@pytest.fixture(scope="module")
def controls() -> dict[str, Any]:
    """The sweep that nobody disturbed, by the first test that needs it."""
    return {}


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_killed_sweep_leaves_no_process_and_is_completed(
    faults: Faults,
    family: Family,
    controls: dict[str, Any],
    notebook: Path,
    grid: Callable[..., Path],
    tmp_path: Path,
    seed: int,
) -> None:
    source, folder = grid(base={"seconds": 0.5}, grid={"name": ["a", "b"]}), tmp_path / "out"
    words = ["sweep", str(notebook), "--grid", str(source), "--seeds", "1", "--workers", "1", "--out"]

    def complete(out: Path) -> None:
        began = time.monotonic()
        process = family.start(*words, str(out))
        errors = process.communicate(timeout=600)[1]
        assert process.returncode == 0, errors
        controls.setdefault("seconds", time.monotonic() - began)
        controls.setdefault("runs", swept(out))

    if not controls:
        complete(tmp_path / "whole")
    draw = random.Random(f"sweep {seed}")
    with faults.injected("kill -9", "sweep", "no process left; completed, same results"):
        for _ in range(TRIES):
            shutil.rmtree(folder, ignore_errors=True)
            process = family.start(*words, str(folder))
            time.sleep(draw.uniform(0, controls["seconds"]))
            process.kill()
            process.communicate(timeout=60)
            wait_for(lambda: not family.members(), "the end of all that it started")
            if process.returncode == -signal.SIGKILL:
                break
        else:
            pytest.fail("never in time")
        complete(folder)
        assert swept(folder) == controls["runs"]
        assert [len(cell.runs) for cell in read_sweep(folder).comparisons[0].cells] == [1, 1]
