"""Which notebook, and with what parameters: everything is checked here, before a kernel starts and without torch."""

from __future__ import annotations

import ast
import difflib
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpdval.config import Experiment
from hpdval.errors import ConfigError
from hpdval.fewshot_recipes import FewShot, get_fewshot
from hpdval.files import read_json
from hpdval.overrides import field_names, parse_overrides
from hpdval.recipes import get_recipe


def notebooks_dir() -> Path:
    """Return the folder of this project's notebooks: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / "notebooks"
    return checkout if (package.parent / "pyproject.toml").exists() and checkout.is_dir() else package / "_notebooks"


def find_notebook(name: str | os.PathLike[str]) -> Path:
    """Return the notebook at a path, or the one of this project's whose name starts with ``name`` (``03``).

    Raises:
        ConfigError: none or several match; the message lists them.
    """
    path = Path(os.path.expanduser(name))
    if os.path.isfile(path):
        return path.resolve()
    known = sorted(notebooks_dir().glob("*.ipynb"))
    text = str(name).removesuffix(".ipynb")
    found = [p for p in known if p.stem.startswith(text)] or [p for p in known if text and text in p.stem]
    if len(found) != 1:
        names = ", ".join(p.stem for p in found or known) or "none"
        what = "fits several notebooks" if found else "is neither a file nor a notebook of this project"
        raise ConfigError(f"{str(name)!r} {what}: {names}")
    return found[0]


def notebook_parameters(notebook: str | os.PathLike[str]) -> dict[str, Any]:
    """Return names and defaults of the notebook's cell tagged ``parameters``: assignments of plain scalars.

    Raises:
        ConfigError: not a notebook, no such cell, or a line that is not ``name = scalar``.
    """
    cells = read_json(notebook).get("cells")
    if not isinstance(cells, list):
        raise ConfigError(f"{notebook} is not a notebook (nbformat 4); save it with a current Jupyter")
    tagged = [cell for cell in cells if "parameters" in cell.get("metadata", {}).get("tags", [])]
    if len(tagged) != 1:
        raise ConfigError(f"{notebook} has {len(tagged)} cells tagged 'parameters'; it must have exactly one")
    defaults: dict[str, Any] = {}
    for node in ast.parse("".join(tagged[0]["source"])).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.expr() as expression):
                value = _scalar(expression)
            case _:
                name, value = "", None
        if value is None:
            raise ConfigError(f"{notebook}: {ast.unparse(node)!r} in the parameters cell is not name = scalar")
        defaults[name] = value
    return defaults


def _scalar(expression: ast.expr) -> str | int | float | bool | None:
    try:
        value = ast.literal_eval(expression)
    except ValueError:
        return None
    return value if isinstance(value, (str, int, float, bool)) else None


def check_parameters(notebook: str | os.PathLike[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``given`` as the values to inject; nothing is started when a name, type or range is wrong.

    Strings are read as the type of the parameter's default.  A name that the notebook does not have but the recipe does
    (``stage1.lr``) is added to the notebook's ``overrides``.  Where the notebook has a ``recipe``, or a few-shot recipe
    under the name ``fewshot``, what it will make of that is made here once, which checks every field.

    Raises:
        ConfigError: what was given, what is allowed.
    """
    defaults = notebook_parameters(notebook)
    fields = _fields(defaults)
    values: dict[str, Any] = {}
    extra: list[str] = []
    for name, value in given.items():
        if name in defaults:
            values[name] = _as_type_of(name, value, defaults[name])
        elif "overrides" in defaults and ("." in name or name in fields):
            extra.append(f"{name}={shlex.quote(str(value))}")
        else:
            close = difflib.get_close_matches(name, {*defaults, *fields}, n=3)
            hint = f"did you mean {', '.join(close)}?" if close else f"it has {', '.join(defaults)}"
            raise ConfigError(f"{Path(notebook).name} has no parameter {name!r}; {hint}")
    if extra:
        values["overrides"] = " ".join([values.get("overrides", defaults["overrides"]), *extra]).strip()
    merged = {**defaults, **values}
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", str(merged.get("device", "auto"))):
        raise ConfigError(f"parameter device is {merged['device']!r}; use 'auto', 'cpu', 'cuda' or 'cuda:N'")
    _configured(notebook, values)
    return values


def experiment_of(notebook: str | os.PathLike[str], values: Mapping[str, Any]) -> Experiment | None:
    """Return the experiment that a notebook with a ``recipe`` will make of its parameters; None for another notebook.

    Args:
        values: as :func:`check_parameters` returns them.

    Raises:
        ConfigError: a recipe, field or value that cannot be used.
    """
    made = _configured(notebook, values)
    return made if isinstance(made, Experiment) else None


def _configured(notebook: str | os.PathLike[str], values: Mapping[str, Any]) -> Experiment | FewShot | None:
    defaults = notebook_parameters(notebook)
    merged, fields = {**defaults, **values}, _fields(defaults)
    overrides = parse_overrides(merged.get("overrides", ""))
    for name in overrides:
        if name in defaults:
            raise ConfigError(f"overrides names {name!r}, which is a parameter of {Path(notebook).name}; set it there")
    fixed = {name: v for name, v in merged.items() if name in fields and v != ""}
    if "fewshot" in merged:
        return get_fewshot(merged["fewshot"], **{**fixed, **overrides})
    return get_recipe(merged["recipe"], **{**fixed, **overrides}) if "recipe" in merged else None


def _fields(defaults: Mapping[str, Any]) -> list[str]:
    """Return the names that a notebook's recipe knows."""
    known = field_names(Experiment(name="fields"))
    return [*field_names(get_fewshot("scenes-fewshot")), *known] if "fewshot" in defaults else known


def _as_type_of(name: str, value: Any, default: Any) -> Any:
    kind = type(default)
    try:
        if isinstance(value, str) and kind is bool:
            return {"true": True, "false": False}[value.lower()]
        if isinstance(value, str) and kind in (int, float):
            return kind(value)
    except (KeyError, ValueError):
        pass
    if type(value) is kind:
        return value
    if kind is float and type(value) is int:
        return float(value)
    wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
    raise ConfigError(f"parameter {name} is {value!r}; it must be {wanted}, like its default {default!r}")
