"""LMPT's class-specific embedding loss: the repaired reference code, a slow loop, and which way each form pulls."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hpdval.errors import ConfigError
from hpdval.losses.class_embedding import class_embedding_loss, summed_distance

COUNTS = [90, 12, 3, 1, 40]
FORMS = ("corrected", "released")
every_form = pytest.mark.parametrize("form", FORMS)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def near(places: int) -> tuple[Tensor, Tensor, Tensor]:
    """Captions (6, L, 4), prompts (5, L, 4) and targets (6, 5), with distances on both sides of the margin."""
    centre = normal(1, places, 4, seed=0)
    captions, prompts = (
        centre + torch.linspace(0.02, 0.6, n, dtype=torch.float64)[:, None, None] * normal(n, places, 4, seed=n)
        for n in (6, 5)
    )
    targets = torch.rand(6, 5, generator=torch.Generator().manual_seed(3)) < 0.4
    return captions, prompts, targets.long()


def slow(
    captions: Any, prompts: Any, targets: Any, counts: list[float] | None, margin: float, gamma: float, form: str
) -> tuple[float, list[list[float]]]:
    """The loss by loops over numbers, and the distances."""
    total, distances = 0.0, []
    for caption, labels in zip(captions.tolist(), targets.tolist(), strict=True):
        distances.append([])
        for i, prompt in enumerate(prompts.tolist()):
            distance = 0.0
            for a, b in zip(caption, prompt, strict=True):
                cosine = sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))
                distance += 1 - cosine
            distances[-1].append(distance)
            m, w = margin, 1.0
            if counts is not None:
                m, w = margin / counts[i] ** 0.25, counts[i] ** -gamma / sum(n**-gamma for n in counts)
            if form == "released":
                total += w * max(m - distance * (2 * labels[i] - 1), 0.0)
            else:
                total += w * (distance if labels[i] else max(m - distance, 0.0))
    return total / targets.numel(), distances


@every_form
@pytest.mark.parametrize("counts", [COUNTS, None])
@pytest.mark.parametrize("places", [1, 3])
@pytest.mark.parametrize(("margin", "gamma"), [(0.2, 2.0), (1.5, 0.5), (0.2, 0.0)])
def test_equals_the_formula(form: str, counts: list[float] | None, places: int, margin: float, gamma: float) -> None:
    captions, prompts, targets = near(places)
    expected, distances = slow(captions, prompts, targets, counts, margin, gamma, form)
    loss = class_embedding_loss(captions, prompts, targets, counts, margin=margin, gamma=gamma, form=form)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(summed_distance(captions, prompts), distances, rtol=1e-12)
    assert min(map(min, distances)) < margin, "some are within the margin"
    if (margin, counts) == (0.2, None):
        assert max(map(max, distances)) > margin, "and some are not"


@every_form
def test_the_defaults_are_those_of_lmpt_and_one_place_needs_no_axis(form: str) -> None:
    captions, prompts, targets = near(1)
    whole = class_embedding_loss(captions, prompts, targets, COUNTS, margin=0.2, gamma=2.0, form=form)
    assert class_embedding_loss(captions[:, 0], prompts[:, 0], targets, COUNTS, form=form) == whole
    assert class_embedding_loss(captions, prompts, targets, COUNTS) == class_embedding_loss(
        captions, prompts, targets, COUNTS, form="corrected"
    )


# -- the reference code ------------------------------------------------------------------------------------------------

VARIANTS = ("counts", "freq", "noweight")


@pytest.fixture(scope="module")
def arrays(golden: Path) -> dict[str, np.ndarray]:
    with np.load(golden / "lmpt_csel_fixed.npz", allow_pickle=False) as file:
        return dict(file)


def reference(arrays: dict[str, np.ndarray], variant: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    counts = torch.from_numpy(arrays["class_counts"])
    given = {"counts": counts, "freq": counts.double() / counts.sum(), "noweight": None}[variant]
    prompts = torch.from_numpy(arrays["prompt_emb"]).to(dtype).requires_grad_()
    captions, labels = torch.from_numpy(arrays["caption_emb"]).to(dtype), torch.from_numpy(arrays["labels"])
    constants = {name: float(arrays[name]) for name in ("margin", "gamma")}
    loss = class_embedding_loss(captions, prompts, labels, given, form="released", **constants)
    (gradient,) = torch.autograd.grad(loss, prompts)
    return loss.detach(), gradient


@pytest.mark.shared
def test_every_variant_of_the_file_is_known(arrays: dict[str, np.ndarray]) -> None:
    assert {key.split("__")[0] for key in arrays if "__" in key} == set(VARIANTS)


@pytest.mark.shared
@pytest.mark.parametrize("variant", VARIANTS)
def test_released_in_float64(arrays: dict[str, np.ndarray], variant: str) -> None:
    loss, gradient = reference(arrays, variant, torch.float64)
    expected = arrays[f"{variant}__grad_prompt"]  # stored in float32
    np.testing.assert_allclose(loss, arrays[f"{variant}__loss"], rtol=1e-9)
    np.testing.assert_allclose(gradient, expected, rtol=1e-7, atol=1e-9 * np.abs(expected).max())


@pytest.mark.shared
@pytest.mark.parametrize("variant", VARIANTS)
def test_released_in_float32(arrays: dict[str, np.ndarray], variant: str) -> None:
    loss, gradient = reference(arrays, variant, torch.float32)
    expected = arrays[f"{variant}__grad_prompt"]
    assert loss.dtype == torch.float32
    np.testing.assert_allclose(loss, arrays[f"{variant}__loss"], rtol=1e-5)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.shared
def test_distances_of_the_file(arrays: dict[str, np.ndarray]) -> None:
    captions, prompts = (torch.from_numpy(arrays[f"{name}_emb"]).double() for name in ("caption", "prompt"))
    expected = arrays["dist_1_minus_cos"].astype(np.float64).sum(2)
    np.testing.assert_allclose(summed_distance(captions, prompts), expected, rtol=1e-6)


# -- gradients ---------------------------------------------------------------------------------------------------------


@every_form
@pytest.mark.parametrize("counts", [COUNTS, None])
def test_gradient_is_the_finite_difference(form: str, counts: list[float] | None) -> None:
    captions, prompts, targets = near(2)
    assert torch.autograd.gradcheck(
        lambda c, p: class_embedding_loss(c, p, targets, counts, margin=0.5, form=form),
        (captions.requires_grad_(), prompts.requires_grad_()),
    )


def step(form: str, label: int, angle: float) -> float:
    """Return how much farther from its caption a prompt is after a step downhill; they begin ``angle`` apart."""
    caption = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    prompt = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64, requires_grad=True)
    loss = class_embedding_loss(caption, prompt, torch.tensor([[label]]), None, form=form)
    (gradient,) = torch.autograd.grad(loss, prompt)
    with torch.no_grad():
        return (summed_distance(caption, prompt - 0.01 * gradient) - summed_distance(caption, prompt)).item()


NEAR, FAR = 0.3, 1.0  # radians: distances of 0.045 and 0.46, on either side of the margin of 0.2


def test_corrected_pulls_positives_and_pushes_near_negatives() -> None:
    assert step("corrected", 1, NEAR) < 0
    assert step("corrected", 1, FAR) < 0
    assert step("corrected", 0, NEAR) > 0
    assert step("corrected", 0, FAR) == 0


def test_released_has_the_opposite_sign() -> None:
    """As the released code has it: a positive that is near is pushed away, and a negative is pulled closer."""
    assert step("released", 1, NEAR) > 0
    assert step("released", 1, FAR) == 0
    assert step("released", 0, NEAR) < 0
    assert step("released", 0, FAR) < 0


def test_training_by_the_corrected_form_sorts_prompts_and_by_the_released_form_does_the_reverse() -> None:
    captions, start, targets = normal(6, 4, seed=1), normal(5, 4, seed=2), near(1)[2]
    distances = {}
    for form in FORMS:
        prompts = start.clone().requires_grad_()
        for _ in range(200):
            loss = class_embedding_loss(captions, prompts, targets, None, margin=1.0, form=form)
            (gradient,) = torch.autograd.grad(loss, prompts)
            prompts = (prompts - 0.5 * gradient).detach().requires_grad_()
        found = summed_distance(captions, prompts.detach())
        distances[form] = (found[targets == 0].mean() - found[targets == 1].mean()).item()
    before = summed_distance(captions, start)
    gap = (before[targets == 0].mean() - before[targets == 1].mean()).item()
    assert distances["corrected"] > gap + 0.1
    assert distances["released"] < gap - 0.1


@every_form
def test_the_gradient_is_of_rare_classes_first(form: str) -> None:
    captions, prompts = torch.eye(2, 3).expand(2, 3), torch.ones(2, 3, requires_grad=True)
    loss = class_embedding_loss(captions, prompts, torch.tensor([[0, 0], [1, 1]]), [10, 1], margin=1.0, form=form)
    (gradient,) = torch.autograd.grad(loss, prompts)
    assert gradient[0].norm() < gradient[1].norm() / 90  # (1 / 10)^gamma


# -- promises ----------------------------------------------------------------------------------------------------------


@every_form
def test_lengths_batches_and_types_do_not_matter(form: str) -> None:
    captions, prompts, targets = near(3)
    loss = class_embedding_loss(captions, prompts, targets, COUNTS, form=form)
    scaled = class_embedding_loss(7 * captions, 0.01 * prompts, targets, COUNTS, form=form)
    torch.testing.assert_close(scaled, loss, rtol=1e-12, atol=0)
    doubled = class_embedding_loss(torch.cat([captions] * 2), prompts, torch.cat([targets] * 2), COUNTS, form=form)
    torch.testing.assert_close(doubled, loss, rtol=1e-13, atol=0)
    for dtype in (torch.bool, torch.uint8, torch.float32):
        assert class_embedding_loss(captions, prompts, targets.to(dtype), COUNTS, form=form) == loss
    for counts in (np.array(COUNTS), torch.tensor(COUNTS), torch.tensor(COUNTS, dtype=torch.float32)):
        torch.testing.assert_close(
            class_embedding_loss(captions, prompts, targets, counts, form=form), loss, rtol=1e-12, atol=0
        )


@every_form
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_also_under_autocast(form: str, dtype: torch.dtype) -> None:
    captions, prompts, targets = near(3)
    captions, prompts = captions.to(dtype), prompts.to(dtype)
    expected = class_embedding_loss(captions.float(), prompts.float(), targets, COUNTS, form=form)
    assert class_embedding_loss(captions, prompts, targets, COUNTS, form=form) == expected
    with torch.autocast("cpu", torch.bfloat16):
        assert class_embedding_loss(captions, prompts, targets, COUNTS, form=form) == expected
    assert expected.dtype == torch.float32


@every_form
@pytest.mark.parametrize("enabled", [True, False])
def test_nothing_is_mutated_and_the_grad_mode_stays(form: str, enabled: bool) -> None:
    given = near(2)
    captions, prompts, targets = (one.clone() for one in given)
    counts = torch.tensor(COUNTS)
    with torch.set_grad_enabled(enabled):
        loss = class_embedding_loss(captions, prompts.requires_grad_(), targets, counts, form=form)
        assert torch.is_grad_enabled() is enabled
        assert loss.requires_grad is enabled
    assert all(torch.equal(a, b) for a, b in zip((captions, prompts, targets), given, strict=True))
    assert counts.tolist() == COUNTS


@every_form
def test_padding_of_zeros_is_at_distance_one_and_stays_finite(form: str) -> None:
    captions, prompts, targets = (one.clone() for one in near(3))
    captions[0, 1:] = 0
    prompts[1] = 0
    prompts.requires_grad_()
    np.testing.assert_allclose(summed_distance(captions, prompts).detach()[:, 1], 3.0)
    loss = class_embedding_loss(captions, prompts, targets, COUNTS, margin=9.0, form=form)
    (gradient,) = torch.autograd.grad(loss, prompts)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() < 10


@pytest.mark.parametrize("counts", [[90, 0, 3, 1, 0], [90, 0, 30, 20, 0]])
def test_classes_of_none_count_as_one_with_a_warning(counts: list[int]) -> None:
    captions, prompts, targets = near(2)
    expected = class_embedding_loss(captions, prompts, targets, [max(n, 1) for n in counts])
    with pytest.warns(UserWarning, match=r"2 class counts \(class 1: 0, ...\) were clipped") as caught:
        assert class_embedding_loss(captions, prompts, targets, counts) == expected
    assert [Path(w.filename).name for w in caught] == [Path(__file__).name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a tensor is clipped silently
        assert class_embedding_loss(captions, prompts, targets, torch.tensor(counts)) == expected


def test_shares_of_none_count_as_the_smallest_share() -> None:
    captions, prompts, targets = near(2)
    shares = torch.tensor([0.7, 0.0, 0.2, 0.1, 0.0], dtype=torch.float64)
    expected = class_embedding_loss(captions, prompts, targets, shares.clamp(min=0.1))
    assert class_embedding_loss(captions, prompts, targets, shares) == expected


def test_weights_of_any_counts_are_finite() -> None:
    """n^-gamma of a small share overflows float32, of a large count it vanishes; their quotients do neither."""
    captions, prompts, targets = (one.float() if one.is_floating_point() else one for one in near(2))
    for scale in (1e-12, 1.0, 1e12):
        for gamma in (2.0, 6.0):
            counts = scale * torch.tensor(COUNTS, dtype=torch.float64)
            loss = class_embedding_loss(captions, prompts, targets, counts, gamma=gamma)
            assert torch.isfinite(loss)
            assert loss > 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"form": "wrong"}, "form must be one of corrected, released"),
        ({"margin": 0.0}, "margin must be > 0"),
        ({"margin": math.nan}, "margin must be > 0"),
        ({"gamma": -1.0}, "gamma >= 0"),
        ({"class_counts": [1, 2]}, r"class_counts must be \(5,\), one for each class, got \(2,\)"),
        ({"class_counts": [1, 2, -1, 1, 1]}, "numbers >= 0"),
        ({"class_counts": [1, 2, math.nan, 1, 1]}, "numbers >= 0"),
        ({"class_counts": [1, 2, math.inf, 1, 1]}, "finite"),
        ({"captions": torch.ones(6, 3, 4)}, r"must fit and not be empty, got \(6, 3, 4\), \(5, 2, 4\), \(6, 5\)"),
        ({"captions": torch.ones(6, 8)}, "must fit"),
        ({"captions": torch.ones(0, 2, 4), "targets": torch.ones(0, 5)}, "not be empty"),
        ({"targets": torch.ones(5, 6)}, "must fit"),
        ({"captions": torch.ones(6), "prompts": torch.ones(5)}, "must fit"),
    ],
)
def test_what_cannot_be_is_told(changes: dict[str, Any], told: str) -> None:
    captions, prompts, targets = near(2)
    given = {"captions": captions, "prompts": prompts, "targets": targets, "class_counts": COUNTS} | changes
    with pytest.raises(ConfigError, match=told) as caught:
        class_embedding_loss(**given)
    assert "\n" not in str(caught.value)


def test_nothing_of_every_pair_and_place_is_made() -> None:
    """The largest tensor that autograd keeps is one of the inputs', not B x C x L x D nor B x C x L."""
    captions, prompts = torch.ones(32, 20, 16, requires_grad=True), torch.ones(30, 20, 16, requires_grad=True)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        class_embedding_loss(captions, prompts, torch.ones(32, 30), list(range(1, 31))).backward()
    assert max(kept) <= captions.numel()
