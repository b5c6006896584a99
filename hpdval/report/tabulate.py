"""From the numbers of a comparison to its tables: as numbers, as text, and for a paper."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from hpdval.metrics.protocol import SELECTED_ON_TEST
from hpdval.report.analyse import Analysis, Measured
from hpdval.report.document import Table
from hpdval.report.latex import escape, highlighted, latex_table
from hpdval.tables import per_class_table
from hpdval.tables.scores import COLUMNS

MARKED = f"*: {SELECTED_ON_TEST}: an upper bound, no basis for a claim, and never ranked."
SIGNIFICANT = 0.05


def comparison_tables(analysis: Analysis, *, resamples: int, permutations: int) -> tuple[Table, ...]:
    """Return the tables of a comparison: scores, differences to the reference, ranks, classes one by one."""
    tables = [_scores(analysis, resamples)]
    if not analysis.differences.empty:
        tables.append(_differences(analysis, resamples, permutations))
    if len(analysis.cells) > 1:
        tables.append(_ranks(analysis))
    return (*tables, _per_class(analysis))


def measured_how(analysis: Analysis) -> str:
    """Return the protocol of a comparison in words: test images, classes, read-out, selection, seeds."""
    protocol, seeds = analysis.protocol, sorted({seed for one in analysis.cells for seed in one.seeds})
    selections = f", {SELECTED_ON_TEST} where marked *" if _marked(analysis) else ""
    return (
        f"{protocol.test_set}, {len(analysis.classes)} classes, {protocol.how}{selections}, "
        f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    )


def _marked(analysis: Analysis) -> bool:
    return any(one.selected_on_test for one in analysis.cells)


def setting_name(analysis: Analysis, one: Measured) -> str:
    """Return how a setting is called in a table, the reference as such."""
    return f"{one.label} (reference)" if one is analysis.reference and len(analysis.cells) > 1 else one.label


def _scores(analysis: Analysis, resamples: int) -> Table:
    frame = analysis.scores.rename(columns={"method": "setting"})
    for name in COLUMNS:
        found = [None, *(analysis.intervals[one.label][name] for one in analysis.cells)]
        frame[f"{name} low"] = [math.nan if i is None else i.low for i in found]
        frame[f"{name} high"] = [math.nan if i is None else i.high for i in found]
    frame["seeds"] = pd.array([pd.NA, *(len(one.seeds) for one in analysis.cells)], dtype="Int64")
    if analysis.comparison.axis:
        frame.insert(1, "value", [math.nan, *(_number(one.cell.value) for one in analysis.cells)])
    frame["selected on test"] = [False, *(one.selected_on_test for one in analysis.cells)]
    shown = pd.DataFrame({"setting": ["chance", *(setting_name(analysis, one) for one in analysis.cells)]})
    for name in COLUMNS:
        columns = (frame[column] for column in (name, f"{name} sd", f"{name} low", f"{name} high") if column in frame)
        shown[name] = [_score(*row) for row in zip(*columns, strict=True)]
    shown["seeds"] = ["-", *(str(len(one.seeds)) for one in analysis.cells)]
    caption = (
        f"{analysis.comparison.title}: mAP in percent, {measured_how(analysis)}. Mean (sample standard deviation over "
        f"seeds) [95 % bootstrap interval over test images, {resamples} resamples]; chance is prevalence."
    )
    if _marked(analysis):
        caption += f" {MARKED}"
    return Table(
        name=analysis.comparison.name, caption=caption, frame=frame, shown=shown, tex=_scores_tex(analysis, frame)
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _score(mean: float, *more: float) -> str:
    """Return "52.04 (0.25) [50.90, 53.20]" on two lines, without what is not known."""
    *spread, low, high = more
    shown = "-" if math.isnan(mean) else f"{mean:.2f}"
    shown += "".join(f" ({one:.2f})" for one in spread if not math.isnan(one))
    return shown if math.isnan(low) else f"{shown}\n[{low:.2f}, {high:.2f}]"


def _scores_tex(analysis: Analysis, frame: pd.DataFrame) -> str:
    ranked = [False, *(not one.selected_on_test for one in analysis.cells)]
    columns = [["chance", *(escape(setting_name(analysis, one)) for one in analysis.cells)]]
    for name in COLUMNS:
        spreads = frame[f"{name} sd"] if f"{name} sd" in frame else [math.nan] * len(frame)
        columns.append(highlighted(frame[name].tolist(), list(spreads), ranked))
    head = ["setting", *COLUMNS]
    caption = (
        f"{escape(analysis.comparison.title)}: mAP in percent, {escape(measured_how(analysis))}. "
        r"Mean (sample standard deviation over seeds), best in \textbf{bold}, second best \underline{underlined}"
    )
    total = _of(analysis.differences, "total")
    if total:
        head += [r"\ensuremath{\Delta} total", "95\\,\\% interval", "\\ensuremath{p}"]
        rows = [total.get(one.label) for one in analysis.cells]
        columns.append(["--", *("--" if row is None else _signed(row["difference"]) for row in rows)])
        columns.append(["--", *("--" if row is None else _limits(row) for row in rows)])
        columns.append(["--", *("--" if row is None else _p(row["p_holm"]) for row in rows)])
        caption += (
            rf"; \ensuremath{{\Delta}}: difference of total to {escape(analysis.comparison.reference)} in points, with "
            r"its paired bootstrap interval and the \ensuremath{p} of a permutation test after Holm"
        )
    caption += f". {escape(MARKED)}" if _marked(analysis) else "."
    return latex_table(
        head, list(zip(*columns, strict=True)), caption=caption, label=analysis.comparison.name, rule_after=1
    )


def _of(differences: pd.DataFrame, classes: str) -> dict[str, Mapping[str, float]]:
    """Return the rows of total or of a group by setting."""
    if differences.empty:
        return {}
    return {row["comparison"]: row for row in differences[differences["classes"] == classes].to_dict("records")}  # type: ignore[misc]


def _signed(value: float) -> str:
    return "--" if math.isnan(value) else f"\\ensuremath{{{value:+.2f}}}"


def _limits(row: Mapping[str, float]) -> str:
    return "--" if math.isnan(row["low"]) else f"\\ensuremath{{[{row['low']:.2f}, {row['high']:.2f}]}}"


def _p(value: float) -> str:
    return "--" if math.isnan(value) else f"{value:.4f}"


def _differences(analysis: Analysis, resamples: int, permutations: int) -> Table:
    frame, reference = analysis.differences, analysis.comparison.reference
    labels = list(dict.fromkeys(frame["comparison"]))
    shown, tex = pd.DataFrame({"setting": labels}), [[escape(label) for label in labels]]
    for name in COLUMNS:
        rows = [_of(frame, name)[label] for label in labels]
        shown[name] = [_difference(row) for row in rows]
        tex.append([_difference_tex(row) for row in rows])
    caption = (
        f"{analysis.comparison.title}: differences of mAP to {reference} in points, {measured_how(analysis)}. [95 % "
        f"paired bootstrap interval over test images, {resamples} resamples]; p of a permutation test ({permutations} "
        "permutations), Holm-adjusted over the settings of the column; gain or loss where the interval excludes 0 and "
        "all seeds agree."
    )
    if _marked(analysis):
        caption += f" {MARKED}"
    paper = caption.replace("; gain or loss where", "; dagger: adjusted p below 0.05; bold: gain or loss, where")
    paper = paper.replace("; p of a permutation test", "; permutation test")
    name = f"{analysis.comparison.name}-differences"
    table = latex_table(["setting", *COLUMNS], list(zip(*tex, strict=True)), caption=escape(paper), label=name)
    return Table(name=name, caption=caption, frame=frame, shown=shown, tex=table)


def _difference(row: Mapping[str, float]) -> str:
    if math.isnan(row["difference"]):
        return "-"
    verdict = {"yes": ", gain", "loss": ", loss"}.get(str(row["gain"]), "")
    return f"{row['difference']:+.2f}\n[{row['low']:.2f}, {row['high']:.2f}],\np {row['p_holm']:.4f}{verdict}"


def _difference_tex(row: Mapping[str, float]) -> str:
    if math.isnan(row["difference"]):
        return "--"
    number = f"{row['difference']:+.2f}"
    value = rf"\mathbf{{{number}}}" if str(row["gain"]) in ("yes", "loss") else number
    mark = r"\ensuremath{^\dagger}" if row["p_holm"] < SIGNIFICANT else ""
    return rf"\ensuremath{{{value}}} {_limits(row)}{mark}"


def _ranks(analysis: Analysis) -> Table:
    ranks, name = analysis.ranks, f"{analysis.comparison.name}-ranks"
    shown = pd.DataFrame({"setting": ranks["setting"], "mean rank": [f"{rank:.2f}" for rank in ranks["mean rank"]]})
    shown["not told apart"] = ranks["not told apart"]
    friedman = ranks.attrs["friedman"]
    shown_p = "< 0.0001" if friedman < 1e-4 else f"= {friedman:.4f}"
    first = "" if math.isnan(friedman) else f"Friedman's test: p {shown_p}. "
    caption = (
        f"{analysis.comparison.title}: mean rank of each setting over the classes (1 is best). {first}Settings that "
        "share a number are not told apart by Wilcoxon's signed-rank test over classes, Holm-adjusted, at 5 %. "
        "Classes share images, so this describes how even a difference is."
    )
    cells = [[escape(value) for value in row] for row in shown.to_numpy().tolist()]
    tex = latex_table([*shown.columns], cells, caption=escape(caption), label=name)
    return Table(name=name, caption=caption, frame=pd.DataFrame(ranks), shown=shown, tex=tex)


def _per_class(analysis: Analysis) -> Table:
    about = (analysis.classes, analysis.class_counts, analysis.targets)
    frame = per_class_table(*about, {})
    frame = pd.concat([frame, pd.DataFrame({one.label: one.per_class for one in analysis.cells})], axis=1)
    caption = f"{analysis.comparison.title}: AP of each class in percent, mean over seeds."
    return Table(name=f"{analysis.comparison.name}-per-class", caption=caption, frame=frame)


def summary_table(analyses: Sequence[Analysis]) -> Table:
    """Return a row for each comparison: its reference, the best other setting, and what lies between them."""
    rows, shown = [], []
    for one in analyses:
        reference, best = one.reference, one.best
        row = _of(one.differences, "total").get(best.label if best else "", {})
        total = one.intervals[reference.label]["total"].estimate if reference else math.nan
        numbers = [float(row.get(name, math.nan)) for name in ("difference", "low", "high", "p_holm")]
        names = [one.comparison.title, one.comparison.reference, best.label if best else "-"]
        rows.append([*names[:2], total, names[2], *numbers, str(row.get("gain", "-")), len(one.cells)])
        text = _difference(row) if row else "-"
        shown.append([*names[:2], "-" if math.isnan(total) else f"{total:.2f}", names[2], text, str(len(one.cells))])
    columns = ["comparison", "reference", "its total", "best other", "difference", "low", "high", "p_holm", "gain"]
    return Table(
        name="summary",
        caption="Of each comparison the reference, its total mAP in percent, and the difference of the best other "
        "setting to it in points, with 95 % interval and Holm-adjusted p. The best of several is chosen after "
        "looking: its difference is an upper bound.",
        frame=pd.DataFrame(rows, columns=[*columns, "settings"]),
        shown=pd.DataFrame(shown, columns=[*columns[:4], "difference", "settings"]),
    )
