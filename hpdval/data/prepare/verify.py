"""Is a prepared data set complete and undamaged?  One line for each thing that was looked at.

Letters: N images, C classes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from hpdval.data.dataset import Dataset, Split
from hpdval.data.decode import decode, image_size
from hpdval.data.prepare.agreement import disagreements
from hpdval.data.prepare.checksums import read_checksums
from hpdval.data.prepare.published import Facts, PublishedSet
from hpdval.errors import DataError
from hpdval.files import sha256_file
from hpdval.progress import progress

NAMED = 3  # examples of what is missing or wrong
TAIL = 4096  # bytes at the end of a JPEG in which its end marker is looked for


@dataclass
class Report:
    """What was looked at in one folder: rows of (what, found, expected, whether they agree)."""

    name: str
    root: Path
    rows: list[tuple[str, str, str, bool]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # a sentence each, with the first few names

    @property
    def ok(self) -> bool:
        """Whether all agree."""
        return all(row[3] for row in self.rows)

    def add(self, what: str, found: object, expected: object, *, remark: str = "") -> None:
        """Append a row; ``remark`` says more about one that does not agree."""
        self.rows.append((what, _text(found), _text(expected), found == expected))
        if found != expected:
            self.wrong.append(remark or f"{what}: {_text(found)} instead of {_text(expected)}")

    def __str__(self) -> str:
        head = ("", "found", "expected", "")
        rows = [head, *((what, found, expected, "ok" if ok else "WRONG") for what, found, expected, ok in self.rows)]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [
            f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}".rstrip() for row in rows
        ]
        return "\n".join([f"{self.name} in {self.root}", *lines, *self.wrong])

    def check(self) -> None:
        """Raise DataError, one line with what to do, when something is wrong."""
        if not self.ok:
            raise DataError(
                f"{self.name} in {self.root}: {'; '.join(self.wrong)}. Remove what is damaged or altered, then run: "
                f"hpdval data prepare {self.name} --root {self.root}"
            )


def verify(known: PublishedSet, root: Path, *, images: bool = True, decoded: bool = False, show: bool = True) -> Report:
    """Look at lists, counts, labels and images of a prepared data set; nothing is changed.

    Lists are compared with their pinned SHA-256, counts with the published ones, the labels of long-tail lists with
    the annotations that are there.  Of each listed image the header is read and the end looked at.

    Args:
        known: the data set.
        root: the folder it was prepared in.
        images: whether to look at the images; False checks lists and labels only.
        decoded: decode every image completely and compare it with its checksum, which takes minutes.
        show: show progress.
    """
    report = Report(known.name, root)
    for file in known.lists:
        path = root / file.name
        if path.is_file() or not file.optional:
            found = sha256_file(path) if path.is_file() else "missing"
            found = {"missing": "missing", file.sha256: "as published"}.get(found, "altered")
            report.add(file.name, found, "as published")
    dataset = _labels(report, known, root)
    if dataset is not None and known.lists:
        compared, wrong = disagreements(known, root, dataset)
        if compared:
            report.add(f"labels against {compared} annotations", len(wrong), 0, remark=_some("labels differ", wrong))
    if images:
        _images(report, known, root, decoded, show)
    return report


def _labels(report: Report, known: PublishedSet, root: Path) -> Dataset | None:
    companions = {option: root / path for option, path in known.companions.items()}
    try:
        dataset = known.loader(root / known.source, None, require_images=False, **companions)
    except DataError as error:
        report.add("lists and labels", "unusable", "usable", remark=f"lists and labels cannot be used: {error}")
        return None
    facts = known.facts
    report.add("images, train / test", (len(dataset.train), len(dataset.test)), facts.images)
    report.add("classes", len(dataset.classes), facts.classes)
    for what, found, expected in _counts(dataset, facts):
        if expected is not None:
            report.add(what, found, expected)
    return dataset


def _counts(dataset: Dataset, facts: Facts) -> list[tuple[str, tuple[int, ...], tuple[int, ...] | None]]:
    def of_both(count: Callable[[Split], object]) -> tuple[int, ...]:
        return tuple(int(count(split)) for split in (dataset.train, dataset.test))  # type: ignore[call-overload]

    counts = dataset.class_counts
    return [
        ("labels, train / test", of_both(lambda split: split.targets.sum(dtype=np.int64)), facts.labels),
        ("images without a label", of_both(lambda split: (~split.targets.any(1)).sum()), facts.unlabelled),
        ("rarest / commonest class", (int(counts.min()), int(counts.max())), facts.extremes),
        ("head / medium / tail classes", tuple(len(group) for group in dataset.groups.values()), facts.groups),
    ]


def _images(report: Report, known: PublishedSet, root: Path, decoded: bool, show: bool) -> None:
    checksums = read_checksums(known, root) if decoded else None
    for archive in known.archives:
        try:
            paths = archive.images(archive.stems(root))
        except DataError as error:
            report.add(f"images of {archive.listing}", "unknown", "known", remark=str(error))
            continue
        if not archive.listing:
            continue
        missing = [path for path in archive.needed(archive.stems(root)) if not (root / path).is_file()]
        report.add(f"files missing, {archive.name}", len(missing), 0, remark=_some("missing", missing))
        there = [path for path in paths if (root / path).is_file()]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            found = pool.map(partial(_error, root, checksums), there)
            errors = [error for error in progress(found, archive.name, total=len(there), show=show) if error]
        what = "damaged or changed" if decoded else "damaged or cut off"
        report.add(f"images {what}, {archive.name}", len(errors), 0, remark=_some(what, errors))


def look_at(path: Path) -> None:
    """Read the header of an image and see that a JPEG has an end; decode it when that is not where it should be.

    Raises:
        DataError: not an image, or cut off.
    """
    image_size(path)
    with open(path, "rb") as file:
        jpeg = file.read(2) == b"\xff\xd8"
        file.seek(max(0, path.stat().st_size - TAIL))
        if jpeg and b"\xff\xd9" in file.read():
            return
    decode(path)


def _error(root: Path, checksums: Mapping[str, str] | None, name: str) -> str:
    """Return what is wrong with an image: a look at it, or with checksums its content and every pixel."""
    try:
        if checksums is None:
            look_at(root / name)
        elif name in checksums and sha256_file(root / name) != checksums[name]:
            return f"{name} has changed since it was prepared"
        else:
            decode(root / name)
    except (DataError, OSError) as error:
        return str(error)
    return ""


def _some(what: str, names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{len(names)} {what}: {', '.join(names[:NAMED])}{more}"


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return " / ".join(map(_text, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
