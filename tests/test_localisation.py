"""Localisation: each number against a slow count, what it gives for maps that know nothing, and its intervals."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpdval import plots, tables
from hpdval.data import load_dataset
from hpdval.data.masks import regions
from hpdval.errors import ConfigError, DataError
from hpdval.metrics import (
    Localisation,
    best_iou,
    centre_map,
    class_means,
    energy_inside,
    localisation_class_differences,
    localisation_difference,
    localisation_interval,
    pointing_game,
    random_map,
    size_bounds,
)
from hpdval.metrics.localisation import METRICS
from hpdval.metrics.localisation_intervals import SIZES

COUNTS = [300, 150, 50, 25, 8, 3]
NAN = float("nan")


def region(*pixels: tuple[int, int], shape: tuple[int, int] = (4, 5)) -> np.ndarray:
    found = np.zeros(shape, bool)
    for pixel in pixels:
        found[pixel] = True
    return found


def maps(n: int = 60) -> list[tuple[np.ndarray, np.ndarray]]:
    """Maps and regions of any kind: tied values, pixels that are not covered, negative values."""
    rng, found = np.random.default_rng(0), []
    for i in range(n):
        heatmap = rng.normal(size=(6, 7)) * 3 - 1
        if i % 3 == 0:
            heatmap = heatmap.round()
        if i % 2 == 0:
            heatmap[:, : rng.integers(1, 4)] = NAN
        inside = rng.random((6, 7)) < rng.choice([0.1, 0.5, 1.0])
        inside[2, 3] = True
        found.append((heatmap, inside))
    return found


# --- one map ----------------------------------------------------------------------------------------------------------


def test_the_numbers_equal_a_slow_count() -> None:
    for heatmap, inside in maps():
        covered = ~np.isnan(heatmap)
        top = [bool(inside[p]) for p in np.ndindex(6, 7) if heatmap[p] == np.nanmax(heatmap)]
        assert pointing_game(heatmap, inside) == pytest.approx(sum(top) / len(top), rel=1e-12)
        mass = {p: heatmap[p] - np.nanmin(heatmap) for p in np.ndindex(6, 7) if covered[p]}
        share = sum(v for p, v in mass.items() if inside[p]) / sum(mass.values())
        assert energy_inside(heatmap, inside) == pytest.approx(share, rel=1e-12)
        chosen = [covered & (heatmap >= t) for t in heatmap[covered]]
        ious = [(one & inside).sum() / (one | inside).sum() for one in chosen]
        assert best_iou(heatmap, inside) == pytest.approx(max(ious), rel=1e-12)


def test_a_map_that_is_the_region_is_right_and_its_opposite_wrong() -> None:
    inside = region((1, 2), (1, 3), (2, 2))
    right, wrong = inside.astype(float), -inside.astype(float)
    assert [f(right, inside) for f in (pointing_game, energy_inside, best_iou)] == [1, 1, 1]
    assert [f(wrong, inside) for f in (pointing_game, energy_inside)] == [0, 0]
    assert best_iou(wrong, inside) == 3 / 20  # the whole image is always among the thresholds


def test_a_constant_map_gives_the_share_of_the_image() -> None:
    inside = region((0, 0), (0, 1), (3, 4))
    flat = np.full((4, 5), 0.7)
    for metric in (pointing_game, energy_inside, best_iou):
        assert metric(flat, inside) == pytest.approx(3 / 20, rel=1e-12)
    flat[:, 0] = NAN  # 16 pixels are left, with 2 of the region's 3
    assert pointing_game(flat, inside) == energy_inside(flat, inside) == pytest.approx(2 / 16, rel=1e-12)
    assert best_iou(flat, inside) == pytest.approx(2 / 17, rel=1e-12)


def test_what_is_not_covered_cannot_be_found() -> None:
    heatmap = np.array([[NAN, 1.0, 2.0], [NAN, 0.0, 3.0]])
    outside = region((0, 0), (1, 0), shape=(2, 3))
    assert [f(heatmap, outside) for f in (pointing_game, energy_inside, best_iou)] == [0, 0, 0]
    half = region((1, 0), (1, 2), shape=(2, 3))
    assert [f(heatmap, half) for f in (pointing_game, energy_inside, best_iou)] == [1, 0.5, 0.5]


def test_scale_and_offset_of_a_map_do_not_matter() -> None:
    for heatmap, inside in maps(20):
        for metric in (pointing_game, energy_inside, best_iou):
            assert metric(4 * heatmap + 8, inside) == pytest.approx(metric(heatmap, inside), rel=1e-9)


@pytest.mark.parametrize("tolerance", [1.0, 1.5, 2.9, 15.0])
def test_tolerance_is_the_distance_to_the_nearest_pixel_of_the_region(tolerance: float) -> None:
    inside = region((2, 1), (5, 6), (6, 6), shape=(9, 11))
    near = np.zeros_like(inside)
    for y, x in np.ndindex(9, 11):
        heatmap = np.zeros((9, 11))
        heatmap[y, x] = 1
        near[y, x] = pointing_game(heatmap, inside, tolerance=tolerance) == 1
    distance = [[min(np.hypot(y - a, x - b) for a, b in np.argwhere(inside)) for x in range(11)] for y in range(9)]
    np.testing.assert_array_equal(near, np.array(distance) <= tolerance)


@pytest.mark.parametrize("metric", [pointing_game, energy_inside, best_iou])
@pytest.mark.parametrize(
    ("heatmap", "inside", "message"),
    [
        (np.ones((4, 5)), np.zeros((4, 5), bool), "the region is empty; measure only classes that the image shows"),
        (np.ones((4, 5)), np.ones((5, 4), bool), r"got \(4, 5\), \(5, 4\) bool"),
        (np.ones((4, 5)), np.ones((4, 5)), r"got \(4, 5\), \(4, 5\) float64"),
        (np.ones(4), np.ones(4, bool), r"must be \(H, W\)"),
        (np.full((4, 5), NAN), np.ones((4, 5), bool), "a finite value for at least one pixel"),
        (np.full((4, 5), np.inf), np.ones((4, 5), bool), "and no infinite one"),
    ],
)
def test_unusable_maps_are_refused(metric: Any, heatmap: np.ndarray, inside: np.ndarray, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        metric(heatmap, inside)


@pytest.mark.parametrize("tolerance", [-1, NAN, np.inf])
def test_an_impossible_tolerance_is_refused(tolerance: float) -> None:
    with pytest.raises(ConfigError, match="it must be a number of pixels from 0"):
        pointing_game(np.ones((4, 5)), np.ones((4, 5), bool), tolerance=tolerance)


def test_thousands_of_maps_take_seconds() -> None:
    rng = np.random.default_rng(0)
    heatmap, inside = rng.standard_normal((64, 64), dtype=np.float32), region((3, 3), shape=(64, 64))
    started = time.process_time()
    Localisation.measure((i, 0, (inside, True), heatmap) for i in range(1000))
    assert time.process_time() - started < 1.5  # 0.12 s where it was measured


# --- maps that know nothing -------------------------------------------------------------------------------------------


def test_a_random_map_is_a_function_of_its_key_and_points_as_often_as_the_region_is_large() -> None:
    np.testing.assert_array_equal(random_map((7, 9), "a"), random_map((7, 9), "a"))
    assert (random_map((7, 9), "a") != random_map((7, 9), "b")).any()
    inside = np.zeros((8, 8), bool)
    inside[:4, 2:6] = True  # a quarter, of whole patches
    drawn = [np.kron(random_map((4, 4), f"image {i}"), np.ones((2, 2))) for i in range(1500)]
    hits = np.mean([pointing_game(one, inside) for one in drawn])
    assert hits == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 1500))
    values = np.concatenate([random_map((10, 10), f"{i}").ravel() for i in range(100)])
    assert abs(values.mean()) < 0.04
    assert values.std() == pytest.approx(1, abs=0.03)


def test_the_centre_map_is_a_gaussian_of_a_quarter_of_the_side() -> None:
    middle = centre_map((9, 5))
    assert np.unravel_index(middle.argmax(), middle.shape) == (4, 2)
    np.testing.assert_allclose(middle, middle[::-1, ::-1], rtol=1e-6)
    one = centre_map((8, 1))[:, 0]  # centres 1/16 and 5/16 of the side from the middle
    assert one[1] / one[3] == pytest.approx(np.exp(-((5 / 16) ** 2 - (1 / 16) ** 2) / (2 * 0.25**2)), rel=1e-6)


# --- the record -------------------------------------------------------------------------------------------------------


def world(seed: int = 0, n_images: int = 150, shift: float = 0.0) -> Localisation:
    """Pairs of six classes of which the last is rare, the same for every seed, and values that depend on the seed."""
    fixed, rng = np.random.default_rng(99), np.random.default_rng(seed)
    image, cls = np.nonzero(fixed.random((n_images, 6)) < [0.5, 0.4, 0.3, 0.2, 0.1, 0.05])
    size = fixed.random(len(image)) ** 3
    values = {name: (rng.random(len(image)) + shift) / 2 for name in ("energy", "iou")}
    values["pointing"] = (rng.random(len(image)) < 0.4 + shift).astype(float)
    by_mask = np.ones(len(image), bool)
    return Localisation(image=image, cls=cls, size=size, by_mask=by_mask, values=values)


def test_a_record_is_built_from_scenes_and_read_back(tmp_path: Path) -> None:
    test = load_dataset("scenes-lt", test=20).test

    def items() -> Any:
        for i in range(len(test)):
            for c, found in regions(test, i).items():
                yield i, c, found, np.kron(random_map((8, 8), f"{test.ids[i]} {c}"), np.ones((8, 8)))

    record = Localisation.measure(items(), tolerance=2)
    image, cls = np.nonzero(test.targets)
    assert (record.image.tolist(), record.cls.tolist()) == (image.tolist(), cls.tolist())
    assert record.by_mask.all()
    shares = [found.mask.mean() for i in range(len(test)) for found in regions(test, i).values()]
    np.testing.assert_allclose(record.size, shares, rtol=1e-12)
    k, (_, _, found, heatmap) = 7, list(items())[7]
    assert record.values["pointing"][k] == pointing_game(heatmap, found.mask, tolerance=2)
    assert record.values["energy"][k] == energy_inside(heatmap, found.mask)
    assert record.values["iou"][k] == best_iou(heatmap, found.mask)

    record.save(tmp_path / "a.npz")
    again = Localisation.load(tmp_path / "a.npz")
    for name in ("image", "cls", "size", "by_mask", "tolerance"):
        np.testing.assert_array_equal(getattr(again, name), getattr(record, name))
    for name in METRICS:
        np.testing.assert_array_equal(again.values[name], record.values[name])
    record.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_map_that_cannot_be_measured_is_named() -> None:
    with pytest.raises(ConfigError, match="image 3, class 5: the region is empty"):
        Localisation.measure([(3, 5, (np.zeros((2, 2), bool), True), np.ones((2, 2)))])
    assert len(Localisation.measure([])) == 0


def test_a_pair_counts_once() -> None:
    item = (3, 5, (np.ones((2, 2), bool), True), np.ones((2, 2)))
    with pytest.raises(ConfigError, match="a pair of image and class is given twice"):
        Localisation.measure([item, item])


def test_a_damaged_record_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(DataError, match=r"a\.npz does not exist"):
        Localisation.load(path)
    world().save(path)
    whole = path.read_bytes()
    flipped = whole[:300] + bytes([whole[300] ^ 1]) + whole[301:]
    for damaged in (b"", whole[:100], whole[: len(whole) // 2], flipped, b"text"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.npz is not a whole record of localisation"):
            Localisation.load(path)
    np.savez(path, image=np.zeros(3))
    with pytest.raises(DataError, match="is not a whole record"):
        Localisation.load(path)
    np.save(path.with_suffix(".npy"), np.zeros(3))
    with pytest.raises(DataError, match="is not a whole record"):
        Localisation.load(path.with_suffix(".npy"))


# --- means and intervals ----------------------------------------------------------------------------------------------


def slow_means(record: Localisation, values: np.ndarray, keep: np.ndarray | None = None) -> dict[str, float]:
    """The mean over classes of the mean over a class's pairs, for every part, one pair after another."""
    low, high = size_bounds(record)

    def mean(classes: list[int], least: float = -1.0, most: float = 2.0) -> float:
        rows = [
            [v for v, one, size, k in zip(values, record.cls, record.size, range(len(values)), strict=True)
             if one == c and least < size <= most and (keep is None or keep[k])]
            for c in classes
        ]  # fmt: skip
        return float(np.mean([np.mean(row) for row in rows if row]))

    every = list(range(6))
    return {
        "total": mean(every), "head": mean([0, 1]), "medium": mean([2, 3]), "tail": mean([4, 5]),
        SIZES[0]: mean(every, most=low), SIZES[1]: mean(every, low, high), SIZES[2]: mean(every, high),
    }  # fmt: skip


@pytest.mark.parametrize("metric", METRICS)
def test_estimates_are_means_over_classes(metric: str) -> None:
    records = [world(seed) for seed in range(3)]
    found = localisation_interval(records, COUNTS, metric, resamples=10)
    expected = [slow_means(records[0], record.values[metric]) for record in records]
    assert list(found) == list(expected[0])
    for part, interval in found.items():
        np.testing.assert_allclose(interval.per_seed, [100 * one[part] for one in expected], rtol=1e-12)
        assert interval.estimate == pytest.approx(np.mean(interval.per_seed), rel=1e-12)
    by_class = class_means(records, COUNTS, metric)
    slow = [np.mean([record.values[metric][record.cls == c].mean() for record in records]) for c in range(6)]
    np.testing.assert_allclose(by_class, 100 * np.array(slow), rtol=1e-12)


def test_thirds_hold_a_third_of_the_pairs_each() -> None:
    record = world()
    low, high = size_bounds(record)
    parts = [record.size <= low, (record.size > low) & (record.size <= high), record.size > high]
    assert max(part.sum() for part in parts) - min(part.sum() for part in parts) <= 1


def test_intervals_equal_a_slow_bootstrap_and_jackknife() -> None:
    """Images drawn with all their pairs; spread as the jackknife says; no bias removed."""
    record = world(n_images=120)
    values, resamples = record.values["iou"], 120
    images = np.unique(record.image)
    n = len(images)
    rng, drawn = np.random.default_rng(4), []
    for _ in range(resamples):
        rows = np.concatenate([np.flatnonzero(record.image == i) for i in images[rng.integers(0, n, n)]])
        low, high = size_bounds(record)
        third = np.where(record.size <= low, 0, np.where(record.size <= high, 1, 2))[rows]
        parts = {"total": np.ones(len(rows), bool), "tail": record.cls[rows] >= 4, SIZES[2]: third == 2}
        drawn.append(
            [
                np.mean([values[rows[(record.cls[rows] == c) & part]].mean() for c in set(record.cls[rows[part]])])
                for part in parts.values()
            ]
        )
    left = [slow_means(record, values, keep=record.image != i) for i in images]
    found = localisation_interval(record, COUNTS, "iou", resamples=resamples, seed=4)
    for k, part in enumerate(("total", "tail", SIZES[2])):
        spread = np.array([row[k] for row in drawn])
        deleted = np.array([one[part] for one in left])
        error = np.sqrt((n - 1) / n * ((deleted - deleted.mean()) ** 2).sum())
        position = 0.025 * (resamples + 1) - 1
        ends = np.interp([position, resamples - 1 - position], range(resamples), np.sort(spread - spread.mean()))
        limits = 100 * (slow_means(record, values)[part] + error / spread.std() * ends)
        wider = (found[part].high - found[part].low) / (limits[1] - limits[0])  # Student's t over the normal quantile
        assert 1 < wider < 1.25
        middle = found[part].estimate
        np.testing.assert_allclose(
            np.array([found[part].low, found[part].high]) - middle, wider * (limits - middle), rtol=1e-9
        )


def test_an_interval_of_a_mean_ends_at_100_percent() -> None:
    """All pairs but one are right; an interval around the mean, as wide above as below, would go on."""
    record = world(n_images=40)
    right = np.append(0.0, np.ones(len(record) - 1))
    record = dataclasses.replace(record, values={**record.values, "pointing": right})
    found = localisation_interval(record, COUNTS, "pointing")["total"]
    assert found.low < found.estimate < found.high == 100


def test_a_difference_is_the_difference_of_the_means_and_antisymmetric() -> None:
    a, b = [world(1, shift=0.2), world(2, shift=0.2)], [world(3), world(4)]
    for metric in METRICS:
        there, back = (localisation_difference(*pair, COUNTS, metric, resamples=200) for pair in ((a, b), (b, a)))
        plain = [localisation_interval(one, COUNTS, metric, resamples=10) for one in (a, b)]
        for part, difference in there.items():
            assert difference.estimate == pytest.approx(plain[0][part].estimate - plain[1][part].estimate, rel=1e-9)
            mirrored = (-back[part].estimate, -back[part].high, -back[part].low)
            np.testing.assert_allclose((difference.estimate, difference.low, difference.high), mirrored, rtol=1e-12)
        assert there["total"].gains
        assert not back["total"].gains
    same = localisation_difference(a, a, COUNTS, "iou", resamples=50)["total"]
    assert (same.estimate, same.low, same.high) == (0, 0, 0)


def test_pairing_narrows_a_difference() -> None:
    """Two methods that agree on every image but for a little have an interval that a comparison of two cannot have."""
    a = world()
    values = {name: 0.98 * one for name, one in a.values.items()}
    b = dataclasses.replace(a, values=values)
    paired = localisation_difference(a, b, COUNTS, "iou")["total"]
    alone = localisation_interval(a, COUNTS, "iou")["total"]
    assert paired.gains
    assert paired.high - paired.low < 0.1 * (alone.high - alone.low)


def test_one_seed_that_disagrees_is_no_gain() -> None:
    base = world()
    methods = [dataclasses.replace(base, values={n: v + d for n, v in base.values.items()}) for d in (0.3, -0.001)]
    found = localisation_difference(methods, base, COUNTS, "iou", resamples=100)["total"]
    assert found.low > 0
    assert not found.gains


def test_class_differences_are_those_of_the_class_alone() -> None:
    a, b = world(1, shift=0.3), world(2)
    found = localisation_class_differences(a, b, [*COUNTS, 1], "energy", resamples=300)
    assert np.isnan(found[6].estimate)  # no pair shows it
    for c in range(6):
        rows = a.cls == c
        values = 100 * (a.values["energy"] - b.values["energy"])[rows]
        assert found[c].estimate == pytest.approx(values.mean(), rel=1e-9)
        if rows.sum() >= 20:
            usual = 2 * 1.96 * values.std(ddof=1) / np.sqrt(len(values))
            assert found[c].high - found[c].low == pytest.approx(usual, rel=0.25)


def test_a_group_without_classes_is_nan() -> None:
    found = localisation_interval(world(), [300] * 6, "iou", resamples=10)
    assert np.isnan(found["tail"].estimate)
    assert not np.isnan(found["head"].low)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    first, again, other = (localisation_interval(world(), COUNTS, "iou", resamples=70, seed=s) for s in (5, 5, 6))
    assert first == again
    assert first["total"].low != other["total"].low


def test_unusable_comparisons_are_refused() -> None:
    a = world()
    fewer = world(n_images=100)
    for other in (fewer, dataclasses.replace(a, size=a.size / 2), dataclasses.replace(a, tolerance=15.0)):
        with pytest.raises(ConfigError, match="of other images, classes, regions or tolerances"):
            localisation_difference(a, other, COUNTS, "iou")
        with pytest.raises(ConfigError, match="of other images"):
            localisation_interval([a, other], COUNTS, "iou")
    for wrong, message in (
        ({"metric": "auc"}, "metric is 'auc'; choose pointing, energy, iou"),
        ({"records": []}, "there is no record"),
        ({"resamples": 1}, "at least 2 resamples"),
        ({"level": 1.0}, "a level between 0 and 1"),
        ({"class_counts": [1, 2]}, "a pair has class 5, but there are counts of 2 classes"),
    ):
        arguments: Any = {"records": a, "class_counts": COUNTS, "metric": "iou", **wrong}
        with pytest.raises(ConfigError, match=message):
            localisation_interval(**arguments)
    with pytest.raises(ConfigError, match="cannot pair 2 seeds with 3"):
        localisation_difference([a] * 2, [a] * 3, COUNTS, "iou")
    with pytest.raises(ConfigError, match="2 images"):
        localisation_interval(Localisation.measure([]), COUNTS, "iou")


def coverage(positives: int, simulations: int, resamples: int = 300) -> dict[str, float]:
    """How often 95 % intervals of a method and of a difference hold the truth: 20 classes, images that share a mood."""
    rng, n, n_classes = np.random.default_rng(0), 1000, 20
    counts = [200] * 7 + [50] * 7 + [5] * 6
    ease = np.linspace(0.2, 0.7, n_classes)  # of a class; a half of the images adds 0.15 to all, the other takes it off
    hits: dict[str, list[bool]] = {"method": [], "difference": []}
    for s in range(simulations):
        image, cls = np.nonzero(rng.random((n, n_classes)) < positives / n)
        mood = rng.choice([-0.15, 0.15], n)[image]
        pair: Any = {"image": image, "cls": cls, "size": rng.random(len(image)), "by_mask": np.ones(len(image), bool)}
        a, b = ((rng.random(len(image)) < ease[cls] + mood + d).astype(float) for d in (0.1, 0.0))
        a, b = (Localisation(**pair, values=dict.fromkeys(METRICS, v)) for v in (a, b))
        single = localisation_interval(b, counts, "iou", resamples=resamples, seed=s)["total"]
        paired = localisation_difference(a, b, counts, "iou", resamples=resamples, seed=s)["total"]
        hits["method"].append(single.low <= 100 * ease.mean() <= single.high)
        hits["difference"].append(paired.low <= 10 <= paired.high)
    return {name: 100 * float(np.mean(values)) for name, values in hits.items()}


def test_intervals_cover_the_truth_roughly() -> None:
    for name, percent in coverage(20, 60, resamples=100).items():
        assert percent >= 87, name


@pytest.mark.nightly
@pytest.mark.parametrize("positives", [10, 20, 50])
def test_intervals_cover_the_truth(positives: int) -> None:
    for name, percent in coverage(positives, 500).items():
        assert percent == pytest.approx(95, abs=3.5), name


# --- tables and figures -----------------------------------------------------------------------------------------------


def methods() -> dict[str, Any]:
    return {"random": world(1), "centre": world(2), "zero-shot": world(3), "stage 1": [world(4, shift=0.3), world(5)]}


def test_the_table_holds_the_intervals_and_says_where_thirds_divide() -> None:
    given = methods()
    table = tables.localisation_table(given, COUNTS, resamples=50)
    assert list(table["method"].unique()) == list(given)
    assert list(table["part"][:7]) == ["total", "head", "medium", "tail", *SIZES]
    record = given["random"]
    assert table["pairs"][0] == len(record)
    assert table["pairs"][1:4].sum() == table["pairs"][4:7].sum() == len(record)
    for metric in METRICS:
        found = localisation_interval(given["stage 1"], COUNTS, metric, resamples=50)
        rows = table[table["method"] == "stage 1"].set_index("part")
        for part, interval in found.items():
            numbers = rows.loc[part, [metric, f"{metric} low", f"{metric} high"]].tolist()
            assert numbers == [interval.estimate, interval.low, interval.high]
    assert set(table["seeds"]) == {1, 2}
    low, high = size_bounds(record)
    assert f"up to {100 * low:.2g} %, up to {100 * high:.2g} %" in tables.to_markdown(table)
    boxes = dataclasses.replace(record, by_mask=np.arange(len(record)) % 4 > 0, tolerance=15.0)
    notes = " ".join(tables.localisation_table({"a": boxes}, COUNTS, resamples=5).attrs["footnotes"])
    assert "25" in notes
    assert "15 pixels outside" in notes


def test_tables_refuse_methods_measured_on_other_pairs() -> None:
    with pytest.raises(ConfigError, match="of other images, classes, regions"):
        tables.localisation_table({"a": world(), "b": world(n_images=90)}, COUNTS, resamples=5)
    with pytest.raises(ConfigError, match="there is no method"):
        tables.localisation_table({}, COUNTS)


def test_classes_one_by_one() -> None:
    given = methods()
    table = tables.localisation_per_class(list("abcdefg"), [*COUNTS, 1], given, "iou")
    record = given["random"]
    assert table["pairs"].tolist() == [(record.cls == c).sum() for c in range(7)]
    assert table["group"].tolist() == ["head", "head", "medium", "medium", "tail", "tail", "tail"]
    assert table["size"][2] == pytest.approx(100 * np.median(record.size[record.cls == 2]))
    np.testing.assert_array_equal(table["stage 1"], class_means(given["stage 1"], [*COUNTS, 1], "iou"))
    assert table.loc[6, ["size", "random", "stage 1"]].isna().all()


def test_the_table_of_differences_gives_verdicts() -> None:
    worse, better = world(1), world(1, shift=0.4)
    compared = {"up": (better, worse), "down": (worse, better), "same": (worse, worse)}
    table = tables.localisation_differences(compared, COUNTS, resamples=100)
    total = table[table["part"] == "total"].set_index(["comparison", "metric"])["gain"]
    for metric in METRICS:
        assert [total[name, metric] for name in compared] == ["yes", "loss", "open"]
    assert len(table) == 3 * 3 * 7


@pytest.mark.parametrize("counts", [COUNTS, [300] * 6])
def test_the_figure_shows_every_number_of_the_table(counts: list[int]) -> None:
    given = {"$\\frac": world(9), **methods()}
    table = tables.localisation_table(given, counts, resamples=20)
    figure = plots.localisation_dots(table)
    assert figure._repr_png_().startswith(b"\x89PNG")
    panels = figure.axes
    parts = 7 if counts is COUNTS else 5  # groups without classes are left out
    assert [len(panel.get_yticks()) for panel in panels] == [parts] * 3
    for panel, metric in zip(panels, METRICS, strict=True):
        dots = [c.get_offsets() for c in panel.collections if type(c).__name__ == "PathCollection"]
        known = table[table["pairs"] > 0]
        expected = [known.loc[known["method"] == label, metric] for label in ("$\\frac", "zero-shot", "stage 1")]
        np.testing.assert_allclose([np.asarray(one)[:, 0] for one in dots], expected, rtol=1e-12)
        assert all(len(set(np.round(np.asarray(one)[:, 1], 6))) == parts for one in dots)


def test_the_change_of_each_class_says_what_changed() -> None:
    found = localisation_class_differences(world(1), world(2), COUNTS, "iou", resamples=20)
    axes = plots.class_change(list("abcdef"), COUNTS, found, measure="IoU").axes[0]
    assert axes.get_xlabel().startswith("change of IoU in points")
