"""Heat maps: geometry against images that know their own coordinates, attention against slow loops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import hpdval
from hpdval.data.store import resize_image, view_box
from hpdval.errors import ConfigError
from hpdval.models import Clip
from hpdval.models.attention import _recorded, attention_rollout, gradient_attention
from hpdval.models.dual_view import local_scores, patch_count, patch_scores
from hpdval.models.student import make_student
from hpdval.models.towers import grid_extent, image_features
from hpdval.scoring import DualViewScorer, maps
from hpdval.scoring.localisation import maps_of_split
from hpdval.scoring.maps import METHODS, Heatmaps, heatmaps, texts_of, upsample

CLASSES = ("cat", "boat", "sun")


@pytest.fixture(scope="module")
def clip() -> Clip:
    return hpdval.load_clip("scenes")


@pytest.fixture(scope="module")
def scorer(clip: Clip) -> DualViewScorer:
    return hpdval.zero_shot_scorer(clip, CLASSES)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


# -- where the view lies on the image ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["squash", "crop"])
@pytest.mark.parametrize("shape", [(64, 64), (97, 301), (301, 97), (40, 50), (30, 900), (900, 30)])
def test_the_view_box_is_what_resize_image_keeps(shape: tuple[int, int], mode: str) -> None:
    """An image whose grey level is its coordinate tells which part of it a resized pixel shows."""
    height, width = shape
    left, top, right, bottom = view_box(height, width, 32, mode)
    for axis, (start, stop, whole) in enumerate([(left, right, width), (top, bottom, height)]):
        ramp = np.linspace(0, 250, whole)
        image = np.broadcast_to(ramp[None, :, None] if axis == 0 else ramp[:, None, None], (height, width, 3))
        seen = resize_image(image.round().astype(np.uint8), 32, mode)[..., 0]
        level = (seen[16, 4:28] if axis == 0 else seen[4:28, 16]).astype(float)  # edges feel the filter's width
        pixel = start + (np.arange(4, 28) + 0.5) * (stop - start) / 32 - 0.5
        assert np.abs(level - pixel * 250 / max(whole - 1, 1)).max() < 2.0


def test_upsampling_is_that_of_torch_where_the_grid_covers_the_image() -> None:
    values = np.random.default_rng(1).normal(size=(2, 5, 7)).astype(np.float32)
    ours = upsample(values, (60, 63), (0, 0, 63, 60))
    theirs = F.interpolate(torch.from_numpy(values)[None], (60, 63), mode="bilinear", align_corners=False)[0].numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_upsampling_leaves_what_was_not_seen_empty_and_takes_a_single_patch() -> None:
    one = upsample(np.full((1, 1, 1), 3.0), (4, 8), (2, 0, 6, 4))
    assert np.isnan(one[0, :, [0, 1, 6, 7]]).all()
    assert (one[0, :, 2:6] == 3).all()


def test_top_patches_are_rectangles_in_pixels_of_the_image() -> None:
    values = np.zeros((1, 2, 4), np.float32)
    values[0, 1, 2], values[0, 0, 3] = 5, 4
    maps = Heatmaps(values=values, names=("x",), shape=(100, 400), box=(100, 0, 300, 100))
    assert maps.top_patches(2)[0].tolist() == [[200, 50, 50, 50], [250, 0, 50, 50]]
    assert len(maps.top_patches(0.5)[0]) == 4
    with pytest.raises(ConfigError, match="k is 9 of 8 patches"):
        maps.top_patches(9)


# -- similarity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reading", ["paper", "released"])
def test_the_k_best_of_a_map_are_the_local_score(reading: str) -> None:
    rng = torch.Generator().manual_seed(0)
    patches, text = torch.randn(3, 12, 5, generator=rng), torch.randn(4, 5, generator=rng)
    best = patch_scores(patches, text, reading).topk(3, dim=1).values.mean(1)
    if reading == "paper":
        patches, text = F.normalize(patches, dim=-1), F.normalize(text, dim=-1)
    torch.testing.assert_close(best, local_scores(patches, text, 3))


def test_maps_add_up_to_the_scores_that_the_scorer_gives(clip: Clip) -> None:
    local = hpdval.zero_shot_scorer(clip, CLASSES, score=hpdval.get_recipe("scenes", **{"score.alpha": 0.0}).score)
    image = picture(64, 64)
    maps = heatmaps(local, image, CLASSES)
    k = patch_count(local.score_config.k, maps.values[0].size)
    by_hand = np.sort(maps.values.reshape(len(CLASSES), -1))[:, -k:].mean(1)
    np.testing.assert_allclose(by_hand, local.score_images([image])[0], atol=1e-5)


def test_each_set_of_prompts_and_each_reading_has_its_own_maps(clip: Clip) -> None:
    rng = torch.Generator().manual_seed(0)
    sets = [torch.randn(3, clip.embed_dim, generator=rng) for _ in range(2)]
    scorer = DualViewScorer(clip, CLASSES, *sets)
    image = picture(50, 80)
    maps = {
        (prompts, reading): heatmaps(scorer, image, ["cat"], prompts=prompts, reading=reading).values
        for prompts in ("local", "global", "hand-crafted")
        for reading in ("paper", "released")
    }
    distinct = {values.tobytes() for values in maps.values()}
    assert len(distinct) == 6
    np.testing.assert_array_equal(heatmaps(scorer, image, ["cat"]).values, maps["local", "paper"])
    assert texts_of(scorer, "global") is scorer.text_global


def test_a_sentence_has_the_map_of_the_class_it_describes(scorer: DualViewScorer) -> None:
    maps = heatmaps(scorer, picture(64, 64), ["boat"], texts=["a photo of a boat."])
    np.testing.assert_allclose(maps.values[0], maps.values[1], atol=1e-6)
    assert maps.names == ("boat", "a photo of a boat.")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(30, 90), (90, 30), (64, 64)])
def test_every_method_takes_images_of_any_shape(scorer: DualViewScorer, method: str, shape: tuple[int, int]) -> None:
    maps = heatmaps(scorer, picture(*shape), ["cat", "sun"], method=method)
    assert maps.values.shape == (1 if method == "rollout" else 2, *scorer.clip.patch_grid)
    assert maps.pixels.shape[1:] == shape
    assert np.isfinite(maps.values).all()


def test_a_cropped_view_leaves_the_rest_of_the_image_empty(clip: Clip) -> None:
    cropping = hpdval.zero_shot_scorer(clip, CLASSES, resize="crop")
    pixels = heatmaps(cropping, picture(30, 90), ["cat"]).pixels[0]
    assert np.isnan(pixels[:, :29]).all()
    assert np.isnan(pixels[:, 61:]).all()
    assert np.isfinite(pixels[:, 30:60]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["dog"]}, r"'dog' is no class of this model \(cat, boat, sun\); give your own words as texts="),
        ({}, r"nothing to show: give classes=\[...\] or texts=\[...\]"),
        ({"classes": ["cat"], "method": "saliency"}, "method is 'saliency'; use one of 'similarity'"),
        ({"classes": ["cat"], "prompts": "both"}, "prompts is 'both'; use one of 'local', 'global', 'hand-crafted'"),
        ({"classes": ["cat"], "reading": "mine"}, "reading is 'mine'; use one of paper, released"),
        ({"classes": "cat"}, "classes and texts are lists of strings"),
        ({"classes": ["cat"], "method": "rollout", "reading": "mine"}, "reading is 'mine'; use one of paper, released"),
        ({"texts": "a red thing"}, "classes and texts are lists of strings"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_line(
    scorer: DualViewScorer, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        heatmaps(scorer, picture(64, 64), **options)
    assert "\n" not in str(caught.value)


def test_who_gives_no_scorer_is_told_where_to_get_one(clip: Clip) -> None:
    with pytest.raises(ConfigError, match=r"'runs/x' is no scorer of texts on patches; give hpdval.load_run\(folder\)"):
        heatmaps("runs/x", picture(64, 64), ["cat"])  # type: ignore[arg-type]


def test_maps_say_their_unit(clip: Clip, scorer: DualViewScorer) -> None:
    assert heatmaps(scorer, picture(64, 64), ["cat"]).unit == "cosine"
    assert heatmaps(scorer, picture(64, 64), ["cat"], reading="released").unit == "dot product"
    assert heatmaps(scorer, picture(64, 64), ["cat"], method="gradient").unit == "relevance"


# -- attention ---------------------------------------------------------------------------------------------------------

TOWERS = {
    "open_clip, 5 x 5 of 7 pixels, 1 left over": {"image_size": 36, "patch_size": 7},
    "open_clip, pooled": {"image_size": 32, "patch_size": 8, "pool_type": "avg", "final_ln_after_pool": True},
    "timm": {"image_size": 224, "timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token", "timm_proj": "linear"},
    "timm, pooled": {"image_size": 224, "timm_model_name": "vit_tiny_patch16_224", "timm_pool": "avg"},
    "timm, rotary": {"image_size": 224, "timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token"},
}


def make_clip(tmp_path: Path, vision: dict[str, Any]) -> Clip:
    """A small model with random weights, built as any configuration of open_clip is."""
    timm_only = {"timm_model_pretrained": False, "timm_drop": 0.0}
    plain = {"layers": 3, "width": 32, "head_width": 16}
    vision = {**(timm_only if "timm_model_name" in vision else plain), **vision}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    path = tmp_path / "model.json"
    path.write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}), encoding="utf-8")
    torch.manual_seed(0)
    return hpdval.load_clip(str(path)).float().eval()


@pytest.fixture(params=TOWERS.values(), ids=list(TOWERS))
def tower(request: pytest.FixtureRequest, tmp_path: Path) -> Clip:
    return make_clip(tmp_path, request.param)


def views(clip: Clip, count: int = 2) -> torch.Tensor:
    shape = (count, 3, clip.image_size, clip.image_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def test_reading_the_attention_changes_no_feature(tower: Clip) -> None:
    images = views(tower)
    with torch.no_grad():
        before = tower.encode_image(images)
        with _recorded(tower) as layers:
            during = tower.encode_image(images)
        after = tower.encode_image(images)
    torch.testing.assert_close(during.cls, before.cls, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(during.patches, before.patches, atol=2e-5, rtol=1e-4)
    assert torch.equal(after.cls, before.cls)
    for attention in layers:
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]), atol=1e-5, rtol=0)


def test_rollout_is_a_share_of_what_each_patch_gives(tower: Clip) -> None:
    rollout = attention_rollout(tower, views(tower))
    rows, columns = tower.patch_grid
    assert rollout.shape == (2, rows * columns)
    assert (rollout >= 0).all()
    assert (rollout.sum(1) <= 1 + 1e-5).all()


def test_rollout_and_gradient_attention_equal_slow_loops(clip: Clip) -> None:
    images, text = views(clip, 1), clip.encode_text(["a photo of a cat."]).detach()
    with _recorded(clip) as layers:
        f = image_features(clip.visual, clip.normalise(images))
        cosine = F.cosine_similarity(f.cls[0], text[0], dim=0)
        gradients = torch.autograd.grad(cosine, layers)
    tokens = layers[0].shape[-1]
    rollout = relevance = np.eye(tokens)
    for attention, gradient in zip(layers, gradients, strict=True):
        a, g = attention[0].detach().double().numpy(), gradient[0].double().numpy()
        mean, weighted = np.zeros((tokens, tokens)), np.zeros((tokens, tokens))
        for head in range(len(a)):
            mean += a[head] / len(a)
            weighted += np.maximum(a[head] * g[head], 0) / len(a)
        half = 0.5 * mean + 0.5 * np.eye(tokens)
        rollout = half / half.sum(1, keepdims=True) @ rollout
        relevance = relevance + weighted @ relevance
    np.testing.assert_allclose(attention_rollout(clip, images)[0].numpy(), rollout[0, 1:], rtol=1e-4, atol=1e-7)
    ours = gradient_attention(clip, images, text)[0].numpy()
    np.testing.assert_allclose(ours, relevance[0, 1:], rtol=1e-3, atol=1e-6)


def test_gradient_attention_knows_the_text_and_mixes_no_images(tower: Clip) -> None:
    images = views(tower, 3)
    texts = torch.randn(3, tower.embed_dim, generator=torch.Generator().manual_seed(1))
    together = gradient_attention(tower, images, texts)
    alone = torch.cat([gradient_attention(tower, images[i : i + 1], texts[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-3)
    assert not torch.allclose(gradient_attention(tower, images, -texts), together)
    assert all(p.grad is None for p in tower.parameters())
    with torch.no_grad():  # a caller's mode neither forbids it nor is changed
        assert torch.equal(gradient_attention(tower, images, texts), together)
        assert not torch.is_grad_enabled()


def test_an_exchanged_tower_and_training_mode_work_too(clip: Clip) -> None:
    for projection in ("clip", "head"):
        student = make_student(clip, student="scenes", projection=projection).train()
        assert gradient_attention(student, views(student), torch.randn(2, clip.embed_dim)).shape == (2, 64)
        assert student.training


def test_a_grid_that_leaves_pixels_over_covers_less_of_the_image(tmp_path: Path) -> None:
    odd = make_clip(tmp_path, TOWERS["open_clip, 5 x 5 of 7 pixels, 1 left over"])
    assert odd.patch_grid == (5, 5)
    assert grid_extent(odd.visual, 36) == (35 / 36, 35 / 36)
    pixels = heatmaps(hpdval.zero_shot_scorer(odd, CLASSES, resize="squash"), picture(72, 144), ["cat"]).pixels[0]
    assert np.isfinite(pixels[:70, :140]).all()
    assert np.isnan(pixels[70:]).all()
    assert np.isnan(pixels[:, 140:]).all()


# -- whole splits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_maps_of_a_split_are_those_of_its_images(clip: Clip, method: str) -> None:
    data = hpdval.load_dataset("scenes-lt", train=20, test=20)
    scorer = hpdval.zero_shot_scorer(clip, data.classes, resize="squash")
    classes = [np.flatnonzero(row)[: i % 3] for i, row in enumerate(data.test.targets)]  # some images ask for none
    maps = list(maps_of_split(scorer, data.test, classes, method=method, show=False))
    for i in (0, 4, 5, 19):
        assert len(maps[i]) == len(classes[i])
        if len(classes[i]):
            alone = heatmaps(scorer, data.test.image(i), [data.classes[c] for c in classes[i]], method=method)
            expected = np.broadcast_to(alone.values, maps[i].shape)  # rollout has one map for all classes
            np.testing.assert_allclose(maps[i], expected, atol=2e-3 * np.abs(expected).max())  # float16 on disk


@pytest.mark.parametrize("method", ["gradient", "rollout"])
def test_how_many_are_held_at_once_changes_no_map(
    scorer: DualViewScorer, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = hpdval.load_dataset("scenes-lt", train=20, test=20)
    classes = [[i % 3] * (i % 4) for i in range(20)]
    whole = list(maps_of_split(scorer, data.test, classes, method=method, show=False))
    one = heatmaps(scorer, data.test.image(3), CLASSES, method=method)
    monkeypatch.setattr(maps, "ATTENTION_BYTES", 1)
    assert maps.pairs_at_once(scorer) == 1
    for expected, found in zip(
        whole, maps_of_split(scorer, data.test, classes, method=method, show=False), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(
        heatmaps(scorer, data.test.image(3), CLASSES, method=method).values, one.values, atol=1e-6
    )


def test_the_maps_of_a_split_need_a_list_of_classes_for_each_image(scorer: DualViewScorer) -> None:
    data = hpdval.load_dataset("scenes-lt", train=20, test=20)
    with pytest.raises(ConfigError, match="given for 3 of 20 images"):
        next(maps_of_split(scorer, data.test, [[0]] * 3))
