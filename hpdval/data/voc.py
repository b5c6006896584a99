"""PASCAL VOC: a devkit folder with ``VOC<year>/{Annotations,ImageSets/Main,JPEGImages,SegmentationObject}``."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from hpdval.data.dataset import Dataset, Split
from hpdval.data.decode import image_size, read_indices
from hpdval.data.listing import Classes, Listing, assemble, read_classes, read_lines, safe_path
from hpdval.errors import ConfigError, DataError

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)

VOID = 255  # in a label picture: outlines, and what was too hard to assign


def load_voc(
    source: Path,
    root: Path | None,
    *,
    train: str | Sequence[str] = "2007/trainval",
    test: str | Sequence[str] | None = "2007/test",
    classes: Classes = CLASSES,
    difficult: bool = True,
    require_images: bool = True,
) -> Dataset:
    """Return the images of a devkit's image sets.

    Ids are ``VOC2007/JPEGImages/000001.jpg``.  Boxes count from 0: a VOC box from 1 to 10 is x = 0, width = 10.
    Masks are known where the devkit has ``SegmentationObject/000001.png``, in which a pixel is the number of its object
    in the order of the xml file, 0 is background, and 255 is not assigned and belongs to no object.

    Args:
        source: the devkit, the folder that holds ``VOC2007`` and its like.
        root: where the image files are, if they lie in the same tree elsewhere.
        train: image sets as ``year/set``, one or several, such as ``("2007/trainval", "2012/trainval")``.
        test: the same for test images; None for none.
        classes: class names in order; default: the twenty of VOC.
        difficult: whether an object marked difficult counts as a positive.
        require_images: False allows images that are not there, to work with labels only.

    Raises:
        DataError: names the file and the value.
    """
    names = read_classes(classes)
    column = {name: i for i, name in enumerate(names)}
    folder = root or source
    train_split, test_split = (
        _read_split(source, folder, [sets] if isinstance(sets, str) else sets, column, difficult, require_images)
        if sets
        else None
        for sets in (train, test)
    )
    if train_split is None:
        raise ConfigError("train names no image set; give one as year/set, such as '2007/trainval'")
    return assemble(f"voc-{source.resolve().name}", names, train_split, test_split)


def _read_split(
    devkit: Path, root: Path, sets: Sequence[str], column: dict[str, int], difficult: bool, require_images: bool
) -> Split:
    listing = Listing(devkit)
    objects: list[list[tuple[float, ...]]] = []
    drawn: list[
        tuple[Path, list[int], int]
    ] = []  # of each image: label picture, numbers of its objects, largest of all
    for chosen in sets:
        year, _, name = chosen.removeprefix("VOC").partition("/")
        year_folder = f"VOC{year}"
        set_file = devkit / year_folder / "ImageSets" / "Main" / f"{name}.txt"
        if not os.path.isfile(set_file):
            there = sorted(
                f"{p.parts[-4][3:]}/{p.stem}" for p in devkit.glob("VOC*/ImageSets/Main/*.txt") if "_" not in p.stem
            )
            raise DataError(f"image set {chosen} is not in {devkit}; there: {', '.join(there) or 'none'}")
        for line, text in enumerate(read_lines(set_file), 1):
            if not text:
                continue
            stem = safe_path(text.split()[0], f"{set_file}, line {line}")
            found = _annotated(devkit / year_folder / "Annotations" / f"{stem}.xml", column)
            numbers = [i for i, (hard, _) in enumerate(found) if difficult or not hard]
            rows = [found[i][1] for i in numbers]
            listing.add(f"{year_folder}/JPEGImages/{stem}.jpg", [int(row[0]) for row in rows])
            objects.append(rows)
            picture = devkit / year_folder / "SegmentationObject" / f"{stem}.png"
            drawn.append((picture, [i + 1 for i in numbers], len(found)))

    def masks(index: int) -> np.ndarray | None:
        picture, numbers, last = drawn[index]
        return _masks(picture, root / listing.ids[index], numbers, last) if os.path.isfile(picture) else None

    return listing.split(
        root,
        len(column),
        require_images=require_images,
        boxes=lambda i: np.array(objects[i], np.float32).reshape(-1, 5),
        masks=masks,
    )


def _masks(picture: Path, image: Path, numbers: list[int], last: int) -> np.ndarray:
    indices = read_indices(picture)
    height, width = indices.shape
    if (width, height) != image_size(image):
        expected = " x ".join(map(str, image_size(image)))
        raise DataError(
            f"{picture} has {width} x {height} pixels but {image} has {expected}; use pictures of one devkit"
        )
    unknown = set(np.unique(indices).tolist()) - set(range(last + 1)) - {VOID}
    if unknown:
        raise DataError(
            f"{picture} shows object {min(unknown)} but the image's xml file lists {last}; mend either, or remove the "
            "picture to go by boxes"
        )
    return np.stack([indices == number for number in numbers]) if numbers else np.zeros((0, height, width), bool)


def read_objects(path: Path, column: dict[str, int], difficult: bool) -> list[tuple[float, ...]]:
    """Return rows of class index, x, y, width, height of the objects in one xml file, boxes from 0.

    Raises:
        DataError: the file cannot be read, or names a class that is not in ``column``.
    """
    return [row for hard, row in _annotated(path, column) if difficult or not hard]


class _Plain(ElementTree.TreeBuilder):
    """A tree without entities of its own, which can grow a line into gigabytes; no devkit has any."""

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise ValueError("it has a DOCTYPE, which no annotation needs")


def _annotated(path: Path, column: dict[str, int]) -> list[tuple[bool, tuple[float, ...]]]:
    """Return of every object in one xml file whether it is marked difficult, and its row as of `read_objects`."""
    try:
        tree = ElementTree.parse(path, ElementTree.XMLParser(target=_Plain()))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    found: list[tuple[bool, tuple[float, ...]]] = []
    for element in tree.getroot().iter("object"):
        name = (element.findtext("name") or "").strip()
        if name not in column:
            raise DataError(f"{path}: object {name!r} is not in the class list; give classes=")
        try:
            sides = [float(element.findtext(f"bndbox/{side}") or "nan") for side in ("xmin", "ymin", "xmax", "ymax")]
        except ValueError:
            sides = [math.nan]
        if not all(map(math.isfinite, sides)) or sides[2] < sides[0] or sides[3] < sides[1]:
            raise DataError(f"{path}: object {name} has no proper bndbox (xmin, ymin, xmax, ymax)")
        left, top, right, bottom = sides
        hard = (element.findtext("difficult") or "0").strip() == "1"
        found.append((hard, (column[name], left - 1, top - 1, right - left + 1, bottom - top + 1)))
    return found
