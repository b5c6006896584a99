"""Errors a user can act on: one line that says what was given, what is allowed and what to do next.

Everything the package raises on purpose derives from :class:`HpdvalError`; the command line prints such an error as a
single line without a traceback.  The subclasses also derive from ``ValueError`` or ``RuntimeError``, so code that does
not know this package can still catch them.
"""


class HpdvalError(Exception):
    """Base of all errors raised on purpose by this package."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def one_line(error: BaseException) -> str:
    """Return the name of an error and what it says in a single line, as records of runs keep it.

    >>> one_line(ValueError("a\\nb")), one_line(KeyboardInterrupt())
    ('ValueError: a b', 'KeyboardInterrupt')
    """
    return ": ".join(filter(None, (type(error).__name__, " ".join(str(error).split()))))


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
