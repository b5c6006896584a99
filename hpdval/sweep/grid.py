"""What a sweep tries, read from YAML: comparisons, each a list of settings that change a few parameters.

    title: ...                      # of the whole
    base: {recipe: scenes}          # parameters of every run
    grid: {stage1.lr: [1e-4, 3e-4], stage2.contexts: [2, 4]}     # every combination; or
    comparisons:
      alpha:                        # a name for files
        title: Weight of the global view
        claim: what the paper says (optional)
        axis: what the values are   # makes it a curve (optional)
        set: {stages: stage1}       # parameters of all its settings (optional)
        method: stage 1             # which method's result counts; by default the last that the run trains
        reference: label            # by default the setting `default`, or the first
        vary: {score.alpha: [default, 0, 0.5, 1]}    # or `cells: {label: {parameters}}`

``default`` stands for the value that notebook and recipe have by themselves.  Names separated by blanks take one value.
``{value: 64, unless: {clip: scenes}}`` leaves a value out where a parameter has the value named there.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hpdval.assets import asset_path
from hpdval.errors import ConfigError

DEFAULT = "default"
KEYS = {"title", "base", "grid", "comparisons"}
COMPARISON_KEYS = {"title", "claim", "axis", "set", "method", "reference", "vary", "cells"}
Parameters = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A cell of a comparison; ``varied`` names the parameters whose defaults give its label, where it has none."""

    label: str | None
    parameters: Parameters
    varied: tuple[str, ...] = ()
    method: str | None = None
    unless: Parameters = field(default_factory=dict)  # left out where all of these hold


@dataclass(frozen=True, kw_only=True)
class Question:
    """A comparison as the grid states it."""

    name: str
    title: str
    claim: str
    axis: str | None
    reference: str | None
    settings: tuple[Setting, ...]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A whole grid."""

    title: str
    base: Parameters
    questions: tuple[Question, ...]


def read_grid(source: str | os.PathLike[str], only: tuple[str, ...] = ()) -> Grid:
    """Return the grid in a YAML file, or the one of this project by that name (``ablations``).

    Args:
        only: names of comparisons; empty for all.

    Raises:
        ConfigError: no such grid, or something in it that a grid does not have.
    """
    path = _find(source)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, AttributeError, TypeError, RecursionError) as error:  # a tag on what it is not
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    top = _mapping(content, path.name, KEYS)
    if ("grid" in top) == ("comparisons" in top):
        raise ConfigError(f"{path.name} must have either 'grid' or 'comparisons'")
    if "grid" in top:
        varied = _mapping(top["grid"], "grid")
        stated: Mapping[str, Any] = {"grid": {"title": top.get("title", path.stem), "vary": varied}}
        if len(varied) == 1:
            stated["grid"]["axis"] = _only_numbers(varied)
    else:
        stated = _mapping(top["comparisons"], "comparisons")
    if unknown := [name for name in only if name not in stated]:
        raise ConfigError(f"{path.name} has no comparison {unknown[0]!r}; it has {', '.join(stated)}")
    questions = [_question(str(name), one) for name, one in stated.items() if not only or name in only]
    if not questions:
        raise ConfigError(f"{path.name} has no comparison")
    return Grid(
        title=str(top.get("title", path.stem)),
        base=_parameters(top.get("base", {}), "base"),
        questions=tuple(questions),
    )


def grid_names() -> list[str]:
    """Return the names of this project's grids."""
    return sorted(path.stem for path in asset_path("grids").glob("*.yaml"))


def _find(source: str | os.PathLike[str]) -> Path:
    path = Path(os.path.expanduser(source))
    if os.path.isfile(path):
        return path
    name = str(source).removesuffix(".yaml")
    if name in grid_names():
        return asset_path("grids") / f"{name}.yaml"
    raise ConfigError(f"{str(source)!r} is neither a file nor a grid of this project: {', '.join(grid_names())}")


def _question(name: str, stated: Any) -> Question:
    own = _mapping(stated, f"comparison {name}", COMPARISON_KEYS)
    if not name.replace("-", "").replace("_", "").isalnum():
        raise ConfigError(f"comparison {name!r} names files; use letters, digits, - and _")
    if ("vary" in own) == ("cells" in own):
        raise ConfigError(f"comparison {name} must have either 'vary' or 'cells'")
    common = _parameters(own.get("set", {}), f"{name}: set")
    method = own.get("method")
    settings = _varied(own["vary"], name, method) if "vary" in own else _cells(own["cells"], name, method)
    settings = [Setting(**{**vars(one), "parameters": {**common, **one.parameters}}) for one in settings]
    reference = own.get("reference")
    return Question(
        name=name,
        title=str(own.get("title", name)),
        claim=str(own.get("claim", "")),
        axis=None if own.get("axis") is None else str(own["axis"]),
        reference=None if reference is None else text(reference),
        settings=tuple(settings),
    )


def _varied(vary: Any, where: str, method: str | None) -> list[Setting]:
    """Return every combination of the values listed for each name, or group of names."""
    columns = []
    for names, values in _mapping(vary, f"{where}: vary").items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{where}: {names} is {values!r}; give a list of values")
        columns.append([(str(names).split(), *_value(value, where)) for value in values])
    settings = []
    for combination in itertools.product(*columns):
        changed = {name: v for names, v, _ in combination if v != DEFAULT for name in names}
        first = {names[0]: value for names, value, _ in combination}
        unless = {name: value for *_, condition in combination for name, value in condition.items()}
        label = None
        if DEFAULT not in first.values():
            several = len(first) > 1
            label = ", ".join(f"{name} = {text(value)}" if several else text(value) for name, value in first.items())
        parameters = _parameters(changed, f"{where}: vary")
        settings.append(Setting(label=label, parameters=parameters, varied=tuple(first), method=method, unless=unless))
    return settings


def _value(stated: Any, where: str) -> tuple[Any, Parameters]:
    """Return a value, and the parameters under which it is left out."""
    if not isinstance(stated, Mapping):
        return stated, {}
    own = _mapping(stated, f"{where}: vary", {"value", "unless"})
    if "value" not in own:
        raise ConfigError(f"{where}: {_short(stated)} has no 'value'")
    return own["value"], _parameters(own.get("unless", {}), f"{where}: unless")


def _cells(cells: Any, where: str, method: str | None) -> list[Setting]:
    settings = []
    for label, stated in _mapping(cells, f"{where}: cells").items():
        parameters = _parameters(stated or {}, f"{where}: {label}")
        own = parameters.pop("method", method)
        settings.append(Setting(label=text(label), parameters=parameters, method=own))
    return settings


def text(value: Any) -> str:
    """Return a value as labels show it.

    >>> text(0.30000000000000004), text(True), text("a photo")
    ('0.3', 'true', 'a photo')
    """
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _mapping(value: Any, where: str, allowed: set[str] | None = None) -> dict[str, Any]:
    if not isinstance(value, Mapping) or (allowed is None and not value):
        raise ConfigError(f"{where} is {_short(value)}; it must be a mapping of names, as in 'name: value'")
    for name in value:
        if allowed is not None and name not in allowed:
            raise ConfigError(f"{where} has {name!r}; allowed: {', '.join(sorted(allowed))}")
    return dict(value)


def _parameters(value: Any, where: str) -> Parameters:
    if value == {}:
        return {}
    for name, one in _mapping(value, where).items():
        if not isinstance(name, str) or not isinstance(one, str | int | float | bool):
            raise ConfigError(f"{where}: {name} is {_short(one)}; it must be text, a number, true or false")
    return dict(value)


def _only_numbers(varied: Mapping[str, Any]) -> str | None:
    [(name, values)] = varied.items()
    try:  # YAML takes 1e-4 for text
        numbers = isinstance(values, list) and not any(isinstance(v, bool) for v in values) and [*map(float, values)]
    except (TypeError, ValueError):
        return None
    return str(name) if numbers else None


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
