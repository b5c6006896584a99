"""Files that others write at this moment, read as far as they are whole; what is damaged becomes one line, no error."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hpdval.errors import HpdvalError
from hpdval.files import read_sealed
from hpdval.records import metrics_record

LOG_BYTES, LOG_LINES = 8192, 6


class Tail:
    """The whole lines of a growing file of JSON objects; :meth:`read` takes what is new.

    A file that was replaced, as a resumed run does, or that became shorter, is read anew.  ``wanted`` chooses what is
    kept.
    """

    def __init__(self, path: Path, wanted: Callable[[Mapping[str, Any]], bool] = bool) -> None:
        self.path, self.wanted = path, wanted
        self._begin((0, 0))

    def _begin(self, identity: tuple[int, int]) -> None:
        self._identity, self._offset, self._newest, self._lines = identity, 0, b"", 0
        self.records: list[dict[str, Any]] = []
        self.problem = ""

    def read(self) -> None:
        """Take the lines that were added since the last time."""
        try:
            with open(self.path, "rb") as file:
                state = os.fstat(file.fileno())
                identity = (state.st_dev, state.st_ino)
                file.seek(max(0, self._offset - len(self._newest)))
                # numbers of files are used again, so the line that was read last must still stand there, too
                if identity != self._identity or file.read(len(self._newest)) != self._newest:
                    self._begin(identity)
                    file.seek(0)
                whole = file.read()
        except FileNotFoundError:
            self._begin((0, 0))
            return
        whole = whole[: whole.rfind(b"\n") + 1]
        if whole:
            self._offset += len(whole)
            lines = whole.splitlines(keepends=True)
            self._newest = lines[-1]
            for line in lines:
                self._take(line)

    def _take(self, line: bytes) -> None:
        self._lines += 1
        try:
            record = metrics_record(line, self.path)
            if self.wanted(record):
                self.records.append(record)
        except HpdvalError:
            self.problem = self.problem or f"{self.path.name}, line {self._lines} is damaged and left out"


def read_record(path: Path) -> tuple[Mapping[str, Any], str]:
    """Return the JSON object in a file, empty where there is none, and a line that says what is wrong with it."""
    try:
        return read_sealed(path) if path.exists() else {}, ""
    except (HpdvalError, OSError) as error:
        return {}, str(error)


def log_lines(path: Path) -> tuple[str, ...]:
    """Return the last lines of a log, without terminal colours, of a progress line only what it says last."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return tuple([line for line in lines if line][-LOG_LINES:])


def number(value: Any) -> float | None:
    """Return a finite number, or None for anything else that may stand in a file."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return float(value) if good else None
