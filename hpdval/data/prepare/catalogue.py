"""What each published data set consists of: facts only, nothing is fetched from here.

Sizes and SHA-256 of the archives are those that tensorflow_datasets (``url_checksums/coco.txt``, ``voc.txt``, commit
333639b3) and torchvision's prototype data sets pin, independently; those of the lists were taken from the files.
"""

from __future__ import annotations

from typing import Any

from hpdval.data.coco import load_coco
from hpdval.data.lists import load_lists
from hpdval.data.prepare.published import Archive, Facts, File, PublishedSet
from hpdval.data.voc import load_voc

LISTS = "https://raw.githubusercontent.com/richard-peng-xia/LMPT/aab39caca28362bfb9d9340f9c8a5cd75614e130/data"
VOC = "http://host.robots.ox.ac.uk/pascal/VOC"
# the bucket behind images.cocodataset.org, under the name for which its certificate is valid
COCO = "https://s3.amazonaws.com/images.cocodataset.org"


def _list(name: str, size: int, sha256: str, *, optional: bool = False) -> File:
    folder = name.partition("_")[0]
    return File(name=name, url=f"{LISTS}/{folder}/{name}", size=size, sha256=sha256, optional=optional)


def _voc(name: str, size: int, sha256: str, year: str, listing: str, **more: Any) -> Archive:
    return Archive(name=name, url=f"{VOC}/voc{year}/{name}", size=size, sha256=sha256, listing=listing, **more)


def _coco_images(part: str, holds: int, size: int, sha256: str, listing: str) -> Archive:
    name, needs, each = f"{part}.zip", (f"{part}/{{stem}}.jpg",), f"{COCO}/{{path}}"
    url = f"{COCO}/zips/{name}"
    return Archive(
        name=name, url=url, size=size, sha256=sha256, listing=listing, needs=needs, holds=holds, each=each
    )  # fmt: skip


def _coco_annotations(year: str, size: int, sha256: str) -> Archive:
    name = f"annotations_trainval{year}.zip"
    members = tuple(f"annotations/instances_{part}{year}.json" for part in ("train", "val"))
    return Archive(name=name, url=f"{COCO}/annotations/{name}", size=size, sha256=sha256, members=members)


def _devkit(year: str) -> tuple[str, str]:
    return (f"VOCdevkit/VOC{year}/JPEGImages/{{stem}}.jpg", f"VOCdevkit/VOC{year}/Annotations/{{stem}}.xml")


_VOC2007 = {part: f"VOCdevkit/VOC2007/ImageSets/Main/{part}.txt" for part in ("trainval", "test")}
_VOC2007_TRAINVAL = (
    *("VOCtrainval_06-Nov-2007.tar", 460_032_000),
    *("7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508", "2007"),
)
_VOC2007_TEST = (
    *("VOCtest_06-Nov-2007.tar", 451_020_800),
    *("6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892", "2007"),
)
_VOC2012_TRAINVAL = (
    *("VOCtrainval_11-May-2012.tar", 1_999_639_040),
    *("e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb", "2012"),
)

VOC_LT = PublishedSet(
    name="voc-lt",
    lists=(
        _list("voc_lt_train.txt", 57_433, "2111a5e58ae8b67a112a2b2c8aa98fe8fa926ac3e1d73e2e4e0e4844c90cc047"),
        _list("voc_lt_test.txt", 217_854, "43b2929a86e9fe685cdf3b6b72fb90b6838ff9f9f427807e8b9502111e73750a"),
        _list("voc_labels.txt", 204, "59e82ce7a1fa096b8a80c22cc72e6c86e54c598b2e1cfe08a211f1c82a0dcb2c"),
        _list(
            "voc_lt_captions.txt",
            104_823,
            "a986c2d493d4258aa470fe0b48b66b12c1ec338e4341dda3fb4c46ef9865f273",
            optional=True,
        ),
    ),
    archives=(
        _voc(*_VOC2012_TRAINVAL, "voc_lt_train.txt", needs=_devkit("2012")[:1], wants=_devkit("2012")[1:]),
        _voc(*_VOC2007_TEST, "voc_lt_test.txt", needs=_devkit("2007")[:1], wants=_devkit("2007")[1:]),
    ),
    facts=Facts(
        images=(1_142, 4_952),
        classes=20,
        labels=(2_346, 7_632),
        extremes=(4, 775),
        groups=(6, 6, 8),
        unlabelled=(0, 0),
    ),
    loader=load_lists,
    source="voc_lt_train.txt",
    companions={"test": "voc_lt_test.txt", "classes": "voc_labels.txt"},
)

COCO_LT = PublishedSet(
    name="coco-lt",
    lists=(
        _list("coco_lt_train.txt", 76_702, "8e0c354ae2214d7ced46f4a5ae24236149296be4dcd2df74f00eba2abe6be0ce"),
        _list("coco_lt_test.txt", 164_352, "4dda722463b0ed3aada172ce1c75f46f1391e4d2bee7643760549f916a8022e5"),
        _list("coco_labels.txt", 929, "a16d52dc65d8bc2b7abe5875199d802e951b7af142b327f8c85b496116a87f45"),
        _list(
            "coco_lt_captions.txt",
            572_056,
            "4bcc3de5c20e3561f6bbe90188c00cea3adf1eab58245f761e4fd9b93319fecd",
            optional=True,
        ),
    ),
    archives=(
        _coco_annotations("2017", 252_907_541, "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268"),
        _coco_images(
            *("train2017", 118_287, 19_336_861_798),
            "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
            "coco_lt_train.txt",
        ),
        _coco_images(
            *("val2017", 5_000, 815_585_330),
            "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
            "coco_lt_test.txt",
        ),
    ),
    facts=Facts(
        images=(1_909, 5_000),
        classes=80,
        labels=(8_316, 14_631),
        extremes=(6, 1_128),
        groups=(22, 33, 25),
        unlabelled=(0, 48),
    ),
    loader=load_lists,
    source="coco_lt_train.txt",
    companions={"test": "coco_lt_test.txt", "classes": "coco_labels.txt"},
    annotations=("annotations/instances_train2017.json", "annotations/instances_val2017.json"),
)

VOC2007 = PublishedSet(
    name="voc2007",
    archives=(
        _voc(*_VOC2007_TRAINVAL, _VOC2007["trainval"], members=(_VOC2007["trainval"],), needs=_devkit("2007")),
        _voc(*_VOC2007_TEST, _VOC2007["test"], members=(_VOC2007["test"],), needs=_devkit("2007")),
    ),
    facts=Facts(images=(5_011, 4_952), classes=20),
    loader=load_voc,
    source="VOCdevkit",
    companions={},
)

COCO2014 = PublishedSet(
    name="coco2014",
    archives=(
        _coco_annotations("2014", 252_872_794, "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009"),
        _coco_images(
            *("train2014", 82_783, 13_510_573_713),
            "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
            "annotations/instances_train2014.json",
        ),
        _coco_images(
            *("val2014", 40_504, 6_645_013_297),
            "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
            "annotations/instances_val2014.json",
        ),
    ),
    facts=Facts(images=(82_783, 40_504), classes=80),
    loader=load_coco,
    source="annotations/instances_train2014.json",
    companions={"test": "annotations/instances_val2014.json"},
)

CATALOGUE = {known.name: known for known in (VOC_LT, COCO_LT, VOC2007, COCO2014)}
