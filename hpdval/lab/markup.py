"""The explorer's words and bars as HTML: every text that comes from data is escaped, nothing is said by colour alone.

Colours of text and ground are those of the page, so that dark themes work.

Letters: C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from hpdval.plots.overlay import Limits, colour_table

ROWS = 12  # bars of the best classes; true ones further down follow
STYLE = """<style>
.hpdval-explorer { --ink: var(--jp-ui-font-color1, #222); --faint: var(--jp-ui-font-color2, #666);
  --line: var(--jp-border-color2, #ccc); color: var(--ink); }
.hpdval-explorer .widget-html-content, .hpdval-explorer .widget-html { line-height: 1.35; height: auto; margin: 0;
  min-width: 0; align-self: stretch; }
.hpdval-explorer .widget-html-content { flex: 1 1 auto; }
.hpdval-explorer :focus-visible { outline: 2px solid #0072B2; outline-offset: 1px; }
.hpdval-explorer .hpdval-picture { max-width: 100%; height: auto; margin: 0; border: 1px solid var(--line); }
.hpdval-explorer h3 { font-size: 13px; margin: 0 0 4px; font-weight: 600; }
.hpdval-explorer .hpdval-part { font-size: 11px; font-weight: 600; letter-spacing: .06em; text-transform: uppercase;
  color: var(--faint); margin: 6px 0 0; border-bottom: 1px solid var(--line); }
.hpdval-explorer .hpdval-hint { color: var(--faint); font-size: 11px; }
.hpdval-status-line { border-left: 4px solid #0072B2; padding: 4px 8px; background: var(--jp-layout-color2, #f3f3f3); }
.hpdval-status-line.problem { border-color: #D55E00; font-weight: 600; }
.hpdval-bars { border-collapse: collapse; width: 100%; font-size: 12px; line-height: 15px; table-layout: fixed; }
.hpdval-bars td, .hpdval-bars th { padding: 1px 3px; border: 0; text-align: left; font-weight: 400; background: none;
  overflow: hidden; text-overflow: ellipsis; white-space: nowrap; color: var(--ink); }
.hpdval-bars caption { caption-side: bottom; text-align: left; color: var(--faint); font-size: 11px; padding: 3px 0; }
.hpdval-bars tr.shown th { font-weight: 700; text-decoration: underline; }
.hpdval-bars .axis { position: relative; height: 11px; background: var(--jp-layout-color2, #f0f0f0); }
.hpdval-bars .fill { position: absolute; inset: 0 auto 0 0; box-sizing: border-box; border: 1px solid #767676; }
.hpdval-bars .over .fill { background: #9a9a9a; }
.hpdval-bars .true .fill { border-color: #0072B2; }
.hpdval-bars .true.over .fill { background: #0072B2; }
.hpdval-bars .words .fill { border-style: dashed; }
.hpdval-bars .tick { position: absolute; top: -2px; bottom: -2px; width: 2px; background: var(--ink);
  box-shadow: 0 0 0 1px var(--jp-layout-color0, #fff); }
.hpdval-bars td.number { text-align: right; font-variant-numeric: tabular-nums; }
.hpdval-hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.hpdval-scale { display: flex; align-items: center; gap: 6px; font-size: 11px; color: var(--faint); flex-wrap: wrap; }
.hpdval-scale .ramp { width: 130px; height: 10px; border: 1px solid var(--line); }
</style>"""


@dataclass(frozen=True)
class Bar:
    """One row: a class or a sentence with its score."""

    name: str
    score: float
    present: bool = False
    shown: bool = False
    threshold: float = np.nan
    group: str = ""
    place: int = 0  # 0 for a sentence, which is no class and has no rank


def bars_of(
    scores: np.ndarray,
    targets: np.ndarray,
    classes: Sequence[str],
    thresholds: np.ndarray | None,
    groups: Sequence[str],
    shown: str,
) -> list[Bar]:
    """Return the rows of the best classes, and of the present and the shown ones further down, highest score first.

    Args:
        scores, targets: (C,) of one image.
        thresholds: (C,), NaN where there is none; None where they are not known yet.
        groups: of the classes, ``head``, ``medium`` or ``tail``.
        shown: the class whose map is seen.
    """
    order = np.argsort(-scores, kind="stable")
    limits = np.full(len(scores), np.nan) if thresholds is None else thresholds
    return [
        Bar(classes[c], float(scores[c]), bool(targets[c]), classes[c] == shown, float(limits[c]), groups[c], place + 1)
        for place, c in enumerate(order)
        if place < ROWS or targets[c] or classes[c] == shown
    ]


def bars(rows: Sequence[Bar], axis: Limits, total: int, caption: str) -> str:
    """Return a table of bars; ✓ marks present classes, the tick a threshold, a filled bar a score that reaches it."""
    low, high = axis
    lines = []
    for row in rows:
        over = row.score >= row.threshold
        known = not np.isnan(row.threshold)
        kind = " ".join(n for n, on in _kinds(row, over) if on)
        said = "in the image" if row.present else "" if not row.place else "not in the image"
        said += (", at or above its threshold" if over else ", below its threshold") if known else ""
        tick = f'<div class="tick" style="left:{_percent(row.threshold, low, high)}"></div>' if known else ""
        limit = f", threshold {row.threshold:.3f}" if known else ""
        place = f"{row.place}." if row.place else "◆"
        label = f"{row.name}, {row.group}, score {row.score:.3f}{limit}" if row.place else f"your words: {row.name}"
        lines.append(
            f'<tr class="{kind}" title="{escape(label)}"><td style="width:22px">{"✓" if row.present else ""}</td>'
            f'<td class="number" style="width:24px">{place}</td>'
            f'<th scope="row">{escape(row.name)}<span class="hpdval-hidden"> {said}</span></th>'
            f'<td style="width:42px;color:var(--faint)">{escape(row.group[:3])}</td>'
            f'<td style="width:38%"><div class="axis"><div class="fill" style="width:'
            f'{_percent(row.score, low, high)}"></div>{tick}</div></td>'
            f'<td class="number" style="width:44px">{row.score:.3f}</td></tr>'
        )
    shown = sum(1 for row in rows if row.place)
    note = f"{shown} of {total} classes. " if shown < total else ""
    return f'<table class="hpdval-bars"><caption>{note}{escape(caption)}</caption>{"".join(lines)}</table>'


def _kinds(row: Bar, over: bool) -> tuple[tuple[str, bool], ...]:
    return ("true", row.present), ("over", over), ("shown", row.shown), ("words", not row.place)


def _percent(value: float, low: float, high: float) -> str:
    return f"{100 * min(1.0, max(0.0, (value - low) / (high - low))):.1f}%"


def scale(limits: Limits, unit: str, patches: int, boxes: bool) -> str:
    """Return the scale of colours with its numbers, and what lines mean."""
    table = colour_table()[::32].astype(int)
    stops = ", ".join(f"rgb({r} {g} {b})" for r, g, b in table)
    lines = f"white outline: best {patches} patches" if patches else ""
    lines += ("; " if lines and boxes else "") + ("dashed: annotated objects" if boxes else "")
    ramp = f"background:linear-gradient(90deg, {stops})"
    said = f"scale of colours from {limits[0]:.3f} to {limits[1]:.3f}"
    return (
        f'<div class="hpdval-scale"><span>{limits[0]:.3f}</span>'
        f'<span class="ramp" role="img" aria-label="{said}" style="{ramp}"></span>'
        f"<span>{limits[1]:.3f} {escape(unit)}</span><span>{escape(lines)}</span></div>"
    )


def heading(name: str) -> str:
    """Return the name of a model above its picture."""
    return f"<h3>{escape(name)}</h3>"


def part(name: str) -> str:
    """Return the title of a group of controls."""
    return f'<div class="hpdval-part">{escape(name)}</div>'


def hint(words: str) -> str:
    """Return small words beside a control."""
    return f'<div class="hpdval-hint">{escape(words)}</div>'


def status(words: str, problem: bool = False) -> str:
    """Return the line that says what is seen, or what went wrong; screen readers announce it."""
    kind = "hpdval-status-line problem" if problem else "hpdval-status-line"
    sign = "⚠ " if problem else ""
    return f'<div role="status" aria-live="polite" class="{kind}">{sign}{escape(words)}</div>'


def place_of(values: np.ndarray) -> str:
    """Say where a map (h, w) is highest.

    >>> place_of(np.eye(3)[[2, 1, 0]])
    'lower left'
    >>> place_of(np.array([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    'middle'
    """
    if not np.isfinite(values).any():
        return "nowhere"
    if np.nanmax(values) == np.nanmin(values):
        return "everywhere alike"
    # of equal places the lowest, leftmost: rows from below
    row, column = np.unravel_index(np.nanargmax(values[::-1]), values.shape)
    row = values.shape[0] - 1 - row
    down = ("upper", "", "lower")[int(3 * row / values.shape[0])]
    across = ("left", "", "right")[int(3 * column / values.shape[1])]
    words = " ".join(word for word in (down, across) if word)
    return words or "middle"
