"""scenes-lt: exact counts, pictures that depend on their name alone, labels that can be seen."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from hpdval.data.captions import caption_digest
from hpdval.data.scenes import CLASSES, load_fewshot_scenes, load_scenes
from hpdval.data.scenes.profile import AT_HOME, CROWDING, THEMES, evaluation_counts, label_matrix
from hpdval.data.scenes.things import THINGS, USUAL
from hpdval.data.scenes.world import NAMES, PLAIN, VISIBLE_PIXELS, caption, draw_scene, stream_scene
from hpdval.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def world():
    return load_scenes()


def test_training_counts_are_those_of_voc_lt(world, shared_data: Path) -> None:
    published = json.loads((shared_data / "splits" / "splits.json").read_text())["voc-lt"]["train"]
    assert len(world.train) == published["images"]
    assert sorted(world.train.targets.sum(0)) == sorted(published["counts"].values())
    assert world.class_counts.tolist() == world.train.targets.sum(0).tolist()


def test_the_profile(world) -> None:
    assert len(world.classes) == 20
    assert len(world.train) == 1142
    assert int(world.train.targets.sum()) == 2346
    assert {name: len(group) for name, group in world.groups.items()} == {"head": 6, "medium": 6, "tail": 8}
    assert len(world.val) == 0
    assert len(world.test) == 2000
    assert world.test.targets.sum(0).min() >= 50
    assert world.train.targets.any(1).all()
    assert world.test.targets.any(1).all()


@pytest.mark.parametrize("seed", range(5))
def test_any_seed_gives_exact_counts_and_other_lists(world, seed: int) -> None:
    matrix = label_matrix(world.class_counts, 1142, f"seed {seed}")
    assert (matrix.sum(0) == world.class_counts).all()
    assert matrix.any(1).all()
    assert not np.array_equal(matrix, world.train.targets)


def test_partners_are_those_of_a_theme(world) -> None:
    together = [set(members) for members in THEMES.values()]
    targets = world.test.targets.astype(float)
    lift = (targets.T @ targets) * len(targets) / np.outer(targets.sum(0), targets.sum(0))
    same = np.array([[any({a, b} <= theme for theme in together) for b in CLASSES] for a in CLASSES])
    pairs = ~np.eye(20, dtype=bool)
    assert lift[pairs & same].mean() > 1.2 * lift[pairs & ~same].mean()
    assert AT_HOME > 1 > CROWDING


def test_every_theme_and_colour_names_a_thing() -> None:
    assert set(CLASSES) == {name for members in THEMES.values() for name in members}
    assert set(CLASSES) | set(USUAL) <= set(THINGS)
    assert NAMES[:20] == CLASSES
    assert evaluation_counts().min() >= 50


def test_short_lists_start_the_long_ones_and_keep_every_class(world) -> None:
    short = load_scenes(train=40, test=25)
    assert np.array_equal(short.train.targets, world.train.targets[:40])
    assert short.train.targets.any(0).all()
    assert short.test.targets.any(0).all()
    assert short.class_counts.max() == 775
    assert np.array_equal(short.test.image(7), world.test.image(7))


def test_pictures_do_not_depend_on_the_order_of_calls(world) -> None:
    forwards = [world.train.image(i) for i in (0, 5, 9)]
    backwards = [load_scenes().train.image(i) for i in (9, 5, 0)][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forwards, backwards, strict=True))


def test_pictures_do_not_depend_on_the_process(world) -> None:
    code = (
        "import hashlib; from hpdval.data.scenes import load_scenes; "
        "print(hashlib.sha256(load_scenes().test.image(11).tobytes()).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == hashlib.sha256(world.test.image(11).tobytes()).hexdigest()


def test_no_two_pictures_are_equal_within_or_between_splits(world) -> None:
    pictures = [world.train.image(i) for i in range(200)] + [world.test.image(i) for i in range(200)]
    assert len({picture.tobytes() for picture in pictures}) == 400
    names = world.train.fingerprints + world.test.fingerprints
    assert len(set(names)) == 1142 + 2000
    assert not set(names) & set(load_scenes(seed=1).train.fingerprints)
    assert set(names).isdisjoint(load_scenes(size=96, train=20, test=20).train.fingerprints)


def test_every_label_can_be_seen_and_nothing_else_is_labelled(world) -> None:
    for index in range(0, 2000, 10):
        masks, boxes = world.test.masks(index), world.test.boxes(index)
        assert masks.shape == (len(boxes), 64, 64)
        assert masks.dtype == bool
        assert set(boxes[:, 0].astype(int)) == set(np.flatnonzero(world.test.targets[index]))
        assert masks.sum((1, 2)).min() >= VISIBLE_PIXELS / 2  # thin things lose pixels when the picture is reduced
        assert masks.sum(0).max() <= 1  # a pixel shows one thing
        for mask, (_, x, y, width, height) in zip(masks, boxes, strict=True):
            inside = mask[int(y) : int(y + height), int(x) : int(x + width)]
            assert inside.sum() == mask.sum()
            assert inside.any(0).all() or inside[:, [0, -1]].any(0).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_thing_is_seen_where_its_mask_says(name: str) -> None:
    scene = draw_scene([name], f"look {name}", style=PLAIN, size=96)
    assert scene.image.shape == (96, 96, 3)
    assert set(scene.names) == {name}
    inside, outside = scene.image[scene.masks.any(0)], scene.image[~scene.masks.any(0)]
    assert np.abs(np.median(inside, 0) - np.median(outside, 0)).sum() > 15


def test_all_labels_at_once_still_find_room() -> None:
    scene = draw_scene(CLASSES[:6], "crowd")
    assert set(scene.names) == set(CLASSES[:6])


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(DataError, match=r"nobody can draw unicorn; give some of person"):
        draw_scene(["cat", "unicorn"], "none")
    with pytest.raises(DataError, match="no room for 180 things"):
        draw_scene(NAMES * 6, "all", size=32)


def test_pictures_stay_as_they_were_drawn_first() -> None:
    """Coarse colours of two pictures: a change of the generator must raise its version."""
    world = load_scenes(train=20, test=20)
    coarse = [
        np.asarray(Image.fromarray(split.image(3)).resize((2, 2), Image.Resampling.BOX))
        for split in (world.train, world.test)
    ]
    expected = [
        [[[146, 166, 166], [145, 173, 143]], [[58, 49, 68], [49, 70, 65]]],
        [[[178, 116, 123], [164, 195, 112]], [[156, 144, 121], [164, 161, 120]]],
    ]
    assert np.abs(np.array(coarse).astype(int) - expected).max() <= 2, np.array(coarse).tolist()


def test_the_stream_shows_all_things_equally_often() -> None:
    seen = [set(stream_scene(i).names) for i in range(300)]
    counts = {name: sum(name in names for names in seen) for name in NAMES}
    assert min(counts.values()) > 3
    assert max(counts.values()) < 45
    assert {len(names) for names in seen} == {1, 2, 3}
    assert not np.array_equal(stream_scene(0).image, stream_scene(0, seed=1).image)


def test_a_caption_names_exactly_what_it_is_given() -> None:
    for seed in range(30):
        text = caption(["clock", "dog"], Random(seed))
        assert {name for name in NAMES if name in text} == {"clock", "dog"}


@pytest.mark.parametrize("load", [load_scenes, load_fewshot_scenes])
def test_captions_name_every_label_once_and_nothing_else(load) -> None:
    data = load(train=200, test=200)
    for split in (data.train, data.test):
        texts = [split.captions(i) for i in range(len(split))]
        for text, row in zip(texts, split.targets, strict=True):
            words = text.rstrip(".").split()
            assert sorted(word for word in words if word in NAMES) == sorted(np.array(CLASSES)[row == 1])
        openings = {text[: text.index(next(n for n in text.rstrip(".").split() if n in NAMES))] for text in texts}
        assert len(openings) == 7, "every sentence of the generator occurs"
    assert load(train=30, test=20).train.captions(7) == data.train.captions(7)
    assert [load(seed=1).train.captions(i) for i in range(20)] != [data.train.captions(i) for i in range(20)]


def test_captions_do_not_depend_on_the_process_the_size_or_the_order_of_calls(world) -> None:
    code = (
        "from hpdval.data.captions import caption_digest; from hpdval.data.scenes import load_scenes; "
        "world = load_scenes(size=32); [world.train.captions(i) for i in (9, 5)]; world.train.image(3); "
        "print(caption_digest(world.train), caption_digest(world.test))"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert there == [caption_digest(world.train), caption_digest(world.test)]
    assert there[0] != there[1]


@pytest.mark.parametrize("options", [{"train": 19}, {"train": 1143}, {"test": 2001}, {"size": 16}])
def test_numbers_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))} = .*; give"):
        load_scenes(**options)


def test_images_and_classes_are_found_by_name() -> None:
    data = load_scenes(train=20, test=20)
    assert data.test.position("test/00007") == 7
    assert data.classes[data.column("boat")] == "boat"
    with pytest.raises(DataError, match=r"there is no image 'test/7'; there are 20, such as test/00017"):
        data.test.position("test/7")
    with pytest.raises(DataError, match=r"there is no class 'boot'; there are 20, such as boat"):
        data.column("boot")
