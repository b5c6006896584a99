"""Prompts with learnable contexts against a forward pass written out, finite differences, and the reference code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hpdval.errors import ConfigError
from hpdval.models import (
    Clip,
    HierarchicalPrompts,
    class_prompts,
    context_init,
    dual_view_scores,
    hand_crafted,
    load_clip,
)
from hpdval.models.prompts import TEMPLATE_SETS, ensemble, pooling_weights

CLASSES = ["dog", "traffic_light", "tv_monitor"]
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2},
}


@pytest.fixture
def clip(tmp_path: Path) -> Clip:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return load_clip(tmp_path / "config.json").double()


def features_written_out(clip: Clip, context: torch.Tensor, name: str) -> torch.Tensor:
    """One class: [SOS] context [class tokens] [.] [EOT], padded to full length, through the parts of the text tower."""
    model: Any = clip.model
    tokenizer: Any = clip.tokenizer
    words = [*tokenizer.encode(name), *tokenizer.encode(".")]
    before = model.token_embedding(torch.tensor([tokenizer.sot_token_id]))
    after = model.token_embedding(torch.tensor([*words, tokenizer.eot_token_id]))
    padding = model.token_embedding(torch.zeros(20 - 1 - len(context) - len(after), dtype=torch.long))
    x = torch.cat([before, context, after, padding]) + model.positional_embedding  # (L, W)
    x = model.transformer(x[None], attn_mask=model.attn_mask)[0]
    return model.ln_final(x[1 + len(context) + len(words)]) @ model.text_projection


@pytest.mark.parametrize("tokens", [1, 4, 9])
@torch.no_grad()
def test_context_class_and_end_lie_where_they_should(clip: Clip, tokens: int) -> None:
    context = torch.randn(tokens, 24, generator=torch.Generator().manual_seed(0)).double()
    expected = [features_written_out(clip, context, name.replace("_", " ")) for name in CLASSES]
    torch.testing.assert_close(clip.encode_prompts(context, CLASSES), torch.stack(expected), rtol=0, atol=1e-12)


def test_gradient_of_the_context_equals_finite_differences(clip: Clip) -> None:
    context = context_init(clip, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda c: clip.encode_prompts(c, CLASSES), [context], atol=1e-6)


def test_encoding_a_context_leaves_the_tower_as_it_was(clip: Clip) -> None:
    before = clip.encode_text(["a dog."])
    clip.encode_prompts(torch.ones(3, 24).double(), CLASSES)
    assert torch.equal(clip.encode_text(["a dog."]), before)


def test_encoding_that_fails_half_way_leaves_the_tower_as_it_was(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    before = clip.encode_text(["a dog."])
    with monkeypatch.context() as patch:
        patch.setattr(clip.model.ln_final, "forward", lambda x: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            clip.encode_prompts(torch.ones(3, 24).double(), CLASSES)
    assert torch.equal(clip.encode_text(["a dog."]), before)


def test_words_become_contexts_that_say_the_same(clip: Clip) -> None:
    context = context_init(clip, 4, "a photo of a")
    assert torch.equal(clip.encode_prompts(context, CLASSES), clip.encode_text(class_prompts(CLASSES)))
    context += 1  # a copy: the embeddings of the model stay
    torch.testing.assert_close(context_init(clip, 4, "a photo of a"), context - 1, rtol=0, atol=1e-12)


def test_normal_contexts_are_seeded_and_small(clip: Clip) -> None:
    state = torch.get_rng_state()
    context = context_init(clip, 64, seed=3)
    assert context.shape == (64, 24)
    assert 0.018 < float(context.std()) < 0.022
    assert torch.equal(context, context_init(clip, 64, seed=3))
    assert not torch.equal(context, context_init(clip, 64, seed=4))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("tokens", "init", "words"),
    [
        (0, "normal", "0 context tokens"),
        (3, "a photo of a", "has 4 tokens, not the 3"),
        (1, "", "has 0 tokens, not the 1"),
    ],
)
def test_contexts_that_cannot_be_made_are_errors(clip: Clip, tokens: int, init: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        context_init(clip, tokens, init)


@pytest.mark.parametrize("shape", [(24,), (0, 24), (4, 23), (0, 4, 24), (1, 4, 4, 24), (1, 3, 0, 24), (1, 1, 3, 4, 24)])
def test_contexts_of_another_shape_are_errors(clip: Clip, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"context must be \(M, 24\) or \(S, M, 24\)"):
        clip.encode_prompts(torch.zeros(shape), CLASSES)


def test_hand_crafted_prompts_and_templates(clip: Clip) -> None:
    assert class_prompts(["tv_monitor"], "this is {}") == ["this is tv monitor"]
    fixed = hand_crafted(clip, CLASSES)
    assert not fixed.requires_grad
    written = ["a photo of a dog.", "a photo of a traffic light.", "a photo of a tv monitor."]
    assert torch.equal(fixed, clip.encode_text(written))
    with pytest.raises(ConfigError, match=r"needs one \{\} where"):
        class_prompts(CLASSES, "a photo.")
    with pytest.raises(ConfigError, match="must not be empty"):
        class_prompts(["dog", "_"])


def test_hierarchical_prompts_are_two_contexts_and_nothing_else(clip: Clip) -> None:
    prompts, fixed = HierarchicalPrompts(clip, CLASSES, tokens=2, seed=5), hand_crafted(clip, CLASSES)
    assert [name for name, _ in prompts.named_parameters()] == ["contexts.global", "contexts.local"]
    v, v_prime = prompts.contexts["global"], prompts.contexts["local"]
    assert not torch.equal(v, v_prime)
    text_global, text_local = prompts(clip, fixed)
    torch.testing.assert_close(text_global, clip.encode_prompts(v, CLASSES), rtol=0, atol=1e-12)
    torch.testing.assert_close(text_local, clip.encode_prompts(v_prime, CLASSES), rtol=0, atol=1e-12)

    assert prompts.moved() == {"global": 0.0, "local": 0.0}
    with torch.no_grad():
        v_prime += 0.5
    assert prompts.moved() == pytest.approx({"global": 0.0, "local": 0.5})
    again = HierarchicalPrompts(clip, CLASSES, tokens=2, seed=5)
    again.load_state_dict(prompts.state_dict())  # a resumed run knows where it started: from its seed
    assert again.moved() == pytest.approx({"global": 0.0, "local": 0.5})


@pytest.mark.parametrize("learned", ["global", "local"])
def test_a_set_that_is_not_learned_stays_hand_crafted(clip: Clip, learned: str) -> None:
    fixed = hand_crafted(clip, CLASSES)
    prompts = HierarchicalPrompts(clip, CLASSES, tokens=2, learned=[learned])
    assert [name for name, _ in prompts.named_parameters()] == [f"contexts.{learned}"]
    text_global, text_local = prompts(clip, fixed)
    assert (text_global is fixed) is (learned == "local")
    assert (text_local is fixed) is (learned == "global")
    with pytest.raises(ConfigError, match="choose from global, local"):
        HierarchicalPrompts(clip, CLASSES, learned=["both"])


def adapting(clip: Clip, counts: list[int], shrinkage: float, **options: Any) -> HierarchicalPrompts:
    options = {"tokens": 2, "seed": 5, "class_counts": torch.tensor(counts), "shrinkage": shrinkage, **options}
    return HierarchicalPrompts(clip, CLASSES, **options)


def test_pooling_weights_are_the_share_of_a_class_in_its_own_context() -> None:
    weights = pooling_weights(torch.tensor([0, 1, 6, 300]), 6.0)
    assert weights.tolist() == pytest.approx([0, 1 / 7, 1 / 2, 300 / 306])
    assert pooling_weights(torch.tensor([0, 1, 300]), 0.0).tolist() == [0, 1, 1]
    assert pooling_weights(torch.tensor([0, 1, 300]), float("inf")).tolist() == [0, 0, 0]


@pytest.mark.parametrize("shrinkage", [-1.0, float("nan")])
def test_a_shrinkage_that_counts_nothing_is_an_error(clip: Clip, shrinkage: float) -> None:
    with pytest.raises(ConfigError, match=r"shrinkage is .* at least 0"):
        adapting(clip, [3, 0, 1], shrinkage)


@pytest.mark.parametrize("counts", [None, torch.tensor([1, 2]), torch.ones(3, 1), torch.tensor(3)])
def test_counts_that_are_not_those_of_the_classes_are_errors(clip: Clip, counts: torch.Tensor | None) -> None:
    with pytest.raises(ConfigError, match=r"class_counts must be \(3,\)"):
        HierarchicalPrompts(clip, CLASSES, class_counts=counts, shrinkage=1.0)
    with pytest.raises(ConfigError, match="at least 0"):
        adapting(clip, [3, -1, 1], 1.0)


def test_prompts_that_adapt_start_from_the_shared_ones(clip: Clip) -> None:
    fixed = hand_crafted(clip, CLASSES)
    shared = HierarchicalPrompts(clip, CLASSES, tokens=2, seed=5, class_counts=torch.tensor([3, 0, 1]))
    assert list(shared.state_dict()) == ["contexts.global", "contexts.local"]  # without a shrinkage, counts are nothing
    prompts = adapting(clip, [3, 0, 1], 1.0)
    assert prompts.residuals["global"].shape == (3, 2, 24)
    for ours, expected in zip(prompts(clip, fixed), shared(clip, fixed), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    assert set(prompts.moved().values()) == {0.0}


@pytest.mark.parametrize("learned", [["global", "local"], ["local"]])
def test_residuals_enter_by_the_counts_of_their_classes(clip: Clip, learned: list[str]) -> None:
    fixed, counts, m = hand_crafted(clip, CLASSES), [3, 0, 1], 2.0
    prompts = adapting(clip, counts, m, learned=learned)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for residual in prompts.residuals.values():
            residual += torch.randn(residual.shape, generator=generator)
    texts = dict(zip(("global", "local"), prompts(clip, fixed), strict=True))
    assert (texts["global"] is fixed) is ("global" not in learned)
    squares = []
    for name in learned:
        for i, n in enumerate(counts):
            change = n / (n + m) * prompts.residuals[name][i].detach()
            alone = clip.encode_prompts(prompts.contexts[name] + change, [CLASSES[i]])[0]
            torch.testing.assert_close(texts[name][i], alone, rtol=0, atol=1e-12)
            squares += [float(x) ** 2 for x in change.flatten()] if name == "local" else []
    assert prompts.moved()["local residual"] == pytest.approx((sum(squares) / len(squares)) ** 0.5)
    assert prompts.moved()["local"] == 0
    assert list(prompts.named_contexts()) == [*learned, *(f"{name} residual" for name in learned)]

    gradient = torch.autograd.grad(texts["local"].sum(), prompts.residuals["local"])[0]
    assert float(gradient[0].abs().max()) > 0
    assert float(gradient[1].abs().max()) == 0  # no positives: nothing of its own to learn from


def test_ensembles_are_means_of_directions(clip: Clip) -> None:
    templates = ["a photo of a {}.", "{} in a video game.", "art of the {}."]
    expected = []
    for name in ("dog", "traffic light", "tv monitor"):
        total = np.zeros(16)
        for template in templates:
            feature = clip.encode_text([template.format(name)])[0].detach().numpy()
            total += feature / np.sqrt((feature**2).sum())
        expected.append(total / np.sqrt((total**2).sum()))
    features = ensemble(clip, CLASSES, templates)
    np.testing.assert_allclose(features.numpy(), np.stack(expected), rtol=0, atol=1e-12)
    assert not features.requires_grad
    for wrong in ([], "a photo of a {}."):
        with pytest.raises(ConfigError, match="give a non-empty list, or one of single, simple, imagenet"):
            ensemble(clip, CLASSES, wrong)
    with pytest.raises(ConfigError, match=r"needs one \{\} where"):
        ensemble(clip, CLASSES, ["a photo."])


def test_template_sets_are_those_of_clip(clip: Clip) -> None:
    assert {name: len(templates) for name, templates in TEMPLATE_SETS.items()} == {
        "single": 1,
        "simple": 7,
        "imagenet": 80,
    }
    assert "itap of a {}." in TEMPLATE_SETS["simple"]
    assert TEMPLATE_SETS["imagenet"][0] == "a bad photo of a {}."
    for templates in TEMPLATE_SETS.values():
        assert len({class_prompts(["dog"], template)[0] for template in templates}) == len(templates)
    single = ensemble(clip, CLASSES, TEMPLATE_SETS["single"])
    torch.testing.assert_close(single, torch.nn.functional.normalize(hand_crafted(clip, CLASSES), dim=-1))


@pytest.mark.shared
@pytest.mark.parametrize("activation", ["quickgelu", "gelu"])
@pytest.mark.parametrize("scale", ["small", "big"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_golden_prompts(golden: Path, activation: str, scale: str, dtype: torch.dtype, tolerance: float) -> None:
    clip = load_clip(golden / f"clip_small_{activation}.json", pretrained=golden / "clip_small.safetensors").to(dtype)
    with np.load(golden / f"clip_small_{activation}.npz") as file:
        vectors: dict[str, NDArray[Any]] = dict(file)
    classes = json.loads((golden / "splits.json").read_text())["voc"]["class_names"]
    suffix = "" if scale == "small" else "_big"

    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(vectors[name]).to(dtype)

    def check(value: torch.Tensor, name: str) -> None:
        expected = vectors[f"prompt_{scale}__{name}"]
        np.testing.assert_allclose(value.detach(), expected, rtol=0, atol=tolerance * float(np.abs(expected).max()))

    local = tensor(f"ctx{suffix}").requires_grad_()
    glob = tensor(f"ctx_double{suffix}").requires_grad_()
    text_local, text_global = clip.encode_prompts(local, classes), clip.encode_prompts(glob, classes)
    check(text_local, "text_local")
    check(text_global, "text_global")
    total = (tensor("cotangent_text") * text_local).sum()
    check(torch.autograd.grad(total, local, retain_graph=True)[0], "grad_ctx_text")

    released = {"alpha": 0.4, "k": int(vectors["topk"]), "reading": "released"}
    scores = dual_view_scores(*clip.encode_image(tensor("image")), text_global, text_local, **released)  # type: ignore[arg-type]
    check(scores, "score")
    total = (tensor("cotangent_score") * scores).sum()
    grad_local, grad_global = torch.autograd.grad(total, [local, glob], retain_graph=True)
    check(grad_local, "grad_ctx_score")
    check(grad_global, "grad_ctx_double_score")

    consistency = torch.nn.functional.l1_loss(text_local, hand_crafted(clip, classes))
    check(consistency, "sc_l1_mean")
    check(torch.autograd.grad(consistency, local)[0], "grad_ctx_sc")
