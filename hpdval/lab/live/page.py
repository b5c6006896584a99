"""The live view as HTML: what is true now, the runs of the training, its result and the end of its log.

All text that comes from files is escaped.  Colours are those of the page, so that dark themes work; what is marked by
colour is said in words, too.
"""

from __future__ import annotations

import html
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

from hpdval.lab.live.follow import (
    DAMAGED,
    DONE,
    FAILED,
    INTERRUPTED,
    RUNNING,
    STOPPED,
    STOPPING,
    WAITING,
    Snapshot,
    Stage,
    watched,
)
from hpdval.lab.live.tail import number
from hpdval.metrics.protocol import SELECTED_ON_TEST, selection_rule
from hpdval.plots.training import LOSSES, WATCHED
from hpdval.tables.scores import COLUMNS

MARKS = {  # a sign and a colour of Okabe and Ito's palette, dark enough for white text
    WAITING: ("○", "#6B6B6B"),
    RUNNING: ("▶", "#0072B2"),
    STOPPING: ("■", "#A85800"),
    STOPPED: ("■", "#A85800"),
    INTERRUPTED: ("■", "#A85800"),
    FAILED: ("✕", "#B03A2E"),
    DAMAGED: ("✕", "#B03A2E"),
    DONE: ("✓", "#00795A"),
}
BEGINS = "It reads the data and the model; no run is at work yet."
NEXT = {
    WAITING: "No run has begun here yet.",
    STOPPING: "It saves and stops after this update, or after the evaluation.",
    STOPPED: "The same command continues it.",
    INTERRUPTED: "The same command continues it.",
}


def heading(now: Snapshot) -> str:
    """Return state, progress and the newest losses."""
    sign, colour = MARKS.get(now.state, MARKS[WAITING])
    badge = (
        f'<span role="status" style="background:{colour};color:#fff;border-radius:3px;padding:1px 8px;'
        f'white-space:nowrap">{sign} {_text(now.state)}</span>'
    )
    parts = [f"<b>{_text(now.folder.name)}</b> {badge}"]
    stage = now.active
    if stage is not None and stage.updates:
        parts.append(_text(_where(stage)))
    lines = [f'<div style="line-height:1.9">{" &nbsp; ".join(parts)}</div>']
    lines += [_bar(stage)] if stage is not None and stage.updates else []
    lines += [f"<div>{_text(_losses(stage.last))}</div>"] if stage is not None and stage.last else []
    what_next = "" if "continue" in now.reason else NEXT.get(now.state, "")
    what_next = BEGINS if now.state == RUNNING and stage is None else what_next
    reason = " ".join(filter(None, (f"{now.reason.rstrip('.')}." if now.reason else "", what_next)))
    lines += [f"<div>{_text(reason)}</div>"] if reason else []
    return "".join(lines)


def details(now: Snapshot, message: str = "") -> str:
    """Return the table of runs, the end of the log, and what cannot be read."""
    lines = [_runs(now.stages)] if now.stages else []
    if now.log:
        shown = "\n".join(_text(line[:300]) for line in now.log)
        lines.append(f'<pre style="overflow-x:auto;margin:6px 0;font-size:85%;line-height:1.35">{shown}</pre>')
    lines += [f'<div role="alert">⚠ {_text(line)}</div>' for line in (*now.problems, message) if line]
    lines.append(f'<div style="font-size:85%;opacity:.75;overflow-wrap:anywhere">{_text(now.folder)}</div>')
    return "".join(lines)


def picture(png: bytes, words: str) -> str:
    """Return a picture with the words for it."""
    data = b64encode(png).decode()
    return f'<img alt="{_text(words)}" style="max-width:100%" src="data:image/png;base64,{data}">'


def _where(stage: Stage) -> str:
    """Say ``stage1: update 3 of 8, epoch 1 of 2, 0:12 elapsed, about 0:20 left``."""
    parts = [f"{stage.name}: update {stage.update} of {stage.updates}", f"epoch {stage.epoch} of {stage.epochs}"]
    if stage.state == RUNNING and stage.update >= stage.updates:
        parts.append("evaluating")
    parts += [f"{clock(stage.elapsed)} elapsed"] if stage.elapsed is not None else []
    parts += [f"about {clock(stage.remaining)} left"] if stage.remaining is not None else []
    return ", ".join(parts)


def clock(seconds: float) -> str:
    """Return hours, minutes and seconds.

    >>> clock(7.4), clock(3725)
    ('0:07', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _bar(stage: Stage) -> str:
    share = 100 * min(1.0, stage.update / stage.updates)
    return (
        '<div aria-hidden="true" style="background:rgba(128,128,128,.3);height:6px;border-radius:3px;margin:2px 0 4px">'
        f'<div style="width:{share:.1f}%;height:6px;border-radius:3px;background:#0072B2"></div></div>'
    )


def _losses(last: Mapping[str, float]) -> str:
    """Say the newest losses by their names, what is watched, and the learning rate."""
    names = [name for name in LOSSES if name in last]
    texts = [f"{LOSSES[name][0]} {last[name]:.4g}" for name in names]
    texts += [f"{WATCHED[name].removesuffix(', percent')} {value:.2f} %" for name, value in watched(last).items()]
    texts += [f"learning rate {last['lr']:.3g}"] if "lr" in last else []
    return " · ".join(texts)


def _runs(stages: Sequence[Stage]) -> str:
    """Return a row for each run: state, updates, test mAP of those that are done, and under which protocol."""
    cell, right = 'style="text-align:left;padding:1px 12px 1px 0"', 'style="text-align:right;padding:1px 0 1px 12px"'
    scored = any(number(stage.result.get("total")) is not None for stage in stages)
    titles = ["run", "state"]
    head = "".join(f"<th {cell}>{title}</th>" for title in titles) + f"<th {right}>updates</th>"
    head += "".join(f"<th {right}>{name}</th>" for name in COLUMNS) if scored else ""
    rows = []
    for stage in stages:
        made = f"{stage.update} / {stage.updates}" if stage.updates else "-"
        row = f"<td {cell}>{_text(stage.name)}</td><td {cell}>{_text(stage.state)}</td><td {right}>{made}</td>"
        row += "".join(f"<td {right}>{_percent(stage.result, name)}</td>" for name in COLUMNS) if scored else ""
        rows.append(f"<tr>{row}</tr>")
    table = (
        f'<table style="border-collapse:collapse;margin:6px 0;font-size:inherit"><tr>{head}</tr>{"".join(rows)}</table>'
    )
    return table + "".join(f'<div style="font-size:85%">{_text(line)}</div>' for line in _notes(stages))


def _percent(result: Mapping[str, Any], name: str) -> str:
    value = number(result.get(name))
    return "-" if value is None else f"{value:.2f}"


def _notes(stages: Sequence[Stage]) -> list[str]:
    """Say under which protocol the numbers were made; each line once."""
    notes: dict[str, None] = {}
    for result in (stage.result for stage in stages if number(stage.result.get("total")) is not None):
        notes[f"mAP in percent: {result.get('protocol', 'unknown protocol')}, seed {result.get('seed')}, one run."] = (
            None
        )
        chosen = str(result.get("selection", ""))
        if selection_rule(chosen) == SELECTED_ON_TEST:
            notes[f"{SELECTED_ON_TEST}."] = None
    return list(notes)


def _text(value: object) -> str:
    return html.escape(str(value))
