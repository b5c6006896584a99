"""LoRA: the update written out by hand, a start that changes nothing, and an ordinary tower at the end."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn
from toys import TINY

from hpdval.errors import ConfigError, ModelError
from hpdval.models import Clip, load_clip
from hpdval.models.backbone import make_backbone
from hpdval.models.lora import LowRank, add_lora, merge_lora


@pytest.fixture
def clip(tmp_path: Path) -> Clip:
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    return load_clip(tmp_path / "tiny.json", seed=0)


def timm_tower() -> Any:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=32, depth=2, num_heads=2, num_classes=5)


IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def updates(visual: nn.Module) -> list[LowRank]:
    return [module for module in visual.modules() if isinstance(module, LowRank)]


def learn(visual: nn.Module, steps: int = 2) -> None:
    """Some updates whose direction does not matter: the first moves B alone, since the gradient of A is B's."""
    optimizer = torch.optim.SGD([p for p in visual.parameters() if p.requires_grad], lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        visual(IMAGES).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("tower", ["open_clip", "timm"])
def test_it_starts_as_identity_and_ends_as_an_ordinary_tower(clip: Clip, tower: str) -> None:
    visual: nn.Module = clip.visual if tower == "open_clip" else timm_tower()
    visual.eval()
    before = {name: value.clone() for name, value in visual.state_dict().items()}
    with torch.no_grad():
        plain = visual(IMAGES)
    add_lora(visual, 2, scale=3.0, seed=4)
    assert len(updates(visual)) == 2, "one for each layer"
    with torch.no_grad():
        assert torch.equal(visual(IMAGES), plain)
    learn(visual)
    with torch.no_grad():
        learned = visual(IMAGES)
        assert float((learned - plain).abs().max()) > 1e-3
        merge_lora(visual)
        torch.testing.assert_close(visual(IMAGES), learned, rtol=0, atol=1e-6)
    after = visual.state_dict()
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    packed = "in_proj_weight" if tower == "open_clip" else "qkv.weight"
    assert changed == {name for name in before if name.endswith(packed)}
    assert not updates(visual)


def test_the_merged_model_loads_in_a_fresh_one(clip: Clip, tmp_path: Path) -> None:
    clip.eval()
    add_lora(clip.visual, 2)
    learn(clip.visual)
    merge_lora(clip.visual)
    other = load_clip(tmp_path / "tiny.json", seed=9).eval()
    other.model.load_state_dict(clip.model.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(other.visual(IMAGES), clip.visual(IMAGES))
    assert other.weights_sha256 == clip.weights_sha256


def test_only_the_updates_learn(clip: Clip) -> None:
    visual = clip.visual
    add_lora(visual, 3)
    learning = {name: p for name, p in visual.named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[2] for name in learning} == {"down", "up"}
    assert sum(p.numel() for p in learning.values()) == 2 * 3 * (3 * 32 + 32 * 3)  # layers, parts, A and B
    visual(IMAGES).square().mean().backward()
    with_gradient = {name for name, p in visual.named_parameters() if p.grad is not None}
    assert with_gradient == set(learning)
    assert all(bool(p.grad.any()) is name.endswith("up") for name, p in learning.items()), "B is 0: A must wait"  # type: ignore[union-attr]


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_the_update_is_its_formula_for_query_key_and_value(clip: Clip, scale: float) -> None:
    attention: Any = clip.visual.transformer.resblocks[1].attn  # type: ignore[union-attr, index]
    start = attention.in_proj_weight.detach().double().numpy().copy()  # (3 W, W)
    add_lora(clip.visual, 2, scale=scale)
    update = attention.parametrizations.in_proj_weight[0]
    with torch.no_grad():
        update.up.normal_()
    down, up = (p.detach().double().numpy() for p in (update.down, update.up))
    expected = start.copy()
    for part in range(3):
        for row in range(32):
            for column in range(32):
                for r in range(2):
                    expected[32 * part + row, column] += scale * up[part, row, r] * down[part, r, column]
    assert np.abs(expected - start).max() > 0.1
    np.testing.assert_allclose(attention.in_proj_weight.detach().numpy(), expected, rtol=0, atol=1e-5)


def test_the_updates_differ_from_one_another_and_follow_the_seed_alone(clip: Clip) -> None:
    towers = [copy.deepcopy(clip.visual) for _ in range(3)]
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    for tower, seed in zip(towers, (0, 0, 1), strict=True):
        add_lora(tower, 2, seed=seed)
    assert torch.equal(before, torch.random.get_rng_state())
    first, again, other = ([update.down.detach() for update in updates(tower)] for tower in towers)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("visual", [nn.Sequential(nn.Linear(4, 4)), make_backbone("test_resnet")])
def test_a_tower_without_attention_is_refused(visual: nn.Module) -> None:
    with pytest.raises(ModelError, match="has no attention with packed query, key and value; use a ViT"):
        add_lora(visual, 2)
    assert all(p.requires_grad for p in visual.parameters()), "and left as it was"


def test_a_rank_below_one_is_refused(clip: Clip) -> None:
    with pytest.raises(ConfigError, match="rank is 0; LoRA needs at least 1"):
        add_lora(clip.visual, 0)
