"""The pen of the embedded world: shapes in the square [-1, 1] x [-1, 1], y down.

A :class:`Pen` maps that square onto the canvas (place, size, rotation, mirror) and writes colour and object number at
once: the canvas is RGBA and its fourth channel holds the number of the object on top, so visibility costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

from PIL import ImageDraw

Point = tuple[float, float]
Colour = tuple[int, int, int]
CIRCLE = tuple((math.cos(math.tau * i / 20), math.sin(math.tau * i / 20)) for i in range(20))
BROWN, GREEN, GREY, WHITE, BLACK, RED = (
    (121, 80, 44), (52, 130, 52), (128, 128, 132), (238, 238, 232), (28, 28, 34), (200, 48, 44),
)  # fmt: skip


def shade(colour: Colour, factor: float) -> Colour:
    """Darken (factor < 1) or brighten a colour.

    >>> shade((100, 200, 40), 0.5)
    (50, 100, 20)
    """
    red, green, blue = (min(255, round(value * factor)) for value in colour)
    return red, green, blue


class Pen:
    """Draws in unit coordinates onto one canvas as object ``number`` (0: clutter, never a label)."""

    def __init__(
        self, canvas: ImageDraw.ImageDraw, number: int, centre: Point, radius: float, body: Colour, r: Random
    ) -> None:
        angle, mirror, squeeze = r.gauss(0, 0.12), r.choice((-1, 1)), r.uniform(0.9, 1.0)
        self.canvas, self.number, self.centre, self.radius, self.r = canvas, number, centre, radius, r
        self.cos, self.sin = radius * math.cos(angle), radius * math.sin(angle)
        self.mirror = mirror * squeeze
        self.body, self.dark, self.light = body, shade(body, 0.55), shade(body, 1.45)

    def place(self, points: Sequence[Point]) -> list[Point]:
        """Map unit points to canvas pixels."""
        (x0, y0), cos, sin, m = self.centre, self.cos, self.sin, self.mirror
        return [(x0 + m * x * cos - y * sin, y0 + m * x * sin + y * cos) for x, y in points]

    def poly(self, *points: Point, fill: Colour | None = None) -> None:
        """Fill a polygon."""
        self.canvas.polygon(self.place(points), fill=(*(fill or self.body), self.number))

    def rect(self, x0: float, y0: float, x1: float, y1: float, fill: Colour | None = None) -> None:
        """Fill an axis-aligned rectangle."""
        self.poly((x0, y0), (x1, y0), (x1, y1), (x0, y1), fill=fill)

    def oval(self, x: float, y: float, rx: float, ry: float, fill: Colour | None = None) -> None:
        """Fill an ellipse."""
        self.poly(*((x + rx * c, y + ry * s) for c, s in CIRCLE), fill=fill)

    def dome(self, x: float, y: float, rx: float, ry: float, fill: Colour | None = None) -> None:
        """Fill the upper half of an ellipse."""
        self.poly(*((x + rx * c, y - ry * s) for c, s in CIRCLE[:11]), fill=fill)

    def line(self, *points: Point, width: float = 0.12, fill: Colour | None = None) -> None:
        """Draw a line of ``width`` units, at least two canvas pixels."""
        pixels = max(2, round(width * self.radius))
        self.canvas.line(self.place(points), fill=(*(fill or self.body), self.number), width=pixels)

    def ring(self, x: float, y: float, radius: float, width: float = 0.12, fill: Colour | None = None) -> None:
        """Draw a circle's outline."""
        self.line(*((x + radius * c, y + radius * s) for c, s in (*CIRCLE, CIRCLE[0])), width=width, fill=fill)
