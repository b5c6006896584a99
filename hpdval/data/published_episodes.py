"""The published episodes of VOC2007 and COCO 2014, ten for 1 and ten for 5 shots, read from their files and checked.

Every file is pinned by its SHA-256 (``assets/fewshot.sha256``).  They come from the repository of HP-DVAL, those of
COCO once from LaSO's.  COCO's are pickles and are not loaded: their opcodes are read, and only those of whole numbers,
lists and dictionaries are understood.

Letters: K shots.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import pickletools
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hpdval.assets import asset_path
from hpdval.data.dataset import Dataset
from hpdval.data.episodes import Episode
from hpdval.data.fewshot import PROTOCOLS, novel_columns
from hpdval.errors import ConfigError, DataError

SHOTS, RUNS = (1, 5), range(1, 11)
COCO_TRAIN = 82_783  # images of train2014, which COCO's episodes count in the order of the json
_FOLDERS = ("", "idx", "idx/voc", "voc", "data_for_augmentation")  # where the two repositories have them


@dataclass(frozen=True)
class _Row:
    """One image of an episode: where it stands, its index in the training images, its labels by novel class."""

    where: str
    index: int
    labels: tuple[str, ...]


def read_episodes(folder: str | os.PathLike[str], dataset: Dataset, *, shots: int) -> tuple[Episode, ...]:
    """Return the ten published episodes for K shots, after checking that they are what they should be.

    Checked are the SHA-256 of each file; that every image is a training image, once, and has the labels listed for it;
    and the positives of each class: in VOC2007 exactly K, and no other novel label on any image; in COCO 2014 K or
    more, since its lists have up to 15 of a class that comes along with others.

    Args:
        folder: with ``voc_episodes.json`` or ``coco_episodes.json``, or with the files of HP-DVAL's ``idx`` as
            downloaded: ``classification_Train_novel_5shot_1.csv`` and its like, or ``5shotRun1UsedIndices.pkl`` and
            ``5shotRun1ClassIdxDict.pkl``.
        dataset: ``PROTOCOLS["voc2007"].load(root)`` or ``PROTOCOLS["coco2014"].load(root)``, over all classes.
        shots: K, 1 or 5.

    Raises:
        ConfigError: nothing was published for these shots or this data set.
        DataError: a file is missing or not the published one, or does not fit the data set; names file and line.
    """
    readers = {"voc2007": _read_voc, "coco2014": _read_coco}
    if dataset.name not in readers:
        raise ConfigError(f"no episodes were published for {dataset.name}; draw some with make_episodes")
    if shots not in SHOTS:
        raise ConfigError(f"shots is {shots!r}; published are 1 and 5, others come from make_episodes")
    where = Path(folder)
    if not os.path.isdir(where):
        raise DataError(f"{where} is not a folder; give the one with the published episodes")
    return tuple(readers[dataset.name](where, dataset, shots))


def read_episode(path: str | os.PathLike[str], dataset: Dataset, novel: Iterable[str], *, shots: int) -> Episode:
    """Return one episode of your own from a CSV in the form of VOC2007's: ``name`` and the novel classes, 0 or 1.

    A name is an id of the training images, or in VOC2007 the number of the image.

    Raises:
        DataError: names the file, the line and the value; or the class that has not K positives or more.
    """
    file = Path(path)
    classes = tuple(dataset.classes[i] for i in novel_columns(dataset, tuple(novel)))
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from None
    return _episode(file, _csv_rows(file, data, dataset, classes), dataset, classes, shots, file.stem, 1, exact=False)


def _read_voc(folder: Path, dataset: Dataset, shots: int) -> list[Episode]:
    classes = PROTOCOLS["voc2007"].novel
    found = []
    listed = _find(folder, "voc_episodes.json")
    entries = _json_runs(listed, shots) if listed else {}
    index = _index_of(dataset)
    for run in RUNS:
        if listed:
            rows = [
                _Row(where, _look_up(f"{image['id']}", index, where), tuple(classes[i] for i in image["labels"]))
                for image in entries[run]["images"]
                for where in (f"{listed}, {shots} shots, run {run}, image {image['id']}",)
            ]
            file = listed
        else:
            file = _need(folder, f"classification_Train_novel_{shots}shot_{run}.csv")
            rows = _csv_rows(file, _pinned(file), dataset, classes)
        name = f"voc2007-{shots}shot-{run}"
        found.append(_episode(file, rows, dataset, classes, shots, name, run, exact=True))
    return found


def _read_coco(folder: Path, dataset: Dataset, shots: int) -> list[Episode]:
    if len(dataset.train) != COCO_TRAIN:
        raise DataError(
            f"{dataset.name} has {len(dataset.train)} training images and the published episodes count {COCO_TRAIN}; "
            "load it without val and without on_error"
        )
    classes = PROTOCOLS["coco2014"].novel
    named = {column: dataset.classes[column] for column in novel_columns(dataset, classes).tolist()}
    found = []
    listed = _find(folder, "coco_episodes.json")
    entries = _json_runs(listed, shots) if listed else {}
    for run in RUNS:
        if listed:
            file, used = listed, entries[run]["used_indices"]
            by_class = {int(column): places for column, places in entries[run]["class_idx"].items()}
        else:
            file = _need(folder, f"{shots}shotRun{run}UsedIndices.pkl")
            used = _plain(file, _pinned(file))
            lists = _need(folder, f"{shots}shotRun{run}ClassIdxDict.pkl")
            by_class = _plain(lists, _pinned(lists))
        where = f"{file}, {shots} shots, run {run}"
        if set(by_class) != set(named) or set().union(*by_class.values()) != set(used):
            raise DataError(f"{where}: the lists of the classes and the list of images do not agree; fetch it again")
        rows = [
            _Row(f"{where}, position {place}", place, tuple(named[c] for c in named if place in by_class[c]))
            for place in used
        ]
        name = f"coco2014-{shots}shot-{run}"
        found.append(_episode(file, rows, dataset, classes, shots, name, run, exact=False))
    return found


def _episode(
    file: Path,
    rows: list[_Row],
    dataset: Dataset,
    classes: tuple[str, ...],
    shots: int,
    name: str,
    run: int,
    *,
    exact: bool,
) -> Episode:
    """Return the episode of ``rows``; ``exact``: K positives and no more, and no novel label that is not listed."""
    column = {one: dataset.classes.index(one) for one in classes}
    seen: dict[int, str] = {}
    targets = np.zeros((len(rows), len(classes)), np.uint8)
    for i, row in enumerate(rows):
        image = dataset.train.ids[row.index]
        if row.index in seen:
            raise DataError(f"{row.where}: {image} is listed twice (first in {seen[row.index]}); give each image once")
        seen[row.index] = row.where
        if not row.labels:
            raise DataError(f"{row.where}: {image} has no novel label; leave it out")
        labelled = {one for one in classes if dataset.train.targets[row.index, column[one]]}
        odd = set(row.labels) - labelled or (labelled - set(row.labels) if exact else set())
        if odd:
            what = "lists" if odd <= set(row.labels) else "does not list"
            options = PROTOCOLS[dataset.name].options.items() if dataset.name in PROTOCOLS else ()
            remedy = ", ".join(f"{option}={value}" for option, value in options) or "the labels it was made with"
            raise DataError(
                f"{row.where}: {what} {min(odd)} for {image}, unlike {dataset.name}; load that with {remedy}"
            )
        targets[i, [classes.index(one) for one in row.labels]] = 1
    for one, count in zip(classes, targets.sum(0, dtype=np.int64), strict=True):
        if count < shots or (exact and count > shots):
            raise DataError(
                f"{file}: run {run} has {count} positives of {one} for shots={shots}; fetch or mend the file"
            )
    return Episode(
        name=name,
        shots=shots,
        number=run,
        seed=None,
        classes=classes,
        ids=tuple(dataset.train.ids[row.index] for row in rows),
        indices=np.array([row.index for row in rows], np.int64),
        targets=targets,
    )


def _csv_rows(path: Path, data: bytes, dataset: Dataset, classes: tuple[str, ...]) -> list[_Row]:
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from None
    reader = csv.reader(lines, strict=True)
    index = _index_of(dataset)
    rows = []
    header = ["name", *classes]
    try:
        if next(reader, []) != header:
            raise DataError(f"{path}, line 1: the columns must be {','.join(header)}")
        for cells in filter(None, reader):
            where = f"{path}, line {reader.line_num}"
            if len(cells) != len(header) or not set(cells[1:]) <= {"0", "1"}:
                raise DataError(f"{where}: {','.join(cells)[:80]} is not a name and {len(classes)} times 0 or 1")
            labels = tuple(one for one, cell in zip(classes, cells[1:], strict=True) if cell == "1")
            rows.append(_Row(where, _look_up(cells[0], index, where), labels))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not valid CSV: {error}") from None
    return rows


def _index_of(dataset: Dataset) -> dict[str, int]:
    return {name: i for i, name in enumerate(dataset.train.ids)}


def _look_up(name: str, index: dict[str, int], where: str) -> int:
    number = f"VOC2007/JPEGImages/{name:0>6}.jpg" if name.isascii() and name.isdigit() else name
    for known in (name, number):
        if known in index:
            return index[known]
    raise DataError(f"{where}: {name[:80]} is not a training image of the data set; load the whole set, without val")


@cache
def _pins() -> dict[str, str]:
    lines = asset_path("fewshot.sha256").read_text(encoding="ascii").splitlines()
    return {name: sha256 for sha256, _, name in (line.partition("  ") for line in lines)}


def _pinned(path: Path) -> bytes:
    """Return the content of a published file, if it is that."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    found, wanted = hashlib.sha256(data).hexdigest(), _pins()[path.name]
    if found != wanted:
        raise DataError(f"{path} is not the published file: its sha256 is {found}, not {wanted}; fetch it again")
    return data


def _find(folder: Path, name: str) -> Path | None:
    return next((path for inner in _FOLDERS if (path := folder / inner / name).is_file()), None)


def _need(folder: Path, name: str) -> Path:
    path = _find(folder, name)
    if path is None:
        raise DataError(f"{name} is not in {folder}; give the folder of the published episodes (docs/few-shot.md)")
    return path


def _json_runs(path: Path, shots: int) -> dict[int, dict[str, Any]]:
    entries = json.loads(_pinned(path))["episodes"]
    return {entry["run"]: entry for entry in entries if entry["shots"] == shots}


def _plain(path: Path, data: bytes) -> Any:
    """Return the numbers, lists and dictionaries of a pickle from its opcodes; any other opcode is refused."""
    stack: list[Any] = []
    marks: list[int] = []
    for opcode, argument, position in pickletools.genops(data):
        if opcode.name in ("BININT", "BININT1", "BININT2"):
            stack.append(argument)
        elif opcode.name in ("EMPTY_LIST", "EMPTY_DICT"):
            stack.append([] if opcode.name == "EMPTY_LIST" else {})
        elif opcode.name == "MARK":
            marks.append(len(stack))
        elif opcode.name == "APPEND":
            value = stack.pop()
            stack[-1].append(value)
        elif opcode.name in ("APPENDS", "SETITEMS"):
            start = marks.pop()
            values, stack = stack[start:], stack[:start]
            if opcode.name == "APPENDS":
                stack[-1].extend(values)
            else:
                stack[-1].update(zip(values[::2], values[1::2], strict=True))
        elif opcode.name not in ("PROTO", "FRAME", "MEMOIZE", "STOP"):
            raise DataError(f"{path}: opcode {opcode.name} at byte {position} is none of a plain list; fetch it again")
    return stack.pop()
