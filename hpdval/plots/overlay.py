"""A map laid over an image: colours, the outline of patches, and what the model has not seen; numpy alone draws.

Letters: n patches, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import matplotlib as mpl
import numpy as np

COLOURS = "viridis"  # rises evenly in lightness: read alike with every kind of colour vision, and in grey
VEIL = 0.72  # how far pixels that the model has not seen fade to white
Limits = tuple[float, float]


@cache
def colour_table() -> np.ndarray:
    """Return the colours of a map from its lowest to its highest value, (256, 3) float32 in [0, 255]."""
    return (mpl.colormaps[COLOURS](np.arange(256))[:, :3] * 255).astype(np.float32)


def limits_of(maps: Iterable[np.ndarray]) -> Limits:
    """Return the lowest and the highest value of maps, which may have NaN; never twice the same.

    >>> limits_of([np.array([[1.0, np.nan]]), np.array([[3.0]])])
    (1.0, 3.0)
    """
    known = [values[np.isfinite(values)] for values in maps]
    low = min((float(values.min()) for values in known if values.size), default=0.0)
    high = max((float(values.max()) for values in known if values.size), default=1.0)
    return (low, high) if high > low else (low, low + max(abs(low), 1.0) * 1e-6)


def overlay(image: np.ndarray, values: np.ndarray, limits: Limits, opacity: float = 0.6) -> np.ndarray:
    """Return an image in grey with a map in colour over it, (H, W, 3) uint8; where the map is NaN the image fades.

    Args:
        image: (H, W, 3) uint8.
        values: (H, W), NaN where the model has seen nothing.
        limits: the values of the first and of the last colour.
        opacity: of the map, in [0, 1]; at 0 the image keeps its own colours.
    """
    low, high = limits
    unseen = np.isnan(values)
    places = np.where(unseen, 0, (values - low) / (high - low)).clip(0, 1)
    colours = colour_table()[(places * 255 + 0.5).astype(np.uint8)]  # (H, W, 3)
    ground = image.astype(np.float32)
    grey = ground @ np.array([0.299, 0.587, 0.114], np.float32)
    ground += (grey[..., None] - ground) * min(1.0, 2 * opacity)  # its own colours go while those of the map come
    ground += (colours - ground) * opacity
    if unseen.any():
        ground[unseen] = image[unseen] * (1 - VEIL) + 255 * VEIL
    return (ground + 0.5).astype(np.uint8)


def outline(rectangles: np.ndarray) -> np.ndarray:
    """Return the sides of rectangles that no two of them share, (m, 4) rows of x, y, x, y: the outline of all.

    Args:
        rectangles: (n, 4) rows of x, y, width, height on one grid, as ``Heatmaps.top_patches`` gives them.

    >>> outline(np.array([[0, 0, 1, 1], [1, 0, 1, 1]])).shape  # eight sides, less the two that touch
    (6, 4)
    """
    if not len(rectangles):
        return np.zeros((0, 4))
    x, y, width, height = np.asarray(rectangles, np.float64).T
    right, bottom = x + width, y + height
    sides = np.concatenate(
        [
            np.stack(s, 1)
            for s in ((x, y, right, y), (x, bottom, right, bottom), (x, y, x, bottom), (right, y, right, bottom))
        ]
    )
    _, first, times = np.unique(sides.round(3), axis=0, return_index=True, return_counts=True)
    return sides[np.sort(first[times == 1])]
