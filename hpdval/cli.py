"""The command line, ``hpdval``; each command imports what it needs, so help is instant."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

import hpdval
from hpdval.commands import joined, runs
from hpdval.errors import ConfigError, DataError, HpdvalError
from hpdval.overrides import named_values
from hpdval.sweep.command import add_sweep

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}

DATA_SETS = ("voc-lt", "coco-lt", "voc2007", "coco2014")  # the names of the catalogue, which is not loaded for help


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; each names the function that carries it out."""
    parser = argparse.ArgumentParser(
        prog="hpdval", description="Class-imbalanced multi-label classification with CLIP."
    )
    parser.add_argument("--version", action="version", version=f"hpdval {hpdval.__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

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

    add_sweep(commands)

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

    predict = commands.add_parser("predict", help="score images with a finished run, as CSV")
    predict.add_argument("run", metavar="RUN", help="folder of a finished run")
    predict.add_argument("images", nargs="+", metavar="IMAGES", help="image files, or folders of them")
    predict.add_argument("-o", "--output", help="CSV to write (default: standard output)")
    predict.add_argument("--top", type=int, metavar="N", help="only the N best classes of each image")
    predict.add_argument("--threshold", type=float, metavar="T", help="only scores of at least T")
    predict.add_argument("--labels", action="store_true", help="columns path,labels instead of path,class,score")
    predict.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    predict.set_defaults(function=_predict)

    runs.add_parser(commands)
    _add_data(commands)

    doctor = commands.add_parser("doctor", help="what is installed, which device and caches, what is missing")
    doctor.set_defaults(function=_doctor)
    return parser


def _add_data(commands: Any) -> None:
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; an error on purpose is one line on standard error and exit code 2."""
    options = build_parser().parse_args(joined(sys.argv[1:] if arguments is None else arguments))
    try:
        options.function(options)
        return 0
    except HpdvalError as error:
        if options.debug:
            raise
        print(f"hpdval: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a folder that cannot be made, a disk that is full: nothing to debug
        if options.debug:
            raise
        print(f"hpdval: {error.filename or 'system error'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hpdval: interrupted; the same command continues", file=sys.stderr)
        return 130


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


def _predict(options: argparse.Namespace) -> None:
    if options.top is not None and options.top < 1:
        raise ConfigError(f"--top is {options.top}; it must be at least 1")
    if options.labels and options.top is None and options.threshold is None:
        raise ConfigError("--labels needs --top N or --threshold T to say which classes count as labels")
    paths = image_files(options.images)

    from hpdval.files import atomic_write
    from hpdval.run import read_manifest

    read_manifest(options.run)  # says that it is not a finished run before torch is loaded
    from hpdval.scoring import load_run

    scorer = load_run(options.run, device=options.device)
    scores = scorer.score_images(paths, show=False)
    with atomic_write(options.output, "w") if options.output else nullcontext(sys.stdout) as file:
        write_scores(file, paths, scorer.classes, scores, options.top, options.threshold, options.labels)


def image_files(names: Sequence[str]) -> list[str]:
    """Return files as given, and the pictures below folders in sorted order.

    Raises:
        DataError: a name does not exist, or a folder holds no picture.
    """
    found: list[str] = []
    for name in names:
        if os.path.isdir(name):
            inside = [os.path.join(folder, file) for folder, _, files in os.walk(name) for file in files]
            pictures = sorted(path for path in inside if os.path.splitext(path)[1].lower() in PICTURES)
            if not pictures:
                raise DataError(f"{name} holds no picture ({' '.join(sorted(PICTURES))})")
            found += pictures
        elif os.path.exists(name):
            found.append(name)
        else:
            raise DataError(f"{name} does not exist; give image files or folders of them")
    return found


def write_scores(
    file: IO[str],
    paths: Sequence[str],
    classes: Sequence[str],
    scores: Iterable[Iterable[float]],
    top: int | None = None,
    threshold: float | None = None,
    labels: bool = False,
) -> None:
    """Write scores (N, C) as CSV, best class first: ``path,class,score``, or ``path,labels`` joined by ``;``.

    >>> write_scores(sys.stdout, ["a.jpg"], ["cat", "dog"], [[0.1, 0.25]], top=1)
    path,class,score
    a.jpg,dog,0.25
    """
    import csv

    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["path", "labels"] if labels else ["path", "class", "score"])
    for path, row in zip(paths, scores, strict=True):
        best = sorted(zip(map(float, row), classes, strict=True), key=lambda pair: -pair[0])[:top]
        kept = [(score, name) for score, name in best if threshold is None or score >= threshold]
        if labels:
            writer.writerow([path, ";".join(name for _, name in kept)])
        else:
            writer.writerows([path, name, f"{score:.7g}"] for score, name in kept)


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


def _doctor(options: argparse.Namespace) -> None:
    from hpdval.doctor import examine

    print(examine())


if __name__ == "__main__":
    sys.exit(main())
