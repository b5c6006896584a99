"""``hpdval report``: its arguments, and what they start."""

from __future__ import annotations

import argparse
import os
from typing import Any


def add_parser(commands: Any) -> None:
    """Add ``hpdval report``."""
    report = commands.add_parser(
        "report", help="write tables, figures and a page from the predictions of finished runs"
    )
    report.add_argument(
        "sources", nargs="+", metavar="RUNS", help="folders of sweeps, of finished runs, or of notebooks that made runs"
    )
    report.add_argument("-o", "--out", required=True, metavar="DIR", help="folder of the report; an earlier report in "
        "it is replaced")  # fmt: skip
    report.add_argument("--title", default="", help="(default: the title of the sweep)")
    report.add_argument("--resamples", type=int, default=2000, help="of the bootstrap (default: %(default)s)")
    report.add_argument("--permutations", type=int, default=2000, help="of the test (default: %(default)s)")
    report.add_argument("--figures", default="pdf,svg,png", help="formats, separated by commas (default: %(default)s)")
    report.set_defaults(function=_report)


def _report(options: argparse.Namespace) -> None:
    from hpdval.report.build import build_report

    print(
        build_report(
            options.sources,
            options.out,
            title=options.title,
            resamples=options.resamples,
            permutations=options.permutations,
            figures=options.figures.split(","),
            processes=min(os.cpu_count() or 1, 8),
        )
    )
