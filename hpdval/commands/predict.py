"""``hpdval predict``: score images with a finished run."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import IO, Any

from hpdval.errors import ConfigError, DataError

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


def add_parser(commands: Any) -> None:
    """Add ``hpdval predict``."""
    predict = commands.add_parser("predict", help="score images with a finished run, as CSV")
    predict.add_argument("run", metavar="RUN", help="folder of a finished run")
    predict.add_argument("images", nargs="+", metavar="IMAGES", help="image files, or folders of them")
    predict.add_argument("-o", "--output", help="CSV to write (default: standard output)")
    predict.add_argument("--top", type=int, metavar="N", help="only the N best classes of each image")
    predict.add_argument("--threshold", type=float, metavar="T", help="only scores of at least T")
    predict.add_argument("--labels", action="store_true", help="columns path,labels instead of path,class,score")
    predict.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    predict.set_defaults(function=_predict)


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
