"""What a report is made of: sections with tables and pictures, whatever it is written in."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from hpdval.plots import Chart


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table: all digits in ``frame``, text in ``shown`` (None: too long for a page), LaTeX where a paper wants it."""

    name: str  # of the files, without suffix
    caption: str
    frame: pd.DataFrame
    shown: pd.DataFrame | None = None
    tex: str = ""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure, its file name without suffix, and what it shows in words."""

    name: str
    caption: str
    chart: Chart


@dataclass(frozen=True, kw_only=True)
class Section:
    """A comparison in the report."""

    name: str
    title: str
    claim: str = ""
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Document:
    """The whole report."""

    title: str
    summary: Table
    sections: tuple[Section, ...]
    missing: tuple[str, ...]
    provenance: Table
    commands: tuple[str, ...]
    code: str  # version and commit of the code that built it
    method: tuple[str, ...] = field(default=())  # how the numbers were made, in sentences
