"""What every benchmark shares: options, alternating measurements, peak memory, the hardware line, and the report.

A benchmark is a module here with a ``main``: it takes ``--quick`` and ``--out``, and writes ``OUT/NAME.md``.  What is
compared is measured in one run in alternating order, because a ratio of two runs on a busy machine says little.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import math
import os
import platform
import re
import resource
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

import hpdval
from hpdval.files import atomic_write
from hpdval.tables.show import to_markdown

MIB = 2**20
REPORTS = Path(__file__).resolve().parent.parent / "reports" / "benchmarks"


def load() -> str:
    """Return the load averages of the last 1, 5 and 15 minutes."""
    return ", ".join(f"{value:.1f}" for value in os.getloadavg())


LOAD_BEFORE = load()


def options(description: str, arguments: Sequence[str] | None = None, *, repeats: int = 5) -> argparse.Namespace:
    """Return ``quick``, ``repeats`` and ``out``, which every benchmark takes, and as ``words`` what was given."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke test of seconds; its numbers mean nothing")
    parser.add_argument("--repeats", type=int, default=repeats, help="measurements of each case (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=REPORTS, help="folder of the report (default: reports/benchmarks)")
    chosen = parser.parse_args(arguments)
    chosen.words = list(sys.argv[1:] if arguments is None else arguments)
    chosen.repeats = 2 if chosen.quick else max(1, chosen.repeats)
    return chosen


@dataclass
class Times:
    """Seconds of each repeat: by the clock, and of this process and its finished children on a core."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def cpu_seconds() -> float:
    """Return the CPU time of this process and its finished children; a busy machine hardly changes it."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def alternate(cases: Mapping[str, Callable[[], Any]], *, repeats: int, warm_up: int = 1) -> dict[str, Times]:
    """Return the times of every case: all once, then all in reverse order, and so on, after a warm-up."""
    for _ in range(warm_up):
        for run in cases.values():
            run()
    times = {name: Times() for name in cases}
    for repeat in range(repeats):
        for name in list(cases) if repeat % 2 == 0 else list(cases)[::-1]:
            wall, cpu = time.perf_counter(), cpu_seconds()
            cases[name]()
            times[name].cpu.append(cpu_seconds() - cpu)
            times[name].wall.append(time.perf_counter() - wall)
    return times


class Ratio(NamedTuple):
    """A ratio of two medians, and the least and largest ratio of a single repeat."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio(slow: Sequence[float], fast: Sequence[float]) -> Ratio:
    """Return how many times longer ``slow`` took than ``fast``, measured alternately."""
    each = [a / b for a, b in zip(slow, fast, strict=True)]
    return Ratio(median(slow) / median(fast), min(each), max(each))


def spread(seconds: Sequence[float], unit: str = "ms", digits: int = 1) -> str:
    """Return "median (least to largest)" in ms or s.

    >>> spread([0.002, 0.001, 0.004])
    '2.0 (1.0 to 4.0)'
    """
    factor = {"s": 1.0, "ms": 1e3}[unit]
    return "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(
        *(factor * value for value in (median(seconds), min(seconds), max(seconds))), d=digits
    )


def resident(what: str = "VmRSS") -> float:
    """Return this process's memory in MiB: ``VmRSS`` now, ``VmHWM`` its peak; NaN where there is no /proc."""
    try:
        found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) / 1024 if found else math.nan
    except OSError:
        return math.nan


def peak_memory(run: Callable[[], Any]) -> float:
    """Return how far memory rose above what it was while ``run`` ran, in MiB; NaN where Linux does not tell.

    Not ``ru_maxrss``: that cannot be reset, and a child process begins with its parent's.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that glibc keeps would hide what is taken now
        before = resident()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    except (OSError, AttributeError):
        return math.nan
    kept = run()
    peak = resident("VmHWM")
    del kept
    return peak - before


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return b of values = a * sizes^b, by least squares in logarithms; NaN where a value is not positive.

    >>> round(exponent([1, 2, 4], [3, 12, 48]), 6)
    2.0
    """
    if not all(value > 0 for value in values):
        return math.nan
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def hardware() -> str:
    """Return processor, cores, threads, bfloat16 instructions, load before and after, GPU and versions, in one line."""
    torch = sys.modules.get("torch")
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    model = re.search(r"model name\s*:\s*(.+)", text)
    bf16 = sorted(set(re.findall(r"\b(?:avx512_bf16|amx_bf16|avx_ne_convert|bf16)\b", text)))
    cuda = torch is not None and torch.cuda.is_available()
    threads = torch.get_num_threads() if torch else os.environ.get("OMP_NUM_THREADS", "all")
    parts = [
        model[1] if model else platform.processor() or platform.machine(),
        f"{os.cpu_count()} cores, {threads} used by torch",
        f"bfloat16 instructions: {' '.join(bf16) or 'none'}",
        f"load average {LOAD_BEFORE} before, {load()} after",
        f"GPU: {torch.cuda.get_device_name(0) if torch and cuda else 'none used'}",
        f"Python {platform.python_version()}, torch {metadata.version('torch')}, numpy {np.__version__}",
    ]
    return "; ".join(parts)


def write_report(
    name: str,
    chosen: argparse.Namespace,
    *,
    title: str,
    compared: str,
    tables: Mapping[str, pd.DataFrame],
    notes: Sequence[str] = (),
    figure: bool = False,
) -> Path:
    """Write ``OUT/NAME.md``: what was compared, tables by heading, notes, command, hardware and date.

    Args:
        chosen: what :func:`options` returned.
        figure: ``OUT/NAME.png`` is there to be shown.
    """
    words = [word for word in chosen.words if not word.startswith("--out") and word != str(chosen.out)]
    sections = [f"# {title}", compared]
    if chosen.quick:
        sections.append("**Quick mode: a smoke test; these numbers mean nothing.**")
    if figure:
        sections.append(f"![{title}]({name}.png)")
    for heading, table in tables.items():
        sections += [f"## {heading}", to_markdown(table)]
    facts = [
        *notes,
        f"Command: `make bench ARGS={shlex.quote(' '.join([name, *words]))}`",
        f"Hardware: {hardware()}",
        f"Date: {date.today().isoformat()}, hpdval {hpdval.__version__}",
    ]
    sections.append("\n".join(f"- {fact}" for fact in facts))
    path = chosen.out / f"{name}.md"
    with atomic_write(path, "w") as file:
        file.write("\n\n".join(sections) + "\n")
    print(f"{name}: {path}")
    return path
