"""The explorer's words and bars as HTML: every text that comes from data is escaped, nothing is said by colour alone.

Colours of text and ground are those of the page, so that dark themes work.

Letters: C classes.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from hpdval.plots.overlay import Limits, colour_table

_COLUMNS = "<colgroup>" + "".join(f'<col style="width:{w}">' for w in ("20px", "28px", "auto", "30%", "50px"))
_COLUMNS += "</colgroup>"
ROWS = 12  # bars of the best classes; true ones further down follow
STYLE = """<style>
.hpdval-explorer { --ink: var(--jp-ui-font-color1, #222); --faint: var(--jp-ui-font-color2, #666);
  --line: var(--jp-border-color2, #ccc); color: var(--ink); }
.hpdval-explorer, .hpdval-explorer .widget-box { overflow: visible; }
.hpdval-explorer .widget-hbox { flex-flow: row wrap; gap: 0 12px; }
.hpdval-explorer .widget-vbox > * { flex: 0 0 auto; }
.hpdval-explorer .widget-html { height: auto; min-width: 0; align-self: stretch; }
.hpdval-explorer .widget-html-content { flex: 1 1 auto; line-height: 1.35; height: auto; margin: 0; min-width: 0; }
.hpdval-explorer :focus-visible { outline: 2px solid #0072B2; outline-offset: 1px; }
.hpdval-explorer .hpdval-picture { display: block; max-width: 100%; height: auto; margin: 0 0 4px; }
.hpdval-explorer h3 { font-size: 13px; margin: 0 0 4px; font-weight: 600; }
.hpdval-explorer .hpdval-part { font-size: 11px; font-weight: 600; letter-spacing: .06em; text-transform: uppercase;
  color: var(--faint); margin: 6px 0 0; border-bottom: 1px solid var(--line); }
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
.hpdval-bars small { color: var(--faint); }
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
    shown = sum(1 for row in rows if row.place)
    note = f"{shown} of {total} classes. " if shown < total else ""
    said = f"<caption>{note}{escape(caption)}.</caption>{_COLUMNS}"
    return f'<table class="hpdval-bars">{said}<tbody>{"".join(_bar(row, *axis) for row in rows)}</tbody></table>'


def _bar(row: Bar, low: float, high: float) -> str:
    over, known = row.score >= row.threshold, not np.isnan(row.threshold)
    kind = " ".join(n for n, on in _kinds(row, over) if on)
    said = ["in the image" if row.present else "not in the image"] if row.place else ["your words"]
    said += [("at or above" if over else "below") + f" its threshold of {row.threshold:.3f}"] if known else []
    tick = f'<div class="tick" style="left:{_percent(row.threshold, low, high)}"></div>' if known else ""
    fill = f'<div class="fill" style="width:{_percent(row.score, low, high)}"></div>'
    label = ", ".join([row.name, *([row.group] if row.group else []), *said])
    return (
        f'<tr class="{kind}" title="{escape(label)}"><td>{"✓" if row.present else ""}</td>'
        f'<td class="number">{f"{row.place}." if row.place else "◆"}</td>'
        f'<th scope="row">{escape(row.name)} <small>{escape(row.group)}</small>'
        f'<span class="hpdval-hidden">, {escape(", ".join(said))}</span></th>'
        f'<td><div class="axis">{fill}{tick}</div></td><td class="number">{row.score:.3f}</td></tr>'
    )


def _kinds(row: Bar, over: bool) -> tuple[tuple[str, bool], ...]:
    return ("true", row.present), ("over", over), ("shown", row.shown), ("words", not row.place)


def _percent(value: float, low: float, high: float) -> str:
    return f"{100 * min(1.0, max(0.0, (value - low) / (high - low))):.1f}%"


def scale(limits: Limits, unit: str, lines: str = "", *, name: str = "") -> str:
    """Return the scale of colours with its numbers, what lines mean, and whose it is where each model has its own."""
    table = colour_table()[::15].astype(int)  # 0, 15, ... 255
    stops = ", ".join(f"rgb({r} {g} {b})" for r, g, b in table)
    ramp = f"background:linear-gradient(90deg, {stops})"
    said = f"scale of colours from {limits[0]:.3f} to {limits[1]:.3f}"
    return (
        f'<div class="hpdval-scale"><span>{escape(name)} {limits[0]:.3f}</span>'
        f'<span class="ramp" role="img" aria-label="{said}" style="{ramp}"></span>'
        f"<span>{limits[1]:.3f} {escape(unit)}</span><span>{escape(lines)}</span></div>"
    )


def note(words: str) -> str:
    """Return words below the scales of colours."""
    return f'<div class="hpdval-scale">{escape(words)}</div>'


def heading(name: str) -> str:
    """Return the name of a model above its picture."""
    return f"<h3>{escape(name)}</h3>"


def part(name: str) -> str:
    """Return the title of a group of controls."""
    return f'<div class="hpdval-part">{escape(name)}</div>'


def picture(png: bytes, size: tuple[int, int], words: str) -> str:
    """Return a picture of (width, height) with the words for it; it is decoded at once, so that nothing flickers."""
    data = b64encode(png).decode()
    return (
        f'<img class="hpdval-picture" width="{size[0]}" height="{size[1]}" decoding="sync" alt="{escape(words)}" '
        f'src="data:image/png;base64,{data}">'
    )


def status(words: str, problem: bool = False) -> str:
    """Return the line that says what is seen, or what went wrong; a live region, made anew."""
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
