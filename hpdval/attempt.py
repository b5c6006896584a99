"""One ``hpdval train`` in a folder: who holds it, which runs it makes there, and how it ended.

train.json          source, recipe, the folders of its runs, status (running, done, stopped or failed), its last line
train.lock          held while it works, from its first moment on, so also between two runs
train.log           what it printed, where :func:`hpdval.start_training` started it
stop                a request to stop; see :mod:`hpdval.stopping`
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hpdval.errors import RunError, one_line
from hpdval.files import LOCK_SECONDS, lock_held, resolved, write_sealed
from hpdval.stopping import Interrupted, forget_request, listen, stop_listening

RECORD, LOCK, LOG = "train.json", "train.lock", "train.log"
INHERITED = "HPDVAL_TRAIN_LOCK"  # the file that holds the lock, where who started this process took it


class Attempt:
    """One training at work; ``record`` is what ``train.json`` says of it."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder = folder
        self.record = {**about, "status": "running", "started": time.time()}
        self.write()

    def write(self, **values: Any) -> None:
        """Add to the record."""
        self.record |= values
        write_sealed(self.folder / RECORD, self.record)


@contextmanager
def attempt(run: str | os.PathLike[str], about: Mapping[str, Any]) -> Iterator[None]:
    """Hold ``run`` for one training, answer requests to stop it, and record how it ended.

    Of the processes that ``torchrun`` started the first one does that.

    Raises:
        RunError: another process holds the folder.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    folder = resolved(run)
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        own = Attempt(folder, about)
        listen(folder, own)
        try:
            yield
            own.write(status="done", finished=time.time())
        except BaseException as error:
            stopped = isinstance(error, Interrupted | KeyboardInterrupt)
            own.write(status="stopped" if stopped else "failed", error=one_line(error), finished=time.time())
            raise
        finally:
            stop_listening(folder, own)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    if inherited := os.environ.pop(INHERITED, None):  # for this process alone, not for those that it starts
        os.set_inheritable(int(inherited), False)
        try:
            yield
        finally:
            os.close(int(inherited))
        return
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=float(os.environ.get("HPDVAL_LOCK_WAIT") or LOCK_SECONDS))
    except Timeout:
        raise in_use(folder) from None
    try:
        forget_request(folder)
        yield
    finally:
        lock.release()


def take_lock(folder: Path) -> int:
    """Take the folder's lock for a process yet to be started, and return the open file that holds it.

    Raises:
        RunError: another process trains there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        until = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > until:
                    raise in_use(folder) from None
                time.sleep(0.01)
        if any(lock_held(path) for path in folder.glob("*/run.lock")):
            raise in_use(folder)
        forget_request(folder)
    except BaseException:
        os.close(file)
        raise
    return file


def in_use(folder: Path) -> RunError:
    """Return the error of a folder in which another process is at work."""
    return RunError(f"{folder} is in use by another process; watch or stop that one, or choose another folder")
