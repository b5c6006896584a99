"""``hpdval stop``: ask a training to save and stop, wherever it runs."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(commands: Any) -> None:
    """Add ``hpdval stop``."""
    stop = commands.add_parser("stop", help="ask a training to save and stop; the same command continues it")
    stop.add_argument("run", metavar="RUN", help="its folder, or at least 6 characters of a run's key")
    stop.add_argument("--root", default="runs", help="folder below which a key is looked for (default: %(default)s)")
    stop.set_defaults(function=_stop)


def _stop(options: argparse.Namespace) -> None:
    from hpdval.detached import stop_training

    for folder in stop_training(options.run, options.root):
        print(f"asked to stop: {folder}")
