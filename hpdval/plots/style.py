"""How every figure looks, and how it is saved: one palette, no global state, the same bytes for the same data."""

from __future__ import annotations

import io
import os
import textwrap
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from itertools import cycle
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
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
OTHER_COLOURS = ("#009E73", "#0072B2", "#E69F00", "#CC79A7", "#000000", "#56B4E9", "#D55E00", "#F0E442", "#8A8A8A")
INK, FAINT = "#222222", "#B5B5B5"
COLUMN, PAGE = 3.5, 7.16  # inches: one column and both of a two-column paper

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
    "pdf.fonttype": 42,  # TrueType, embedded: publishers refuse matplotlib's Type 3
}


class Chart(Figure):
    """A figure that Jupyter shows by itself, whatever backend is set; no pyplot, so nothing is kept or shown twice."""

    def _repr_png_(self) -> bytes:
        return figure_bytes(self, "png", dpi=100)


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


def plain(text: str, longest: int = 24, *, keep_lines: bool = False) -> str:
    """Return a class name as matplotlib shows it: no formula between dollar signs, and not too long.

    >>> plain("cash_$$")
    'cash_\\\\$\\\\$'
    """
    text = str(text) if keep_lines else " ".join(str(text).split())
    return (text if len(text) <= longest else text[: longest - 1] + "…").replace("$", r"\$")


def method_colours(labels: Iterable[str]) -> list[str]:
    """Return a colour for each method: its own wherever it appears, and the next free one for a name unknown here."""
    labels = list(labels)
    taken = {METHOD_COLOURS.get(label) for label in labels}
    free = cycle(colour for colour in OTHER_COLOURS if colour not in taken)
    return [METHOD_COLOURS.get(label) or next(free) for label in labels]


def titled(axes: Axes, title: str, width: float) -> None:
    """Set a title that is broken into lines where it is wider than ``width`` inches."""
    axes.set_title(plain(textwrap.fill(" ".join(title.split()), int(12.5 * width)), 400, keep_lines=True))


def legend_below(figure: Figure, handles: Sequence[Artist], *, title: str | None = None) -> None:
    """Put a legend below the axes, in as many columns as fit; rows after the first make the figure taller."""
    widths = [0.4 + 0.066 * len(str(handle.get_label()).replace("\\", "")) for handle in handles]  # inches, at 8 points
    columns = next(n for n in range(len(handles), 0, -1) if n == 1 or _across(widths, n) <= figure.get_figwidth())
    rows = -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + 0.17 * (rows - 1))
    options: Any = {"title": title, "title_fontsize": 7, "columnspacing": 1.2, "handletextpad": 0.5}
    figure.legend(handles=list(handles), loc="outside lower center", ncols=columns, **options)


def _across(widths: Sequence[float], columns: int) -> float:
    """Return the width of a legend, which matplotlib fills column by column, the longer ones first."""
    rows, longer = divmod(len(widths), columns)
    ends = [(c + 1) * rows + min(c + 1, longer) for c in range(columns)]
    return sum(max(widths[first:end], default=0.0) for first, end in zip([0, *ends], ends, strict=False))


NAMED = 200  # classes that a figure still names; of more it shows some, or no names, and says so


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
    """Write ``path.png`` and ``path.svg`` as :func:`save_figure` does, wherever ``path`` says; "pdf" is known, too."""
    for kind in formats:
        data = figure_bytes(figure, kind, dpi=dpi)
        with atomic_write(f"{os.fspath(path)}.{kind}") as file:
            file.write(data)
    return figure


def figure_bytes(figure: Figure, kind: str, *, dpi: int = 150) -> bytes:
    """Return the figure as a ``png``, ``svg`` or ``pdf`` file that says nothing of when and by what it was made."""
    metadata = {
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    buffer = io.BytesIO()
    settings: Any = {**STYLE, "svg.hashsalt": "hpdval"}
    with mpl.rc_context(settings):
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata.get(kind))
    return buffer.getvalue()
