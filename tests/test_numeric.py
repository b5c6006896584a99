"""Numeric modes: what is float32 stays exact, what is bfloat16 stays close, and gradients reach float32 weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import TINY

import hpdval
from hpdval.config import PRECISIONS
from hpdval.data.store import ImageStore
from hpdval.models import Clip, load_clip
from hpdval.models.numeric import AUTOCAST, image_encoder, numeric_mode


@pytest.fixture
def clip(tmp_path: Path) -> Clip:
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    return load_clip(tmp_path / "tiny.json", seed=0)


IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_every_mode_has_its_arithmetic() -> None:
    assert {"float32", *AUTOCAST} == set(PRECISIONS)
    assert numeric_mode("auto", torch.device("cpu")) == "float32"
    assert all(numeric_mode(name, torch.device("cpu")) == name for name in PRECISIONS)


def test_float32_is_the_model_itself(clip: Clip) -> None:
    features, plain = image_encoder(clip.visual, "float32")(IMAGES), clip.encode_image(IMAGES)
    assert torch.equal(features.cls, plain.cls)
    assert torch.equal(features.patches, plain.patches)


@pytest.mark.parametrize("precision", ["bfloat16", "pure-bfloat16", "float16"])
@pytest.mark.parametrize("learns", [True, False])
def test_half_precision_is_close_and_its_gradient_too(clip: Clip, precision: str, learns: bool) -> None:
    exact, half = copy.deepcopy(clip).requires_grad_(learns), clip.requires_grad_(learns)
    first = image_encoder(exact.visual, "float32")(IMAGES)
    second = image_encoder(half.visual, precision)(IMAGES)
    assert second.patches.dtype == (torch.float16 if precision == "float16" else torch.bfloat16)
    assert (first.patches - second.patches).abs().max() < 0.03 * first.patches.abs().max()
    if not learns:
        return
    for features in (first, second):
        (features.cls.float().square().sum() + features.patches.float().square().mean()).backward()
    for name, parameter in half.visual.named_parameters():
        wanted = exact.visual.get_parameter(name).grad
        assert parameter.dtype == parameter.grad.dtype == torch.float32, name  # type: ignore[union-attr]
        assert (parameter.grad - wanted).norm() < 0.1 * wanted.norm() + 1e-4, name  # type: ignore[operator, union-attr]


def test_a_compiled_encoder_gives_the_same_features(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = image_encoder(clip.visual, "pure-bfloat16")(IMAGES)
    compiled: list[object] = []
    original = torch.compile

    def traced(function: object) -> object:  # traces as compiling does, without a C++ compiler
        compiled.append(function)
        return original(function, backend="eager")  # type: ignore[call-overload]

    monkeypatch.setattr(torch, "compile", traced)
    features = image_encoder(clip.visual, "pure-bfloat16", compiled=True)(IMAGES)
    assert len(compiled) == 1
    assert torch.allclose(features.patches, plain.patches, rtol=0.02, atol=0.02)


def test_encoders_in_bfloat16_stay_within_a_tenth_of_a_point() -> None:
    """Zero-shot on test pictures of scenes-lt: what counts is the ranking."""
    data = hpdval.load_dataset("scenes-lt")
    test = data.test.subset(range(600))
    images = ImageStore.open(test, 64, mode="squash").images
    scorer = hpdval.zero_shot_scorer(load_clip("scenes"), data.classes)
    exact, half = (
        hpdval.evaluate(
            scorer.score_array(images, precision=precision, show=False), test.targets, data.class_counts
        ).total
        for precision in ("float32", "pure-bfloat16")
    )
    assert half != exact
    assert half == pytest.approx(exact, abs=0.1)
    scores = scorer.score_array(images[:3], precision="pure-bfloat16", show=False)
    assert scores.dtype == np.float32
