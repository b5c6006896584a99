"""From a name and its constants to a loss module that knows the class counts."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hpdval.errors import ConfigError, shown
from hpdval.losses.asl import asl
from hpdval.losses.bce import bce, multilabel_soft_margin
from hpdval.losses.class_balanced import class_balanced_focal
from hpdval.losses.distribution_balanced import distribution_balanced
from hpdval.losses.focal import focal_loss
from hpdval.losses.ldam import ldam
from hpdval.losses.logit_adjustment import logit_adjustment
from hpdval.losses.parts import Counts, clip_counts

LOSSES: dict[str, Callable[..., Tensor]] = {
    "bce": bce,
    "multilabel_soft_margin": multilabel_soft_margin,
    "focal": focal_loss,
    "asl": asl,
    "cb_focal": class_balanced_focal,
    "ldam": ldam,
    "logit_adjustment": logit_adjustment,
    "db": distribution_balanced,
    "db_focal": partial(distribution_balanced, focal="element"),
    "db_star": partial(distribution_balanced, weights="frequency", nu="printed"),
}


class Loss(nn.Module):
    """A loss with its constants and class counts; ``loss(logits (B, C), targets (B, C))`` is a scalar."""

    class_counts: Tensor | None

    def __init__(self, name: str, class_counts: Counts, n_train: int, constants: dict[str, Any]) -> None:
        super().__init__()
        self.name, self.n_train, self.constants = name, n_train, constants
        counted = "class_counts" in inspect.signature(LOSSES[name]).parameters
        # Not persistent: counts belong to the data, and a checkpoint must not bring those of other data.
        self.register_buffer("class_counts", clip_counts(class_counts, n_train) if counted else None, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss, computed in float32 or better."""
        function = LOSSES[self.name]
        if self.class_counts is None:
            return function(logits, targets, **self.constants)
        return function(logits, targets, self.class_counts, self.n_train, **self.constants)

    def extra_repr(self) -> str:
        """Return name and constants, for ``print``."""
        return ", ".join([self.name, *(f"{key}={value}" for key, value in self.constants.items())])


def build_loss(loss: Any, class_counts: Counts, n_train: int, **constants: Any) -> Loss:
    """Return the loss called ``loss``, for a training set with these class counts.

    Args:
        loss: a name in ``LOSSES``, or a config dataclass with a ``name`` and fields called like the loss's constants.
            A field that is None leaves the loss's own default; one that the loss does not have is ignored as long as it
            holds the config's default.
        class_counts: (C,) training positives of the images trained on; clipped to [1, n - 1] with one warning.
        n_train: number of images trained on.
        **constants: keyword arguments of the loss, before those of the config.

    Raises:
        ConfigError: an unknown name, a constant the loss does not have, an impossible value, or no counts.

    >>> build_loss("db_focal", [775, 40, 4], 1142, lam=5.0)
    Loss(db_focal, lam=5.0)
    """
    name = getattr(loss, "name", loss)
    if not isinstance(name, str) or name not in LOSSES:
        raise ConfigError(f"loss must be one of {', '.join(LOSSES)}, got {shown(name)}")
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    allowed = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    if dataclasses.is_dataclass(loss):
        untouched = {field.name: field.default for field in dataclasses.fields(loss)}
        given = {key: getattr(loss, key) for key in untouched if key != "name"}
        asked = {k: v for k, v in given.items() if v is not None and (k in allowed or v != untouched[k])}
        constants = asked | constants
    for key in constants:
        if key not in allowed:
            raise ConfigError(f"loss {name!r} has no constant {key!r}; it has {', '.join(allowed)}")
    built = Loss(name, class_counts, n_train, constants)
    n_classes = 1 if built.class_counts is None else len(built.class_counts)
    try:  # impossible values are told now, not in the first step
        built(torch.zeros(1, n_classes), torch.zeros(1, n_classes))
    except (TypeError, ValueError, RuntimeError, OverflowError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"loss {name!r} cannot take {shown(constants)}: {error}") from None
    return built
