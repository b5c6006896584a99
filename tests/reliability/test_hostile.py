"""Hostile images and tables through every way in: a load, the image store that training reads, and the command line.

One set of files is made here with Pillow, so that a clone without the development data tests the same; the shared set
goes the same ways.  What each file must give is written down beside it, not computed by what is tested.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import Faults
from fuzz import check_line
from PIL import Image
from test_data_decode import encoded
from toys import TINY

from hpdval import cli, load_dataset
from hpdval.data.dataset import Dataset
from hpdval.data.decode import MAX_PIXELS, decode, image_size
from hpdval.data.splits import check_disjoint
from hpdval.data.store import ImageStore, resize_image
from hpdval.errors import DataError
from hpdval.models import load_clip
from hpdval.run import read_manifest, read_metrics, read_predictions, read_result
from hpdval.scoring import zero_shot

pytestmark = pytest.mark.fault

CLASSES = ("red", "green", "blue")
HOSTILE, REFUSED, RIGHT = "hostile image", "named error in one line", "the right pixels"

# -- the files ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """A file, and what it must give: pixels that lie close to ``pixels``, or, where that is None, an error."""

    data: bytes
    pixels: np.ndarray | None = None
    close: float = 0.0  # levels by which pixels may differ in the mean


def scene(height: int = 120, width: int = 160) -> np.ndarray:
    """A smooth picture that is neither its mirror image nor its negative."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x / width, 255 * y / height, 128 + 60 * np.sin(x / 25)], -1).astype(np.uint8)


def bomb(side: int) -> bytes:
    """A PNG of side x side grey pixels that no memory of ours ever held."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    packer, row = zlib.compressobj(), bytes(side + 1)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def made_files() -> dict[str, Made]:
    """Every kind of file that the specification names."""
    picture = scene()
    image = Image.fromarray(picture)
    jpeg = encoded(image, "JPEG", quality=92)
    grey = np.asarray(image.convert("L"))
    ramp = np.linspace(0, 65535, 96 * 128).round().astype(np.uint16).reshape(96, 128)
    palette = Image.fromarray(np.kron(np.array([[0, 1], [2, 3]], np.uint8), np.ones((32, 48), np.uint8)), "P")
    colours = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]]
    palette.putpalette([level for colour in colours for level in colour])
    quadrants = np.array(colours, np.uint8)[np.asarray(palette)]
    see_through = np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)])
    see_through[:, :80] = (255, 0, 255, 0)
    flattened = picture.copy()
    flattened[:, :80] = 255
    half = quadrants.copy()
    half[32:, 48:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(picture)))
    frames = [Image.new("RGB", (64, 48), name) for name in CLASSES]
    tall = np.arange(9000, dtype=np.int64).reshape(3000, 1, 3).astype(np.uint8)
    damaged_exif = b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(40)
    return {
        "truncated.jpg": Made(jpeg[: len(jpeg) // 2]),
        "cut_header.png": Made(encoded(image, "PNG")[:45]),
        "empty.jpg": Made(b""),
        "text.jpg": Made(b"this is not an image at all\n"),
        "program.svg.png": Made(b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"),
        "postscript.jpg": Made(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n"),
        "float.tif": Made(encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF")),
        "bomb.png": Made(bomb(9000)),
        "png_named.jpg": Made(encoded(image, "PNG"), picture),
        "cmyk.jpg": Made(encoded(image.convert("CMYK"), "JPEG", quality=95), picture, 4),  # Pillow inverts, as Adobe
        "cmyk.tif": Made(encoded(image.convert("CMYK"), "TIFF"), picture, 1),
        "gray.png": Made(encoded(Image.fromarray(grey), "PNG"), np.repeat(grey[..., None], 3, -1)),
        "gray16.png": Made(
            encoded(Image.fromarray(ramp), "PNG"), np.repeat((ramp / 257).round().astype(np.uint8)[..., None], 3, -1)
        ),
        "alpha.png": Made(encoded(Image.fromarray(see_through), "PNG"), flattened),
        "palette.png": Made(encoded(palette, "PNG"), quadrants),
        "palette_transparency.png": Made(encoded(palette, "PNG", transparency=b"\xff\xff\xff\0"), half),
        "bilevel.png": Made(encoded(Image.new("1", (20, 10), 1), "PNG"), np.full((10, 20, 3), 255, np.uint8)),
        "exif.jpg": Made(encoded(stored, "JPEG", exif=exif, quality=95), picture, 4),
        "damaged_exif.jpg": Made(encoded(image, "JPEG", exif=damaged_exif, quality=95), picture, 4),
        "tall_1x3000.png": Made(encoded(Image.fromarray(tall), "PNG"), tall),
        "animated.gif": Made(
            encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
            np.broadcast_to(np.array([255, 0, 0], np.uint8), (48, 64, 3)),
        ),
        "caf\u00e9 photo \u21161 \u65e5\u672c, \u202eodd.png": Made(encoded(image, "PNG"), picture),
    }


MADE = made_files()
SHARED = (
    *("ok_red.jpg", "truncated.jpg", "zero_byte.jpg", "text_named.jpg", "png_named.jpg", "cmyk.jpg", "gray.jpg"),
    *("gray16.png", "rgba_transparent.png", "palette.png", "palette_transparency.png", "upright.jpg", "animated.gif"),
    *("exif_orientation6.jpg", "tall_1x3000.png", "huge_12000x12000.png", "caf\u00e9 photo \u21161 \u65e5\u672c.jpg"),
)


def write_csv(folder: Path, names: list[str]) -> Path:
    """Training images with a label each, in a CSV."""
    lines = [f'"{name}",{CLASSES[i % 3]}' for i, name in enumerate(names)]
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    (folder / "train.csv").write_text("\n".join(["path,labels", *lines]) + "\n", encoding="utf-8")
    return folder / "train.csv"


def write_coco(folder: Path, names: list[str]) -> Path:
    """The same in a COCO json."""
    marked = [
        {"id": i, "image_id": i, "category_id": i % 3, "bbox": [0, 0, 1, 1], "iscrowd": 0} for i in range(len(names))
    ]
    content = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": marked,
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES)],
    }
    (folder / "train.json").write_text(json.dumps(content))
    return folder / "train.json"


SOURCES: dict[str, Callable[[Path, list[str]], Path]] = {"csv": write_csv, "coco": write_coco}
EITHER = pytest.mark.parametrize("source", SOURCES)
BAD = [name for name, made in MADE.items() if made.pixels is None]


def sampled(names: Sequence[str], *sample: tuple[str, str]) -> pytest.MarkDecorator:
    """Names through every source: the sample for every change, the rest at night."""
    cases = [(name, source) for name in names for source in SOURCES]
    night = pytest.mark.nightly
    marked = [pytest.param(*case, marks=() if case in sample else night, id="-".join(case)) for case in cases]
    return pytest.mark.parametrize(("name", "source"), marked)


def with_neighbours(folder: Path, name: str, data: bytes) -> list[str]:
    """Put a file between two good ones, and return the names in order."""
    for good in ("before.png", "after.png"):
        Image.fromarray(scene(40, 50)).save(folder / good)
    (folder / name).write_bytes(data)
    return ["before.png", name, "after.png"]


# -- through a load, and through what training reads -------------------------------------------------------------------


def check_ways_in(folder: Path, source: str, name: str, expected: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file through ``load_dataset`` under both policies and through the image store."""
    monkeypatch.setenv("HPDVAL_CACHE", str(folder / "cache"))
    names = with_neighbours(folder, name, expected.data)
    path = SOURCES[source](folder, names)
    plain, skipping = load_dataset(path), load_dataset(path, on_error="skip")
    assert plain.train.ids == tuple(names), "nothing is left out unless that is asked for"
    if expected.pixels is None:
        for read in (plain.train.image, lambda i: ImageStore.open(plain.train, 8)):
            with pytest.raises(DataError) as caught:
                read(1)
            check_line(str(caught.value), name.encode("ascii", "backslashreplace").decode(), name)
        assert not list((folder / "cache" / "images").glob("*.u8")), "no store of two of three images"
        check_skipped(skipping, names, name)
        return
    pixels = plain.train.image(1)
    assert pixels.dtype == np.uint8
    assert pixels.shape == expected.pixels.shape
    assert np.abs(pixels.astype(int) - expected.pixels).mean() <= expected.close
    assert image_size(folder / name) == pixels.shape[1::-1]
    assert skipping.train.ids == plain.train.ids
    assert skipping.notes == ()
    for mode in ("squash", "crop"):
        store = ImageStore.open(plain.train, 32, mode=mode)
        assert store.images.shape == (3, 32, 32, 3)
        assert (
            np.abs(store.images[1].astype(int) - resize_image(expected.pixels, 32, mode)).mean() <= expected.close + 1
        )


def check_skipped(data: Dataset, names: list[str], name: str) -> None:
    """Of three images with a class each, the second is gone, and nothing else."""
    kept = [each for each in names if each != name]
    assert data.train.ids == tuple(kept)
    assert data.train.targets.tolist() == [[1, 0, 0], [0, 0, 1]]
    assert data.class_counts.tolist() == [1, 0, 1], "counts are those of the images that are left"
    (left_out, *rest) = data.notes
    assert left_out.startswith("skipped in train: ")
    check_line(left_out, name.encode("ascii", "backslashreplace").decode(), name)
    assert rest == ["no training image of: green"]
    assert len(ImageStore.open(data.train, 8)) == 2


@sampled([*MADE], *((name, "csv") for name in MADE), ("truncated.jpg", "coco"), ("exif.jpg", "coco"))
def test_made_files_through_every_source(
    name: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: Faults
) -> None:
    expected = MADE[name]
    with faults.injected(HOSTILE, source, REFUSED if expected.pixels is None else RIGHT, times=2):
        check_ways_in(tmp_path, source, name, expected, monkeypatch)


@pytest.mark.shared
@sampled(SHARED, ("truncated.jpg", "csv"), ("huge_12000x12000.png", "coco"), ("cmyk.jpg", "coco"))
def test_shared_files_through_every_source(
    name: str, source: str, tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch, faults: Faults
) -> None:
    folder = shared_data / "hostile"
    expected = {entry["file"]: entry for entry in json.loads((folder / "expected.json").read_text(encoding="utf-8"))}
    assert {n for n in expected if not n.endswith((".csv", ".pt"))} - set(SHARED) == {"ok_green.jpg", "ok_blue.jpg"}
    entry, pixels = expected[name], None
    if entry["expect"] == "decode" and not name.startswith("huge"):
        pixels = shared_pixels(folder, name, entry)
    with faults.injected(HOSTILE, source, REFUSED if pixels is None else RIGHT, times=2):
        check_ways_in(tmp_path, source, name, Made((folder / name).read_bytes(), pixels, 4), monkeypatch)


def shared_pixels(folder: Path, name: str, entry: dict[str, Any]) -> np.ndarray:
    """What the table says in words, from Pillow's own reading of files that are easy to read."""

    def plain(easy: str) -> np.ndarray:
        with Image.open(folder / easy) as image:
            return np.asarray(image.convert("RGB"))

    if "same_as" in entry:
        return plain(entry["same_as"])
    if name == "gray16.png":
        ramp = np.linspace(0, 65535, entry["width"] * entry["height"]).reshape(entry["height"], entry["width"])
        return np.repeat((ramp / 257).round().astype(np.uint8)[..., None], 3, -1)
    if name == "rgba_transparent.png":
        flattened = plain(name).copy()
        flattened[:, : entry["width"] // 2] = 255
        return flattened
    if name == "palette_transparency.png":
        with Image.open(folder / name) as image:
            alpha = np.asarray(image.convert("RGBA"))[..., 3:] / 255
        return np.round(plain(name) * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return plain(name)


# -- through the command line, training and evaluation -----------------------------------------------------------------


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.json"
    path.write_text(json.dumps(TINY))
    return path


def words(source: Path, config: Path, *more: str) -> list[str]:
    short = [word for each in ("stages=stage1", "stage1.epochs=1", f"clip={config}") for word in ("-p", each)]
    return ["train", str(source), *short, "--device", "cpu", "--out", str(source.parent / "runs"), *more]


@sampled(BAD, ("truncated.jpg", "csv"), ("bomb.png", "coco"))
def test_a_command_ends_in_one_line_that_names_the_file(
    name: str, source: str, tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str], faults: Faults
) -> None:
    path = SOURCES[source](tmp_path, with_neighbours(tmp_path, name, MADE[name].data))
    with faults.injected(HOSTILE, "hpdval train", REFUSED):
        assert cli.main(words(path, config)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        check_line(line, name)
        assert not list(tmp_path.rglob("manifest.json")), "nothing claims to be done"


@pytest.mark.parametrize("source", ["csv", pytest.param("coco", marks=pytest.mark.nightly)])
def test_skipping_lists_what_it_left_out_and_keeps_n_honest(
    source: str, tmp_path: Path, config: Path, faults: Faults
) -> None:
    """Through training and evaluation: the notes, N of the metrics, the counts, and what is loaded again."""
    bad = BAD
    good = [f"good{i}.png" for i in range(7)]
    for i, name in enumerate(good):
        Image.fromarray(np.roll(scene(40, 40), 5 * i, axis=0)).save(tmp_path / name)
    for name in bad:
        (tmp_path / name).write_bytes(MADE[name].data)
    (tmp_path / "lists").mkdir()
    train = SOURCES[source](tmp_path, [*bad[:4], *good[:4]])
    test = SOURCES[source](tmp_path / "lists", [*bad[4:], *good[4:]])
    options = ["-d", f"test={test}", "-d", f"root={tmp_path}", "-d", "on_error=skip"]
    with faults.injected(HOSTILE, "skip policy", "left out, listed, N honest", times=len(bad)):
        assert cli.main(words(train, config, *options)) == 0
        run = tmp_path / "runs" / "stage1"
        found, result = read_predictions(run), read_result(run)
        assert found["ids"].tolist() == good[4:]
        assert found["scores"].shape == (3, 3)
        assert "3 images" in result["protocol"]
        listed = "\n".join(note for note in result["notes"] if note.startswith("skipped in "))
        assert listed.count("skipped in train: ") == 4
        assert listed.count("skipped in test: ") == len(bad) - 4
        assert all(name in listed for name in bad)
        assert read_manifest(run)["inputs"]["images"] == {"train": 4, "val": 0, "test": 3}
        origin = json.loads((run / "data.json").read_text())
        again = load_dataset(**{name: value for name, value in origin.items() if name != "seal"})
        assert again.train.ids == tuple(good[:4])
        assert again.class_counts.tolist() == again.train.targets.sum(0).tolist()
        assert {i for record in read_metrics(run) for i in record.get("ids", [])} <= set(good)


@pytest.mark.nightly
def test_scoring_refuses_what_it_cannot_read(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str], faults: Faults
) -> None:
    """``hpdval predict`` leaves no half-written list behind."""
    names = [f"{i}.png" for i in range(3)]
    for i, name in enumerate(names):
        Image.fromarray(np.roll(scene(40, 40), 9 * i, axis=1)).save(tmp_path / name)
    path = write_csv(tmp_path, names[:2])
    (tmp_path / "test.csv").write_text("path,labels\n2.png,blue\n")
    assert cli.main(words(path, config, "-d", "test=test.csv")) == 0
    capsys.readouterr()
    for name in BAD:
        (tmp_path / name).write_bytes(MADE[name].data)
        with faults.injected(HOSTILE, "hpdval predict", REFUSED):
            given = [str(tmp_path / each) for each in ("0.png", name, "1.png")]
            out = tmp_path / "scores.csv"
            run = str(tmp_path / "runs" / "stage1")
            assert cli.main(["predict", run, *given, "-o", str(out), "--device", "cpu"]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            check_line(line, name)
            assert not out.exists()


# -- memory ------------------------------------------------------------------------------------------------------------

MEMORY = """
    import resource, sys
    from hpdval.data.decode import decode
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        print(decode(sys.argv[1]).shape[0])
    except ValueError as error:
        print(error)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)  # KiB
"""


def peak_mib(path: Path) -> tuple[str, float]:
    """What decoding a file says, and by how much the memory of a process grew for it."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY), str(path)], capture_output=True, text=True, check=True
    )
    said, grown = done.stdout.splitlines()
    return said, int(grown) / 1024


def test_a_bomb_is_refused_before_it_takes_memory(tmp_path: Path, faults: Faults) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(12_000))
    with faults.injected("decompression bomb", "decoding", "refused within 16 MiB"):
        said, grown = peak_mib(path)
        assert "12000 x 12000 pixels, more than 64,000,000" in said
        check_line(said, path)
        assert grown < 16
        faults.measured("memory for a bomb of 144 million pixels", f"{grown:.0f} MiB")


@pytest.mark.nightly
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16", "CMYK", "P"])
def test_the_largest_allowed_image_has_a_bound(mode: str, tmp_path: Path, faults: Faults) -> None:
    """``docs/security.md`` says that no image takes more than 1 GiB."""
    path, side = tmp_path / "large.img", int(MAX_PIXELS**0.5)
    image = Image.new(mode, (side, side))
    kind: dict[str, Any] = {"CMYK": {"format": "JPEG"}, "P": {"format": "PNG", "transparency": 0}}.get(
        mode, {"format": "PNG", "compress_level": 1}
    )
    image.save(path, **kind)
    del image
    with faults.injected("64 million pixels", "decoding", "decoded within 1 GiB"):
        said, grown = peak_mib(path)
        assert said == str(side)
        assert grown < 1024
        faults.measured(f"memory for the largest image, {mode}", f"{grown:.0f} MiB")


# -- labels ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i, name in enumerate("abcd"):
        Image.fromarray(np.roll(scene(30, 30), 7 * i, axis=0)).save(tmp_path / f"{name}.png")
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    return tmp_path


def coco(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    path = write_coco(folder, ["a.png", "b.png", "c.png"])
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


CSV_FAULTS = {
    "unknown class": ("path,labels\na.png,red\nb.png,purple\n", "line 3: label purple"),
    "duplicate path": ("path,labels\na.png,red\nb.png,blue\na.png,green\n", "line 4: a.png is listed twice"),
    "missing file": ("path,labels\na.png,red\nz.png,red\n", "line 3: z.png is not a file"),
    "path outside the root": ("path,labels\na.png,red\n../../etc/passwd,red\n", "line 3: ../../etc/passwd leaves"),
    "wrong columns": ("file,classes\na.png,red\n", "line 1: there must be one column named path"),
    "empty": ("", "is empty"),
}
COCO_FAULTS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "unknown class": (lambda c: c["annotations"][0].update(category_id=9), "category 9"),
    "duplicate path": (lambda c: c["images"][1].update(file_name="a.png"), "a.png is listed twice"),
    "missing file": (lambda c: c["images"][1].update(file_name="z.png"), "z.png is not a file"),
    "path outside the root": (lambda c: c["images"][1].update(file_name="../../etc/passwd"), "../../etc/passwd leaves"),
    "wrong columns": (lambda c: c.pop("images"), "has no list named images"),
    "empty": (lambda c: c.clear(), "has no list named images"),
}


@pytest.mark.parametrize("policy", ["error", "skip"])
@pytest.mark.parametrize("fault", CSV_FAULTS)
@EITHER
def test_labels_that_are_wrong_are_named_under_either_policy(
    source: str, fault: str, policy: str, photos: Path, capsys: pytest.CaptureFixture[str], faults: Faults
) -> None:
    """``skip`` is for images that cannot be decoded: it forgives no list."""
    if source == "csv":
        text, message = CSV_FAULTS[fault]
        path = photos / "t.csv"
        path.write_text(text)
    else:
        change, message = COCO_FAULTS[fault]
        path = coco(photos, change)
    with faults.injected(f"labels: {fault}", source, REFUSED, times=2):
        with pytest.raises(DataError) as caught:
            load_dataset(path, on_error=policy)
        check_line(str(caught.value), path)
        assert message in str(caught.value)
        assert cli.main(["train", str(path), "--out", str(photos / "out"), "-d", f"on_error={policy}"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line == f"hpdval: {caught.value}"


def test_a_list_cannot_climb_out_through_a_link(photos: Path, faults: Faults) -> None:
    """A link is the choice of who made the folder, and is followed; no list adds steps to it, no archive makes one."""
    outside = photos.parent / "outside"
    outside.mkdir()
    Image.fromarray(scene()).save(outside / "secret.png")
    (photos / "door").symlink_to(outside)
    (photos / "t.csv").write_text("path,labels\ndoor/../outside/secret.png,red\n")
    injected = faults.injected("labels: path outside the root", "through a link", REFUSED)
    with injected, pytest.raises(DataError, match=r"line 2: door/\.\./outside/secret\.png leaves the image folder"):
        load_dataset(photos / "t.csv")
    (photos / "t.csv").write_text("path,labels\ndoor/secret.png,red\n")
    assert load_dataset(photos / "t.csv").train.image(0).shape == (120, 160, 3)


@EITHER
def test_an_image_without_a_label_and_a_class_without_an_image_are_valid(
    source: str, photos: Path, faults: Faults
) -> None:
    if source == "csv":
        path = photos / "t.csv"
        path.write_text("path,labels\na.png,red\nb.png,\nc.png,blue;red\n")
    else:
        path = coco(
            photos, lambda c: c["annotations"].__setitem__(1, {**c["annotations"][2], "id": 7, "category_id": 0})
        )
    with faults.injected("labels: no label, no image of a class", source, "valid, and noted"):
        data = load_dataset(path)
        assert data.train.targets.tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 1]]
        assert data.class_counts.tolist() == data.train.targets.sum(0).tolist() == [2, 0, 1]
        assert data.notes == ("no training image of: green",)


def test_scores_follow_the_order_of_the_classes(photos: Path, config: Path, faults: Faults) -> None:
    (photos / "t.csv").write_text("path,labels\na.png,red\nb.png,green;blue\n")
    order = [2, 0, 1]
    clip = load_clip(config, seed=0)
    with faults.injected("labels: class order permuted", "zero-shot", "scores permute with it"):
        plain, turned = (load_dataset(photos / "t.csv", classes=[CLASSES[i] for i in o]) for o in (range(3), order))
        before, after = (zero_shot(clip, data.train, data.classes, show=False) for data in (plain, turned))
        assert np.array_equal(after, before[:, order])
        assert (turned.train.targets == plain.train.targets[:, order]).all()


@pytest.mark.parametrize("what", ["name", "content"])
def test_an_image_in_two_splits_is_found(what: str, photos: Path, tmp_path: Path, faults: Faults) -> None:
    (photos / "copy.png").write_bytes(encoded(Image.fromarray(decode(photos / "b.png")), "PNG", compress_level=0))
    (photos / "t.csv").write_text("path,labels\na.png,red\nb.png,blue\n")
    (photos / "u.csv").write_text(f"path,labels\nc.png,red\n{'./b.png' if what == 'name' else 'copy.png'},blue\n")
    with faults.injected(f"labels: one image in two splits, by {what}", "csv", REFUSED):
        with pytest.raises(DataError) as caught:
            check_disjoint(load_dataset(photos / "t.csv", test="u.csv"), size=16, cache=tmp_path / "stores")
        check_line(str(caught.value), "b.png")
    (photos / "u.csv").write_text("path,labels\nc.png,red\nd.png,blue\n")
    check_disjoint(load_dataset(photos / "t.csv", test="u.csv"), size=16, cache=tmp_path / "stores")
