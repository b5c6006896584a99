"""Published data sets: prepared from a server or a folder, verified, loaded by name; and the real lists in full."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from hpdval import cli
from hpdval.commands import data
from hpdval.data import load_dataset
from hpdval.data.prepare import steps
from hpdval.data.prepare.catalogue import CATALOGUE, COCO2014, COCO_LT, VOC2007, VOC_LT
from hpdval.data.prepare.published import Facts, PublishedSet
from hpdval.data.prepare.steps import prepare
from hpdval.data.prepare.verify import verify
from hpdval.data.voc import CLASSES
from hpdval.errors import ConfigError, DataError

COCO_NAMES = {1: "person", 3: "car", 4: "cat"}  # three of the categories, with their gaps


# --- small copies of the published sets, on the loopback server -------------------------------------------------------


def jpeg(seed: int) -> bytes:
    """A drawn picture, different for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((48, 32)).save(buffer, "JPEG")
    return buffer.getvalue()


def xml(*names: str) -> bytes:
    """An annotation; names with a star are difficult."""
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    objects = (
        f"<object><name>{n.strip('*')}</name><difficult>{int('*' in n)}</difficult>{box}</object>" for n in names
    )
    return f"<annotation>{''.join(objects)}</annotation>".encode()


def tar_of(content: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zip_of(content: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def devkit(year: str, part: str, labels: dict[str, tuple[str, ...]]) -> dict[str, bytes]:
    """An image set with its annotations and pictures, and a file that no set needs."""
    base = f"VOCdevkit/VOC{year}"
    content = {f"{base}/ImageSets/Main/{part}.txt": "".join(f"{stem}\n" for stem in labels).encode()}
    for seed, (stem, names) in enumerate(labels.items()):
        content[f"{base}/Annotations/{stem}.xml"] = xml(*names)
        content[f"{base}/JPEGImages/{stem}.jpg"] = jpeg(seed + int(year))
    return content | {f"{base}/SegmentationClass/{next(iter(labels))}.png": b"not needed"}


def instances(labels: dict[str, tuple[int, ...]]) -> bytes:
    """A COCO json: file name to category ids, negative ones in a crowd."""
    images = [{"id": i, "file_name": name, "width": 48, "height": 32} for i, name in enumerate(labels)]
    objects = [
        {"id": 10 * i + k, "image_id": i, "category_id": abs(c), "iscrowd": int(c < 0), "bbox": [0, 0, 4, 4]}
        for i, found in enumerate(labels.values())
        for k, c in enumerate(found)
    ]
    categories = [{"id": i, "name": name} for i, name in COCO_NAMES.items()]
    return json.dumps({"images": images, "annotations": objects, "categories": categories}).encode()


def serve(known: PublishedSet, content: dict[str, bytes], facts: Facts, server: Any, holds: int = 1) -> PublishedSet:
    """The set with its files on the server: their addresses, sizes and hashes, and the counts of the small copy."""

    def here(file: Any) -> Any:
        data = content[file.name]
        server.files[f"/{file.name}"] = data
        pinned = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        return replace(file, url=f"{server.url}/{file.name}", **pinned)

    def single(archive: Any) -> Any:
        return replace(archive, each=archive.each and f"{server.url}/{{path}}", holds=holds)

    archives = tuple(single(here(archive)) for archive in known.archives)
    return replace(known, lists=tuple(map(here, known.lists)), archives=archives, facts=facts)


TRAINVAL_2012 = {"2008_1": ("cat",), "2008_2": ("dog", "cat"), "2008_3": ("bus*",), "2008_4": ("dog",)}
TRAINVAL_2007 = {"000005": ("cat", "dog*"), "000007": ("car",)}
TEST_2007 = {"000001": ("dog", "person*"), "000002": ("cat",), "000009": ("bus",)}


@pytest.fixture
def voc_lt(loopback: Any, monkeypatch: pytest.MonkeyPatch) -> PublishedSet:
    """Three of the four 2012 images and two of the three of 2007 are listed, difficult ones counted or not."""

    def line(year: str, stem: str, *names: str) -> str:
        return " ".join([f"VOCdevkit/VOC{year}/JPEGImages/{stem}.jpg", *(str(CLASSES.index(name)) for name in names)])

    train = [line("2012", "2008_1", "cat"), line("2012", "2008_2", "dog", "cat"), line("2012", "2008_3", "bus")]
    test = [line("2007", "000001", "dog"), line("2007", "000002", "cat")]
    content = {
        "voc_lt_train.txt": "\n".join(train).encode(),  # no newline at the end, as published
        "voc_lt_test.txt": "\n".join([*test, ""]).encode(),
        "voc_labels.txt": "\r\n".join(f"{name} {i}" for i, name in enumerate(CLASSES)).encode(),
        "voc_lt_captions.txt": b"a caption",
        "VOCtrainval_11-May-2012.tar": tar_of(devkit("2012", "trainval", TRAINVAL_2012)),
        "VOCtest_06-Nov-2007.tar": tar_of(devkit("2007", "test", TEST_2007)),
    }
    facts = Facts(images=(3, 2), classes=20, labels=(4, 2), extremes=(0, 2), groups=(0, 0, 20), unlabelled=(0, 0))
    known = serve(VOC_LT, content, facts, loopback)
    monkeypatch.setitem(CATALOGUE, "voc-lt", known)
    return known


TRAIN = {f"{i:012}.jpg": (1, 3) if i % 2 else (4,) for i in range(10)}
VAL = {f"{i:012}.jpg": (3,) if i else () for i in range(100, 104)}


@pytest.fixture
def coco_lt(loopback: Any, monkeypatch: pytest.MonkeyPatch) -> PublishedSet:
    """Two of ten training images are listed, and all four test images, of which one has no label."""
    content = {
        "coco_lt_train.txt": b"train2017/000000000001.jpg 0 1 \ntrain2017/000000000002.jpg 2\n",
        "coco_lt_test.txt": "".join(f"val2017/{name} 1\n" for name in VAL).replace("100.jpg 1", "100.jpg").encode(),
        "coco_labels.txt": "".join(f"{name} {i}\n" for i, name in enumerate(COCO_NAMES.values())).encode(),
        "coco_lt_captions.txt": b"a caption",
        "annotations_trainval2017.zip": zip_of(
            {
                "annotations/instances_train2017.json": instances(TRAIN),
                "annotations/instances_val2017.json": instances(VAL | {"000000000100.jpg": ()}),
                "annotations/captions_val2017.json": b"not needed",
            }
        ),
    }
    for part, names in (("train2017", TRAIN), ("val2017", VAL)):
        pictures = {f"{part}/{name}": jpeg(int(name[:12])) for name in names}
        content[f"{part}.zip"] = zip_of({f"{part}/": b""} | pictures)
        loopback.files |= {f"/{name}": data for name, data in pictures.items()}
    facts = Facts(images=(2, 4), classes=3, labels=(3, 3), extremes=(1, 1), groups=(0, 0, 3), unlabelled=(0, 1))
    known = serve(COCO_LT, content, facts, loopback, holds=10)
    val = replace(known.archives[2], holds=4)
    known = replace(known, archives=(*known.archives[:2], val))
    monkeypatch.setitem(CATALOGUE, "coco-lt", known)
    return known


@pytest.fixture
def voc2007(loopback: Any, monkeypatch: pytest.MonkeyPatch) -> PublishedSet:
    content = {
        "VOCtrainval_06-Nov-2007.tar": tar_of(devkit("2007", "trainval", TRAINVAL_2007)),
        "VOCtest_06-Nov-2007.tar": tar_of(devkit("2007", "test", TEST_2007)),
    }
    known = serve(VOC2007, content, Facts(images=(2, 3), classes=20), loopback)
    monkeypatch.setitem(CATALOGUE, "voc2007", known)
    return known


@pytest.fixture
def coco2014(loopback: Any, monkeypatch: pytest.MonkeyPatch) -> PublishedSet:
    parts = {part: {f"COCO_{part}_{i:012}.jpg": (1, 3) for i in range(3)} for part in ("train2014", "val2014")}
    annotations = {f"annotations/instances_{part}.json": instances(labels) for part, labels in parts.items()}
    content = {"annotations_trainval2014.zip": zip_of(annotations)}
    for part, labels in parts.items():
        content[f"{part}.zip"] = zip_of({f"{part}/{name}": jpeg(i) for i, name in enumerate(labels)})
    known = serve(COCO2014, content, Facts(images=(3, 3), classes=3), loopback, holds=3)
    monkeypatch.setitem(CATALOGUE, "coco2014", known)
    return known


def run(known: PublishedSet, root: Path, **options: Any) -> Any:
    return prepare(known, root, show=False, pause=0.001, **options)


def tree(root: Path) -> list[str]:
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and p.name != steps.LOCK)


def asked(server: Any) -> list[str]:
    return [path.removeprefix("/") for path, _, _ in server.log]


VOC_LT_TREE = sorted(
    [
        *(
            "hpdval-data.json",
            "voc-lt.sha256",
            "voc_labels.txt",
            "voc_lt_captions.txt",
            "voc_lt_test.txt",
            "voc_lt_train.txt",
        ),
        *(f"VOCdevkit/VOC2012/JPEGImages/2008_{i}.jpg" for i in (1, 2, 3)),
        *(f"VOCdevkit/VOC2012/Annotations/2008_{i}.xml" for i in (1, 2, 3)),
        *(f"VOCdevkit/VOC2007/JPEGImages/00000{i}.jpg" for i in (1, 2)),
        *(f"VOCdevkit/VOC2007/Annotations/00000{i}.xml" for i in (1, 2)),
    ]
)


# --- from the server --------------------------------------------------------------------------------------------------


def test_a_long_tail_set_from_archives(voc_lt: PublishedSet, loopback: Any, tmp_path: Path) -> None:
    report = run(voc_lt, tmp_path)
    assert report.ok, report
    assert tree(tmp_path) == VOC_LT_TREE  # what is listed, and the archives are gone
    assert ("labels against 5 annotations", "0", "0", True) in report.rows
    record = json.loads((tmp_path / "hpdval-data.json").read_text())["files"]
    assert {name: entry["sha256"] for name, entry in record.items()} == {
        file.name: file.sha256 for file in (*voc_lt.lists, *voc_lt.archives)
    }

    requests = len(loopback.log)
    assert run(voc_lt, tmp_path).ok
    assert len(loopback.log) == requests  # nothing was missing, nobody was asked


def test_a_prepared_set_loads_by_name(voc_lt: PublishedSet, tmp_path: Path) -> None:
    run(voc_lt, tmp_path)
    data = load_dataset("voc-lt", root=tmp_path)
    assert data.name == "voc-lt"
    assert data.classes == CLASSES
    assert data.train.ids == tuple(f"VOCdevkit/VOC2012/JPEGImages/2008_{i}.jpg" for i in (1, 2, 3))
    names = [{CLASSES[i] for i in np.flatnonzero(row)} for row in data.train.targets]
    assert names == [{"cat"}, {"cat", "dog"}, {"bus"}]
    assert len(data.test) == 2
    assert data.test.image(0).shape == (32, 48, 3)


def test_few_images_come_one_by_one_and_many_in_their_archive(
    coco_lt: PublishedSet, loopback: Any, tmp_path: Path
) -> None:
    report = run(coco_lt, tmp_path)
    assert report.ok, report
    images = ["train2017/000000000001.jpg", "train2017/000000000002.jpg"]
    lists = [file.name for file in coco_lt.lists]
    assert sorted(asked(loopback)) == sorted([*lists, "annotations_trainval2017.zip", *images, "val2017.zip"])
    assert ("labels against 6 annotations", "0", "0", True) in report.rows
    assert ("images without a label", "0 / 1", "0 / 1", True) in report.rows
    assert not (tmp_path / "annotations/captions_val2017.json").exists()
    assert load_dataset("coco-lt", root=tmp_path, val=0.0).test.ids == tuple(f"val2017/{name}" for name in VAL)

    loopback.log.clear()
    (tmp_path / "val2017/000000000102.jpg").unlink()
    assert run(coco_lt, tmp_path).ok
    assert asked(loopback) == ["val2017/000000000102.jpg"]  # one of four is not worth the archive


def test_the_devkit_of_2007(voc2007: PublishedSet, tmp_path: Path) -> None:
    report = run(voc2007, tmp_path)
    assert report.ok, report
    data = load_dataset("voc2007", root=tmp_path)
    assert data.name == "voc2007"
    assert data.train.targets.sum(0)[[CLASSES.index("cat"), CLASSES.index("dog")]].tolist() == [1, 1]  # difficult, too
    assert data.test.ids[0] == "VOC2007/JPEGImages/000001.jpg"
    assert not (tmp_path / "VOCdevkit/VOC2007/SegmentationClass").exists()
    (tmp_path / "VOCdevkit/VOC2007/Annotations/000007.xml").unlink()
    assert not verify(voc2007, tmp_path, show=False).ok
    assert run(voc2007, tmp_path).ok


def test_coco_2014(coco2014: PublishedSet, tmp_path: Path) -> None:
    report = run(coco2014, tmp_path)
    assert report.ok, report
    data = load_dataset("coco2014", root=tmp_path)
    assert data.name == "coco2014"
    assert data.train.ids[2] == "train2014/COCO_train2014_000000000002.jpg"
    assert data.train.targets.tolist() == [[1, 1, 0]] * 3
    assert data.test.image(1).shape == (32, 48, 3)


def test_whole_archives_and_archives_that_stay(voc_lt: PublishedSet, loopback: Any, tmp_path: Path) -> None:
    assert run(voc_lt, tmp_path, everything=True, keep_archives=True).ok
    everything = {*devkit("2012", "trainval", TRAINVAL_2012), *devkit("2007", "test", TEST_2007)}
    archives = {f"downloads/{archive.name}" for archive in voc_lt.archives}
    assert set(tree(tmp_path)) == {*VOC_LT_TREE, *everything, *archives}

    requests = len(loopback.log)
    (tmp_path / VOC_LT_TREE[0]).unlink()
    assert run(voc_lt, tmp_path, everything=True, keep_archives=True).ok
    assert len(loopback.log) == requests


def test_a_kept_archive_that_was_damaged_is_fetched_again(voc_lt: PublishedSet, loopback: Any, tmp_path: Path) -> None:
    kept = tmp_path / "downloads" / "VOCtest_06-Nov-2007.tar"
    kept.parent.mkdir()
    kept.write_bytes(b"\0" + loopback.files[f"/{kept.name}"][1:])
    assert run(voc_lt, tmp_path).ok
    assert kept.name in asked(loopback)


def test_a_failure_leaves_what_was_done(voc_lt: PublishedSet, loopback: Any, tmp_path: Path) -> None:
    loopback.plans["/VOCtest_06-Nov-2007.tar"] = iter([("break", 3000), ("status", 404)])
    with pytest.raises(DataError, match=r"VOCtest_06-Nov-2007\.tar: the server answers 404"):
        run(voc_lt, tmp_path)
    assert (tmp_path / "VOCdevkit/VOC2012/JPEGImages/2008_1.jpg").is_file()
    loopback.log.clear()
    assert run(voc_lt, tmp_path).ok
    assert loopback.log == [("/VOCtest_06-Nov-2007.tar", "bytes=3000-", 206)]
    assert tree(tmp_path) == VOC_LT_TREE


def test_interrupted_while_extracting(
    voc_lt: PublishedSet, loopback: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(steps, "extract", stop)
        with pytest.raises(KeyboardInterrupt):
            run(voc_lt, tmp_path)
    loopback.log.clear()
    assert run(voc_lt, tmp_path).ok
    assert asked(loopback) == ["VOCtest_06-Nov-2007.tar"]  # the first archive was there already
    assert tree(tmp_path) == VOC_LT_TREE


def test_a_page_in_place_of_an_image(coco_lt: PublishedSet, loopback: Any, tmp_path: Path) -> None:
    good = loopback.files["/train2017/000000000002.jpg"]
    loopback.files["/train2017/000000000002.jpg"] = b"<html>please log in</html>"
    with pytest.raises(
        DataError, match=r"000000000002\.jpg: what came is not usable: .*not an image of a known format"
    ):
        run(coco_lt, tmp_path)
    assert not list(tmp_path.glob("train2017/000000000002*"))
    loopback.files["/train2017/000000000002.jpg"] = good[:-100]
    with pytest.raises(DataError, match=r"000000000002\.jpg: what came is not usable: .*cannot be decoded"):
        run(coco_lt, tmp_path)
    loopback.files["/train2017/000000000002.jpg"] = good
    assert run(coco_lt, tmp_path).ok


def test_an_altered_list_is_replaced(voc_lt: PublishedSet, loopback: Any, tmp_path: Path) -> None:
    run(voc_lt, tmp_path)
    path = tmp_path / "voc_lt_train.txt"
    path.write_text(path.read_text().replace("2008_1.jpg 7", "2008_1.jpg 8"))
    loopback.log.clear()
    assert run(voc_lt, tmp_path).ok
    assert asked(loopback) == ["voc_lt_train.txt"]


def test_an_archive_without_what_is_listed(voc_lt: PublishedSet, loopback: Any, tmp_path: Path) -> None:
    content = {"voc_lt_test.txt": b"VOCdevkit/VOC2007/JPEGImages/777777.jpg 1\n"}
    data = content["voc_lt_test.txt"]
    loopback.files["/voc_lt_test.txt"] = data
    altered = replace(voc_lt.lists[1], size=len(data), sha256=hashlib.sha256(data).hexdigest())
    known = replace(voc_lt, lists=(voc_lt.lists[0], altered, *voc_lt.lists[2:]))
    with pytest.raises(DataError, match=r"VOCtest.* does not hold VOCdevkit/VOC2007/JPEGImages/777777\.jpg \(1 such"):
        run(known, tmp_path)


def test_two_at_once(voc_lt: PublishedSet, loopback: Any, tmp_path: Path) -> None:
    with FileLock(tmp_path / steps.LOCK), pytest.raises(DataError, match="is being prepared by another process"):
        run(voc_lt, tmp_path)
    assert loopback.log == []


def test_sizes_are_said_first_and_the_disk_is_looked_at(
    coco_lt: PublishedSet, loopback: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    usage = type("Usage", (), {"free": 1000})
    with monkeypatch.context() as patch:
        patch.setattr(steps.shutil, "disk_usage", lambda path: usage)
        with pytest.raises(DataError, match=r"has 1 kB free but \d+ kB are to be downloaded; make room"):
            prepare(coco_lt, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=2)[2] for line in lines[:3]] == [
        *("annotations_trainval2017.zip", "2 images of train2017.zip", "val2017.zip"),
    ]
    assert lines[3].startswith("coco-lt: about ")
    assert not any(name.endswith((".zip", ".jpg")) for name in asked(loopback))


# --- from a folder ----------------------------------------------------------------------------------------------------


def unpack(server: Any, names: Iterable[str], folder: Path) -> None:
    """Files of the server as a user may have them: archives extracted, lists as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        data = server.files[f"/{name}"]
        if name.endswith(".tar"):
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                archive.extractall(folder, filter="data")
        elif name.endswith(".zip"):
            with zipfile.ZipFile(io.BytesIO(data)) as packed:
                packed.extractall(folder)
        else:
            (folder / name).write_bytes(data)


@pytest.mark.parametrize("extracted", [True, False])
def test_everything_from_a_folder(extracted: bool, voc_lt: PublishedSet, loopback: Any, tmp_path: Path) -> None:
    mine, root = tmp_path / "mine", tmp_path / "root"
    names = [file.name for file in (*voc_lt.lists, *voc_lt.archives)]
    if extracted:
        unpack(loopback, names, mine / "some" / "where")
    else:
        mine.mkdir()
        for name in names:
            (mine / name).write_bytes(loopback.files[f"/{name}"])
    report = run(voc_lt, root, source=mine)
    assert report.ok, report
    assert loopback.log == []
    assert set(VOC_LT_TREE) - {"hpdval-data.json"} <= set(tree(root))
    assert not (root / "downloads").exists()
    if extracted:  # linked, not copied
        path = "VOCdevkit/VOC2012/JPEGImages/2008_1.jpg"
        assert (root / path).samefile(mine / "some" / "where" / path)
    else:
        assert (mine / "VOCtest_06-Nov-2007.tar").is_file()


def test_linked_folders_and_folders_below_other_names(coco_lt: PublishedSet, loopback: Any, tmp_path: Path) -> None:
    disk, mine = tmp_path / "disk", tmp_path / "mine"
    unpack(loopback, ["train2017.zip", "val2017.zip", "annotations_trainval2017.zip"], disk)
    unpack(loopback, [file.name for file in coco_lt.lists if not file.optional], mine / "lists")
    for name in ("train2017", "val2017", "annotations"):
        (mine / name).symlink_to(disk / name)
    report = run(coco_lt, tmp_path / "root", source=mine)
    assert report.ok, report  # the captions, which no count needs, may be absent
    assert loopback.log == []


def test_image_sets_from_an_extracted_devkit(voc2007: PublishedSet, loopback: Any, tmp_path: Path) -> None:
    unpack(loopback, [archive.name for archive in voc2007.archives], tmp_path / "mine")
    assert run(voc2007, tmp_path / "root", source=tmp_path / "mine" / "VOCdevkit").ok
    assert loopback.log == []


def test_where_links_are_not_possible_files_are_copied(
    voc_lt: PublishedSet, loopback: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*arguments: Any, **options: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", no_link)
    unpack(loopback, [file.name for file in (*voc_lt.lists, *voc_lt.archives)], tmp_path / "mine")
    assert run(voc_lt, tmp_path / "root", source=tmp_path / "mine").ok
    path = "VOCdevkit/VOC2012/JPEGImages/2008_1.jpg"
    assert (tmp_path / "root" / path).read_bytes() == (tmp_path / "mine" / path).read_bytes()
    assert not (tmp_path / "root" / path).samefile(tmp_path / "mine" / path)


def test_what_the_folder_lacks_is_counted_and_comes_from_the_server(
    voc_lt: PublishedSet, loopback: Any, tmp_path: Path
) -> None:
    mine, root = tmp_path / "mine", tmp_path / "root"
    unpack(loopback, [*(file.name for file in voc_lt.lists), "VOCtrainval_11-May-2012.tar"], mine)
    report = run(voc_lt, root, source=mine)
    assert not report.ok
    assert ("files missing, VOCtest_06-Nov-2007.tar", "2", "0", False) in report.rows
    assert "2 missing: VOCdevkit/VOC2007/JPEGImages/000001.jpg, " in str(report)
    assert run(voc_lt, root).ok
    assert asked(loopback) == ["VOCtest_06-Nov-2007.tar"]


def test_an_archive_or_a_list_of_other_content_is_not_taken(
    voc_lt: PublishedSet, loopback: Any, tmp_path: Path
) -> None:
    mine, root = tmp_path / "mine", tmp_path / "root"
    unpack(loopback, [file.name for file in voc_lt.lists], mine)
    (mine / "VOCtest_06-Nov-2007.tar").write_bytes(tar_of({"VOCdevkit/VOC2007/JPEGImages/000001.jpg": b"other"}))
    with pytest.raises(DataError, match=r"VOCtest_06-Nov-2007\.tar is not .* as published \(sha256\)"):
        run(voc_lt, root, source=mine)
    (mine / "voc_lt_test.txt").write_text("mine")
    (mine / "VOCtest_06-Nov-2007.tar").unlink()
    shutil.rmtree(root)
    assert ("voc_lt_test.txt", "missing", "as published", False) in run(voc_lt, root, source=mine).rows


def test_a_folder_that_is_none(voc_lt: PublishedSet, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere is not a folder"):
        run(voc_lt, tmp_path, source=tmp_path / "nowhere")


# --- verification -----------------------------------------------------------------------------------------------------


def cut_off(root: Path) -> None:
    path = root / "VOCdevkit/VOC2012/JPEGImages/2008_2.jpg"
    path.write_bytes(path.read_bytes()[:-200])


def replaced(root: Path) -> None:
    (root / "VOCdevkit/VOC2007/JPEGImages/000002.jpg").write_text("<html>")


def removed(root: Path) -> None:
    (root / "VOCdevkit/VOC2012/JPEGImages/2008_3.jpg").unlink()


def relabelled(root: Path) -> None:
    path = root / "voc_lt_train.txt"
    path.write_text(path.read_text().replace("2008_2.jpg 11 7", "2008_2.jpg 11 8"))


def contradicted(root: Path) -> None:
    (root / "VOCdevkit/VOC2012/Annotations/2008_1.xml").write_bytes(xml("cat", "sheep"))


def reclassed(root: Path) -> None:
    path = root / "voc_labels.txt"
    path.write_text(path.read_text().replace("cat 7", "dog 7").replace("dog 11", "cat 11"))


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (cut_off, r"1 damaged or cut off: .*2008_2\.jpg cannot be decoded"),
        (replaced, r"1 damaged or cut off: .*000002\.jpg cannot be decoded"),
        (removed, r"1 missing: VOCdevkit/VOC2012/JPEGImages/2008_3\.jpg"),
        (relabelled, r"voc_lt_train\.txt: altered instead of as published"),
        (relabelled, r"1 labels differ: VOCdevkit/VOC2012/JPEGImages/2008_2\.jpg \(cat, chair\)"),
        (contradicted, r"1 labels differ: VOCdevkit/VOC2012/JPEGImages/2008_1\.jpg \(sheep\)"),
        (reclassed, r"3 labels differ: .*2008_1\.jpg \(cat, dog\), .*000001\.jpg \(cat, dog\)"),
        (lambda root: (root / "voc_lt_test.txt").unlink(), r"lists and labels cannot be used: test=.*not a file"),
    ],
)
def test_each_harm_is_noticed_and_named(
    harm: Callable[[Path], None], sentence: str, voc_lt: PublishedSet, tmp_path: Path
) -> None:
    run(voc_lt, tmp_path)
    harm(tmp_path)
    report = verify(voc_lt, tmp_path, show=False)
    with pytest.raises(
        DataError, match=rf"{sentence}.*then run: hpdval data prepare voc-lt --root {tmp_path}"
    ) as caught:
        report.check()
    assert "\n" not in str(caught.value)
    assert "WRONG" in str(report)


def test_the_content_of_images_is_written_down_once(voc_lt: PublishedSet, loopback: Any, tmp_path: Path) -> None:
    run(voc_lt, tmp_path)
    listed = [name for name in VOC_LT_TREE if name.endswith(".jpg")]
    lines = [f"{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}  {name}\n" for name in listed]
    assert (tmp_path / "voc-lt.sha256").read_text() == "".join(sorted(lines, key=lambda line: line[66:]))

    path = tmp_path / listed[0]
    before, other = path.read_bytes(), (tmp_path / listed[1]).read_bytes()
    path.write_bytes(other)  # a good picture, but another one
    assert run(voc_lt, tmp_path).ok
    report = verify(voc_lt, tmp_path, decoded=True, show=False)
    assert report.wrong == [f"1 damaged or changed: {listed[0]} has changed since it was prepared"]
    path.unlink()
    assert run(voc_lt, tmp_path).ok
    assert path.read_bytes() == before
    assert verify(voc_lt, tmp_path, decoded=True, show=False).ok


def test_decoding_notices_more_than_a_look(voc_lt: PublishedSet, tmp_path: Path) -> None:
    run(voc_lt, tmp_path)
    (tmp_path / "voc-lt.sha256").unlink()
    path = tmp_path / "VOCdevkit/VOC2012/JPEGImages/2008_2.jpg"
    data = path.read_bytes()
    table = data.index(b"\xff\xc4") + 5
    path.write_bytes(data[:table] + b"\xff" * 16 + data[table + 16 :])  # header and end are as they were
    assert verify(voc_lt, tmp_path, show=False).ok
    assert "2008_2.jpg cannot be decoded" in str(verify(voc_lt, tmp_path, decoded=True, show=False))


def test_a_crowd_may_or_may_not_count(coco_lt: PublishedSet, tmp_path: Path) -> None:
    run(coco_lt, tmp_path)
    path = tmp_path / "annotations/instances_train2017.json"
    path.write_bytes(instances(TRAIN | {"000000000001.jpg": (1, -3), "000000000002.jpg": (4, -1)}))
    assert verify(coco_lt, tmp_path, show=False).ok
    path.write_bytes(instances(TRAIN | {"000000000001.jpg": (1, 3, 4)}))
    assert "1 labels differ: train2017/000000000001.jpg (cat)" in str(verify(coco_lt, tmp_path, show=False))
    path.write_text("{}")
    with pytest.raises(DataError, match="is not a COCO instances json"):
        verify(coco_lt, tmp_path, show=False)


# --- the real lists ---------------------------------------------------------------------------------------------------


@pytest.fixture
def real(shared_data: Path, tmp_path: Path) -> Path:
    """A root with the published lists, and the annotations of some COCO images."""
    for path in (*(shared_data / "splits").glob("*.txt"), shared_data / "coco-photos" / "annotations"):
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


@pytest.mark.shared
@pytest.mark.parametrize("known", [VOC_LT, COCO_LT], ids=lambda known: known.name)
def test_the_published_lists_in_full(known: PublishedSet, real: Path, shared_data: Path) -> None:
    report = verify(known, real, images=False)
    assert report.ok, report
    assert len(report.rows) == 10 + (known is COCO_LT)
    published = json.loads((shared_data / "splits" / "splits.json").read_text())[known.name]
    data = load_dataset(known.name, root=real, require_images=False)
    for split, part in ((data.train, "train"), (data.test, "test")):
        # counted from the text, without the package
        lines = (shared_data / "splits" / f"{known.name.replace('-', '_')}_{part}.txt").read_text().splitlines()
        counts = Counter(int(index) for line in lines for index in line.split()[1:])
        assert {published["classes"][i]: n for i, n in counts.items()} == published[part]["counts"]
        assert split.targets.sum(0).tolist() == [counts[i] for i in range(len(data.classes))]
        rows = {line.split()[0]: {int(index) for index in line.split()[1:]} for line in lines}
        assert {name: {*np.flatnonzero(row)} for name, row in zip(split.ids, split.targets, strict=True)} == rows
    names = {group: {data.classes[i] for i in indices} for group, indices in data.groups.items()}
    assert names == {group: set(published[group]) for group in ("head", "medium", "tail")}


@pytest.mark.shared
def test_the_catalogue_restates_the_published_hashes(shared_data: Path) -> None:
    files = json.loads((shared_data / "splits" / "splits.json").read_text())["files"]
    lists = [file for known in CATALOGUE.values() for file in known.lists]
    assert {file.name: (file.sha256, file.size) for file in lists} == {
        name: (entry["sha256"], entry["bytes"]) for name, entry in files.items()
    }


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "old", "new", "noticed"),
    [
        ("voc_lt_train.txt", "2008_000023.jpg 14 4 19", "2008_000023.jpg 14 4", "labels, train / test"),
        ("voc_lt_train.txt", "2008_000028.jpg 6", "2008_000028.jpg 14", "rarest / commonest class"),
        ("voc_lt_test.txt", "000002.jpg 18", "000002.jpg 18 3", "labels, train / test"),
        ("coco_lt_test.txt", "000000037777.jpg 46 49", "000000037777.jpg 46 48", "labels against"),
        ("coco_lt_train.txt", "000000118113.jpg 39 60", "000000118113.jpg 39 61", None),
    ],
)
def test_one_altered_label_is_noticed(name: str, old: str, new: str, noticed: str | None, real: Path) -> None:
    """By the hash of the list always, and by counts or annotations where these can tell."""
    text = (real / name).read_text()
    assert text.count(old) == 1
    (real / name).unlink()
    (real / name).write_text(text.replace(old, new))
    known = VOC_LT if name.startswith("voc") else COCO_LT
    report = verify(known, real, images=False)
    wrong = [row[0] for row in report.rows if not row[3]]
    assert wrong[0] == name
    assert len(wrong) == 1 if noticed is None else wrong[1].startswith(noticed)
    with pytest.raises(DataError, match=rf"{name} is not the published list"):
        load_dataset(known.name, root=real, require_images=False)


# --- by name, and the command line ------------------------------------------------------------------------------------


def test_a_name_needs_a_prepared_folder(voc_lt: PublishedSet, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="voc-lt needs root=, a folder made by: hpdval data prepare voc-lt --root DIR"
    ):
        load_dataset("voc-lt")
    command = f"hpdval data prepare voc-lt --root {tmp_path}"
    with pytest.raises(
        DataError, match=rf"is not prepared for voc-lt \(voc_lt_train\.txt is not there\); run: {command}"
    ):
        load_dataset("voc-lt", root=tmp_path)
    run(voc_lt, tmp_path)
    removed(tmp_path)
    with pytest.raises(DataError, match=rf"2008_3\.jpg is not a file .*\(1 of 3 images are missing\).*{command}"):
        load_dataset("voc-lt", root=tmp_path)
    assert len(load_dataset("voc-lt", root=tmp_path, require_images=False).train) == 3
    with pytest.raises(ConfigError, match="unknown option crowd"):
        load_dataset("voc-lt", root=tmp_path, crowd=True)


def test_the_command_line_and_the_page_know_the_catalogue() -> None:
    assert tuple(CATALOGUE) == data.DATA_SETS
    page = (Path(__file__).resolve().parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
    for known in CATALOGUE.values():
        train, test = known.facts.images
        assert f"| `{known.name}` | {train:,} / {test:,} |" in page
        for file in (*known.lists, *known.archives):
            assert len(file.sha256 or "") == 64
            assert file.size
            assert file.url.endswith(file.name)


def test_prepare_and_verify_from_the_command_line(
    voc_lt: PublishedSet, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPDVAL_HEADLESS", "1")
    root = str(tmp_path / "root")
    assert cli.main(["data", "prepare", "voc-lt", "--root", root, "--decode"]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"voc-lt: about \d+ kB to download into {root}\n", out)
    assert f'ready: hpdval.load_dataset("voc-lt", root="{root}")' in out
    assert cli.main(["data", "verify", "voc-lt", "--root", root]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0] == f"voc-lt in {root}"
    assert table[1].split() == ["found", "expected"]
    assert all(line.endswith(" ok") for line in table[2:])

    removed(tmp_path / "root")
    assert cli.main(["data", "verify", "voc-lt", "--root", root, "--lists-only"]) == 0
    capsys.readouterr()
    assert cli.main(["data", "verify", "voc-lt", "--root", root]) == 2
    captured = capsys.readouterr()
    assert "files missing, VOCtrainval_11-May-2012.tar  " in captured.out
    assert captured.err.startswith(f"hpdval: voc-lt in {root}: 1 missing: VOCdevkit/VOC2012/JPEGImages/2008_3.jpg. ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "coco-lt", "--root", "nowhere"], "nowhere is not a folder; run: hpdval data prepare coco-lt"),
        (["prepare", "coco-lt", "--root", "{}", "--from", "nowhere"], "--from nowhere is not a folder"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", *(text.format(tmp_path) for text in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_ctrl_c_says_how_to_go_on(
    voc_lt: PublishedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(steps, "extract", lambda *arguments, **options: next(iter(())))
    monkeypatch.setattr(
        steps, "download", lambda *arguments, **options: (_ for _ in repeat(0)).throw(KeyboardInterrupt)
    )
    assert cli.main(["data", "prepare", "voc-lt", "--root", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "hpdval: interrupted; the same command continues\n"
