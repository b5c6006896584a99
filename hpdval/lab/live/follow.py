"""What a training is doing, told from its files alone: state, progress, losses, result.  No widget, no torch.

Everything here is read-only and takes no lock, so any number may follow a run, from any machine that sees its folder.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpdval.attempt import LOCK, LOG, RECORD
from hpdval.errors import HpdvalError
from hpdval.files import lock_held
from hpdval.lab.live.tail import Tail, log_lines, number, read_record
from hpdval.plots.training import WATCHED
from hpdval.records import checked_file, read_manifest, read_result
from hpdval.stopping import REQUEST
from hpdval.training.batches import Plan

WAITING, RUNNING, STOPPING, DONE = "waiting", "running", "stopping", "done"
STOPPED, INTERRUPTED, FAILED, DAMAGED = "stopped", "interrupted", "failed", "damaged"
WORDLESS = "its process ended without a word"
ASKED = ("Interrupted", "KeyboardInterrupt")  # errors of a training that was told to end


@dataclass(frozen=True)
class Stage:
    """One run of a training, as it is now; ``updates`` and ``epochs`` are 0 where nothing is trained."""

    name: str
    folder: Path
    state: str
    reason: str = ""
    update: int = 0
    updates: int = 0
    epoch: int = 0
    epochs: int = 0
    elapsed: float | None = None  # seconds, those of earlier attempts included
    remaining: float | None = None
    last: Mapping[str, float] = field(default_factory=dict)  # losses, learning rate and watched mAP, the newest of each
    records: tuple[Mapping[str, Any], ...] = ()
    result: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """A training as it is now; ``active`` is the run at work, else the last one that was."""

    folder: Path
    state: str
    reason: str = ""
    stages: tuple[Stage, ...] = ()
    active: Stage | None = None
    log: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


class WatchedRun:
    """One run folder; :meth:`look` says how it stands."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tail = folder, Tail(folder / "metrics.jsonl", _is_update)
        self.problems: list[str] = []
        self._result: tuple[Any, Mapping[str, Any]] = (None, {})
        self._first: tuple[float, int] | None = None  # when an update of this attempt was first seen, and which

    def look(self) -> Stage:
        """Read what is new."""
        self.problems = []
        # in this order: a manifest is written before the lock is released, and metrics before the manifest
        held = lock_held(self.folder / "run.lock")
        start, manifest = (self._json(name) for name in ("run.json", "manifest.json"))
        done = manifest.get("status") == "done" and manifest.get("key") == start.get("key")
        if manifest and start and not done:
            self.problems.append(f"{self.folder / 'manifest.json'} does not belong to run.json")
        result = self._read_result() if done else {}
        state, reason = self._state(start, held, done)
        self.tail.read()
        # of a finished run whose files are not those of its manifest nothing is shown: they may be another run's
        records, plan = () if done and self.problems else tuple(self.tail.records), _plan(start)
        self.problems += [self.tail.problem] if self.tail.problem else []
        update = records[-1]["step"] if records else 0
        elapsed = number(manifest.get("wall_seconds")) if done else _elapsed(start, held)
        newest = records[-(plan.updates_per_epoch + 2) :] if plan else records  # what is watched comes once in an epoch
        last = {name: value for record in newest for name, value in _values(record).items()}
        return Stage(
            name=self.folder.name,
            folder=self.folder,
            state=state,
            reason=reason,
            update=update,
            updates=plan.updates if plan else 0,
            epoch=int(records[-1]["epoch"]) + 1 if records else 0,
            epochs=plan.epochs if plan else 0,
            elapsed=elapsed,
            remaining=self._remaining(update, plan, elapsed) if state == RUNNING else None,
            last=last,
            records=records,
            result=result,
        )

    def _state(self, start: Mapping[str, Any], held: bool, done: bool) -> tuple[str, str]:
        if held and not done:
            return RUNNING, ""
        if self.problems:
            return DAMAGED, self.problems[0]
        if done:
            return DONE, ""
        ended = str(start.get("ended", ""))
        if ended:
            return _asked(ended)
        return (INTERRUPTED, WORDLESS) if start else (WAITING, "")

    def _json(self, name: str) -> Mapping[str, Any]:
        found, problem = read_record(self.folder / name)
        self.problems += [problem] if problem else []
        return found

    def _read_result(self) -> Mapping[str, Any]:
        """Return the result, whose hash is taken once, as is that of the metrics."""
        state = (self.folder / "manifest.json").stat()
        identity = (state.st_ino, state.st_mtime_ns)
        if self._result[0] != identity:
            result: Mapping[str, Any] = {}
            try:
                files = read_manifest(self.folder)["files"]
                if "result.json" in files:
                    result = read_result(self.folder)
                if "metrics.jsonl" in files:
                    checked_file(self.folder, "metrics.jsonl")
            except HpdvalError as error:
                self.problems.append(str(error))
                return {}
            self._result = (identity, result if isinstance(result, dict) else {})
        return self._result[1]

    def _remaining(self, update: int, plan: Plan | None, elapsed: float | None) -> float | None:
        """Return the seconds until the last update: by the pace since we look, at first by that of the whole run."""
        now = time.monotonic()
        if self._first is None or update < self._first[1]:
            self._first = (now, update)
        if plan is None or not 0 < update < plan.updates:
            return None
        since, made = now - self._first[0], update - self._first[1]
        if made > 0 and since > 5:
            return (plan.updates - update) * since / made
        return (plan.updates - update) * elapsed / update if elapsed is not None else None


class Follower:
    """A training in a folder: one run, or that of ``hpdval train`` or a notebook with several below it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._runs: dict[Path, WatchedRun] = {}

    def look(self) -> Snapshot:
        """Read what is new and say how everything stands."""
        held = any(lock_held(self.folder / name) for name in (LOCK, "notebook.lock"))
        (train, broken), (notebook, unread) = (read_record(self.folder / name) for name in (RECORD, "notebook.json"))
        stages, problems = [], [problem for problem in (broken, unread) if problem]
        for folder in self._folders(train):
            run = self._runs.setdefault(folder, WatchedRun(folder))
            stages.append(run.look())
            problems += run.problems
        active = _active(stages, self.folder)
        log = log_lines(self.folder / LOG)
        state, reason = self._state(held, train, notebook, stages, active, log)
        asked = [self.folder, *(stage.folder for stage in stages if stage.state == RUNNING)]
        if state == RUNNING and any((folder / REQUEST).exists() for folder in asked):
            state = STOPPING
        return Snapshot(self.folder, state, reason, tuple(stages), active, log, tuple(problems))

    def _folders(self, train: Mapping[str, Any]) -> list[Path]:
        """Return the folders of runs: those that are to come, then others that there are, and last this one."""
        named = train.get("runs")
        folders = [self.folder / name for name in named if isinstance(name, str)] if isinstance(named, list) else []
        found = [path.parent for path in self.folder.glob("*/run.json")]
        folders += sorted(set(found) - set(folders), key=lambda folder: (folder.name != "zero-shot", folder.name))
        return folders + [self.folder] * (self.folder / "run.json").exists()

    def _state(
        self,
        held: bool,
        train: Mapping[str, Any],
        notebook: Mapping[str, Any],
        stages: list[Stage],
        active: Stage | None,
        log: tuple[str, ...],
    ) -> tuple[str, str]:
        if held or any(stage.state == RUNNING for stage in stages):
            return RUNNING, ""
        own = [stage for stage in stages if stage.folder == self.folder]
        if stages and all(stage.state == DONE for stage in own or stages):
            return DONE, ""
        for record in (train, notebook):
            status, why = record.get("status"), str(record.get("error", ""))
            if status in (STOPPED, FAILED):
                return _asked(why)
            if status == "killed":
                return INTERRUPTED, why
            if status == "running":
                return INTERRUPTED, WORDLESS
        if active is not None and active.state != WAITING:
            return active.state, active.reason
        return (FAILED, log[-1]) if log else (WAITING, "")


def _asked(ended: str) -> tuple[str, str]:
    """Return the state of what ended with an error, and the reason: to be told to stop is no failure."""
    kind, _, why = ended.partition(": ")
    return (STOPPED, why) if kind in ASKED else (FAILED, ended)


def _active(stages: list[Stage], folder: Path) -> Stage | None:
    """Return the run at work, one below a notebook's own rather than that, else the last one that began."""
    running = [stage for stage in stages if stage.state == RUNNING]
    begun = [stage for stage in stages if stage.state != WAITING]
    inner = [stage for stage in running or begun if stage.folder != folder]
    chosen = inner or running or begun
    return chosen[-1] if chosen else None


def _is_update(record: Mapping[str, Any]) -> bool:
    """Whether a record has what a curve needs; one that a stage logs when it ends has no step."""
    whole = all(isinstance(record.get(name), int) for name in ("step", "epoch"))
    losses = {name for name in record if name not in ("stage", "step", "epoch", "numeric")}
    return whole and isinstance(record.get("stage"), str) and all(number(record[name]) is not None for name in losses)


def _values(record: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in record.items() if name not in ("stage", "step", "epoch", "numeric")}


def _plan(start: Mapping[str, Any]) -> Plan | None:
    """Return how many updates a run is to make, from its record."""
    try:
        own = {"stage1": "stage1", "joint": "stage1", "stage2": "stage2"}.get(start["kind"], "rival")
        stage = start["config"][own]
        numbers = (start["inputs"]["images"]["train"], stage["batch_size"], stage["accumulate"], stage["epochs"])
        trains = all(isinstance(n, int) and n > 0 for n in numbers)
        return Plan(*numbers, seed=0) if trains else None
    except (KeyError, TypeError):
        return None


def _elapsed(start: Mapping[str, Any], held: bool) -> float | None:
    before, opened = number(start.get("elapsed")) or 0.0, number(start.get("opened", start.get("started")))
    if opened is None:
        return None
    return before + max(0.0, time.time() - opened) if held else before or None


def watched(last: Mapping[str, float]) -> Mapping[str, float]:
    """Return the mAP that is watched, where there is one."""
    return {name: last[name] for name in WATCHED if name in last}
