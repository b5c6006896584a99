"""What all sources of image files share: class lists, safe paths, and the step from listed rows to a ``Split``.

Letters: N images, C classes.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hpdval.data.dataset import Dataset, Split
from hpdval.data.decode import decode, image_size
from hpdval.errors import ConfigError, DataError
from hpdval.files import digest

Classes = str | os.PathLike[str] | Sequence[str]


@dataclass
class Listing:
    """The rows of one list file as they are read: a path under the image folder, class indices, and where it stood."""

    source: Path
    ids: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)  # (row, column) pairs of the positives
    columns: list[int] = field(default_factory=list)
    lines: list[int] = field(
        default_factory=list
    )  # line of each image in the file, from 1; empty where lines say nothing
    captions: list[str] = field(default_factory=list)  # of each image; empty where none are known
    _seen: dict[str, int] = field(default_factory=dict)

    def add(self, path: str, labels: Sequence[int], line: int | None = None) -> None:
        """Append one image; a path that leaves the folder or comes twice is refused before anything is opened."""
        where = self.where(line)
        name = safe_path(path, where)
        if name in self._seen:
            first = self.lines[self._seen[name]] if line is not None else None
            earlier = f" (first on line {first})" if first else ""
            raise DataError(f"{where}: {path} is listed twice{earlier}; give each image one row with all its labels")
        row = self._seen[name] = len(self.ids)
        self.ids.append(name)
        self.rows.extend([row] * len(labels))
        self.columns.extend(labels)
        if line is not None:
            self.lines.append(line)

    def where(self, line: int | None) -> str:
        """Name the file, and the line where there is one."""
        return f"{self.source}" if line is None else f"{self.source}, line {line}"

    def split(
        self,
        root: Path,
        n_classes: int,
        *,
        require_images: bool = True,
        boxes: Callable[[int], np.ndarray] | None = None,
        masks: Callable[[int], np.ndarray | None] | None = None,
    ) -> Split:
        """Look at every file once and return the split.

        Raises:
            DataError: images are missing (the first one, its line, and how many), unless ``require_images`` is False.
        """
        if not self.ids:
            raise DataError(f"{self.source} lists no image")
        targets = np.zeros((len(self.ids), n_classes), np.uint8)
        targets[self.rows, self.columns] = 1
        folder = os.fspath(root)
        # the folder counts too: two data sets may hold the same names, sizes and times
        place = digest(os.path.abspath(folder))[:16]
        fingerprints, missing = [], []
        for row, name in enumerate(self.ids):
            found = _regular_file(os.path.join(folder, name))
            if found is None:
                missing.append(row)
            fingerprints.append(f"{place}:{found.st_size}:{found.st_mtime_ns}" if found else f"{place}:missing")
        if missing and require_images:
            first = missing[0]
            where = self.where(self.lines[first] if self.lines else None)
            raise DataError(
                f"{where}: {self.ids[first]} is not a file in {folder} ({len(missing)} of {len(self.ids)} images are "
                "missing); give the folder of the images as root=, or require_images=False to work with labels only"
            )
        ids, captions = tuple(self.ids), tuple(self.captions)
        if captions and len(captions) != len(ids):
            raise DataError(f"{self.source}: {len(captions)} captions for {len(ids)} images; give one for each")
        return Split(
            ids=ids,
            targets=targets,
            read=lambda i: decode(os.path.join(folder, ids[i])),
            fingerprints=tuple(fingerprints),
            boxes=boxes,
            masks=masks,
            size=lambda i: image_size(os.path.join(folder, ids[i])),
            captions=(lambda i: captions[i]) if captions else None,
        )


def assemble(
    name: str,
    classes: Sequence[str],
    train: Split,
    test: Split | None,
    *,
    notes: Sequence[str] = (),
) -> Dataset:
    """Return the data set with an empty validation split, after checking that no name is in both train and test."""
    empty = train.subset([])
    test = test or empty
    shared = set(train.ids) & set(test.ids)
    if shared:
        raise DataError(f"{name}: {min(shared)} is in train and in test ({len(shared)} images are); keep them disjoint")
    return Dataset(
        name=name,
        classes=tuple(classes),
        train=train,
        val=empty,
        test=test,
        class_counts=train.targets.sum(0, dtype=np.int64),
        notes=tuple(notes),
    )


def safe_path(path: str, where: str) -> str:
    """Return ``path`` in normal form, relative with forward slashes.

    Only the text is judged: links inside the folder may point anywhere, since data sets are often made of links.

    Raises:
        DataError: absolute, empty, with a NUL, or with a ``..`` part.

    >>> safe_path("./a//b.jpg", "list.csv, line 2")
    'a/b.jpg'
    """
    parts = path.replace("\\", "/").split("/")
    if not path or path in (".", "/") or "\0" in path:
        raise DataError(f"{where}: {path!r} is not the path of an image")
    if ".." in parts or not parts[0] or (len(parts[0]) == 2 and parts[0][1] == ":"):
        raise DataError(f"{where}: {path} leaves the image folder; use relative paths without '..'")
    return posixpath.normpath("/".join(parts))


def read_lines(path: Path) -> list[str]:
    """Return the lines of a UTF-8 text file without line ends, byte order mark and surrounding blanks.

    Raises:
        DataError: the file is absent or not UTF-8 text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    return [line.strip() for line in text.split("\n")]


def read_classes(classes: Classes) -> tuple[str, ...]:
    """Return class names without blanks around them, from a sequence or from a file with one name on each line.

    Raises:
        DataError: no class, an empty name, or a name given twice.

    >>> read_classes(["dog", "traffic light"])
    ('dog', 'traffic light')
    """
    if isinstance(classes, set | frozenset):
        raise DataError("classes is a set, which has no order; give a list")
    if isinstance(classes, str | os.PathLike):
        path = Path(classes)
        return check_classes(
            [(f"{path}, line {i}", name) for i, name in enumerate(read_lines(path), 1) if name], str(path)
        )
    return check_classes([(f"classes[{i}]", str(name)) for i, name in enumerate(classes)], "classes")


def check_classes(named: Sequence[tuple[str, str]], source: str) -> tuple[str, ...]:
    """Return the names of (where, name) pairs without blanks around them; there are some, none empty and none twice."""
    if not named:
        raise DataError(f"{source}: the class list is empty; give at least one class name")
    seen: dict[str, str] = {}
    for where, given in named:
        if not (name := given.strip()):
            raise DataError(f"{where}: a class name is empty")
        if name in seen:
            raise DataError(f"{where}: class {name} is named twice (first in {seen[name]})")
        seen[name] = where
    return tuple(seen)


def companion(option: str, value: str | os.PathLike[str], source: Path) -> Path:
    """Return the path of a companion file: as given, else beside ``source``.

    Raises:
        DataError: it is in neither place.
    """
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(f"{option}={value!r} must be a path")
    for path in (Path(value), source.parent / value):  # os.path: pathlib raises on names that are too long
        if os.path.isfile(path):
            return path
    raise DataError(f"{option}={os.fspath(value)} is not a file, neither here nor in {source.parent}")


def _regular_file(path: str) -> os.stat_result | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: a name the file system cannot hold
        return None
    return found if stat.S_ISREG(found.st_mode) else None
