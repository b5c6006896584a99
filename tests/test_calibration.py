"""Thresholds, Platt's probabilities and reliability: against slow searches, scikit-learn and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, f1_score

from hpdval.errors import ConfigError
from hpdval.metrics import best_f1_thresholds, group_reliability, platt, reliability
from hpdval.metrics.calibration import wilson

RNG = np.random.default_rng(0)


def toys(n: int = 300, share: float = 0.2, strength: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    targets = (RNG.random((n, 5)) < share).astype(np.uint8)
    targets[0], targets[1] = 1, 0
    return strength * targets + RNG.normal(size=targets.shape), targets


# -- thresholds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_no_threshold_has_a_better_f1(tied: bool) -> None:
    scores, targets = toys()
    scores = np.round(scores) if tied else scores
    for c, threshold in enumerate(best_f1_thresholds(scores, targets)):
        reached = f1_score(targets[:, c], scores[:, c] >= threshold)
        every = {cut: f1_score(targets[:, c], scores[:, c] >= cut) for cut in np.unique(scores[:, c])}
        assert reached == pytest.approx(max(every.values()), abs=1e-12)
        above, below = scores[scores[:, c] >= threshold, c].min(), scores[scores[:, c] < threshold, c].max()
        assert threshold == pytest.approx((above + below) / 2), "midway between neighbours"
        assert above == max(cut for cut, value in every.items() if value == max(every.values())), "the fewest images"


def test_thresholds_at_the_edges() -> None:
    nothing, everything = [0, 0, 0], [1, 1, 1]
    thresholds = best_f1_thresholds([[3.0, 3.0], [2.0, 2.0], [1.0, 1.0]], np.transpose([nothing, everything]))
    assert math.isnan(thresholds[0])
    assert thresholds[1] == 1.0, "every image is predicted, so the lowest score is"
    neighbours = [[1.0], [np.nextafter(1.0, 0)]]
    assert best_f1_thresholds(neighbours, [[1], [0]]).tolist() == [1.0], "nothing lies between them"
    huge = [[1.7e308], [1.6e308], [-1.7e308]]
    assert np.isfinite(best_f1_thresholds(huge, [[1], [0], [0]])).all()
    assert best_f1_thresholds([[1.0], [1.0]], [[1], [0]]).tolist() == [1.0]


def test_the_order_of_the_images_does_not_matter() -> None:
    scores, targets = toys()
    scores, order = np.round(scores, 1), RNG.permutation(len(scores))
    np.testing.assert_array_equal(
        best_f1_thresholds(scores, targets), best_f1_thresholds(scores[order], targets[order])
    )


# -- Platt -------------------------------------------------------------------------------------------------------------


def smoothed(y: np.ndarray) -> np.ndarray:
    return np.where(y == 1, (y.sum() + 1) / (y.sum() + 2), 1 / ((y == 0).sum() + 2))


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.01, 0.25), (100.0, -2000.0)])
def test_platt_is_logistic_regression_on_smoothed_targets(scale: float, shift: float) -> None:
    raw, targets = toys()
    scores = scale * raw + shift
    fitted = platt(scores, targets)
    for c in range(5):
        wanted = smoothed(targets[:, c])
        both = np.concatenate([raw[:, c], raw[:, c]])[
            :, None
        ]  # each image as positive with weight t, negative with 1 - t
        model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
        model.fit(both, np.repeat([1, 0], len(raw)), sample_weight=np.concatenate([wanted, 1 - wanted]))
        expected = model.predict_proba(raw[:, [c]])[:, 1]
        np.testing.assert_allclose(fitted.probabilities(scores)[:, c], expected, rtol=0, atol=1e-6)


def test_platt_is_the_minimum_that_scipy_finds() -> None:
    scores, targets = toys(80, 0.1)
    fitted = platt(scores, targets)
    for c in range(5):
        s, wanted = scores[:, c], smoothed(targets[:, c])

        def loss(point: np.ndarray, s: np.ndarray = s, wanted: np.ndarray = wanted) -> float:
            logits = point[0] * s + point[1]
            return float((np.logaddexp(0, logits) - wanted * logits).sum())

        best = minimize(loss, [0.0, 0.0], method="BFGS", options={"gtol": 1e-9})
        assert [fitted.slope[c], fitted.offset[c]] == pytest.approx(best.x, abs=1e-4)


def test_platt_stays_finite_and_keeps_the_ranking() -> None:
    separable = platt([[-1.0], [-1.0], [5.0]], [[0], [0], [1]])
    assert separable.probabilities([[5.0]])[0, 0] == pytest.approx(2 / 3, abs=1e-6), "one positive is (1 + 1) / (1 + 2)"
    extreme = platt(1e6 * toys()[0] - 1e9, toys()[1])
    assert np.isfinite(extreme.probabilities([[1e300] * 5, [-1e300] * 5])).all()
    reversed_ = platt([[1.0], [2.0], [3.0], [4.0]], [[1], [0], [0], [0]])
    assert reversed_.slope.tolist() == [0.0]
    assert reversed_.probabilities([[0.0]])[0, 0] == pytest.approx((2 / 3 + 3 * 0.2) / 4), "the mean of the targets"
    constant = platt(np.ones((4, 1)), [[1], [0], [0], [0]])
    assert constant.slope.tolist() == [0.0]
    alone = platt([[1.0, 1.0], [2.0, 2.0]], [[0, 1], [0, 1]])
    assert np.isnan(alone.probabilities([[1.0, 1.0]])).all()


def test_a_calibration_says_what_it_was_fitted_on() -> None:
    scores, targets = toys()
    assert platt(scores, targets).split == "training"
    assert platt(scores, targets, split="validation").split == "validation"
    with pytest.raises(ConfigError, match=r"split is 'test'; calibrate on training or validation scores"):
        platt(scores, targets, split="test")


# -- reliability -------------------------------------------------------------------------------------------------------


def test_reliability_is_scikit_learns_curve() -> None:
    p = RNG.random((400, 5))
    targets = (RNG.random((400, 5)) < p**2).astype(np.uint8)
    found = reliability(p, targets, bins=8)
    observed, predicted = calibration_curve(targets.ravel(), p.ravel(), n_bins=8, strategy="quantile")
    assert found.count.tolist() == [250] * 8
    np.testing.assert_allclose(found.predicted, predicted, atol=2e-3)  # its quantiles lie between two values
    np.testing.assert_allclose(found.observed, observed, atol=5e-3)
    assert found.brier == pytest.approx(brier_score_loss(targets.ravel(), p.ravel()), abs=1e-12)
    assert found.ece == pytest.approx(np.mean(np.abs(found.observed - found.predicted)), abs=1e-12)
    for share, n, low, high in zip(found.observed, found.count, found.low, found.high, strict=True):
        expected = binomtest(round(share * n), int(n)).proportion_ci(0.95, "wilson")
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_true_probabilities_are_reliable_and_sure_ones_are_not() -> None:
    logits = RNG.normal(size=(5000, 4))
    targets = RNG.random((5000, 4)) < expit(logits)
    honest, boastful = (reliability(expit(factor * logits), targets) for factor in (1, 4))
    assert honest.ece < 0.02
    assert np.mean((honest.low <= honest.predicted) & (honest.predicted <= honest.high)) >= 0.8
    assert boastful.ece > 0.1
    assert boastful.brier > honest.brier


def test_equal_probabilities_share_a_bin() -> None:
    p = np.repeat([0.2, 0.8], [90, 10])[:, None]
    found = reliability(p, np.repeat([0, 1], [90, 10])[:, None], bins=10)
    assert found.count.tolist() == [90, 10]
    assert found.predicted == pytest.approx([0.2, 0.8])
    assert (wilson(found.observed, found.count)[0] <= found.observed).all()


def test_groups_have_bins_of_their_own_and_leave_out_what_was_not_calibrated() -> None:
    p = RNG.random((100, 3))
    targets = (RNG.random((100, 3)) < p).astype(np.uint8)
    p[:, 1] = np.nan
    found = group_reliability(p, targets, [200, 150, 3], bins=5)
    assert found["total"].count.sum() == 200
    assert found["head"].brier == pytest.approx(brier_score_loss(targets[:, 0], p[:, 0]))
    assert found["tail"].brier == pytest.approx(brier_score_loss(targets[:, 2], p[:, 2]))
    assert math.isnan(found["medium"].ece)
    assert found["medium"].count.size == 0


@pytest.mark.parametrize(
    ("p", "options", "message"),
    [
        ([[1.5]], {}, r"probabilities must lie in \[0, 1\], got 1.5 to 1.5; calibrate first"),
        ([[0.5, 0.5]], {}, "must be .N, C. alike"),
        ([[0.5]], {"bins": 0}, "at least 1 bin"),
        ([[0.5]], {"level": 1.0}, "a level between 0 and 1"),
    ],
)
def test_what_is_no_probability_is_refused(p: list[list[float]], options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        reliability(p, [[1]], **options)  # type: ignore[arg-type]
