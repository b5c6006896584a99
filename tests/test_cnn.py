"""A CNN as an encoder: timm's own feature map as oracle, saved and read again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from hpdval.errors import ConfigError, ModelError
from hpdval.files import write_json
from hpdval.models.cnn import Cnn, load_cnn
from hpdval.models.heads import Classifier
from hpdval.scoring import HeadScorer
from hpdval.scoring.runs import load_scorer

NAME = "test_resnet.r160_in1k"  # a ResNet of timm's own tests: 96 features


def images(n: int, size: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), np.uint8)


def test_places_of_the_map_are_patches_and_their_mean_is_the_global_embedding() -> None:
    cnn = load_cnn(NAME, image_size=96)
    assert (cnn.embed_dim, cnn.image_size, cnn.patch_grid) == (96, 96, (3, 3))
    assert cnn.note, "random weights are said to be random"
    pixels = torch.from_numpy(images(2, 96)).permute(0, 3, 1, 2).double() / 255
    mean, std = (torch.tensor(x, dtype=torch.double).view(3, 1, 1) for x in (cnn.backbone.mean, cnn.backbone.std))
    with torch.no_grad():
        features = cnn.encode_image(torch.from_numpy(images(2, 96)))
        trunk = load_cnn(NAME, image_size=96).double().model
        expected = trunk.forward_features((pixels - mean) / std).numpy()  # (B, F, 3, 3)
    assert features.patches.shape == (2, 9, 96)
    for row in range(3):
        for column in range(3):
            place = features.patches[:, 3 * row + column].numpy()
            np.testing.assert_allclose(place, expected[:, :, row, column], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(features.cls.numpy(), expected.mean(axis=(2, 3)), rtol=1e-4, atol=1e-4)
    assert np.abs(expected[0] - expected[1]).max() > 1e-2


def test_batch_statistics_stay_while_the_rest_learns() -> None:
    cnn = load_cnn(NAME, image_size=32).train()
    before = {name: value.clone() for name, value in cnn.state_dict().items()}
    cnn.encode_image(torch.from_numpy(images(4, 32))).cls.sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in cnn.state_dict().items())
    assert cnn.training
    norms = [m for m in cnn.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert all(not m.training and m.weight.grad is not None for m in norms), "their scales and shifts learn"
    assert cnn.eval().train().training


def test_a_saved_cnn_scores_the_same_bits_and_needs_nothing_else(tmp_path: Path) -> None:
    cnn = load_cnn(NAME, image_size=64, seed=3)
    head = Classifier(96, 2, hidden=4)
    with torch.no_grad():
        head.last.weight.normal_()
    scorer = HeadScorer(cnn, ("a", "b"), head, ("classifier", {"hidden": 4}))
    assert scorer.resize == "squash"
    scorer.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"cnn.json", "cnn.safetensors", "model.safetensors"}
    loaded = load_scorer(tmp_path)
    assert (
        load_file(tmp_path / "cnn.safetensors").keys()
        == timm.create_model("test_resnet", num_classes=0).state_dict().keys()
    )
    assert isinstance(loaded.encoder, Cnn)
    assert loaded.encoder.fingerprint == cnn.fingerprint
    assert loaded.encoder.fingerprint != load_cnn(NAME, image_size=64, seed=4).fingerprint
    assert loaded.encoder.fingerprint != load_cnn(NAME, image_size=96, seed=3).fingerprint
    scores = scorer.score_array(images(3), show=False)
    assert np.abs(scores).max() > 1e-4
    assert np.array_equal(loaded.score_array(images(3), show=False), scores)


def test_what_is_no_cnn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="image_size is 16; a CNN needs at least 32 pixels"):
        load_cnn(NAME, image_size=16)
    with pytest.raises(ConfigError, match=r"must be \(B, 3, 64, 64\)"):
        load_cnn(NAME, image_size=64).encode_image(torch.from_numpy(images(1, 32)))
    write_json(tmp_path / "cnn.json", {"backbone": NAME})
    with pytest.raises(ModelError, match="describes no CNN; it needs backbone and image_size"):
        load_cnn(tmp_path / "cnn.json")
