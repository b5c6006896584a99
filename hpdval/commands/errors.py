"""``hpdval errors``: what a finished run gets wrong, as a page with pictures."""

from __future__ import annotations

import argparse
from typing import Any

from hpdval.errors import ConfigError, RunError


def add_parser(commands: Any) -> None:
    """Add ``hpdval errors``."""
    errors = commands.add_parser(
        "errors", help="show what a finished run gets wrong: pictures, thresholds, calibration"
    )
    errors.add_argument("run", metavar="RUN", help="folder of a finished run")
    errors.add_argument("source", nargs="?", metavar="DATA", help="the data set, as for train (default: the one that "
        "the run recorded, with its options)")  # fmt: skip
    errors.add_argument("-o", "--out", required=True, metavar="DIR", help="folder of the page; an earlier one in it is "
        "replaced. It holds small copies of your pictures")  # fmt: skip
    errors.add_argument(
        "-d", "--data", action="append", default=[], metavar="NAME=VALUE", help="of the data set, as for train: "
        "-d root=photos -d test=test.csv",
    )  # fmt: skip
    errors.add_argument("-n", "--count", type=int, default=8, help="mistakes of each kind and class (default: "
        "%(default)s)")  # fmt: skip
    errors.add_argument("--resamples", type=int, default=500, help="of the intervals (default: %(default)s)")
    errors.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    errors.set_defaults(function=_errors)


def _errors(options: argparse.Namespace) -> None:
    from hpdval.launch import json_values
    from hpdval.records import read_checked, read_manifest

    manifest = read_manifest(options.run)  # says that it is not a finished run before torch is loaded
    data, config = json_values(options.data), manifest.get("config", {})
    recorded = {"source": config.get("dataset"), "val": config.get("val", 0.0), "val_seed": config.get("seed", 0)}
    if options.source:
        recorded["source"] = options.source
    elif "data.json" in manifest["files"]:
        recorded = read_checked(options.run, "data.json")
    if not recorded["source"]:
        raise RunError(f"{options.run} does not say which data set it was made with; name it: hpdval errors RUN DATA")
    if {"val", "val_seed"} & set(data):
        raise ConfigError("the validation part is the run's own, with its share and seed; leave val and val_seed out")

    from hpdval.data.load import load_dataset
    from hpdval.error_analysis import error_report

    dataset = load_dataset(**{**recorded, **data})
    print(
        error_report(
            options.run, dataset, options.out, n=options.count, resamples=options.resamples, device=options.device
        )
    )
