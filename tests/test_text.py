"""What prompts share is encoded once: features and gradients against open_clip's own pass, prompt by prompt."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from hpdval.data.scenes import CLASSES as SCENES
from hpdval.errors import ConfigError
from hpdval.models import Clip, load_clip
from hpdval.models.text import prompt_slots, text_features

NAMES = [
    "dog",
    "very long name of a strange old thing",
    "dog house",
    "tv_monitor",
    "dog",
    "antidisestablishmentarianism",
]
EOT = 49407
FAMILIES: dict[str, dict[str, Any]] = {
    "gelu": {},
    "quickgelu": {"quick_gelu": True},
    "own text tower": {"custom_text": True},
    "layer scale": {"text": {"ls_init_value": 0.5}},
    "other norm and activation": {"text": {"norm_kwargs": {"eps": 1e-3}, "act_kwargs": {"approximate": "tanh"}}},
    "projected with a bias": {"text": {"proj_bias": True}},
    "not projected": {"text": {"proj_type": "none"}},
}
if hasattr(open_clip.CLIPTextCfg, "qk_norm"):  # not in every open_clip
    FAMILIES["other blocks"] = {"text": {"qk_norm": True, "scale_attn": True, "scale_heads": True}}
PLAIN: dict[str, dict[str, Any]] = {
    "both directions": {"text": {"no_causal_mask": True}, "custom_text": True},
    "class token": {"text": {"embed_cls": True, "context_length": 31, "output_tokens": True}, "custom_text": True},
    "read at the last token": {"text": {"pool_type": "last"}},
    "CoCa": {
        "text": {"embed_cls": True, "context_length": 31, "output_tokens": True},
        "multimodal_cfg": {"context_length": 31, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 1},
        "custom_text": True,
    },
}


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Clip]:
    def make(text: dict[str, Any] | None = None, **top: Any) -> Clip:
        text = {"context_length": 32, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 3, **(text or {})}
        vision = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
        config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text, **top}
        (tmp_path / "config.json").write_text(json.dumps(config))
        clip = load_clip(tmp_path / "config.json")
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():  # at open_clip's start, biases are zero and attention is nearly uniform
            for parameter in clip.text_parameters:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        return clip

    return make


def contexts_for(clip: Clip, tokens: int, sets: int = 2) -> Tensor:
    draw = torch.randn(sets, tokens, clip.text_width, generator=torch.Generator().manual_seed(1))
    return draw.to(clip.token_embedding.weight.dtype).requires_grad_()


def plainly(clip: Clip, contexts: Tensor, names: Sequence[str]) -> Tensor:
    """Features (S, C, D) prompt by prompt, each through the whole tower at its full length."""
    words, start, _ = prompt_slots(clip.tokenizer, contexts.shape[1])
    ids = clip.tokenise([f"{words} {name.replace('_', ' ')}." for name in names])
    one_by_one = [text_features(clip.model, row[None], context=contexts, start=start, plain=True) for row in ids]
    return torch.cat(one_by_one, dim=1)


def assert_same(clip: Clip, tokens: int, names: Sequence[str], tolerance: float = 1e-5) -> None:
    """Features, and gradients of contexts and of every parameter of the tower, differ by rounding only."""
    contexts, parameters = contexts_for(clip, tokens), clip.text_parameters
    results = []
    for encode in (clip.encode_prompts, lambda c, n: plainly(clip, c, n)):
        features = encode(contexts, names)
        cotangent = torch.randn(features.shape, generator=torch.Generator().manual_seed(2)).to(features)
        results.append([features, *torch.autograd.grad((cotangent * features).sum(), [contexts, *parameters])])
    sizes = [float(expected.detach().abs().max()) for expected in results[1]]
    for ours, expected, size in zip(*results, sizes, strict=True):
        size = max(size, 0.01 * max(sizes))  # the gradient of what is added to all keys is zero, but for rounding
        torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance * size)


@pytest.mark.parametrize("tokens", [1, 4, 16])
@pytest.mark.parametrize("family", FAMILIES)
def test_features_and_gradients_are_those_of_the_plain_way(
    build: Callable[..., Clip], family: str, tokens: int
) -> None:
    clip = build(**FAMILIES[family])
    assert clip.text_path == "shared prefix"
    assert_same(clip, tokens, NAMES)
    assert_same(clip.double(), tokens, NAMES, 1e-12)


@pytest.mark.parametrize("names", [["dog"], ["dog", "dog"], ["dog", "dog dog", "dog dog dog"]])
def test_few_classes_and_classes_that_begin_or_end_alike(build: Callable[..., Clip], names: list[str]) -> None:
    assert_same(build(), 4, names)


def test_a_prompt_that_fills_the_context(build: Callable[..., Clip]) -> None:
    clip = build()
    names = ["cat", "dog " * 13, "dog " * 12 + "cat"]
    assert clip.tokenise(["X " * 16 + name + "." for name in names])[:, -1].tolist() == [0, EOT, EOT]
    assert_same(clip, 16, names)


def test_many_classes_in_many_rows(build: Callable[..., Clip]) -> None:
    names = [f"{a} {b}" for a in ("red", "blue", "very dark green") for b in ["dog", "cat", "car", "tree", "house"]]
    clip = build()
    rows: list[int] = []
    with clip.token_embedding.register_forward_hook(lambda module, inputs, output: rows.append(len(output))):
        assert_same(clip, 4, names)
    assert rows[0] > 1


def test_towers_that_look_for_the_id_of_the_end(build: Callable[..., Clip]) -> None:
    if not hasattr(open_clip.CLIPTextCfg, "eos_id"):
        pytest.skip("this open_clip has no such towers")
    clip = build({"pool_type": "eos", "eos_id": EOT})
    assert clip.text_path == "shared prefix"
    assert_same(clip, 4, NAMES)
    with torch.no_grad():
        clip.model.text_eos_id = int(clip.tokenise(["."])[0, 1])  # not the largest id
        assert_same_features(clip)


def assert_same_features(clip: Clip, tolerance: float = 1e-5) -> None:
    contexts = contexts_for(clip, 4)
    ours, expected = clip.encode_prompts(contexts, NAMES), plainly(clip, contexts, NAMES)
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def test_the_shipped_clip() -> None:
    clip = load_clip("scenes")
    assert clip.text_path == "shared prefix"
    assert_same(clip, 4, SCENES)
    prompts = [f"a photo of a {name}." for name in SCENES]
    with torch.no_grad():
        plain = text_features(clip.model, clip.tokenise(prompts), plain=True)
        torch.testing.assert_close(clip.encode_text(prompts), plain, rtol=1e-5, atol=1e-5 * float(plain.abs().max()))


def test_checkpointed_blocks(build: Callable[..., Clip]) -> None:
    clip = build()
    clip.model.set_grad_checkpointing()  # type: ignore[operator]
    assert_same(clip, 4, NAMES)


def test_gradients_after_the_same_prompts_without(build: Callable[..., Clip]) -> None:
    clip = build()
    with torch.inference_mode():
        clip.encode_prompts(contexts_for(clip, 3), NAMES)
    assert_same(clip, 3, NAMES)


@torch.no_grad()
def test_without_gradients_torch_takes_another_kernel_and_the_numbers_stay(build: Callable[..., Clip]) -> None:
    assert_same_features(build())


@pytest.mark.parametrize("gradients", [True, False])
def test_bfloat16_weights_and_autocast_differ_by_rounding(build: Callable[..., Clip], gradients: bool) -> None:
    clip = build()
    with torch.set_grad_enabled(gradients):
        exact = plainly(clip, contexts_for(clip, 4), NAMES)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = [plainly(clip, contexts_for(clip, 4), NAMES), clip.encode_prompts(contexts_for(clip, 4), NAMES)]
        clip = clip.bfloat16()
        half = [plainly(clip, contexts_for(clip, 4), NAMES), clip.encode_prompts(contexts_for(clip, 4), NAMES)]
    for plain, ours in (cast, half):
        assert plain.dtype == ours.dtype
        rounding = (plain.float() - exact).abs().mean()
        assert (ours.float() - exact).abs().mean() < 1.5 * rounding
        assert (ours.float() - plain.float()).abs().mean() < 2 * rounding


@pytest.mark.parametrize("family", PLAIN)
def test_other_towers_take_the_plain_way(build: Callable[..., Clip], family: str) -> None:
    clip = build(**PLAIN[family])
    assert clip.text_path == "plain"
    contexts, model = contexts_for(clip, 4), clip.model
    features = clip.encode_prompts(contexts, NAMES)
    assert features.shape == (2, len(NAMES), 16)
    torch.testing.assert_close(features[1], clip.encode_prompts(contexts[1], NAMES))
    with torch.no_grad():
        ids = clip.tokenise(NAMES)
        expected: Any = model.encode_text(ids, normalize=False)  # type: ignore[operator]
        assert torch.equal(clip.encode_tokens(ids), expected[0] if isinstance(expected, tuple) else expected)


def test_less_is_kept_for_the_gradient_than_by_a_tower_cut_to_the_longest_prompt(build: Callable[..., Clip]) -> None:
    def kept(clip: Clip, plain: bool) -> int:
        sizes: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        clip.requires_grad_(False)
        own = {parameter.untyped_storage().data_ptr() for parameter in clip.parameters()}
        names = ["dog", "cat", "traffic light", "red bus", "old house", "large brown dog"] * 3
        names = [f"{name} {i}" for i, name in enumerate(names)]
        contexts = contexts_for(clip, 4)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            ids = clip.tokenise([f"X X X X {name}." for name in names])
            features = text_features(clip.model, ids, context=contexts, plain=plain)
            alive = {key: size for key, size in sizes.items() if key not in own}
            del features
        return sum(alive.values())

    assert kept(build(), plain=False) < kept(build({"context_length": 12}), plain=True)


def assert_each_class_has_its_own(clip: Clip, tokens: int, names: Sequence[str], tolerance: float = 1e-5) -> None:
    """Contexts (S, C, M, W) give what each class gives alone with its context: values and all gradients."""
    generator = torch.Generator().manual_seed(4)
    contexts = torch.randn(2, len(names), tokens, clip.text_width, generator=generator)
    contexts = contexts.to(clip.token_embedding.weight.dtype).requires_grad_()

    def one_by_one() -> Tensor:
        sets = [[plainly(clip, c[None], [name])[0, 0] for c, name in zip(s, names, strict=True)] for s in contexts]
        return torch.stack([torch.stack(features) for features in sets])

    results = []
    for features in (clip.encode_prompts(contexts, names), one_by_one()):
        cotangent = torch.randn(features.shape, generator=torch.Generator().manual_seed(2)).to(features)
        gradients = torch.autograd.grad((cotangent * features).sum(), [contexts, *clip.text_parameters])
        results.append([features.detach(), *gradients])
    sizes = [float(expected.abs().max()) for expected in results[1]]
    for ours, expected, size in zip(*results, sizes, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance * max(size, 0.01 * max(sizes)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_context_of_each_class(build: Callable[..., Clip], family: str) -> None:
    clip = build(**FAMILIES[family])
    assert clip.text_path == "shared prefix"
    assert_each_class_has_its_own(clip, 4, NAMES)
    assert_each_class_has_its_own(clip.double(), 1, NAMES, 1e-12)


@pytest.mark.parametrize("family", PLAIN)
def test_a_context_of_each_class_the_plain_way(build: Callable[..., Clip], family: str) -> None:
    clip = build(**PLAIN[family]).double()
    assert clip.text_path == "plain"
    contexts = torch.randn(2, len(NAMES), 4, clip.text_width, dtype=torch.double).requires_grad_()
    features = clip.encode_prompts(contexts, NAMES)
    alone = [clip.encode_prompts(contexts[:, i], [name])[:, 0] for i, name in enumerate(NAMES)]
    expected = torch.stack(alone, dim=1)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-12)
    cotangent = torch.randn_like(expected)
    gradients = [torch.autograd.grad((cotangent * y).sum(), contexts)[0] for y in (features, expected)]
    assert float(gradients[1].abs().max()) > 1e-6
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_equal_contexts_of_the_classes_are_a_shared_one(build: Callable[..., Clip]) -> None:
    clip = build().double()
    shared = contexts_for(clip, 4)
    each = shared[:, None].expand(-1, len(NAMES), -1, -1)
    ours, expected = clip.encode_prompts(each, NAMES), clip.encode_prompts(shared, NAMES)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def test_rows_of_classes_with_contexts_end_with_the_longest_prompt(build: Callable[..., Clip]) -> None:
    clip = build()
    lengths: list[tuple[int, ...]] = []
    contexts = torch.zeros(1, 2, 3, clip.text_width)
    with clip.token_embedding.register_forward_hook(lambda module, inputs, output: lengths.append(output.shape)):
        clip.encode_prompts(contexts, ["dog", "dog house"])
    assert lengths == [(2, 8, clip.text_width)]  # [SOS] X X X dog house . [EOT]
    with torch.inference_mode():
        clip.encode_prompts(contexts, ["cat", "cat house"])
    assert clip.encode_prompts(contexts.requires_grad_(), ["cat", "cat house"]).requires_grad


def test_a_context_for_each_of_other_classes_is_an_error(build: Callable[..., Clip]) -> None:
    clip = build()
    with pytest.raises(ConfigError, match=r"or \(S, 6, M, 24\) with one for each class, .*got \(1, 5, 3, 24\)"):
        clip.encode_prompts(torch.zeros(1, 5, 3, 24), NAMES)
