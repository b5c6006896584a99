"""What the explorer shows: one frozen record, checked before anything is drawn from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

from hpdval.errors import ConfigError
from hpdval.groups import GROUPS
from hpdval.scoring.maps import METHODS, PROMPTS

ONLY = {
    "all": "all images",
    "with": "with the class",
    "without": "without the class",
    "first": "class ranked first",
    "wrong": "wrongly ranked",
}
ORDERS = {
    "stored": "as stored",
    "score": "highest score first",
    "worst": "worst ranked first",
    "smallest": "smallest object first",
    "improved": "most improved, B over A",
    "harmed": "most harmed, B under A",
}
COMPARED = ("improved", "harmed")  # orders that need two models
ANY = "any"
CHOICES: dict[str, Sequence[str]] = {
    "prompts": PROMPTS,
    "method": METHODS,
    "only": tuple(ONLY),
    "order": tuple(ORDERS),
    "group": (ANY, *GROUPS),
}
WHICH = ("only", "order", "group", "small", "find")  # what decides which images there are to see


@dataclass(frozen=True, kw_only=True)
class State:
    """What is shown.

    Attributes:
        image: index in the split.
        klass: name of the class that is shown.
        text: a sentence that is shown in place of the class; empty for none.
        alpha, k: weight of the views and number of patches.
        own: each model's own alpha and k count, as in its results, and not these.
        prompts: which texts read the patches, one of ``PROMPTS``.
        method: of the map, one of ``METHODS``.
        opacity: of the map, in [0, 1].
        boxes: whether annotated objects are drawn.
        only: which images, one of ``ONLY``.
        group: those with a class of it, or ``ANY``.
        small: only images with a small object, or a small one of the class with ``only="with"``.
        find: those whose id contains this.
        order: one of ``ORDERS``.
    """

    image: int
    klass: str
    alpha: float
    k: int
    text: str = ""
    own: bool = True
    prompts: str = "local"
    method: str = "similarity"
    opacity: float = 0.6
    boxes: bool = True
    only: str = "all"
    group: str = ANY
    small: bool = False
    find: str = ""
    order: str = "stored"


NAMES = tuple(field.name for field in fields(State))


@dataclass(frozen=True)
class Limits:
    """What a state may hold, on one data set with one or two models."""

    images: int
    classes: tuple[str, ...]
    patches: int
    models: int
    boxes: bool

    def changed(self, state: State, changes: dict[str, Any]) -> State:
        """Return a state with changes, which are checked; alpha or k of one's own replaces those of the models.

        Raises:
            ConfigError: an unknown name, or a value out of range.
        """
        for name, value in changes.items():
            self._check(name, value)
        extra: dict[str, Any] = {}
        if {"alpha", "k"} & set(changes) and "own" not in changes:
            extra["own"] = False
        if "klass" in changes and "text" not in changes:
            extra["text"] = ""  # what was touched last is shown
        if "text" in changes:
            extra["text"] = " ".join(changes["text"].split())
        return replace(state, **{**changes, **extra})

    def _check(self, name: str, value: Any) -> None:
        if name not in NAMES:
            raise ConfigError(f"the explorer has no {name!r}; use one of {', '.join(NAMES)}")
        if name in ("image", "k"):
            low, high = (0, self.images - 1) if name == "image" else (1, self.patches)
            if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
                raise ConfigError(f"{name} is {value!r}; it must be a whole number in {low} .. {high}")
        elif name in ("alpha", "opacity"):
            if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
                raise ConfigError(f"{name} is {value!r}; it must be a number in [0, 1]")
        elif name in ("boxes", "own", "small"):
            if not isinstance(value, bool):
                raise ConfigError(f"{name} is {value!r}; it must be True or False")
            if name == "small" and value and not self.boxes:
                raise ConfigError("small objects need boxes, and this data set has none; leave small=False")
        elif name == "klass":
            if value not in self.classes:
                known = ", ".join(self.classes[:6]) + (", ..." if len(self.classes) > 6 else "")
                raise ConfigError(f"{value!r} is no class of this data set ({known}); for your own words set text")
        elif name in CHOICES:
            if value not in CHOICES[name]:
                raise ConfigError(f"{name} is {value!r}; use one of {', '.join(map(repr, CHOICES[name]))}")
            if value in COMPARED and self.models < 2:
                raise ConfigError(f"order {value!r} compares two models; give the second one as other=")
            if value == "smallest" and not self.boxes:
                raise ConfigError("order 'smallest' needs boxes, and this data set has none; choose another order")
        elif not isinstance(value, str):
            raise ConfigError(f"{name} is {value!r}; it must be a string")
