"""``hpdval train``: all stages of a recipe, in one process or in several."""

from __future__ import annotations

import argparse
import os
from typing import Any

from hpdval.overrides import named_values


def add_parser(commands: Any) -> None:
    """Add ``hpdval train``."""
    train = commands.add_parser("train", help="run all stages of a recipe without a notebook; alone or under torchrun")
    train.add_argument("source", metavar="DATA", help="scenes-lt, a CSV, COCO json, list or VOC devkit")
    train.add_argument("--recipe", default="scenes", help="(default: %(default)s)")
    train.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="of the recipe")
    train.add_argument(
        "-d", "--data", action="append", default=[], metavar="NAME=VALUE", help="of the data set: -d root=photos "
        "-d test=test.csv -d 'classes=[\"cat\", \"dog\"]'",
    )  # fmt: skip
    train.add_argument("--out", required=True, help="folder below which the runs are made")
    train.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    train.add_argument("--processes", type=int, help="so many on this machine, by torchrun: one for each GPU")
    train.set_defaults(function=_train)


def _train(options: argparse.Namespace) -> None:
    from hpdval.launch import json_values, launch_training, train_source

    asked = {"overrides": named_values(options.parameter), "data": json_values(options.data), "device": options.device}
    if options.processes is None:
        from torch.distributed.elastic.multiprocessing.errors import record  # tells torchrun what went wrong

        runs = record(train_source)(options.source, options.recipe, run=options.out, **asked) or {}
    else:
        runs = launch_training(options.source, options.recipe, run=options.out, processes=options.processes, **asked)
    if os.environ.get("RANK", "0") == "0":
        for method, folder in runs.items():
            print(f"{method}: {folder}")
