"""What the settings of a comparison took to train, beside what they reach: a table and, where costs differ, figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pandas as pd

from hpdval import plots
from hpdval.report.analyse import Analysis
from hpdval.report.document import Picture, Table
from hpdval.report.latex import escape, latex_table
from hpdval.report.tabulate import MARKED, measured_how, setting_name
from hpdval.tables import cost_table, count_text
from hpdval.tables.cost import SHARED_MACHINE

WORTH = 3.0  # the least factor between the cheapest and the dearest that a figure shows; shared machines blur less


def cost_tables(analysis: Analysis) -> tuple[Table, ...]:
    """Return the table of parameters, seconds and total mAP, or nothing where no run recorded what it trained.

    Raises:
        RunError: a run's record of what it trained is none.
    """
    frame = _frame(analysis)
    if not _recorded(frame):
        return ()
    shown = pd.DataFrame({"setting": [setting_name(analysis, one) for one in analysis.cells]})
    shown["parameters trained"] = ["-" if math.isnan(n) else count_text(n) for n in frame["parameters"]]
    for head, column, text in (("training, seconds", "seconds", _seconds), ("total mAP", "total", _points)):
        spreads = frame[f"{column} sd"] if f"{column} sd" in frame else [math.nan] * len(frame)
        shown[head] = [_spread(mean, sd, text) for mean, sd in zip(frame[column], spreads, strict=True)]
    caption = (
        f"{analysis.comparison.title}: parameters trained and seconds of the training loop, the stages a setting "
        f"started from included and a frozen encoder's one pass over the images not, beside total mAP in percent, "
        f"{measured_how(analysis)}. Mean (sample standard deviation over seeds); a dash where nothing was trained or "
        "nothing is recorded."
    )
    if any(one.selected_on_test for one in analysis.cells):
        caption += f" {MARKED}"
    name = f"{analysis.comparison.name}-cost"
    cells = [[escape("--" if text == "-" else text) for text in row] for row in shown.to_numpy().tolist()]
    tex = latex_table([*shown.columns], cells, caption=escape(f"{caption} {SHARED_MACHINE}"), label=name)
    shown.attrs["footnotes"] = [SHARED_MACHINE]
    digits = frame.assign(parameters=frame["parameters"].round().astype("Int64"))
    return (Table(name=name, caption=caption, frame=digits, shown=shown, tex=tex),)


def cost_pictures(analysis: Analysis) -> Iterator[Picture]:
    """Yield mAP against seconds and against parameters, of categories, each where it tells the settings apart."""
    frame = _frame(analysis)
    if analysis.comparison.axis is not None or not _recorded(frame):
        return
    words = {"seconds": "seconds of training", "parameters": "parameters trained"}
    # no time but no parameter either: it trained nothing, which is known; without both, nothing is known
    nothing = frame["parameters"] == 0
    known = {
        "seconds": frame["seconds"].mask(nothing & frame["seconds"].isna(), 0.0),
        "parameters": frame["parameters"],
    }
    for unit, values in known.items():
        paid = values[values > 0]
        if len(paid) < 2 or paid.max() < WORTH * paid.min():
            continue
        yield Picture(
            name=f"{analysis.comparison.name}-cost-{unit}",
            caption=f"{analysis.comparison.title}: total and tail mAP against {words[unit]}, the stages a setting "
            f"started from included, means over seeds; bars are 95 % bootstrap intervals over test images."
            + (f" {SHARED_MACHINE}" if unit == "seconds" else ""),
            chart=plots.map_against_cost(
                dict(zip([one.label for one in analysis.cells], values.tolist(), strict=True)),
                analysis.intervals,
                unit=unit,
                title=f"{analysis.comparison.title}: mAP against {words[unit]}",
            ),
        )


def _frame(analysis: Analysis) -> pd.DataFrame:
    """Return all digits: setting, parameters, seconds, total mAP, and their standard deviations over seeds."""
    costs = cost_table({one.label: list(one.cell.runs.values()) for one in analysis.cells})
    scores = analysis.scores.set_index("method").loc[costs["method"]].reset_index(drop=True)
    columns = [name for name in ("total", "total sd") if name in scores]
    frame = pd.concat([costs.rename(columns={"method": "setting"}), scores[columns]], axis=1)
    frame["seeds"] = [len(one.seeds) for one in analysis.cells]
    return frame


def _recorded(frame: pd.DataFrame) -> bool:
    return bool((frame["parameters"] > 0).any() or frame["seconds"].notna().any())


def _spread(mean: float, sd: float, text: Callable[[float], str]) -> str:
    if math.isnan(mean):
        return "-"
    return text(mean) if math.isnan(sd) else f"{text(mean)} ({text(sd)})"


def _points(value: float) -> str:
    return f"{value:.2f}"


def _seconds(value: float) -> str:
    """Return seconds to three digits.

    >>> _seconds(0.1234), _seconds(12.34), _seconds(12345.6)
    ('0.12', '12.3', '12346')
    """
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
