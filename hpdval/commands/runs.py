"""``hpdval runs``: all runs below some folders, finished or not, as a table, a CSV or TensorBoard's event files."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

from hpdval.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

SHOWN = ("status", "method", "recipe", "dataset", "seed", "total", "head", "medium", "tail", "minutes", "finished")
NARROW = ("finished", "dataset", "minutes", "recipe", "head", "medium")  # what goes first where a terminal is narrow
FOLDER_WIDTH = 24  # characters that a folder needs at least to be told from others
FOLLOW_SECONDS = 5.0


def add_parser(commands: Any) -> None:
    """Add ``hpdval runs``."""
    runs = commands.add_parser(
        "runs",
        help="list runs, finished or not; mirror their metrics for TensorBoard",
        description="List all runs below the folders, whatever became of them. NAME is a column or a field of the "
        "recipe, such as stage1.lr; a wrong one is answered with those there are.",
    )
    runs.add_argument("folders", nargs="*", default=["runs"], metavar="FOLDER", help="(default: runs)")
    runs.add_argument("--where", action="append", default=[], metavar="CONDITION", help="NAME=VALUE, or with != > >= < "
        "<= or ~ (contains); NAME= is for what is missing; may be given many times")  # fmt: skip
    runs.add_argument("--sort", metavar="NAME", help="-NAME for the largest first (default: by folder)")
    runs.add_argument("--columns", metavar="A,B,C", help="instead of those that fit the terminal")
    runs.add_argument("--csv", metavar="FILE", help="write a CSV, with all columns unless --columns chooses")
    runs.add_argument("--tensorboard", metavar="DIR", help="write or continue event files of these runs in DIR")
    runs.add_argument("--follow", action="store_true", help="with --tensorboard: go on until Ctrl-C")
    runs.set_defaults(function=_runs)


def _runs(options: argparse.Namespace) -> None:
    if options.follow and not options.tensorboard:
        raise ConfigError("--follow needs --tensorboard DIR to say where to")
    if options.tensorboard:
        _mirror(options)
        return
    from hpdval.files import atomic_write
    from hpdval.tables.choose import known_column
    from hpdval.tables.inventory import list_runs

    table = list_runs(*options.folders, where=options.where, sort=options.sort)
    asked = [name.strip() for name in options.columns.split(",")] if options.columns else []
    chosen = [known_column(table, name) for name in asked]
    if options.csv:
        with atomic_write(options.csv, "w") as file:
            (table[chosen] if chosen else table).to_csv(file, index=False, lineterminator="\n")
        print(f"{len(table)} run{'s' * (len(table) != 1)}: {options.csv}")
    elif table.empty:
        print(f"no run below {', '.join(options.folders)}" + " fulfils the conditions" * bool(options.where))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() or "COLUMNS" in os.environ else None
        print(shown(table, chosen, width))


def _mirror(options: argparse.Namespace) -> None:
    from hpdval.tables.inventory import list_runs
    from hpdval.tracking import mirror_runs

    def find() -> list[str]:
        table = list_runs(*options.folders, where=options.where)
        return list(table.loc[table["status"] != "damaged", "folder"])

    find()  # wrong names and folders are said before anything else
    below = os.path.commonpath([os.path.abspath(os.path.expanduser(folder)) for folder in options.folders])
    every = FOLLOW_SECONDS if options.follow else None
    if options.follow:
        print(f"following until Ctrl-C; to watch: tensorboard --logdir {options.tensorboard}", flush=True)
    try:
        mirror_runs(find, options.tensorboard, below=below, every=every, tell=lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        if not options.follow:
            raise


def shown(table: pd.DataFrame, columns: list[str], width: int | None) -> str:
    """Return the table as lines of at most ``width`` characters, and below it why runs failed or are damaged.

    Args:
        columns: those to show; without any, as many of the usual ones as fit.
        width: None for as wide as it gets.
    """
    from hpdval.metrics.protocol import SELECTED_ON_TEST
    from hpdval.tables.scores import COLUMNS

    marked = table["selected_on_test"].eq(True)
    names = columns or [*SHOWN, "folder"]
    cells = {name: _cells(table, name, marked) for name in names}
    if not columns and width is not None:
        for name in NARROW:
            if sum(map(_width, cells.values())) - _width(cells["folder"]) + FOLDER_WIDTH + 2 * len(cells) > width:
                del cells[name]
        room = width - sum(_width(column) + 2 for name, column in cells.items() if name != "folder")
        cells["folder"] = [_cut_left(text, max(room, FOLDER_WIDTH)) for text in cells["folder"]]
    lines = _lines(cells, numbers={name for name in cells if table[name].dtype.kind in "iuf"})
    notes = [f"{row.folder}: {row.status}: {row.error}" for row in table[table["error"].notna()].itertuples()]
    notes += [f"*: {SELECTED_ON_TEST}"] if marked.any() and not cells.keys().isdisjoint(COLUMNS) else []
    lines = [line if width is None or len(line) <= width else line[: width - 1] + "…" for line in lines]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _cells(table: pd.DataFrame, name: str, marked: pd.Series) -> list[str]:
    """Return the heading and the cells of a column: percentages and minutes with two and one digits."""
    from hpdval.tables.choose import cell_text
    from hpdval.tables.scores import COLUMNS

    texts = []
    for cell, mark in zip(table[name].astype(object), marked, strict=True):
        text = " ".join(cell_text(cell).split()) or "-"
        if text != "-" and name in COLUMNS:
            text = f"{cell:.2f}" + " *" * mark
        texts.append(f"{cell:.1f}" if text != "-" and name == "minutes" else text)
    return [name, *texts]


def _width(column: list[str]) -> int:
    return max(map(len, column))


def _cut_left(text: str, width: int) -> str:
    return text if len(text) <= width else "…" + text[1 - width :]


def _lines(cells: dict[str, list[str]], numbers: set[str]) -> list[str]:
    pad = {name: str.rjust if name in numbers else str.ljust for name in cells}
    padded = [[pad[name](text, _width(column)) for text in column] for name, column in cells.items()]
    return ["  ".join(row).rstrip() for row in zip(*padded, strict=True)]
