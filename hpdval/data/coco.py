"""COCO: instances json files with image-level labels taken from the annotated objects, boxes, masks and captions."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hpdval.data.dataset import Dataset, Split
from hpdval.data.decode import image_size
from hpdval.data.listing import Listing, assemble, check_classes, companion
from hpdval.data.masks import FARTHEST, segmentation_mask
from hpdval.errors import DataError, HpdvalError, shown
from hpdval.files import read_json


def load_coco(
    source: Path,
    root: Path | None,
    *,
    test: str | os.PathLike[str] | None = None,
    images: str | os.PathLike[str] | None = None,
    test_images: str | os.PathLike[str] | None = None,
    captions: str | os.PathLike[str] | None = None,
    crowd: bool = True,
    require_images: bool = True,
) -> Dataset:
    """Return the images of a training and, where given, of a test json; classes in the order of category ids.

    An image without annotations is valid and has no label.  Ids are ``folder/file_name``, as in the published lists.
    Masks are known for an image whose annotations all have a ``segmentation``; whoever first asks for one waits until
    the json is read again, so that nobody else keeps its polygons in memory.

    Args:
        source: the training ``instances_*.json``.
        root: folder that holds the image folders; default: that of ``source``, or its parent if that is
            ``annotations``.
        test: the test json; looked for beside ``source`` too.
        images: image folder of ``source``, under ``root`` or absolute; default: ``train2017`` for
            ``instances_train2017.json`` where that folder exists, else ``root`` itself.
        test_images: the same for ``test``.
        captions: the ``captions_*.json`` of the training images, looked for beside ``source`` too.  Of an image's
            captions the one with the lowest id is taken; those of images that are not in ``source`` are ignored, since
            the official file is of all images.  Test images have none.
        crowd: whether an object marked ``iscrowd`` counts, as in the published lists (only images without any
            annotation are unlabelled there).
        require_images: False allows images that are not there, to work with labels only.

    Raises:
        DataError: names the file and the entry.
    """
    if root is None:
        root = source.parent.parent if source.parent.name == "annotations" else source.parent
    told = companion("captions", captions, source) if captions is not None else None
    train, classes = _read_split(source, _folder(source, root, images), crowd, require_images, None, told)
    test_split = None
    if test:
        test_path = companion("test", test, source)
        test_split, _ = _read_split(test_path, _folder(test_path, root, test_images), crowd, require_images, classes)
    return assemble(source.stem.removeprefix("instances_"), classes, train, test_split)


def _folder(path: Path, root: Path, chosen: str | os.PathLike[str] | None) -> tuple[Path, str]:
    """Return (base, folder name): images lie in base / folder name."""
    if chosen is not None:
        folder = root / chosen
        return folder.parent, folder.name
    name = path.stem.removeprefix("instances_")
    return (root, name) if os.path.isdir(root / name) else (root, "")


def _read_split(
    path: Path,
    folder: tuple[Path, str],
    crowd: bool,
    require_images: bool,
    expected: tuple[str, ...] | None,
    captions: Path | None = None,
) -> tuple[Split, tuple[str, ...]]:
    content = _content(path)
    column, classes = _columns(path, content["categories"], expected)
    files: dict[int, str] = {}
    for entry in content["images"]:
        image_id = _get(path, "images", entry, "id", int)
        if image_id in files:
            raise DataError(f"{path}: image id {image_id} is given twice")
        files[image_id] = _get(path, "images", entry, "file_name", str)
    sizes = [(entry.get("width"), entry.get("height")) for entry in content["images"]]
    objects: dict[int, list[tuple[float, ...]]] = {image_id: [] for image_id in files}
    for where, image_id, category, entry in _counted(path, content["annotations"], files, column, crowd):
        objects[image_id].append((column[category], *_box(where, entry.get("bbox"))))

    base, name = folder
    listing = Listing(path)
    for image_id, file_name in files.items():
        listing.add(f"{name}/{file_name}" if name else file_name, [int(row[0]) for row in objects[image_id]])
    if captions:
        listing.captions = _captions(captions, files)
    ids, image_ids = listing.ids, list(files)

    def size(index: int) -> tuple[int, int]:
        found = image_size(base / ids[index])
        if None not in sizes[index] and sizes[index] != found:
            raise DataError(
                f"{base / ids[index]} has {found[0]} x {found[1]} pixels upright but {path.name} has its boxes in "
                f"{sizes[index][0]} x {sizes[index][1]}; use the images it was made for"
            )
        return found

    def boxes(index: int) -> np.ndarray:
        size(index)
        return np.array(objects[image_ids[index]], np.float32).reshape(-1, 5)

    read = _segmentations(path, {image_id: len(rows) for image_id, rows in objects.items()}, column, crowd)

    def masks(index: int) -> np.ndarray | None:
        width, height = size(index)
        known = read()[image_ids[index]]
        if any(one is None or one == [] for _, one in known):
            return None
        found = [segmentation_mask(one, height, width, where) for where, one in known]
        return np.array(found, bool).reshape(-1, height, width)

    split = listing.split(base, len(classes), require_images=require_images, boxes=boxes, masks=masks)
    return split, classes


def _segmentations(
    path: Path, counts: dict[int, int], column: dict[int, int], crowd: bool
) -> Callable[[], dict[int, list[tuple[str, Any]]]]:
    """Return a function that reads (where, segmentation) of the objects of each image id from the file, once."""

    @cache
    def read() -> dict[int, list[tuple[str, Any]]]:
        found: dict[int, list[tuple[str, Any]]] = {image_id: [] for image_id in counts}
        for where, image_id, _, entry in _counted(path, _content(path)["annotations"], counts, column, crowd):
            found[image_id].append((where, entry.get("segmentation")))
        if {image_id: len(rows) for image_id, rows in found.items()} != counts:
            raise DataError(f"{path} has other annotations than when it was loaded; load it again")
        return found

    return read


def _captions(path: Path, files: dict[int, str]) -> list[str]:
    """Return the caption of lowest id of each image of ``files`` (names by image id), in their order."""
    first: dict[int, tuple[int, str]] = {}
    for entry in _content(path, ("annotations",), "captions")["annotations"]:
        number, image_id = (_get(path, "annotations", entry, key, int) for key in ("id", "image_id"))
        text = " ".join(_get(path, "annotations", entry, "caption", str).split())
        if not text:
            raise DataError(f"{path}: annotation {number} has an empty caption; write it, or leave the annotation out")
        if image_id not in first or number < first[image_id][0]:
            first[image_id] = (number, text)
    without = [image_id for image_id in files if image_id not in first]
    if without:
        raise DataError(
            f"{path} has no caption of image {without[0]}, {files[without[0]]} ({len(without)} of {len(files)} images "
            "have none); give the captions of these images"
        )
    return [first[image_id][1] for image_id in files]


def _content(
    path: Path, lists: tuple[str, ...] = ("images", "annotations", "categories"), form: str = "instances"
) -> dict[str, list[Any]]:
    try:
        content = read_json(path)
    except HpdvalError as error:
        raise DataError(str(error)) from None
    for key in lists:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(f"{path} has no list named {key}; give a COCO {form} json")
    return content


def _columns(
    path: Path, categories: list[Any], expected: tuple[str, ...] | None
) -> tuple[dict[int, int], tuple[str, ...]]:
    """Return the column of each category id, and the class names: ``expected``, else by ascending id."""
    ordered = sorted(categories, key=lambda entry: _get(path, "categories", entry, "id", int))
    names = [(f"{path}, category {entry['id']}", _get(path, "categories", entry, "name", str)) for entry in ordered]
    found = check_classes(names, str(path))
    classes = expected or found
    if set(classes) != set(found):
        odd = min(set(classes) ^ set(found))
        raise DataError(f"{path}: category {odd} is only in one of the train and test files; give files of one set")
    place = {name: index for index, name in enumerate(classes)}
    column = {entry["id"]: place[entry["name"].strip()] for entry in ordered}
    if len(column) != len(ordered):
        raise DataError(f"{path}: two categories have the same id")
    return column, classes


def _counted(
    path: Path, annotations: list[Any], known: Container[int], column: dict[int, int], crowd: bool
) -> Iterator[tuple[str, int, int, dict[str, Any]]]:
    """Yield (where, image id, category id, annotation) of each object that counts, in the order of the file."""
    for entry in annotations:
        where = f"{path}: annotation {shown(entry.get('id') if isinstance(entry, dict) else entry)}"
        image_id, category = (_get(path, "annotations", entry, key, int) for key in ("image_id", "category_id"))
        if image_id not in known or category not in column:
            kind, value = ("image", image_id) if image_id not in known else ("category", category)
            raise DataError(f"{where} names {kind} {value}, which is not in the file")
        if crowd or not entry.get("iscrowd"):
            yield where, image_id, category, entry


def _get(path: Path, part: str, entry: Any, key: str, kind: type) -> Any:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(
            f"{path}: an entry of {part} has {key}={shown(value)}; it must be {kind.__name__}: {shown(entry)}"
        )
    return value


def _box(where: str, value: Any) -> tuple[float, float, float, float]:
    numbers = value if isinstance(value, list) else []
    good = len(numbers) == 4 and all(type(v) in (int, float) and abs(v) <= FARTHEST for v in numbers)
    if not good or numbers[2] < 0 or numbers[3] < 0:
        raise DataError(f"{where} has bbox {shown(value)}; it must be [x, y, width, height] in pixels")
    return (numbers[0], numbers[1], numbers[2], numbers[3])
