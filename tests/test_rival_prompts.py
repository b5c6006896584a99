"""Prompts of other methods (CoOp, CoCoOp, DualCoOp) against their formulas written out, class by class."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpdval.errors import ConfigError
from hpdval.models import Clip, ImageFeatures, conditional_prompts, context_init, load_clip
from hpdval.models.conditional_prompts import ConditionalPrompts
from hpdval.models.dual_prompts import DualPrompts, RegionPooling, region_pooling
from hpdval.models.prompts import PromptContexts

CLASSES = ["dog", "traffic_light", "tv_monitor"]
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2},
}


@pytest.fixture
def clip(tmp_path: Path) -> Clip:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return load_clip(tmp_path / "config.json").double().requires_grad_(False)


def features_of(batch: int, patches: int = 5, seed: int = 0) -> ImageFeatures:
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(batch, 1 + patches, 16, generator=generator, dtype=torch.double)
    return ImageFeatures(draw[:, 0], draw[:, 1:])


def cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def one_by_one(clip: Clip, contexts: Sequence[Tensor]) -> Tensor:
    """Features (C, D), each class through the tower by itself."""
    pairs = zip(contexts, CLASSES, strict=True)
    return torch.stack([clip.encode_prompts(context, [name])[0] for context, name in pairs])


# CoOp


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("init", ["normal", "a photo of a"])
def test_coop_has_one_context_for_all_or_for_each_class(clip: Clip, per_class: bool, init: str) -> None:
    prompts = PromptContexts(clip, CLASSES, tokens=4, init=init, seed=2, per_class=per_class)
    assert {name: tuple(p.shape) for name, p in prompts.named_parameters()} == {
        "contexts": (3, 4, 24) if per_class else (4, 24)
    }
    each = list(prompts.contexts) if per_class else [prompts.contexts] * 3
    assert torch.equal(each[0], each[1]) is (init != "normal" or not per_class)
    torch.testing.assert_close(prompts(clip), one_by_one(clip, each), rtol=0, atol=1e-12)
    gradient = torch.autograd.grad(prompts(clip)[1].sum(), prompts.contexts)[0]
    assert not per_class or [bool(g.any()) for g in gradient] == [False, True, False]

    assert prompts.moved() == {"context": 0.0}
    with torch.no_grad():
        prompts.contexts += 0.25
    assert prompts.moved() == pytest.approx({"context": 0.25})


def test_contexts_of_classes_are_seeded_small_and_not_views_of_the_embeddings(clip: Clip) -> None:
    context = context_init(clip, 16, seed=3, classes=20)
    assert context.shape == (20, 16, 24)
    assert 0.019 < float(context.std()) < 0.021
    assert torch.equal(context, context_init(clip, 16, seed=3, classes=20))
    words = context_init(clip, 4, "a photo of a", classes=2)
    words[0] += 1
    torch.testing.assert_close(words[0] - 1, words[1])
    assert torch.equal(words[1], context_init(clip, 4, "a photo of a"))


# CoCoOp


def scores_written_out(prompts: ConditionalPrompts, cls: Tensor, clip: Clip) -> NDArray[Any]:
    """Scores (B, C) in numpy, image by image; only the text tower is torch's."""
    state = {name: value.numpy() for name, value in prompts.state_dict().items()}
    scores = np.zeros((len(cls), len(CLASSES)))
    for i, image in enumerate(cls.numpy()):
        f = image / np.sqrt((image**2).sum())
        hidden = np.maximum(state["meta_net.0.weight"] @ f + state["meta_net.0.bias"], 0)
        pi = state["meta_net.2.weight"] @ hidden + state["meta_net.2.bias"]
        context = torch.from_numpy(np.stack([v + pi for v in state["context"]]))
        for j, name in enumerate(CLASSES):
            scores[i, j] = cosine(clip.encode_prompts(context, [name])[0].detach().numpy(), image)
    return scores


def test_cocoop_is_its_formula(clip: Clip) -> None:
    features = features_of(4)
    prompts = ConditionalPrompts(clip, CLASSES, reduction=4, seed=1)
    assert torch.equal(prompts.context, context_init(clip, 4, "a photo of a"))
    assert [layer.weight.shape for layer in prompts.meta_net if isinstance(layer, torch.nn.Linear)] == [
        (4, 16),
        (24, 4),
    ]
    with torch.no_grad():
        prompts.meta_net[2].weight *= 3
    scores = prompts(features, clip)
    assert scores.dtype == torch.float64
    expected = scores_written_out(prompts, features.cls, clip)
    assert np.abs(expected - expected[:1]).max() > 1e-3  # images differ, and so do their texts
    np.testing.assert_allclose(scores.detach(), expected, rtol=0, atol=1e-12)
    scaled = ImageFeatures(3 * features.cls, features.patches)
    torch.testing.assert_close(prompts(scaled, clip), scores, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 6, 7])
def test_cocoop_in_chunks_gives_the_same_scores_and_gradients(
    clip: Clip, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = features_of(5)
    prompts = ConditionalPrompts(clip, CLASSES, reduction=2)
    cotangent = features_of(5, seed=1).cls[:, :3]
    results = []
    for size in (1000, chunk):
        monkeypatch.setattr(conditional_prompts, "CHUNK", size)
        scores = prompts(features, clip)
        results.append([scores.detach(), *torch.autograd.grad((cotangent * scores).sum(), list(prompts.parameters()))])
        with torch.no_grad():
            results[-1].append(prompts(features, clip))
    assert all(float(part.abs().max()) > 1e-6 for part in results[0])
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)


def test_cocoop_keeps_no_more_for_the_gradient_than_a_chunk_has(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(images: int) -> int:
        sizes: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            scores = prompts(features_of(images), clip)
        assert scores.shape == (images, 3)
        return sum(sizes.values())

    prompts = ConditionalPrompts(clip, CLASSES)
    monkeypatch.setattr(conditional_prompts, "CHUNK", 1000)
    whole = kept(16)
    monkeypatch.setattr(conditional_prompts, "CHUNK", 6)
    assert kept(16) < whole / 10


def test_cocoop_is_rebuilt_from_its_arguments_and_state(clip: Clip) -> None:
    arguments = {"tokens": 3, "init": "normal", "reduction": 8, "seed": 4}
    state = torch.get_rng_state()
    prompts = ConditionalPrompts(clip, CLASSES, **arguments)  # type: ignore[arg-type]
    assert torch.equal(state, torch.get_rng_state())
    again = ConditionalPrompts(clip, CLASSES, **arguments)  # type: ignore[arg-type]
    assert torch.equal(prompts(features_of(2), clip), again(features_of(2), clip))
    with torch.no_grad():
        for parameter in prompts.parameters():
            parameter += 0.1
    again = ConditionalPrompts(clip, CLASSES, **json.loads(json.dumps(arguments)))
    again.load_state_dict(prompts.state_dict())
    assert torch.equal(prompts(features_of(2), clip), again(features_of(2), clip))
    assert again.moved() == pytest.approx({"context": 0.1})


@pytest.mark.parametrize("reduction", [0, 17, 2.0, True])
def test_a_reduction_that_leaves_nothing_is_an_error(clip: Clip, reduction: Any) -> None:
    with pytest.raises(ConfigError, match=r"reduction is .*use an integer in 1 \.\. 16"):
        ConditionalPrompts(clip, CLASSES, reduction=reduction)


# DualCoOp


@pytest.mark.parametrize("per_class", [False, True])
def test_dualcoop_has_two_contexts(clip: Clip, per_class: bool) -> None:
    prompts = DualPrompts(clip, CLASSES, tokens=4, per_class=per_class, seed=3)
    shape = (3, 4, 24) if per_class else (4, 24)
    assert {name: tuple(p.shape) for name, p in prompts.named_parameters()} == {"positive": shape, "negative": shape}
    assert not torch.equal(prompts.positive, prompts.negative)
    for context, text in zip((prompts.positive, prompts.negative), prompts.texts(clip), strict=True):
        each = list(context) if per_class else [context] * 3
        torch.testing.assert_close(text, one_by_one(clip, each), rtol=0, atol=1e-12)
    with torch.no_grad():
        prompts.negative -= 0.5
    assert prompts.moved() == pytest.approx({"positive": 0.0, "negative": 0.5})


def pooled_written_out(patches: NDArray[Any], text: Sequence[NDArray[Any]], tau: float, scale: float) -> NDArray[Any]:
    positive, negative = text
    logits = np.zeros((len(patches), len(positive)))
    for i, image in enumerate(patches):
        for c in range(len(positive)):
            s_pos = [cosine(f, positive[c]) for f in image]
            s_neg = [cosine(f, negative[c]) for f in image]
            weights = [np.exp(s / tau) for s in s_pos]
            total = sum(weights)
            plus = sum(w / total * scale * s for w, s in zip(weights, s_pos, strict=True))
            minus = sum(w / total * scale * s for w, s in zip(weights, s_neg, strict=True))
            chance = np.exp(plus) / (np.exp(plus) + np.exp(minus))  # the paper's two-way softmax
            logits[i, c] = np.log(chance / (1 - chance))
    return logits


@pytest.mark.parametrize(("temperature", "scale"), [(0.05, 10.0), (0.5, 2.0), (3.0, 1.0)])
def test_region_pooling_is_its_formula(temperature: float, scale: float) -> None:
    patches = features_of(4, 7).patches
    text = [features_of(3, seed=seed).cls.requires_grad_() for seed in (5, 6)]
    logits = region_pooling(patches, *text, temperature=temperature, scale=scale)
    expected = pooled_written_out(patches.numpy(), [t.detach().numpy() for t in text], temperature, scale)
    np.testing.assert_allclose(logits.detach(), expected, rtol=0, atol=1e-9)
    few = patches[:2, :3]
    assert torch.autograd.gradcheck(
        lambda p, n: region_pooling(few, p, n, temperature=temperature, scale=scale), text, atol=1e-6
    )


def test_defaults_are_the_released_codes_twenty_and_five() -> None:
    """There: 20 cosines, their softmax over places as weights, and five times the sum."""
    patches = features_of(2, 9).patches
    positive, negative = (features_of(3, seed=seed).cls for seed in (5, 6))
    f, p, n = (x / x.norm(dim=-1, keepdim=True) for x in (patches, positive, negative))
    s_pos, s_neg = 20 * torch.einsum("bpd,cd->bcp", f, p), 20 * torch.einsum("bpd,cd->bcp", f, n)
    w = torch.softmax(s_pos, dim=-1)
    expected = 5 * (s_pos * w).sum(-1) - 5 * (s_neg * w).sum(-1)
    torch.testing.assert_close(region_pooling(patches, positive, negative), expected, rtol=0, atol=1e-10)


def test_half_precision_features_are_scored_in_float32() -> None:
    patches, text = features_of(2, 9).patches, [features_of(3, seed=seed).cls for seed in (5, 6)]
    half = [patches.half(), text[0].half(), text[1].half()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = region_pooling(*half)
    assert logits.dtype == torch.float32
    exact = region_pooling(*(x.double() for x in half))
    torch.testing.assert_close(logits.double(), exact, rtol=0, atol=1e-3)


def test_region_pooling_scores_as_the_prompts_did_without_the_text_tower(clip: Clip) -> None:
    prompts, features = DualPrompts(clip, CLASSES, tokens=4), features_of(3)
    texts = prompts.texts(clip)
    model = RegionPooling(*texts, temperature=0.1, scale=7.0)
    assert not list(model.parameters())
    assert torch.equal(model(features), region_pooling(features.patches, *texts, temperature=0.1, scale=7.0))
    again = RegionPooling(torch.zeros(3, 16).double(), torch.zeros(3, 16).double(), temperature=0.1, scale=7.0)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(features, clip), model(features))


@pytest.mark.parametrize("name", ["temperature", "scale"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_not_positive_is_an_error(name: str, value: float) -> None:
    text = torch.eye(2)
    with pytest.raises(ConfigError, match=f"{name} is .*use a positive number"):
        RegionPooling(text, text, **{name: value})
    with pytest.raises(ConfigError, match=f"{name} is .*use a positive number"):
        region_pooling(text[None], text, text, **{name: value})


def test_texts_and_patches_of_other_shapes_are_errors() -> None:
    with pytest.raises(ConfigError, match=r"must both be \(C, D\), got \(2, 4\) and \(3, 4\)"):
        region_pooling(torch.ones(1, 5, 4), torch.ones(2, 4), torch.ones(3, 4))
    with pytest.raises(ConfigError, match=r"must be \(B, P, D\) and \(C, D\)"):
        region_pooling(torch.ones(5, 4), torch.ones(2, 4), torch.ones(2, 4))
