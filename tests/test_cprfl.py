"""CPRFL's model against the released code's numbers and a slow loop from the formulas; its ablations and its errors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from hpdval.errors import ConfigError
from hpdval.losses.asl import asl
from hpdval.metrics import average_precision
from hpdval.models.cprfl import Cprfl, PromptInitialisation, VisualSemanticInteraction, category_logits

Array = NDArray[np.floating[Any]]
B, P, C, F, T, D, H, HEAD = 2, 6, 4, 5, 7, 8, 2, 3
SMALL: dict[str, Any] = {"width": D, "heads": H, "head_width": HEAD, "hidden": 10}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small(**options: Any) -> Cprfl:
    """A model with no weight at 0 or 1, where norms and biases start."""
    model = Cprfl(random(C, T), F, **{**SMALL, **options}).double()
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.add_(0.3 * random(*parameter.shape, seed=i + 1))
    return model.eval()


# -- a slow loop -----------------------------------------------------------------------------------------------------


def slow_logits(model: Cprfl, features: Array, residual: bool) -> Array:
    """One image, one prompt and one head at a time, from the printed formulas."""
    w = {name: value.detach().numpy() for name, value in model.state_dict().items()}

    def affine(x: Array, name: str) -> Array:
        return np.array([sum(a * b for a, b in zip(x, row, strict=True)) for row in w[f"{name}.weight"]]) + w.get(
            f"{name}.bias", 0.0
        )

    def gelu(x: Array) -> Array:
        return np.array([v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in x])

    def norm(x: Array, name: str) -> Array:
        centred = x - x.mean()
        return centred / math.sqrt((centred**2).mean() + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def attend(x: list[Array], query: Array) -> Array:
        parts = []
        q = affine(query, "interaction.query")
        keys_values = [affine(one, "interaction.key_value") for one in x]
        for head in range(H):
            here = slice(head * HEAD, (head + 1) * HEAD)
            keys = [kv[: H * HEAD][here] for kv in keys_values]
            values = [kv[H * HEAD :][here] for kv in keys_values]
            weights = [math.exp(float(q[here] @ key) / math.sqrt(HEAD)) for key in keys]
            parts.append(sum(a * v for a, v in zip(weights, values, strict=True)) / sum(weights))
        return affine(np.concatenate(parts), "interaction.out.0")

    prompts = [affine(gelu(affine(e, "initialisation.0")), "initialisation.2") for e in w["embeddings"]]
    logits = np.zeros((len(features), C))
    for b, image in enumerate(features):
        sequence = [affine(token, "visual") for token in image] + prompts
        normed = [norm(x, "interaction.norm_attention") for x in sequence]
        for i, prompt in enumerate(prompts):
            y = attend(normed, normed[len(image) + i]) + (prompt if residual else 0)
            fed = gelu(affine(norm(y, "interaction.norm_feed"), "interaction.feed.0"))
            logits[b, i] = prompt @ (affine(fed, "interaction.feed.3") + (y if residual else 0))
    return logits


@pytest.mark.parametrize("residual", [False, True])
def test_equals_a_slow_loop(residual: bool) -> None:
    model, features = small(residual=residual), random(B, P, F, seed=99)
    expected = slow_logits(model, features.numpy(), residual)
    np.testing.assert_allclose(model(features).detach(), expected, atol=1e-12)
    assert np.abs(expected).max() > 0.1


# -- the released code's numbers -------------------------------------------------------------------------------------

# what the released code calls each part (parameters end in .weight and .bias); its to_qkv is split below
NAMES = {
    "fc.0": "visual",
    "label_emb.0": "initialisation.0",
    "label_emb.3": "initialisation.2",
    "attention.layers.0.0.norm": "interaction.norm_attention",
    "attention.layers.0.0.fn.to_out.0": "interaction.out.0",
    "attention.layers.0.1.norm": "interaction.norm_feed",
    "attention.layers.0.1.fn.net.0": "interaction.feed.0",
    "attention.layers.0.1.fn.net.3": "interaction.feed.3",
}


def ours(name: str) -> str:
    part, _, kind = name.rpartition(".")
    return f"{NAMES[part]}.{kind}"


def released_weights(path: Path) -> dict[str, Tensor]:
    state = load_file(path)
    query, key, value = state.pop("attention.layers.0.0.fn.to_qkv.weight").chunk(3)
    split = {"interaction.query.weight": query, "interaction.key_value.weight": torch.cat([key, value])}
    return {ours(name): tensor for name, tensor in state.items()} | split


@pytest.fixture(scope="module")
def vectors(golden: Path) -> dict[str, Array]:
    with np.load(golden / "cprfl_small.npz") as file:
        return dict(file)


def golden_model(golden: Path, text: Array, dtype: torch.dtype, residual: bool) -> Cprfl:
    config = json.loads((golden / "cprfl_small.json").read_text())
    model = Cprfl(
        torch.from_numpy(text),
        config["backbone_dim"],
        width=config["dim"],
        tau=config["expand_tau"],
        heads=config["heads"],
        head_width=config["dim_head"],
        hidden=config["mlp_dim"],
        residual=residual,
        dropout=config["dropout"],
    )
    model.load_state_dict({"embeddings": model.embeddings, **released_weights(golden / "cprfl_small.safetensors")})
    return model.to(dtype)


def close_to_golden(value: Tensor, expected: Array, relative: float) -> None:
    np.testing.assert_allclose(value.detach().numpy(), expected, rtol=0, atol=relative * float(np.abs(expected).max()))


@pytest.mark.shared
@pytest.mark.parametrize("reading", ["released", "residual"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_golden_outputs_and_gradients(
    golden: Path, vectors: dict[str, Array], reading: str, dtype: torch.dtype, tolerance: float
) -> None:
    model = golden_model(golden, vectors["text"], dtype, reading == "residual")
    maps, cotangent = (torch.from_numpy(vectors[name]).to(dtype) for name in ("feature_maps", "cotangent"))
    prompts = model.prompts()
    close_to_golden(model.visual(maps.flatten(2).transpose(1, 2)), vectors["tokens"], 1e-5)  # stored as float32
    close_to_golden(prompts, vectors["P"], tolerance)
    close_to_golden(model.refine(maps, prompts), vectors[f"{reading}__P_prime"], tolerance)

    model.embeddings = model.embeddings.requires_grad_()
    maps.requires_grad_()
    logits = model(maps)
    close_to_golden(logits, vectors[f"{reading}__logits"], tolerance)
    (logits * cotangent).sum().backward()
    assert model.embeddings.grad is not None
    assert maps.grad is not None
    close_to_golden(model.embeddings.grad, vectors[f"{reading}__grad_text"], tolerance)
    close_to_golden(maps.grad[0], vectors[f"{reading}__grad_feature_maps_b0"], 1e-5)  # stored as float32
    stem = f"{reading}__gradw__"
    names = [key.removeprefix(stem) for key in vectors if key.startswith(stem)]
    assert len(names) == 4
    for name in names:
        gradient = model.get_parameter(ours(name)).grad
        assert gradient is not None
        close_to_golden(gradient, vectors[stem + name], tolerance)


@pytest.mark.shared
@pytest.mark.parametrize("reading", ["released", "residual"])
def test_golden_outputs_at_the_visual_tokens(golden: Path, vectors: dict[str, Array], reading: str) -> None:
    """The layer can give them, though nothing in the model reads them."""
    model = golden_model(golden, vectors["text"], torch.float64, reading == "residual")
    maps = torch.from_numpy(vectors["feature_maps"]).double()
    tokens = model.visual(maps.flatten(2).transpose(1, 2))
    assert isinstance(model.interaction, VisualSemanticInteraction)
    whole = model.interaction.encode(torch.cat([tokens, model.prompts().expand(len(maps), -1, -1)], dim=1))
    close_to_golden(whole[:, : tokens.shape[1]].mean(dim=1), vectors[f"{reading}__vis_out_mean_over_tokens"], 1e-9)


# -- gradients -------------------------------------------------------------------------------------------------------


def test_gradients_reach_the_prompts_along_both_paths() -> None:
    """Their sum is what finite differences of the logits say; neither path is silent."""
    model, features, cotangent = small(), random(B, P, F, seed=99), random(B, C, seed=5)
    start = model.prompts().detach()

    def loss(classifier: Tensor, interacting: Tensor) -> Tensor:
        return (category_logits(classifier, model.refine(features, interacting)) * cotangent).sum()

    classifier, interacting = start.clone().requires_grad_(), start.clone().requires_grad_()
    paths = torch.autograd.grad(loss(classifier, interacting), (classifier, interacting))
    (whole,) = torch.autograd.grad(loss(classifier, classifier), classifier)
    assert min(path.norm() for path in paths) > 0.1
    torch.testing.assert_close(whole, paths[0] + paths[1], rtol=0, atol=1e-12)
    step = 1e-5
    with torch.no_grad():
        for i in range(C):
            for j in range(D):
                move = torch.zeros(C, D, dtype=torch.float64)
                move[i, j] = step
                slope = (loss(start + move, start + move) - loss(start - move, start - move)) / (2 * step)
                assert abs(slope - whole[i, j]) < 1e-7
                slope = (loss(start, start + move) - loss(start, start - move)) / (2 * step)
                assert abs(slope - paths[1][i, j]) < 1e-7


def test_the_model_learns_what_the_features_tell() -> None:
    """Each class is a direction that some place of the map shows; Adam and ASL as the method has them."""
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(40, C, generator=generator) < 0.4).float()
    directions = 3 * torch.randn(C, 16, generator=generator)
    features = torch.randn(40, P, 16, generator=generator)
    features[:, :C] += targets[:, :, None] * directions  # place c shows class c, if it is there
    model = Cprfl(torch.randn(C, T, generator=generator), 16, width=32, heads=2, head_width=16)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=1e-4)
    losses = []
    for _ in range(60):
        loss = asl(model(features), targets, gamma_pos=0, gamma_neg=4)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3
    assert average_precision(model(features).detach().numpy(), targets.numpy()).min() > 0.95


# -- ablations and options -------------------------------------------------------------------------------------------


def test_without_interaction_a_class_meets_the_mean_token() -> None:
    model, features = small(interact=False), random(B, P, F, seed=99)
    pooled = model.visual(features.mean(dim=1))  # (B, d): the map is linear
    torch.testing.assert_close(model(features), pooled @ model.prompts().T)
    assert not [name for name, _ in model.named_parameters() if name.startswith("interaction")]


def test_without_prompt_initialisation_the_embeddings_are_mapped_by_one_layer() -> None:
    model, features = small(initialise=False), random(B, P, F, seed=99)
    layer = model.initialisation
    assert isinstance(layer, torch.nn.Linear)
    torch.testing.assert_close(model.prompts(), random(C, T).float().double() @ layer.weight.T + layer.bias)
    assert model(features).shape == (B, C)


def test_tau_is_the_share_of_hidden_units() -> None:
    assert [PromptInitialisation(512, 2048, tau=tau)[0].out_features for tau in (0.5, 1.0, 0.25)] == [1024, 2048, 512]


def test_the_released_widths_are_the_default() -> None:
    with torch.device("meta"):
        layer = VisualSemanticInteraction(2048)
    shapes = {name: tuple(value.shape) for name, value in layer.named_parameters()}
    assert shapes["query.weight"] == (8 * 512, 2048)
    assert shapes["feed.0.weight"] == (2048, 2048)
    assert "query.bias" not in shapes


def test_a_map_is_read_as_tokens_row_by_row() -> None:
    model, maps = small(), random(B, F, 2, 3)
    tokens = torch.stack([maps[:, :, row, column] for row in range(2) for column in range(3)], dim=1)
    assert torch.equal(model(maps), model(tokens))


def test_images_do_not_see_each_other_and_no_image_has_no_logits() -> None:
    model, features = small(), random(B, P, F, seed=99)
    torch.testing.assert_close(model(features)[1:], model(features[1:]), rtol=0, atol=1e-12)
    assert model(features[:0]).shape == (0, C)


def test_the_order_of_classes_and_of_tokens_does_not_matter() -> None:
    model, features, order = small(), random(B, P, F, seed=99), [2, 0, 3, 1]
    logits = model(features)
    model.embeddings = model.embeddings[order]
    torch.testing.assert_close(model(features.flip(1)), logits[:, order])


def test_the_seed_alone_decides_where_a_model_starts() -> None:
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    first, again, other = (Cprfl(random(C, T), F, **SMALL, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["visual.weight"], other["visual.weight"])


def test_a_saved_model_brings_its_embeddings_but_does_not_train_them() -> None:
    model, features = small(), random(B, P, F, seed=99)
    other = Cprfl(torch.zeros(C, T), F, **SMALL).double()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(features), model(features))
    assert "embeddings" not in dict(model.named_parameters())


def test_logits_are_float32_under_autocast() -> None:
    model, features = small().float(), random(B, P, F, seed=99).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(features)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, model(features), rtol=0.05, atol=0.05 * float(logits.detach().abs().max()))


def test_dropout_is_for_training_alone() -> None:
    model, features = small(dropout=0.5), random(B, P, F, seed=99)
    assert torch.equal(model(features), small()(features))
    assert not torch.equal(model.train()(features), model(features))


# -- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(B, P, F + 1), (B, F, P), (B, 0, F), (P, F), (B, F + 1, 2, 2), (B, F, 0, 2)])
def test_features_of_another_shape_are_errors(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"features must be \(B, P, 5\) or \(B, 5, h, w\)"):
        small()(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"embeddings": torch.zeros(C)}, r"embeddings must be \(C, T\) and finite, got \(4,\)"),
        ({"embeddings": torch.zeros(0, T)}, "embeddings must be"),
        ({"embeddings": torch.full((C, T), torch.nan)}, "embeddings must be"),
        ({"features": 0}, "features is 0; use an integer"),
        ({"width": 1.5}, "width is 1.5"),
        ({"heads": 0}, "heads is 0"),
        ({"head_width": True}, "head_width is True"),
        ({"hidden": -1}, "hidden is -1"),
        ({"tau": 0.0}, "tau is 0.0"),
        ({"tau": 0.01}, "tau is 0.01"),
        ({"tau": math.nan}, "tau is nan"),
        ({"dropout": 1.0}, r"dropout is 1.0; use a share in \[0, 1\)"),
    ],
)
def test_options_out_of_range_are_errors(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Cprfl(**{"embeddings": torch.zeros(C, T), "features": F, **SMALL, **options})
    assert "\n" not in str(caught.value)
