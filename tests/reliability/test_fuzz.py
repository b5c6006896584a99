"""Data, archives and what else comes from files of others: read right, or refused in one line, whatever is in them."""

from __future__ import annotations

import csv
import io
import json
import posixpath
import re
import tarfile
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import Faults
from fuzz import NAMES, Target, answer, broken_bytes, broken_json, broken_lines, fuzz, one_of, parametrize
from hypothesis import strategies as st
from PIL import Image

from hpdval.data import Dataset, Split, load_dataset, read_episode, read_episodes
from hpdval.data.masks import regions
from hpdval.data.prepare.extract import MOST_UNPACKED, extract
from hpdval.data.voc import CLASSES as VOC
from hpdval.files import digest

pytestmark = pytest.mark.fault

CLASSES = ("dog", "cat", "traffic light")
SIZES = {"a.png": (8, 6), "b.png": (9, 6)}


def pictures(folder: Path) -> None:
    """Two pictures, a link that leads to itself, and a folder whose name is that of a picture."""
    for name, size in SIZES.items():
        (folder / name).write_bytes(PNG[size])
    (folder / "loop").symlink_to("loop")
    (folder / "a").mkdir()


def _png(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "PNG")
    return file.getvalue()


PNG = {size: _png(size) for size in SIZES.values()}


def check_dataset(data: Dataset) -> None:
    """What holds of every data set, however odd the file it was read from."""
    assert len(set(data.classes)) == len(data.classes) > 0
    assert all(name and name == name.strip() for name in data.classes)
    assert data.class_counts.dtype == np.int64
    known = (data.train, data.test)
    assert not set(data.train.ids) & set(data.test.ids)
    for split in known:
        check_split(split, len(data.classes))
    digest(data.classes, [(split.ids, split.targets.tolist()) for split in known], data.origin)  # belongs to keys


def check_split(split: Split, n_classes: int) -> None:
    assert len(set(split.ids)) == len(split.ids)
    assert all(name == posixpath.normpath(name) and not name.startswith(("/", "../")) for name in split.ids)
    assert split.targets.shape == (len(split), n_classes)
    assert split.targets.dtype == np.uint8
    assert set(np.unique(split.targets)) <= {0, 1}
    for i in range(min(len(split), 2)):
        image = answer(lambda i=i: split.image(i))
        assert image is None or (image.dtype == np.uint8 and image.shape[2] == 3)
        if split.captions is not None:
            assert split.captions(i)
        boxes = answer(lambda i=i: split.boxes(i)) if split.boxes else None
        if boxes is not None:
            assert boxes.dtype == np.float32
            assert boxes.shape[1:] == (5,)
            assert np.isfinite(boxes).all()
            assert (boxes[:, 3:] >= 0).all()
            assert set(boxes[:, 0].astype(int)) == set(np.flatnonzero(split.targets[i]))
        masks = answer(lambda i=i: split.masks(i)) if split.masks and boxes is not None else None
        if masks is not None and boxes is not None and image is not None:
            assert masks.dtype == bool
            assert masks.shape == (len(boxes), *image.shape[:2])
            for region in (answer(lambda i=i: regions(split, i)) or {}).values():
                assert region.mask.any()


# -- CSV and class lists -----------------------------------------------------------------------------------------------

ROWS = (("path", "labels", "caption"), ("a.png", "dog;cat", "two animals"), ("b.png", "", "nothing"))


def check_csv(folder: Path, case: tuple[bytes, bool]) -> None:
    content, require = case
    pictures(folder)
    (folder / "t.csv").write_bytes(content)
    data = answer(lambda: load_dataset(folder / "t.csv", classes=CLASSES, require_images=require), "t.csv")
    plain = plain_rows(content)
    if data is None:
        allowed = SIZES if require else {name for name, _ in plain}
        simple = all(re.fullmatch(r"[a-z]+\.png", name) and name in allowed for name, _ in plain)
        known = all(set(labels) <= set(CLASSES) for _, labels in plain)
        alone = len({name for name, _ in plain}) == len(plain) > 0
        assert not (simple and known and alone), "a plain file was refused"
        return
    check_dataset(data)
    named = [{data.classes[c] for c in np.flatnonzero(row)} for row in data.train.targets]
    assert [(name, labels) for name, labels in zip(data.train.ids, named, strict=True)] == [
        (posixpath.normpath(name.replace("\\", "/")), labels) for name, labels in plain
    ]


def plain_rows(content: bytes) -> list[tuple[str, set[str]]]:
    """Paths and labels as Python's own reader has them; nothing where the form is not that of such a file."""
    try:
        rows = [row for row in csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True) if row]
    except (UnicodeDecodeError, csv.Error):
        return []
    header = [cell.strip() for cell in rows[0]] if rows else []
    if header.count("path") != 1 or header.count("labels") != 1 or {len(row) for row in rows} != {len(header)}:
        return []
    if header.count("caption") > 1 or (
        "caption" in header and not all(r[header.index("caption")].strip() for r in rows)
    ):
        return []
    split = [(row[header.index("path")], row[header.index("labels")].split(";")) for row in rows[1:]]
    return [(path.strip(), {label.strip() for label in labels} - {""}) for path, labels in split]


def check_classes(folder: Path, content: bytes) -> None:
    (folder / "t.csv").write_text("path,labels\na.png,\n")
    (folder / "t_train.txt").write_text("a.png\n")
    (folder / "names.txt").write_bytes(content)
    for name in ("t.csv", "t_train.txt"):
        options: dict[str, Any] = {"classes": "names.txt", "require_images": False}
        data = answer(lambda name=name, options=options: load_dataset(folder / name, **options), "names.txt")
        if data is not None:
            check_dataset(data)
            lines = [line.strip() for line in content.decode("utf-8-sig").replace("\r", "\n").split("\n")]
            lines = [line for line in lines if line]
            if name == "t.csv":
                assert list(data.classes) == lines
            else:
                assert len(data.classes) == len(lines)


# -- COCO --------------------------------------------------------------------------------------------------------------

SQUARE = [1.0, 1.0, 4.0, 1.0, 4.0, 4.0, 1.0, 4.0]
INSTANCES = {
    "images": [
        {"id": 7, "file_name": "a.png", "width": 8, "height": 6},
        {"id": 8, "file_name": "b.png", "width": 9, "height": 6},
    ],
    "categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}, {"id": 90, "name": "traffic light"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1.0, 1, 3, 3], "iscrowd": 0, "segmentation": [SQUARE]},
        {
            "id": 2,
            "image_id": 7,
            "category_id": 1,
            "bbox": [0, 0, 8, 6],
            "iscrowd": 1,
            "segmentation": {"size": [6, 8], "counts": [10, 20, 18]},
        },
        {
            "id": 3,
            "image_id": 8,
            "category_id": 90,
            "bbox": [0, 0, 9, 6],
            "iscrowd": 0,
            "segmentation": {"size": [6, 9], "counts": "6T1"},
        },
    ],
}
CAPTIONS = {"annotations": [{"id": i, "image_id": i, "caption": f"picture {i}"} for i in (7, 8)]}


def check_coco(folder: Path, case: tuple[bytes, bytes, bool, bool]) -> None:
    instances, captions, crowd, require = case
    pictures(folder)
    (folder / "instances.json").write_bytes(instances)
    (folder / "captions.json").write_bytes(captions)
    options = {"captions": "captions.json", "crowd": crowd, "require_images": require}
    data = answer(lambda: load_dataset(folder / "instances.json", **options), "instances.json", "captions.json")
    if data is not None:
        check_dataset(data)
        stated = json.loads(instances)
        names = [one["name"] for one in sorted(stated["categories"], key=lambda one: one["id"])]
        assert list(data.classes) == names
        columns = {one["id"]: names.index(one["name"]) for one in stated["categories"]}
        rows = {one["id"]: i for i, one in enumerate(stated["images"])}
        wanted = np.zeros_like(data.train.targets)
        for one in stated["annotations"]:
            if crowd or not one.get("iscrowd"):
                wanted[rows[one["image_id"]], columns[one["category_id"]]] = 1
        assert (data.train.targets == wanted).all()


# -- lists, captions of lists, VOC, episodes ---------------------------------------------------------------------------

LIST, LIST_CAPTIONS = (("a.png", "0", "1"), ("b.png",)), (("a.png", "two", "animals"), ("b.png", "nothing"))


def check_lists(folder: Path, case: tuple[bytes, bytes, bool]) -> None:
    content, captions, require = case
    pictures(folder)
    (folder / "t_train.txt").write_bytes(content)
    (folder / "c.txt").write_bytes(captions)
    options = {"classes": CLASSES, "captions": "c.txt", "require_images": require}
    data = answer(lambda: load_dataset(folder / "t_train.txt", **options), "t_train.txt", "c.txt")
    if data is not None:
        check_dataset(data)
        text = content.decode("utf-8-sig").replace("\r", "\n")
        lines = [line.split() for line in text.split("\n") if line.strip()]
        assert [posixpath.normpath(name.replace("\\", "/")) for name, *_ in lines] == list(data.train.ids)
        assert [sorted({int(i) for i in row}) for _, *row in lines] == [
            np.flatnonzero(t).tolist() for t in data.train.targets
        ]


XML = b"""<?xml version="1.0" encoding="utf-8"?>
<annotation><filename>000001.jpg</filename><size><width>8</width><height>6</height></size>
<object><name>dog</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>4</xmax><ymax>5</ymax></bndbox></object>
<object><name>person</name><bndbox><xmin>2.5</xmin><ymin>1</ymin><xmax>8</xmax><ymax>6</ymax></bndbox></object></annotation>"""
LAUGHS = (
    b'<!DOCTYPE a [<!ENTITY a "ha">'
    + b"".join(b'<!ENTITY %c "%b">' % (97 + i, b"&%c;" % (96 + i) * 10) for i in range(1, 12))
    + b"]><annotation><object><name>&l;</name></object></annotation>"
)
OUTSIDE = b'<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/hostname">]><annotation><object><name>&e;</name></object></annotation>'
NUMBER_NAMES = (b"1e400", b"nan", b"-5", b"", b"9" * 5000, b"0x10", b"1_0", b"\xd9\xa3", b"5 5")


def voc_cases() -> st.SearchStrategy[tuple[bytes, bytes]]:
    numbers = st.tuples(st.sampled_from((b">1<", b">4<", b">2.5<", b">dog<")), st.sampled_from(NUMBER_NAMES))
    other = numbers.map(lambda both: XML.replace(both[0], b">" + both[1] + b"<", 1))
    nested = st.sampled_from((LAUGHS, OUTSIDE, b"<a>" * 20_000, b"<annotation/>", XML.replace(b"utf-8", b"utf-7")))
    sets = broken_lines((("000001", "1"), ("000002", "-1")), " ")
    return st.tuples(st.one_of(broken_bytes(XML), other, nested, st.binary(max_size=60)), st.just(b"000001\n") | sets)


def check_voc(folder: Path, case: tuple[bytes, bytes]) -> None:
    xml, listed = case
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / "VOC2007" / name).mkdir(parents=True)
    (folder / "VOC2007/Annotations/000001.xml").write_bytes(xml)
    (folder / "VOC2007/Annotations/000002.xml").write_bytes(XML)
    (folder / "VOC2007/ImageSets/Main/trainval.txt").write_bytes(listed)
    (folder / "VOC2007/JPEGImages/000001.jpg").write_bytes(PNG[8, 6])
    data = answer(lambda: load_dataset(folder, test=None, require_images=False), folder)
    if data is not None:
        assert b"<!ENTITY" not in xml or listed[:6] == b"000002", "an entity of the file's own was read"
        check_dataset(data)
        if b"000001.jpg" in {name.encode()[-10:] for name in data.train.ids}:
            assert data.classes == VOC


EPISODE = (("name", "dog", "cat"), ("a.png", "1", "0"), ("b.png", "0", "1"))


def episode_dataset() -> Dataset:
    targets = np.array([[1, 0, 1], [0, 1, 0]], np.uint8)
    split = Split(
        ids=("a.png", "b.png"), targets=targets, read=lambda i: np.zeros((6, 8, 3), np.uint8), fingerprints=("a", "b")
    )
    empty = split.subset([])
    return Dataset(
        name="own", classes=CLASSES, train=split, val=empty, test=empty, class_counts=targets.sum(0, dtype=np.int64)
    )


def check_episode(folder: Path, content: bytes) -> None:
    (folder / "e.csv").write_bytes(content)
    data = episode_dataset()
    episode = answer(lambda: read_episode(folder / "e.csv", data, ("dog", "cat"), shots=1), "e.csv")
    if episode is not None:
        assert set(episode.ids) == {"a.png", "b.png"}
        assert (episode.targets == data.train.targets[episode.indices][:, :2]).all()


PUBLISHED = (
    "voc_episodes.json",
    "coco_episodes.json",
    "classification_Train_novel_1shot_1.csv",
    "1shotRun1UsedIndices.pkl",
)


def check_published(folder: Path, case: tuple[str, bytes, str]) -> None:
    """None of these is the published file, so nothing of it may be read."""
    name, content, dataset = case
    (folder / name).write_bytes(content)
    data = replace(episode_dataset(), name=dataset)
    assert answer(lambda: read_episodes(folder, data, shots=1), folder, "training images") is None


# -- archives ----------------------------------------------------------------------------------------------------------

MEMBERS = st.lists(
    st.tuples(
        one_of(("a/one.txt", "a/two.txt", "./a/one.txt", "a", "b/../../x", *NAMES)),
        st.binary(max_size=40),
        st.sampled_from(("file", "file", "file", "link", "hard link", "device", "folder", "bomb")),
    ),
    max_size=4,
)


def write_archive(kind: str, members: Sequence[tuple[str, bytes, str]]) -> bytes:
    file = io.BytesIO()
    if kind == "tar":
        types = {
            "link": tarfile.SYMTYPE,
            "hard link": tarfile.LNKTYPE,
            "device": tarfile.CHRTYPE,
            "folder": tarfile.DIRTYPE,
        }
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name, content, what in members:
                name = name.encode("utf-8", "replace").decode()
                content = bytes(20_000) if what == "bomb" else content
                info = tarfile.TarInfo(name)
                info.type, info.size, info.linkname = types.get(what, tarfile.REGTYPE), len(content), "/etc/passwd"
                tar.addfile(info, io.BytesIO(content))
    else:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, content, what in members:
                info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode() or "empty")
                info.external_attr = (0o120777 if what == "link" else 0o100644) << 16
                info.compress_type = zipfile.ZIP_DEFLATED
                packed.writestr(info, bytes(200_000) if what == "bomb" else content)
    return file.getvalue()


@st.composite
def archives(draw: st.DrawFn) -> tuple[bytes, bool]:
    with warnings.catch_warnings(action="ignore"):  # of a name given twice
        data = write_archive(draw(st.sampled_from(("tar", "zip"))), draw(MEMBERS))
    return (draw(broken_bytes(data)) if draw(st.booleans()) else data), draw(st.booleans())


def check_archive(folder: Path, case: tuple[bytes, bool]) -> None:
    data, some = case
    (folder / "x.archive").write_bytes(data)
    root = folder / "inner" / "root"
    names = answer(
        lambda: extract(folder / "x.archive", root, lambda name: name.startswith("a") or not some), "x.archive", root
    )
    there = [path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()]
    assert all(
        path.is_relative_to(root) and path.is_file() and not path.is_symlink()
        for path in there
        if path.name != "x.archive"
    )
    assert sum(path.stat().st_size for path in there) <= (MOST_UNPACKED + 1) * len(data)
    if names is not None:
        assert {path.relative_to(root).as_posix() for path in there if path.name != "x.archive"} == set(names)
        assert len(set(names)) == len(names)


TARGETS = [
    Target(
        "CSV",
        st.tuples(broken_lines(ROWS, ","), st.booleans()),
        check_csv,
        examples=[(b"\npath,labels\na.png,dog\n", False), (b"path,labels\na\\b,dog\n", False)],
    ),
    Target(
        "class list",
        broken_lines([["dog", "0"], ["cat", "1"]], " ") | broken_lines([["dog"], ["cat"]], " "),
        check_classes,
    ),
    Target(
        "COCO json",
        st.tuples(
            broken_json(INSTANCES),
            st.just(json.dumps(CAPTIONS).encode()) | broken_json(CAPTIONS),
            st.booleans(),
            st.booleans(),
        ),
        check_coco,
        examples=[
            (json.dumps(INSTANCES).encode().replace(b'"id": 7', b'"id": ' + b"9" * 5000), b"{}", True, False),
            (
                json.dumps(INSTANCES).encode().replace(b"[0, 0, 8, 6]", b"[0, 0, 1" + b"0" * 400 + b", 6]"),
                b"{}",
                True,
                False,
            ),
            (json.dumps(INSTANCES).encode().replace(b"a.png", b"x" * 300), json.dumps(CAPTIONS).encode(), True, False),
            (json.dumps(INSTANCES).encode().replace(b'"cat"', b'"\\u2028"'), b"{}", True, False),
            (json.dumps(INSTANCES).encode().replace(b'"cat"', b'" cat\\u2028"'), b"{}", True, False),
        ],
        nightly=1500,
        share=60,
    ),
    Target(
        "published list",
        st.tuples(
            broken_lines(LIST, " "), st.just(b"a.png x\nb.png y\n") | broken_lines(LIST_CAPTIONS, " "), st.booleans()
        ),
        check_lists,
        examples=[(b"a.png " + b"9" * 5000, b"a.png x\n", False)],
    ),
    Target("VOC devkit", voc_cases(), check_voc, examples=[(LAUGHS, b"000001\n"), (OUTSIDE, b"000001\n")]),
    Target("episode file", broken_lines(EPISODE, ","), check_episode),
    Target(
        "published episodes",
        st.tuples(st.sampled_from(PUBLISHED), broken_json({"episodes": []}), st.sampled_from(("voc2007", "coco2014"))),
        check_published,
        nightly=200,
        share=10,
    ),
    Target("archive", archives(), check_archive, examples=[(write_archive("tar", [("x" * 300, b"x", "file")]), False)]),
]


@parametrize(TARGETS)
def test_fuzz(target: Target, nightly: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: Faults) -> None:
    fuzz(target, nightly, tmp_path, monkeypatch, faults)
