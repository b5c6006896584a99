"""Pretraining: the loss against a slow loop, which texts are true, a short run that learns, and the shipped weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score

import hpdval
from hpdval.assets import SCENES_CLIP_SHA256, asset_path
from hpdval.data.scenes import load_scenes
from hpdval.data.scenes.world import NAMES, stream_scene
from hpdval.files import sha256_file
from hpdval.training import pretrain as module
from hpdval.training.pretrain import PretrainConfig, Towers, batch_texts, pretrain, sigmoid_loss
from hpdval.training.stream import save_weights

CONFIG = json.loads(asset_path("scenes_clip.json").read_text())
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 64, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def test_the_loss_equals_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    cosines, truth = rng.uniform(-1, 1, (3, 5)), rng.integers(0, 2, (3, 5))
    total = 0.0
    for b in range(3):
        for t in range(5):
            z = 1 if truth[b, t] else -1
            total += math.log1p(math.exp(-z * (7.0 * cosines[b, t] - 2.0))) / 3
    given = (torch.tensor(cosines), torch.tensor(truth, dtype=torch.float64), torch.tensor(7.0), torch.tensor(-2.0))
    assert sigmoid_loss(*given).item() == pytest.approx(total, rel=1e-6)


def test_a_text_is_true_of_a_picture_that_shows_all_it_names() -> None:
    shows = np.array([[name in scene.names for name in NAMES] for scene in map(stream_scene, range(12))])
    texts, truth = batch_texts(shows, 12, Random(0))
    assert len(texts) == len(NAMES) + 12
    for column, text in enumerate(texts):
        words = set(text.rstrip(".").split())
        named = [v for v, name in enumerate(NAMES) if name in words]
        assert named
        for picture in range(12):
            assert truth[picture, column] == all(shows[picture, v] for v in named)
    assert (truth[:, len(NAMES) :].sum(0) >= 1).all()  # a caption is true of its own picture at least


def test_towers_return_cosines_of_projected_tokens() -> None:
    torch.manual_seed(0)
    towers = Towers(open_clip.CLIP(**TINY), local=True).eval()
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    tokens = open_clip.SimpleTokenizer(context_length=24)(["a photo of a cat.", "a boat."])
    with torch.no_grad():
        whole, patches = towers(pixels, tokens)
        towers.clip.visual.output_tokens = False
        mean, std = torch.tensor(open_clip.OPENAI_DATASET_MEAN), torch.tensor(open_clip.OPENAI_DATASET_STD)
        images = (pixels.permute(0, 2, 3, 1) / 255 - mean) / std
        expected = F.cosine_similarity(
            towers.clip.encode_image(images.permute(0, 3, 1, 2))[:, None], towers.clip.encode_text(tokens)[None], dim=-1
        )
    assert patches.shape == (2, 16, 2)
    torch.testing.assert_close(whole, expected, atol=1e-5, rtol=1e-5)


def test_a_short_run_lowers_the_loss_and_is_repeatable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "read_json", lambda path: TINY)
    monkeypatch.setattr(module, "fast_cpu", lambda: False)
    config = PretrainConfig(images=16, epochs=4, batch=8, captions=4, text_steps=2, workers=1, local_weight=0.5, topk=2)
    first, second = pretrain(config), pretrain(config)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step 8/8 loss")]
    assert len(said) == 2
    digest = save_weights(first, tmp_path / "clip.safetensors", {"seed": "0"})
    assert digest == sha256_file(tmp_path / "clip.safetensors")
    stored = load_file(tmp_path / "clip.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    open_clip.CLIP(**TINY).load_state_dict({name: value.float() for name, value in stored.items()})


def test_the_command_writes_weights_and_the_configuration_they_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "pretrain", lambda config, device: open_clip.CLIP(**CONFIG))
    module.main(["--out", str(tmp_path / "new"), "--device", "cpu"])
    files = {path.name for path in (tmp_path / "new").iterdir()}
    assert files == {"scenes_clip.safetensors", "scenes_clip.json"}
    clip = hpdval.load_clip(tmp_path / "new/scenes_clip.json", pretrained=tmp_path / "new/scenes_clip.safetensors")
    assert clip.config["model_cfg"]["embed_dim"] == CONFIG["embed_dim"]


def test_the_shipped_weights_are_those_of_the_model_card() -> None:
    path = asset_path("scenes_clip.safetensors")
    assert sha256_file(path) == SCENES_CLIP_SHA256
    assert path.stat().st_size <= 16 * 2**20
    card = asset_path("scenes_clip.md").read_text()
    assert SCENES_CLIP_SHA256 in card
    with safe_open(path, "pt") as file:
        recipe = json.loads(file.metadata()["config"])
    assert recipe == vars(PretrainConfig()), "the shipped weights were not made by the default recipe"


def test_the_shipped_clip_knows_the_things_but_not_too_well() -> None:
    """Zero-shot mAP of the global view on the first 400 test pictures: well above chance, well below perfect."""
    clip = open_clip.CLIP(**CONFIG)
    weights = load_file(asset_path("scenes_clip.safetensors"))
    clip.load_state_dict({name: value.float() for name, value in weights.items()})
    towers = Towers(clip.eval(), local=False)
    world = load_scenes(test=400)
    pixels = torch.from_numpy(np.stack([world.test.image(i) for i in range(400)])).permute(0, 3, 1, 2)
    tokens = open_clip.SimpleTokenizer(context_length=24)([f"a photo of a {name}." for name in world.classes])
    with torch.no_grad():
        scores = towers(pixels, tokens)[0].numpy()
    found = average_precision_score(world.test.targets, scores, average="macro")
    assert 0.40 < found < 0.80
    assert found > 3 * world.test.targets.mean()
