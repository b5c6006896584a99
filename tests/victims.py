"""What the tests of crashes kill: short pieces of real work, each in a process forked from one that has all imported.

``python victims.py FOLDER`` prepares what they share in ``FOLDER`` and then answers requests, one JSON object a line:
``victim``, its ``folder``, a ``signal`` and when to send it: ``seconds`` after the start or at the ``step`` of that
number, where a step is a change of a file below the folder (just before it) or a write to one (half way through it).
The answer says the ``code`` with which the victim ended, whether the clock ``sent`` the signal in time, the ``seconds``
it took; and, if it could still say so, its ``steps`` and its ``error``.
"""

from __future__ import annotations

import builtins
import io
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import test_report
import torch
from test_fewshot_training import recipe as fewshot
from test_rivals import recipe as rival
from toys import CLASSES, coloured_set, recipe, tiny

import hpdval
from hpdval.data.fewshot import PROTOCOLS
from hpdval.error_analysis import error_report
from hpdval.report import build_report
from hpdval.scoring import FeatureStore, features, open_run, report_run, zero_shot_scorer
from hpdval.training import loop
from hpdval.training.joint import train_joint
from hpdval.training.rivals import train_rival
from hpdval.training.stage1 import train_stage1
from hpdval.training.stage2 import train_stage2

# -- the victims -------------------------------------------------------------------------------------------------------


class Victims:
    """Pieces of work by name; each has a folder of its own and takes about a second."""

    def __init__(self, shared: Path) -> None:
        os.environ["HPDVAL_CACHE"] = str(shared / "cache")
        self.clip = tiny(shared)
        self.data = coloured_set()
        train = self.data.train
        self.known = replace(self.data, train=train.subset(range(40)), val=train.subset(range(40, 60)))
        self.start = zero_shot_scorer(self.clip, CLASSES)
        self.world = PROTOCOLS["scenes-fewshot"].load(train=60, test=20)
        self.runs = [test_report.made(shared / name, strength, 0) for name, strength in (("a", 1.0), ("b", 1.5))]

    def stage1(self, folder: Path) -> None:
        train_stage1(self.data, recipe(**{"stage1.epochs": 2}), run=folder / "run", clip=self.clip, show=False)

    def stage2(self, folder: Path) -> None:
        train_stage2(self.data, recipe(), run=folder / "run", start=self.start, show=False)

    def joint(self, folder: Path) -> None:
        """With a moving average and the best epoch on validation images: more in each checkpoint."""
        values = {"stage1.epochs": 2, "stage1.ema_decay": 0.5, "val": 0.3, "selection": "validation"}
        train_joint(self.known, recipe(**values), run=folder / "run", clip=self.clip, show=False)

    def rival(self, folder: Path) -> None:
        experiment = rival(
            "fine-tuning", **{"rival.epochs": 2, "rival.batch_size": 20, "rival.sampling": "class-aware"}
        )
        train_rival(self.data, experiment, run=folder / "run", clip=self.clip, show=False)

    def features(self, folder: Path) -> None:
        FeatureStore.open(self.clip, self.data.train, show=False)

    def evaluation(self, folder: Path) -> None:
        """The test images scored, and what the errors are as a page."""
        with open_run(folder / "run", "zero-shot", self.data, recipe(), self.start) as run:
            if not run.finished:
                report_run(run, self.start, self.data, recipe(), show=False)
        error_report(folder / "run", self.data, folder / "page", n=2, resamples=5, show=False)

    def report(self, folder: Path) -> None:
        build_report(self.runs, folder / "page", figures=(), resamples=5, permutations=5, show=False)

    def earlier_report(self, folder: Path) -> None:
        """What stood there before: fewer runs, other files."""
        build_report(self.runs[:1], folder / "page", figures=("svg",), resamples=5, permutations=5, show=False)

    def fewshot(self, folder: Path) -> None:
        short = {"episodes": 2, "shots": 1, "adapt.stage1.epochs": 1, "adapt.stage2.epochs": 1}
        hpdval.train_fewshot(self.world, fewshot(**short), run=folder / "run", clip=self.clip, show=False)


# -- the moment --------------------------------------------------------------------------------------------------------

CHANGES = {"open", "os.rename", "os.remove", "os.truncate", "os.mkdir", "os.chmod", "os.link"}
OPEN = io.open


class Moment:
    """Notes what this process does to files below a folder, and sends it a signal at the step that was asked for."""

    def __init__(self, folder: Path, number: int, step: int | None) -> None:
        self.below, self.number, self.step = f"{folder}{os.sep}", number, step
        self.steps: list[str] = []
        self.latest = ""

    def watch(self) -> None:
        """Begin; there is no way back."""
        sys.addaudithook(self._audit)
        io.open = builtins.open = self._open  # type: ignore[assignment]

    def reached(self, step: str) -> bool:
        """Note a step, and say whether it is the one."""
        self.steps.append(step)
        return len(self.steps) - 1 == self.step

    def strike(self) -> None:
        """Send the signal."""
        os.kill(os.getpid(), self.number)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES or (event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        path = str(arguments[0])
        if path.startswith(self.below):
            self.latest = path if event == "open" else self.latest
            if self.reached(f"{event} {path.removeprefix(self.below)}"):
                self.strike()

    def _open(
        self,
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        path = self.latest if isinstance(file, int) else str(file)  # a descriptor that tempfile has just opened
        if "+" in mode or not {*mode} & {*"wax"} or not path.startswith(self.below):
            return OPEN(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = Watched(file, mode.replace("b", ""), closefd, opener)
        raw.moment, raw.label = self, f"write {path.removeprefix(self.below)}"
        buffered = io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)


class Watched(io.FileIO):
    """A file each of whose writes is a step; a signal at it comes when half of the bytes are on the disk."""

    moment: Moment
    label: str

    def write(self, data: Any) -> int:
        if not self.moment.reached(self.label):
            return super().write(data)
        written = super().write(memoryview(data)[: len(data) // 2])
        self.moment.strike()
        return written  # where the signal is none that kills, the rest follows


# -- the server --------------------------------------------------------------------------------------------------------


def work(request: dict[str, Any], victim: Callable[[Path], None]) -> int:
    """Do a piece of work in this process, forked for it; what there is to say goes beside its folder."""
    folder = Path(request["folder"])
    os.dup2(2, 1)
    os.environ["HPDVAL_CACHE"] = str(folder / "cache")
    moment, error = Moment(folder, request["signal"], request["step"]), ""
    moment.watch()
    try:
        victim(folder)
    except BaseException as caught:
        error = f"{type(caught).__name__}: {caught}"
        traceback.print_exc()
    said = {"error": error, "steps": moment.steps, "left": time.monotonic()}
    Path(f"{folder}.json").write_text(json.dumps(said))
    return 1 if error else 0


def answer(request: dict[str, Any], victim: Callable[[Path], None]) -> dict[str, Any]:
    """Fork, wait, send the signal in time where one was asked for by the clock."""
    said, began = Path(f"{request['folder']}.json"), time.monotonic()
    said.unlink(missing_ok=True)
    pid = os.fork()
    if not pid:
        os._exit(work(request, victim))
    due, struck, ended, status = request["seconds"], math.inf, 0, 0
    while not ended:
        time.sleep(0.001)
        ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended and struck == math.inf and due is not None and time.monotonic() - began >= due:
            struck = time.monotonic()
            os.kill(pid, request["signal"])  # not waited for yet, so nobody else has its number
    code, seconds = os.waitstatus_to_exitcode(status), time.monotonic() - began
    told = json.loads(said.read_text()) if said.exists() else {"error": "", "steps": [], "left": math.inf}
    # the system takes its time to end a process that has left, and no signal reaches it then
    sent = code < 0 or struck < told.pop("left")
    return {"code": code, "sent": sent, "seconds": seconds, **told}


def serve(shared: Path) -> None:
    """Answer requests until nobody makes any."""
    torch.set_num_threads(1)
    loop.CHECKPOINT_SECONDS = 0.0  # a checkpoint after every update
    features.BATCH = 16  # images of a feature store that are written together
    victims = Victims(shared)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the victims print
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(answer(request, getattr(victims, request["victim"]))), file=answers, flush=True)
    os._exit(0)  # without taking down all that was imported, which can take long


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
