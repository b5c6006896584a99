"""Do the labels of a published list agree with the annotations of the images?

A list may or may not count objects that are marked difficult (VOC) or as a crowd (COCO), so its labels must lie between
the classes of the other objects and those of all.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from hpdval.data.dataset import Dataset
from hpdval.data.prepare.published import PublishedSet
from hpdval.data.voc import read_objects
from hpdval.errors import DataError, HpdvalError
from hpdval.files import read_json

Labels = tuple[set[str], set[str]]  # classes of plain objects, classes of all objects


def disagreements(known: PublishedSet, root: Path, dataset: Dataset) -> tuple[int, list[str]]:
    """Return how many images have annotations below ``root``, and a line for each whose labels contradict them."""
    coco = dict(_coco(root / path for path in known.annotations if (root / path).is_file()))
    column = {name: i for i, name in enumerate(dataset.classes)}
    compared, wrong = 0, []
    for split in (dataset.train, dataset.test):
        for name, row in zip(split.ids, split.targets, strict=True):
            try:
                found = coco.get(name) if known.annotations else _voc(root, name, column)
            except DataError as error:
                wrong.append(str(error))
                continue
            if found is None:
                continue
            compared += 1
            given = {dataset.classes[i] for i in np.flatnonzero(row)}
            if not found[0] <= given <= found[1]:
                odd = sorted((found[0] - given) | (given - found[1]))
                wrong.append(f"{name} ({', '.join(odd)})")
    return compared, wrong


def _voc(root: Path, image: str, column: dict[str, int]) -> Labels | None:
    path = PurePosixPath(image)
    annotations = root / path.parent.parent / "Annotations" / f"{path.stem}.xml"
    if not annotations.is_file():
        return None
    names = list(column)
    plain, every = ({names[int(row[0])] for row in read_objects(annotations, column, flag)} for flag in (False, True))
    return plain, every


def _coco(paths: Iterator[Path]) -> Iterator[tuple[str, Labels]]:
    for path in paths:
        folder = path.stem.removeprefix("instances_")
        try:
            content = read_json(path)
            names = {entry["id"]: entry["name"].strip() for entry in content["categories"]}
            images: dict[int, Labels] = {entry["id"]: (set(), set()) for entry in content["images"]}
            for entry in content["annotations"]:
                plain, every = images[entry["image_id"]]
                every.add(names[entry["category_id"]])
                if not entry.get("iscrowd"):
                    plain.add(names[entry["category_id"]])
            yield from ((f"{folder}/{entry['file_name']}", images[entry["id"]]) for entry in content["images"])
        except (HpdvalError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is not a COCO instances json ({error}); remove it and prepare again") from None
