"""A clean stop, asked for by a file in a folder: from another process, another machine, a notebook or a browser.

Whoever holds the folder answers.  The training loop looks about once a second, saves and raises :class:`Interrupted`;
an evaluation is finished first.  A request that was made before the folder was opened is forgotten.  What has no such
loop ends at SIGTERM as it does at Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from hpdval.errors import RunError

REQUEST = "stop"
LOOK_SECONDS = 1.0

_LISTENING: WeakValueDictionary[Path, Any] = WeakValueDictionary()  # who in this process holds which folder


class Interrupted(RunError):
    """Training was asked to stop; it saved a checkpoint first."""


def request_stop(folder: str | os.PathLike[str]) -> None:
    """Ask the process that holds ``folder`` to save and stop; nothing happens where none does.

    Raises:
        RunError: the folder cannot be written.
    """
    try:
        (Path(folder) / REQUEST).touch()
    except OSError as error:
        raise RunError(f"could not ask for a stop in {folder}: {error.strerror or error}") from error


def listen(folder: Path, owner: Any) -> None:
    """Answer requests to ``folder`` from now on, until :func:`stop_listening` or the end of ``owner``."""
    _LISTENING[folder] = owner


def stop_listening(folder: Path, owner: Any) -> None:
    """Answer no more, and leave no request behind that nobody would answer."""
    if _LISTENING.get(folder) is owner:
        del _LISTENING[folder]
        forget_request(folder)


def forget_request(folder: Path) -> None:
    """Remove a request, if there is one."""
    (folder / REQUEST).unlink(missing_ok=True)


def take_request() -> bool:
    """Return whether a stop is asked for in any folder that this process holds; whoever calls this obeys."""
    asked = [folder for folder in list(_LISTENING.keys()) if (folder / REQUEST).exists()]
    for folder in asked:
        forget_request(folder)
    return bool(asked)


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that what it started ends, too; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
