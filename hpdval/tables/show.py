"""How a table is written as text, Markdown and CSV, and shown in Jupyter."""

from __future__ import annotations

import html
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpdval.files import atomic_write

Folder = str | os.PathLike[str]


def formatted(table: pd.DataFrame, digits: int = 2) -> pd.DataFrame:
    """Return the table as text: numbers with ``digits``, "-" for NaN, and ``total sd`` in brackets behind ``total``.

    ``table.attrs["digits"]``, column -> digits, has precedence: a p-value needs more than a percentage.
    """
    text, own = pd.DataFrame(index=table.index), table.attrs.get("digits", {})
    for name in table.columns:
        values = [_cell(value, own.get(name, digits)) for value in table[name]]
        owner = str(name).removesuffix(" sd")
        if owner != name and owner in text:
            text[owner] = [f"{a} ({b})" if b != "-" else a for a, b in zip(text[owner], values, strict=True)]
        else:
            text[name] = values
    return text


def _cell(value: Any, digits: int) -> str:
    if value is None or value is pd.NA or (isinstance(value, float | np.floating) and np.isnan(value)):
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float | np.floating) else str(value)


def to_markdown(table: pd.DataFrame, digits: int = 2) -> str:
    """Return the table as Markdown; the first column is text, the others are aligned to the right.

    Lines in ``table.attrs["footnotes"]``, where there are any, follow as a list.

    >>> print(to_markdown(pd.DataFrame({"method": ["a|b"], "total": [61.254]})))
    | method | total |
    |:-------|------:|
    | a\\|b   | 61.25 |
    """
    text = formatted(table, digits)
    columns = [[_escaped(str(name)), *map(_escaped, text[name])] for name in text.columns]
    widths = [max(3, *map(len, column)) for column in columns]
    pad = [str.ljust, *[str.rjust] * (len(columns) - 1)]
    lines = [
        "| " + " | ".join(p(cell, w) for p, cell, w in zip(pad, row, widths, strict=True)) + " |"
        for row in zip(*columns, strict=True)
    ]
    rule = [":" + "-" * (w + 1) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)]
    notes = [f"- {_escaped(note)}" for note in footnotes(table)]
    return "\n".join([lines[0], "|" + "|".join(rule) + "|", *lines[1:], *([""] if notes else []), *notes])


def footnotes(table: pd.DataFrame) -> list[str]:
    """Return the lines that belong under the table; see :func:`hpdval.tables.protocol_table`."""
    return list(table.attrs.get("footnotes", []))


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


class ShownTable:
    """A table as Jupyter shows it: formatted, escaped, and left alone by MathJax; ``frame`` holds the numbers."""

    def __init__(self, frame: pd.DataFrame, digits: int = 2) -> None:
        self.frame, self.digits = frame, digits

    def __repr__(self) -> str:
        return "\n".join([formatted(self.frame, self.digits).to_string(index=False), *footnotes(self.frame)])

    def _repr_html_(self) -> str:
        text = formatted(self.frame, self.digits)
        head = "".join(f"<th>{html.escape(str(name))}</th>" for name in text.columns)
        rows = [f"<td>{'</td><td>'.join(html.escape(value) for value in row)}</td>" for row in text.to_numpy()]
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        below = "".join(f'<p class="tex2jax_ignore">{html.escape(note)}</p>' for note in footnotes(self.frame))
        return (
            f'<table class="tex2jax_ignore mathjax_ignore"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
            + below
        )


def save_table(table: pd.DataFrame, folder: Folder, name: str, *, digits: int = 2) -> ShownTable:
    """Write ``folder/tables/NAME.csv`` (all digits) and ``NAME.md``, atomically, and return the table to be shown."""
    target = Path(folder) / "tables"
    with atomic_write(target / f"{name}.csv", "w") as file:
        table.to_csv(file, index=False, lineterminator="\n")
    with atomic_write(target / f"{name}.md", "w") as file:
        file.write(to_markdown(table, digits) + "\n")
    return ShownTable(table, digits)
