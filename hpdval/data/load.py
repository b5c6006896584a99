"""``load_dataset``: one call for every source; what differs between sources is in one module each."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hpdval.data.coco import load_coco
from hpdval.data.csv_source import load_csv
from hpdval.data.dataset import Dataset, Split
from hpdval.data.lists import load_lists
from hpdval.data.prepare.catalogue import CATALOGUE
from hpdval.data.splits import carve_validation
from hpdval.data.voc import load_voc
from hpdval.errors import ConfigError, DataError
from hpdval.files import sha256_file

_BY_SUFFIX: dict[str, Callable[..., Dataset]] = {".csv": load_csv, ".json": load_coco, ".txt": load_lists}
_SCENES = {"scenes-lt": "load_scenes", "scenes-fewshot": "load_fewshot_scenes"}
_SOURCES = (
    f"{', '.join(map(repr, _SCENES))}, {', '.join(map(repr, CATALOGUE))}, "
    "a .csv file (or its folder with train=), a COCO instances .json, a published list .txt, "
    "or a VOC devkit folder"
)


def load_dataset(
    source: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    val: float = 0.0,
    val_seed: int = 0,
    on_error: str = "error",
    **options: Any,
) -> Dataset:
    """Return the data set of ``source``: train, validation and test images with targets (N, C) over one class list.

    Own data: ``load_dataset("train.csv", test="test.csv", classes=["cat", "dog"])``, with the columns ``path,labels``
    and labels joined by ";".  A folder as source with ``train="train.csv"`` means the CSV in that folder.

    Args:
        source: ``"scenes-lt"`` or ``"scenes-fewshot"``; or ``"voc-lt"``, ``"coco-lt"``, ``"voc2007"`` or ``"coco2014"``
            with ``root``, a folder that ``hpdval data prepare`` made; or the path of a CSV, a COCO instances json, a
            published list, or a VOC devkit.
        root: folder of the images, where it is not the one of ``source``.
        val: share of the training images carved out for validation, 0 to below 1, stratified over classes, every class
            keeping a training positive; ``class_counts`` and the groups stay those of the full training list.
        val_seed: seed of that choice.
        on_error: ``"error"``, or ``"skip"`` to leave out images that cannot be decoded (not missing files, not bad
            labels); it decodes every image once, and names what it left out in ``notes``.
        options: of the source, see ``load_csv``, ``load_coco``, ``load_voc``, ``load_lists``, ``scenes.load_scenes``.

    Raises:
        ConfigError: an unknown option or a value out of range.
        DataError: no such source, or a file, line and value that cannot be used.
    """
    if isinstance(val, bool) or not isinstance(val, int | float) or not 0 <= val < 1:
        raise ConfigError(f"val is {val!r}; it must be a share of the training images, from 0 to below 1")
    if on_error not in ("error", "skip"):
        raise ConfigError(f"on_error is {on_error!r}; choose 'error' or 'skip'")
    origin = _origin(source, root, options, val=val, val_seed=val_seed, on_error=on_error)
    if os.fspath(source) in _SCENES:
        if root:
            raise ConfigError(f"root has no meaning for {source}, whose images are drawn; leave it out")
        from hpdval.data import scenes

        dataset = _call(getattr(scenes, _SCENES[os.fspath(source)]), (), options)
    elif os.fspath(source) in CATALOGUE:
        dataset = _published(os.fspath(source), root, options)
    else:
        path, folder = Path(source), Path(root) if root else None
        if os.path.isdir(path) and Path(str(options.get("train", ""))).suffix == ".csv":
            folder = folder or path
            path = path / options.pop("train")
        if not os.path.exists(path):
            raise DataError(f"source {path} does not exist; allowed: {_SOURCES}")
        if folder and not os.path.isdir(folder):
            raise DataError(f"root {folder} is not a folder")
        loader = _BY_SUFFIX.get(path.suffix.lower()) if os.path.isfile(path) else None
        if os.path.isdir(path) and any(path.glob("VOC*/ImageSets")):
            loader = load_voc
        if loader is None:
            raise DataError(f"source {path} has no known form; allowed: {_SOURCES}")
        dataset = _call(loader, (path, folder), options)
    if on_error == "skip":
        dataset = _skip_undecodable(dataset)
    return replace(_with_notes(_with_validation(dataset, val, val_seed)), origin=origin)


def _origin(
    source: str | os.PathLike[str], root: str | os.PathLike[str] | None, options: dict[str, Any], **common: Any
) -> dict[str, Any]:
    """Return what was asked for, in a form that a record can hold and that means the same from another folder."""
    named = os.fspath(source) in {*_SCENES, *CATALOGUE}
    asked = {"source": os.fspath(source) if named else os.path.abspath(source), **common}
    if root:
        asked["root"] = os.path.abspath(root)
    for name, value in options.items():  # a list may be given from here; what is no file here follows source or root
        here = isinstance(value, str | os.PathLike) and os.path.isfile(value)
        asked[name] = os.path.abspath(value) if here else value
    plain: dict[str, Any] = json.loads(json.dumps(asked, default=_plain))
    return plain


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def _published(name: str, root: str | os.PathLike[str] | None, options: dict[str, Any]) -> Dataset:
    """Load a set of the catalogue from the folder it was prepared in, if its lists are the published ones."""
    if not root:
        raise ConfigError(f"{name} needs root=, a folder made by: hpdval data prepare {name} --root DIR")
    known, folder = CATALOGUE[name], Path(root)
    remedy = f"hpdval data prepare {name} --root {folder}"
    for path in (known.source, *known.companions.values()):
        if not os.path.exists(folder / path):
            raise DataError(f"{folder} is not prepared for {name} ({path} is not there); run: {remedy}")
    for file in known.lists:
        if not file.optional and sha256_file(folder / file.name) != file.sha256:
            raise DataError(f"{folder / file.name} is not the published list; remove it and run: {remedy}")
    companions = {option: folder / path for option, path in known.companions.items()}
    try:
        dataset = _call(known.loader, (folder / known.source, None), {**companions, **options})
    except DataError as error:
        raise DataError(f"{error}; what is missing comes with: {remedy}") from None
    return replace(dataset, name=name)


def _call(loader: Callable[..., Dataset], arguments: tuple[Any, ...], options: dict[str, Any]) -> Dataset:
    parameters = inspect.signature(loader).parameters.values()
    allowed = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for name in options:
        if name not in allowed:
            raise ConfigError(f"unknown option {name} for this source; allowed: {', '.join([*allowed, *_COMMON])}")
    return loader(*arguments, **options)


_TASK = 64  # images that a thread decodes in one go: a task for each of a million would take gigabytes
_COMMON = ("root", "val", "val_seed", "on_error")


def _with_validation(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    if not fraction:
        return dataset
    if len(dataset.val):
        raise ConfigError(f"val={fraction}: {dataset.name} has a validation part of its own; leave val out")
    train, val = carve_validation(dataset.train.targets, fraction, seed)
    return replace(dataset, train=dataset.train.subset(train), val=dataset.train.subset(val))


def _skip_undecodable(dataset: Dataset) -> Dataset:
    parts: dict[str, Split] = {}
    notes = []
    for name in ("train", "val", "test"):
        split: Split = getattr(dataset, name)
        errors = _errors(split)
        notes += [f"skipped in {name}: {error}" for error in errors if error]
        parts[name] = split.subset([i for i, error in enumerate(errors) if not error])
    train, val, test = parts["train"], parts["val"], parts["test"]
    counts = train.targets.sum(0, dtype=np.int64)
    return replace(dataset, train=train, val=val, test=test, class_counts=counts, notes=(*dataset.notes, *notes))


def _errors(split: Split) -> list[str]:
    """Return why each image cannot be decoded, "" where it can."""

    def of_some(start: int) -> list[str]:
        return [_error_of(split.read, i) for i in range(start, min(start + _TASK, len(split)))]

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return [error for errors in pool.map(of_some, range(0, len(split), _TASK)) for error in errors]


def _error_of(read: Callable[[int], Any], index: int) -> str:
    try:
        read(index)
    except DataError as error:
        return str(error)
    return ""


def _with_notes(dataset: Dataset) -> Dataset:
    absent = [name for name, count in zip(dataset.classes, dataset.class_counts, strict=True) if not count]
    if not absent or not len(dataset.train):
        return dataset
    return replace(dataset, notes=(*dataset.notes, f"no training image of: {', '.join(absent)}"))
