"""Progress that suits where it is read: a bar in a terminal, a widget in JupyterLab, a line now and then elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
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
    headless = bool(os.environ.get("HPDVAL_HEADLESS"))
    options: dict[str, Any] = {"desc": description, "total": total, "leave": False}
    if "ipykernel" in sys.modules and not headless:
        from tqdm.notebook import tqdm
    else:
        from tqdm import tqdm  # type: ignore[assignment]

        if headless or not sys.stderr.isatty():
            options |= {"mininterval": HEADLESS_SECONDS, "delay": HEADLESS_SECONDS, "ascii": True, "file": sys.stdout}
    yield from tqdm(items, **options)
