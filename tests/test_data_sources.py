"""Sources of image files: what each reads, and how each refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hpdval.data import Split, load_dataset
from hpdval.data.captions import caption_digest
from hpdval.data.masks import polygon_mask, regions, segmentation_mask
from hpdval.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures of one colour each, and a class list."""
    for i, name in enumerate(("a.png", "b.png", "c.png", "d.png")):
        Image.new("RGB", (8 + i, 6), (40 * i, 0, 0)).save(tmp_path / name)
    (tmp_path / "classes.txt").write_text("dog\ncat\ntraffic light\n")
    return tmp_path


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


# --- CSV --------------------------------------------------------------------------------------------------------------


def test_csv_gives_ids_targets_and_pixels(folder: Path) -> None:
    train = write(folder / "train.csv", "path,labels", "b.png,traffic light;dog", "a.png,")
    write(folder / "test.csv", "path,labels", "c.png,cat")
    data = load_dataset(train, test="test.csv")
    assert data.classes == ("dog", "cat", "traffic light")
    assert data.train.ids == ("b.png", "a.png")
    assert data.train.targets.tolist() == [[1, 0, 1], [0, 0, 0]]
    assert data.test.targets.tolist() == [[0, 1, 0]]
    assert len(data.val) == 0
    assert data.class_counts.tolist() == [1, 0, 1]
    assert data.notes == ("no training image of: cat",)
    assert data.train.image(0).shape == (6, 9, 3)
    assert data.test.image(0)[0, 0].tolist() == [80, 0, 0]


def test_order_of_classes_permutes_columns_only(folder: Path) -> None:
    train = write(folder / "train.csv", "path,labels", "b.png,traffic light;dog", "a.png,cat")
    names, order = ["dog", "cat", "traffic light"], [2, 0, 1]
    plain = load_dataset(train, classes=names)
    permuted = load_dataset(train, classes=[names[i] for i in order])
    assert (permuted.train.targets == plain.train.targets[:, order]).all()


@pytest.mark.parametrize("field", [" dog ; cat ", "dog;cat;dog", "cat;;dog;", '"dog;cat"'])
def test_blanks_and_repeats_in_labels_do_not_matter(field: str, folder: Path) -> None:
    data = load_dataset(write(folder / "t.csv", "path,labels", f"a.png,{field}"))
    assert data.train.targets.tolist() == [[1, 1, 0]]


def test_images_may_lie_elsewhere_and_columns_in_any_order(folder: Path) -> None:
    lists = folder / "lists"
    lists.mkdir()
    train = write(lists / "t.csv", "split,labels,path", "x,dog,./a.png")
    data = load_dataset(train, root=folder, classes=folder / "classes.txt")
    assert data.train.ids == ("a.png",)
    (lists / "names.txt").write_text("dog")
    assert load_dataset(train, root=folder, classes="names.txt").classes == ("dog",)  # beside the CSV
    assert load_dataset(folder, train="lists/t.csv", classes=["dog"]).train.ids == ("a.png",)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path,labels", "a.png,dog", "b.png,wolf"], r"t\.csv, line 3: label wolf is not in the class list"),
        (["path,labels", "a.png,dog", "", "./a.png,cat"], r"line 4: \./a\.png is listed twice \(first on line 2\)"),
        (["path,labels", "/etc/passwd,dog"], r"t\.csv, line 2: /etc/passwd leaves the image folder"),
        (["path,labels", "x/../../a.png,dog"], r"t\.csv, line 2: x/\.\./\.\./a\.png leaves the image folder"),
        (["path,labels", "..\\a.png,dog"], "leaves the image folder"),
        (["path,labels", "C:/a.png,dog"], "leaves the image folder"),
        (["path,labels", ",dog"], r"line 2: '' is not the path of an image"),
        (["path,labels", "a\0.png,dog"], r"line 2"),
        (["path,labels", "a.png,dog,cat"], r"line 2: 3 fields instead of 2"),
        (["path,labels", "a.png"], r"line 2: 1 fields instead of 2"),
        (["path,labels"], r"t\.csv lists no image"),
        (["path,labels,labels", "a.png,dog,cat"], r"line 1: there must be one column named labels"),
        (["a.png,dog"], r"line 1: there must be one column named path"),
        (["path,labels", 'a.png,"dog'], "not valid CSV"),
        (["path,labels", "a.png,dog", "z.png,cat", "y.png,cat"], r"line 3: z\.png is not a file in .*\(2 of 3 images"),
    ],
)  # fmt: skip
def test_csv_errors_name_file_line_and_value(lines: list[str], message: str, folder: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(write(folder / "t.csv", *lines))
    assert "t.csv" in str(caught.value)


def test_a_folder_is_no_image(folder: Path) -> None:
    (folder / "sub").mkdir()
    with pytest.raises(DataError, match="sub is not a file"):
        load_dataset(write(folder / "t.csv", "path,labels", "sub,dog"))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "the class list is empty"),
        ({"dog", "cat"}, "classes is a set"),
        (["dog", "cat", "dog"], r"classes\[2\]: class dog is named twice \(first in classes\[0\]\)"),
        (["dog", " "], r"classes\[1\]: a class name is empty"),
        (["dog;cat"], "separates labels"),
        ("nowhere.txt", r"classes=nowhere\.txt is not a file, neither here nor in"),
    ],
)
def test_class_lists_are_checked(classes: Any, message: str, folder: Path) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(write(folder / "t.csv", "path,labels", "a.png,dog"), classes=classes)


def test_a_csv_without_class_list_says_what_to_write(folder: Path) -> None:
    (folder / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"needs a class list.*classes\.txt"):
        load_dataset(write(folder / "t.csv", "path,labels", "a.png,dog"))


def test_text_in_another_encoding_is_refused(folder: Path) -> None:
    (folder / "t.csv").write_bytes("path,labels\ncafé.png,dog\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"t\.csv is not UTF-8"):
        load_dataset(folder / "t.csv")


@pytest.mark.shared
def test_hostile_tables(shared_data: Path) -> None:
    entries = json.loads((shared_data / "hostile" / "expected.json").read_text(encoding="utf-8"))
    tables = [entry for entry in entries if entry["file"].endswith(".csv")]
    assert len(tables) == 8
    for entry in tables:
        path = shared_data / "hostile" / entry["file"]
        if entry["expect"] == "decode":
            train = load_dataset(path).train
            assert len(train) == entry["rows"]
            assert all(train.image(i).shape == (48, 64, 3) for i in range(len(train)))
            assert train.targets[:3].tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]
            continue
        with pytest.raises(DataError) as caught:
            load_dataset(path)
        message = str(caught.value)
        assert path.name in message
        assert f"line {entry['line']}" in message if "line" in entry else True
        assert entry.get("names", "") in message


# --- published lists --------------------------------------------------------------------------------------------------


def test_lists_read_indices_and_class_files_with_numbers(folder: Path) -> None:
    (folder / "x_labels.txt").write_bytes(b"traffic light 1 \r\ndog 0\r\ncat 2")
    (folder / "x_lt_train.txt").write_bytes(b"a.png 2 0 \nb.png\n")
    data = load_dataset(folder / "x_lt_train.txt")
    assert data.classes == ("dog", "traffic light", "cat")
    assert data.train.targets.tolist() == [[1, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.png 3", "line 1: 3 is not a class index from 0 to 2"),
        ("a.png -1", "line 1: -1 is not"),
        ("a.png dog", "line 1: dog is not"),
        ("../a.png 1", "line 1: ../a.png leaves"),
        ("z.png 1", "line 1: z.png is not a file in .*1 of 1 images are missing.*require_images=False"),
        ("", "lists no image"),
    ],
)
def test_list_errors(line: str, message: str, folder: Path) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(write(folder / "t.txt", line), classes=["dog", "cat", "cow"])


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "train", "test", "groups", "unlabelled"),
    [("voc", 1142, 4952, (6, 6, 8), 0), ("coco", 1909, 5000, (22, 33, 25), 48)],
)
def test_published_lists_have_their_published_counts(
    name: str, train: int, test: int, groups: tuple[int, ...], unlabelled: int, shared_data: Path
) -> None:
    published = json.loads((shared_data / "splits" / "splits.json").read_text())[f"{name}-lt"]
    folder = shared_data / "splits"
    data = load_dataset(folder / f"{name}_lt_train.txt", test=f"{name}_lt_test.txt", require_images=False)
    assert (len(data.train), len(data.test)) == (train, test)
    assert list(data.classes) == published["classes"]
    assert tuple(len(data.groups[g]) for g in ("head", "medium", "tail")) == groups
    assert int((data.test.targets.sum(1) == 0).sum()) == unlabelled
    # oracle: count the numbers in the text itself
    for split, rows in (("train", data.train), ("test", data.test)):
        words = [line.split()[1:] for line in (folder / f"{name}_lt_{split}.txt").read_text().splitlines()]
        counts = [sum(str(c) in row for row in words) for c in range(len(data.classes))]
        assert rows.targets.sum(0).tolist() == counts
    with pytest.raises(DataError, match=rf"{train} of {train} images are missing"):
        load_dataset(folder / f"{name}_lt_train.txt")


# --- captions ---------------------------------------------------------------------------------------------------------

LISTED = ["a.png 0", "b.png 1 2", "c.png"]  # beside x_labels.txt or classes=


def told(split: Split) -> list[str]:
    assert split.captions is not None
    return [split.captions(i) for i in range(len(split))]


def test_list_captions_follow_the_paths_whatever_their_order(folder: Path) -> None:
    train, test = write(folder / "t.txt", *LISTED), write(folder / "u.txt", "d.png 1")
    (folder / "words.txt").write_bytes("./c.png nothing.\r\n\nb.png\ttwo   caf\u00e9s \na.png a dog".encode())  # no end
    data = load_dataset(train, test=test, classes=["dog", "cat", "cow"], captions="words.txt")
    assert told(data.train) == ["a dog", "two caf\u00e9s", "nothing."]
    assert data.test.captions is None
    assert load_dataset(train, classes=["dog", "cat", "cow"]).train.captions is None
    assert told(load_dataset(**data.origin).train) == told(data.train), "what was asked for can be asked again"


def test_origin_keeps_where_captions_lie_from_another_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, words = write(folder / "t.txt", "a.png 0"), folder / "elsewhere"
    words.mkdir()
    write(words / "words.txt", "a.png a dog")
    monkeypatch.chdir(words)
    data = load_dataset(train, classes=["dog"], captions="words.txt")
    assert data.origin["captions"] == str(words / "words.txt")
    monkeypatch.chdir(folder)
    assert told(load_dataset(**data.origin).train) == ["a dog"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a.png x", "b.png x", "d.png x", "c.png x"], r"words\.txt, line 3: d\.png is not in .*t\.txt"),
        (["a.png x", "b.png x"], r"words\.txt has no caption of c\.png \(.*t\.txt, line 3; 1 of 3 images have none\)"),
        (["a.png x", "b.png x", "", "a.png y"], r"words\.txt, line 4: a\.png has a caption already \(on line 1\)"),
        (["a.png x", "b.png  "], r"words\.txt, line 2: b\.png has no caption"),
        (["../a.png x"], r"words\.txt, line 1: \.\./a\.png leaves"),
        ([], r"words\.txt has no caption of a\.png .*3 of 3"),
    ],
)
def test_list_caption_errors_name_file_and_line(lines: list[str], message: str, folder: Path) -> None:
    write(folder / "words.txt", *lines)
    with pytest.raises(DataError, match=message):
        load_dataset(write(folder / "t.txt", *LISTED), classes=["dog", "cat", "cow"], captions="words.txt")


def test_captions_that_are_no_file_are_refused(folder: Path) -> None:
    train = write(folder / "t.txt", *LISTED)
    with pytest.raises(DataError, match=r"captions=gone\.txt is not a file"):
        load_dataset(train, classes=["dog", "cat", "cow"], captions="gone.txt")
    with pytest.raises(ConfigError, match="captions=True must be a path"):
        load_dataset(train, classes=["dog", "cat", "cow"], captions=True)
    with pytest.raises(DataError, match=r"a\.png is not UTF-8 text"):
        load_dataset(train, classes=["dog", "cat", "cow"], captions="a.png")


@pytest.mark.shared
@pytest.mark.parametrize("name", ["voc", "coco"])
def test_published_captions_are_of_every_training_image(name: str, shared_data: Path) -> None:
    folder = shared_data / "splits"
    data = load_dataset(folder / f"{name}_lt_train.txt", captions=f"{name}_lt_captions.txt", require_images=False)
    lines = (folder / f"{name}_lt_captions.txt").read_bytes().decode().split("\n")
    assert lines[-1], "the file ends without a newline, and its last line counts"
    assert len(lines) == len(data.train)
    pairs = dict(zip(data.train.ids, told(data.train), strict=True))
    assert {f"{path} {text}" for path, text in pairs.items()} == set(lines)
    part = load_dataset(
        folder / f"{name}_lt_train.txt", captions=f"{name}_lt_captions.txt", require_images=False, val=0.2
    )
    for split in (part.train, part.val):
        assert told(split) == [pairs[one] for one in split.ids]


def test_csv_captions_are_a_column(folder: Path) -> None:
    train = write(folder / "t.csv", "path,labels,caption", 'b.png,dog,"one, and', '  two."', "a.png,,nothing")
    test = write(folder / "u.csv", "caption,path,labels", "a cat,c.png,cat")
    data = load_dataset(train, test=test)
    assert told(data.train) == ["one, and two.", "nothing"]
    assert told(data.test) == ["a cat"]
    plain = load_dataset(train, test=write(folder / "u.csv", "path,labels", "c.png,cat"))
    assert plain.test.captions is None
    assert told(data.train.subset([1])) == ["nothing"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path,labels,caption", "a.png,dog,x", "b.png,dog, "], r"t\.csv, line 3: the caption is empty"),
        (["path,labels,caption,caption", "a.png,dog,x,y"], r"t\.csv, line 1: two columns are named caption"),
        (["path,labels,caption", "a.png,dog"], r"line 2: 2 fields instead of 3"),
        (["path,caption", "a.png,dog"], r"line 1: there must be one column named labels"),
    ],
)
def test_csv_caption_errors_name_file_and_line(lines: list[str], message: str, folder: Path) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(write(folder / "t.csv", *lines))


def coco_captions(folder: Path, *entries: Any) -> Path:
    path = folder / "captions.json"
    path.write_text(json.dumps({"annotations": entries}))
    return path


def test_coco_takes_the_first_caption_by_id(folder: Path) -> None:
    captions = coco_captions(
        folder,
        {"id": 12, "image_id": 7, "caption": "later"},
        {"id": 4, "image_id": 3, "caption": " two\n lines "},
        {"id": 5, "image_id": 7, "caption": "earlier"},
        {"id": 1, "image_id": 99, "caption": "of an image that is not in the list"},
    )
    train = coco(folder)
    data = load_dataset(train, captions=captions.name)
    assert dict(zip(data.train.ids, told(data.train), strict=True)) == {"b.png": "earlier", "a.png": "two lines"}
    assert load_dataset(train).train.captions is None


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"id": 5, "image_id": 8, "caption": "x"}, r"captions\.json has no caption of image 7, b\.png \(1 of 2 images"),
        ({"id": 5, "image_id": 7, "caption": "\n"}, r"captions\.json: annotation 5 has an empty caption"),
        ({"id": 5, "image_id": 7}, r"captions\.json: an entry of annotations has caption=None; it must be str"),
        ({"id": True, "image_id": 7, "caption": "x"}, r"has id=True; it must be int"),
        ("x", r"has id=None; it must be int"),
    ],
)
def test_coco_caption_errors_name_the_entry(entry: Any, message: str, folder: Path) -> None:
    captions = coco_captions(folder, {"id": 4, "image_id": 3, "caption": "x"}, entry)
    with pytest.raises(DataError, match=message):
        load_dataset(coco(folder), captions=captions)
    captions.write_text("[]")
    with pytest.raises(DataError, match=r"captions\.json has no list named annotations; give a COCO captions json"):
        load_dataset(coco(folder), captions=captions)


def test_the_digest_of_captions_follows_their_words_and_images_alone(folder: Path) -> None:
    def digest_of(*rows: str) -> str | None:
        return caption_digest(load_dataset(write(folder / "t.csv", "path,labels,caption", *rows)).train)

    first = digest_of("a.png,dog,one", "b.png,dog,two")
    assert first is not None
    assert first == digest_of("a.png,cat, one ", "b.png,dog,two"), "labels have a digest of their own"
    others = [
        digest_of("a.png,dog,one", "b.png,dog,three"),
        digest_of("a.png,dog,two", "b.png,dog,one"),
        digest_of("a.png,dog,one", "c.png,dog,two"),
        digest_of("b.png,dog,two", "a.png,dog,one"),
        digest_of("a.png,dog,one"),
    ]
    assert len({first, *others}) == 6
    assert caption_digest(load_dataset(write(folder / "t.csv", "path,labels", "a.png,dog")).train) is None


# --- COCO -------------------------------------------------------------------------------------------------------------


def coco(folder: Path, change: Callable[[dict[str, Any]], None] = lambda content: None, name: str = "i.json") -> Path:
    content: dict[str, Any] = {
        "images": [{"id": 7, "file_name": "b.png", "width": 9, "height": 6}, {"id": 3, "file_name": "a.png"}],
        "categories": [{"id": 90, "name": "cat"}, {"id": 1, "name": "dog"}, {"id": 13, "name": "cow"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "bbox": [1, 2, 3, 4.5], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 2, 2], "iscrowd": 1},
        ],
    }
    change(content)
    path = folder / name
    path.write_text(json.dumps(content))
    return path


def test_coco_orders_classes_by_id_and_keeps_unlabelled_images(folder: Path) -> None:
    train = load_dataset(coco(folder)).train
    assert load_dataset(coco(folder)).classes == ("dog", "cow", "cat")
    assert train.ids == ("b.png", "a.png")
    assert train.targets.tolist() == [[1, 0, 1], [0, 0, 0]]
    assert train.boxes is not None
    assert train.boxes(0).tolist() == [[2, 1, 2, 3, 4.5], [0, 0, 0, 2, 2]]
    assert train.boxes(1).shape == (0, 5)
    assert load_dataset(coco(folder), crowd=False).train.targets[0].tolist() == [0, 0, 1]


def test_coco_finds_folders_as_they_are_laid_out_officially(folder: Path) -> None:
    for part, names in (("train9", ("a.png", "b.png")), ("val9", ("a.png", "b.png"))):
        (folder / part).mkdir()
        for name in names:
            (folder / part / name).write_bytes((folder / name).read_bytes())
    (folder / "annotations").mkdir()
    train = coco(folder / "annotations", name="instances_train9.json")
    test = coco(folder / "annotations", name="instances_val9.json")
    data = load_dataset(train, test=test)
    assert data.train.ids[0] == "train9/b.png"
    assert data.test.ids[0] == "val9/b.png"
    again = load_dataset(train, test=test, images="train9", test_images=folder / "val9", root=folder)
    assert again.test.ids == data.test.ids
    assert again.test.image(0).shape == (6, 9, 3)


def _set(part: str, index: int, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content[part][index].__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("annotations", 1, "image_id", 99), "annotation 2 names image 99"),
        (_set("annotations", 1, "category_id", 2), "annotation 2 names category 2"),
        (_set("annotations", 0, "bbox", [1, 2, 3]), "annotation 1 has bbox"),
        (_set("annotations", 0, "bbox", [1, 2, -3, 4]), "annotation 1 has bbox"),
        (_set("annotations", 0, "bbox", None), "annotation 1 has bbox"),
        (_set("images", 1, "id", 7), "image id 7 is given twice"),
        (_set("images", 1, "id", "3"), "id='3'; it must be int"),
        (_set("images", 1, "file_name", "b.png"), r"b\.png is listed twice"),
        (_set("images", 1, "file_name", "../b.png"), r"\.\./b\.png leaves the image folder"),
        (_set("images", 1, "file_name", "gone.png"), r"gone\.png is not a file in .*1 of 2 images are missing"),
        (_set("categories", 0, "name", "dog"), "class dog is named twice"),
        (_set("categories", 0, "id", 13), "two categories have the same id"),
        (lambda c: c.pop("annotations"), "no list named annotations"),
        (lambda c: c["categories"].clear(), "class list is empty"),
    ],
)
def test_coco_errors_name_the_entry(change: Callable[[dict[str, Any]], None], message: str, folder: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(coco(folder, change))
    assert "i.json" in str(caught.value)


def test_coco_boxes_of_another_image_size_are_refused(folder: Path) -> None:
    train = load_dataset(coco(folder, _set("images", 0, "width", 640))).train
    assert train.boxes is not None
    with pytest.raises(DataError, match=r"b\.png has 9 x 6 pixels upright but i\.json has its boxes in 640 x 6"):
        train.boxes(0)


def test_coco_test_file_must_have_the_same_categories(folder: Path) -> None:
    test = coco(folder, _set("categories", 0, "name", "wolf"), "t.json")
    with pytest.raises(DataError, match=r"category (cat|wolf) is only in one"):
        load_dataset(coco(folder), test=test)


def test_json_that_is_none(folder: Path) -> None:
    with pytest.raises(DataError, match=r"x\.json is not valid JSON"):
        load_dataset(write(folder / "x.json", "{"))


@pytest.mark.shared
def test_coco_photos_agree_with_their_label_tables(shared_data: Path) -> None:
    folder = shared_data / "coco-photos"
    data = load_dataset(folder / "annotations" / "instances_train2017.json", test="instances_val2017.json")
    table = load_dataset(folder / "labels_train2017.csv", test="labels_val2017.csv")
    assert data.classes == table.classes
    assert (len(data.train), len(data.test)) == (292, 310)
    for split, rows in ((data.train, table.train), (data.test, table.test)):
        row_of = {name: i for i, name in enumerate(rows.ids)}
        assert (split.targets == rows.targets[[row_of[name] for name in split.ids]]).all()
        assert split.boxes is not None
        height, width = split.image(5).shape[:2]
        assert set(np.flatnonzero(split.targets[5])) == set(split.boxes(5)[:, 0].astype(int))
        assert (split.boxes(5)[:, 1:3] + split.boxes(5)[:, 3:] <= [width + 1, height + 1]).all()


# --- COCO masks -------------------------------------------------------------------------------------------------------

POLYGON = [[1, 2, 4, 2, 4, 5, 1, 5], [6.6, 0.2, 8.4, 0.2, 8.4, 1.4, 6.6, 1.4]]  # 3 x 3 pixels; centres 7.5 and 0.5
RUNS = {"size": [6, 9], "counts": [1, 2, 48, 3]}  # down the columns: (1, 0), (2, 0), and the last three of column 8


def segmented(first: Any, second: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for entry, segmentation in zip(content["annotations"], (first, second), strict=True):
            entry["segmentation"] = segmentation

    return change


def pixels(mask: np.ndarray) -> set[tuple[int, int]]:
    return {(int(y), int(x)) for y, x in np.argwhere(mask)}


def test_coco_masks_follow_polygons_and_run_lengths_in_the_order_of_the_boxes(folder: Path) -> None:
    split = load_dataset(coco(folder, segmented(POLYGON, RUNS))).train
    assert split.masks is not None
    masks = split.masks(0)
    assert masks is not None
    assert masks.shape == (2, 6, 9)
    assert masks.dtype == bool
    assert pixels(masks[0]) == {(y, x) for y in (2, 3, 4) for x in (1, 2, 3)} | {(0, 7)}
    assert pixels(masks[1]) == {(1, 0), (2, 0), (3, 8), (4, 8), (5, 8)}
    nothing = split.masks(1)  # an image without annotations
    assert nothing is not None
    assert nothing.shape == (0, 6, 8)
    alone = load_dataset(coco(folder, segmented(POLYGON, RUNS)), crowd=False).train.masks
    assert alone is not None
    np.testing.assert_array_equal(alone(0), masks[:1])
    swapped = split.subset([1, 0]).masks
    assert swapped is not None
    np.testing.assert_array_equal(swapped(1), masks)


@pytest.mark.parametrize("missing", [None, []])
def test_an_annotation_without_segmentation_leaves_the_masks_of_its_image_unknown(missing: Any, folder: Path) -> None:
    masks = load_dataset(coco(folder, segmented(POLYGON, missing))).train.masks
    assert masks is not None
    assert masks(0) is None


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 4, 2, 4]], r"annotation 1 has polygon \[1, 2, 4, 2, 4\]; it must be x and y of at least 3 corners"),
        ([[1, 2, 4, 2]], "annotation 1 has polygon"),
        ([[1, 2, 4, 2, 4, float("nan")]], "annotation 1 has polygon .*nan.* finite numbers"),
        ([[1, 2, 4, 2, 4, 1e300]], "annotation 1 has polygon"),
        ([1, 2, 4, 2, 4, 5], "annotation 1 has polygon 1;"),
        ("text", "annotation 1 has segmentation 'text'; give polygons or run lengths"),
        ({"size": [9, 6], "counts": [54]}, r"run lengths of size \[9, 6\], but the image has \[6, 9\]"),
        ({"counts": [54]}, "annotation 1 has run lengths of size None"),
        ({"size": [6, 9], "counts": [50, 3]}, "annotation 1 has run lengths whose sum is 53; it must be 6 x 9"),
        ({"size": [6, 9], "counts": [60, -6]}, "whose sum is no whole numbers"),
        ({"size": [6, 9], "counts": [1.5, 52.5]}, "whose sum is no whole numbers"),
        ({"size": [6, 9], "counts": "01<2"}, "annotation 1 has run lengths whose sum is 16; it must be 6 x 9"),
        ({"size": [6, 9], "counts": "01\n"}, r"run lengths with '\\n', which is not of the compressed form"),
        ({"size": [6, 9], "counts": "P"}, "annotation 1 has run lengths that end in the middle of a number"),
        ({"size": [6, 9], "counts": "o" * 99}, "not of the compressed form"),
    ],
)
def test_coco_segmentation_errors_name_the_annotation(segmentation: Any, message: str, folder: Path) -> None:
    split = load_dataset(coco(folder, segmented(segmentation, RUNS))).train
    assert split.masks is not None
    with pytest.raises(DataError, match=message) as caught:
        split.masks(0)
    assert "i.json" in str(caught.value)


def test_compressed_run_lengths_are_those_of_pycocotools() -> None:
    """Strings from pycocotools 2.0's ``encode``: a few pixels by name, and a disc."""
    few = segmentation_mask({"size": [6, 9], "counts": "01<2G0007NK030"}, 6, 9, "here")
    assert pixels(few) == {(y, x) for y in (1, 2, 3) for x in (2, 3, 4)} | {(5, 8), (0, 0), (2, 6), (2, 7)}
    text = "TX1=]14L4M2M4M2N2O0O2N2O0O2O0O2O000000000000000000000001N101N101N2N101N2N3L3N3L4LjT1"
    y, x = np.mgrid[:60, :80]
    disc = (y - 30) ** 2 + (x - 40) ** 2 < 20**2
    np.testing.assert_array_equal(segmentation_mask({"size": [60, 80], "counts": text}, 60, 80, "here"), disc)


def test_a_polygon_takes_the_pixels_whose_centres_are_inside() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:30, :40] + 0.5
    for _ in range(30):  # corners outside the image, too, and edges that cross; oracle: count crossings pixel by pixel
        corners = rng.normal([20, 15], [14, 10], (rng.integers(3, 9), 2))
        inside = np.zeros((30, 40), bool)
        for (a, b), (c, d) in zip(corners, np.roll(corners, -1, 0), strict=True):
            inside ^= ((b <= y) != (d <= y)) & (x > a + (y - b) * (c - a) / (d - b))
        np.testing.assert_array_equal(polygon_mask(corners, 30, 40), inside)
    angles = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    disc = np.stack([100 + 60 * np.cos(angles), 90 + 60 * np.sin(angles)], axis=1)
    assert polygon_mask(disc, 200, 200).sum() == pytest.approx(np.pi * 60**2, rel=2e-3)


def test_a_json_that_changed_has_no_masks_for_the_boxes_read_before(folder: Path) -> None:
    split = load_dataset(coco(folder, segmented(POLYGON, RUNS))).train
    coco(folder, lambda content: content["annotations"].pop())
    assert split.masks is not None
    with pytest.raises(DataError, match=r"i\.json has other annotations than when it was loaded"):
        split.masks(0)


@pytest.mark.shared
def test_coco_photos_have_boxes_and_no_masks(shared_data: Path) -> None:
    train = load_dataset(shared_data / "coco-photos" / "annotations" / "instances_train2017.json").train
    assert train.masks is not None
    assert train.boxes is not None
    assert train.masks(0) is None
    for i in range(20):
        found = regions(train, i)
        assert list(found) == np.flatnonzero(train.targets[i]).tolist()
        height, width = train.image(i).shape[:2]
        for c, (mask, by_mask) in found.items():
            assert mask.shape == (height, width)
            assert not by_mask
            boxes = train.boxes(i)[train.boxes(i)[:, 0] == c, 1:]
            assert mask.sum() <= sum((w + 1) * (h + 1) for _, _, w, h in boxes)
            assert mask.sum() >= max((w - 1) * (h - 1) for _, _, w, h in boxes)


# --- VOC --------------------------------------------------------------------------------------------------------------


def voc(folder: Path) -> Path:
    devkit = folder / "VOCdevkit"
    for year, stems in (("VOC2007", ("000001", "000002", "000005")), ("VOC2012", ("2008_000002",))):
        for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (devkit / year / part).mkdir(parents=True)
        for stem in stems:
            Image.new("RGB", (20, 10)).save(devkit / year / "JPEGImages" / f"{stem}.jpg")
            part_of = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
            objects = "".join(
                f"<object><name>{name}</name><difficult>{hard}</difficult>{part_of}<bndbox><xmin>3</xmin><ymin>1</ymin>"
                "<xmax>12.0</xmax><ymax>5</ymax></bndbox></object>"
                for name, hard in (("person", 0), ("dog", 1))
            )
            (devkit / year / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{objects}</annotation>")
    write(devkit / "VOC2007/ImageSets/Main/trainval.txt", "000001", "000005")
    write(devkit / "VOC2007/ImageSets/Main/test.txt", "000002")
    write(devkit / "VOC2012/ImageSets/Main/trainval.txt", "2008_000002")
    write(devkit / "VOC2012/ImageSets/Main/dog_trainval.txt", "2008_000002  1")
    return devkit


def test_voc_reads_sets_boxes_and_difficult_objects(folder: Path) -> None:
    devkit = voc(folder)
    data = load_dataset(devkit)
    assert len(data.classes) == 20
    assert data.train.ids == ("VOC2007/JPEGImages/000001.jpg", "VOC2007/JPEGImages/000005.jpg")
    assert data.test.ids == ("VOC2007/JPEGImages/000002.jpg",)
    dog, person = data.classes.index("dog"), data.classes.index("person")
    assert np.flatnonzero(data.train.targets[0]).tolist() == [dog, person]
    assert data.train.boxes is not None
    assert data.train.boxes(0).tolist() == [[person, 2, 0, 10, 5], [dog, 2, 0, 10, 5]]
    easy = load_dataset(devkit, train=["2007/trainval", "VOC2012/trainval"], difficult=False)
    assert np.flatnonzero(easy.train.targets.sum(0)).tolist() == [person]
    assert len(easy.train) == 3
    assert easy.train.image(2).shape == (10, 20, 3)


def test_voc_errors_name_what_is_there(folder: Path) -> None:
    devkit = voc(folder)
    with pytest.raises(
        DataError, match=r"image set 2010/trainval is not in .*there: 2007/test, 2007/trainval, 2012/train"
    ):
        load_dataset(devkit, train="2010/trainval")
    with pytest.raises(DataError, match=r"000001\.xml: object 'person' is not in the class list"):
        load_dataset(devkit, classes=["dog"])
    (devkit / "VOC2007/Annotations/000001.xml").write_text("<annotation>")
    with pytest.raises(DataError, match=r"000001\.xml cannot be read"):
        load_dataset(devkit)
    with pytest.raises(DataError, match="has no known form"):
        load_dataset(folder)


# --- VOC masks and regions --------------------------------------------------------------------------------------------


def label_picture(devkit: Path, numbers: np.ndarray, *, mode: str = "P") -> Path:
    """What ``SegmentationObject`` holds for 000001: objects 1 (person) and 2 (dog, difficult) of a 20 x 10 image."""
    path = devkit / "VOC2007/SegmentationObject/000001.png"
    path.parent.mkdir(exist_ok=True)
    picture = Image.fromarray(numbers.astype(np.uint8))
    if mode == "P":
        picture = picture.convert("P")
        picture.putdata(numbers.ravel().tolist())
        picture.putpalette(list(range(256)) * 3)
    else:
        picture = picture.convert(mode)
    picture.save(path)
    return path


def numbers() -> np.ndarray:
    picture = np.zeros((10, 20), int)
    picture[1:4, 2:8], picture[5:7, 9:12], picture[0] = 2, 1, 255
    return picture


def test_voc_masks_follow_the_numbers_of_the_objects(folder: Path) -> None:
    devkit = voc(folder)
    label_picture(devkit, numbers())
    for difficult, kept in ((True, (1, 2)), (False, (1,))):
        split = load_dataset(devkit, difficult=difficult).train
        assert split.masks is not None
        np.testing.assert_array_equal(split.masks(0), [numbers() == number for number in kept])
        assert split.masks(1) is None  # no picture of this image


def test_voc_label_pictures_that_do_not_fit_are_refused(folder: Path) -> None:
    devkit = voc(folder)
    masks = load_dataset(devkit).train.masks
    assert masks is not None
    path = label_picture(devkit, np.zeros((10, 21)))
    with pytest.raises(DataError, match=r"SegmentationObject/000001\.png has 21 x 10 pixels but .*has 20 x 10"):
        masks(0)
    label_picture(devkit, np.full((10, 20), 3))
    with pytest.raises(DataError, match=r"000001\.png shows object 3 but the image's xml file lists 2"):
        masks(0)
    label_picture(devkit, np.zeros((10, 20)), mode="RGB")
    with pytest.raises(DataError, match=r"000001\.png is PNG RGB; label pictures are PNG with a palette"):
        masks(0)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"000001\.png cannot be decoded"):
        masks(0)


def test_regions_are_masks_where_known_and_boxes_elsewhere(folder: Path) -> None:
    devkit = voc(folder)
    label_picture(devkit, numbers())
    data = load_dataset(devkit)
    dog, person = data.classes.index("dog"), data.classes.index("person")
    box = np.zeros((10, 20), bool)
    box[0:5, 2:12] = True
    by_mask, by_box = regions(data.train, 0), regions(data.train, 1)
    assert list(by_mask) == list(by_box) == [dog, person]
    np.testing.assert_array_equal(by_mask[dog].mask, numbers() == 2)
    np.testing.assert_array_equal(by_box[dog].mask, box)
    assert by_mask[dog].by_mask
    assert not by_box[dog].by_mask
    label_picture(devkit, np.where(numbers() == 2, 255, numbers()))  # VOC leaves difficult objects unassigned
    hidden = regions(data.train, 0)
    np.testing.assert_array_equal(hidden[dog].mask, box)
    assert not hidden[dog].by_mask
    assert hidden[person].by_mask


def test_regions_unite_objects_and_are_cut_at_the_edges() -> None:
    def region(*rows: tuple[float, ...]) -> dict[int, Any]:
        boxes = np.array(rows, np.float32).reshape(-1, 5)
        split = Split(
            ids=("a",), targets=np.zeros((1, 3), np.uint8), fingerprints=("",), boxes=lambda i: boxes,
            read=lambda i: np.zeros((4, 5, 3), np.uint8),
        )  # fmt: skip
        return {c: pixels(found.mask) for c, found in regions(split, 0).items()}

    assert region() == {}
    assert region((2, 0, 0, 2, 1), (0, 3, 3, 9, 9), (2, -3, 2, 4, 1)) == {
        0: {(3, 3), (3, 4)},
        2: {(0, 0), (0, 1), (2, 0)},
    }
    assert region((1, 0.5, 1.4, 1.2, 1.2)) == {1: {(1, 0), (1, 1), (2, 0), (2, 1)}}
    assert region((1, 2.6, 1.6, 0.3, 0.0)) == {1: {(1, 2)}}  # between the centres
    assert region((1, 7, 1, 2, 2)) == {}  # outside


def test_regions_need_boxes(folder: Path) -> None:
    table = load_dataset(write(folder / "t.csv", "path,labels", "a.png,dog")).train
    with pytest.raises(DataError, match="knows no boxes; regions need a COCO json, a VOC devkit or scenes-lt"):
        regions(table, 0)


def test_regions_of_scenes_are_its_visible_pixels() -> None:
    test = load_dataset("scenes-lt", test=20).test
    assert test.masks is not None
    assert test.boxes is not None
    for i in range(len(test)):
        found, masks, classes = regions(test, i), test.masks(i), test.boxes(i)[:, 0].astype(int)
        assert masks is not None
        assert list(found) == np.flatnonzero(test.targets[i]).tolist()
        for c, (mask, by_mask) in found.items():
            assert by_mask
            np.testing.assert_array_equal(mask, masks[classes == c].any(0))


# --- options of every source ------------------------------------------------------------------------------------------


def test_unknown_sources_and_options_are_refused_in_one_line(folder: Path) -> None:
    train = write(folder / "t.csv", "path,labels", "a.png,dog")
    with pytest.raises(
        DataError, match=r"source .*nowhere does not exist; allowed: 'scenes-lt', .*'voc-lt', .*a \.csv"
    ):
        load_dataset(folder / "nowhere")
    with pytest.raises(DataError, match="has no known form"):
        load_dataset(folder / "a.png")
    with pytest.raises(ConfigError, match=r"unknown option clases .*allowed: test, classes, require_images, root, val"):
        load_dataset(train, clases=["dog"])
    with pytest.raises(DataError, match=r"test=gone\.csv is not a file"):
        load_dataset(train, test="gone.csv")
    with pytest.raises(DataError, match=r"root .* is not a folder"):
        load_dataset(train, root=folder / "gone")
    for wrong in ({"val": 1.0}, {"val": -0.1}, {"val": "x"}, {"val": True}, {"on_error": "ignore"}):
        with pytest.raises(ConfigError):
            load_dataset(train, **wrong)


def test_an_image_in_train_and_test_is_refused(folder: Path) -> None:
    train = write(folder / "t.csv", "path,labels", "a.png,dog", "b.png,cat")
    test = write(folder / "u.csv", "path,labels", "./b.png,cat")
    with pytest.raises(DataError, match=r"b\.png is in train and in test"):
        load_dataset(train, test=test)


def test_skip_leaves_out_undecodable_images_only(folder: Path) -> None:
    (folder / "c.png").write_bytes((folder / "c.png").read_bytes()[:45])
    (folder / "d.png").write_bytes(b"")
    train = write(folder / "t.csv", "path,labels", "a.png,dog", "c.png,cat", "b.png,cat;dog")
    test = write(folder / "u.csv", "path,labels", "d.png,dog")
    with pytest.raises(DataError, match=r"c\.png cannot be decoded"):
        load_dataset(train).train.image(1)
    data = load_dataset(train, test=test, on_error="skip")
    assert data.train.ids == ("a.png", "b.png")
    assert data.train.targets.tolist() == [[1, 0, 0], [1, 1, 0]]
    assert len(data.test) == 0
    assert data.class_counts.tolist() == [2, 1, 0]
    assert data.train.image(1)[0, 0].tolist() == [40, 0, 0]
    assert [note.split(":")[0] for note in data.notes] == [
        "skipped in train",
        "skipped in test",
        "no training image of",
    ]
    assert "c.png" in data.notes[0]
    for lines in (["a.png,dog", "gone.png,dog"], ["a.png,wolf"]):
        with pytest.raises(DataError):
            load_dataset(write(folder / "t.csv", "path,labels", *lines), on_error="skip")


def test_validation_is_carved_from_training_and_counts_stay_full(folder: Path) -> None:
    lines = [f"{i}.png,{'dog' if i % 2 else 'cat'}" for i in range(20)]
    train = write(folder / "t.csv", "path,labels", *lines)
    data = load_dataset(train, val=0.2, require_images=False)
    assert (len(data.train), len(data.val)) == (16, 4)
    assert set(data.train.ids) | set(data.val.ids) == {f"{i}.png" for i in range(20)}
    assert data.val.targets.sum(0).tolist() == [2, 2, 0]
    assert data.class_counts.tolist() == [10, 10, 0]
    assert load_dataset(train, val=0.2, require_images=False).val.ids == data.val.ids
    assert load_dataset(train, val=0.2, val_seed=1, require_images=False).val.ids != data.val.ids


def test_fingerprints_follow_the_file(folder: Path) -> None:
    train = write(folder / "t.csv", "path,labels", "a.png,dog", "b.png,dog")
    before = load_dataset(train).train.fingerprints
    assert load_dataset(train).train.fingerprints == before
    Image.new("RGB", (30, 30), "blue").save(folder / "a.png")
    after = load_dataset(train).train.fingerprints
    assert after[0] != before[0]
    assert after[1] == before[1]
