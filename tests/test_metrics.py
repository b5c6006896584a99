"""Metrics against scikit-learn and slow loops, and the invariances they promise."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

from hpdval.errors import ConfigError
from hpdval.metrics import (
    apply_readout,
    average_precision,
    decision_scores,
    evaluate,
    mean_average_precision,
    micro_average_precision,
    voc11_average_precision,
)

RNG = np.random.default_rng(0)


def binary(shape: tuple[int, ...], share: float = 0.3) -> np.ndarray:
    """Random targets with a positive and a negative in every class."""
    targets = (RNG.random(shape) < share).astype(np.uint8)
    targets[0], targets[1] = 1, 0
    return targets


INPUTS: dict[str, tuple[np.ndarray, np.ndarray]] = {
    "random": (RNG.normal(size=(200, 7)), binary((200, 7))),
    "float32": (RNG.normal(size=(200, 7)).astype(np.float32), binary((200, 7))),
    "tied": (RNG.integers(0, 4, size=(200, 7)).astype(float), binary((200, 7))),
    "constant": (np.full((50, 3), -2.5), binary((50, 3))),
    "one positive": (RNG.normal(size=(60, 4)), np.eye(60, 4, dtype=np.uint8)),
    "one positive, tied": (RNG.integers(0, 3, size=(60, 4)).astype(float), np.eye(60, 4, dtype=np.uint8)),
    "all positive": (RNG.normal(size=(30, 3)), np.ones((30, 3), np.uint8)),
    "one image": (RNG.normal(size=(1, 3)), np.ones((1, 3), np.uint8)),
    "signed zeros": (np.array([[0.0], [-0.0], [1.0], [-1.0]]), np.array([[1], [0], [0], [1]])),
    "huge and tiny": (np.array([[1e300], [1e-300], [0.0], [-1e300]]), np.array([[0], [1], [0], [1]])),
}
every_input = pytest.mark.parametrize(("scores", "targets"), INPUTS.values(), ids=INPUTS)


@every_input
def test_average_precision_is_scikit_learns(scores: np.ndarray, targets: np.ndarray) -> None:
    expected = [average_precision_score(targets[:, c], scores[:, c]) for c in range(scores.shape[1])]
    np.testing.assert_allclose(average_precision(scores, targets), expected, rtol=0, atol=1e-12)
    assert mean_average_precision(scores, targets) == pytest.approx(np.mean(expected), abs=1e-12)
    pooled = average_precision_score(targets.ravel(), scores.ravel())
    assert micro_average_precision(scores, targets) == pytest.approx(pooled, abs=1e-12)


def slow_ap(scores: np.ndarray, targets: np.ndarray) -> float:
    """Sum over distinct thresholds of the gain in recall times precision."""
    total, before, area = targets.sum(), 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        chosen = scores >= threshold
        recall, precision = targets[chosen].sum() / total, targets[chosen].mean()
        area, before = area + (recall - before) * precision, recall
    return area


@every_input
def test_average_precision_is_the_sum_over_thresholds(scores: np.ndarray, targets: np.ndarray) -> None:
    expected = [slow_ap(scores[:, c], targets[:, c]) for c in range(scores.shape[1])]
    np.testing.assert_allclose(average_precision(scores, targets), expected, rtol=0, atol=1e-12)


def test_a_class_without_positives_is_nan_and_left_out_of_the_mean() -> None:
    scores, targets = RNG.normal(size=(20, 3)), binary((20, 3))
    targets[:, 1] = 0
    per_class = average_precision(scores, targets)
    assert np.isnan(per_class).tolist() == [False, True, False]
    assert mean_average_precision(scores, targets) == np.mean(per_class[[0, 2]])
    assert np.isnan(voc11_average_precision(scores, targets)).tolist() == [False, True, False]
    nothing = np.zeros_like(targets)
    assert math.isnan(mean_average_precision(scores, nothing))
    assert math.isnan(micro_average_precision(scores, nothing))


@pytest.mark.parametrize("name", ["random", "tied"])
@pytest.mark.parametrize("change", [lambda s: 3 * s - 7, np.exp, lambda s: s**3, lambda s: 1 / (1 + np.exp(-s))])
def test_monotone_maps_change_nothing(name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    scores, targets = INPUTS[name]
    assert np.array_equal(average_precision(change(scores), targets), average_precision(scores, targets))


@pytest.mark.parametrize("name", ["random", "tied"])
def test_the_order_of_images_and_classes_changes_nothing(name: str) -> None:
    scores, targets = INPUTS[name]
    rows, columns = RNG.permutation(len(scores)), RNG.permutation(scores.shape[1])
    assert np.array_equal(average_precision(scores[rows], targets[rows]), average_precision(scores, targets))
    assert np.array_equal(
        average_precision(scores[:, columns], targets[:, columns]), average_precision(scores, targets)[columns]
    )


@pytest.mark.parametrize("kind", [torch.tensor, np.asarray, lambda x: x.tolist(), np.asfortranarray])
@pytest.mark.parametrize("target_type", [np.uint8, bool, np.float32, np.int64])
def test_any_array_will_do(kind: Callable[[np.ndarray], Any], target_type: type) -> None:
    scores, targets = INPUTS["random"]
    assert np.array_equal(
        average_precision(kind(scores), kind(targets.astype(target_type))), average_precision(scores, targets)
    )


def slow_voc11(scores: np.ndarray, targets: np.ndarray) -> float:
    order = sorted(range(len(scores)), key=lambda i: -scores[i])  # stable: ties keep the order of the images
    ranks, hits = [], 0
    for rank, image in enumerate(order, start=1):
        hits += int(targets[image])
        ranks.append((hits, hits / rank))
    best = [max((p for tp, p in ranks if 10 * tp >= i * targets.sum()), default=0.0) for i in range(11)]
    return sum(best) / 11


@every_input
def test_voc11_is_the_mean_of_eleven_best_precisions(scores: np.ndarray, targets: np.ndarray) -> None:
    expected = [slow_voc11(scores[:, c], targets[:, c].astype(int)) for c in range(scores.shape[1])]
    np.testing.assert_allclose(voc11_average_precision(scores, targets), expected, rtol=0, atol=1e-12)


def test_voc11_counts_a_recall_that_is_exactly_a_tenth() -> None:
    """Three of ten positives first, then a negative, ...: recall 3/10 is reached, although 0.1 * 3 > 0.3 in floats."""
    targets = np.array([1, 1, 1] + [0] * 40 + [1] * 7)[:, None]
    scores = -np.arange(50.0)[:, None]
    low = max((3 + i) / (43 + i) for i in range(1, 8))
    assert voc11_average_precision(scores, targets)[0] == pytest.approx((4 * 1.0 + 7 * low) / 11, abs=1e-12)


def test_readouts() -> None:
    scores = RNG.normal(size=(20, 5)).astype(np.float32)
    exact = scores.astype(np.float64)
    assert np.array_equal(apply_readout(scores, "raw"), exact)
    np.testing.assert_allclose(apply_readout(scores, "softmax"), torch.tensor(exact).softmax(1), rtol=1e-14)
    np.testing.assert_allclose(
        apply_readout(scores, "l2"), torch.nn.functional.normalize(torch.tensor(exact), dim=1), rtol=1e-14
    )
    assert apply_readout([[0.0, 0.0]], "l2").tolist() == [[0.0, 0.0]]
    assert apply_readout([[1e4, -1e4]], "softmax").tolist() == [[1.0, 0.0]]
    with pytest.raises(ConfigError, match="raw, softmax, l2, got 'sigmoid'"):
        apply_readout(scores, "sigmoid")


@pytest.mark.parametrize("options", [{"threshold": 0.5}, {"top_k": 3}, {"threshold": -0.2, "top_k": 2}])
def test_decisions_are_scikit_learns(options: dict[str, Any]) -> None:
    scores, targets = RNG.normal(size=(100, 6)), binary((100, 6))
    chosen = scores >= options.get("threshold", -np.inf)
    rank = (-scores).argsort(axis=1).argsort(axis=1)
    chosen &= rank < options.get("top_k", 6)
    got = decision_scores(scores, targets, **options)
    micro = precision_recall_fscore_support(targets, chosen, average="micro")[:3]
    macro = precision_recall_fscore_support(targets, chosen, average="macro", zero_division=0.0)[:2]
    np.testing.assert_allclose(got[:3], micro, rtol=1e-12)
    np.testing.assert_allclose(got[3:5], macro, rtol=1e-12)
    np.testing.assert_allclose(got.CF1, 2 * macro[0] * macro[1] / (macro[0] + macro[1]), rtol=1e-12)


def test_decisions_where_nothing_is_predicted() -> None:
    targets = binary((20, 3))
    assert decision_scores(np.zeros((20, 3)), targets, threshold=1.0) == (0.0,) * 6
    scores = np.zeros((20, 3))
    scores[:, 0] = 2.0  # only class 0 is ever predicted
    formula = decision_scores(scores, targets, threshold=1.0)
    released = decision_scores(scores, targets, threshold=1.0, released=True)
    hits = targets[:, 0].sum()
    assert hits / 20 == formula.OP
    assert hits / 22 == released.OP  # each class never predicted counts as one prediction
    assert formula.CP == released.CP == pytest.approx(hits / 20 / 3)


def test_top_k_takes_the_first_of_equal_scores() -> None:
    assert decision_scores([[1.0, 1.0, 1.0]], [[1, 0, 0]], top_k=1).OP == 1.0
    assert decision_scores([[1.0, 1.0, 1.0]], [[0, 0, 1]], top_k=1).OP == 0.0


@pytest.mark.parametrize(
    ("options", "told"), [({}, "give a threshold"), ({"top_k": 0}, "1 to 3"), ({"top_k": 4}, "1 to 3")]
)
def test_decisions_that_cannot_be_made(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        decision_scores(np.zeros((2, 3)), np.zeros((2, 3)), **options)


COUNTS = [500, 100, 99, 20, 19, 3]


@pytest.mark.parametrize("readout", ["raw", "softmax", "l2"])
def test_evaluate_means_over_groups(readout: str) -> None:
    scores, targets = RNG.normal(size=(80, 6)), binary((80, 6))
    result = evaluate(
        scores, targets, COUNTS, readout=readout, classes=list("abcdef"), protocol="test", selection="none"
    )
    values = apply_readout(scores, readout)
    expected = np.array([100 * average_precision_score(targets[:, c], values[:, c]) for c in range(6)])
    np.testing.assert_allclose(result.per_class, expected, atol=1e-10)
    np.testing.assert_allclose(
        [result.total, result.head, result.medium, result.tail],
        [expected.mean(), expected[:2].mean(), expected[2:4].mean(), expected[4:].mean()],
    )
    assert result.variance == pytest.approx(((expected - expected.mean()) ** 2).sum() / 6)
    np.testing.assert_allclose(result.chance, 100 * targets.mean(0))
    assert result.chance_total == pytest.approx(100 * targets.mean())
    assert (result.n_images, result.readout, result.protocol, result.selection) == (80, readout, "test", "none")
    assert result.excluded == ()


def test_evaluate_leaves_out_classes_without_positives() -> None:
    scores, targets = RNG.normal(size=(80, 6)), binary((80, 6))
    targets[:, 2:5] = 0
    result = evaluate(scores, targets, COUNTS)
    per_class = 100 * average_precision(scores, targets)
    assert result.excluded == (2, 3, 4)
    assert math.isnan(result.medium)
    assert result.tail == per_class[5]
    assert result.total == pytest.approx(per_class[[0, 1, 5]].mean())
    assert result.variance == pytest.approx(per_class[[0, 1, 5]].var())
    assert result.chance_total == pytest.approx(100 * targets[:, [0, 1, 5]].mean())
    assert "without positives and left out: class 2, class 3, class 4" in str(result)


def test_evaluation_goes_into_json_and_one_line() -> None:
    targets = binary((80, 6))
    targets[:, 4:] = 0
    result = evaluate(RNG.normal(size=(80, 6)), targets, COUNTS, classes="abcdef", protocol="VOC-LT")
    back = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert back["tail"] is None
    assert back["per_class"][4] is None
    assert back["total"] == result.total
    assert (back["classes"], back["excluded"], back["n_images"]) == (list("abcdef"), [4, 5], 80)
    assert (back["excluded_names"], back["class_counts"]) == (["e", "f"], list(COUNTS))
    line = str(result)
    assert "\n" not in line
    assert f"total {result.total:.2f}" in line
    assert "VOC-LT" in line
    assert "none (last epoch)" in line
    assert "left out: e, f" in line


def test_a_group_without_classes_is_nan() -> None:
    assert math.isnan(evaluate(np.zeros((4, 2)), binary((4, 2)), [200, 300]).tail)


GOOD_SCORES, GOOD_TARGETS = np.zeros((4, 3)), binary((4, 3))


def with_value(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.astype(float)
    changed[2, 1] = value
    return changed


@pytest.mark.parametrize(
    ("scores", "targets", "told"),
    [
        (np.zeros(4), np.zeros(4), r"non-empty \(N, C\)"),
        (np.zeros((0, 3)), np.zeros((0, 3)), r"non-empty \(N, C\)"),
        (np.zeros((2, 2, 2)), np.zeros((2, 2, 2)), r"non-empty \(N, C\)"),
        (GOOD_SCORES, np.zeros((3, 4)), r"shape of scores, \(4, 3\), got \(3, 4\)"),
        (with_value(GOOD_SCORES, np.nan), GOOD_TARGETS, "got nan for image 2, class 1"),
        (with_value(GOOD_SCORES, -np.inf), GOOD_TARGETS, "got -inf for image 2, class 1"),
        (GOOD_SCORES, with_value(GOOD_TARGETS, 2), "got 2.0 for image 2, class 1"),
        (GOOD_SCORES, with_value(GOOD_TARGETS, -1), "0 or 1, got -1.0"),
        (GOOD_SCORES, with_value(GOOD_TARGETS, 0.5), "0 or 1, got 0.5"),
        (GOOD_SCORES, with_value(GOOD_TARGETS, np.nan), "0 or 1, got nan"),
        ([["a", "b"]], [[0, 1]], "scores must be numbers"),
        ([[1.0], [1.0, 2.0]], [[0, 1]], "scores must be numbers"),
        (torch.zeros(4, 3, requires_grad=True), GOOD_TARGETS, "detach"),
        (torch.zeros(4, 3, device="meta"), GOOD_TARGETS, "CPU memory"),
        (torch.zeros(4, 3, dtype=torch.bfloat16), GOOD_TARGETS, r"\.float\(\)"),
    ],
)
@pytest.mark.parametrize("function", [average_precision, voc11_average_precision, micro_average_precision])
def test_unusable_input_is_told_in_one_line(function: Callable[..., Any], scores: Any, targets: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as error:
        function(scores, targets)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("counts", "options", "told"),
    [
        ([1, 2], {}, "3 training counts"),
        ([1, 2, -1], {}, "3 training counts"),
        ([1, 2, math.nan], {}, "3 training counts"),
        (["a", "b", "c"], {}, "3 training counts"),
        ([1, 2, 3], {"classes": ["a"]}, "1 class names for scores of 3"),
        ([1, 2, 3], {"readout": "sigmoid"}, "readout must be one of"),
    ],
)
def test_evaluate_refuses(counts: Any, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        evaluate(GOOD_SCORES, GOOD_TARGETS, counts, **options)


@pytest.mark.parametrize(("n_images", "limit"), [(5_000, 0.05), (40_504, 0.5)])
def test_average_precision_is_fast(n_images: int, limit: float) -> None:
    """80 classes of COCO's two test lists; the best of five in CPU time, so that a busy machine does not matter."""
    scores, targets = RNG.normal(size=(n_images, 80)).astype(np.float32), RNG.random((n_images, 80)) < 0.03
    seconds = []
    for _ in range(5):
        start = time.process_time()
        average_precision(scores, targets)
        seconds.append(time.process_time() - start)
    assert min(seconds) < limit
