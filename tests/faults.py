"""Faults that tests inject for real, counted by the test run itself; ``make faults`` writes reports/reliability.md.

A test asks for the fixture ``faults`` and puts every injection, with the checks that follow, into ``faults.injected``.
An injection whose block raises (a failed assertion included) stands in the table as lost or wrong.
"""

from __future__ import annotations

import datetime
import json
import platform
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hpdval.files import atomic_write

PROPERTY = "fault"


@dataclass
class Injection:
    """One entry of the table: a fault, where it struck, how often, and what came of it."""

    fault: str
    where: str
    outcome: str
    times: int = 1
    held: bool = False


class Faults:
    """What one test injects; ``properties`` travel with its report, also from another process."""

    def __init__(self, properties: list[tuple[str, object]]) -> None:
        self._properties = properties

    @contextmanager
    def injected(self, fault: str, where: str, outcome: str, times: int = 1) -> Iterator[Injection]:
        """Count ``times`` injections of ``fault``; the block checks ``outcome``, or sets it where several are right."""
        entry = Injection(fault, where, outcome, times)
        try:
            yield entry
            entry.held = True
        finally:
            self._properties.append((PROPERTY, json.dumps(vars(entry))))

    def measured(self, what: str, value: str) -> None:
        """Put a figure under the table: memory, file handles, seconds."""
        self._properties.append(("measured", json.dumps([what, value])))


@pytest.fixture
def faults(request: pytest.FixtureRequest) -> Faults:
    """The counter of this test's injections."""
    return Faults(request.node.user_properties)


@dataclass(eq=False)  # pytest keeps plugins in sets
class Table:
    """Collects the injections of all tests, from all processes, and writes the page where one was asked for."""

    path: str | None
    began: float = field(default_factory=time.time)
    entries: list[Injection] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)
    tests: dict[str, str] = field(default_factory=dict)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take what a test's report carries."""
        if report.when == "call" or not report.passed:
            self.tests[report.nodeid] = report.outcome
        if report.when != "call":
            return
        for name, value in report.user_properties:
            if name == PROPERTY:
                self.entries.append(Injection(**json.loads(str(value))))
            elif name == "measured":
                what, figure = json.loads(str(value))
                self.figures[what] = figure

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say in one line what was injected, and write the page."""
        if not self.entries:
            return
        total = sum(entry.times for entry in self.entries)
        lost = sum(entry.times for entry in self.entries if not entry.held)
        terminalreporter.write_line(f"faults injected: {total:,}; lost or wrong results: {lost:,}")
        if self.path:
            with atomic_write(self.path, "w") as file:
                file.write(self.page())
            terminalreporter.write_line(f"written: {self.path}")

    def page(self) -> str:
        """Return the page as Markdown."""
        import torch

        from hpdval.provenance import code_state, hardware

        groups: dict[tuple[str, str, str], list[Injection]] = defaultdict(list)
        for entry in self.entries:
            groups[entry.fault, entry.where, entry.outcome].append(entry)
        rows = [
            (*key, sum(e.times for e in found), sum(e.times for e in found if not e.held))
            for key, found in sorted(groups.items())
        ]
        total, lost = sum(row[3] for row in rows), sum(row[4] for row in rows)
        outcomes = list(self.tests.values())
        counts = ", ".join(f"{outcomes.count(name)} {name}" for name in ("passed", "failed", "skipped"))
        code, today = code_state(), datetime.datetime.now(datetime.UTC).date().isoformat()
        commit = f"{code['commit'] or 'none'}{' with changes' if code['dirty'] else ''}"
        machine = ", ".join(f"{name} {value}" for name, value in hardware().items() if value)
        lines = [
            "# Faults, injected for real",
            "",
            "Written by the tests themselves (`make faults`). A row counts how often a fault was injected; a test that",
            "fails after an injection counts it as lost or wrong. Which test holds which promise is a page of its own,",
            "[what must never break](../docs/reliability.md).",
            "",
            f"{today}, commit {commit}; Python {platform.python_version()}, torch {torch.__version__}; {machine}.",
            f"Tests: {counts}, in {(time.time() - self.began) / 60:.0f} minutes.",
            "",
            f"**{total:,} faults injected, {lost:,} lost or wrong results.**",
            "",
            "| fault | where | outcome | times | lost or wrong |",
            "|---|---|---|---:|---:|",
            *(f"| {fault} | {where} | {outcome} | {times:,} | {bad:,} |" for fault, where, outcome, times, bad in rows),
        ]
        if self.figures:
            lines += ["", "| measured | |", "|---|---|", *(f"| {k} | {v} |" for k, v in sorted(self.figures.items()))]
        return "\n".join(lines) + "\n"


def install(config: pytest.Config) -> None:
    """Register the table in the process that hears of all tests."""
    if not hasattr(config, "workerinput"):
        path = config.getoption("--fault-table")
        config.pluginmanager.register(Table(str(Path(path).absolute()) if path else None), "fault-table")
