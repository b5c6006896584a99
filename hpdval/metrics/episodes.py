"""Means over few-shot episodes and how sure they are: the episode, not the image, is the sample.

Each episode draws other images to adapt on, and with so few of them the draw decides much.  What is asked of E episodes
is the mean over all that could be drawn; its interval is Student's,

    mean +- t_(1 - a/2; E - 1) sd / sqrt(E),    sd^2 = sum_e (x_e - mean)^2 / (E - 1),

exact for normal x_e.  Test images, base model and training seed are the same in all episodes, so it says nothing of
what others would give; for test images see :func:`hpdval.metrics.paired_bootstrap`.  Two methods that were adapted on
the same episodes are compared by their differences, episode by episode, which cancels the luck that they share.

Letters: E episodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hpdval.errors import ConfigError
from hpdval.metrics.average_precision import numbers


@dataclass(frozen=True, kw_only=True)
class EpisodeMean:
    """A mean over episodes, with its confidence limits, in the unit of the values; NaN limits for one episode.

    Not cut off at 0 or 100: the limits of a mean near either may lie beyond it.
    """

    mean: float
    low: float
    high: float
    sd: float  # sample standard deviation of the values
    level: float
    values: tuple[float, ...]  # of each episode, in order

    @property
    def in_favour(self) -> int:
        """In how many episodes the value, a difference, is above 0."""
        return sum(value > 0 for value in self.values)

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def episode_mean(values: ArrayLike, *, level: float = 0.95) -> EpisodeMean:
    """Return the mean over episodes with Student's interval, and the sample standard deviation.

    Args:
        values: (E,), finite, one for each episode.
        level: confidence, 0.95 for 95 %.

    Raises:
        ConfigError: not one row of finite numbers, none, or a level outside (0, 1).

    >>> print(episode_mean([60.0, 62.0, 64.0]))
    62.00 [57.03, 66.97]
    """
    from scipy.special import stdtrit

    x = numbers(values, "values").astype(np.float64)
    if x.ndim != 1 or not x.size or not np.isfinite(x).all():
        raise ConfigError(f"values must be one finite number for each episode, got {values!r}")
    if not 0 < level < 1:
        raise ConfigError(f"level must be between 0 and 1, got {level}; 0.95 is usual")
    mean, sd = float(x.mean()), float(x.std(ddof=1)) if x.size > 1 else math.nan
    half = float(stdtrit(x.size - 1, 0.5 + level / 2)) * sd / math.sqrt(x.size) if x.size > 1 else math.nan
    return EpisodeMean(mean=mean, low=mean - half, high=mean + half, sd=sd, level=level, values=tuple(x.tolist()))


def paired_episodes(a: ArrayLike, b: ArrayLike, *, level: float = 0.95) -> EpisodeMean:
    """Return the mean of a - b over episodes, with the interval of the differences.

    Args:
        a, b: (E,), of two methods on the same episodes in the same order; one number stands for a method that is the
            same in every episode, as one that was not adapted.
        level: confidence.

    Raises:
        ConfigError: as :func:`episode_mean`, or numbers of episodes that cannot be paired.

    >>> difference = paired_episodes([60.0, 62.0, 64.0], [59.0, 60.0, 61.0])
    >>> print(difference, difference.in_favour)
    2.00 [-0.48, 4.48] 3
    """
    one, other = (np.atleast_1d(numbers(values, "values").astype(np.float64)) for values in (a, b))
    if one.ndim != 1 or other.ndim != 1 or (one.size != other.size and 1 not in (one.size, other.size)):
        raise ConfigError(
            f"cannot pair {one.size} episodes of a with {other.size} of b; give the same episodes, or one number"
        )
    return episode_mean(one - other, level=level)
