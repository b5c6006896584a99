"""From the numbers of a comparison to its figures."""

from __future__ import annotations

from collections.abc import Iterator

from hpdval import plots
from hpdval.errors import RunError
from hpdval.report.analyse import Analysis, Measured, class_gains
from hpdval.report.document import Picture
from hpdval.run import read_metrics
from hpdval.tables.scores import COLUMNS


def comparison_pictures(analysis: Analysis) -> tuple[Picture, ...]:
    """Return the figures of a comparison that its runs can fill."""
    return tuple(_pictures(analysis))


def _pictures(analysis: Analysis) -> Iterator[Picture]:
    name, title = analysis.comparison.name, analysis.comparison.title
    yield _sensitivity(analysis) if _curve(analysis) else _bars(analysis)
    reference, best = analysis.reference, analysis.best
    chosen = {one.label: one.per_class for one in (reference, best) if one is not None}
    words = " against ".join(reversed(list(chosen)))
    yield Picture(
        name=f"{name}-frequency",
        caption=f"{title}: AP of each class against its training images, {words}; dashes are chance.",
        chart=plots.ap_against_frequency(
            analysis.class_counts,
            chosen or {one.label: one.per_class for one in analysis.cells[:1]},
            analysis.classes,
            chance=analysis.cells[0].evaluations[0].chance,
            title=f"{title}: AP against frequency",
        ),
    )
    if reference is not None and best is not None:
        yield from _waterfall(analysis, best, reference)
    records = {one.label: [read_metrics(folder) for folder in one.cell.runs.values()] for one in analysis.cells}
    trained = {label: seeds for label, seeds in records.items() if any("loss" in r for run in seeds for r in run)}
    if trained:
        yield Picture(
            name=f"{name}-training",
            caption=f"{title}: training loss and, where it was watched, mAP; mean over seeds, bands from the lowest to "
            "the highest seed. Losses of methods that minimise different things do not compare by height.",
            chart=plots.training_bands(trained, title=f"{title}: training"),
        )
    if len(analysis.cells) > 1:
        yield Picture(
            name=f"{name}-ranks",
            caption=f"{title}: mean rank of each setting over the classes; bars join settings that Wilcoxon's "
            "signed-rank tests over classes, Holm-adjusted, do not tell apart.",
            chart=plots.class_ranks(analysis.ranks, title=f"{title}: mean rank over classes"),
        )


def _curve(analysis: Analysis) -> bool:
    values = [one.cell.value for one in analysis.cells if one.cell.value is not None]
    return analysis.comparison.axis is not None and len({*values}) > 1


def _sensitivity(analysis: Analysis) -> Picture:
    comparison = analysis.comparison
    placed = [one for one in analysis.cells if one.cell.value is not None]
    reference = analysis.reference.cell.value if analysis.reference else None
    return Picture(
        name=f"{comparison.name}-curve",
        caption=f"{comparison.title}: mAP against {comparison.axis}, mean over seeds; bands are 95 % bootstrap "
        "intervals over test images, the dotted line is the reference. The panels span equally many points.",
        chart=plots.sensitivity(
            [float(one.cell.value) for one in placed if one.cell.value is not None],
            [analysis.intervals[one.label] for one in placed],
            axis=str(comparison.axis),
            reference=reference,
            title=comparison.title,
        ),
    )


def _bars(analysis: Analysis) -> Picture:
    chance = analysis.scores.to_dict("records")[0]
    return Picture(
        name=f"{analysis.comparison.name}-bars",
        caption=f"{analysis.comparison.title}: mAP in total and by group, mean over seeds, with 95 % bootstrap "
        "intervals over test images; dashed lines are chance.",
        chart=plots.group_bars(
            {one.label: analysis.intervals[one.label] for one in analysis.cells},
            chance={name: float(chance[name]) for name in COLUMNS},
            title=analysis.comparison.title,
        ),
    )


def _waterfall(analysis: Analysis, after: Measured, before: Measured) -> Iterator[Picture]:
    try:
        gains = class_gains(after, before)
    except RunError:  # no seed in common, which the section's notes say
        return
    yield Picture(
        name=f"{analysis.comparison.name}-waterfall",
        caption=f"{analysis.comparison.title}: how the difference of {after.label} to {before.label} adds up; each "
        "class adds its own, divided by the number of classes.",
        chart=plots.gain_waterfall(
            analysis.classes,
            analysis.class_counts,
            gains,
            title=f"{analysis.comparison.title}: {after.label} against {before.label}, by class",
        ),
    )
