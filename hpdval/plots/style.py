"""How every figure looks, and how it is saved: one palette, no global state, the same bytes for the same data."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
from matplotlib.figure import Figure

from hpdval.files import atomic_write

P = ParamSpec("P")
R = TypeVar("R")

# Okabe and Ito's palette: told apart with every kind of colour vision; groups differ by marker, too.
GROUP_COLOURS = {"head": "#0072B2", "medium": "#E69F00", "tail": "#CC79A7"}
GROUP_MARKERS = {"head": "o", "medium": "s", "tail": "^"}
METHOD_COLOURS = {
    "zero-shot": "#8A8A8A",
    "zero-shot, both views": "#C9C9C9",
    "stage 1": "#56B4E9",
    "stage 2": "#D55E00",
}
OTHER_COLOURS = ("#009E73", "#0072B2", "#E69F00", "#CC79A7", "#000000")
INK, FAINT = "#222222", "#B5B5B5"

STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same figure on every machine
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": "#E3E3E3",
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "image.interpolation": "nearest",
    "svg.fonttype": "path",
}


class Chart(Figure):
    """A figure that Jupyter shows by itself, whatever backend is set; no pyplot, so nothing is kept or shown twice."""

    def _repr_png_(self) -> bytes:
        return _render(self, "png", dpi=100)


def styled(function: Callable[P, R]) -> Callable[P, R]:
    """Draw under ``STYLE`` without changing matplotlib's settings for anyone else."""

    @wraps(function)
    def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context(STYLE):
            return function(*args, **kwargs)

    return inner


def new_chart(width: float, height: float) -> Chart:
    """Return an empty figure of ``width`` x ``height`` inches that keeps labels from overlapping."""
    return Chart(figsize=(width, height), layout="constrained")


def plain(text: str, longest: int = 24) -> str:
    """Return a class name as matplotlib shows it: no formula between dollar signs, and not too long.

    >>> plain("cash_$$")
    'cash_\\\\$\\\\$'
    """
    text = " ".join(str(text).split())
    return (text if len(text) <= longest else text[: longest - 1] + "…").replace("$", r"\$")


def method_colours(labels: Iterable[str]) -> list[str]:
    """Return a colour for each method: its own wherever it appears, and the next free one for a name unknown here."""
    free = iter(OTHER_COLOURS * 10)
    return [METHOD_COLOURS.get(label) or next(free) for label in labels]


def tick_size(count: int) -> float:
    """Return the font size at which ``count`` names stand side by side without touching."""
    return 8.0 if count <= 30 else 5.5


def save_figure(
    figure: Figure,
    folder: str | os.PathLike[str],
    name: str,
    *,
    formats: tuple[str, ...] = ("png", "svg"),
    dpi: int = 150,
) -> Figure:
    """Write ``folder/figures/NAME.png`` and ``.svg``, atomically, and return the figure to be shown.

    The same figure gives the same bytes: no date, no random ids.

    Raises:
        RunError: a file could not be written; what stood there before is intact.
    """
    return write_figure(figure, Path(folder) / "figures" / name, formats=formats, dpi=dpi)


def write_figure(
    figure: Figure, path: str | os.PathLike[str], *, formats: tuple[str, ...] = ("png", "svg"), dpi: int = 150
) -> Figure:
    """Write ``path.png`` and ``path.svg`` as :func:`save_figure` does, wherever ``path`` says."""
    for kind in formats:
        data = _render(figure, kind, dpi=dpi)
        with atomic_write(f"{os.fspath(path)}.{kind}") as file:
            file.write(data)
    return figure


def _render(figure: Figure, kind: str, *, dpi: int) -> bytes:
    metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}, "pdf": {"CreationDate": None}}
    buffer = io.BytesIO()
    settings: Any = {**STYLE, "svg.hashsalt": "hpdval"}
    with mpl.rc_context(settings):
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata.get(kind))
    return buffer.getvalue()
