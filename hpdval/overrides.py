"""Fields by dotted name: how notebooks, the command line and recipes change an experiment, checked before it starts."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, get_type_hints

from hpdval.config import allowed_types
from hpdval.errors import ConfigError

T = TypeVar("T")


def override(config: T, values: Mapping[str, Any]) -> T:
    """Return ``config`` with scalar fields replaced by dotted name; strings are read as the field's type.

    Raises:
        ConfigError: an unknown name (close ones are suggested), a wrong type or a value out of range.

    >>> from hpdval.config import Experiment
    >>> override(Experiment(name="x"), {"stage1.epochs": "3", "score.alpha": 0.5}).stage1.epochs
    3
    """
    if values.get("name", own := getattr(config, "name", None)) != own:
        raise ConfigError("name is the recipe's own; choose another recipe instead")
    known = field_names(config)
    for name in values:
        if name not in known:
            inner = [field for field in known if field.startswith(name + ".")]
            close = difflib.get_close_matches(name, known, n=3) or [f for f in known if f.endswith("." + name)]
            hint = f"it is a group of {', '.join(inner)}" if inner else f"did you mean {', '.join(close or known)}"
            raise ConfigError(f"there is no field {name!r}; {hint}")
    return _replaced(config, values, "")


def _replaced(config: T, values: Mapping[str, Any], prefix: str) -> T:
    """Replace all fields of one dataclass at once: some are only valid together."""
    hints = get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for item in fields(config):  # type: ignore[arg-type]
        full, old = prefix + item.name, getattr(config, item.name)
        if full in values:
            value = _parse(full, values[full], hints[item.name], item.metadata.get("choices", ()))
            if value != old and value in item.metadata.get("fixed", ()):
                allowed = [c for c in item.metadata["choices"] if c not in item.metadata["fixed"]]
                raise ConfigError(f"{full}={value} is only for recipes that state it; choose {', '.join(allowed)}")
            changes[item.name] = value
        elif is_dataclass(old) and any(name.startswith(full + ".") for name in values):
            changes[item.name] = _replaced(old, values, full + ".")
    return replace(config, **changes)  # type: ignore[type-var]


def field_names(config: Any, prefix: str = "") -> list[str]:
    """Return the dotted names of all scalar fields of a config, in order."""
    names: list[str] = []
    for item in fields(config):
        value = getattr(config, item.name)
        names += field_names(value, f"{prefix}{item.name}.") if is_dataclass(value) else [prefix + item.name]
    return names


def _parse(name: str, value: Any, hint: Any, choices: tuple[str | None, ...] = ()) -> Any:
    """Read a string as the field's type; other values pass and are checked by the dataclass itself."""
    allowed = allowed_types(hint)
    if not isinstance(value, str) or value in choices:  # "none" may be a choice by itself
        return value
    if type(None) in allowed and value.lower() in ("none", "null"):
        return None
    if bool in allowed and value.lower() in ("true", "false"):
        return value.lower() == "true"
    for kind in (int, float):
        if kind in allowed:
            try:
                return kind(value)
            except ValueError:
                continue
    if str in allowed:
        return value
    wanted = " or ".join("None" if kind is type(None) else kind.__name__ for kind in allowed)
    raise ConfigError(f"{name} is {value!r}; it must be {wanted}")


def parse_overrides(text: str) -> dict[str, str]:
    """Read ``"stage1.lr=1e-4 stage2.epochs=3"`` as a mapping; quote values that hold blanks.

    >>> parse_overrides("stage1.lr=1e-4 stage2.init='a photo of a'")
    {'stage1.lr': '1e-4', 'stage2.init': 'a photo of a'}
    """
    try:
        return named_values(shlex.split(text))
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"overrides {text!r} cannot be read ({error}); write name=value name=value") from None


def named_values(words: Sequence[str]) -> dict[str, str]:
    """Read ``name=value`` words.

    >>> named_values(["seed=1", "stage1.lr=1e-4"])
    {'seed': '1', 'stage1.lr': '1e-4'}
    """
    values: dict[str, str] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not (name and sign):
            raise ConfigError(f"{word!r} is not name=value, for example stage1.lr=1e-4")
        if name in values:
            raise ConfigError(f"{name} is given twice; give it once")
        values[name] = value
    return values


def given(**options: Any) -> dict[str, Any]:
    """Return the options that were given: a notebook's parameters are plain scalars, and an empty string means "not".

    >>> given(root="", test="test.csv")
    {'test': 'test.csv'}
    """
    return {name: value for name, value in options.items() if value not in ("", None)}
