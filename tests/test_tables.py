"""Tables: means over seeds, paired differences and verdicts, object sizes, finished runs, and how they are written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import friedmanchisquare, rankdata, wilcoxon
from sklearn.metrics import average_precision_score

from hpdval import tables
from hpdval.data.dataset import Dataset, Split
from hpdval.errors import DataError, RunError
from hpdval.metrics import apply_readout, evaluate, holm, permutation_test
from hpdval.run import Run

COUNTS = np.array([300, 150, 40, 5])
CLASSES = ("dog", "traffic_light", "a|b", "<i>$x$</i>")
RNG = np.random.default_rng(0)
TARGETS = (RNG.random((200, 4)) < 0.3).astype(np.uint8)


def scores(strength: float, seed: int) -> np.ndarray:
    """Scores that know the targets more or less."""
    return (strength * TARGETS + np.random.default_rng(seed).normal(size=TARGETS.shape)).astype(np.float32)


def sklearn_map(values: np.ndarray, classes: list[int]) -> float:
    return 100 * float(np.mean([average_precision_score(TARGETS[:, c], values[:, c]) for c in classes]))


# -- from scores -------------------------------------------------------------------------------------------------------


def test_score_table_agrees_with_scikit_learn_and_begins_with_chance() -> None:
    table = tables.score_table({"mine": scores(1, 1)}, TARGETS, COUNTS).set_index("method")
    assert table.loc["mine", "total"] == pytest.approx(sklearn_map(scores(1, 1), [0, 1, 2, 3]))
    assert table.loc["mine", "head"] == pytest.approx(sklearn_map(scores(1, 1), [0, 1]))
    assert table.loc["mine", "tail"] == pytest.approx(sklearn_map(scores(1, 1), [3]))
    assert table.loc["chance", "medium"] == pytest.approx(100 * TARGETS[:, 2].mean())
    assert list(table.index) == ["chance", "mine"]


def test_several_seeds_give_mean_and_sample_deviation() -> None:
    runs = [scores(1, seed) for seed in range(3)]
    table = tables.score_table({"one": runs[0], "three": runs}, TARGETS, COUNTS).set_index("method")
    totals = [sklearn_map(run, [0, 1, 2, 3]) for run in runs]
    assert table.loc["three", "total"] == pytest.approx(np.mean(totals))
    assert table.loc["three", "total sd"] == pytest.approx(np.std(totals, ddof=1))
    assert np.isnan(table.loc["one", "total sd"])
    assert table["seeds"].tolist() == [pd.NA, 1, 3]


def test_a_group_without_classes_is_a_dash() -> None:
    table = tables.score_table({"mine": scores(1, 1)}, TARGETS, np.array([300, 200, 150, 120]))
    assert np.isnan(table["tail"]).all()
    assert tables.formatted(table)["tail"].tolist() == ["-", "-"]


@pytest.mark.parametrize(("after", "before", "verdict"), [(4, 0, "yes"), (0, 4, "loss"), (1, 1, "open")])
def test_differences_say_gain_only_where_the_interval_does(after: float, before: float, verdict: str) -> None:
    pair = (scores(after, 1), scores(before, 2))
    row = tables.difference_table({"a - b": pair}, TARGETS, COUNTS, resamples=200).set_index("classes").loc["total"]
    assert row["gain"] == verdict
    assert row["low"] <= row["high"]
    expected = sklearn_map(pair[0], [0, 1, 2, 3]) - sklearn_map(pair[1], [0, 1, 2, 3])
    assert row["difference"] == pytest.approx(expected)


def test_one_seed_that_disagrees_makes_it_open() -> None:
    agree = [scores(4, 1), scores(4, 2), scores(4, 3)]
    differ = [scores(4, 1), scores(4, 2), scores(0.5, 3)]
    before = [scores(1, seed) for seed in (4, 5, 6)]
    pairs: Any = {"agree": (agree, before), "differ": (differ, before)}
    table = tables.difference_table(pairs, TARGETS, COUNTS, resamples=200)
    total = table[table["classes"] == "total"].set_index("comparison")
    assert total.loc["differ", "low"] > 0  # the interval alone would have called it a gain
    assert total["gain"].to_dict() == {"agree": "yes", "differ": "open"}


@pytest.mark.parametrize("readout", ["raw", "softmax"])
def test_class_differences_are_those_of_the_protocol(readout: str) -> None:
    a, b = scores(2, 1), scores(1, 2)
    found = tables.class_differences(a, b, TARGETS, COUNTS, resamples=50, readout=readout)
    first, second = (evaluate(s, TARGETS, COUNTS, readout=readout).per_class for s in (a, b))
    assert [i.estimate for i in found] == pytest.approx((first - second).tolist())


def test_per_class_table_counts_positives() -> None:
    table = tables.per_class_table(CLASSES, COUNTS, TARGETS, {"mine": scores(1, 1)})
    assert table["group"].tolist() == ["head", "head", "medium", "tail"]
    assert table["test"].tolist() == TARGETS.sum(0).tolist()
    assert table["mine"][3] == pytest.approx(sklearn_map(scores(1, 1), [3]))


# -- ranks over classes ------------------------------------------------------------------------------------------------


def test_ranks_and_tests_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    aps = {name: 50 + shift + rng.normal(size=20) for name, shift in (("low", 0), ("high", 3), ("same", 3.1))}
    aps["low"][4] = np.nan  # a class without a test positive
    kept = np.array([np.delete(values, 4) for values in aps.values()])  # (3, 19)
    table = tables.rank_table(aps)
    means = dict(zip(aps, rankdata(-kept, axis=0).mean(axis=1), strict=True))
    assert table["mean rank"].tolist() == sorted(means.values())
    assert [means[name] for name in table["setting"]] == sorted(means.values())
    assert table.attrs["friedman"] == pytest.approx(friedmanchisquare(*kept).pvalue)
    p = [wilcoxon(kept[a] - kept[b]).pvalue for a, b in ((0, 1), (0, 2), (1, 2))]
    assert max(p[:2]) * 3 < 0.05 < p[2], "what the data was made for"
    assert [set(group) for group in table.attrs["cliques"]] == [{"high", "same"}, {"low"}]
    assert table.set_index("setting")["not told apart"].to_dict() == {"high": "1", "same": "1", "low": "2"}


def test_where_friedman_finds_nothing_no_pair_is_told_apart() -> None:
    values = np.random.default_rng(2).normal(size=(4, 12))
    table = tables.rank_table({str(i): row for i, row in enumerate(values)})
    assert table.attrs["friedman"] > 0.05
    assert table.attrs["cliques"] == [table["setting"].tolist()]
    equal = tables.rank_table({name: np.arange(5.0) for name in "abc"})
    assert equal.attrs["cliques"] == [["a", "b", "c"]]
    assert equal["mean rank"].tolist() == [2, 2, 2]


# -- object sizes ------------------------------------------------------------------------------------------------------


def split_with(boxes: list[np.ndarray] | None) -> Split:
    return Split(
        ids=("a", "b"),
        targets=np.array([[1, 0], [1, 1]], np.uint8),
        read=lambda i: np.zeros((10, 20, 3), np.uint8),
        fingerprints=("a", "b"),
        boxes=None if boxes is None else boxes.__getitem__,
    )


def test_object_size_is_the_largest_box_of_the_class() -> None:
    boxes = [np.array([[0, 0, 0, 10, 5], [0, 0, 0, 20, 5]], np.float32), np.array([[1, 0, 0, 2, 1]], np.float32)]
    sizes = tables.object_sizes(split_with(boxes))
    np.testing.assert_allclose(sizes, [[0.5, np.nan], [np.nan, 0.01]])
    with pytest.raises(DataError, match="no boxes"):
        tables.object_sizes(split_with(None))


def test_size_table_finds_the_third_that_is_missed() -> None:
    """A method that scores small objects like negatives fails on the smallest third only."""
    targets = np.repeat([1, 0], [30, 60]).astype(np.uint8)[:, None]
    sizes = np.where(targets, np.arange(90)[:, None] / 100, np.nan)
    values = np.where((targets == 1) & (np.nan_to_num(sizes) >= 0.1), 1.0, 0.0)
    row = tables.size_table({"large only": values}, targets, sizes).iloc[0]
    assert row["smallest third"] == pytest.approx(100 * 10 / 70)  # ties with all negatives: prevalence
    assert row["middle third"] == row["largest third"] == 100
    with pytest.raises(DataError, match="no class has"):
        tables.size_table({"x": values[:32]}, targets[:32] * 0, sizes[:32])


# -- p-values ----------------------------------------------------------------------------------------------------------

OPTIONS: dict[str, Any] = {"resamples": 50, "permutations": 60}


def test_significance_adds_p_values_to_the_differences() -> None:
    before = [scores(1, 3), scores(1, 4)]
    pairs = {f"gap {gap}": ([scores(1 + gap, 1), scores(1 + gap, 2)], before) for gap in (0, 0.3, 2)}
    table = tables.significance_table(pairs, TARGETS, COUNTS, seed=5, **OPTIONS)
    columns = ["comparison", "classes", "difference", "low", "high", "p", "p_holm", "seeds", "gain"]
    assert list(table.columns) == columns
    plain = tables.difference_table(pairs, TARGETS, COUNTS, seed=5, resamples=50)
    pd.testing.assert_frame_equal(table.drop(columns=["p", "p_holm"]), plain)
    for label, (after, before) in pairs.items():
        p = permutation_test(after, before, TARGETS, COUNTS, seed=5, permutations=60)
        assert table[table["comparison"] == label].set_index("classes")["p"].to_dict() == p


def test_holm_runs_over_the_comparisons_of_the_same_classes() -> None:
    pairs = {f"gap {gap}": (scores(1 + gap, 1), scores(1, 3)) for gap in (0, 0.3, 2)}
    table = tables.significance_table(pairs, TARGETS, COUNTS, **OPTIONS)
    for _, rows in table.groupby("classes"):
        assert len(rows) == 3
        np.testing.assert_array_equal(rows["p_holm"], holm(rows["p"]))
    assert (table["p_holm"] > table["p"]).any()


def test_a_group_without_classes_has_no_p_and_p_is_shown_with_four_digits() -> None:
    pairs = {"a - b": (scores(3, 1), scores(1, 2)), "b - a": (scores(1, 2), scores(3, 1))}
    table = tables.significance_table(pairs, TARGETS, np.array([300, 200, 150, 120]), **OPTIONS)
    assert table.set_index("classes").loc["tail", ["p", "p_holm"]].isna().all(axis=None)
    text = tables.formatted(table)
    assert text["p"].tolist()[:4] == ["0.0164", "0.0164", "-", "-"]  # 1 / 61
    assert text["p_holm"][0] == "0.0328"


def test_softmax_reaches_interval_and_p() -> None:
    pairs = {"a - b": (scores(3, 1), scores(2.8, 2))}
    table = tables.significance_table(pairs, TARGETS, COUNTS, readout="softmax", **OPTIONS)
    shares = {label: tuple(apply_readout(x, "softmax") for x in pair) for label, pair in pairs.items()}
    pd.testing.assert_frame_equal(table, tables.significance_table(shares, TARGETS, COUNTS, **OPTIONS))


# -- finished runs -----------------------------------------------------------------------------------------------------


def finished(folder: Path, values: np.ndarray, targets: np.ndarray = TARGETS, readout: str = "raw") -> Path:
    run = Run(folder, kind="test", config={})
    run.save_predictions([str(i) for i in range(len(targets))], values, targets, CLASSES)
    run.finish({"class_counts": COUNTS.tolist(), "readout": readout})
    return folder


def test_tables_of_runs_equal_those_of_their_scores(tmp_path: Path) -> None:
    a = [finished(tmp_path / f"a{s}", scores(3, s)) for s in range(2)]
    b = [finished(tmp_path / f"b{s}", scores(1, s + 9)) for s in range(2)]
    sa, sb = [scores(3, s) for s in range(2)], [scores(1, s + 9) for s in range(2)]
    found = tables.results_table({"a": a, "b": b})
    pd.testing.assert_frame_equal(found, tables.score_table({"a": sa, "b": sb}, TARGETS, COUNTS))
    compared = tables.comparison_table({"a - b": (a, b)}, resamples=50)
    expected = tables.difference_table({"a - b": (sa, sb)}, TARGETS, COUNTS, resamples=50)
    pd.testing.assert_frame_equal(compared, expected)


def test_significance_of_runs_equals_that_of_their_scores(tmp_path: Path) -> None:
    """Holm's family are all comparisons, though each is read by itself; what differs is refused as elsewhere."""
    a, b, c = (finished(tmp_path / f"{i}", scores(1 + i / 5, i)) for i in range(3))
    found = tables.comparison_significance({"a - b": (a, b), "c - b": ([c], [b])}, **OPTIONS)
    pairs = {"a - b": (scores(1, 0), scores(1.2, 1)), "c - b": (scores(1.4, 2), scores(1.2, 1))}
    pd.testing.assert_frame_equal(found, tables.significance_table(pairs, TARGETS, COUNTS, **OPTIONS))
    assert tables.formatted(found)["p"].str.len().min() == 6
    with pytest.raises(RunError, match="differ in"):
        tables.comparison_significance({"a - b": (a, finished(tmp_path / "l2", scores(1, 1), readout="l2"))})
    with pytest.raises(RunError, match="no comparison was given"):
        tables.comparison_significance({})


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    a = finished(tmp_path / "a", scores(1, 1))
    other_images = finished(tmp_path / "b", scores(1, 1)[:150], TARGETS[:150])
    other_readout = finished(tmp_path / "c", scores(1, 1), readout="l2")
    for other in (other_images, other_readout):
        with pytest.raises(RunError, match="differ in"):
            tables.results_table({"a": a, "b": other})
        with pytest.raises(RunError, match="differ in"):
            tables.comparison_table({"a - b": (a, other)})
    Run(tmp_path / "unfinished", kind="test", config={}).close()
    with pytest.raises(RunError, match="not a finished run"):
        tables.results_table({"a": tmp_path / "unfinished"})


# -- writing -----------------------------------------------------------------------------------------------------------


def test_markdown_survives_pipes_and_folds_deviations() -> None:
    table = pd.DataFrame({"method": ["a|b", "c"], "total": [61.254, np.nan], "total sd": [0.5, np.nan]})
    text = tables.to_markdown(table)
    assert "a\\|b" in text
    assert "61.25 (0.50)" in text
    assert "total sd" not in text
    widths = {len(line) for line in text.splitlines()}
    assert len(widths) == 1, "columns are aligned"


def test_html_shows_class_names_as_they_are() -> None:
    shown = tables.ShownTable(pd.DataFrame({"class": ["<script>$x$", "b"], "AP": [1.0, 2.0]}))
    text = shown._repr_html_()
    assert "&lt;script&gt;$x$" in text
    assert "<script>" not in text
    assert "mathjax_ignore" in text
    assert "1.00" in repr(shown)


def test_saved_csv_keeps_all_digits(tmp_path: Path) -> None:
    table = pd.DataFrame({"class": ["é,;", "b"], "AP": [1 / 3, 2.0]})
    tables.save_table(table, tmp_path, "x")
    back = pd.read_csv(tmp_path / "tables" / "x.csv")
    pd.testing.assert_frame_equal(back, table, rtol=1e-14)
    assert (tmp_path / "tables" / "x.md").read_text(encoding="utf-8").startswith("| class |")
    assert sorted(p.name for p in (tmp_path / "tables").iterdir()) == ["x.csv", "x.md"]


def test_stored_scores_belong_to_the_images_and_classes_at_hand(tmp_path: Path) -> None:
    ids = tuple(f"{i}.jpg" for i in range(len(TARGETS)))
    with Run(tmp_path, kind="example", config={}) as run:
        run.save_predictions(ids, scores(1, 1), TARGETS, CLASSES)
        run.finish({})
    test = Split(ids=ids, targets=TARGETS, read=lambda i: np.zeros((2, 2, 3), np.uint8), fingerprints=ids)
    data = Dataset(
        name="toys", classes=CLASSES, train=test.subset([]), val=test.subset([]), test=test, class_counts=COUNTS
    )
    assert np.array_equal(tables.stored_scores(tmp_path, data), scores(1, 1))
    with pytest.raises(RunError, match="made with other classes than toys has"):
        tables.stored_scores(tmp_path, replace(data, classes=CLASSES[::-1]))
    with pytest.raises(RunError, match="made with other ids than toys has"):
        tables.stored_scores(tmp_path, replace(data, test=test.subset(range(1, 200))))
