"""The student of stage 1: CLIP's tower or a timm ViT, CLIP's projection or the embedding head, saved and read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from toys import TINY

from hpdval.errors import ConfigError, ModelError
from hpdval.models import Clip, load_clip
from hpdval.models.student import EmbeddingHead, make_student
from hpdval.scoring import DualViewScorer, load_scorer

VIT: dict[str, Any] = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    path = tmp_path_factory.mktemp("tiny") / "tiny.json"
    path.write_text(json.dumps(TINY))
    return load_clip(path, seed=0)


def vit(seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    return timm.create_model("vit_base_patch16_224", img_size=32, num_classes=7, **{**VIT, **changes}).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A supervised ViT as timm's hub lays it out."""
    config = {
        "architecture": "vit_base_patch16_224",
        "model_args": VIT,
        "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 0.5]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(vit().state_dict(), tmp_path / "model.safetensors")
    return tmp_path


def test_by_default_the_student_is_a_copy_of_clip(clip: Clip) -> None:
    student = make_student(clip)
    assert student.config == clip.config
    assert torch.equal(student.encode_image(PIXELS).cls, clip.encode_image(PIXELS).cls)
    with torch.no_grad():
        student.visual.conv1.weight.add_(1)  # type: ignore[union-attr, operator]
    assert not torch.equal(student.encode_image(PIXELS).cls, clip.encode_image(PIXELS).cls)


def test_the_embedding_head_is_the_printed_one() -> None:
    head = EmbeddingHead(768, 512)
    assert [(m.in_features, m.out_features) for m in head if isinstance(m, torch.nn.Linear)] == [(768, 512), (512, 512)]
    x = torch.randn(2, 5, 768)
    first, last = head[0], head[2]
    by_hand = torch.tanh(x @ first.weight.T + first.bias) @ last.weight.T + last.bias
    assert torch.allclose(head(x), by_hand, atol=1e-6)


def test_the_head_takes_the_place_of_clips_projection_for_every_token(clip: Clip) -> None:
    student = make_student(clip, projection="head", seed=3)
    features = student.encode_image(PIXELS)
    assert features.cls.shape == (3, 16)
    assert features.patches.shape == (3, 16, 16)
    tower: Any = clip.visual
    x = tower.transformer(tower._embeds(clip.normalise(PIXELS)))
    tokens = tower.ln_post(x)  # (B, 1 + P, W), before any projection
    head: Any = student.visual.head
    assert torch.allclose(features.cls, head(tokens[:, 0]), atol=1e-5)
    assert torch.allclose(features.patches, head(tokens[:, 1:]), atol=1e-5)


def test_the_head_starts_from_its_seed_alone(clip: Clip) -> None:
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    first, again, other = (make_student(clip, projection="head", seed=s).weights_sha256 for s in (1, 1, 2))
    assert first == again != other
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_timm_vit_keeps_its_tokens_and_its_preprocessing(clip: Clip, folder: Path) -> None:
    student = make_student(clip, student=str(folder), projection="head")
    images = (PIXELS.float() / 255 - 0.5) / torch.tensor([0.25, 0.5, 0.5]).view(3, 1, 1)
    tokens = vit().forward_features(images)  # an independent build of the same weights
    head: Any = student.visual.head
    features = student.encode_image(PIXELS)
    assert torch.allclose(features.cls, head(tokens[:, 0]), atol=1e-5)
    assert torch.allclose(features.patches, head(tokens[:, 1:]), atol=1e-5)
    assert student.patch_grid == (4, 4)
    assert student.fingerprint != clip.fingerprint
    prompts = ["a photo of a dog."]
    assert torch.equal(student.encode_text(prompts), clip.encode_text(prompts)), "the text tower is CLIP's"


def test_clips_projection_fits_a_timm_vit_of_the_same_width(clip: Clip, folder: Path) -> None:
    student = make_student(clip, student=str(folder))
    assert torch.equal(student.visual.head.weight, clip.visual.proj.T)  # type: ignore[union-attr, operator]
    save_file(vit(embed_dim=64).state_dict(), folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_args": {**VIT, "embed_dim": 64}}))
    with pytest.raises(ModelError, match=r"width 64; CLIP has one of width 32.*projection=head"):
        make_student(clip, student=str(folder))
    assert make_student(clip, student=str(folder), projection="head").encode_image(PIXELS).cls.shape == (3, 16)


def test_pixels_may_stay_as_they_are(clip: Clip) -> None:
    student = make_student(clip, normalise=False)
    assert torch.allclose(student.normalise(PIXELS), PIXELS.float() / 255)
    assert student.fingerprint != clip.fingerprint, "what images go through is part of every key"
    assert student.weights_sha256 == clip.weights_sha256
    assert make_student(student, normalise=False).config == student.config


@pytest.mark.parametrize("options", [{"projection": "head"}, {"student": "FOLDER"}, {"normalise": False}])
def test_a_saved_student_comes_back(clip: Clip, folder: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    chosen = {name: str(folder) if value == "FOLDER" else value for name, value in options.items()}
    student = make_student(clip, **chosen)
    DualViewScorer(student, ["red", "green"], student.encode_text(["red", "green"]).detach()).save(tmp_path / "saved")
    again = load_scorer(tmp_path / "saved").clip
    assert again.fingerprint == student.fingerprint
    assert torch.equal(again.encode_image(PIXELS).patches, student.encode_image(PIXELS).patches)


def test_the_shipped_vit_is_a_student_of_the_shipped_clip() -> None:
    clip = load_clip("scenes")
    student = make_student(clip, student="scenes", projection="head")
    assert student.preprocess.mean != clip.preprocess.mean
    assert student.patch_grid == clip.patch_grid
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    assert student.encode_image(images).patches.shape == clip.encode_image(images).patches.shape


def test_the_labelled_vit_is_the_one_that_fits_the_clip(clip: Clip) -> None:
    shipped = load_clip("scenes")
    labelled, named = (make_student(shipped, student=name) for name in ("labelled", "scenes"))
    assert labelled.fingerprint == named.fingerprint
    with pytest.raises(ModelError, match="no-such-file"):  # ImageNet's, for any other
        make_student(clip, student="labelled", student_weights="no-such-file.safetensors", projection="head")


@pytest.mark.parametrize("name", ["resnet9000", "clips", "vit_base_patch16_224.nobody_in1k", ""])
def test_unknown_students_are_refused(clip: Clip, name: str) -> None:
    with pytest.raises(ModelError) as caught:
        make_student(clip, student=name)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="projection"):
        make_student(clip, projection="mlp")


def test_weights_that_do_not_fit_are_refused(clip: Clip, folder: Path, tmp_path: Path) -> None:
    save_file(vit(depth=3).state_dict(), folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"blocks\.2"):
        make_student(clip, student=str(folder))
    broken = vit().state_dict()
    broken["norm.weight"][0] = float("nan")
    save_file(broken, folder / "model.safetensors")
    with pytest.raises(ModelError, match="NaN"):
        make_student(clip, student=str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds no weights"):
        make_student(clip, student=str(folder))
    (folder / "config.json").write_text("{}")
    save_file(vit().state_dict(), folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"config\.json"):
        make_student(clip, student=str(folder))


def test_a_pickle_as_checkpoint_does_not_run(clip: Clip, shared_data: Path) -> None:
    hostile = shared_data / "hostile" / "weights.pt"
    with pytest.raises(ModelError, match="refused"):
        make_student(clip, student="vit_base_patch16_224.augreg_in1k", student_weights=str(hostile))


def test_a_timm_name_asks_timm_only_without_a_file(clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **options: object) -> None:
        raise OSError("no route to host")

    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **o: offline() if o.get("pretrained") else real(*a, **o))
    with pytest.raises(ModelError, match=r"could not fetch 'vit_base_patch16_224.augreg_in1k'.*student_weights"):
        make_student(clip, student="vit_base_patch16_224.augreg_in1k", projection="head")
    assert timm.get_pretrained_cfg("vit_base_patch16_224.augreg_in1k").num_classes == 1000, "the tag exists"
