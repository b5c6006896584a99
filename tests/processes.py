"""Processes that tests start, with all that those start: known by a token in their environment, wherever they are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

TOKEN = "HPDVAL_TEST_FAMILY"


class Family:
    """What is started with ``environment``: it inherits the token and a folder for temporary files of its own."""

    def __init__(self, temporary: Path) -> None:
        self.temporary = temporary
        self.token = uuid4().hex
        self.environment = {**os.environ, TOKEN: self.token, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Start ``hpdval`` with these words, as a shell in the foreground would: Ctrl-C reaches it."""
        code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        code += "from hpdval.cli import main; sys.exit(main(sys.argv[1:]))"
        pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([sys.executable, "-c", code, *words], env=self.environment, **{**pipes, **options})

    def members(self) -> list[psutil.Process]:
        """Those that live, also where whoever started them is gone."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(TOKEN) == self.token and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def check_gone(self, seconds: float = 30) -> None:
        """Nothing that was started lives on, and no temporary file of ours is left."""
        until = time.monotonic() + seconds
        while (left := self.members()) and time.monotonic() < until:
            time.sleep(0.1)
        assert not left, [" ".join(process.cmdline()) for process in left if process.is_running()]
        kept = sorted(path.name for path in self.temporary.glob("hpdval-*"))
        assert not kept, kept

    def end(self) -> None:
        """End what a failed test left."""
        for process in self.members():
            process.kill()


@pytest.fixture
def family(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    """A family whose temporary folder has a short path: kernels put their sockets there."""
    family = Family(tmp_path_factory.mktemp("t"))
    yield family
    family.end()


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 300) -> Any:
    """Return what ``condition`` returns as soon as that is something."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, f"{what} did not come"
        time.sleep(0.05)
    return found


def struck(process: subprocess.Popen[str], number: signal.Signals, seconds: float = 60) -> str:
    """Send a signal to a process that is at work, and return what it said on standard error when it has ended."""
    assert process.poll() is None, "it ended before the signal"
    process.send_signal(number)
    return process.communicate(timeout=seconds)[1]
