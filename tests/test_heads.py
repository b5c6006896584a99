"""Heads against slow loops in float64, and scorers with a head that are saved and loaded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from toys import tiny

from hpdval.checkpoint import load_tensors
from hpdval.errors import ConfigError, ModelError
from hpdval.models import Clip, ImageFeatures
from hpdval.models.conditional_prompts import ConditionalPrompts
from hpdval.models.cprfl import Cprfl
from hpdval.models.dual_prompts import RegionPooling
from hpdval.models.dual_view import dual_view_scores
from hpdval.models.heads import CategoryPrompts, Classifier, NearestNeighbours
from hpdval.scoring import HeadScorer
from hpdval.scoring.head import HEADS
from hpdval.scoring.runs import load_scorer

Array = NDArray[np.float64]
CLASSES = ("red", "green", "blue")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def features_of(batch: int, seed: int = 0) -> ImageFeatures:
    return ImageFeatures(drawn(batch, 16, seed=seed), drawn(batch, 5, 16, seed=seed + 100))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return tiny(tmp_path_factory.mktemp("tiny"))


def doubles(module: nn.Module) -> dict[str, Array]:
    return {name: value.detach().double().numpy() for name, value in module.state_dict().items()}


# -- classifiers -------------------------------------------------------------------------------------------------------


def gelu(x: Array) -> Array:
    return np.vectorize(lambda v: v * 0.5 * (1 + math.erf(v / math.sqrt(2))))(x)


@pytest.mark.parametrize("hidden", [0, 6])
def test_a_classifier_is_its_formula(hidden: int) -> None:
    head, features = Classifier(16, 3, hidden=hidden, seed=1), features_of(4)
    assert not head(features).any(), "the last layer starts at 0"
    with torch.no_grad():
        head.last.weight.copy_(drawn(3, hidden or 16))
        head.last.bias.copy_(drawn(3, seed=2))
    state, cls = doubles(head), features.cls.double().numpy()
    f = cls / np.sqrt((cls**2).sum(axis=1, keepdims=True))
    x = gelu(f @ state["layers.0.weight"].T + state["layers.0.bias"]) if hidden else f
    last = "layers.2" if hidden else "layers.0"
    expected = x @ state[f"{last}.weight"].T + state[f"{last}.bias"]
    np.testing.assert_allclose(head(features).detach().numpy(), expected, rtol=0, atol=1e-5)
    longer = ImageFeatures(7 * features.cls, features.patches)
    torch.testing.assert_close(head(longer), head(features), rtol=0, atol=1e-5)


def test_hidden_weights_follow_the_seed_alone() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, again, other = (Classifier(16, 3, hidden=5, seed=seed).layers[0].weight for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_started_from_texts_it_gives_the_zero_shot_cosines() -> None:
    text, features, head = 5 * drawn(3, 16, seed=8), features_of(4), Classifier(16, 3)
    head.start_from(text)
    assert torch.equal(head(features), dual_view_scores(*features, text, alpha=1.0, k=1))
    assert float(head(features).detach().abs().max()) < 1


def test_a_negative_width_is_refused() -> None:
    with pytest.raises(ConfigError, match="hidden is -1"):
        Classifier(16, 3, hidden=-1)


# -- neighbours --------------------------------------------------------------------------------------------------------


def slow_vote(query: Array, bank: Array, targets: Array, k: int, temperature: float) -> Array:
    """One image at a time, one neighbour after the other."""
    votes = np.zeros((len(query), targets.shape[1]))
    for row, f in zip(votes, query, strict=True):
        cosines = [float(f @ g / (np.linalg.norm(f) * np.linalg.norm(g))) for g in bank]
        nearest = sorted(range(len(bank)), key=lambda n: -cosines[n])[:k]
        total = 0.0
        for n in nearest:
            weight = math.exp((cosines[n] - 1) / temperature)
            row += weight * targets[n]
            total += weight
        row /= total
    return votes


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (5, 1.0), (12, 0.3), (50, 0.3)])
def test_neighbours_vote_as_in_a_slow_loop(k: int, temperature: float) -> None:
    bank, targets = drawn(12, 16, seed=5), (drawn(12, 3, seed=6) > 0).to(torch.uint8)
    features = features_of(7)
    head = NearestNeighbours(bank, targets, k=k, temperature=temperature)
    expected = slow_vote(*(x.double().numpy() for x in (features.cls, bank, targets)), k, temperature)
    assert 0 <= expected.min() < expected.max() <= 1
    np.testing.assert_allclose(head(features).numpy(), expected, rtol=0, atol=1e-5)


def test_equally_near_images_have_equal_votes_and_far_ones_do_not_overflow() -> None:
    bank = torch.tensor([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0]])  # the first two have one direction
    targets = torch.tensor([[1, 0], [0, 1], [1, 1]])
    query = ImageFeatures(torch.tensor([[3.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]), torch.zeros(3, 1, 2))
    votes = NearestNeighbours(bank, targets, k=2, temperature=0.01)(query)
    torch.testing.assert_close(votes[0], torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(votes[1], torch.tensor([1.0, 1.0]))  # the other one is 200 temperatures away
    every = NearestNeighbours(bank, targets, k=3, temperature=0.01)(query)
    torch.testing.assert_close(every[2], torch.tensor([2 / 3, 2 / 3]))  # all are equally far: exp(-100) each


@pytest.mark.parametrize(("k", "temperature"), [(0, 0.1), (3, 0.0), (3, float("nan"))])
def test_no_neighbours_or_no_temperature_are_refused(k: int, temperature: float) -> None:
    with pytest.raises(ConfigError, match=r"give k of at least 1 and a temperature above 0"):
        NearestNeighbours(torch.eye(2), torch.eye(2), k=k, temperature=temperature)


# -- scorers with a head -----------------------------------------------------------------------------------------------


def made(clip: Clip, name: str) -> tuple[nn.Module, dict[str, Any]]:
    """A head of each kind with weights that no seed gives, and the options it was made with."""
    options: dict[str, Any]
    head: nn.Module
    if name == "classifier":
        options = {"hidden": 4, "seed": 3}
        head = Classifier(16, 3, **options)
    elif name == "neighbours":
        options = {"k": 3, "temperature": 0.2}
        head = NearestNeighbours(drawn(9, 16, seed=1), (drawn(9, 3, seed=2) > 0).float(), **options)
    elif name == "conditional prompts":
        options = {"tokens": 2, "init": "normal", "reduction": 4, "seed": 1}
        head = ConditionalPrompts(clip, CLASSES, **options)
    elif name == "region pooling":
        options = {"temperature": 0.1, "scale": 7.0}
        head = RegionPooling(drawn(3, 16, seed=3), drawn(3, 16, seed=4), **options)
    else:
        options = {"width": 8, "heads": 2, "head_width": 4, "residual": True, "dropout": 0.5, "seed": 2}
        head = CategoryPrompts(Cprfl(drawn(3, 7, seed=5), 16, **options))
    with torch.no_grad():
        for place, parameter in enumerate(head.parameters()):
            parameter += 0.1 * drawn(*parameter.shape, seed=50 + place)
    return head, options


@pytest.mark.parametrize("name", list(HEADS))
def test_a_saved_head_scores_the_same_bits(clip: Clip, tmp_path: Path, name: str) -> None:
    head, options = made(clip, name)
    scorer = HeadScorer(clip, CLASSES, head, (name, options), method="mine", selection="none (last epoch)")
    scorer.save(tmp_path)
    loaded = load_scorer(tmp_path)
    assert isinstance(loaded, HeadScorer)
    assert type(loaded.head) is type(head)
    assert (loaded.classes, loaded.method, loaded.selection) == (CLASSES, "mine", "none (last epoch)")
    assert loaded.made == (name, options)
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    scores = scorer.score_array(images, show=False)
    assert scores.shape == (6, 3)
    assert scores.dtype == np.float32
    assert np.abs(scores - scores[:1]).max() > 1e-4, "images differ"
    assert np.array_equal(loaded.score_array(images, show=False), scores)
    assert head.training, "scoring leaves the mode of the head as it was"


@pytest.mark.parametrize("name", sorted(set(HEADS) - {"conditional prompts"}))  # which read names: any number of them
def test_a_head_of_other_classes_is_refused_in_a_line(clip: Clip, tmp_path: Path, name: str) -> None:
    head, options = made(clip, name)
    HeadScorer(clip, CLASSES, head, (name, options)).save(tmp_path)
    tensors, state = load_tensors(tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"2 classes") as caught:
        HeadScorer.from_state(clip, tensors, {**state, "classes": ["red", "green"]}).score_features(features_of(2))
    assert "\n" not in str(caught.value)


def test_tensors_of_another_head_are_refused_in_a_line(clip: Clip) -> None:
    head, options = made(clip, "classifier")
    state = {"head": "classifier", "options": {**options, "hidden": 0}, "classes": CLASSES}
    with pytest.raises(ModelError, match="do not fit a head 'classifier' of 3 classes on 16 features") as caught:
        HeadScorer.from_state(clip, head.state_dict(), state)
    assert "\n" not in str(caught.value)


def test_category_prompts_are_cprfl_on_patches(clip: Clip) -> None:
    head, _ = made(clip, "category prompts")
    assert isinstance(head, CategoryPrompts)
    head.eval()
    features = features_of(3)
    assert torch.equal(head(features), head.model(features.patches))
    with_map = features.patches.transpose(1, 2)[..., None]  # (B, F, P, 1), as a CNN has it
    torch.testing.assert_close(head(features), head.model(with_map))
