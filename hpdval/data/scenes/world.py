"""Pictures of the embedded world: things of a label set over clutter, with captions, boxes and visible pixels.

A picture is a function of its name, ``scenes-v1:{seed}:{split}:{index}``, and of nothing else: the name seeds Python's
random stream, so neither the order of calls nor the process changes a pixel.

Letters: S pixels of a side, n visible objects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import cast

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from hpdval.data.scenes.draw import Colour, Pen
from hpdval.data.scenes.profile import CLASSES
from hpdval.data.scenes.things import THINGS, USUAL
from hpdval.errors import DataError

VERSION = "scenes-v1"  # part of every picture's name: raise it whenever a pixel may change
OVERSAMPLING = 3
VISIBLE_SHARE = 0.45  # of an object's own pixels; what is hidden more than that would make its label a lie
VISIBLE_PIXELS = 18.0  # of a 64-pixel picture
CONTRAST = 110  # least summed difference of a thing's colour from what is behind it, where one can be found
NAMES = tuple(THINGS)


@dataclass(frozen=True, kw_only=True)
class Style:
    """How busy pictures are.  Ranges are inclusive; a radius is a share of the picture's side."""

    radius: tuple[float, float]
    copies: float  # chance that a label has a second object
    things: tuple[int, int]  # unlabelled things
    shapes: tuple[int, int]  # plain shapes behind
    strokes: tuple[int, int]  # lines and spots in front
    noise: float  # amplitude of pixel noise, grey levels
    usual_colour: float
    fields: float  # strength of the coloured fields behind, 0 to 1
    light: tuple[float, float, float]  # its colour


# scenes-lt is seen in evening light and among clutter, the pretraining stream by day and plainly: two domains, as web
# pictures and a benchmark are, so that fine-tuning has something to learn besides the labels.
BUSY = Style(
    radius=(0.12, 0.34),
    copies=0.25,
    things=(0, 2),
    shapes=(1, 6),
    strokes=(0, 3),
    noise=18,
    usual_colour=0.7,
    fields=0.8,
    light=(1.06, 0.98, 0.83),
)
PLAIN = Style(
    radius=(0.2, 0.46),
    copies=0.1,
    things=(0, 0),
    shapes=(0, 3),
    strokes=(0, 1),
    noise=8,
    usual_colour=0.8,
    fields=0.4,
    light=(1.0, 1.0, 1.0),
)


@dataclass(frozen=True)
class Scene:
    """A picture and what can be seen on it, nearest last."""

    image: np.ndarray  # (S, S, 3) uint8 RGB
    names: tuple[str, ...]  # n
    masks: np.ndarray  # (n, S, S) bool, visible pixels

    def boxes(self) -> np.ndarray:
        """Return x, y, width, height of the visible pixels, (n, 4) float32."""
        rows = np.zeros((len(self.names), 4), np.float32)
        for row, mask in zip(rows, self.masks, strict=True):
            x, y = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
            row[:] = x[0], y[0], x[-1] - x[0] + 1, y[-1] - y[0] + 1
        return rows


def draw_scene(names: Sequence[str], key: str, *, style: Style = BUSY, size: int = 64) -> Scene:
    """Draw one picture that shows every thing of ``names`` at least once.

    Args:
        names: what must be visible, each in :data:`NAMES`.
        key: the picture's name; seeds everything.
        style: how busy it is.
        size: S, at least 32.

    Raises:
        DataError: an unknown thing, or more things than there is room for.

    >>> scene = draw_scene(["cat", "boat"], "example")
    >>> scene.image.shape, sorted(set(scene.names))
    ((64, 64, 3), ['boat', 'cat'])
    """
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise DataError(f"scenes: nobody can draw {', '.join(unknown)}; give some of {', '.join(NAMES)}")
    r = Random(key)
    for attempt in range(40):
        scene = _attempt(names, r, style, size, crowd=0.97**attempt)
        if scene is not None:
            return scene
    raise DataError(f"no room for {len(names)} things in a picture of {size} pixels; give at most 6, or a larger size")


def _attempt(names: Sequence[str], r: Random, style: Style, size: int, crowd: float) -> Scene | None:
    side = size * OVERSAMPLING
    canvas = _background(r, style, side)
    pen = ImageDraw.Draw(canvas)
    actors = [(name, True) for name in names]
    actors += [(name, True) for name in names if r.random() < style.copies * crowd and len(actors) < 5]
    actors += [(r.choice(NAMES[len(CLASSES) :]), False) for _ in range(round(r.randint(*style.things) * crowd))]
    low, high = style.radius
    high *= min(1.0, 2.2 / math.sqrt(len(actors) + 1)) * crowd
    radii = sorted((low * (max(high, low) / low) ** r.random() for _ in actors), reverse=True)  # far things are behind
    r.shuffle(actors)
    placed: list[tuple[float, float, float]] = []
    whole: list[int] = []
    shown: list[str] = []
    for (name, labelled), radius in zip(actors, radii, strict=True):
        x, y = _free_place(r, radius, placed)
        placed.append((x, y, radius))
        if labelled:
            shown.append(name)
        centre, number = (x * side, y * side), len(shown) if labelled else 0
        behind = cast(tuple[int, ...], canvas.getpixel((int(x * side), int(y * side))))
        THINGS[name](Pen(pen, number, centre, radius * side, _colour(name, r, style, behind), r))
        if labelled:
            whole.append(canvas.getchannel("A").histogram()[number])
    _strokes(pen, r, style, side)
    numbers = canvas.getchannel("A")
    left = numbers.histogram()
    least = VISIBLE_PIXELS * (side / 64) ** 2
    if any(left[i + 1] < max(least, VISIBLE_SHARE * area) for i, area in enumerate(whole)):
        return None
    share = [
        np.asarray(numbers.point([255 * (v == i + 1) for v in range(256)]).reduce(OVERSAMPLING))
        for i in range(len(shown))
    ]
    masks = np.stack(share) > 127
    if not masks.any((1, 2)).all():
        return None
    return Scene(_develop(canvas, r, style), tuple(shown), masks)


def _free_place(r: Random, radius: float, placed: list[tuple[float, float, float]]) -> tuple[float, float]:
    """Draw places until one hides little of what is there; keep the best of eight."""
    best, least = (0.5, 0.5), math.inf
    margin = 0.8 * radius
    for _ in range(8):
        x, y = r.uniform(margin, 1 - margin), r.uniform(margin, 1 - margin)
        clash = max((1 - max(abs(x - a), abs(y - b)) / (0.75 * (radius + c)) for a, b, c in placed), default=0.0)
        if clash < least:
            best, least = (x, y), clash
        if clash <= 0.2:
            break
    return best


def _any_colour(r: Random) -> Colour:
    return r.randrange(20, 236), r.randrange(20, 236), r.randrange(20, 236)


def _colour(name: str, r: Random, style: Style, behind: Sequence[int]) -> Colour:
    """Pick the usual colour of a thing or any other, unlike what is behind it."""
    usual = name in USUAL and r.random() < style.usual_colour
    for _ in range(6):
        red, green, blue = r.choice(USUAL[name]) if usual else _any_colour(r)
        shift = r.randint(-22, 22)
        colour = (min(250, max(5, red + shift)), min(250, max(5, green + shift)), min(250, max(5, blue + shift)))
        if sum(abs(a - b) for a, b in zip(colour, behind, strict=False)) > CONTRAST:
            break
    return colour


def _background(r: Random, style: Style, side: int) -> Image.Image:
    """A field of colours, stripes or spots, and plain shapes; object number 0 everywhere."""
    base, cells = _any_colour(r), r.choice((2, 2, 3, 5, 8))
    mix = style.fields * r.random()
    field = bytes(round((1 - mix) * base[i % 3] + mix * v) for i, v in enumerate(r.randbytes(cells * cells * 3)))
    canvas = Image.frombytes("RGB", (cells, cells), field).resize((side, side), Image.Resampling.BICUBIC)
    canvas.putalpha(0)
    pen = ImageDraw.Draw(canvas)
    if r.random() < 0.5:  # a ground
        pen.rectangle((0, side * r.uniform(0.5, 0.85), side, side), fill=(*_any_colour(r), 0))
    if r.random() < style.fields * 0.4:
        colour, step, tilt = (*_any_colour(r), 0), r.randint(side // 20, side // 7), r.uniform(-1, 1) * side
        for x in range(-side, 2 * side, step):
            pen.line((x, 0, x + tilt, side), fill=colour, width=max(1, step // 4))
    for _ in range(r.randint(*style.shapes)):
        _shape(pen, r, side, 0.3)
    return canvas


def _shape(pen: ImageDraw.ImageDraw, r: Random, side: int, largest: float) -> None:
    x, y, colour = r.random() * side, r.random() * side, (*_any_colour(r), 0)
    w, h = (r.uniform(0.03, largest) * side for _ in range(2))
    kind = r.random()
    if kind < 0.35:
        pen.ellipse((x - w / 2, y - h / 2, x + w / 2, y + h / 2), fill=colour)
    elif kind < 0.75:
        corners = [(x + w * r.uniform(-1, 1) / 2, y + h * r.uniform(-1, 1) / 2) for _ in range(r.randint(3, 5))]
        pen.polygon(corners, fill=colour)
    else:
        pen.rectangle((x - w / 2, y - h / 2, x + w / 2, y + h / 2), fill=colour)


def _strokes(pen: ImageDraw.ImageDraw, r: Random, style: Style, side: int) -> None:
    """Thin lines and spots in front of everything: the cause of partial occlusion by what has no name."""
    for _ in range(r.randint(*style.strokes)):
        if r.random() < 0.5:
            ends = [r.random() * side for _ in range(4)]
            pen.line(ends, fill=(*_any_colour(r), 0), width=r.randint(2, max(2, side // 40)))
        else:
            _shape(pen, r, side, 0.1)


def _develop(canvas: Image.Image, r: Random, style: Style) -> np.ndarray:
    """Reduce with antialiasing, sometimes blur, then change contrast and colour and add noise; (S, S, 3) uint8."""
    image = canvas.convert("RGB").reduce(OVERSAMPLING)
    if r.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(r.uniform(0.3, 0.8)))
    pixels = np.asarray(image, np.float32)
    noise = np.frombuffer(r.randbytes(pixels.size), np.uint8).reshape(pixels.shape) / np.float32(127.5) - 1
    tint = np.array([r.uniform(0.85, 1.15) for _ in range(3)], np.float32)
    contrast, amount = r.uniform(0.65, 1.0), r.uniform(0.1, 1) * style.noise
    seen = (pixels - 127) * contrast * tint + r.uniform(95, 150) + noise * amount
    return np.clip(seen * np.array(style.light, np.float32), 0, 255).astype(np.uint8)


def stream_scene(index: int, *, seed: int = 0, size: int = 64) -> Scene:
    """Draw picture ``index`` of the pretraining stream: one to three things of all thirty, all equally likely."""
    key = f"{VERSION}:{seed}:stream:{index}"
    r = Random(f"{key}:names")
    return draw_scene(r.sample(NAMES, r.choice((1, 1, 1, 2, 2, 3))), key, style=PLAIN, size=size)


TEMPLATES = (
    "a photo of a {}.", "a photo of a {}.", "a picture of a {}.", "a drawing of a {}.", "a {}.", "there is a {}.",
    "a scene with a {}.", "a small photo of a {}.",
)  # fmt: skip


def caption(names: Sequence[str], r: Random) -> str:
    """Say what a picture shows: all of its things, or some of them.

    >>> caption(["cat", "boat"], Random(1))
    'a photo of a cat and a boat.'
    """
    told = sorted(set(names))
    r.shuffle(told)
    return r.choice(TEMPLATES).format(" and a ".join(told))
