"""Pictures for the explorer, fast: an image, a map over it, patches and boxes, as the bytes of a PNG; no figure.

Letters: H x W pixels of the image, h x w pixels of the picture, k patches.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from hpdval.plots.heatmaps import BOX
from hpdval.plots.overlay import Limits, outline, overlay
from hpdval.scoring.maps import Heatmaps, upsample

DASH, GAP = 7, 5  # pixels


@dataclass(frozen=True, eq=False)
class Picture:
    """An image at the size at which it is shown.

    Attributes:
        pixels: (h, w, 3) uint8.
        shape: (H, W) of the image it was made from.
    """

    pixels: np.ndarray
    shape: tuple[int, int]

    @classmethod
    def of(cls, image: np.ndarray, side: int) -> Picture:
        """Return an image (H, W, 3) uint8 whose longer side has ``side`` pixels."""
        height, width = image.shape[:2]
        scale = side / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        return cls(np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)), (height, width))

    def smaller(self, side: int) -> Picture:
        """Return the same with a longer side of at most ``side`` pixels."""
        return replace(self, pixels=Picture.of(self.pixels, min(side, max(self.size))).pixels)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, w and h."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @property
    def scale(self) -> np.ndarray:
        """Pixels of the picture to a pixel of the image, along x and y."""
        return np.array([self.pixels.shape[1] / self.shape[1], self.pixels.shape[0] / self.shape[0]])

    def values(self, maps: Heatmaps) -> np.ndarray:
        """Return the first map over the picture, (h, w) float32, NaN where the model has seen nothing."""
        height, width = self.pixels.shape[:2]
        left, top, right, bottom = (float(edge) for edge in np.asarray(maps.box) * np.tile(self.scale, 2))
        return upsample(maps.values[:1], (height, width), (left, top, right, bottom))[0]


def draw(
    picture: Picture,
    values: np.ndarray,
    limits: Limits,
    *,
    opacity: float,
    patches: np.ndarray,
    boxes: np.ndarray,
    others: np.ndarray,
) -> bytes:
    """Return a PNG of a picture with a map over it.

    Args:
        values: (h, w), of :meth:`Picture.values`.
        limits: the values of the first and of the last colour.
        opacity: of the map, in [0, 1].
        patches: (k, 4) rows of x, y, width, height in pixels of the image, outlined together.
        boxes, others: (n, 4) rows alike, dashed; ``boxes`` of the class that is shown.
    """
    image = Image.fromarray(overlay(picture.pixels, values, limits, opacity))
    pen = ImageDraw.Draw(image)
    scale = np.tile(picture.scale, 2)
    edge = np.tile(np.array(picture.size) - 3, 2)
    sides = (outline(patches) * scale).clip(2, edge)  # whole lines at the picture's edge, too
    for width, colour in ((5, "black"), (3, "white")):  # seen on dark and on light ground
        for side in sides:
            pen.line([float(v) for v in side], fill=colour, width=width)
    for rectangles, colour, width in ((others, "white", 2), (boxes, BOX, 3)):
        for x, y, across, down in rectangles * scale:
            _dashed(pen, (x, y, x + across - 1, y + down - 1), colour, width)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1, compress_type=3)  # runs alone: quick, since a hand on a slider waits
    return buffer.getvalue()


def _dashed(pen: ImageDraw.ImageDraw, box: tuple[float, float, float, float], colour: str, width: int) -> None:
    left, top, right, bottom = box
    pen.rectangle([left, top, right, bottom], outline="black", width=1)
    for start in np.arange(left, right, DASH + GAP):
        stop = min(start + DASH, right)
        for y in (top, bottom):
            pen.line([start, y, stop, y], fill=colour, width=width)
    for start in np.arange(top, bottom, DASH + GAP):
        stop = min(start + DASH, bottom)
        for x in (left, right):
            pen.line([x, start, x, stop], fill=colour, width=width)
