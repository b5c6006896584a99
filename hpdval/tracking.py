"""Metrics of runs as TensorBoard event files, mirrored from ``metrics.jsonl`` so that training depends on nothing.

This is the one module that needs the package ``tensorboard`` (the extra ``tracking``).  A mirror is a folder of its own

    events.out.tfevents.*   ``<stage>/<name>`` at each step; of a finished run ``test/total`` and groups at the last one
    mirrored.json           which records these files hold, so that a later export appends what is new
"""

from __future__ import annotations

import io
import itertools
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hpdval.errors import ConfigError, HpdvalError, RunError
from hpdval.files import LOCK_SECONDS, digest, lock_held, not_written, read_json, write_json
from hpdval.groups import GROUPS
from hpdval.run import read_manifest, read_metrics, read_result

STATE, EVENTS = "mirrored.json", "events.out.tfevents.*"
OURS = {"run.json", "manifest.json", "notebook.json"}
Folder = str | os.PathLike[str]
Records = Sequence[Mapping[str, Any]]


class Mirror:
    """The event files of one run in ``target``; :meth:`update` writes what the run has logged since the last time.

    Where a resumed run took records back, or event files were altered, all is written anew and the rest is purged.

    Raises:
        ConfigError: ``target`` holds a run, or event files of somebody else.
    """

    def __init__(self, run: Folder, target: Folder) -> None:
        self.run, self.target = Path(run), Path(target)
        self._writer: EventFile | None = None
        self._seen: list[tuple[int, int] | None] = []
        if any((self.target / name).exists() for name in OURS):
            raise ConfigError(f"{self.target} is a run folder; choose another folder for event files")
        if self._sizes() and not (self.target / STATE).exists():
            raise ConfigError(f"{self.target} holds event files that hpdval did not write; choose another folder")

    def update(self) -> int:
        """Write what is new and return how many records that were.

        Raises:
            RunError: ``metrics.jsonl`` or the result is damaged.
        """
        now = [_identity(self.run / name) for name in ("metrics.jsonl", "manifest.json")]
        if now == self._seen or now == [None, None]:
            return 0
        records = read_metrics(self.run)
        if (self.run / "manifest.json").exists() and "result.json" in read_manifest(self.run)["files"]:
            records += _test_metrics(read_result(self.run), records)
        held = self._held(records)
        if held < len(records):
            self._write(records, held)
        if not lock_held(self.run / "run.lock"):  # nothing more will come soon
            self.close()
        self._seen = now
        return len(records) - max(held, 0)

    def _held(self, records: Records) -> int:
        """Return how many of ``records`` the event files hold; -1 where they hold anything else."""
        found: Any = self._state([])
        if (self.target / STATE).exists():
            found = None
            with suppress(HpdvalError):  # damaged: all is written anew
                found = read_json(self.target / STATE)
        held = found.get("records") if isinstance(found, dict) else None
        return held if isinstance(held, int) and found == self._state(records[:held]) else -1

    def _state(self, records: Records) -> dict[str, Any]:
        return {"records": len(records), "digest": digest(records), "files": self._sizes()}

    def _sizes(self) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in self.target.glob(EVENTS)}

    def _write(self, records: Records, held: int) -> None:
        if held < 0:
            self.close()
        if self._writer is None:
            # where we die before the last line of this function, the next export sees that it must begin anew
            write_json(self.target / STATE, {**self._state(records[: max(held, 0)]), "files": None})
            # purging makes readers forget earlier files, which stay: TensorBoard stops at a file that vanishes
            self._writer = _event_file(self.target, purge=held < 0)
        for tag, value, step in scalars(records, begin=max(held, 0)):
            self._writer.add_event(_event(tag, value, step))
        self._writer.flush()
        write_json(self.target / STATE, self._state(records))

    def close(self) -> None:
        """Close the event file; a later update begins another."""
        self._writer = None


def scalars(records: Records, begin: int = 0) -> Iterator[tuple[str, float, int]]:
    """Yield tag, value and step of every number in ``records`` from the one numbered ``begin`` on.

    A record without a step, as a stage logs when it ends, counts at the last step of its stage.

    >>> list(scalars([{"stage": "s", "step": 3, "loss": 0.5}, {"stage": "s", "numeric": "float32", "k": {"a": 1}}]))
    [('s/loss', 0.5, 3), ('s/k/a', 1.0, 3)]
    """
    last: dict[str, int] = {}
    for number, record in enumerate(records):
        stage = str(record.get("stage", "run"))
        step = last[stage] = int(record.get("step", last.get(stage, 0)))
        if number >= begin:
            for name, value in _numbers(record):
                if name not in ("step", "stage"):
                    yield f"{stage}/{name}", value, step


def _numbers(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + name, float(value)


def _test_metrics(result: Mapping[str, Any], records: Records) -> list[dict[str, Any]]:
    """Return the record of the test images, at the last step of the run: none where the run scored nothing."""
    found = {name: result[name] for name in ("total", *GROUPS) if isinstance(result.get(name), int | float)}
    last = max((int(record.get("step", 0)) for record in records), default=0)
    return [{"stage": "test", "step": last, **found}] if found else []


def _identity(path: Path) -> tuple[int, int] | None:
    """What changes when a file is written to or replaced."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns


def _check_installed() -> None:
    if find_spec("tensorboard") is None:
        raise ConfigError("TensorBoard is not installed; install the extra: pip install 'hpdval[tracking]'")


class EventFile:
    """One file of events; TensorBoard's own writer has a thread, which nobody hears when the disk is full."""

    _numbers = itertools.count()

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}.{next(self._numbers)}"
        self.path = folder / name
        self._unwritten = io.BytesIO()
        self._records = RecordWriter(self._unwritten)
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self.flush()

    def add_event(self, event: Any) -> None:
        """Add an event; :meth:`flush` writes it."""
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        """Write what was added.

        Raises:
            RunError: it could not be written; the next export writes all anew.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab") as file:
                file.write(self._unwritten.getvalue())
        except OSError as error:
            raise not_written(self.path, self.path, error) from error
        self._unwritten.seek(0)
        self._unwritten.truncate()


def _event_file(folder: Path, *, purge: bool) -> EventFile:
    """Begin a new event file in ``folder``; with ``purge`` readers forget all that earlier files hold."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    newest = max((int(path.name.split(".")[3]) for path in folder.glob(EVENTS)), default=0)
    while newest <= time.time() < newest + 1:  # readers take files in the order of names, which hold whole seconds
        time.sleep(0.05)
    file = EventFile(folder)
    if purge:
        file.add_event(Event(wall_time=time.time(), step=0, session_log=SessionLog(status=SessionLog.START)))
    return file


def _event(tag: str, value: float, step: int) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
    return Event(wall_time=time.time(), step=step, summary=summary)


def mirror_runs(
    find: Callable[[], Iterable[Folder]],
    to: Folder,
    *,
    below: Folder = ".",
    every: float | None = None,
    tell: Callable[[str], None] = print,
) -> None:
    """Mirror the runs that ``find`` returns into ``to``, each by its name relative to ``below``.

    Args:
        find: returns run folders below ``below``; what it once returned is mirrored to its end.
        every: seconds after which to look again, without end; None looks once.
        tell: is given one line where something was written, and one for each run that is damaged.

    Raises:
        ConfigError: TensorBoard is not installed, or a folder in ``to`` holds other files.
        RunError: another process mirrors into ``to``.
    """
    _check_installed()
    mirrors: dict[str, Mirror] = {}
    told: set[str] = set()
    with _alone(Path(to)):
        try:
            while True:
                for folder in find():
                    name = os.path.relpath(os.path.abspath(folder), os.path.abspath(below))
                    name = Path(folder).resolve().name if name == "." else name
                    if name not in mirrors:
                        mirrors[name] = Mirror(folder, Path(to) / name)
                new, problems = _update(mirrors)
                for line in sorted(problems - told):
                    tell(line)
                told |= problems
                if new or every is None:
                    tell(f"new in {to}: {sum(new.values())} records, runs: {', '.join(sorted(new)) or 'none'}")
                if every is None:
                    return
                time.sleep(every)
        finally:
            for mirror in mirrors.values():
                mirror.close()


def _update(mirrors: Mapping[str, Mirror]) -> tuple[dict[str, int], set[str]]:
    """Return how many new records runs had, and a line for each that is damaged, which does not stop the others."""
    new, problems = {}, set()
    for name, mirror in mirrors.items():
        try:
            new[name] = mirror.update()
        except HpdvalError as error:
            if isinstance(error.__cause__, OSError):  # a full disk is nothing that this run has
                raise
            problems.add(f"{name} is left out: {error}")
    return {name: count for name, count in new.items() if count}, problems


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "mirrored.lock", timeout=LOCK_SECONDS):
            yield
    except Timeout:
        raise RunError(f"another process mirrors runs into {folder}; choose another folder") from None
