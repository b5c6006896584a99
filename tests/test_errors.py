"""What a ranking gets wrong: mistakes and their cost, and leakage, against slow loops and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score

from hpdval import tables
from hpdval.errors import ConfigError
from hpdval.metrics import (
    Mistake,
    best_false_positives,
    co_occurrence_leakage,
    companions,
    reliability,
    worst_false_negatives,
)

RNG = np.random.default_rng(0)
TARGETS = (RNG.random((120, 4)) < 0.3).astype(np.uint8)
TIED = np.round(TARGETS + RNG.normal(size=TARGETS.shape), 1)
DISTINCT = TARGETS + RNG.normal(size=TARGETS.shape)


# -- mistakes ----------------------------------------------------------------------------------------------------------


def ap(scores: np.ndarray, targets: np.ndarray) -> float:
    return 100 * float(average_precision_score(targets, scores))


def slow_mistakes(scores: np.ndarray, positive: np.ndarray, *, negatives: bool) -> list[Mistake]:
    """Put each image where it belongs and look whether scikit-learn's AP rises."""
    found = []
    for i in np.flatnonzero(positive == (not negatives)):
        right = scores.copy()
        right[i] = scores.min() - 1 if negatives else scores.max() + 1
        lost = ap(right, positive) - ap(scores, positive)
        if lost > 1e-9:
            found.append(Mistake(int(i), 1 + int((scores > scores[i]).sum()), float(scores[i]), lost))
    return sorted(found, key=lambda m: (-m.score if negatives else m.score, m.image))


@pytest.mark.parametrize("scores", [DISTINCT, TIED], ids=["distinct", "tied"])
@pytest.mark.parametrize("negatives", [True, False], ids=["false positives", "false negatives"])
def test_mistakes_are_what_raises_the_ap_when_put_right(scores: np.ndarray, negatives: bool) -> None:
    function = best_false_positives if negatives else worst_false_negatives
    for c in range(4):
        found = function(scores, TARGETS, c, 1000)
        expected = slow_mistakes(scores[:, c], TARGETS[:, c], negatives=negatives)
        assert [m[:3] for m in found] == [m[:3] for m in expected]
        assert [m.ap_lost for m in found] == pytest.approx([m.ap_lost for m in expected], abs=1e-9)
        assert function(scores, TARGETS, c, 3) == found[:3]


def test_a_perfect_ranking_has_no_mistakes() -> None:
    scores = TARGETS + RNG.random(TARGETS.shape) / 2
    assert all(not best_false_positives(scores, TARGETS, c) for c in range(4))
    assert all(not worst_false_negatives(scores, TARGETS, c) for c in range(4))


def test_classes_without_positives_or_without_negatives() -> None:
    scores, none, every = np.array([[3.0], [1.0], [2.0]]), np.zeros((3, 1)), np.ones((3, 1))
    assert [m.image for m in best_false_positives(scores, none, 0, 2)] == [0, 2], "its highest scores are looked at"
    assert all(math.isnan(m.ap_lost) for m in best_false_positives(scores, none, 0))
    assert worst_false_negatives(scores, none, 0) == []
    assert best_false_positives(scores, every, 0) == worst_false_negatives(scores, every, 0) == []
    with pytest.raises(ConfigError, match="class 1, 8 images: give a class from 0 to 0"):
        best_false_positives(scores, none, 1)


# -- companions and leakage --------------------------------------------------------------------------------------------


def test_companions_are_common_in_the_class_and_more_than_elsewhere() -> None:
    train = np.zeros((100, 5), np.uint8)
    train[:90, 0] = 1  # 0 is nearly everywhere
    train[:10, 1] = 1  # 1 always comes with 0: P(0 | 1) = 1, lift 1 / 0.9
    train[:4, 2] = 1  # 2 comes with 0 and 1
    train[92:96, 3] = 1  # 3 comes without
    train[92, 4] = 1  # 4 comes with 3, once
    assert companions(train) == [{}, {0: 1.0, 2: 0.4}, {0: 1.0, 1: 1.0}, {}, {}]
    assert companions(train, lift=1.2)[1] == {2: 0.4}, "0 is hardly more common here than elsewhere"
    assert companions(train, share=0.5)[1] == {0: 1.0}
    assert companions(train, most=1)[2] == {0: 1.0}
    assert companions(train, together=1)[3] == {4: 0.25}
    with pytest.raises(ConfigError, match="need a share above 0"):
        companions(train, share=0)


def leaking(strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Class 0 often comes with class 1, and its scores know of class 1 as much as ``strength`` says."""
    rng = np.random.default_rng(0)
    first = rng.random(600) < 0.2
    second = rng.random(600) < np.where(first, 0.7, 0.3)
    targets = np.column_stack([first, second]).astype(np.uint8)
    return targets + strength * targets[:, [1, 1]] + rng.normal(size=targets.shape), targets


def test_parts_are_scikit_learns_ap_of_their_images_beside_their_chance() -> None:
    scores, targets = leaking(1.0)
    found = co_occurrence_leakage(scores, targets, targets, resamples=50)[0]
    assert list(found.companions) == [1]
    share = targets[targets[:, 0] == 1, 1].mean()
    assert found.companions[1] == pytest.approx(share)
    for part, chosen in (
        (found.everywhere, slice(None)),
        (found.without, targets[:, 1] == 0),
        (found.with_companion, targets[:, 1] == 1),
    ):
        own, y = scores[chosen, 0], targets[chosen, 0]
        assert (part.images, part.positives) == (len(y), y.sum())
        assert part.chance == pytest.approx(100 * y.mean())
        assert part.ap.estimate == pytest.approx(ap(own, y), abs=1e-9)
        assert part.ap.low < part.ap.estimate < part.ap.high
    negative = targets[:, 0] == 0
    for values in (scores, np.round(scores)):
        one = co_occurrence_leakage(values, targets, targets, resamples=50)[0]
        assert one.leakage == pytest.approx(roc_auc_score(targets[negative, 1], values[negative, 0]), abs=1e-12)
        assert one.low < one.leakage < one.high


def test_leakage_is_seen_where_it_is_and_not_where_it_is_not() -> None:
    without, some, much = (co_occurrence_leakage(*leaking(s), leaking(s)[1])[0] for s in (0.0, 0.5, 2.0))
    assert without.low < 0.5 < without.high
    assert 0.5 < some.low < some.leakage < some.high < much.low
    again = co_occurrence_leakage(*leaking(0.5), leaking(0.5)[1])[0]
    assert (again.low, again.high) == (some.low, some.high), "the same seed, the same interval"


def test_the_interval_of_the_leakage_covers() -> None:
    """Both classes' scores are noise, so the leakage is 0.5; of 200 intervals of 95 % about 190 hold it."""
    hits = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        targets = (rng.random((120, 2)) < 0.4).astype(np.uint8)
        scores = rng.normal(size=targets.shape)
        one = co_occurrence_leakage(scores, targets, np.ones((4, 2)), lift=0.9, resamples=100)[0]
        hits += one.low <= 0.5 <= one.high
    assert hits >= 178  # 4 standard deviations below 190


def test_a_class_without_companions_has_one_part() -> None:
    targets = np.eye(6, 3, dtype=np.uint8)
    found = co_occurrence_leakage(RNG.random((6, 3)), targets, targets, resamples=20)[0]
    assert found.companions == {}
    assert (found.without.images, found.with_companion.images) == (6, 0)
    assert math.isnan(found.leakage)
    assert math.isnan(found.with_companion.ap.estimate)
    assert math.isnan(found.with_companion.chance)
    with pytest.raises(ConfigError, match="train_targets have 2 classes and the scores 3"):
        co_occurrence_leakage(RNG.random((6, 3)), targets, np.ones((4, 2)))


# -- tables ------------------------------------------------------------------------------------------------------------

NAMES, COUNTS = ("a", "b;", "c", "d"), np.array([300, 50, 30, 2])


def test_decisions_at_the_thresholds_are_scikit_learns() -> None:
    thresholds = np.array([0.5, 0.0, np.nan, 99.0])
    table = tables.class_error_table(NAMES, COUNTS, TARGETS, TIED, thresholds=thresholds)
    assert table["group"].tolist() == ["head", "medium", "medium", "tail"]
    for c in (0, 1):
        expected = precision_recall_fscore_support(TARGETS[:, c], TIED[:, c] >= thresholds[c], average="binary")
        found = table.loc[c, ["precision", "recall", "F1"]].astype(float)
        assert found.tolist() == pytest.approx([100 * value for value in expected[:3]])
        assert table.loc[c, "AP"] == pytest.approx(ap(TIED[:, c], TARGETS[:, c]))
    assert table.loc[2, ["precision", "recall", "F1"]].isna().all(), "no threshold, no decision"
    assert math.isnan(table.loc[3, "precision"]), "nothing is predicted"
    assert table.loc[3, ["recall", "F1"]].tolist() == [0, 0]
    assert "threshold" not in tables.class_error_table(NAMES, COUNTS, TARGETS, TIED)


def test_mistakes_one_by_one() -> None:
    ids = [f"{i}.jpg" for i in range(len(TARGETS))]
    found = [
        [mistakes(TIED, TARGETS, c, 2) for c in range(len(NAMES))]
        for mistakes in (best_false_positives, worst_false_negatives)
    ]
    table = tables.mistake_table(NAMES, ids, TARGETS, *found)
    assert (
        table.groupby("class", sort=False)["mistake"].apply(list).tolist()
        == [["false positive"] * 2 + ["false negative"] * 2] * 4
    )
    for row in table.to_dict("records"):
        c, i = NAMES.index(row["class"]), row["index"]
        assert row["image"] == f"{i}.jpg"
        assert row["score"] == TIED[i, c]
        assert row["labels"] == ";".join(name for name, there in zip(NAMES, TARGETS[i], strict=True) if there)
        assert TARGETS[i, c] == (row["mistake"] == "false negative")


def test_leakage_and_calibration_as_tables() -> None:
    scores, targets = leaking(1.0)
    found = co_occurrence_leakage(scores, targets, targets, most=1, resamples=20)
    table = tables.leakage_table(["thing", "company"], [120, 10], found)
    assert table.loc[0, "companions"] == f"company {100 * targets[targets[:, 0] == 1, 1].mean():.0f} %"
    assert (table["images with"] + table["images without"] == 600).all()
    assert table.loc[0, "AP with"] == found[0].with_companion.ap.estimate
    assert table["leakage"].tolist() == [one.leakage for one in found]
    groups = {"total": reliability([[0.1], [0.9]], [[0], [1]], bins=2), "tail": reliability([[math.nan]], [[1]])}
    bins, summary = tables.calibration_table(groups), tables.calibration_summary(groups)
    assert bins[["classes", "bin", "predicted", "observed", "pairs"]].to_numpy().tolist() == [
        ["total", 1, 10.0, 0.0, 1],
        ["total", 2, 90.0, 100.0, 1],
    ]
    assert summary.to_dict("records") == [
        {"classes": "total", "pairs": 2, "ECE": pytest.approx(10.0), "Brier": pytest.approx(0.01)}
    ]
