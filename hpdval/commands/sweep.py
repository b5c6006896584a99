"""``hpdval sweep``: its arguments and what it does."""

from __future__ import annotations

import argparse
import os
import shlex
from typing import Any

from hpdval.errors import ConfigError
from hpdval.overrides import named_values
from hpdval.sweep.cluster import MEMORY_GIB


def add_parser(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser("sweep", help="run a notebook over a grid of settings and seeds, in parallel")
    parser.add_argument(
        "notebook", metavar="NOTEBOOK", help="a path, or a number or name of this project's, such as 05"
    )
    parser.add_argument("--grid", required=True, help="a YAML file, or a grid of this project: ablations")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="a comparison of the grid; again "
        "for more (default: all)")  # fmt: skip
    parser.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="as for run; "
        "goes before the grid's base")  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on (default: %(default)s)")
    parser.add_argument("--out", help="folder of the runs (default: runs/sweep-GRID); finished ones are skipped")
    parser.add_argument("--report", help="folder to write a report into when all runs are done")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="a running dask scheduler, tcp://host:port, whose "
        "workers see the same files (default: workers on this machine)")  # fmt: skip
    parser.add_argument("--workers", type=int, help="on this machine (default: one for each GPU, or as many as cores "
        "and memory allow)")  # fmt: skip
    parser.add_argument(
        "--memory", type=float, default=MEMORY_GIB, help="GiB that one run needs (default: %(default)s)"
    )
    parser.add_argument("--retries", type=int, default=3, help="how often a run may lose its worker (default: "
        "%(default)s)")  # fmt: skip
    parser.add_argument("--timeout", type=float, help="stop a run after so many seconds")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done")
    parser.set_defaults(function=_sweep)


def _sweep(options: argparse.Namespace) -> None:
    from pathlib import Path

    from hpdval.sweep.execute import sweep

    if options.scheduler and options.workers is not None:
        raise ConfigError("--workers is for this machine; those of --scheduler are started where it runs")
    for name, low in (("workers", 1), ("retries", 0)):
        value = getattr(options, name)
        if value is not None and value < low:
            raise ConfigError(f"--{name} is {value}; it must be at least {low}")
    for name in ("memory", "timeout"):  # GiB and seconds
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise ConfigError(f"--{name} is {value:g}; it must be more than 0")
    out = options.out or f"runs/sweep-{Path(options.grid).stem}"
    words = ["hpdval", "sweep", options.notebook, "--grid", options.grid]
    words += [word for name in options.only for word in ("--only", name)]
    words += [word for text in options.parameter for word in ("-p", text)]
    words += ["--seeds", str(options.seeds), "--out", out]
    words += ["--report", options.report] if options.report else []
    folder = sweep(
        options.notebook,
        options.grid,
        seeds=options.seeds,
        out=out,
        parameters=named_values(options.parameter),
        only=tuple(options.only),
        scheduler=options.scheduler,
        workers=options.workers,
        retries=options.retries,
        memory=options.memory,
        timeout=options.timeout,
        command=shlex.join(words),
        dry_run=options.dry_run,
    )
    if options.report and not options.dry_run:
        from hpdval.report import build_report

        print(build_report([folder], options.report, processes=min(os.cpu_count() or 1, 8)))
