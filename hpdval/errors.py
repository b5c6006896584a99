"""Errors a user can act on: one line that says what was given, what is allowed and what to do next.

Everything the package raises on purpose derives from :class:`HpdvalError`; the command line prints such an error as a
single line without a traceback.  The subclasses also derive from ``ValueError`` or ``RuntimeError``, so code that does
not know this package can still catch them.
"""

from __future__ import annotations

import reprlib
from typing import Any

LONGEST = 2000  # characters of a line

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80


class HpdvalError(Exception):
    """Base of all errors raised on purpose by this package."""

    def __init__(self, message: str) -> None:
        super().__init__(_line(message))


def _line(text: str) -> str:
    """Return text as one line that no file can spoil: not endless, and without characters that a terminal obeys."""
    line = " ".join(text.split())
    if len(line) > LONGEST:
        line = f"{line[: LONGEST - 305]} ... {line[-300:]}"
    return line if line.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def shown(value: Any) -> str:
    """Return a short ``repr`` of any value, however long, deep or large it is.

    >>> shown("a" * 1000) == repr("a" * 1000), len(shown("a" * 1000)), shown([[[[[[[[1]]]]]]]])
    (False, 80, '[[[[[[[...]]]]]]]')
    """
    try:
        return _REPR.repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        return f"a number of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__


def one_line(error: BaseException) -> str:
    """Return the name of an error and what it says in a single line, as records of runs keep it.

    >>> one_line(ValueError("a\\nb")), one_line(KeyboardInterrupt())
    ('ValueError: a b', 'KeyboardInterrupt')
    """
    return ": ".join(filter(None, (type(error).__name__, _line(str(error)))))


class DataError(HpdvalError, ValueError):
    """Images, labels, class lists or splits that cannot be used as given."""


class ConfigError(HpdvalError, ValueError):
    """An argument, parameter or recipe field with a wrong name, type or range."""


class ModelError(HpdvalError, ValueError):
    """A model or weights file that cannot be used as asked."""


class RunError(HpdvalError, RuntimeError):
    """A run folder that is locked, unfinished, damaged or made by something else."""


class NonFiniteLossError(RunError):
    """The loss became NaN or infinite; no update was made from it."""
