"""Which runs answer a grid's questions: each setting and seed once, and who has to wait for whose stage 1."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from hpdval.config import Experiment
from hpdval.errors import ConfigError
from hpdval.files import digest, resolved
from hpdval.notebook_parameters import check_parameters, experiment_of, find_notebook, notebook_parameters
from hpdval.notebook_runner import PLACES, package_digest
from hpdval.sweep.grid import Grid, Question, text

WITH_STAGE1 = ("sequence", "separate", "stage1")  # the values of `stages` that train stage 1 by itself


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of the notebook: what it is given, and the run that makes the stage 1 both need, if there is one."""

    name: str  # of its folder
    seed: int
    values: Mapping[str, Any]
    needs: str | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All runs by name in the order in which they should start, and which of them answers what."""

    notebook: Path
    title: str
    seeds: tuple[int, ...]
    jobs: Mapping[str, Job]
    comparisons: Sequence[Mapping[str, Any]] = field(default_factory=tuple)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A setting with a seed, before it is known which job it is."""

    label: str
    default: bool  # whether the label is the recipe's own value
    method: str | None
    values: Mapping[str, Any]
    experiment: Experiment | None

    def identity(self, experiment: Experiment | None) -> str:
        """Equal for runs of equal content, however it was written; ``experiment`` is a form of the run's own."""
        known = {"seed", *PLACES} | ({"recipe", "overrides", *vars(self.experiment)} if self.experiment else set())
        others = {name: value for name, value in self.values.items() if name not in known}
        return digest(others, experiment.as_dict() if experiment else None)

    @property
    def content(self) -> str:
        """What tells it apart from other settings, whatever the seed."""
        return self.identity(replace(self.experiment, seed=0) if self.experiment else None)

    @property
    def stage1(self) -> str | None:
        """What tells its stage 1 apart, seed included, if it trains one by itself."""
        if self.experiment is None or self.experiment.stages not in WITH_STAGE1:
            return None
        return self.identity(self.experiment.relevant_to("stage1"))


def make_plan(
    notebook: str | os.PathLike[str],
    grid: Grid,
    *,
    seeds: int,
    parameters: Mapping[str, Any] | None = None,
    shared: str | os.PathLike[str] | None = None,
) -> Plan:
    """Return the runs that a grid asks for; every parameter is checked, nothing is started.

    Args:
        parameters: of all runs; they go before the grid's ``base``.
        shared: folder for what runs share, given to a notebook that has a parameter of this name.

    Raises:
        ConfigError: a parameter that the notebook or its recipe refuses, or a grid that does not fit them.
    """
    if seeds < 1:
        raise ConfigError(f"seeds is {seeds}; give at least 1, and 3 for numbers that are to be compared")
    source = find_notebook(notebook)
    base = _base(source, grid, parameters or {}, shared, seeds)
    answers = {
        (seed, question.name): _runs(source, question, base, seed)
        for seed in range(seeds)
        for question in grid.questions
    }
    planned = [run for runs in answers.values() for run in runs]
    whole: dict[str | None, _Run] = {}
    for run in planned:
        if run.experiment and run.experiment.stages == "sequence":
            whole.setdefault(run.stage1, run)
    jobs: dict[str, Job] = {}
    makers: dict[str, str] = {}  # stage 1 -> the first job that makes it
    cells: dict[str, dict[str, dict[str, Any]]] = {question.name: {} for question in grid.questions}
    for (seed, question), runs in answers.items():
        for run in runs:
            made_by = whole.get(run.stage1, run) if _is_stage1(run) else run  # stage 1 is a part of a whole run, too
            name = f"{made_by.content[:10]}-seed{seed}"
            maker = makers.setdefault(made_by.stage1, name) if made_by.stage1 else name
            values = {**made_by.values, "seed": seed} if "seed" in notebook_parameters(source) else made_by.values
            jobs.setdefault(name, Job(name=name, seed=seed, values=values, needs=None if maker == name else maker))
            method = run.method or ("stage 1" if made_by is not run else None)
            new = {"label": run.label, "default": run.default, "method": method, "runs": {}}
            cells[question].setdefault(run.label, new)["runs"][str(seed)] = name
    comparisons = [_comparison(question, [*cells[question.name].values()]) for question in grid.questions]
    return Plan(notebook=source, title=grid.title, seeds=tuple(range(seeds)), jobs=jobs, comparisons=tuple(comparisons))


def _base(
    source: Path, grid: Grid, parameters: Mapping[str, Any], shared: str | os.PathLike[str] | None, seeds: int
) -> dict[str, Any]:
    known, base = notebook_parameters(source), {**grid.base, **parameters}
    if "run_dir" not in known:
        raise ConfigError(f"{source.name} has no parameter run_dir; it needs one to be told where its results go")
    if seeds > 1 and "seed" not in known:
        raise ConfigError(f"{source.name} has no parameter seed; sweep it with --seeds 1")
    tried = {name for question in grid.questions for setting in question.settings for name in setting.parameters}
    if taken := {"seed", "run_dir", "shared"} & {*base, *tried}:
        raise ConfigError(f"{min(taken)} is set by the sweep itself; leave it out")
    if shared is not None and "shared" in known:  # what other code made is not shared
        base["shared"] = str(resolved(shared) / package_digest()[:8])
    return base


def _runs(source: Path, question: Question, base: Mapping[str, Any], seed: int) -> list[_Run]:
    """Return a run for each setting; one that says in other words what an earlier one says is left out."""
    known = notebook_parameters(source)
    found: dict[tuple[str, str | None], _Run] = {}
    for setting in question.settings:
        given = {**base, **setting.parameters, **({"seed": seed} if "seed" in known else {})}
        values = check_parameters(source, given)
        experiment = experiment_of(source, values)
        if experiment and setting.method not in (None, "zero-shot", *experiment.methods):
            trained = ", ".join(("zero-shot", *experiment.methods))
            raise ConfigError(f"comparison {question.name}: method is {setting.method!r}; its runs give {trained}")
        merged = {**known, **values}
        if setting.unless and all(text(_value(n, merged, experiment)) == text(v) for n, v in setting.unless.items()):
            continue
        own = ", ".join(text(_value(name, merged, experiment)) for name in setting.varied)
        label, default = setting.label or own, setting.label is None
        run = _Run(label=label, default=default, method=setting.method, values=values, experiment=experiment)
        found.setdefault((run.content, run.method), run)
    if not found:
        raise ConfigError(f"comparison {question.name} leaves out every setting")
    labels = [run.label for run in found.values()]
    if doubled := {label for label in labels if labels.count(label) > 1}:
        raise ConfigError(f"comparison {question.name} has several settings that read {min(doubled)!r}")
    return [*found.values()]


def _value(name: str, values: Mapping[str, Any], experiment: Experiment | None) -> Any:
    """What a parameter or a field of the recipe is; the notebook's empty parameters are the recipe's."""
    try:
        return attrgetter(name)(experiment) if experiment and values.get(name, "") == "" else values[name]
    except (AttributeError, KeyError):
        raise ConfigError(f"neither the notebook nor its recipe has {name!r}") from None


def _is_stage1(run: _Run) -> bool:
    return run.experiment is not None and run.experiment.stages == "stage1"


def _comparison(question: Question, cells: list[dict[str, Any]]) -> dict[str, Any]:
    labels = [cell["label"] for cell in cells]
    reference = question.reference or next((cell["label"] for cell in cells if cell["default"]), labels[0])
    cells = [{name: value for name, value in cell.items() if name != "default"} for cell in cells]
    if reference not in labels:
        raise ConfigError(f"comparison {question.name}: reference {reference!r} is none of {', '.join(labels)}")
    if question.axis:
        try:
            cells = sorted(({**cell, "value": float(cell["label"])} for cell in cells), key=lambda cell: cell["value"])
        except ValueError:
            raise ConfigError(f"comparison {question.name} has an axis; its values must be numbers") from None
    about = {"name": question.name, "title": question.title, "claim": question.claim, "axis": question.axis}
    return {**about, "reference": reference, "cells": cells}
