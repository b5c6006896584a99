"""The numbers of a result table: mAP in total and for head, medium and tail classes, with their protocol."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpdval.errors import ConfigError
from hpdval.groups import class_groups
from hpdval.metrics.average_precision import average_precision, checked, numbers
from hpdval.metrics.readout import apply_readout


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """Mean average precision in percent, what it was measured on, and how.

    A group without a class that has a test positive is NaN; classes without test positives are listed in
    ``excluded`` and counted nowhere.  ``chance`` is the AP of a random ranking, a class's prevalence.
    """

    total: float
    head: float
    medium: float
    tail: float
    variance: float  # population variance of the per-class APs, percent squared
    per_class: NDArray[np.float64]  # (C,) percent, NaN without positives
    chance: NDArray[np.float64]  # (C,) percent
    chance_total: float
    n_images: int
    readout: str
    protocol: str
    selection: str
    class_counts: tuple[int, ...]  # training positives, which decide the groups
    excluded: tuple[int, ...]  # class indices
    classes: tuple[str, ...] | None = None

    @property
    def excluded_names(self) -> tuple[str, ...]:
        """The names of the classes without a test positive."""
        return excluded_names(self.excluded, self.classes)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and ``excluded_names`` as plain values that JSON can hold; NaN becomes None."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: _plain(value) for name, value in {**values, "excluded_names": self.excluded_names}.items()}

    def __str__(self) -> str:
        numbers = ", ".join(f"{name} {getattr(self, name):.2f}" for name in ("total", "head", "medium", "tail"))
        left_out = f", without positives and left out: {', '.join(self.excluded_names)}" if self.excluded else ""
        protocol = f", {self.protocol}" if self.protocol else ""
        return (
            f"mAP {numbers} % (variance {self.variance:.1f}, chance {self.chance_total:.2f} %; {self.n_images} images, "
            f"read-out {self.readout}{protocol}, selection {self.selection}{left_out})"
        )


def excluded_names(excluded: Sequence[int], classes: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the classes at the indices ``excluded``; "class 3" where names are not known."""
    known = classes or ()  # of a record from elsewhere an index may be too large
    return tuple(known[i] if 0 <= i < len(known) else f"class {i}" for i in excluded)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return None if math.isnan(value) else float(value)
    return value


def evaluate(
    scores: ArrayLike,
    targets: ArrayLike,
    class_counts: Sequence[int] | NDArray[np.integer[Any]],
    *,
    readout: str = "raw",
    classes: Sequence[str] | None = None,
    protocol: str = "",
    selection: str = "none (last epoch)",
) -> Evaluation:
    """Return mAP over all classes and over head, medium and tail, in percent (method, sections 1 and 7).

    mAP = mean over the classes with a test positive of AP_c; variance = mean of (AP_c - mAP)^2.

    Args:
        scores: (N, C), finite.
        targets: (N, C) of 0 and 1.
        class_counts: (C,) training positives, which decide the groups (>= 100, 20-99, < 20).
        readout: ``raw``, ``softmax`` or ``l2``.
        classes: names of the classes, kept with the result.
        protocol: the test images, in words that begin with the data set, for example ``"voc-lt test, 4952 images"``.
        selection: how the evaluated model was chosen.

    Raises:
        ConfigError: wrong shapes or names, scores not finite, targets not binary, an unknown read-out.

    >>> result = evaluate([[0.9, 0.1], [0.8, 0.2]], [[1, 0], [0, 1]], [120, 7])
    >>> result.head, result.medium, result.tail
    (100.0, nan, 100.0)
    """
    values, labels = checked(scores, targets)
    n_classes = values.shape[1]
    check_class_counts(class_counts, n_classes)
    if classes is not None and len(classes) != n_classes:
        raise ConfigError(f"{len(classes)} class names for scores of {n_classes} classes; give one for each")
    per_class = 100.0 * average_precision(apply_readout(values, readout), labels)
    chance = 100.0 * labels.mean(axis=0)
    groups = {name: _mean(per_class[indices]) for name, indices in class_groups(class_counts).items()}
    valid = ~np.isnan(per_class)
    return Evaluation(
        total=_mean(per_class),
        variance=float(per_class[valid].var()) if valid.any() else math.nan,
        per_class=per_class,
        chance=chance,
        chance_total=_mean(np.where(valid, chance, np.nan)),
        n_images=len(values),
        readout=readout,
        protocol=protocol,
        selection=selection,
        class_counts=tuple(np.asarray(class_counts).tolist()),
        excluded=tuple(int(i) for i in np.flatnonzero(~valid)),
        classes=None if classes is None else tuple(classes),
        **groups,
    )


def check_class_counts(class_counts: ArrayLike, n_classes: int) -> None:
    """Raise ConfigError unless ``class_counts`` is one number of training positives for each class."""
    counts = numbers(class_counts, f"class_counts ({n_classes} training counts)")
    if counts.shape != (n_classes,) or counts.dtype.kind not in "iuf" or not (counts >= 0).all():
        raise ConfigError(
            f"class_counts must be {n_classes} training counts >= 0, one for each class, got shape {counts.shape}"
        )


def _mean(values: NDArray[np.float64]) -> float:
    """Mean of what is not NaN; NaN (without numpy's warning) where nothing is left."""
    valid = values[~np.isnan(values)]
    return float(valid.mean()) if valid.size else math.nan
