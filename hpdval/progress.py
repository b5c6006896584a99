"""Progress that suits where it is read: a bar in a terminal, a widget in JupyterLab, a line now and then elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
HEADLESS_SECONDS = 5.0


def progress(items: Iterable[T], description: str, *, total: int | None = None, show: bool = True) -> Iterator[T]:
    """Yield ``items`` while showing how far along they are; ``HPDVAL_HEADLESS`` asks for plain lines.

    >>> list(progress([1, 2], "counting", show=False))
    [1, 2]
    """
    if not show:
        yield from items
        return
    tqdm, options = _bar()
    yield from tqdm(items, desc=description, total=total, **options)


@contextmanager
def byte_progress(description: str, total: int | None, *, show: bool = True) -> Iterator[Callable[[int], object]]:
    """Give a function that is told how many bytes more there are now; ``total`` in bytes, None where nobody knows.

    >>> with byte_progress("copying", 10, show=False) as advance:
    ...     _ = advance(10)
    """
    if not show:
        yield lambda count: None
        return
    tqdm, options = _bar()
    with tqdm(desc=description, total=total, unit="B", unit_scale=True, **options) as bar:
        yield bar.update


def _bar() -> tuple[Any, dict[str, Any]]:
    """Return the tqdm that suits where it is read, and its options."""
    headless = bool(os.environ.get("HPDVAL_HEADLESS"))
    options: dict[str, Any] = {"leave": False}
    if "ipykernel" in sys.modules and not headless:
        from tqdm.notebook import tqdm
    else:
        from tqdm import tqdm  # type: ignore[assignment]

        if headless or not sys.stderr.isatty():
            options |= {"mininterval": HEADLESS_SECONDS, "delay": HEADLESS_SECONDS, "ascii": True, "file": sys.stdout}
    return tqdm, options
