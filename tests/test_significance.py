"""The permutation test against a slow one, Holm by hand, what could have been seen, and how often each is wrong."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm, rankdata
from sklearn.metrics import average_precision_score

from hpdval.errors import ConfigError
from hpdval.groups import class_groups
from hpdval.metrics import Interval, detectable_difference, holm, paired_bootstrap, permutation_test, power_note
from hpdval.metrics.ranking import Ranking
from hpdval.metrics.significance import _exchanges

COUNTS = [300, 150, 50, 25, 8, 3]
GROUPS = ("total", "head", "medium", "tail")


def sample(n_images: int = 60, seed: int = 0, tied: bool = False) -> tuple[list[np.ndarray], ...]:
    """Two seeds of a method and of a slightly worse one on another scale, and targets; tied scores lie on a grid."""
    rng = np.random.default_rng(seed)
    targets = rng.random((n_images, 6)) < [0.5, 0.4, 0.3, 0.2, 0.1, 0.05]
    targets[:2] = [[True] * 6, [False] * 6]
    a = [rng.normal(size=targets.shape) + 1.2 * targets for _ in range(2)]
    b = [3 * (rng.normal(size=targets.shape) + targets) + 1 for _ in range(2)]
    return ([x.round() for x in a], [x.round() for x in b], targets) if tied else (a, b, targets)


# -- the permutation test ----------------------------------------------------------------------------------------------


def slow_ranks(scores: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Ranks with a fraction that tells equal ranks of two methods apart: that of the first image of a tie."""
    leaders = np.array([[np.flatnonzero(column == value)[0] for value in column] for column in scores.T]).T
    return np.apply_along_axis(rankdata, 0, scores) + first[leaders] / 2


def slow_p_values(a: Any, b: Any, targets: np.ndarray, exchanges: np.ndarray, first: np.ndarray) -> dict[str, float]:
    """Every exchange made with the ranks themselves, every AP by scikit-learn."""
    ranks_a, ranks_b = ([slow_ranks(x, first) for x in runs] for runs in (a, b))

    def differences(kept: np.ndarray) -> np.ndarray:
        """Of each class, the mean over seeds."""
        values = np.full((len(a), 6), np.nan)
        for seed, (x, y) in enumerate(zip(ranks_a, ranks_b, strict=True)):
            first, second = np.where(kept[:, None], x, y), np.where(kept[:, None], y, x)
            for c in np.flatnonzero(targets.any(axis=0)):
                values[seed, c] = average_precision_score(targets[:, c], first[:, c])
                values[seed, c] -= average_precision_score(targets[:, c], second[:, c])
        return values.mean(axis=0)

    observed = differences(np.ones(len(targets), dtype=bool))
    drawn = np.array([differences(kept) for kept in exchanges])
    result = {}
    for group, classes in {"total": np.arange(6), **class_groups(COUNTS)}.items():
        size = abs(np.nanmean(observed[classes]))
        as_large = np.abs(np.nanmean(drawn[:, classes], axis=1)) >= size - 1e-12
        result[group] = (1 + np.count_nonzero(as_large)) / (1 + len(drawn))
    return result


@pytest.mark.parametrize("tied", [False, True])
def test_p_values_equal_a_slow_test(tied: bool) -> None:
    a, b, targets = sample(tied=tied)
    targets[:, 1], targets[1:, 4], targets[:, 5] = True, False, False  # all positive, one positive, none
    rng = np.random.default_rng(7)
    first, exchanges = rng.random(60), np.concatenate(list(_exchanges(60, 80, rng)), axis=1).T[1:] == 1
    fast = permutation_test(a, b, targets, COUNTS, permutations=80, seed=7)
    assert fast == pytest.approx(slow_p_values(a, b, targets, exchanges, first), rel=1e-12)
    assert len(set(fast.values())) == 4


@pytest.mark.parametrize("tied", [False, True])
def test_split_is_the_difference_of_two_weightings(tied: bool) -> None:
    a, _, targets = sample(tied=tied)
    chosen = np.random.default_rng(1).integers(0, 2, (60, 8)).astype(np.float32)
    for c in range(6):
        ranking = Ranking.of(a[0][:, c], targets[:, c])
        np.testing.assert_allclose(
            ranking.split(chosen), ranking.weighted(chosen) - ranking.weighted(1 - chosen), rtol=1e-6, atol=1e-9
        )
    alone = Ranking.of(a[0][:, 0], np.arange(60) == 3).split(chosen)
    assert np.isnan(alone).all()  # one side is without a positive


def test_half_of_the_images_are_exchanged_and_first_none() -> None:
    parts = list(_exchanges(500, 200, np.random.default_rng(0)))
    assert [part.shape for part in parts] == [(500, 1), (500, 64), (500, 64), (500, 64), (500, 8)]
    assert parts[0].all()
    drawn = np.concatenate(parts[1:], axis=1)
    assert set(np.unique(drawn)) == {0, 1}
    assert drawn.mean() == pytest.approx(0.5, abs=3 * 0.5 / math.sqrt(drawn.size))
    assert len(np.unique(drawn, axis=1).T) == 200


def test_exchanging_the_methods_changes_nothing() -> None:
    a, b, targets = sample()
    assert permutation_test(a, b, targets, COUNTS, permutations=100) == (
        permutation_test(b, a, targets, COUNTS, permutations=100)
    )


def test_the_same_seed_gives_the_same_p_and_another_seed_another() -> None:
    a, b, targets = sample()
    first, again, other = (permutation_test(a, b, targets, COUNTS, permutations=200, seed=s) for s in (5, 5, 6))
    assert first == again
    assert first["total"] != other["total"]
    assert first["total"] == pytest.approx(other["total"], abs=0.2)


def test_offset_scale_and_any_rising_function_change_nothing() -> None:
    a, b, targets = sample()
    plain = permutation_test(a, b, targets, COUNTS, permutations=100)
    assert plain == permutation_test([np.exp(x) for x in a], [x / 30 - 5 for x in b], targets, COUNTS, permutations=100)


def test_a_method_does_not_differ_from_itself() -> None:
    a, _, targets = sample(tied=True)
    assert permutation_test(a, [3 * x + 1 for x in a], targets, COUNTS, permutations=50) == dict.fromkeys(GROUPS, 1.0)


def test_a_plain_difference_has_the_smallest_p() -> None:
    a, _, targets = sample(400)
    worse = [np.random.default_rng(3).normal(size=x.shape) for x in a]
    assert permutation_test(a, worse, targets, COUNTS, permutations=99)["total"] == 1 / 100


def test_one_seed_is_compared_with_each() -> None:
    a, b, targets = sample()
    assert permutation_test(a[0], b, targets, COUNTS, permutations=60) == (
        permutation_test([a[0], a[0]], np.stack(b), targets, COUNTS, permutations=60)
    )


def test_a_readout_comes_before_the_ranks() -> None:
    a, b, targets = sample()
    shares = [[np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in runs] for runs in (a, b)]
    under = permutation_test(a, b, targets, COUNTS, permutations=60, readout="softmax")
    assert under == permutation_test(*shares, targets, COUNTS, permutations=60)
    assert under != permutation_test(a, b, targets, COUNTS, permutations=60)


def test_a_group_without_positives_has_no_p() -> None:
    a, b, targets = sample()
    targets[:, 4:] = False
    result = permutation_test(a, b, targets, COUNTS, permutations=20)
    assert math.isnan(result["tail"])
    known = permutation_test([x[:, :4] for x in a], [x[:, :4] for x in b], targets[:, :4], COUNTS[:4], permutations=20)
    assert result["total"] == known["total"]


def test_classes_without_a_negative_do_not_differ() -> None:
    a, b, targets = sample()
    assert permutation_test(a, b, targets | True, COUNTS, permutations=20) == dict.fromkeys(GROUPS, 1.0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"permutations": 0}, "permutations must be at least 1, got 0"),
        ({"readout": "x"}, "readout must be"),
        ({"class_counts": COUNTS[:5]}, "6 training counts"),
        ({"scores_b": [np.zeros((60, 6))] * 3}, "cannot pair 2 seeds of A with 3 of B"),
        ({"scores_b": np.zeros((60, 5))}, "shape of scores"),
        ({"scores_a": np.full((60, 6), np.nan)}, "must be finite"),
    ],
)
def test_impossible_inputs_are_told_in_one_line(change: dict[str, Any], told: str) -> None:
    a, b, targets = sample()
    given = {"scores_a": a, "scores_b": b, "targets": targets, "class_counts": COUNTS, **change}
    with pytest.raises(ConfigError, match=told) as error:
        permutation_test(**given)
    assert "\n" not in str(error.value)


# -- Holm --------------------------------------------------------------------------------------------------------------


def slow_holm(p: np.ndarray) -> list[float]:
    """The adjusted p is the smallest level at which the step-down procedure rejects; found among the candidates."""
    m = len(p)
    order = sorted(range(m), key=lambda i: p[i])

    def rejected(level: float) -> set[int]:
        found = set()
        for step, i in enumerate(order):
            if (m - step) * p[i] > level:
                break
            found.add(i)
        return found

    levels = sorted({1.0, *((m - step) * p[i] for step, i in enumerate(order) if (m - step) * p[i] < 1)})
    return [next((level for level in levels if i in rejected(level)), 1.0) for i in range(m)]


def test_holm_by_hand() -> None:
    """0.005 x 4; 0.011 x 3; 0.02 x 2 = 0.04; 0.04 x 1."""
    np.testing.assert_allclose(holm([0.02, 0.005, 0.04, 0.011]), [0.04, 0.02, 0.04, 0.033])
    np.testing.assert_allclose(holm([0.6, 0.5]), [1.0, 1.0])
    np.testing.assert_allclose(holm([0.04]), [0.04])
    assert holm([]).shape == (0,)


def test_holm_equals_its_definition() -> None:
    rng = np.random.default_rng(0)
    for size in (2, 5, 9):
        for _ in range(20):
            p = rng.random(size).round(1) ** 2  # with ties
            adjusted = holm(p)
            np.testing.assert_allclose(adjusted, slow_holm(p))
            assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()
            assert ((adjusted >= p) & (adjusted <= 1)).all()


def test_what_is_not_known_does_not_count() -> None:
    np.testing.assert_allclose(holm([0.03, math.nan, 0.01]), [0.03, math.nan, 0.02])
    assert np.isnan(holm([math.nan, math.nan])).all()


@pytest.mark.parametrize("given", [[-0.1, 0.5], [1.5], [[0.1], [0.2]], 0.5])
def test_holm_takes_one_row_of_probabilities(given: Any) -> None:
    with pytest.raises(ConfigError, match="one row of numbers from 0 to 1"):
        holm(given)


# -- what could have been seen -----------------------------------------------------------------------------------------


def interval(low: float, high: float, level: float = 0.95) -> Interval:
    return Interval(estimate=(low + high) / 2, low=low, high=high, level=level, per_seed=((low + high) / 2,))


@pytest.mark.parametrize(("level", "power"), [(0.95, 0.8), (0.9, 0.5), (0.99, 0.95)])
def test_a_detectable_difference_is_found_that_often(level: float, power: float) -> None:
    """A normal estimate around it with this standard error lies beyond the critical value with this power."""
    error, critical = 1.7, norm.ppf(0.5 + level / 2)
    width = critical * error
    found = detectable_difference(interval(-width, width, level), power=power)
    assert norm.sf(critical - found / error) == pytest.approx(power)


def test_a_power_below_a_half_or_certainty_is_told() -> None:
    for power in (0.2, 1.0):
        with pytest.raises(ConfigError, match=r"power must be at least 0\.5 and below 1"):
            detectable_difference(interval(0, 1), power=power)
    assert math.isnan(detectable_difference(interval(math.nan, math.nan)))


def test_a_note_counts_positives_and_warns_below_fifty() -> None:
    targets = np.arange(900)[:, None] < [800, 0, 40, 120, 98, 120]
    intervals = {
        "total": interval(-1, 1),
        "head": interval(-0.7, 0.7),
        "medium": interval(-2, 2),
        "tail": interval(0, 4),
    }
    assert power_note(targets, [300, 150, 50, 25, 8, 3], intervals) == [
        "head: 1 class with 800 test positives; differences below 1.0 points would be missed more than one time in "
        "five",
        "medium: 2 classes with 40 to 120 test positives; differences below 2.9 points would be missed more than one "
        "time in five; 1 of them below 50, where intervals may cover less than they say",
        "tail: 2 classes with 98 to 120 test positives; differences below 2.9 points would be missed more than one "
        "time in five",
    ]
    assert power_note(targets[:, :2], [300, 3], {"tail": interval(math.nan, math.nan)}) == []
    with pytest.raises(ConfigError, match="2 training counts"):
        power_note(targets[:, :2], [3], intervals)


# -- how often they are wrong ------------------------------------------------------------------------------------------


def found(
    *, positives: int, classes: int, simulations: int, lead: float = 0.0, crossed: bool = False, seeds: int = 1,
    n_images: int = 1000, draws: int = 199,
) -> tuple[float, float]:  # fmt: skip
    """Percentage of simulations in which the permutation test (p <= 0.05), and the bootstrap, find a difference.

    A and B share most of their noise, B comes as 3 x + 1.  A's positives lie ``lead`` higher; ``crossed``: A is better
    by 0.5 in one half of the classes and B in the other, so that their true mAPs are the same.
    """
    rng = np.random.default_rng(positives + classes)
    shifts = np.linspace(1.0, 2.5, classes + 2)[1:-1]
    ahead, behind = np.full(classes, lead), np.zeros(classes)
    if crossed:  # a class of A and its mirror image of B in turn
        shifts = np.repeat(shifts[::2], 2)
        ahead, behind = np.tile([0.5, 0.0], classes // 2), np.tile([0.0, 0.5], classes // 2)
    counts = np.zeros(2)
    for simulation in range(simulations):
        targets = rng.random((n_images, classes)) < positives / n_images
        shared, *own = rng.normal(size=(3, n_images, classes))
        a, b = (
            [0.8 * shared + 0.4 * of_method + math.sqrt(0.2) * of_seed + (shifts + more) * targets for of_seed in noise]
            for of_method, more, noise in zip(
                own, (ahead, behind), rng.normal(size=(2, seeds, n_images, classes)), strict=True
            )
        )
        pair, arguments = (a, [3 * x + 1 for x in b]), (targets, [5] * classes)
        interval = paired_bootstrap(*pair, *arguments, resamples=draws + 1, seed=simulation)["total"]
        p = permutation_test(*pair, *arguments, permutations=draws, seed=simulation)["total"]
        counts += p <= 0.05, not interval.low <= 0 <= interval.high
    return tuple(100 * counts / simulations)


def test_one_time_in_twenty_a_difference_is_found_where_none_is() -> None:
    permutation, bootstrap = found(positives=30, classes=1, n_images=200, simulations=300, draws=59)
    assert abs(permutation - 5) < 2 * 1.26  # two standard errors of 300 simulations
    assert abs(bootstrap - 5) < 2 * 1.26 + 2
    assert min(found(positives=30, classes=1, n_images=200, simulations=60, draws=59, lead=0.8)) > 50


def test_without_ranks_scales_would_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exchanging scores of two scales as they are breaks both rankings: T* is far from what T varies by."""
    options = {"positives": 30, "classes": 1, "n_images": 200, "simulations": 60, "draws": 59, "lead": 0.8}
    with_ranks = found(**options)[0]
    monkeypatch.setitem(permutation_test.__globals__, "_ranks", lambda values, first: values)
    assert abs(found(**options)[0] - with_ranks) > 10


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("positives", "classes", "seeds", "simulations"),
    [
        *((positives, 1, 1, 1000) for positives in (10, 20, 50, 100)),
        *((positives, 20, 1, 200) for positives in (10, 50)),
        *((positives, 1, 3, 1000) for positives in (10, 50)),
        (50, 20, 3, 100),
    ],
)
def test_error_and_power_at_length(
    positives: int, classes: int, seeds: int, simulations: int, capsys: pytest.CaptureFixture[str]
) -> None:
    size = {"positives": positives, "classes": classes, "seeds": seeds, "simulations": simulations}
    rows = {"no difference": found(**size), "A ahead": found(**size, lead=0.3 if classes == 1 else 0.1)}
    if classes > 1:
        rows["crossed"] = found(**size, crossed=True)
    with capsys.disabled():
        print(f"\n{size}: % found by the permutation test and by the bootstrap")
        print(
            "; ".join(
                f"{name} {permutation:.1f} and {bootstrap:.1f}" for name, (permutation, bootstrap) in rows.items()
            )
        )
    error = 100 * math.sqrt(0.05 * 0.95 / simulations)
    assert abs(rows["no difference"][0] - 5) < (2 if positives >= 20 else 4) + 2 * error


@pytest.mark.nightly
def test_without_ranks_at_length(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(permutation_test.__globals__, "_ranks", lambda values, first: values)
    null, ahead = (found(positives=50, classes=1, simulations=500, lead=lead)[0] for lead in (0.0, 0.3))
    with capsys.disabled():
        print(f"\nexchanged without ranks, 50 positives: no difference {null:.1f}, A ahead {ahead:.1f} % found")
    assert null < 2
