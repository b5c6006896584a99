"""The thirty things of the embedded world: a few lines each, in unit coordinates, colours and details at random."""

from __future__ import annotations

import math
from collections.abc import Callable

from hpdval.data.scenes.draw import BLACK, BROWN, GREEN, GREY, RED, WHITE, Colour, Pen, shade


def _person(p: Pen) -> None:
    stride, reach, skin = p.r.uniform(0.05, 0.3), p.r.uniform(-0.1, 0.5), p.r.choice(((236, 196, 160), (150, 98, 66)))
    for side in (-1, 1):
        p.line((side * 0.13, 0.15), (side * (0.13 + stride), 0.98), width=0.2, fill=p.dark)
        p.line((side * 0.26, -0.36), (side * (0.3 + reach), 0.16 - reach), width=0.15, fill=skin)
    p.poly((-0.32, -0.46), (0.32, -0.46), (0.25, 0.24), (-0.25, 0.24))
    p.oval(0, -0.71, 0.23, 0.25, skin)
    p.dome(0, -0.74, 0.24, 0.24, p.r.choice((BLACK, BROWN, (214, 180, 90))))


def _tree(p: Pen) -> None:
    p.rect(-0.11, 0.1, 0.11, 1, BROWN)
    if p.r.random() < 0.4:
        for top, wide in ((-1.0, 0.45), (-0.6, 0.6), (-0.2, 0.75)):
            p.poly((0, top), (wide, top + 0.65), (-wide, top + 0.65))
    else:
        for x, y in ((-0.35, -0.1), (0.35, -0.12), (0, -0.5)):
            p.oval(x, y, 0.45, 0.45, p.body if y > -0.4 else shade(p.body, 1.15))


def _chair(p: Pen) -> None:
    seat = p.r.uniform(0.0, 0.2)
    for x in (-0.52, 0.4):
        p.rect(x, seat + 0.1, x + 0.13, 1, p.dark)
    p.rect(-0.55, -1, -0.37, seat + 0.15)
    p.rect(-0.55, seat, 0.58, seat + 0.2)


def _bottle(p: Pen) -> None:
    shoulder = p.r.uniform(-0.35, -0.1)
    p.poly((-0.11, -0.8), (0.11, -0.8), (0.11, shoulder - 0.2), (-0.11, shoulder - 0.2))
    p.poly((-0.11, shoulder - 0.2), (0.11, shoulder - 0.2), (0.32, shoulder), (0.32, 1), (-0.32, 1), (-0.32, shoulder))
    p.rect(-0.14, -1, 0.14, -0.8, p.dark)
    p.rect(-0.32, 0.2, 0.32, 0.65, p.light)


def _vehicle_wheels(p: Pen, y: float, *xs: float) -> None:
    for x in xs:
        p.oval(x, y, 0.21, 0.21, BLACK)
        p.oval(x, y, 0.09, 0.09, GREY)


def _car(p: Pen) -> None:
    roof = p.r.uniform(-0.5, -0.35)
    p.poly((-0.55, 0), (-0.35, roof), (0.3, roof), (0.58, 0))
    p.poly((-0.42, -0.02), (-0.3, roof + 0.1), (0.25, roof + 0.1), (0.42, -0.02), fill=(170, 205, 225))
    p.poly((-0.98, 0), (0.9, 0), (1, 0.2), (1, 0.42), (-1, 0.42))
    _vehicle_wheels(p, 0.42, -0.55, 0.55)


def _bus(p: Pen) -> None:
    top = p.r.uniform(-0.65, -0.5)
    p.rect(-1, top, 1, 0.45)
    for x in (-0.9, -0.43, 0.04, 0.51):
        p.rect(x, top + 0.14, x + 0.37, -0.05, (170, 205, 225))
    _vehicle_wheels(p, 0.45, -0.58, 0.58)


def _truck(p: Pen) -> None:
    p.rect(-1, -0.6, 0.3, 0.38)
    p.poly((0.36, -0.25), (0.75, -0.25), (1, 0.08), (1, 0.42), (0.36, 0.42), fill=p.dark)
    p.poly((0.5, -0.15), (0.7, -0.15), (0.86, 0.08), (0.5, 0.08), fill=(170, 205, 225))
    _vehicle_wheels(p, 0.45, -0.6, 0.62)


def _boat(p: Pen) -> None:
    p.line((0, -1), (0, 0.4), width=0.1, fill=BROWN)
    p.poly((0.08, -0.9), (0.75, 0.25), (0.08, 0.25), fill=WHITE if p.r.random() < 0.6 else p.light)
    if p.r.random() < 0.6:
        p.poly((-0.08, -0.6), (-0.55, 0.25), (-0.08, 0.25), fill=p.light)
    p.poly((-0.95, 0.36), (0.95, 0.36), (0.6, 0.85), (-0.6, 0.85))


def _four_legs(p: Pen) -> None:
    for x in (-0.55, -0.32, 0.22, 0.44):
        p.line(
            (x, 0.2), (x + p.r.uniform(-0.08, 0.08), 0.95), width=0.16, fill=p.dark if x in (-0.32, 0.22) else p.body
        )


def _dog(p: Pen) -> None:
    _four_legs(p)
    p.line((-0.62, 0), (-0.95, p.r.uniform(-0.6, -0.3)), width=0.13)
    p.oval(-0.05, 0.1, 0.66, 0.3)
    p.poly((0.3, 0.1), (0.45, -0.55), (0.75, -0.5), (0.6, 0.2))
    p.oval(0.6, -0.5, 0.26, 0.23)
    p.rect(0.68, -0.52, 1, -0.3, p.light)
    p.oval(0.98, -0.46, 0.07, 0.07, BLACK)
    p.oval(0.44, -0.4, 0.11, 0.27, p.dark)


def _cat(p: Pen) -> None:
    _four_legs(p)
    lift = p.r.uniform(-0.8, -0.4)
    p.line((-0.6, 0.05), (-0.88, -0.15), (-0.82, lift / 2 - 0.2), (-0.98, lift), width=0.11)
    p.oval(-0.08, 0.12, 0.62, 0.28)
    p.oval(0.58, -0.25, 0.33, 0.3)
    for x in (0.36, 0.8):
        p.poly((x - 0.14, -0.4), (x, -0.85), (x + 0.14, -0.4))
        p.oval(x * 0.6 + 0.27, -0.28, 0.06, 0.08, BLACK)


def _flower(p: Pen) -> None:
    petals = p.r.randint(5, 7)
    p.line((0, -0.2), (p.r.uniform(-0.1, 0.1), 1), width=0.1, fill=GREEN)
    p.oval(0.24, 0.6, 0.24, 0.1, GREEN)
    for i in range(petals):
        angle = math.tau * i / petals
        p.oval(0.36 * math.cos(angle), -0.42 + 0.36 * math.sin(angle), 0.23, 0.23)
    p.oval(0, -0.42, 0.2, 0.2, (240, 205, 60) if p.r.random() < 0.7 else p.dark)


def _clock(p: Pen) -> None:
    p.oval(0, 0, 0.9, 0.9)
    p.oval(0, 0, 0.72, 0.72, WHITE)
    for length, width in ((0.6, 0.09), (0.4, 0.13)):
        angle = p.r.uniform(0, math.tau)
        p.line((0, 0), (length * math.cos(angle), length * math.sin(angle)), width=width, fill=BLACK)


def _ball(p: Pen) -> None:
    p.oval(0, 0, 0.85, 0.85)
    p.poly((-0.8, -0.2), (0.8, -0.2), (0.8, 0.2), (-0.8, 0.2), fill=p.light)
    p.line((0, -0.8), (0, 0.8), width=0.1, fill=p.dark)


def _apple(p: Pen) -> None:
    p.line((0, -0.4), (0.1, -0.95), width=0.12, fill=BROWN)
    p.oval(0.32, -0.75, 0.26, 0.12, GREEN)
    p.oval(-0.28, 0.15, 0.5, 0.65)
    p.oval(0.28, 0.15, 0.5, 0.65)
    p.oval(-0.38, -0.1, 0.14, 0.2, p.light)


def _mushroom(p: Pen) -> None:
    p.poly((-0.2, -0.1), (0.2, -0.1), (0.3, 0.95), (-0.3, 0.95), fill=(228, 214, 190))
    p.dome(0, 0.05, 0.88, 0.9)
    for x, y in ((-0.45, -0.25), (0.05, -0.55), (0.48, -0.2)):
        p.oval(x, y, 0.13, 0.12, WHITE)


def _umbrella(p: Pen) -> None:
    p.line((0, -0.2), (0, 0.85), (0.14, 0.95), (0.26, 0.8), width=0.09, fill=BROWN)
    p.dome(0, 0, 0.95, 0.9)
    for x in (-0.63, 0, 0.63):
        p.dome(x, 0.02, 0.3, 0.22, p.dark)


def _bird(p: Pen) -> None:
    p.poly((-0.4, 0.05), (-1, -0.2), (-0.95, 0.3), fill=p.dark)
    p.oval(0, 0.1, 0.55, 0.34)
    p.oval(0.52, -0.25, 0.26, 0.25)
    p.poly((0.74, -0.33), (1.05, -0.2), (0.74, -0.13), fill=(235, 160, 40))
    p.poly((0.2, 0), (-0.45, p.r.uniform(-0.75, 0.25)), (-0.25, 0.2), fill=p.light)
    p.oval(0.6, -0.3, 0.06, 0.06, BLACK)
    for x in (-0.1, 0.12):
        p.line((x, 0.4), (x, 0.75), width=0.06, fill=(235, 160, 40))


def _fish(p: Pen) -> None:
    p.poly((-0.45, 0), (-1, -0.42), (-0.85, 0), (-1, 0.42), fill=p.dark)
    p.poly((-0.2, -0.3), (0.1, -0.65), (0.3, -0.3), fill=p.dark)
    p.oval(0.15, 0, 0.75, 0.42)
    p.line((0.1, -0.35), (0.1, 0.35), width=0.1, fill=p.light)
    p.oval(0.6, -0.1, 0.08, 0.08, BLACK)


def _bicycle(p: Pen) -> None:
    for x in (-0.58, 0.58):
        p.ring(x, 0.4, 0.4, 0.11, BLACK)
    p.line((-0.58, 0.4), (-0.2, -0.25), (0.4, -0.25), (0.02, 0.4), (-0.58, 0.4), width=0.11)
    p.line((0.58, 0.4), (0.36, -0.5), (0.6, -0.6), width=0.11)
    p.line((0.02, 0.4), (-0.24, -0.42), width=0.1)
    p.line((-0.42, -0.45), (-0.08, -0.45), width=0.14, fill=BLACK)


def _cup(p: Pen) -> None:
    p.ring(0.6, 0.05, 0.3, 0.13)
    p.poly((-0.62, -0.6), (0.58, -0.6), (0.46, 0.75), (-0.5, 0.75))
    p.oval(-0.02, -0.6, 0.6, 0.15, p.dark)


def _airplane(p: Pen) -> None:
    p.poly((-0.95, -0.55), (-0.7, -0.55), (-0.45, 0), (-0.85, 0), fill=p.dark)
    p.oval(0, 0.05, 0.98, 0.2)
    p.poly((0.25, 0.05), (-0.1, 0.05), (-0.45, 0.75), (-0.2, 0.75), fill=p.dark)
    p.poly((0.2, -0.08), (0, -0.08), (-0.2, -0.5), (-0.05, -0.5), fill=p.light)
    p.oval(0.72, -0.01, 0.12, 0.07, (170, 205, 225))


def _house(p: Pen) -> None:
    p.rect(-0.72, -0.15, 0.72, 0.95)
    p.poly((-0.95, -0.1), (0, -0.95), (0.95, -0.1), fill=p.dark if p.r.random() < 0.5 else RED)
    p.rect(-0.18, 0.35, 0.16, 0.95, BROWN)
    for x in (-0.58, 0.3):
        p.rect(x, 0.05, x + 0.28, 0.35, (235, 225, 150))


def _table(p: Pen) -> None:
    for x in (-0.75, 0.62):
        p.rect(x, -0.1, x + 0.14, 0.9, p.dark)
    p.rect(-1, -0.3, 1, -0.05)


def _vase(p: Pen) -> None:
    p.oval(0, 0.35, 0.55, 0.6)
    p.poly((-0.4, -0.95), (0.4, -0.95), (0.2, -0.1), (-0.2, -0.1))
    p.rect(-0.5, 0.28, 0.5, 0.42, p.light)


def _book(p: Pen) -> None:
    for side in (-1, 1):
        p.poly((0, -0.55), (side * 0.95, -0.7), (side * 0.95, 0.55), (0, 0.7))
        p.poly((0, -0.45), (side * 0.84, -0.6), (side * 0.84, 0.45), (0, 0.58), fill=WHITE)
    p.line((0, -0.5), (0, 0.6), width=0.08, fill=p.dark)


def _star(p: Pen) -> None:
    p.poly(
        *(
            (r * math.sin(math.pi * i / 5), -r * math.cos(math.pi * i / 5))
            for i in range(10)
            for r in (1 - 0.58 * (i % 2),)
        )
    )


def _key(p: Pen) -> None:
    p.ring(-0.6, 0, 0.3, 0.16)
    p.line((-0.3, 0), (0.95, 0), width=0.14)
    for x in (0.6, 0.86):
        p.line((x, 0), (x, 0.36), width=0.13)


def _kite(p: Pen) -> None:
    p.line((0, 0.4), (0.2, 0.6), (0, 0.8), (0.2, 1), width=0.07, fill=p.dark)
    p.poly((0, -1), (0.6, -0.3), (0, 0.5), (-0.6, -0.3))
    p.poly((0, -1), (0.6, -0.3), (0, -0.3), fill=p.light)
    p.poly((0, 0.5), (-0.6, -0.3), (0, -0.3), fill=p.dark)


def _lamp(p: Pen) -> None:
    p.line((0, -0.2), (0, 0.9), width=0.12, fill=GREY)
    p.oval(0, 0.9, 0.45, 0.12, GREY)
    p.poly((-0.35, -0.95), (0.35, -0.95), (0.75, -0.1), (-0.75, -0.1))


def _hat(p: Pen) -> None:
    p.oval(0, 0.45, 0.98, 0.24)
    p.poly((-0.52, 0.42), (-0.42, -0.5), (0.42, -0.5), (0.52, 0.42))
    p.poly((-0.52, 0.42), (-0.49, 0.15), (0.49, 0.15), (0.52, 0.42), fill=p.dark)


THINGS: dict[str, Callable[[Pen], None]] = {
    "person": _person, "tree": _tree, "chair": _chair, "bottle": _bottle, "car": _car, "dog": _dog, "flower": _flower,
    "clock": _clock, "boat": _boat, "mushroom": _mushroom, "bus": _bus, "bird": _bird, "apple": _apple,
    "umbrella": _umbrella, "cat": _cat, "bicycle": _bicycle, "fish": _fish, "cup": _cup, "airplane": _airplane,
    "house": _house, "table": _table, "vase": _vase, "truck": _truck, "ball": _ball, "book": _book, "star": _star,
    "key": _key, "kite": _kite, "lamp": _lamp, "hat": _hat,
}  # fmt: skip

# The colour a thing often has; else, and for the rest, any colour.
USUAL: dict[str, tuple[Colour, ...]] = {
    "person": ((60, 90, 170), (190, 70, 60)),
    "tree": (GREEN, (88, 150, 50)),
    "chair": (BROWN, (170, 120, 70)),
    "bottle": ((40, 110, 70), (120, 70, 30)),
    "car": (RED, (70, 100, 160)),
    "dog": ((160, 110, 60), (90, 65, 45)),
    "flower": ((220, 90, 150), (130, 80, 190)),
    "clock": ((60, 60, 75), BROWN),
    "boat": ((150, 70, 40), (50, 80, 130)),
    "mushroom": (RED, (150, 95, 60)),
    "bus": ((230, 180, 40), RED),
    "bird": ((70, 130, 200), (90, 90, 95)),
    "apple": (RED, (120, 180, 50)),
    "umbrella": ((120, 60, 150), (40, 50, 110)),
    "cat": ((220, 140, 60), (110, 110, 115)),
    "bicycle": ((40, 150, 160), (200, 60, 60)),
    "fish": ((240, 130, 40), (90, 140, 190)),
    "cup": (WHITE, (80, 140, 190)),
    "airplane": (WHITE, (150, 160, 175)),
    "house": ((225, 205, 170), (190, 120, 90)),
    "table": (BROWN, (200, 170, 120)),
    "truck": ((90, 130, 100), (170, 170, 175)),
    "ball": ((240, 120, 50), (230, 80, 90)),
    "star": ((245, 215, 70),),
    "key": ((205, 175, 80), GREY),
}
