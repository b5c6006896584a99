"""Bootstrap intervals against a slow bootstrap, their symmetries, and how often they cover the truth."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm, t

from hpdval.errors import ConfigError
from hpdval.groups import class_groups
from hpdval.metrics import average_precision, bootstrap, evaluate, gains, paired_bootstrap
from hpdval.metrics.ranking import Ranking

COUNTS = [300, 150, 50, 25, 8, 3]


def sample(n_images: int = 120, seed: int = 0, tied: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of a better and a worse method and their targets; tied scores lie on a coarse grid."""
    rng = np.random.default_rng(seed)
    targets = rng.random((n_images, 6)) < [0.5, 0.4, 0.3, 0.2, 0.1, 0.05]
    targets[:2] = [[True] * 6, [False] * 6]
    better, worse = (rng.normal(size=targets.shape) + shift * targets for shift in (2.0, 1.0))
    return (better.round(), worse.round(), targets) if tied else (better, worse, targets)


@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_repeated_images(tied: bool) -> None:
    scores, _, targets = sample(tied=tied)
    weights = np.random.default_rng(1).integers(0, 4, size=(120, 8)).astype(np.float32)
    for c in range(6):
        fast = Ranking.of(scores[:, c], targets[:, c]).weighted(weights)
        repeated = [np.repeat(np.arange(120), weights[:, r].astype(int)) for r in range(8)]
        slow = [average_precision(scores[rows, c : c + 1], targets[rows, c : c + 1])[0] for rows in repeated]
        np.testing.assert_allclose(fast, slow, rtol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_delete_one_is_the_average_precision_without_the_image(tied: bool) -> None:
    scores, _, targets = sample(tied=tied)
    targets[1:, 5] = False  # a single positive: without it there is no AP
    slow = np.stack([average_precision(np.delete(scores, i, 0), np.delete(targets, i, 0)) for i in range(120)])
    for c in range(6):
        np.testing.assert_allclose(Ranking.of(scores[:, c], targets[:, c]).delete_one(), slow[:, c], rtol=1e-12)


def slow_interval(methods: list[list[np.ndarray]], targets: np.ndarray, resamples: int, seed: int, classes: Any) -> Any:
    """The formula of the module, with every resample and every deletion evaluated anew; 95 %."""

    def value(rows: np.ndarray) -> float:
        means = [
            np.mean([np.nanmean(average_precision(run[rows], targets[rows])[classes]) for run in runs])
            for runs in methods
        ]
        return float(means[0] - means[1] if len(means) == 2 else means[0])

    n = len(targets)
    rng = np.random.default_rng(seed)
    drawn = np.array([value(rng.integers(0, n, n)) for _ in range(resamples)])
    left_out = np.array([value(np.delete(np.arange(n), i)) for i in range(n)])
    estimate = value(np.arange(n))
    squares = (left_out - left_out.mean()) ** 2
    error = math.sqrt((n - 1) / n * squares.sum())
    kurtosis = np.mean(squares**2) / np.mean(squares) ** 2
    student = t.ppf(0.975, 2 * n / (kurtosis - 1)) / norm.ppf(0.975)
    position = 0.025 * (resamples + 1) - 1
    deviations = np.interp([position, resamples - 1 - position], range(resamples), np.sort(drawn - drawn.mean()))
    bias = (n - 1) * (left_out.mean() - estimate)
    return 100 * estimate, 100 * (estimate - bias + error / drawn.std() * student * deviations)


@pytest.mark.parametrize("tied", [False, True])
def test_intervals_equal_a_slow_bootstrap(tied: bool) -> None:
    a, b, targets = sample(tied=tied)
    groups = {"total": np.arange(6), **class_groups(COUNTS)}
    single = bootstrap(a, targets, COUNTS, resamples=150, seed=3)
    paired = paired_bootstrap([a, b], [b, -a], targets, COUNTS, resamples=150, seed=3)
    for group, classes in groups.items():
        for result, methods in ((single, [[a]]), (paired, [[a, b], [b, -a]])):
            estimate, limits = slow_interval(methods, targets, 150, 3, classes)
            assert result[group].estimate == pytest.approx(estimate, rel=1e-10)
            width = limits[1] - limits[0]  # Student's quantile comes from an expansion
            np.testing.assert_allclose([result[group].low, result[group].high], limits, rtol=0, atol=5e-4 * width)


def test_an_interval_of_a_level_stays_in_its_range_and_that_of_a_difference_is_whole() -> None:
    """A class with six positives, ranked badly and well: centred, its intervals would leave 0 to 100 %."""
    rng = np.random.default_rng(2)
    targets = (np.arange(100) < 6).astype(int)[:, None]
    bad = rng.normal(size=(100, 1))
    good = targets + 0.4 * bad
    shown = {}
    for name, methods in (("bad", [[bad]]), ("good", [[good]]), ("difference", [[bad], [good]])):
        _, shown[name] = slow_interval(methods, targets, 200, 0, np.array([0]))
    assert shown["bad"][0] < 0
    assert shown["good"][1] > 100
    assert shown["difference"][0] < -100
    shown["bad"][0], shown["good"][1] = 0, 100
    found = {name: bootstrap(one, targets, [6], resamples=200) for name, one in (("bad", bad), ("good", good))}
    found["difference"] = paired_bootstrap(bad, good, targets, [6], resamples=200)
    for name, limits in shown.items():
        np.testing.assert_allclose(
            [found[name]["total"].low, found[name]["total"].high], limits, atol=0.1
        )  # a thousandth of the widest


def test_the_estimate_is_that_of_evaluate() -> None:
    a, b, targets = sample()
    for readout in ("raw", "softmax"):
        table = evaluate(a, targets, COUNTS, readout=readout), evaluate(b, targets, COUNTS, readout=readout)
        single = bootstrap(a, targets, COUNTS, resamples=10, readout=readout)
        paired = paired_bootstrap(a, b, targets, COUNTS, resamples=10, readout=readout)
        for group in ("total", "head", "medium", "tail"):
            values = [getattr(result, group) for result in table]
            assert single[group].estimate == pytest.approx(values[0], rel=1e-12)
            assert paired[group].estimate == pytest.approx(values[0] - values[1], rel=1e-9)


def test_a_difference_is_antisymmetric() -> None:
    a, b, targets = sample()
    there = paired_bootstrap([a, a + b], [b, a - b], targets, COUNTS, resamples=200)
    back = paired_bootstrap([b, a - b], [a, a + b], targets, COUNTS, resamples=200)
    for group, difference in there.items():
        assert (difference.estimate, difference.low, difference.high) == (
            -back[group].estimate, -back[group].high, -back[group].low,
        )  # fmt: skip


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    a, b, targets = sample()
    first, again, other = (paired_bootstrap(a, b, targets, COUNTS, resamples=100, seed=s) for s in (5, 5, 6))
    assert first == again
    assert first["total"].low != other["total"].low
    assert first["total"].estimate == other["total"].estimate


def test_a_wider_level_gives_a_wider_interval() -> None:
    a, _, targets = sample()
    narrow, wide = (bootstrap(a, targets, COUNTS, level=level, resamples=400)["total"] for level in (0.8, 0.95))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_a_method_does_not_differ_from_itself() -> None:
    a, _, targets = sample()
    same = paired_bootstrap(a, 3 * a + 1, targets, COUNTS, resamples=50)["total"]
    assert (same.estimate, same.low, same.high) == (0, 0, 0)
    assert not same.gains


def test_pairing_makes_the_interval_narrower() -> None:
    a, _, targets = sample(400)
    close = a + 0.1 * np.random.default_rng(9).normal(size=a.shape)
    single = bootstrap(a, targets, COUNTS, resamples=200)["total"]
    paired = paired_bootstrap(a, close, targets, COUNTS, resamples=200)["total"]
    assert paired.high - paired.low < 0.5 * (single.high - single.low)


def test_a_gain_needs_the_interval_and_every_seed() -> None:
    a, b, targets = sample(400)
    assert gains([a, a], [b, b], targets, COUNTS, resamples=200)
    assert not gains([b, b], [a, a], targets, COUNTS, resamples=200)
    mixed = paired_bootstrap([2 * a + b, a, a, a, a - 10 * targets], [b] * 5, targets, COUNTS, resamples=200)["head"]
    assert len(mixed.per_seed) == 5
    assert mixed.per_seed[-1] < 0 < mixed.per_seed[0]
    assert not mixed.gains
    noise = np.random.default_rng(2).normal(size=b.shape) * 1e-3
    assert not gains(b + noise, b, targets, COUNTS, resamples=200, group="tail")


def test_the_estimate_of_several_seeds_is_their_mean() -> None:
    a, b, targets = sample()
    result = paired_bootstrap([a, a + b], b, targets, COUNTS, resamples=20)["total"]
    parts = [evaluate(x, targets, COUNTS).total - evaluate(b, targets, COUNTS).total for x in (a, a + b)]
    np.testing.assert_allclose(result.per_seed, parts, rtol=1e-9)
    assert result.estimate == pytest.approx(np.mean(parts))
    assert bootstrap(np.stack([a, b]), targets, COUNTS, resamples=20)["total"].per_seed == (
        bootstrap([a, b], targets, COUNTS, resamples=20)["total"].per_seed
    )


def test_a_group_without_classes_has_no_interval() -> None:
    a, _, targets = sample()
    result = bootstrap(a, targets, [300] * 6, resamples=20)
    assert math.isnan(result["tail"].low)
    assert not math.isnan(result["total"].low)
    assert not result["tail"].gains
    targets[:, 5] = False  # without positives: left out, as by evaluate
    assert bootstrap(a, targets, COUNTS, resamples=20)["tail"].estimate == evaluate(a, targets, COUNTS).tail


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"resamples": 1}, "at least 2 resamples"),
        ({"level": 1.0}, "between 0 and 1"),
        ({"readout": "x"}, "readout must be"),
    ],
)
def test_impossible_options_are_told(options: dict[str, Any], told: str) -> None:
    a, _, targets = sample()
    with pytest.raises(ConfigError, match=told):
        bootstrap(a, targets, COUNTS, **options)


def test_what_cannot_be_paired_is_told() -> None:
    a, b, targets = sample()
    with pytest.raises(ConfigError, match="cannot pair 2 seeds of A with 3 of B"):
        paired_bootstrap([a, a], [b, b, b], targets, COUNTS)
    with pytest.raises(ConfigError, match="group must be total"):
        gains(a, b, targets, COUNTS, group="rare")
    with pytest.raises(ConfigError, match="shape of scores"):
        paired_bootstrap(a, b[:, :5], targets, COUNTS)
    with pytest.raises(ConfigError, match="6 training counts"):
        bootstrap(a, targets, COUNTS[:5])


def test_two_thousand_resamples_take_seconds() -> None:
    rng = np.random.default_rng(0)
    targets = rng.random((2000, 20)) < np.linspace(0.03, 0.4, 20)
    start = time.process_time()
    paired_bootstrap(rng.normal(size=targets.shape) + targets, rng.normal(size=targets.shape), targets, [50] * 20)
    assert time.process_time() - start < 10  # 1.3 seconds on an idle core


def true_ap(shift: float, prevalence: float) -> float:
    """AP on infinitely many images: the precision, averaged over the scores of positives, N(shift, 1)."""
    scores = norm.ppf((np.arange(100_000) + 0.5) / 100_000) + shift
    hits, false_alarms = prevalence * norm.sf(scores - shift), (1 - prevalence) * norm.sf(scores)
    return float(np.mean(hits / (hits + false_alarms)))


def coverage(
    *, positives: int, classes: int, n_images: int = 1000, paired: bool = False, simulations: int, resamples: int = 200,
    seeds: int = 1,
) -> float:  # fmt: skip
    """Share of 95 % intervals that contain the true mAP (or difference of mAPs), in percent."""
    rng = np.random.default_rng(positives + classes)
    shifts, prevalence = np.linspace(1.0, 2.5, classes + 2)[1:-1], positives / n_images
    truth = np.mean([true_ap(s, prevalence) - paired * true_ap(s - 0.3, prevalence) for s in shifts])
    covered = 0
    for seed in range(simulations):
        targets = rng.random((n_images, classes)) < prevalence
        shared, *own = rng.normal(size=(1 + 2 * seeds, n_images, classes))
        a, b = (
            [0.8 * shared + 0.6 * noise + s * targets for noise in noises]
            for noises, s in ((own[:seeds], shifts), (own[seeds:], shifts - 0.3))
        )
        arguments = (targets, [5] * classes)
        interval = (
            paired_bootstrap(a, b, *arguments, resamples=resamples, seed=seed)
            if paired
            else bootstrap(a, *arguments, resamples=resamples, seed=seed)
        )["total"]
        covered += interval.low <= 100 * truth <= interval.high
    return 100 * covered / simulations


@pytest.mark.parametrize(("classes", "paired"), [(1, False), (1, True), (10, False)])
def test_intervals_cover_the_truth(classes: int, paired: bool) -> None:
    """95 +- 2 % from 50 positives up, +- two standard errors of 200 simulations (10 classes, percentiles: 82 %)."""
    share = coverage(positives=50, classes=classes, n_images=500, paired=paired, simulations=200, resamples=64)
    assert abs(share - 95) < 2 + 2 * 1.54


@pytest.mark.nightly
@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize(("positives", "classes"), [(50, 1), (100, 1), (200, 1), (50, 5), (50, 20), (200, 20)])
def test_coverage_at_length(positives: int, classes: int, paired: bool) -> None:
    share = coverage(positives=positives, classes=classes, paired=paired, simulations=2000, resamples=500)
    assert abs(share - 95) < 2 + 2 * 0.49


@pytest.mark.nightly
def test_coverage_below_fifty_positives_is_tabulated(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {
        p: [coverage(positives=p, classes=c, paired=d, simulations=1000) for c in (1, 20) for d in (False, True)]
        for p in (5, 10, 20, 30, 50)
    }
    with capsys.disabled():
        print("\npositives: coverage in % of 1 class, its difference, 20 classes, their difference")
        for positives, row in rows.items():
            print(positives, *(f"{share:.1f}" for share in row))
    assert rows[50] > [90.0] * 4


@pytest.mark.nightly
@pytest.mark.parametrize(("classes", "simulations"), [(1, 500), (20, 100)])
def test_coverage_of_three_seeds_is_tabulated(
    classes: int, simulations: int, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"classes": classes, "simulations": simulations, "seeds": 3}
    rows = {p: [coverage(positives=p, paired=paired, **options) for paired in (False, True)] for p in (10, 20, 50, 100)}
    with capsys.disabled():
        print(f"\nthree seeds, {classes} classes, positives: coverage in % of mAP and of its difference")
        for positives, row in rows.items():
            print(positives, *(f"{share:.1f}" for share in row))
    error = 100 * math.sqrt(0.05 * 0.95 / simulations)
    assert all(abs(share - 95) < 2 + 2 * error for p in (50, 100) for share in rows[p])
