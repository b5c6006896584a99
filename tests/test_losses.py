"""Losses against slow float64 loops written from their formulas, and the promises that every loss keeps."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from hpdval.errors import ConfigError
from hpdval.losses import LOSSES, build_loss

N_TRAIN = 200
COUNTS = [150, 40, 12, 3, 90]
TARGETS = torch.tensor(
    [[1, 0, 0, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 1, 0], [0, 0, 1, 0, 0], [1, 0, 0, 0, 0]]
)
LOGITS = 3.0 * torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
DB = {"tau": 0.1, "beta": 10.0, "mu": 0.3, "kappa": 0.05, "lam": 5.0}


def softplus(x: float) -> float:
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


# One element of each loss: (logit, target, class i, labels of the image) -> number, straight from method section 5.


def bce_element(s: float, y: int, i: int, labels: list[int]) -> float:
    return y * softplus(-s) + (1 - y) * softplus(s)


def focal_element(s: float, y: int, i: int, labels: list[int], gamma: float = 2.0) -> float:
    loss = bce_element(s, y, i, labels)
    return 2 * (-math.expm1(-loss)) ** gamma * loss


def asl_element(s: float, y: int, i: int, labels: list[int], gamma_pos: float = 0.0, gamma_neg: float = 4.0) -> float:
    p = sigmoid(s)
    shifted = max(p - 0.05, 0.0)
    positive = (1 - p) ** gamma_pos * math.log(max(p, 1e-8))
    negative = shifted**gamma_neg * math.log(max(1 - shifted, 1e-8))
    return -(y * positive + (1 - y) * negative)


def db_element(
    s: float,
    y: int,
    i: int,
    labels: list[int],
    nu: str = "released",
    denominator: str = "positives",
    w: Callable[[int], float] = lambda i: 1.0,
    focal: bool = False,
    weight: Callable[[int], float] | None = None,
    kappa: float = DB["kappa"],
    lam: float = DB["lam"],
) -> float:
    offset = kappa * math.log(N_TRAIN / COUNTS[i] - 1) / (lam if nu == "released" else 1.0)
    z = s - offset
    chosen = [j for j in range(5) if labels[j] or denominator == "all"]
    if weight is not None:
        r = weight(i)
    elif chosen:
        r = DB["tau"] + sigmoid(DB["beta"] * ((1 / COUNTS[i]) / sum(1 / COUNTS[j] for j in chosen) - DB["mu"]))
    else:
        r = DB["tau"] + 1.0
    inner = softplus(-w(i) * z) if y else softplus(lam * z)
    factor = 2 * (-math.expm1(-inner)) ** 2 if focal else 1.0
    return factor * r * (inner if y else inner / lam)


def ldam_element(s: float, y: int, i: int, labels: list[int]) -> float:
    margin = 0.5 * COUNTS[i] ** -0.25 / max(n**-0.25 for n in COUNTS)
    return bce_element(s - margin * y, y, i, labels)


def logit_adjustment_element(s: float, y: int, i: int, labels: list[int]) -> float:
    return bce_element(s + math.log(COUNTS[i] / (N_TRAIN - COUNTS[i])), y, i, labels)


def frequency(i: int) -> float:
    return COUNTS[i] / max(COUNTS)


def effective(i: int) -> float:
    return 10 * (1 - 0.9) / (1 - 0.9 ** COUNTS[i])


@dataclass(frozen=True)
class Case:
    """A loss of ours, its constants, and the loop it must equal."""

    name: str
    element: Callable[..., float]
    constants: dict[str, Any]
    options: dict[str, Any]  # of the loop


CASES = {
    "bce": Case("bce", bce_element, {}, {}),
    "multilabel_soft_margin": Case("multilabel_soft_margin", bce_element, {}, {}),
    "focal": Case("focal", focal_element, {}, {}),
    "focal_gamma_3": Case("focal", focal_element, {"gamma": 3.0}, {"gamma": 3.0}),
    "asl": Case("asl", asl_element, {}, {}),
    "asl_2_1": Case("asl", asl_element, {"gamma_pos": 2.0, "gamma_neg": 1.0}, {"gamma_pos": 2.0, "gamma_neg": 1.0}),
    "cb_focal": Case("cb_focal", db_element, {}, {"weight": effective, "focal": True, "kappa": 0.0, "lam": 1.0}),
    "cb_focal_nu_lambda": Case(
        "cb_focal", db_element, {"kappa": 0.05, "lam": 5.0}, {"weight": effective, "focal": True}
    ),
    "ldam": Case("ldam", ldam_element, {}, {}),
    "logit_adjustment": Case("logit_adjustment", logit_adjustment_element, {}, {}),
    "db": Case("db", db_element, DB, {}),
    "db_printed": Case("db", db_element, {**DB, "nu": "printed"}, {"nu": "printed"}),
    "db_all": Case("db", db_element, {**DB, "denominator": "all"}, {"denominator": "all"}),
    "db_pos_scale": Case("db", db_element, {**DB, "pos_scale": 10.0}, {"w": lambda i: 10.0}),
    "db_focal": Case("db_focal", db_element, DB, {"focal": True}),
    "db_star": Case("db_star", db_element, DB, {"nu": "printed", "w": frequency}),
    "db_star_all": Case(
        "db_star", db_element, {**DB, "denominator": "all"}, {"nu": "printed", "w": frequency, "denominator": "all"}
    ),
    "db_star_constant": Case("db_star", db_element, {**DB, "weights": 5.0}, {"nu": "printed", "w": lambda i: 5.0}),
}


def built(case: Case, counts: Any = None, **more: Any) -> torch.nn.Module:
    return build_loss(case.name, COUNTS if counts is None else counts, N_TRAIN, **case.constants, **more)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_the_formula(case: Case) -> None:
    labels = TARGETS.tolist()
    expected = [
        [case.element(LOGITS[b, i].item(), labels[b][i], i, labels[b], **case.options) for i in range(5)]
        for b in range(6)
    ]
    np.testing.assert_allclose(built(case, reduction="none")(LOGITS, TARGETS), expected, rtol=1e-12)
    np.testing.assert_allclose(built(case)(LOGITS, TARGETS), np.mean(expected), rtol=1e-12)
    np.testing.assert_allclose(built(case, reduction="sum")(LOGITS, TARGETS), np.sum(expected), rtol=1e-12)


def test_cases_cover_every_loss() -> None:
    assert {case.name for case in CASES.values()} == set(LOSSES)


@pytest.mark.parametrize("name", ["db_focal", "db_star", "cb_focal", "focal"])
def test_scalar_focal_is_one_factor_for_the_batch(name: str) -> None:
    """2 (1 - e^-mean(l))^2 mean(W l): the mean of l is taken without the weights and without 1 / lambda."""
    loss = build_loss(name, COUNTS, N_TRAIN, focal="scalar")(LOGITS, TARGETS)
    plain = build_loss(name, COUNTS, N_TRAIN, focal="none")(LOGITS, TARGETS)
    rebalanced = name.startswith("db")
    lam = DB["lam"] if rebalanced else 1.0
    kappa = {"db_focal": DB["kappa"] / lam, "db_star": DB["kappa"]}.get(name, 0.0)
    inner = []
    for row, labels in zip(LOGITS.tolist(), TARGETS.tolist(), strict=True):
        for i, (s, y) in enumerate(zip(row, labels, strict=True)):
            z = s - kappa * math.log(N_TRAIN / COUNTS[i] - 1)
            w = frequency(i) if name == "db_star" else 1.0
            inner.append(softplus(-w * z) if y else softplus(lam * z))
    np.testing.assert_allclose(loss, 2 * (1 - math.exp(-np.mean(inner))) ** 2 * plain, rtol=1e-12)


def test_detached_asl_has_the_value_of_asl_and_another_gradient() -> None:
    gradients = []
    for detach in (False, True):
        logits = LOGITS.clone().requires_grad_()
        loss = build_loss("asl", COUNTS, N_TRAIN, detach_focal=detach)(logits, TARGETS)
        gradients.append((loss.item(), torch.autograd.grad(loss, logits)[0]))
    assert gradients[0][0] == gradients[1][0]
    negative = TARGETS == 0
    assert torch.equal(gradients[0][1][~negative], gradients[1][1][~negative])  # gamma_pos = 0: nothing to detach
    assert not torch.allclose(gradients[0][1][negative], gradients[1][1][negative])


ALL = {**CASES, "db_scalar": Case("db_focal", db_element, {**DB, "focal": "scalar"}, {})}
every_loss = pytest.mark.parametrize("case", ALL.values(), ids=ALL)


@every_loss
def test_gradient_is_the_finite_difference(case: Case) -> None:
    assert torch.autograd.gradcheck(lambda s: built(case)(s, TARGETS), LOGITS.clone().requires_grad_())


@every_loss
def test_doubling_the_batch_changes_nothing(case: Case) -> None:
    loss = built(case)
    doubled = loss(torch.cat([LOGITS, LOGITS]), torch.cat([TARGETS, TARGETS]))
    torch.testing.assert_close(doubled, loss(LOGITS, TARGETS), rtol=1e-13, atol=0)


@every_loss
@pytest.mark.parametrize("enabled", [True, False])
def test_nothing_is_mutated_and_the_grad_mode_stays(case: Case, enabled: bool) -> None:
    logits, targets, counts = LOGITS.clone(), TARGETS.clone(), torch.tensor(COUNTS)
    with torch.set_grad_enabled(enabled):
        loss = built(case, counts)(logits.requires_grad_(), targets)
        assert torch.is_grad_enabled() is enabled
        assert loss.requires_grad is enabled
    assert torch.equal(logits, LOGITS)
    assert torch.equal(targets, TARGETS)
    assert counts.tolist() == COUNTS


@every_loss
@pytest.mark.parametrize("size", [0.0, 1e4])
@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("sign", [-1, 1])
def test_extreme_logits_stay_finite(case: Case, size: float, label: int, sign: int) -> None:
    logits = torch.full((2, 5), sign * size, requires_grad=True)
    loss = built(case)(logits, torch.full((2, 5), label))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


@every_loss
@pytest.mark.parametrize("counts", [[0, 40, 12, 3, 90], [150, 1, 12, 3, 90], [200, 40, 12, 3, 90], [0, 0, 200, 1, 199]])
def test_counts_of_none_and_all_are_clipped_with_one_warning(case: Case, counts: list[int]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss = built(case, counts)
        value = loss(LOGITS, TARGETS)
        loss(LOGITS, TARGETS)
    needed = loss.class_counts is not None and (0 in counts or N_TRAIN in counts)
    assert [w.category for w in caught] == [UserWarning] * needed
    assert torch.isfinite(value)
    expected = built(case, np.clip(counts, 1, N_TRAIN - 1))(LOGITS, TARGETS)
    assert value == expected


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(case: Case, dtype: torch.dtype) -> None:
    logits = LOGITS.to(dtype)
    loss = built(case)(logits, TARGETS)
    assert loss.dtype == torch.float32
    assert loss == built(case)(logits.float(), TARGETS)


@every_loss
def test_targets_may_be_of_any_type(case: Case) -> None:
    values = {built(case)(LOGITS, TARGETS.to(dtype)).item() for dtype in (torch.uint8, torch.bool, torch.float32)}
    assert len(values) == 1


def test_an_image_without_labels_has_the_largest_weight() -> None:
    """r^ = tau + 1, so a logit of 0 costs 1.1 log(2) / lambda per class without a bias."""
    loss = build_loss("db", COUNTS, N_TRAIN, kappa=0.0)(torch.zeros(1, 5, dtype=torch.float64), torch.zeros(1, 5))
    assert loss.item() == pytest.approx(1.1 * math.log(2) / 5.0, rel=1e-12)


def test_db_star_hardly_pulls_on_rare_positives() -> None:
    """What the paper prints: the gradient of the rarest class's positive is w_i = 3 / 150 of a plain one at z = 0."""
    logits = torch.zeros(1, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[0, 0, 0, 1, 0]])
    star, plain = (
        torch.autograd.grad(build_loss(name, COUNTS, N_TRAIN, kappa=0.0)(logits, targets), logits)[0][0, 3]
        for name in ("db_star", "db")
    )
    assert star.item() == pytest.approx(plain.item() * 3 / 150, rel=1e-12)


@dataclass(frozen=True)
class SomeConfig:
    name: str = "db_focal"
    mu: float = 0.3
    lam: float = 5.0
    nu: str | None = None


def test_a_config_gives_name_and_constants() -> None:
    by_config = build_loss(SomeConfig(lam=2.0), COUNTS, N_TRAIN)(LOGITS, TARGETS)
    assert by_config == build_loss("db_focal", COUNTS, N_TRAIN, lam=2.0)(LOGITS, TARGETS)
    assert build_loss(SomeConfig(name="bce"), COUNTS, N_TRAIN).constants == {}
    with pytest.raises(ConfigError, match=r"bce.*'lam'"):
        build_loss(SomeConfig(name="bce", lam=2.0), COUNTS, N_TRAIN)


@pytest.mark.parametrize(
    ("name", "counts", "constants", "told"),
    [
        ("dbl", COUNTS, {}, "must be one of bce"),
        ("bce", COUNTS, {"lam": 2.0}, "no constant 'lam'"),
        ("db", COUNTS, {"nu": "paper"}, "nu must be one of released, printed"),
        ("db", COUNTS, {"denominator": "some"}, "denominator must be"),
        ("db", COUNTS, {"weights": "rare"}, "weights must be"),
        ("db", COUNTS, {"focal": "both"}, "focal must be"),
        ("db", COUNTS, {"lam": 0.0}, "lam must be > 0"),
        ("focal", COUNTS, {"gamma": 0.5}, "gamma 0 or >= 1"),
        ("asl", COUNTS, {"gamma_neg": -1.0}, "gamma_neg must be"),
        ("asl", COUNTS, {"reduction": "max"}, "reduction must be"),
        ("db", [1, -1], {}, "whole numbers >= 0"),
        ("db", [1.5, 2], {}, "whole numbers >= 0"),
        ("db", [[1, 2]], {}, "whole numbers >= 0"),
    ],
)
def test_what_cannot_be_is_told(name: str, counts: Any, constants: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as error:
        build_loss(name, counts, N_TRAIN, **constants)
    assert "\n" not in str(error.value)


def test_shapes_that_do_not_fit_are_told() -> None:
    with pytest.raises(ConfigError, match=r"\(6, 5\) and \(5, 5\)"):
        build_loss("bce", COUNTS, N_TRAIN)(LOGITS, TARGETS[:5])
    with pytest.raises(ConfigError, match="one for each class"):
        build_loss("db", COUNTS[:4], N_TRAIN)(LOGITS, TARGETS)
    with pytest.raises(ConfigError, match="at least 2"):
        build_loss("db", [1], 1)


def test_the_counts_move_with_the_module_and_stay_out_of_checkpoints() -> None:
    loss = build_loss("db", COUNTS, N_TRAIN)
    assert loss.to("meta").class_counts.device.type == "meta"
    assert not build_loss("db", COUNTS, N_TRAIN).state_dict()
    assert build_loss("db", COUNTS, N_TRAIN).half().class_counts.tolist() == COUNTS
