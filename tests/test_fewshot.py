"""Few-shot data: the published lists and episodes, the sides of a data set, the balanced test set, episodes by seed."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpdval.data import (
    PROTOCOLS,
    Dataset,
    Split,
    balanced_rows,
    base_dataset,
    load_dataset,
    make_episodes,
    novel_test,
    published_episodes,
    read_episode,
    read_episodes,
)
from hpdval.data.fewshot import COCO_NOVEL, VOC_NOVEL
from hpdval.data.scenes import load_fewshot_scenes, load_scenes
from hpdval.data.voc import CLASSES as VOC
from hpdval.errors import ConfigError, DataError


def split_of(targets: Any, ids: list[str]) -> Split:
    array = np.array(targets, np.uint8).reshape(len(ids), -1)
    return Split(ids=tuple(ids), targets=array, read=lambda i: np.full((1, 1, 3), i % 256), fingerprints=tuple(ids))


def dataset_of(train: Any, test: Any, classes: str | tuple[str, ...] = "abcdef", name: str = "toy") -> Dataset:
    """A data set of these targets; images are called train/0, train/1, ..., test/0, ..."""
    classes = tuple(classes)[: np.shape(train)[1]]
    parts = {
        part: split_of(rows, [f"{part}/{i}" for i in range(len(rows))])
        for part, rows in (("train", train), ("test", test))
    }
    counts = parts["train"].targets.sum(0, dtype=np.int64)
    return Dataset(name=name, classes=classes, class_counts=counts, val=parts["train"].subset([]), **parts)


def random_dataset(seed: int, n: int = 120, n_classes: int = 6) -> Dataset:
    rng = np.random.default_rng(seed)
    train, test = ((rng.random((n, n_classes)) < 0.25).astype(np.uint8) for _ in range(2))
    return dataset_of(train, test)


# -- base and novel ----------------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_classes_are_the_published_ones(golden: Path) -> None:
    published = json.loads((golden / "fewshot/classes.json").read_text())
    assert list(COCO_NOVEL) == published["coco"]["novel_names"]
    assert list(VOC_NOVEL) == published["voc"]["novel_names"]
    assert [VOC.index(name) for name in VOC_NOVEL] == published["voc"]["novel_idx"]
    assert [name for name in VOC if name not in VOC_NOVEL] == published["voc"]["base_names"]


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_the_sides_have_the_images_and_labels_that_loops_find(seed: int, mixed: bool) -> None:
    data = random_dataset(seed)
    novel, base = {"b", "e"}, {"a", "c", "d", "f"}

    def side(split: Split, own: set[str]) -> dict[str, set[str]]:
        found = {}
        for name, row in zip(split.ids, split.targets, strict=True):
            labels = {one for one, there in zip(data.classes, row, strict=True) if there}
            if labels & own and (mixed or labels <= own):
                found[name] = labels & own
        return found

    def labels_of(split: Split, classes: tuple[str, ...]) -> dict[str, set[str]]:
        return {
            name: {one for one, there in zip(classes, row, strict=True) if there}
            for name, row in zip(split.ids, split.targets, strict=True)
        }

    made = base_dataset(data, ["e", "b"], mixed=mixed)
    assert made.classes == ("a", "c", "d", "f")
    assert labels_of(made.train, made.classes) == side(data.train, base)
    assert labels_of(made.test, made.classes) == side(data.test, base)
    assert made.class_counts.tolist() == made.train.targets.sum(0).tolist()
    assert f"{120 - len(made.train)} training" in made.notes[-1]
    assert labels_of(novel_test(data, ["e", "b"], mixed=mixed), ("b", "e")) == side(data.test, novel)


def test_a_side_keeps_pictures_order_and_the_validation_part() -> None:
    data = random_dataset(0)
    data = replace(data, train=data.train.subset(range(80)), val=data.train.subset(range(80, 120)))
    made = base_dataset(data, ["f"])
    for name in ("train", "val", "test"):
        whole, part = getattr(data, name), getattr(made, name)
        places = [whole.ids.index(one) for one in part.ids]
        assert places == sorted(places)
        assert all(np.array_equal(part.image(i), whole.image(place)) for i, place in enumerate(places))
    assert made.class_counts.tolist() == data.class_counts[:5].tolist(), "of the list before a part was carved from it"


def test_captions_go_with_their_images() -> None:
    data = load_dataset("scenes-fewshot", train=40, test=60, val=0.2)
    made = base_dataset(data, PROTOCOLS["scenes-fewshot"].novel)
    for name in ("train", "val", "test"):
        whole, part = getattr(data, name), getattr(made, name)
        assert [part.captions(i) for i in range(len(part))] == [whole.captions(whole.ids.index(n)) for n in part.ids]
    assert split_of([[1]], ["a"]).subset([0]).captions is None


def test_boxes_and_masks_are_of_the_classes_that_are_left() -> None:
    data = load_dataset("scenes-fewshot", train=40, test=60)
    novel = PROTOCOLS["scenes-fewshot"].novel
    test = novel_test(data, novel)
    names = [name for name in data.classes if name in novel]
    fewer = 0
    for i, name in enumerate(test.ids):
        whole = data.test.ids.index(name)
        boxes, masks = data.test.boxes(whole), data.test.masks(whole)
        kept = [j for j, row in enumerate(boxes) if data.classes[int(row[0])] in names]
        fewer += len(kept) < len(boxes)
        assert [names[int(row[0])] for row in test.boxes(i)] == [data.classes[int(boxes[j, 0])] for j in kept]
        assert np.array_equal(test.boxes(i)[:, 1:], boxes[kept, 1:])
        assert np.array_equal(test.masks(i), masks[kept])
        assert set(test.boxes(i)[:, 0].astype(int)) == set(np.flatnonzero(test.targets[i]))
    assert fewer > 10


@pytest.mark.parametrize(
    ("novel", "message"),
    [
        ("ab", "novel is 'ab'; give the names"),
        ([], r"novel is \[\]; give the names"),
        ([0, 1], "give the names"),
        (["a", "zebra"], "novel class 'zebra' is no class of toy; the classes are a, b, c, d, e, f"),
        (["a", "b", "a"], "novel class 'a' is given twice"),
    ],
)
def test_class_names_that_cannot_be_are_refused(novel: Any, message: str) -> None:
    data = random_dataset(0)
    for call in (base_dataset, novel_test, lambda *given: make_episodes(*given, shots=1)):
        with pytest.raises(ConfigError, match=message):
            call(data, novel)


def test_a_side_without_classes_or_test_images_is_refused() -> None:
    data = random_dataset(0)
    with pytest.raises(ConfigError, match="all 6 classes of toy; leave some as base"):
        base_dataset(data, data.classes)
    with pytest.raises(DataError, match="toy has no test image of novel class b"):
        novel_test(dataset_of([[1, 1]], [[1, 0]]), ["b"])
    with pytest.raises(DataError, match="no test image of novel class b"):
        novel_test(dataset_of([[1, 1]], [[1, 1]]), ["b"], mixed=False)


# -- the balanced test set ---------------------------------------------------------------------------------------------


def released_rule(targets: list[list[int]], firsts: list[int]) -> list[int]:
    """LaSO's loop over samples in plain Python, with the class that chance picks first given."""
    n_classes = len(targets[0])
    images = [[i for i, row in enumerate(targets) if row[c]] for c in range(n_classes)]
    histogram = [0] * n_classes
    rows = []
    for sample, label in enumerate(firsts):
        for other in range(n_classes):
            if histogram[other] < histogram[label]:
                label = other
        rows.append(images[label][sample % len(images[label])])
        for c in range(n_classes):
            histogram[c] += targets[rows[-1]][c]
    return rows


@pytest.mark.parametrize("seed", range(5))
def test_balanced_rows_follow_the_released_rule(seed: int) -> None:
    targets = random_dataset(seed).test.targets
    targets = targets[targets.any(1)]
    firsts = np.random.default_rng(seed).integers(6, size=500).tolist()
    rows = balanced_rows(targets, 500, seed)
    assert rows.tolist() == released_rule(targets.tolist(), firsts)
    assert rows.tolist() != balanced_rows(targets, 500, seed + 1).tolist()


def test_balanced_rows_are_balanced() -> None:
    """A class a hundred times as frequent as another is shown about as often."""
    targets = np.zeros((1010, 2), np.uint8)
    targets[:1000, 0] = targets[1000:, 1] = 1
    counts = targets[balanced_rows(targets, 400, 0)].sum(0)
    assert counts.tolist() == [200, 200]
    for draws, seed in ((0, 0), (5, -1)):
        with pytest.raises(ConfigError, match="give draws >= 1 and seed >= 0"):
            balanced_rows(targets, draws, seed)
    with pytest.raises(DataError, match="class 1 has no test image to draw"):
        balanced_rows(targets[:1000], 5, 0)


# -- episodes by seed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_episodes_have_k_positives_and_no_image_to_spare(seed: int, shots: int, mixed: bool) -> None:
    data = random_dataset(seed, n=300)
    novel = ("b", "d", "e")
    columns = [data.classes.index(name) for name in novel]
    for number, episode in enumerate(make_episodes(data, novel, shots=shots, seed=seed, mixed=mixed), 1):
        assert (episode.name, episode.seed, episode.classes) == (f"toy-{shots}shot-{number}", seed, novel)
        assert episode.ids == tuple(data.train.ids[i] for i in episode.indices)
        assert np.array_equal(episode.targets, data.train.targets[np.ix_(episode.indices, columns)])
        assert episode.counts.tolist() == [shots] * 3, "single-label images are there, so none need be exceeded"
        assert episode.targets.any(1).all()
        others = np.delete(data.train.targets[episode.indices], columns, 1)
        assert mixed or not others.any()


def fewest_too_many(labels: np.ndarray, shots: int) -> int:
    """The least surplus of positives over all subsets that have K of each class."""
    rows = range(len(labels))
    surplus = [
        int((labels[list(some)].sum(0) - shots).sum())
        for size in rows
        for some in combinations(rows, size + 1)
        if (labels[list(some)].sum(0) >= shots).all()
    ]
    return min(surplus)


@pytest.mark.parametrize("seed", range(12))
def test_few_images_give_the_least_surplus_there_is(seed: int) -> None:
    """Oracle: all subsets of nine images, many of them with several labels."""
    labels = (np.random.default_rng(seed).random((9, 3)) < 0.6).astype(np.uint8)
    if (labels.sum(0) < 2).any():
        labels[:2] = 1
    data = dataset_of(np.hstack([labels, np.ones((9, 1), np.uint8)]), np.ones((1, 4), np.uint8))
    (episode,) = make_episodes(data, ["a", "b", "c"], shots=2, episodes=1, seed=seed)
    assert (episode.counts - 2).sum() == fewest_too_many(labels, 2)
    for i in range(len(episode.ids)):
        assert (np.delete(episode.targets, i, 0).sum(0) < 2).any(), "no image could be left out"


def test_a_companion_overshoots_only_where_it_must() -> None:
    """All images of b show a, too, so they serve both; and three classes in pairs cannot be had once each."""
    data = dataset_of([[1, 1, 0]] * 4 + [[1, 0, 0]] * 20 + [[0, 0, 1]] * 5, [[1, 1, 1]])
    for episode in make_episodes(data, ["a", "b"], shots=4):
        assert episode.counts.tolist() == [4, 4]
    data = dataset_of([[1, 1, 0], [1, 0, 1], [0, 1, 1]], [[1, 1, 1]])
    assert make_episodes(data, ["a", "b", "c"], shots=1, episodes=1)[0].counts.sum() == 4, "one of them twice"


def test_episodes_follow_seed_and_number_alone() -> None:
    data = random_dataset(1)
    ten = make_episodes(data, ["a", "b"], shots=2, seed=5)
    np.random.seed(3)  # noqa: NPY002 - the global generator must not matter
    three = make_episodes(data, ["b", "a"], shots=2, seed=5, episodes=3)
    assert [episode.ids for episode in three] == [episode.ids for episode in ten[:3]]
    assert len({episode.ids for episode in ten}) == 10
    assert ten[0].ids != make_episodes(data, ["a", "b"], shots=2, seed=6)[0].ids


def test_a_shipped_episode_stays_as_it_was_drawn_first() -> None:
    world = load_dataset("scenes-fewshot")
    novel = PROTOCOLS["scenes-fewshot"].novel
    drawn = [list(e.ids) for shots in (1, 5) for e in make_episodes(world, novel, shots=shots)]
    digest = hashlib.sha256(json.dumps(drawn).encode()).hexdigest()
    assert digest[:16] == "afc08b33ee47df15"


def test_an_episode_becomes_a_data_set_of_its_own() -> None:
    data = random_dataset(2)
    test = novel_test(data, ["c", "f"])
    episode = make_episodes(data, ["c", "f"], shots=3)[4]
    made = episode.dataset(data, test)
    assert (made.name, made.classes, len(made.val)) == ("toy-3shot-5", ("c", "f"), 0)
    assert made.train.ids == episode.ids
    assert np.array_equal(made.train.targets, episode.targets)
    assert np.array_equal(made.train.image(1), data.train.image(int(episode.indices[1])))
    assert made.test is test
    assert made.class_counts.tolist() == [3, 3]
    with pytest.raises(DataError, match="toy-3shot-5 is not of these training images"):
        episode.dataset(replace(data, train=data.train.subset(range(20))), test)
    with pytest.raises(DataError, match=r"in train and .* in test have the same name"):
        episode.dataset(data, made.train)


def test_what_cannot_be_drawn_is_refused() -> None:
    data = random_dataset(3)
    for wrong in ({"shots": 0}, {"shots": 1.5}, {"shots": True}, {"episodes": 0}, {"seed": -1}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is .*; give a whole number from"):
            make_episodes(data, ["a"], **{"shots": 1, **wrong})
    few = dataset_of([[1, 1], [1, 0], [1, 1], [0, 1]], [[1, 1]])
    with pytest.raises(DataError, match=r"novel class b has 3 training images in toy, fewer than shots=4"):
        make_episodes(few, ["b"], shots=4)
    with pytest.raises(DataError, match=r"novel class b has 1 training images without base labels in toy"):
        make_episodes(few, ["b"], shots=2, mixed=False)
    with pytest.raises(DataError, match="train/0 in train and train/0 in test have the same name"):
        make_episodes(replace(few, test=few.train), ["b"], shots=1)


# -- scenes-fewshot ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_scenes_fewshot_has_equally_many_of_each_class(seed: int) -> None:
    world = load_fewshot_scenes(seed=seed)
    assert (len(world.train), len(world.test)) == (1600, 2000)
    assert world.class_counts.tolist() == world.train.targets.sum(0).tolist() == [200] * 20
    assert world.test.targets.sum(0).tolist() == [250] * 20
    assert world.train.targets.any(1).all()
    assert world.test.targets.any(1).all()


def test_scenes_fewshot_is_cut_into_14_and_6_and_draws_other_pictures() -> None:
    protocol = PROTOCOLS["scenes-fewshot"]
    world = protocol.load(train=60, test=40)
    assert len(base_dataset(world, protocol.novel).classes) == 14
    assert len(novel_test(world, protocol.novel).targets[0]) == 6
    long_tail = load_scenes(train=60, test=40)
    assert set(world.train.fingerprints).isdisjoint(long_tail.train.fingerprints)
    assert not np.array_equal(world.train.image(0), long_tail.train.image(0))
    with pytest.raises(ConfigError, match="scenes-fewshot: train = 1601; give 20 to 1600"):
        protocol.load(train=1601)
    with pytest.raises(ConfigError, match="root has no meaning for scenes-fewshot"):
        protocol.load("folder")


# -- published: VOC2007 ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def voc(golden: Path) -> Dataset:
    """VOC2007 as far as its few-shot lists tell: labels of the images that are on one side alone."""
    files = json.loads((golden / "fewshot/voc_splits.json").read_text())["files"]
    parts = {}
    for part in ("Train", "Test"):
        rows = {}
        for side in ("base", "novel"):
            listed = files[f"{part}_{side}"]
            for number, labels in zip(listed["ids"], listed["labels"], strict=True):
                rows[f"VOC2007/JPEGImages/{number:06}.jpg"] = [listed["classes"][i] for i in labels]
        names = sorted(rows)
        targets = [[int(one in rows[name]) for one in VOC] for name in names]
        parts[part.lower()] = split_of(targets, names)
    counts = parts["train"].targets.sum(0, dtype=np.int64)
    return Dataset(name="voc2007", classes=VOC, class_counts=counts, val=parts["train"].subset([]), **parts)


@pytest.mark.shared
def test_the_rule_for_voc_gives_the_published_lists(golden: Path, voc: Dataset, shared_data: Path) -> None:
    """With the labels of VOC-LT's test list, which count difficult objects, only mixed images may differ."""
    protocol = PROTOCOLS["voc2007"]
    protocol.check(voc)
    files = json.loads((golden / "fewshot/voc_splits.json").read_text())["files"]
    base, test = base_dataset(voc, VOC_NOVEL, mixed=False), novel_test(voc, VOC_NOVEL, mixed=False)
    assert (len(base.train), len(base.test), len(test)) == (3575, 3562, 926)
    assert base.class_counts.tolist() == files["Train_base"]["per_class"]
    assert base.test.targets.sum(0).tolist() == files["Test_base"]["per_class"]
    assert test.targets.sum(0).tolist() == files["Test_novel"]["per_class"]
    whole = load_dataset(shared_data / "splits/voc_lt_train.txt", test="voc_lt_test.txt", require_images=False)
    whole = replace(whole, test=replace(whole.test, ids=tuple(Path(name).name for name in whole.test.ids)))
    for sure, published in (
        (novel_test(whole, VOC_NOVEL, mixed=False).ids, test.ids),
        (base_dataset(whole, VOC_NOVEL, mixed=False).test.ids, base.test.ids),
    ):
        assert set(sure) <= {Path(name).name for name in published}
    with pytest.raises(DataError, match=r"published are \(3575, 895, 3562, 926\); load the whole set with difficult"):
        protocol.check(replace(voc, test=voc.test.subset(range(4000))))


def test_difficult_objects_do_not_count_and_a_part_of_the_set_is_refused(tmp_path: Path) -> None:
    """A person before a dog that is hard to see is on the base side; with that dog counted it is on neither."""
    kit = tmp_path / "VOCdevkit/VOC2007"
    for folder in ("ImageSets/Main", "Annotations"):
        (kit / folder).mkdir(parents=True)
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    for part, number, plain, hard in (("trainval", 1, "person", "dog"), ("test", 2, "cat", "person")):
        (kit / f"ImageSets/Main/{part}.txt").write_text(f"{number:06}\n")
        seen, unseen = (f"<object><name>{name}</name>{box}" for name in (plain, hard))
        text = f"<annotation>{seen}</object>{unseen}<difficult>1</difficult></object></annotation>"
        (kit / f"Annotations/{number:06}.xml").write_text(text)
    for options, found in (({}, "1, 0, 0, 1"), ({"difficult": True}, "0, 0, 0, 0")):
        message = rf"voc2007 has \({found}\) images \(training base, .*; load the whole set with difficult=False"
        with pytest.raises(DataError, match=message):
            PROTOCOLS["voc2007"].load(tmp_path, require_images=False, **options)


def csv_files(golden: Path) -> dict[str, bytes]:
    """The files as they can be downloaded, written again from what they say: the hashes are those of the originals."""
    listed = json.loads((golden / "fewshot/voc_episodes.json").read_text())
    files = {}
    for episode in listed["episodes"]:
        lines = [",".join(["name", *listed["classes"]])]
        for image in episode["images"]:
            lines.append(",".join([str(image["id"]), *(str(int(k in image["labels"])) for k in range(6))]))
        data = "\n".join([*lines, ""]).encode()
        assert hashlib.sha256(data).hexdigest() == episode["sha256"]
        files[f"classification_Train_novel_{episode['shots']}shot_{episode['run']}.csv"] = data
    return files


@pytest.fixture
def downloaded(golden: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "hp_dval"
    (folder / "idx/voc").mkdir(parents=True)
    for name, data in csv_files(golden).items():
        (folder / "idx/voc" / name).write_bytes(data)
    return folder


@pytest.mark.shared
@pytest.mark.parametrize("shots", [1, 5])
def test_published_voc_episodes(golden: Path, voc: Dataset, downloaded: Path, shots: int) -> None:
    episodes = read_episodes(golden / "fewshot", voc, shots=shots)
    assert [episode.name for episode in episodes] == [f"voc2007-{shots}shot-{run}" for run in range(1, 11)]
    test = novel_test(voc, VOC_NOVEL, mixed=False)
    listed = json.loads((golden / "fewshot/voc_episodes.json").read_text())["episodes"]
    for episode, entry in zip(episodes, [e for e in listed if e["shots"] == shots], strict=True):
        assert episode.counts.tolist() == [shots] * 6
        assert len(episode.ids) in ((4, 5) if shots == 1 else (24, 25))
        assert [int(Path(name).stem) for name in episode.ids] == [image["id"] for image in entry["images"]]
        assert [np.flatnonzero(row).tolist() for row in episode.targets] == [i["labels"] for i in entry["images"]]
        assert np.array_equal(episode.targets, voc.train.targets[episode.indices][:, [VOC.index(n) for n in VOC_NOVEL]])
        assert len(episode.dataset(voc, test).test) == 926
    for other, episode in zip(read_episodes(downloaded, voc, shots=shots), episodes, strict=True):
        assert (other.ids, other.targets.tolist()) == (episode.ids, episode.targets.tolist())


@pytest.mark.shared
def test_an_altered_or_missing_file_is_refused(golden: Path, voc: Dataset, downloaded: Path) -> None:
    path = downloaded / "idx/voc/classification_Train_novel_5shot_3.csv"
    path.write_bytes(path.read_bytes().replace(b",1,0,", b",0,1,", 1))
    with pytest.raises(DataError, match=r"5shot_3\.csv is not the published file: its sha256 is .*; fetch it again"):
        read_episodes(downloaded, voc, shots=5)
    assert len(read_episodes(downloaded, voc, shots=1)) == 10
    path.unlink()
    with pytest.raises(DataError, match=r"classification_Train_novel_5shot_3\.csv is not in .*; give the folder"):
        read_episodes(downloaded, voc, shots=5)
    shutil.copy(golden / "fewshot/voc_episodes.json", downloaded / "voc_episodes.json")
    with open(downloaded / "voc_episodes.json", "a") as file:
        file.write("\n")
    with pytest.raises(DataError, match=r"voc_episodes\.json is not the published file"):
        read_episodes(downloaded, voc, shots=5)


@pytest.mark.shared
def test_episodes_that_do_not_fit_the_data_set_are_refused(golden: Path, voc: Dataset, downloaded: Path) -> None:
    first = read_episodes(golden / "fewshot", voc, shots=5)[0]
    without = voc.train.subset([i for i in range(len(voc.train)) if i != first.indices[7]])
    number = int(Path(first.ids[7]).stem)
    with pytest.raises(DataError, match=rf"5 shots, run 1, image {number}: {number} is not a training image"):
        read_episodes(golden / "fewshot", replace(voc, train=without), shots=5)
    with pytest.raises(DataError, match=rf"5shot_1\.csv, line 9: {number} is not a training image of the data set"):
        read_episodes(downloaded, replace(voc, train=without), shots=5)
    for value, what in ((0, "lists"), (1, "does not list")):
        targets = voc.train.targets.copy()
        column = next(VOC.index(name) for name in VOC_NOVEL if targets[first.indices[7], VOC.index(name)] != value)
        targets[first.indices[7], column] = value
        altered = replace(voc, train=replace(voc.train, targets=targets))
        message = rf"5shot_1\.csv, line 9: {what} {VOC[column]} for {first.ids[7]}, unlike voc2007; load that with diff"
        with pytest.raises(DataError, match=message):
            read_episodes(downloaded, altered, shots=5)
    with pytest.raises(ConfigError, match="shots is 2; published are 1 and 5"):
        read_episodes(golden / "fewshot", voc, shots=2)
    with pytest.raises(ConfigError, match="no episodes were published for toy; draw some with make_episodes"):
        read_episodes(golden / "fewshot", random_dataset(0), shots=1)
    with pytest.raises(DataError, match="nowhere is not a folder"):
        read_episodes(golden / "nowhere", voc, shots=1)


# -- published: COCO 2014 ----------------------------------------------------------------------------------------------

COCO_PLACES = (1, 8, 11, 14, 24, 29, 31, 37, 41, 42, 44, 50, 56, 66, 68, 75)


@pytest.fixture(scope="module")
def coco(golden: Path) -> Dataset:
    """As many images as train2014 has, with the labels that the published episodes say."""
    classes = [f"class {i}" for i in range(80)]
    for place, name in zip(COCO_PLACES, COCO_NOVEL, strict=True):
        classes[place] = name
    targets = np.zeros((82_783, 80), np.uint8)
    targets[:, 0] = 1
    for episode in json.loads((golden / "fewshot/coco_episodes.json").read_text())["episodes"]:
        for place, images in episode["class_idx"].items():
            targets[images, int(place)] = 1
    return dataset_of(targets, targets[:1], tuple(classes), "coco2014")


def pickles(golden: Path) -> dict[str, bytes]:
    """The files as they can be downloaded: the hashes are those of the originals."""
    files = {}
    for episode in json.loads((golden / "fewshot/coco_episodes.json").read_text())["episodes"]:
        name = f"{episode['shots']}shotRun{episode['run']}"
        by_class = {int(place): images for place, images in episode["class_idx"].items()}
        for kind, value, sha256 in (
            ("UsedIndices", episode["used_indices"], episode["sha256_used"]),
            ("ClassIdxDict", by_class, episode["sha256_dict"]),
        ):
            data = pickle.dumps(value, 4)
            assert hashlib.sha256(data).hexdigest() == sha256
            files[f"{name}{kind}.pkl"] = data
    return files


@pytest.mark.shared
@pytest.mark.parametrize("shots", [1, 5])
def test_published_coco_episodes(golden: Path, coco: Dataset, tmp_path: Path, shots: int) -> None:
    episodes = read_episodes(golden / "fewshot", coco, shots=shots)
    listed = json.loads((golden / "fewshot/coco_episodes.json").read_text())["episodes"]
    for episode, entry in zip(episodes, [e for e in listed if e["shots"] == shots], strict=True):
        assert (episode.classes, len(episode.ids)) == (COCO_NOVEL, len(set(entry["used_indices"])))
        assert episode.indices.tolist() == entry["used_indices"]
        assert episode.counts.tolist() == [len(entry["class_idx"][str(place)]) for place in COCO_PLACES]
        assert episode.counts.min() == shots, "and up to 15"
    assert max(episode.counts.max() for episode in episodes) == (5 if shots == 1 else 15)
    for name, data in pickles(golden).items():
        (tmp_path / name).write_bytes(data)
    for other, episode in zip(read_episodes(tmp_path, coco, shots=shots), episodes, strict=True):
        assert (other.ids, other.targets.tolist()) == (episode.ids, episode.targets.tolist())


@pytest.mark.shared
def test_coco_episodes_want_all_of_train2014(golden: Path, coco: Dataset) -> None:
    carved = replace(coco, train=coco.train.subset(range(80_000)))
    with pytest.raises(
        DataError, match="80000 training images and the published episodes count 82783; load it without"
    ):
        read_episodes(golden / "fewshot", carved, shots=1)
    targets = coco.train.targets.copy()
    targets[16448, 1] = 0
    with pytest.raises(DataError, match="run 1, position 16448: lists bicycle for train/16448, unlike coco2014"):
        read_episodes(golden / "fewshot", replace(coco, train=replace(coco.train, targets=targets)), shots=1)


class Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        return print, ("loaded",)


@pytest.mark.shared
@pytest.mark.parametrize("pinned", [False, True])
def test_a_pickle_is_never_loaded(
    coco: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], pinned: bool
) -> None:
    """Neither one that is not published, nor, if its hash were ours, one that holds more than numbers and lists."""
    data = pickle.dumps([1, Evil()], 4)
    (tmp_path / "1shotRun1UsedIndices.pkl").write_bytes(data)
    if pinned:
        sha256 = hashlib.sha256(data).hexdigest()
        monkeypatch.setattr(published_episodes, "_pins", lambda: {"1shotRun1UsedIndices.pkl": sha256})
    message = "opcode SHORT_BINUNICODE at byte .* is none of a plain list" if pinned else "is not the published file"
    with pytest.raises(DataError, match=message):
        read_episodes(tmp_path, coco, shots=1)
    assert capsys.readouterr().out == ""


# -- an episode of one's own -------------------------------------------------------------------------------------------

OWN = dataset_of([[1, 0, 1], [1, 1, 0], [0, 1, 0], [0, 0, 1]], [[1, 1, 1]])


def test_an_episode_of_your_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("name,a,b\ntrain/1,1,1\ntrain/0,1,0\n\n")
    episode = read_episode(path, OWN, ["b", "a"], shots=1)
    assert (episode.name, episode.ids, episode.indices.tolist()) == ("mine", ("train/1", "train/0"), [1, 0])
    assert episode.targets.tolist() == [[1, 1], [1, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"mine\.csv, line 1: the columns must be name,a,b"),
        ("name,b,a\n", "line 1: the columns must be name,a,b"),
        ("name,a,b\ntrain/1,1\n", "line 2: train/1,1 is not a name and 2 times 0 or 1"),
        ("name,a,b\ntrain/1,1,yes\n", "line 2: train/1,1,yes is not a name and 2 times 0 or 1"),
        ("name,a,b\n\ntrain/7,1,0\n", "line 3: train/7 is not a training image of the data set"),
        ("name,a,b\n7,1,0\n", "line 2: 7 is not a training image"),
        ("name,a,b\n٣,1,0\n", "line 2: ٣ is not a training image"),
        ("name,a,b\ntrain/1,1,1\ntrain/1,1,1\n", r"line 3: train/1 is listed twice \(first in .*mine.csv, line 2\)"),
        ("name,a,b\ntrain/3,0,0\n", "line 2: train/3 has no novel label; leave it out"),
        ("name,a,b\ntrain/3,1,0\n", "line 2: lists a for train/3, unlike toy; load that with the labels it was made"),
        ("name,a,b\ntrain/0,1,0\n", r"mine\.csv: run 1 has 0 positives of b for shots=1"),
        ('name,a,b\n"train/0,1,0\n', "not valid CSV"),
        ("name,a,b\ntr\xfcb\n", "is not UTF-8 text"),
    ],
)
def test_a_bad_episode_names_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes(text.encode("latin-1" if "\xfc" in text else "utf-8"))
    with pytest.raises(DataError, match=message) as caught:
        read_episode(path, OWN, ["a", "b"], shots=1)
    assert "\n" not in str(caught.value)
    assert "mine.csv" in str(caught.value)


def test_an_episode_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv cannot be read: No such file"):
        read_episode(tmp_path / "none.csv", OWN, ["a"], shots=1)
