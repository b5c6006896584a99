"""The explorer: filters against slow loops, scores and maps against the scorer, pictures, controls, words, errors."""

from __future__ import annotations

import asyncio
import base64
import io
import re
import statistics
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import label_ranking_average_precision_score

import hpdval
from hpdval import plots
from hpdval.config import ScoreConfig
from hpdval.data.dataset import Dataset, Split
from hpdval.data.listing import Listing
from hpdval.errors import ConfigError, DataError, HpdvalError, RunError
from hpdval.lab import explorer, filters, listing, markup
from hpdval.lab.explorer import Explorer
from hpdval.lab.later import Later
from hpdval.lab.picture import Picture, draw
from hpdval.lab.start import explore
from hpdval.metrics.calibration import best_f1_thresholds
from hpdval.plots.heatmaps import BOX
from hpdval.scoring import DualViewScorer
from hpdval.scoring.maps import Heatmaps, heatmaps, texts_of

RNG = np.random.default_rng(0)


Models = tuple[DualViewScorer, DualViewScorer]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    whole = hpdval.load_dataset("scenes-lt")
    return replace(whole, train=whole.train.subset(range(64)), test=whole.test.subset(range(48)))


@pytest.fixture(scope="module")
def models(dataset: Dataset) -> Models:
    """Zero-shot, and one with prompts of its own that scores with both views."""
    clip = hpdval.load_clip("scenes")
    plain = hpdval.zero_shot_scorer(clip, dataset.classes)
    noise = torch.randn(2, *plain.text_global.shape, generator=torch.Generator().manual_seed(0))
    texts = [
        plain.text_global + 0.3 * plain.text_global.norm(dim=-1, keepdim=True) * n / n.norm(dim=-1).max() for n in noise
    ]
    return plain, DualViewScorer(clip, dataset.classes, *texts, score=ScoreConfig(alpha=0.4, k=10), method="other")


@pytest.fixture
def one(models: Models, dataset: Dataset) -> Explorer:
    return explore(models[1], dataset, show=False)


@pytest.fixture
def two(models: Models, dataset: Dataset) -> Explorer:
    return explore(models[0], dataset, other=models[1], show=False)


def world(ties: bool, n: int = 60, c: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels, with images that have no label and images that have all."""
    scores = RNG.normal(size=(n, c)).astype(np.float32)
    targets = (RNG.random((n, c)) < 0.4).astype(np.uint8)
    targets[0], targets[1] = 0, 1
    return (scores.round() if ties else scores), targets


# -- filters -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ties", [False, True])
def test_misranked_counts_pairs_in_which_an_absent_class_scores_higher(ties: bool) -> None:
    scores, targets = world(ties)
    for found, s, t in zip(filters.misranked(scores, targets), scores, targets, strict=True):
        pairs = [s[absent] > s[present] for present in np.flatnonzero(t) for absent in np.flatnonzero(t == 0)]
        assert found == pytest.approx(np.mean(pairs)) if pairs else np.isnan(found)


@pytest.mark.parametrize("ties", [False, True])
def test_label_ranking_is_that_of_scikit_learn(ties: bool) -> None:
    scores, targets = world(ties)
    ours = filters.label_ranking(scores, targets)
    assert np.isnan(ours[0])
    for found, s, t in zip(ours[1:], scores[1:], targets[1:], strict=True):
        if t.any():  # scikit-learn gives 1 where there is no label
            assert found == pytest.approx(label_ranking_average_precision_score(t[None], s[None]))


def test_change_is_a_difference_of_rankings() -> None:
    before, targets = world(False)
    after = before + RNG.normal(size=before.shape)
    expected = filters.label_ranking(after, targets) - filters.label_ranking(before, targets)
    np.testing.assert_array_equal(filters.change(before, after, targets), expected)
    moved = filters.change(before, after, targets, 2)
    for i in range(len(targets)):
        ranks = [int((scores[:, 2] > scores[i, 2]).sum()) for scores in (before, after)]
        better = ranks[0] - ranks[1] if targets[i, 2] else ranks[1] - ranks[0]
        assert moved[i] == pytest.approx(better / len(targets))
    np.testing.assert_allclose(filters.change(after, before, targets, 2), -moved)


def test_the_smallest_box_of_each_class_is_a_share_of_the_image() -> None:
    rows = np.array([[1, 0, 0, 5, 4], [1, 0, 0, 2, 2], [0, 0, 0, 10, 20]], np.float32)
    split = Split(
        ids=("a",),
        targets=np.ones((1, 3), np.uint8),
        read=lambda i: np.zeros((20, 10, 3), np.uint8),
        fingerprints=("",),
        boxes=lambda i: rows,
    )
    np.testing.assert_allclose(filters.smallest_boxes(split, 0), [1, 0.02, np.nan])


def test_boxes_are_measured_without_decoding_images(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "a.jpg")
    files = Listing(tmp_path)
    files.add("a.jpg", [0])
    split = files.split(tmp_path, 1, boxes=lambda i: np.array([[0, 0, 0, 5, 4]], np.float32)).subset([0])
    assert split.size is not None
    assert split.size(0) == split.image(0).shape[1::-1] == (20, 10)

    def read(index: int) -> np.ndarray:
        raise AssertionError("decoded")

    assert filters.smallest_boxes(replace(split, read=read), 0) == pytest.approx(0.1)
    scenes = hpdval.load_dataset("scenes-lt", train=20, test=20, size=48).test
    assert scenes.size is not None
    assert scenes.size(3) == scenes.image(3).shape[1::-1]


def test_objects_are_measured_in_slices_that_say_how_far_they_are(
    one: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "MOMENT", 0.0)  # one image, as where each has to be drawn
    fresh, state = listing.Listing(one.dataset, one.split, one.views), replace(one.state, order="smallest")
    before = np.arange(3)
    for percent in ("0%", "2%", "4%"):
        step, words = fresh.missing(state)
        assert words == f"measuring objects, {percent}"
        assert fresh.images(state, before)[0] is before, "the list follows"
        assert step is not None
        step()


def test_filters_combine_and_an_order_leaves_out_what_it_does_not_know() -> None:
    values = RNG.random(30)
    values[RNG.random(30) < 0.2] = np.nan
    masks = {name: RNG.random(30) < 0.7 for name in "ab"}
    slow = [i for i in range(30) if masks["a"][i] and masks["b"][i]]
    assert filters.ordered(None, masks, 30).tolist() == slow
    known = [i for i in slow if not np.isnan(values[i])]
    assert filters.ordered(values, masks, 30).tolist() == sorted(known, key=lambda i: -values[i])


def test_an_empty_list_says_what_to_relax() -> None:
    none, some, more = np.zeros(9, bool), np.arange(9) < 2, np.arange(9) < 5
    assert "without «x» there are 2 images" in filters.why_none(None, {"x": none, "y": some, "z": more}, 9)
    assert "relax more than one" in filters.why_none(None, {"x": none, "y": none}, 9)
    assert "another order" in filters.why_none(np.full(9, np.nan), {}, 9)


# -- scores and maps ---------------------------------------------------------------------------------------------------


def test_scores_of_one_image_and_of_all_are_those_of_the_scorer(one: Explorer, models: Models) -> None:
    view, expected = one.views[0], models[1].score(one.split, show=False)
    whole = view.ranked(view.alpha, view.k, "local")
    assert whole is not None
    np.testing.assert_allclose(whole, expected, atol=2e-3)  # features are kept in half precision
    for image in (0, 7):
        np.testing.assert_allclose(view.scores(image, view.alpha, view.k, "local"), whole[image], atol=1e-5)


def test_the_released_reading_scores_as_its_scorer_does(models: Models, dataset: Dataset) -> None:
    plain = models[1]
    score = ScoreConfig(alpha=0.7, k=0.2, reading="released")
    scorer = DualViewScorer(plain.clip, plain.classes, plain.text_global, plain.text_local, score=score)
    view = explore(scorer, dataset, images=5, show=False)
    np.testing.assert_allclose(view._shown.parts[0].scores, scorer.score(view.split, show=False)[0], atol=2e-3)
    view.text = "a red thing"
    assert "◆" not in view._panels[0]._parts[2].value, "a sentence has no place on a scale that classes share"


@pytest.mark.parametrize("prompts", ["local", "global", "hand-crafted"])
def test_maps_scores_and_prompts_agree(one: Explorer, models: Models, prompts: str) -> None:
    one.set(alpha=0.0, k=9, prompts=prompts, image=4)
    scorer = models[1]
    for c in (0, 5):
        one.klass = one.dataset.classes[c]
        values = one._shown.parts[0].maps.values
        expected = heatmaps(scorer, one.split.image(4), [one.klass], prompts=prompts)
        np.testing.assert_allclose(values, expected.values, atol=4e-3)
        assert one._shown.parts[0].maps.box == expected.box
        assert one._shown.parts[0].scores[c] == pytest.approx(np.sort(values.ravel())[-9:].mean(), abs=1e-5)
    one.alpha = 1.0
    texts = texts_of(scorer, "hand-crafted" if prompts == "hand-crafted" else "global")
    cosine = torch.cosine_similarity(one.views[0].features(4).cls, texts).numpy()
    np.testing.assert_allclose(one._shown.parts[0].scores, cosine, atol=1e-5)


def test_a_sentence_has_its_map_its_score_and_its_own_order(one: Explorer, models: Models) -> None:
    one.set(text="  a photo of a  red thing ", image=3, alpha=0.3, k=6, order="score")
    expected = heatmaps(models[1], one.split.image(3), texts=["a photo of a red thing"])
    np.testing.assert_allclose(one._shown.parts[0].maps.values, expected.values, atol=4e-3)
    view = one.views[0]
    by_hand = [view.sentence_score(i, 0.3, 6, "a photo of a red thing") for i in range(len(one.split))]
    row = torch.nn.functional.normalize(view.sentence("a photo of a red thing"), dim=-1)[0]
    cls, patches = (
        torch.nn.functional.normalize(x, dim=-1)[0] for x in (view.features(3).cls, view.features(3).patches)
    )
    assert by_hand[3] == pytest.approx(float(0.3 * cls @ row + 0.7 * (patches @ row).topk(6).values.mean()), abs=1e-5)
    assert [by_hand[i] for i in one.images] == pytest.approx(sorted(by_hand, reverse=True), abs=1e-5)
    assert "“a photo of a red thing”" in one.status


def test_thresholds_come_from_training_images_or_validation_images(two: Explorer, models: Models) -> None:
    dataset = two.dataset
    expected = best_f1_thresholds(models[1].score(dataset.train, show=False), dataset.train.targets)
    two.settle()
    np.testing.assert_allclose(two._shown.parts[1].thresholds, expected, atol=3e-3)
    assert "64 training images" in two._panels[0]._parts[2].value
    carved = replace(dataset, val=dataset.train.subset(range(8)), train=dataset.train.subset(range(8, 64)))
    view = explore(models[1], carved, images=[2, 5], show=False)
    expected = best_f1_thresholds(models[1].score(carved.val, show=False), carved.val.targets)
    np.testing.assert_allclose(view._shown.parts[0].thresholds, expected, atol=3e-3)
    assert np.isnan(expected).any(), "some class has no image among these"
    assert "8 validation images" in view._panels[0]._parts[2].value
    empty = replace(dataset, train=dataset.train.subset([]))
    assert "No thresholds" in explore(models[1], empty, images=2, show=False)._panels[0]._parts[2].value


def test_without_thresholds_only_images_that_are_looked_at_are_encoded(
    models: Models, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stored() -> list[int]:
        return sorted(filter(None, (path.stat().st_size for path in (tmp_path / "features").glob("*.float16"))))

    monkeypatch.setenv("HPDVAL_CACHE", str(tmp_path))
    view = explore(models[1], dataset, images=2, thresholds=False, show=False)
    (size,) = stored()
    assert "No thresholds, as asked for" in view._panels[0]._parts[2].value
    assert 'class="tick"' not in view._panels[0]._parts[2].value
    explore(models[1], dataset, images=2, show=False)
    assert stored() == [size, 32 * size], "two images, and 64 to train on"


def test_a_model_may_know_the_classes_in_another_order(models: Models, dataset: Dataset) -> None:
    plain, order = models[1], RNG.permutation(len(dataset.classes))
    names = [dataset.classes[i] for i in order]
    other = DualViewScorer(
        plain.clip, names, plain.text_global[order], plain.text_local[order], score=plain.score_config
    )
    a, b = (explore(scorer, dataset, images=3, show=False) for scorer in (plain, other))
    np.testing.assert_allclose(a._shown.parts[0].scores, b._shown.parts[0].scores, atol=1e-6)
    np.testing.assert_array_equal(a._shown.parts[0].maps.values, b._shown.parts[0].maps.values)
    b.method = "gradient"
    assert b._shown.parts[0].maps.names == (b.klass,)


# -- pictures ----------------------------------------------------------------------------------------------------------


def decoded(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


@pytest.mark.parametrize(("shape", "size"), [((64, 64), (300, 300)), ((50, 100), (300, 150)), ((900, 300), (100, 300))])
def test_a_picture_shows_map_patches_and_boxes_where_they_are(shape: tuple[int, int], size: tuple[int, int]) -> None:
    height, width = shape
    values = np.zeros((1, 4, 4), np.float32)
    values[0, 3, 0] = 1  # lower left
    maps = Heatmaps(values=values, names=("x",), shape=shape, box=(0, 0, width, height))
    picture = Picture.of(np.full((*shape, 3), 90, np.uint8), 300)
    assert picture.size == size
    over = picture.values(maps)
    none = np.zeros((0, 4))
    plain = decoded(draw(picture, over, (0, 1), opacity=1, patches=none, boxes=none, others=none))
    assert plain.shape == (size[1], size[0], 3)
    assert plain[-1, 0].tolist() == [253, 231, 37], "the last colour of viridis"
    assert plain[0, -1].tolist() == [68, 1, 84], "and its first"
    box = np.array([[width / 2, 0, width / 4, height / 4]])
    drawn = decoded(draw(picture, over, (0, 1), opacity=1, patches=maps.top_patches(1)[0], boxes=box, others=none))
    white, orange = (drawn == 255).all(-1), (drawn == [int(BOX[i : i + 2], 16) for i in (1, 3, 5)]).all(-1)
    assert white[int(0.75 * size[1]), : size[0] // 4].mean() > 0.9, "the upper side of the best patch"
    assert not white[: size[1] // 2].any()
    across = np.flatnonzero(orange.any(0))
    assert across.min() == pytest.approx(size[0] / 2, abs=3)
    assert across.max() == pytest.approx(0.75 * size[0], abs=3)


def test_what_the_model_has_not_seen_fades() -> None:
    maps = Heatmaps(values=np.ones((1, 2, 2), np.float32), names=("x",), shape=(10, 40), box=(15, 0, 25, 10))
    picture = Picture.of(np.zeros((10, 40, 3), np.uint8), 80)
    none = np.zeros((0, 4))
    image = decoded(draw(picture, picture.values(maps), (0, 1), opacity=1, patches=none, boxes=none, others=none))
    assert (image[:, :29] == image[0, 0]).all()
    assert image[0, 0].tolist() == [184, 184, 184]
    assert (image[:, 31:49] == [253, 231, 37]).all()


# -- as a reader uses it -----------------------------------------------------------------------------------------------


def shown_png(view: Explorer, model: int = 0) -> bytes:
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', view._panels[model]._parts[1].value)
    return base64.b64decode(data)


def test_controls_change_what_is_shown_and_follow_it(two: Explorer) -> None:
    inputs, before = two.controls.inputs, shown_png(two)
    assert two.own
    inputs["alpha"].value = 0.25
    assert (two.alpha, two.own, inputs["own"].value) == (0.25, False, False)
    assert shown_png(two) == before, "alpha changes scores alone"
    inputs["k"].value = 3
    assert (two.k, two.png()) == (3, shown_png(two))
    assert shown_png(two) != before
    inputs["position"].value = 5
    assert two.image == 4
    assert "5 of 48" in two.controls.place.value
    two.image = 7
    assert inputs["position"].value == 8
    inputs["text"].value = "a red thing"
    assert two.text == "a red thing"
    inputs["klass"].value = "boat"
    assert (two.klass, two.text, inputs["text"].value) == ("boat", "", "")
    inputs["own"].value = True
    assert "alpha 1.00" in two.status
    assert "alpha 0.40, k 10" in two.status
    del inputs["position"]
    assert {name: control.value for name, control in inputs.items()} == {name: getattr(two, name) for name in inputs}


def test_classes_of_the_image_are_ticked_in_the_list(one: Explorer) -> None:
    for image in (0, 3):
        one.image = image
        present = {one.dataset.classes[c] for c in np.flatnonzero(one.split.targets[image])}
        assert {name for label, name in one.controls.inputs["klass"].options if label.startswith("✓")} == present


def test_buttons_go_through_the_list_and_around_its_ends(one: Explorer) -> None:
    one.set(only="with", klass="person")
    expected = np.flatnonzero(one.split.targets[:, one.dataset.classes.index("person")])
    assert one.images.tolist() == expected.tolist()
    one.image = int(expected[-1])
    one.controls.buttons["next"].click()
    assert one.image == expected[0]
    one.controls.buttons["previous"].click()
    assert one.image == expected[-1]
    one.text = "a red thing"
    one.controls.buttons["clear"].click()
    assert one.text == ""


def test_each_filter_and_order_shows_the_images_it_says(two: Explorer) -> None:
    scores = [view.ranked(view.alpha, view.k, "local") for view in two.views]
    targets, c = two.split.targets, two.dataset.classes.index("tree")
    two.klass = "tree"
    for only, mask in {
        "with": targets[:, c] == 1,
        "without": targets[:, c] == 0,
        "first": scores[0].argmax(1) == c,
        "wrong": filters.misranked(scores[0], targets) > 0,
        "all": np.ones(len(targets), bool),
    }.items():
        two.only = only
        assert two.images.tolist() == np.flatnonzero(mask).tolist(), only
    two.group = "tail"
    assert two.images.tolist() == np.flatnonzero(targets[:, two.dataset.groups["tail"]].any(1)).tolist()
    two.set(group="any", order="score")
    assert two.images.tolist() == np.argsort(-scores[0][:, c], kind="stable").tolist()
    two.order = "worst"
    worst = filters.misranked(scores[0], targets)
    assert two.images[0] == np.nanargmax(worst)
    two.order = "improved"
    moved = filters.change(*scores, targets)
    assert set(two.images) == set(np.flatnonzero(moved > 0))
    assert two.images[0] == np.nanargmax(moved)
    two.order = "harmed"
    assert set(two.images) == set(np.flatnonzero(moved < 0))
    two.set(only="with", order="smallest")
    sizes = [np.nanmin([b[3] * b[4] for b in two.split.boxes(i) if b[0] == c]) for i in two.images]
    assert sizes == sorted(sizes)
    assert set(two.images) == set(np.flatnonzero(targets[:, c]))
    smallest = np.array([filters.smallest_boxes(two.split, i)[c] for i in range(48)])
    with_box = sorted(smallest[~np.isnan(smallest)])
    two.small = True
    bound = with_box[(len(with_box) - 1) // 3]
    assert two.images.tolist() == [i for i in np.argsort(smallest, kind="stable") if smallest[i] <= bound]
    assert two.status.startswith(f"with a small tree (at most {bound:.2%} of the image")
    two.only = "all"
    assert len(two.images) == 16, "a third of the images, by whatever is smallest there"
    two.set(small=False, only="all", order="stored", find="0001")
    assert [two.split.ids[i] for i in two.images] == [name for name in two.split.ids if "0001" in name]


def test_an_empty_list_keeps_the_picture_and_says_why(one: Explorer) -> None:
    before = one.png()
    one.find = "nothing like it"
    assert len(one.images) == 0
    assert one.status.startswith("no image is left of 48: id has 'nothing like it'")
    assert one.png() == before
    one.controls.buttons["next"].click()
    one.find = ""
    assert len(one.images) == 48


def test_a_slider_of_scores_leads_to_no_other_image(two: Explorer) -> None:
    """At which alpha an image is ranked rightly is what one wants to see; it must not jump away then."""
    two.set(alpha=1.0, only="wrong")
    gone = []
    for image in two.images.tolist():
        two.set(alpha=1.0, image=image)
        two.alpha = 0.0
        assert two.image == image
        if image not in two.images:
            gone.append(image)
            assert "not among the" in two.controls.place.value
    assert gone


def test_values_out_of_range_are_refused_in_python(one: Explorer) -> None:
    state = one.state
    for name, value in {
        "image": 48, "klass": "unicorn", "alpha": 1.5, "k": 0, "prompts": "mine", "method": "x", "opacity": -1,
        "boxes": 1, "small": "yes", "only": "x", "group": "x", "order": "improved", "text": 3,
    }.items():  # fmt: skip
        with pytest.raises(ConfigError, match=r"^(?!.*\n)"):
            setattr(one, name, value)
    with pytest.raises(ConfigError, match="compares two models"):
        one.set(order="improved", alpha=0.1)
    for name in ("colour", "klas"):  # a name that is nearly one, too
        with pytest.raises(ConfigError, match=f"has no '{name}'; use one of image, klass,"):
            setattr(one, name, "boat")
        with pytest.raises(ConfigError, match=f"has no '{name}'"):
            one.set(**{name: "boat"})
    assert one.state == state


def test_what_goes_wrong_is_a_line_and_leaves_all_as_it_was(models: Models, dataset: Dataset) -> None:
    def read(index: int) -> np.ndarray:
        if index == 2:
            raise DataError("broken.jpg cannot be decoded")
        return dataset.test.image(index)

    whole = replace(dataset, test=dataset.test.subset(range(4)))
    view = explore(models[1], whole, show=False)
    view.split = replace(view.split, read=read)  # the file breaks after it was encoded
    before, state = shown_png(view), view.state
    view.controls.inputs["position"].value = 3
    assert "⚠ broken.jpg cannot be decoded" in view._status.value
    assert (view.state, shown_png(view), view.controls.inputs["position"].value) == (state, before, 1)
    view.controls.inputs["text"].value = "word " * 200
    assert "⚠" in view._status.value
    assert (view.text, view.controls.inputs["text"].value) == ("", "")
    with pytest.raises(DataError, match="broken"):
        view.image = 2
    view.image = 3
    assert "⚠" not in view._status.value


class Text(HTMLParser):
    """Tags and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.attributes: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_text_from_data_is_escaped(dataset: Dataset) -> None:
    evil = "<img src=x onerror=alert(1)>\"'&"
    classes = (evil, *dataset.classes[1:])
    test = replace(dataset.test, ids=tuple(f"{evil}{i}" for i in range(48)))
    hostile = replace(dataset, classes=classes, test=test)
    view = explore(hpdval.load_clip("scenes"), hostile, images=4, show=False)
    view.set(klass=evil, text="", find=evil)
    pages = [view._status.value, view.controls.place.value, *(part.value for part in view._panels[0]._parts)]
    view.text = "<script>alert(1)</script>"
    pages += [view._status.value, *(part.value for part in view._panels[0]._parts)]
    for page in pages:
        found = Text(page)
        assert "script" not in found.tags
        assert "onerror" not in found.attributes
    assert evil in Text(pages[0]).text
    assert evil in Text(pages[4]).text
    assert "<script>alert(1)</script>" in Text(pages[-1]).text
    assert view._repr_mimebundle_()["image/png"].startswith(b"\x89PNG")


def test_bars_say_in_words_what_colours_say() -> None:
    scores, targets = np.linspace(1, 0, 20), np.zeros(20, np.uint8)
    targets[[0, 17]] = 1
    thresholds = np.full(20, 0.5)
    thresholds[1] = np.nan
    names = [f"c{i}" for i in range(20)]
    rows = markup.bars_of(scores, targets, names, thresholds, ["head"] * 20, "c15")
    assert [row.place for row in rows] == [*range(1, 13), 16, 18], "the best, the shown one, and true ones further down"
    text = Text(markup.bars(rows, (0.0, 1.0), 20, "note"))
    lines = re.findall(
        r"c(\d+) head, ((?:not )?in the image)(?:, (at or above|below) its threshold of 0.500)?", text.text
    )
    said = {int(c): words for c, *words in lines}
    assert said[0] == ["in the image", "at or above"]
    assert said[1] == ["not in the image", ""]
    assert said[15] == ["not in the image", "below"]
    assert said[17] == ["in the image", "below"]
    assert text.text.count("✓") == 2
    assert "14 of 20 classes" in text.text


def test_pictures_and_status_have_words_for_readers_of_the_screen(one: Explorer) -> None:
    one.set(klass="boat", image=2)
    part = one._panels[0]._parts[1].value
    (words,) = re.findall(r'alt="([^"]*)"', part)
    assert words.startswith(f"{one.split.ids[2]}: boat, similarity to patches, local prompts, other; highest ")
    assert 'role="status"' in one._status.value
    for control in one.controls.inputs.values():
        assert control.description
        assert control.tooltip


# -- how fast ----------------------------------------------------------------------------------------------------------


def usual_time(changes: list[Callable[[], None]]) -> float:
    """The median processor time of several changes of a kind, in milliseconds."""
    times = []
    for change in changes:
        began = time.process_time()
        change()
        times.append(1000 * (time.process_time() - began))
    return statistics.median(times)


def test_each_change_is_quick(models: Models, dataset: Dataset) -> None:
    async def measure() -> dict[str, float]:
        view = explore(models[0], dataset, other=models[1], show=False)
        changes: dict[str, list[Any]] = {
            "alpha": [0.1, 0.2, 0.3],
            "k": [2, 3, 4],
            "image": [1, 2, 3],
            "opacity": [0.1, 0.2, 0.3],
            "klass": ["boat", "cat", "dog"],
            "prompts": ["global", "local", "hand-crafted"],
            "text": ["a red thing", "a blue thing", "something round"],
            "only": ["with", "without", "all"],
            "small": [True, False, True],
            "order": ["smallest", "worst", "improved"],
        }
        return {
            name: usual_time([lambda name=name, value=value: setattr(view, name, value) for value in values])
            for name, values in changes.items()
        }

    for name, milliseconds in asyncio.run(measure()).items():
        assert milliseconds < 100, name


def test_ranking_all_images_waits_while_a_slider_moves(one: Explorer) -> None:
    """The image's own scores follow at once; those of all images come in slices between messages."""

    async def move() -> None:
        one.set(order="score", klass="boat", k=5)
        before = one.images.tolist()
        for k in (6, 7, 8):
            one.k = k
            assert one._shown.parts[0].k == k
            assert one.images.tolist() == before
            assert one.views[0].ranked(one.alpha, k, "local") is None
            assert "the list follows" in one.status
            await asyncio.sleep(0.01)
        for _ in range(200):
            await asyncio.sleep(0.02)
            if "the list follows" not in one.status:
                break
        scores = one.views[0].ranked(one.alpha, 8, "local")
        assert scores is not None
        assert one.views[0].ranked(one.alpha, 6, "local") is None, "nobody waited for it"
        column = scores[:, one.dataset.classes.index("boat")]
        assert one.images.tolist() == np.argsort(-column, kind="stable").tolist()
        assert re.search(r"rank \d+ of 20 classes, \d+ of 48 images", one.status)
        one.close()

    asyncio.run(move())


def test_work_whose_loop_ended_is_done_elsewhere() -> None:
    """A page that is loaded again ends a thread of the kernel, and with it the loop in which the work waited."""
    done: list[int] = []
    later = Later(lambda: bool(done.append(1)))

    async def begin() -> None:
        later.start()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    loop.close()
    later.finish()
    assert done == [1]


# -- without a front end, and from where -------------------------------------------------------------------------------


def test_two_changes_at_once_are_both_made(one: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """JupyterLab hands messages to two threads of a kernel: what one asks for must not undo what the other did."""
    compose = explorer.compose
    monkeypatch.setattr(explorer, "compose", lambda *given: (time.sleep(0.05), compose(*given))[1])
    asked = {"opacity": 0.25, "group": "tail", "boxes": not one.state.boxes, "order": "stored"}
    moves = [
        threading.Thread(target=setattr, args=(one.controls.inputs[name], "value", value))
        for name, value in asked.items()
    ]
    for move in moves:
        move.start()
        time.sleep(0.01)  # in the middle of the one before
    for move in moves:
        move.join()
    assert {name: getattr(one.state, name) for name in asked} == asked
    assert {name: one.controls.inputs[name].value for name in asked} == asked


def test_executed_notebooks_show_a_static_figure(two: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HPDVAL_HEADLESS", raising=False)
    both = two._repr_mimebundle_()
    assert set(both) == {"text/plain", "image/png", "application/vnd.jupyter.widget-view+json"}
    monkeypatch.setenv("HPDVAL_HEADLESS", "1")
    assert set(two._repr_mimebundle_()) == {"text/plain", "image/png"}


def test_the_static_figure_shows_the_same_numbers(two: Explorer) -> None:
    two.set(image=5, klass="person")
    figure = two.figure()
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[:3] == ["image", "A: zero-shot: person", "scores (✓ in the image)"]
    assert "B: other: person" in titles
    for axes, part in zip(figure.axes[2:6:3], two._shown.parts, strict=True):
        best = np.argsort(-part.scores, kind="stable")[:10]
        ends = [bar.get_x() + bar.get_width() for bar in axes.patches]
        np.testing.assert_allclose(ends, part.scores[best], atol=1e-5)
        marks = [text.get_text().startswith("✓") for text in axes.get_yticklabels()]
        assert marks == two.split.targets[5][best].astype(bool).tolist()
    assert figure.get_suptitle() == f"{two.dataset.name}: {two.split.ids[5]}".replace("$", r"\$")


def test_the_static_figure_has_the_boxes_and_the_fill_of_the_live_view(two: Explorer) -> None:
    both = next(i for i in range(48) if {0, 1} <= set(two.split.boxes(i)[:, 0]))  # type: ignore[misc]
    two.set(image=both, klass="person")
    white, orange = mpl.colors.to_rgb("white"), mpl.colors.to_rgb(BOX)
    rows = two.split.boxes(both)  # type: ignore[misc]

    def dashed(axes: mpl.axes.Axes, colour: tuple[float, ...]) -> list[tuple[float, float]]:
        found = [patch for patch in axes.patches if mpl.colors.to_rgb(patch.get_edgecolor()) == colour]
        return sorted(patch.get_xy() for patch in found if patch.get_linestyle() not in ("-", "solid"))

    for axes in two.figure().axes[:2]:
        for colour, chosen in ((orange, rows[:, 0] == 0), (white, rows[:, 0] != 0)):
            np.testing.assert_allclose(dashed(axes, colour), sorted((rows[chosen, 1:3] - 0.5).tolist()))
    two.boxes = False
    assert not two.figure().axes[0].patches
    part = two._shown.parts[0]
    bare = plots.Explanation(name="x", maps=part.maps, scores=part.scores)
    figure = plots.explained_image(two.split.image(both), [bare], two.split.targets[both], two.dataset.classes)
    assert {mpl.colors.to_rgb(bar.get_facecolor()) for bar in figure.axes[2].patches} == {white}, "nothing is reached"


def test_a_run_folder_is_loaded_and_an_unfinished_one_refused(models: Models, dataset: Dataset, tmp_path: Path) -> None:
    experiment = hpdval.get_recipe("scenes")
    with hpdval.open_run(tmp_path / "run", "zero-shot", dataset, experiment, models[0]) as run:
        with pytest.raises(RunError, match="is not a finished run"):
            explore(tmp_path / "run", dataset)
        hpdval.report_run(run, models[0], dataset, experiment, show=False)
    view = explore(tmp_path / "run", dataset, images=3, show=False)
    assert view.views[0].name == "zero-shot"
    twice = explore(tmp_path / "run", dataset, other=models[0], images=3, show=False)
    assert [one.name for one in twice.views] == ["A: zero-shot, run", "B: zero-shot"]


def test_two_models_of_one_method_are_told_apart(models: Models, dataset: Dataset) -> None:
    clip = models[0].clip
    for score, names in (
        (ScoreConfig(alpha=0.4, k=0.5), ["A: zero-shot, alpha 1", "B: zero-shot, alpha 0.4"]),
        (ScoreConfig(reading="released"), ["A: zero-shot, paper reading", "B: zero-shot, released reading"]),
        (models[0].score_config, ["A: zero-shot", "B: zero-shot"]),
    ):
        other = hpdval.zero_shot_scorer(clip, dataset.classes, score=score)
        assert [view.name for view in explore(clip, dataset, other=other, images=2, show=False).views] == names


def test_a_run_that_was_made_with_other_images_is_doubted(models: Models, dataset: Dataset, tmp_path: Path) -> None:
    """Its validation images here are those it was trained on, and so are its test images if two files are swapped."""
    experiment = hpdval.get_recipe("scenes")
    with hpdval.open_run(tmp_path / "run", "stage1", dataset, experiment, models[1]) as run:
        hpdval.report_run(run, models[1], dataset, experiment, show=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        view = explore(tmp_path / "run", dataset, images=2, show=False)
        explore(models[1], dataset, images=2, show=False)
    assert "may have been trained" not in view._panels[0]._parts[2].value
    carved = replace(dataset, val=dataset.train.subset(range(8)), train=dataset.train.subset(range(8, 64)))
    swapped = replace(dataset, train=dataset.test, test=dataset.train)
    for other, parts in ((carved, "train, val"), (swapped, "train, test")):
        words = f"run was made with other {parts} images than scenes-lt has here and may have been trained on these"
        with pytest.warns(UserWarning, match=words) as caught:
            view = explore(models[0], other, other=tmp_path / "run", images=2, show=False)
        assert len(caught) == 1
        captions = [Text(panel._parts[2].value).text for panel in view._panels]
        assert [words in caption for caption in captions] == [False, True]
        assert any(words in " ".join(text.get_text().split()) for text in view.figure().findobj(mpl.text.Text))


def test_what_cannot_be_explored_is_one_line(models: Models, dataset: Dataset) -> None:
    fewer = hpdval.zero_shot_scorer(models[0].clip, dataset.classes[2:])
    cases: list[tuple[type[HpdvalError], str, Any, dict[str, Any]]] = [
        (ConfigError, "does not know the class 'person' and 1 more", fewer, {}),
        (ConfigError, "does not know", models[0], {"other": fewer}),
        (ConfigError, "model is a int", 3, {}),
        (ConfigError, "split is 'tset'", models[0], {"split": "tset"}),
        (DataError, "has no val images; splits with images: train, test", models[0], {"split": "val"}),
        (ConfigError, "images is 49", models[0], {"images": 49}),
        (ConfigError, r"images is \[-1\]", models[0], {"images": [-1]}),
        (ConfigError, "images is 0", models[0], {"images": 0}),
        (ConfigError, "images is True", models[0], {"images": True}),
        (ConfigError, "height is 3", models[0], {"height": 3}),
    ]
    for kind, words, model, options in cases:
        with pytest.raises(kind, match=words) as caught:
            explore(model, dataset, show=False, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"^dataset is a str; give what hpdval.load_dataset\('scenes-lt'\) returns$"):
        explore(models[0], "scenes-lt")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^dataset is a Split; give what hpdval.load_dataset\(...\) returns$"):
        explore(models[0], dataset.test)  # type: ignore[arg-type]


def test_no_public_name_is_that_of_a_folder() -> None:
    """A module that is imported would take the place of the function: ``hpdval.explore`` must stay one."""
    import hpdval.lab.explorer

    assert callable(hpdval.explore)
    folders = {path.stem for path in Path(hpdval.__file__).parent.iterdir()}
    assert not {name for name in hpdval.__all__ if name in folders and name != "Run"}
    assert not isinstance(hpdval.explore, ModuleType)


def test_a_new_order_leads_to_its_first_image_and_a_slider_does_not(two: Explorer) -> None:
    two.set(image=7)
    two.set(order="score", klass="tree")
    two.settle()
    assert two.state.image == two.images[0]
    two.set(image=7)
    two.set(alpha=0.1)
    two.settle()
    assert two.state.image == 7
    two.set(order="worst")
    two.set(image=9)  # whoever moves on before the order is known stays there
    two.settle()
    assert two.state.image == 9


def test_models_of_two_readings_share_no_scale(models: Models, dataset: Dataset) -> None:
    """A dot product is no cosine: beside one, the cosines of the other model would all have one colour."""
    plain, other = models
    score = ScoreConfig(alpha=0.7, k=24, reading="released")
    released = DualViewScorer(plain.clip, plain.classes, 5 * plain.text_global, 9 * other.text_local, score=score)
    alone = explore(other, dataset, images=3, show=False)
    view = explore(other, dataset, other=released, images=3, show=False)
    assert view._shown.parts[0].png == alone.png(), "as it is without the other one"
    scale = Text(view._scale.value).text
    lows = [f"{part.maps.values.min():.3f}" for part in view._shown.parts]
    for low, unit, name in zip(lows, ("cosine", "dot product"), ("A: other", "B: model"), strict=True):
        assert re.search(rf"{name} {low}\S* {unit}", scale), scale
    assert "best 10 patches (A), 24 patches (B)" in scale
    captions = [re.search(r"axis from \S+ to \S+", panel._parts[2].value) for panel in view._panels]
    assert None not in captions
    assert captions[0][0] != captions[1][0]  # type: ignore[index]
    figure = view.figure()
    assert {axes.get_ylabel() for axes in figure.axes} >= {"cosine", "dot product"}
    ends = [axes.get_xlim() for axes in figure.axes[2:6:3]]
    for (low, high), part in zip(ends, view._shown.parts, strict=True):
        assert low < part.scores.min() < part.scores.max() < high
        assert high - low < 3 * np.ptp([*part.scores, *part.thresholds[~np.isnan(part.thresholds)]])
    view.text = "a red thing"  # cosines in either reading
    assert Text(view._scale.value).text.count("cosine") == 1
