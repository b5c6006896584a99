"""``hpdval data prepare`` and ``hpdval data verify``: published data sets."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hpdval.errors import DataError

DATA_SETS = ("voc-lt", "coco-lt", "voc2007", "coco2014")  # the names of the catalogue, which is not loaded for help


def add_parser(commands: Any) -> None:
    """Add ``hpdval data prepare`` and ``hpdval data verify``."""
    data = commands.add_parser("data", help="bring a published data set into a folder, or check one")
    actions = data.add_subparsers(title="actions", required=True, metavar="ACTION")
    prepare = actions.add_parser(
        "prepare",
        help="download and extract what is missing, then verify",
        description="Download, extract and verify a published data set. Sizes are said first; what is there is "
        "skipped, and what was interrupted continues.",
    )
    verify = actions.add_parser("verify", help="check lists, counts, labels and images of a prepared folder")
    for action, function in ((prepare, _data_prepare), (verify, _data_verify)):
        action.add_argument("name", metavar="NAME", choices=DATA_SETS, help=", ".join(DATA_SETS))
        action.add_argument("--root", required=True, metavar="DIR", help="folder of the data set")
        action.add_argument(
            "--decode",
            action="store_true",
            help="when verifying, decode every image and compare its content with ROOT/NAME.sha256 (minutes)",
        )
        action.set_defaults(function=function)
    prepare.add_argument("--from", dest="source", metavar="DIR", help="download nothing: take archives, lists or "
        "extracted folders from anywhere below DIR (linked where possible)")  # fmt: skip
    prepare.add_argument("--all", action="store_true", help="extract whole archives, not only what the set needs")
    prepare.add_argument("--keep-archives", action="store_true", help="keep downloaded archives in ROOT/downloads; "
        "by default each is removed once it is extracted")  # fmt: skip
    verify.add_argument("--lists-only", action="store_true", help="lists and labels, without the images")


def _data_prepare(options: argparse.Namespace) -> None:
    from hpdval.data.prepare.catalogue import CATALOGUE
    from hpdval.data.prepare.steps import prepare
    from hpdval.data.prepare.verify import verify

    known, root = CATALOGUE[options.name], Path(options.root)
    source = Path(options.source) if options.source else None
    report = prepare(known, root, source=source, everything=options.all, keep_archives=options.keep_archives)
    if options.decode and report.ok:
        report = verify(known, root, decoded=True)
    print(report)
    report.check()
    print(f'ready: hpdval.load_dataset("{options.name}", root="{root}")')


def _data_verify(options: argparse.Namespace) -> None:
    from hpdval.data.prepare.catalogue import CATALOGUE
    from hpdval.data.prepare.verify import verify

    known, root = CATALOGUE[options.name], Path(options.root)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; run: hpdval data prepare {options.name} --root {root}")
    report = verify(known, root, images=not options.lists_only, decoded=options.decode)
    print(report)
    report.check()
