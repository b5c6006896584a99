"""``hpdval demo``, ``hpdval run`` and ``hpdval study``: what executes notebooks one after another."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from hpdval.errors import ConfigError
from hpdval.overrides import named_values


def add_parser(commands: Any) -> None:
    """Add the three commands."""
    demo = commands.add_parser("demo", help="run notebooks 01 to 04 on the embedded data set and print one table")
    demo.add_argument("--out", default="runs/demo", help="folder of the runs (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="seed of both stages (default: %(default)s)")
    demo.add_argument("--force", action="store_true", help="run again what is already done")
    demo.set_defaults(function=_demo)

    run = commands.add_parser("run", help="run one notebook with parameters that are checked first")
    run.add_argument("notebook", metavar="NOTEBOOK", help="a path, or a number or name of this project's, such as 03")
    run.add_argument(
        "-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="may be given many times; dotted "
        "names go to the recipe: -p stage1.lr=1e-4",
    )  # fmt: skip
    run.add_argument("--out", help="run folder (default: runs/<notebook>-<key>)")
    run.add_argument("--timeout", type=float, help="stop after so many seconds")
    run.add_argument("--force", action="store_true", help="run again, and replace what the folder holds")
    run.set_defaults(function=_run)

    study = commands.add_parser("study", help="run notebooks 01 to 04 with several seeds and write a report")
    study.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="as for run")
    study.add_argument("--seeds", type=int, default=3, help="how many, from 0 on (default: %(default)s)")
    study.add_argument("--out", required=True, help="folder of the runs; what is finished there is skipped")
    study.add_argument("--report", help="path without suffix of the report (default: OUT/report)")
    study.add_argument("--force", action="store_true", help="run again what is already done")
    study.set_defaults(function=_study)


def _demo(options: argparse.Namespace) -> None:
    from hpdval.study import demo

    demo(options.out, seed=options.seed, force=options.force)


def _run(options: argparse.Namespace) -> None:
    from hpdval.notebook_runner import run_notebook

    parameters = named_values(options.parameter)
    if options.timeout is not None and not options.timeout > 0:
        raise ConfigError(f"--timeout is {options.timeout:g}; it must be more than 0 seconds")
    print(run_notebook(options.notebook, parameters, options.out, timeout=options.timeout, force=options.force))


def _study(options: argparse.Namespace) -> None:
    from hpdval.study import study

    words = ["hpdval", "study", *(word for text in options.parameter for word in ("-p", text))]
    words += ["--seeds", str(options.seeds), "--out", options.out]
    words += ["--report", options.report] if options.report else []
    study(
        named_values(options.parameter),
        seeds=options.seeds,
        out=options.out,
        report=options.report,
        command=shlex.join(words),
        force=options.force,
    )
