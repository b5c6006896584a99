"""Figures show the numbers they are given, survive any class names and numbers, and are saved the same each time."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from hpdval import plots, tables
from hpdval.errors import ConfigError, DataError
from hpdval.metrics import Interval, bootstrap, co_occurrence_leakage, evaluate, group_reliability, platt
from hpdval.plots.style import plain

NASTY = ["<b>bold</b>", "cash_$$", "$\\frac$", "traffic_light", "a name that is far too long to stand anywhere"]


class World:
    """A made-up result on C classes whose names are as bad as names get."""

    def __init__(self, n_classes: int) -> None:
        rng = np.random.default_rng(0)
        self.classes = [*NASTY, *(f"class {i}" for i in range(n_classes - len(NASTY)))]
        self.counts = np.geomspace(775, 4, n_classes).astype(int)
        self.targets = (rng.random((120, n_classes)) < np.linspace(0.5, 0.1, n_classes)).astype(np.uint8)
        self.before = self.targets + rng.normal(size=self.targets.shape)
        self.after = 2 * self.targets + rng.normal(size=self.targets.shape)
        self.images = [rng.integers(0, 255, (20, 30, 3), dtype=np.uint8) for _ in range(5)]
        self.sizes = np.where(self.targets, rng.random(self.targets.shape), np.nan)
        self.boxes = [np.array([[0, 2, 3, 10, 8]], np.float32)] * 5
        self.ap = {n: evaluate(s, self.targets, self.counts) for n, s in (("a", self.before), ("b", self.after))}
        self.metrics = [
            {
                "stage": "stage1",
                "step": i + 1,
                "epoch": i // 4,
                "cls": 1.0 / (i + 1),
                "kd": 0.1,
                "loss": 1.0,
                "lr": 1e-4,
            }
            for i in range(12)
        ]


def intervals(world: World) -> dict[str, Any]:
    return {n: bootstrap(s, world.targets, world.counts, resamples=20) for n, s in (("a", world.before),)}


def published(world: World) -> pd.DataFrame:
    """What ``tables.per_class_comparison`` returns, of two seeds, with one class that has no test positive."""
    ours = world.ap["a"].per_class.copy()
    ours[2] = np.nan
    values = {"class": world.classes, "group": tables.group_names(world.counts), "train": world.counts, "ours": ours}
    table = pd.DataFrame({**values, "ours sd": ours / 20, "published": world.ap["b"].per_class})
    table.attrs = {"method": "theirs_$", "footnotes": ["ours: read-out raw, $ and \\frac", "published: read-out l2"]}
    return table


def reliabilities(world: World) -> Any:
    found = platt(world.before, world.targets).probabilities(world.after)
    return group_reliability(found, world.targets, world.counts, bins=5)


def leakages(world: World) -> Any:
    return co_occurrence_leakage(world.after, world.targets, world.targets, share=0.1, resamples=20)


FIGURES: dict[str, Callable[[World], plots.Chart]] = {
    "class_frequency": lambda w: plots.class_frequency(w.classes, w.counts, reference=w.counts),
    "co_occurrence": lambda w: plots.co_occurrence(w.classes, w.targets),
    "object_sizes": lambda w: plots.object_sizes_by_class(w.classes, w.counts, w.sizes),
    "example_images": lambda w: plots.example_images(w.images, w.targets[:5], w.classes, boxes=w.boxes, title="x"),
    "ranking_examples": lambda w: plots.ranking_examples(w.images, w.after[:5], w.targets[:5], w.classes),
    "top_predictions": lambda w: plots.top_predictions(
        w.images, {"$\\frac$": w.before[:5], "b": w.after[:5]}, w.targets[:5], w.classes, class_counts=w.counts
    ),
    "map_against_cost": lambda w: plots.map_against_cost(
        {"$\\frac$_x": 0.0, "b": 30.0, "cash_$$": 31.0},
        dict.fromkeys(("$\\frac$_x", "b", "cash_$$"), intervals(w)["a"]),
    ),
    "ap_against_frequency": lambda w: plots.ap_against_frequency(
        w.counts, {n: e.per_class for n, e in w.ap.items()}, w.classes, chance=w.ap["a"].chance
    ),
    "group_bars": lambda w: plots.group_bars(
        intervals(w), chance=dict.fromkeys(("total", "head", "medium", "tail"), 5.0)
    ),
    "class_change": lambda w: plots.class_change(
        w.classes, w.counts, tables.class_differences(w.after, w.before, w.targets, w.counts, resamples=5)
    ),
    "calibration_curve": lambda w: plots.calibration_curve(reliabilities(w)),
    "leakage_by_class": lambda w: plots.leakage_by_class(w.classes, w.counts, leakages(w)),
    "against_published": lambda w: plots.against_published(published(w)),
    "sensitivity": lambda w: plots.sensitivity([0.1, 50], [intervals(w)["a"]] * 2, axis="$\\frac$_x", reference=0.1),
    "gain_waterfall": lambda w: plots.gain_waterfall(w.classes, w.counts, w.ap["b"].per_class - w.ap["a"].per_class),
    "class_ranks": lambda w: plots.class_ranks(tables.rank_table({n: e.per_class for n, e in w.ap.items()})),
    "training_bands": lambda w: plots.training_bands({"$\\frac$": [w.metrics, w.metrics[:9]], "b": [w.metrics]}),
    "size_lines": lambda w: plots.size_lines(tables.size_table({"a": w.before}, w.targets, w.sizes, minimum=1)),
    "view_weights": lambda w: plots.view_weights({0.0: w.ap["a"], 1.0: w.ap["b"]}, chosen=0.4),
    "loss_curves": lambda w: plots.loss_curves(w.metrics, "stage1", title="x"),
    "context_shift": lambda w: plots.context_shift(
        {"global": 0.1, "local": 0.2},
        {"global": w.counts / 800, "local": w.counts / 900},
        w.classes,
        w.counts,
        spread=0.1,
    ),
}


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("n_classes", [5, 80])
def test_every_figure_draws_for_few_and_many_classes(name: str, n_classes: int) -> None:
    figure = FIGURES[name](World(n_classes))
    assert figure._repr_png_().startswith(b"\x89PNG")  # drawn: a bad formula between dollar signs would raise here
    titles = [axes.get_title(loc=place) for axes in figure.axes for place in ("left", "center")]
    assert any(titles) or figure.get_suptitle() or name in ("example_images", "ranking_examples", "top_predictions")


def test_curves_show_every_loss_and_what_was_watched() -> None:
    losses = {"cls": 2.0, "kd": 0.5, "sc": 0.1, "loss": 2.6, "lr": 1e-3}
    records = [{"stage": "joint", "step": n + 1, "epoch": n // 2, **losses} for n in range(6)]
    records += [{"stage": "joint", "step": 2 * e + 2, "epoch": e, "test_map": m} for e, m in enumerate((50, 60, 55))]
    figure = plots.loss_curves(records, "joint")
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes]
    assert titles[:4] == ["classification", "distillation", "semantic consistency", "total"]
    assert titles[4:] == ["mAP on TEST images, percent", "learning rate"]
    star = figure.axes[4].lines[-1].get_xydata()
    assert star.tolist() == [[4.0, 60.0]]


@pytest.mark.parametrize("name", ["class_frequency", "example_images", "ap_against_frequency", "sensitivity"])
def test_saving_twice_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    world = World(5)
    for folder in ("first", "second"):
        plots.save_figure(FIGURES[name](world), tmp_path / folder, name, formats=("png", "svg", "pdf"))
    for kind in ("png", "svg", "pdf"):
        first, second = ((tmp_path / f / "figures" / f"{name}.{kind}").read_bytes() for f in ("first", "second"))
        assert first == second
        assert len(first) > 1000
    assert len(list((tmp_path / "first" / "figures").iterdir())) == 3, "no temporary file is left"
    assert Image.open(tmp_path / "first" / "figures" / f"{name}.png").width > 600


def test_matplotlib_settings_of_others_stay() -> None:
    before = dict(mpl.rcParams)
    FIGURES["class_frequency"](World(5))._repr_png_()
    assert dict(mpl.rcParams) == before


def test_class_frequency_draws_each_count_in_the_colour_of_its_group() -> None:
    axes = plots.class_frequency(["rare", "common", "some"], [4, 300, 50]).axes[0]
    heights = [bar.get_height() for bar in axes.patches]  # type: ignore[attr-defined]
    colours = [to_rgb(bar.get_facecolor()) for bar in axes.patches]
    assert heights == [300, 50, 4]
    assert colours == [to_rgb(plots.GROUP_COLOURS[g]) for g in ("head", "medium", "tail")]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["common", "some", "rare"]


def test_co_occurrence_is_the_share_of_the_rows_images() -> None:
    targets = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 1]], np.uint8)
    axes = plots.co_occurrence(["a", "b", "c"], targets).axes[0]
    shares = axes.collections[0].get_array()
    assert shares is not None
    assert np.array_equal(np.ma.getmaskarray(shares), np.eye(3, dtype=bool))
    assert [text.get_text() for text in axes.texts if text.get_text()] == ["50", "100"]
    assert shares[0, 1] == 50  # of four images with a, two hold b
    assert shares[1, 0] == 100
    assert shares[2, 0] == 0


def test_rankings_are_told_apart_without_colour() -> None:
    scores, targets = np.array([[0.9, 0.8, 0.1]]), np.array([[1, 0, 1]], np.uint8)
    image = [np.zeros((8, 8, 3), np.uint8)]
    axes = plots.ranking_examples(image, scores, targets, ["a", "b", "c"], top=2, columns=1).axes[1]
    words = [text.get_text() for text in axes.texts]
    assert words == ["✓ a", "✗ b", "+ 1 true further down"]
    assert [bool(bar.get_hatch()) for bar in axes.patches] == [False, True]


def words_of(figure: plots.Chart) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_top_predictions_show_ranks_ticks_and_what_was_missed() -> None:
    images = [np.zeros((8, 12, 3), np.uint8), np.full((12, 8, 3), 255, np.uint8)]
    classes, counts = ["rare", "some", "common", "also"], [3, 50, 300, 200]
    targets = np.array([[1, 0, 1, 0], [0, 1, 0, 0]], np.uint8)
    one = np.array([[0.9, 0.1, 0.2, 0.8], [0.1, 0.9, 0.2, 0.3]])
    given = {"one": one, "thousands": 1000 * one - 500, "reversed": -one}
    figure = plots.top_predictions(images, given, targets, classes, k=2, class_counts=counts)
    words = words_of(figure)
    assert words[:3] == ["in the image", "rare", "common"], "labels begin with the rarest"
    cells = words[3 : words.index("in the image", 1)]
    assert cells[:6] == ["one", "1 ✓", "rare", "2 ✗", "also", "true at 3"]
    assert cells[6:12] == ["thousands", *cells[1:6]], "another scale, the same ranks"
    assert cells[12:] == ["reversed", "1 ✗", "some", "2 ✓", "common", "true at 4"]
    grounds = [bool(patch.get_hatch()) for patch in figure.axes[0].patches]
    assert grounds == [False, True, False, True, True, False, False, True, False, True, True, True]
    bold = {text.get_text() for text in figure.axes[0].texts[:-2] if text.get_fontweight() == "bold"}
    assert bold == {"rare"}, "tail classes are told apart without colour"
    shapes = {len(points.get_paths()[0].vertices) for points in figure.axes[0].collections}
    assert len(shapes) == 3, "each group has a mark of its own"
    assert "only ranks are shown" in words[-1]
    plain_one = plots.top_predictions(images, {"one": one}, targets, classes, k=9)
    assert not plain_one.axes[0].collections, "groups are not known without counts"
    assert "4 ✗" in words_of(plain_one)


def test_many_methods_stand_in_rows_and_many_labels_are_cut() -> None:
    world = World(80)
    targets, scores = np.ones((1, 80), np.uint8), world.after[:1]
    given = {f"method {m}": scores for m in range(20)}
    figure = plots.top_predictions(world.images[:1], given, targets, world.classes, class_counts=world.counts)
    assert figure.get_figwidth() <= 7.16
    assert [f"method {m}" in words_of(figure) for m in range(20)] == [True] * 20
    (more,) = (text for text in words_of(figure) if text.startswith("and "))
    assert int(more.split()[1]) + words_of(figure).index(more) - 1 == 80, "heading, labels, and how many are left"
    assert words_of(figure).count("true at 4, 5, 6, …") == 20


def test_top_predictions_refuse_scores_of_other_images() -> None:
    world = World(5)
    with pytest.raises(DataError, match=r"mine is \(120, 5\); give \(2, 5\)"):
        plots.top_predictions(world.images[:2], {"mine": world.after}, world.targets[:2], world.classes)
    with pytest.raises(ConfigError, match="k is 0"):
        plots.top_predictions(world.images, {"a": world.after[:5]}, world.targets[:5], world.classes, k=0)
    with pytest.raises(ConfigError, match="0 methods"):
        plots.top_predictions(world.images, {}, world.targets[:5], world.classes)


def test_images_are_drawn_by_seed_among_those_with_a_tail_class() -> None:
    targets = (np.random.default_rng(0).random((200, 4)) < [0.9, 0.5, 0.1, 0.05]).astype(np.uint8)
    counts = [400, 50, 10, 3]
    with_tail = set(np.flatnonzero(targets[:, 2:].any(axis=1)).tolist())
    drawn = [plots.tail_images(targets, counts, count=6, seed=seed) for seed in range(20)]
    assert all(set(one.tolist()) <= with_tail and len(set(one.tolist())) == 6 for one in drawn)
    assert set(np.concatenate(drawn).tolist()) > set(drawn[0].tolist()), "another seed draws others"
    assert np.array_equal(drawn[0], plots.tail_images(targets, counts, count=6))
    whole = plots.tail_images(targets, counts, count=len(with_tail) + 2)
    rest = set(whole.tolist()) - with_tail
    assert with_tail < set(whole.tolist())
    assert all(targets[i, 1] for i in rest), "too few: a medium class is next"
    assert len(plots.tail_images(targets, counts, count=999)) == 200
    with pytest.raises(ConfigError, match="count is 0"):
        plots.tail_images(targets, counts, count=0)


def test_map_against_cost_puts_each_method_at_its_price_and_nothing_left_of_all() -> None:
    found = intervals(World(5))["a"]
    costs = {"free": 0.0, "cheap": 10.0, "dear": 1000.0, "unknown": float("nan")}
    total, tail = plots.map_against_cost(costs, dict.fromkeys(costs, found), unit="parameters").axes
    points = np.asarray(total.collections[-1].get_offsets())
    assert points[1:, 0].tolist() == [1.0, 3.0], "decimal logarithms"
    assert points[0, 0] < 1
    assert set(points[:, 1]) == {found["total"].estimate}
    assert set(np.asarray(tail.collections[-1].get_offsets())[:, 1]) == {found["tail"].estimate}
    assert [text.get_text() for text in total.texts] == ["free", "cheap", "dear"], "what is not known is left out"
    ticks = dict(zip((text.get_text() for text in tail.get_xticklabels()), tail.get_xticks(), strict=True))
    assert ticks["nothing\ntrained"] == points[0, 0]
    assert (ticks["10"], ticks["1 k"]) == (1.0, 3.0)
    with pytest.raises(ConfigError, match="choose from seconds, parameters"):
        plots.map_against_cost(costs, {}, unit="euros")
    with pytest.raises(ConfigError, match="no cost is known"):
        plots.map_against_cost({"a": float("nan")}, {})


def test_names_of_many_methods_cover_neither_marks_nor_each_other() -> None:
    rng, found = np.random.default_rng(1), intervals(World(5))["a"]
    level = rng.normal(50, 0.6, 20)
    near = {n: Interval(estimate=v, low=v - 1, high=v + 1, level=0.95, per_seed=()) for n, v in enumerate(level)}
    given = {f"full fine-tuning with the loss number {n}": {**found, "total": near[n], "tail": near[n]} for n in near}
    costs = {label: 400 + 3 * n for n, label in enumerate(given)}
    figure = plots.map_against_cost(costs, given)
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [text.get_window_extent().shrunk(0.98, 0.8) for text in axes.texts]
        marks = axes.transData.transform(np.asarray(axes.collections[-1].get_offsets()))
        assert len(boxes) == 20
        panel = axes.get_window_extent().padded(3)
        for i, box in enumerate(boxes):
            assert not box.count_overlaps(boxes[:i])
            assert not box.count_contains(marks)
            assert panel.count_contains([(box.x0, box.y0), (box.x1, box.y1)]) == 2


def test_sensitivity_draws_means_and_bands_in_order_of_the_setting() -> None:
    world = World(5)
    found = [bootstrap(s, world.targets, world.counts, resamples=20) for s in (world.after, world.before)]
    figure = plots.sensitivity([0.5, 0.01], found, axis="alpha", reference=0.5)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["total", "head", "medium", "tail"]
    for axes, name in zip(figure.axes, ("total", "head", "medium", "tail"), strict=True):
        assert axes.lines[0].get_xydata().tolist() == [[0.01, found[1][name].estimate], [0.5, found[0][name].estimate]]
        corners = axes.collections[0].get_paths()[0].vertices
        assert {found[0][name].low, found[0][name].high} <= {float(y) for y in np.asarray(corners)[:, 1]}
        assert axes.get_xscale() == "log", "from 0.01 to 0.5 is more than a factor of 20"
    spans = {round(float(np.ptp(axes.get_ylim())), 6) for axes in figure.axes}
    assert len(spans) == 1, "panels span equally many points"
    assert plots.sensitivity([0, 0.5], found, axis="alpha").axes[0].get_xscale() == "linear"
    axes = plots.sensitivity([0, 0.1, 10], [*found, found[0]], axis="weight").axes[0]
    assert axes.get_xscale() == "symlog"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "0.1", "10"]


def test_the_waterfall_ends_at_the_gain_in_map() -> None:
    gains = np.array([3.0, -1.0, np.nan, 2.0])
    axes = plots.gain_waterfall(["a", "b", "none", "d"], [300, 50, 4, 3], gains).axes[0]
    bars = [(bar.get_y(), bar.get_height()) for bar in axes.patches]  # type: ignore[attr-defined]
    assert bars == [pytest.approx(x) for x in ((0, 1), (1, 2 / 3), (5 / 3, -1 / 3), (0, 4 / 3))]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["a", "d", "b", "mAP"]
    many = np.random.default_rng(0).normal(size=80)
    axes = plots.gain_waterfall([f"c{i}" for i in range(80)], np.full(80, 30), many).axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()][20] == "40 others"
    last = axes.patches[-1]
    assert last.get_height() == pytest.approx(many.mean())  # type: ignore[attr-defined]


def test_ranks_are_joined_where_they_do_not_differ() -> None:
    ranks = pd.DataFrame({"setting": ["a", "b", "c"], "mean rank": [1.2, 1.9, 2.9]})
    ranks.attrs["cliques"] = [["a", "b"], ["c"]]
    axes = plots.class_ranks(ranks).axes[0]
    assert [line.get_ydata().tolist() for line in axes.lines] == [[-0.25, 1.25]]  # type: ignore[union-attr]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b", "c"]


def test_training_bands_are_means_over_the_seeds_and_the_epochs_all_have() -> None:
    seeds = [[{"epoch": e, "step": e, "loss": value} for e, value in enumerate(run)] for run in ((4, 2, 1), (2, 1))]
    axes = plots.training_bands({"a": seeds}).axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[0, 3], [1, 1.5]]
    ys = np.asarray(axes.collections[0].get_paths()[0].vertices)[:, 1]
    assert (ys.min(), ys.max()) == (1, 4)


def test_a_legend_of_long_names_leaves_the_axes_their_height() -> None:
    world, heights = World(5), []
    for name in ("x", "a long name of a setting that fills half of the page"):
        found = {f"{name} {i}": intervals(world)["a"] for i in range(8)}
        figure = plots.group_bars(found)
        figure.draw_without_rendering()
        heights.append(figure.axes[0].get_window_extent().height)
        assert figure.get_figwidth() <= 7.16
    assert heights[1] > 0.9 * heights[0]


def test_class_change_is_sorted_and_leaves_out_what_is_unknown() -> None:
    world = World(5)
    world.targets[:, 2] = 0
    found = tables.class_differences(world.after, world.before, world.targets, world.counts, resamples=5)
    axes = plots.class_change(world.classes, world.counts, found).axes[0]
    widths = [bar.get_width() for bar in axes.patches]  # type: ignore[attr-defined]
    assert widths == sorted(i.estimate for i in found if not np.isnan(i.estimate))
    assert len(widths) == 4


def test_against_published_joins_both_numbers_of_each_class() -> None:
    table = published(World(5)).sample(frac=1, random_state=0)
    axes = plots.against_published(table).axes[0]
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert [name.split()[-1] for name in names] == ["775", "207", "55", "14", "4"], "the commonest is on top"
    hollow = [points for points in axes.collections if points.get_facecolor().tolist() == [[1.0, 1.0, 1.0, 1.0]]]
    drawn = np.ma.concatenate([points.get_offsets() for points in hollow])
    expected = table.sort_values("train", ascending=False)["published"]
    np.testing.assert_allclose(drawn[np.argsort(drawn[:, 1]), 0], expected)
    below = axes.texts[0].get_text()
    assert "read-out raw" in below, "how either was measured is part of the figure"
    assert "read-out l2" in below


def test_calibration_draws_each_group_in_both_panels() -> None:
    found = reliabilities(World(8))
    linear, logarithmic = plots.calibration_curve(found).axes
    curves = [bars[0].get_xydata() for bars in linear.containers]  # type: ignore[index]
    for curve, one in zip(curves, found.values(), strict=True):
        np.testing.assert_allclose(curve, 100 * np.column_stack([one.predicted, one.observed]))
    assert (logarithmic.get_xscale(), logarithmic.get_yscale()) == ("log", "log")
    drawn = np.concatenate([bars[0].get_xydata() for bars in logarithmic.containers])  # type: ignore[index]
    assert (drawn > 0).all(), "a share of 0 has no logarithm"
    nothing = group_reliability(np.full((4, 2), np.nan), np.ones((4, 2)), [200, 3])
    assert plots.calibration_curve(nothing)._repr_png_(), "no class could be calibrated"


def test_leakage_stands_by_frequency_and_leaves_out_classes_without_companions() -> None:
    world = World(5)
    found = leakages(world)
    names = [c for c in range(5) if found[c].companions]
    left, right = plots.leakage_by_class(world.classes, world.counts, found).axes
    counts = [int(re.findall(r"\((\d+)\)", text.get_text())[-1]) for text in left.get_yticklabels()]
    assert counts == sorted(world.counts[c] for c in names)
    drawn = [line.get_xdata()[0] for line in right.lines if line.get_marker() == "D"]
    assert drawn == [found[c].leakage for c in reversed(names)]
    alone = co_occurrence_leakage(world.after, world.targets, world.targets, most=0, resamples=5)
    assert plots.leakage_by_class(world.classes, world.counts, alone)._repr_png_(), "no class has companions"


def test_names_are_shown_as_they_are_written() -> None:
    axes = plots.class_frequency(["$\\frac$", "b"], [9, 8]).axes[0]
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    assert plain("$\\frac$") == r"\$\frac\$"
    assert plain("x" * 40) == "x" * 23 + "…"
