"""Encoders of every family against open_clip's own results, and of a small CLIP against the reference code."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from hpdval.errors import ConfigError, ModelError
from hpdval.models import Clip, dual_view_scores, hand_crafted, load_clip
from hpdval.models.text import text_features

NAMES = ["dog", "traffic_light", "person"]


Json = dict[str, Any]


def small_config(vision: Json | None = None, text: Json | None = None, **top: Any) -> Json:
    return {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16, **(vision or {})},
        "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2, **(text or {})},
        **top,
    }


COCA = {"context_length": 19, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 1}
TIMM = {"timm_pool": "avg", "timm_proj": "linear", "image_size": 160}
FAMILIES: dict[str, Json] = {
    "plain": small_config(),
    "quickgelu": small_config(quick_gelu=True),
    "mean of patches": small_config({"pool_type": "avg"}),
    "mean of patches, then norm": small_config({"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True}),
    "class token, then norm": small_config({"final_ln_after_pool": True}),
    "fixed positions": small_config({"pos_embed_type": "sin_cos_2d"}),
    "layer scale": small_config({"ls_init_value": 0.5}, {"ls_init_value": 0.5}),
    "norm of queries and keys": small_config({"qk_norm": True, "scale_fc": True}),
    "other norm and activation": small_config(
        {"norm_kwargs": {"eps": 1e-3}, "act_kwargs": {"approximate": "tanh"}}, {"norm_kwargs": {"eps": 1e-3}}
    ),
    "patch dropout in training": small_config({"patch_dropout": 0.5}),
    "tokens in the output": small_config({"output_tokens": True}),
    "own text tower": small_config(custom_text=True),
    "text in both directions": small_config(text={"no_causal_mask": True, "pool_type": "last"}, custom_text=True),
    "text with a class token": small_config(
        text={"embed_cls": True, "context_length": 19, "output_tokens": True}, custom_text=True
    ),
    "text projected with a bias": small_config(text={"proj_bias": True}, custom_text=True, init_logit_bias=-10.0),
    "CoCa without attentional pool": small_config(
        {"output_tokens": True},
        {"embed_cls": True, "context_length": 19, "output_tokens": True},
        custom_text=True,
        multimodal_cfg=COCA,
    ),
    "timm ViT": small_config({**TIMM, "timm_model_name": "test_vit3"}),
    "timm relative positions": small_config({**TIMM, "timm_model_name": "test_vit_relpos"}),
    "EVA02": small_config(
        {"timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token", "timm_proj": None, "image_size": 224},
        custom_text=True,
    ),
}


def build(tmp_path: Path, config: Json, **options: Any) -> Clip:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    return load_clip(path, **options)


@pytest.fixture
def clip(tmp_path: Path) -> Clip:
    return build(tmp_path, small_config())


def first(features: Any) -> torch.Tensor:
    return features[0] if isinstance(features, tuple) else features


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_family_agrees_with_open_clip(tmp_path: Path, family: str) -> None:
    clip = build(tmp_path, FAMILIES[family]).double()
    visual: Any = clip.visual
    images = torch.randn(2, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(0)).double()

    # the global embedding is open_clip's; a patch is its last token after the final norm, projected
    cls, patches = clip.encode_image(images)
    torch.testing.assert_close(cls, first(visual(images)), rtol=0, atol=1e-12)
    options = {"normalize_intermediates": True, "intermediates_only": True, "output_fmt": "NLC"}
    tokens = visual.forward_intermediates(images, indices=1, **options)["image_intermediates"][0]
    if hasattr(visual, "trunk"):
        projected = visual.head(visual.trunk.head(visual.trunk.fc_norm(tokens)))
    else:
        projected = tokens @ visual.proj
    torch.testing.assert_close(patches, projected, rtol=0, atol=1e-12)
    rows, columns = clip.patch_grid
    assert patches.shape == (2, rows * columns, clip.embed_dim)
    assert cls.shape == (2, clip.embed_dim)
    if getattr(visual, "pool_type", "") == "avg" and not visual.final_ln_after_pool:
        torch.testing.assert_close(patches.mean(dim=1), cls, rtol=0, atol=1e-12)

    # text: open_clip's own, at full length; and a context that says what the words say changes nothing
    prompts = [f"a photo of a {name.replace('_', ' ')}." for name in NAMES]
    ids = clip.tokenise(prompts)
    model: Any = clip.model
    whole = first(model.encode_text(ids, normalize=False))
    torch.testing.assert_close(clip.encode_text(prompts), whole, rtol=0, atol=1e-12)
    words = clip.token_embedding.weight[ids[0, 1:5]]
    assert torch.equal(clip.encode_prompts(words, NAMES), clip.encode_text(prompts))


def test_patches_come_in_rows_of_the_grid(tmp_path: Path) -> None:
    clip = build(tmp_path, small_config({"layers": 0}))  # without attention a patch token knows its patch only
    images = torch.zeros(1, 3, 32, 32)
    images[:, :, 8:16, 24:32] = 1.0  # row 1, column 3 of 4 x 4
    with torch.no_grad():
        change = (clip.encode_image(images).patches - clip.encode_image(torch.zeros(1, 3, 32, 32)).patches)[0]
    assert change.abs().sum(dim=1).nonzero().tolist() == [[1 * 4 + 3]]


def test_training_mode_keeps_every_patch(tmp_path: Path) -> None:
    clip = build(tmp_path, FAMILIES["patch dropout in training"]).train()
    assert clip.encode_image(torch.zeros(1, 3, 32, 32)).patches.shape[1] == 16


def test_both_outputs_carry_gradients_to_the_tower(clip: Clip) -> None:
    images = torch.randn(1, 3, 32, 32)
    for view in range(2):
        clip.zero_grad()
        clip.encode_image(images)[view].square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in clip.visual.parameters())


# -- pixels ----------------------------------------------------------------------------------------------------------


def test_normalise_is_clips_own_mean_and_deviation(clip: Clip) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    mean, std = np.array(open_clip.OPENAI_DATASET_MEAN), np.array(open_clip.OPENAI_DATASET_STD)
    expected = ((pixels / 255.0 - mean) / std).transpose(0, 3, 1, 2)
    for images in (torch.from_numpy(pixels), torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())):
        np.testing.assert_allclose(clip.normalise(images), expected, atol=1e-6)
    with torch.no_grad():  # uint8 images may be encoded as they are
        direct = clip.encode_image(torch.from_numpy(pixels))
        torch.testing.assert_close(direct, clip.encode_image(torch.from_numpy(expected).float()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 3, 32, 31), (1, 3, 64, 64), (1, 1, 32, 32)])
def test_images_of_another_shape_are_errors(clip: Clip, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"images must be \(B, 3, 32, 32\)"):
        clip.encode_image(torch.zeros(shape))
    with pytest.raises(ConfigError, match="images must be"):
        clip.encode_image(torch.zeros(shape, dtype=torch.uint8))


# -- text ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_tokens_after_the_end_do_not_matter_and_are_left_out(clip: Clip) -> None:
    model = clip.model.double()
    ids = clip.tokenise(["dog", "a photo of a very small dog."])
    whole = text_features(model, ids, plain=True)
    torch.testing.assert_close(text_features(model, ids), whole, rtol=0, atol=1e-14)
    seen: list[int] = []
    handle = clip.token_embedding.register_forward_hook(
        lambda module, inputs, output: seen.append(output[..., 0].numel())
    )
    text_features(model, ids)
    handle.remove()
    assert seen == [12]  # [SOS], once; dog [EOT]; a photo of a very small dog . [EOT]: of 2 * 20


def test_a_prompt_that_does_not_fit_is_named(clip: Clip) -> None:
    fits = "dog " * 18  # and [SOS], [EOT]
    assert clip.encode_text([fits]).shape == (1, 16)
    with pytest.raises(ConfigError, match=r"the prompt 'dog dog .* cat' needs more than the 20 tokens"):
        clip.encode_text(["dog", fits + "cat"])
    with pytest.raises(ConfigError, match=r"X X X X dog dog .* needs more than"):
        clip.encode_prompts(torch.zeros(4, clip.text_width), ["cat", fits])


@pytest.mark.parametrize("prompts", ["a photo", [], [1, 2]])
def test_prompts_must_be_a_list_of_strings(clip: Clip, prompts: Any) -> None:
    with pytest.raises(ConfigError, match="non-empty list of strings"):
        clip.encode_text(prompts)


def test_a_vocabulary_too_small_for_the_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="gives id 49407, the model has 100 embeddings"):
        build(tmp_path, small_config(text={"vocab_size": 100})).encode_text(["dog"])


def test_a_tokenizer_that_is_not_here_is_an_error_not_a_download(tmp_path: Path) -> None:
    clip = build(tmp_path, small_config(text={"hf_tokenizer_name": "nobody/nothing"}))
    assert clip.encode_image(torch.zeros(1, 3, 32, 32)).cls.shape == (1, 16)
    with pytest.raises(ModelError, match="tokenizer 'nobody/nothing' is not here"):
        clip.encode_text(["dog"])


def test_inputs_follow_the_model_to_its_device(tmp_path: Path) -> None:
    """The meta device stands for any other: it computes shapes, and refuses operands that stayed behind."""
    clip = build(tmp_path, small_config(), device="meta")
    pixels = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    features = clip.encode_image(torch.from_numpy(pixels))
    texts = clip.encode_text(["a dog.", "a cat."]), clip.encode_prompts(torch.zeros(4, clip.text_width), NAMES)
    assert {value.device.type for value in (*features, *texts)} == {"meta"}
    assert [tuple(value.shape) for value in (*features, *texts)] == [(2, 16), (2, 16, 16), (2, 16), (3, 16)]


@torch.no_grad()
def test_autocast_changes_little(tmp_path: Path) -> None:
    clip = build(tmp_path, FAMILIES["quickgelu"])
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    whole = (*clip.encode_image(images), clip.encode_text(NAMES))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = (*clip.encode_image(images), clip.encode_text(NAMES))
    for exact, rounded in zip(whole, half, strict=True):
        assert torch.nn.functional.cosine_similarity(exact, rounded.float(), dim=-1).min() > 0.999


# -- what identifies a model -----------------------------------------------------------------------------------------


def test_digests_follow_weights_architecture_and_preprocessing(tmp_path: Path) -> None:
    clip, again = build(tmp_path, small_config()), build(tmp_path, small_config())
    assert (clip.weights_sha256, clip.fingerprint) == (again.weights_sha256, again.fingerprint)
    quick = build(tmp_path, small_config(quick_gelu=True))
    assert (clip.weights_sha256, clip.fingerprint) != (quick.weights_sha256, quick.fingerprint)
    assert clip.weights_sha256 == quick.weights_sha256  # the activation has no parameters: the fingerprint tells
    other = build(tmp_path, {"model_cfg": small_config(), "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}})
    assert clip.fingerprint != other.fingerprint
    with torch.no_grad():
        again.visual.proj[0, 0] += 1e-3  # type: ignore[index,operator]
    assert clip.weights_sha256 != again.weights_sha256


# -- the reference code's numbers ------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize("activation", ["quickgelu", "gelu"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@torch.no_grad()
def test_golden_features(golden: Path, activation: str, dtype: torch.dtype, tolerance: float) -> None:
    weights = golden / "clip_small.safetensors"  # stored partly in float16; two heads, which only the json says
    clip = load_clip(golden / f"clip_small_{activation}.json", pretrained=weights)
    assert {parameter.dtype for parameter in clip.parameters()} == {torch.float32}
    clip = clip.to(dtype)
    with np.load(golden / f"clip_small_{activation}.npz") as file:
        vectors: dict[str, NDArray[Any]] = dict(file)
    classes = json.loads((golden / "splits.json").read_text())["voc"]["class_names"]

    def check(value: torch.Tensor, name: str) -> None:
        allowed = tolerance * float(np.abs(vectors[name]).max())
        np.testing.assert_allclose(value, vectors[name], rtol=0, atol=allowed)

    features = clip.encode_image(torch.from_numpy(vectors["image"]))
    check(features.cls, "cls")
    check(features.patches, "patch")
    prompts = [f"a photo of a {name}." for name in classes]
    np.testing.assert_array_equal(clip.tokenise(prompts), vectors["token_ids"])
    text = clip.encode_text(prompts)
    check(text, "text")
    check(clip.encode_text([prompt.removesuffix(".") for prompt in prompts]), "text_nodot")
    released = {"k": int(vectors["topk"]), "reading": "released"}
    check(dual_view_scores(*features, text, alpha=0.4, **released), "score_dual")  # type: ignore[arg-type]
    check(dual_view_scores(*features, text, alpha=0.5, **released), "score_clipvit")  # type: ignore[arg-type]
    teacher = torch.from_numpy(vectors["kd_teacher_cls"])
    check((teacher - features.cls.double()).abs().mean(), "kd_l1_mean")


@pytest.mark.shared
@torch.no_grad()
def test_golden_weights_are_taken_exactly_and_their_activation_matters(golden: Path) -> None:
    """The weights fit either configuration: only the json, and the fingerprint, tell which numbers come out."""
    path = golden / "clip_small.safetensors"
    quick, plain = (load_clip(golden / f"clip_small_{name}.json", pretrained=path) for name in ("quickgelu", "gelu"))
    stored = load_file(path)
    assert stored["token_embedding.weight"].dtype == torch.float16
    for clip in (quick, plain):
        loaded = clip.model.state_dict()
        assert loaded.keys() == stored.keys()
        assert all(torch.equal(loaded[key], value.float()) for key, value in stored.items())
        assert clip.note == ""
    assert quick.weights_sha256 == plain.weights_sha256
    assert quick.fingerprint != plain.fingerprint

    with np.load(golden / "clip_small_quickgelu.npz") as file:
        image, expected = torch.from_numpy(file["image"]), {name: file[name] for name in ("cls", "patch", "text")}
        ids = torch.from_numpy(file["token_ids"]).long()
    wrong = {**plain.encode_image(image)._asdict(), "text": plain.encode_tokens(ids)}
    wrong["patch"] = wrong.pop("patches")
    for name, right in expected.items():  # far beyond the 1e-5 that float32 may differ
        assert np.abs(wrong[name].numpy() - right).max() > 1e-3 * np.abs(right).max(), name


@pytest.mark.shared
@torch.no_grad()
def test_a_clip_trained_on_photographs_knows_them(shared_data: Path) -> None:
    """A wrong layout, normalisation or activation would cost most of this; the number itself is no benchmark."""
    from PIL import Image
    from sklearn.metrics import average_precision_score

    folder = shared_data / "mosaic"
    clip = load_clip(folder / "photo_clip.json", pretrained=folder / "photo_clip.safetensors")
    classes = (folder / "classes.txt").read_text().split("\n")[:20]
    with open(folder / "test.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[:200]
    targets = np.array([[name in row["labels"].split(";") for name in classes] for row in rows])
    pixels = np.stack([np.asarray(Image.open(folder / row["path"]).convert("RGB")) for row in rows])
    scores = dual_view_scores(*clip.encode_image(torch.from_numpy(pixels)), hand_crafted(clip, classes), k=0.16)
    present = targets.any(axis=0)
    precision = average_precision_score(targets[:, present], scores[:, present].numpy(), average="macro")
    assert precision > 3 * targets.mean()
