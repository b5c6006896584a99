"""Rows and columns of a table by words: ``total>50``, ``recipe=scenes``, ``-total``."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pandas as pd

from hpdval.errors import ConfigError

ORDERED = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
OPERATORS = ("=", "!=", *ORDERED, "~")
_CONDITION = re.compile(r"\s*([^=!<>~]+?)\s*(>=|<=|!=|==|=|>|<|~)\s*(.*?)\s*", re.DOTALL)


def chosen_rows(table: pd.DataFrame, conditions: Sequence[str]) -> pd.DataFrame:
    """Return the rows for which all conditions hold, numbered anew.

    A condition is NAME, one of ``= != > >= < <= ~`` and VALUE; ``~`` asks for text anywhere in a cell, without regard
    to case, and ``NAME=`` for cells that are missing.  A date has the form 2026-01-31 or 2026-01-31T18:00, local time.

    Raises:
        ConfigError: there is no such column or operator, or the value cannot be compared with the column.

    >>> table = pd.DataFrame({"run": ["a", "b", "c"], "total": [51.5, 48.0, None]})
    >>> chosen_rows(table, ["total>50"])["run"].tolist(), chosen_rows(table, ["total="])["run"].tolist()
    (['a'], ['c'])
    """
    for condition in conditions:
        found = _CONDITION.fullmatch(condition)
        if not found:
            raise ConfigError(f"{condition!r} is not NAME=VALUE; operators are {' '.join(OPERATORS)}")
        name, sign, value = found.groups()
        if len(table):  # without a run there are no fields to be known
            column = table[known_column(table, name)]
            table = table[_holds(column, sign.replace("==", "="), value)]
    return table.reset_index(drop=True)


def sorted_rows(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the rows in the order of a column, the largest first where ``-`` precedes its name, missing ones last."""
    if not len(table):
        return table
    column = table[known_column(table, name.removeprefix("-"))]
    keys = column if _is_time(column) or _is_number(column) else column.map(cell_text, na_action="ignore")
    order = keys.sort_values(ascending=not name.startswith("-"), kind="stable", na_position="last").index
    return table.loc[order].reset_index(drop=True)


def known_column(table: pd.DataFrame, name: str) -> str:
    """Return ``name``, or say what there is.

    Raises:
        ConfigError: there is no such column; close ones are suggested.
    """
    if name in table.columns:
        return name
    names = [str(column) for column in table.columns]
    close = difflib.get_close_matches(name, names, n=3) or [one for one in names if one.endswith("." + name)]
    hint = f"did you mean {', '.join(close)}" if close else f"there are {', '.join(names)}"
    raise ConfigError(f"there is no column {name!r}; {hint}")


def cell_text(cell: Any) -> str:
    """Return a cell as text: nothing where it is missing, times to the minute in local time, booleans as in JSON.

    >>> cell_text(None), cell_text(True), cell_text(0.0001), cell_text("a")
    ('', 'true', '0.0001', 'a')
    """
    if cell is None or cell is pd.NA or cell is pd.NaT or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, pd.Timestamp):
        return cell.to_pydatetime(warn=False).astimezone().strftime("%Y-%m-%d %H:%M")
    return str(cell).lower() if isinstance(cell, bool) else str(cell)


def _holds(column: pd.Series, sign: str, value: str) -> pd.Series:
    if sign == "~":
        return column.map(lambda cell: value.casefold() in cell_text(cell).casefold()).astype(bool)
    if sign in ORDERED:
        return _ordered(column, sign, value)
    if value == "":
        return column.isna() == (sign == "=")
    number = _as_number(value, column) if _is_number(column) else None
    same = [cell == number if number is not None else _same(cell, value) for cell in column.astype(object)]
    return pd.Series([(one is True) == (sign == "=") for one in same], index=column.index)


def _same(cell: Any, value: str) -> bool:
    """Compare a cell of text, booleans or anything mixed with what was written for it."""
    if isinstance(cell, int | float) and not isinstance(cell, bool):
        try:
            return bool(cell == float(value))
        except ValueError:
            return False
    return cell_text(cell) == (value.lower() if isinstance(cell, bool) else value)


def _ordered(column: pd.Series, sign: str, value: str) -> pd.Series:
    if _is_time(column):
        try:
            wanted: Any = datetime.fromisoformat(value).astimezone()
        except ValueError:
            raise ConfigError(f"{column.name} is a time; {value!r} is none, write it as 2026-01-31T18:00") from None
        return ORDERED[sign](column, wanted)
    numbers = column if _is_number(column) else pd.to_numeric(column.map(_number_or_none), errors="coerce")
    if not _is_number(column) and numbers.isna().all() and column.notna().any():
        raise ConfigError(f"{column.name} is text; compare it with =, != or ~, not {sign}")
    return ORDERED[sign](numbers.astype("Float64"), _as_number(value, column)).fillna(False).astype(bool)


def _number_or_none(cell: Any) -> float | None:
    return float(cell) if isinstance(cell, int | float) and not isinstance(cell, bool) else None


def _as_number(value: str, column: pd.Series) -> float:
    try:
        return float(value)
    except ValueError:
        raise ConfigError(f"{column.name} is a number; {value!r} is none") from None


def _is_number(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _is_time(column: pd.Series) -> bool:
    return pd.api.types.is_datetime64_any_dtype(column)
