"""OpenAI's original archives: TorchScript, which is code, accepted only by its hash; and what they bring with them."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hpdval.errors import ModelError
from hpdval.files import sha256_file
from hpdval.models import Clip, load_clip, weights

SMALL: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 1},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}
SCALARS = {"input_resolution": 32, "context_length": 20, "vocab_size": 49408}

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.(script|save)` is deprecated")


def write_archive(state: dict[str, Tensor], path: Path) -> Path:
    """Write tensors as OpenAI did: a scripted module that holds them under their names, and three scalars."""
    root = nn.Module()
    for key, value in state.items():
        module = root
        *parents, name = key.split(".")
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, nn.Module())
            module = getattr(module, parent)
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))
    for name, number in SCALARS.items():
        root.register_buffer(name, torch.tensor(number))
    torch.jit.save(torch.jit.script(root), path)
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SMALL))
    return path


@pytest.fixture
def halves(config: Path) -> dict[str, Tensor]:
    """The weights of a trained model in float16."""
    return {key: value.half() for key, value in load_clip(config, seed=7).model.state_dict().items()}


@pytest.fixture
def archive(halves: dict[str, Tensor], tmp_path: Path) -> Path:
    return write_archive(halves, tmp_path / "ViT.pt")


@pytest.fixture
def known(archive: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The archive, as if OpenAI had published it; the model has the name ``tiny``, with GELU, in open_clip."""
    monkeypatch.setitem(weights.OPENAI, sha256_file(archive), "ViT-B-16")
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", SMALL)
    return archive


@pytest.fixture
def no_jit(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("torch.jit.load was called")

    monkeypatch.setattr(torch.jit, "load", refuse)


def features(clip: Clip) -> list[Tensor]:
    with torch.no_grad():
        images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        return [*clip.encode_image(images), clip.encode_text(["a dog.", "a cat."])]


def same(one: Clip, other: Clip) -> bool:
    return all(torch.equal(a, b) for a, b in zip(features(one), features(other), strict=True))


# -- what may be read ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_jit")
def test_an_unknown_archive_is_refused_with_its_hash(config: Path, archive: Path) -> None:
    expected = rf"TorchScript archive, which is code; use the open_clip tag 'openai' .* sha256='{sha256_file(archive)}'"
    with pytest.raises(ModelError, match=expected) as caught:
        load_clip(config, pretrained=archive)
    assert "\n" not in str(caught.value)


def test_an_archive_is_read_with_its_hash(
    config: Path, archive: Path, halves: dict[str, Tensor], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    recwarn.clear()
    clip = load_clip(config, pretrained=archive, sha256=sha256_file(archive))
    assert [str(warning.message) for warning in recwarn] == []
    save_file(halves, tmp_path / "plain.safetensors")
    plain = load_clip(config, pretrained=tmp_path / "plain.safetensors")
    assert clip.fingerprint == plain.fingerprint
    assert same(clip, plain)
    assert clip.note == ""  # what the caller vouches for says nothing of its activation


@pytest.mark.usefixtures("no_jit")
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_flipped_byte_is_refused_before_it_is_read(config: Path, known: Path, where: str) -> None:
    pin, data = sha256_file(known), bytearray(known.read_bytes())
    data[{"first": 30, "middle": len(data) // 2, "last": -1}[where]] ^= 1
    known.write_bytes(data)
    with pytest.raises(ModelError, match=rf"has sha256 {sha256_file(known)[:12]}..., not {pin[:12]}... as asked"):
        load_clip(config, pretrained=known, sha256=pin)
    with pytest.raises(ModelError):  # and without a pin it is not the known one
        load_clip(config, pretrained=known)


class _Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.target), "w")


@pytest.mark.usefixtures("no_jit")
@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("folder", ["ViT-B-16/", "", "a/b/"])
def test_a_hostile_archive_is_never_run(config: Path, tmp_path: Path, suffix: str, folder: str) -> None:
    path = tmp_path / f"ViT-B-16{suffix}"
    with zipfile.ZipFile(path, "w") as file:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            file.writestr(folder + name, pickle.dumps(_Payload(tmp_path / "pwned"), protocol=2))
    with pytest.raises(ModelError, match=r"ViT-B-16.* (is a TorchScript archive|was refused)"):
        load_clip(config, pretrained=path)
    assert not (tmp_path / "pwned").exists()


def test_what_was_hashed_is_what_is_read(config: Path, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin, check = sha256_file(archive), weights._check
    expected = load_clip(config, pretrained=archive, sha256=pin)

    def check_then_replace(*args: Any) -> Any:
        found = check(*args)
        write_archive(load_clip(config, seed=8).model.state_dict(), archive)
        return found

    monkeypatch.setattr(weights, "_check", check_then_replace)
    assert load_clip(config, pretrained=archive, sha256=pin).weights_sha256 == expected.weights_sha256
    assert sha256_file(archive) != pin


# -- what a known archive brings -------------------------------------------------------------------------------------


def test_the_known_hashes_are_those_in_openais_addresses() -> None:
    published = {}
    for name in ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336"):
        tag = open_clip.get_pretrained_cfg(name, "openai")
        published[tag["url"].split("/")[-2]] = name
        assert tag["quick_gelu"] is True
        assert (tag["mean"], tag["std"]) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    assert published == weights.OPENAI


def test_a_known_archive_switches_the_activation(known: Path, halves: dict[str, Tensor], tmp_path: Path) -> None:
    clip = load_clip("tiny", pretrained=known)
    assert clip.note == f"activation switched to QuickGELU, as {str(known)!r} was trained"
    assert clip.config["model_cfg"]["quick_gelu"] is True
    save_file(halves, tmp_path / "plain.safetensors")
    (tmp_path / "quick.json").write_text(json.dumps({**SMALL, "quick_gelu": True}))
    quick = load_clip(tmp_path / "quick.json", pretrained=tmp_path / "plain.safetensors")
    assert clip.fingerprint == quick.fingerprint
    assert same(clip, quick)
    assert not same(clip, load_clip("tiny", pretrained=tmp_path / "plain.safetensors"))
    assert load_clip(tmp_path / "quick.json", pretrained=known).note == ""  # nothing to switch


def test_a_known_archive_brings_openais_preprocessing(known: Path, tmp_path: Path) -> None:
    options = {"mean": [0.5, 0.5, 0.5], "interpolation": "bilinear", "resize_mode": "squash"}
    (tmp_path / "other.json").write_text(json.dumps({"model_cfg": SMALL, "preprocess_cfg": options}))
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": SMALL, "preprocess_cfg": options}))
    preprocess = load_clip(tmp_path / "other.json", pretrained=known).preprocess
    assert (preprocess.mean, preprocess.std) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    assert (preprocess.interpolation, preprocess.resize_mode, preprocess.size) == ("bicubic", "shortest", 32)


def test_a_known_archive_of_another_architecture_does_not_fit(known: Path, config: Path) -> None:
    config.write_text(json.dumps({**SMALL, "vision_cfg": {**SMALL["vision_cfg"], "patch_size": 4}}))
    with pytest.raises(ModelError, match=r"ViT.pt does not fit .*config.json: wrong shape visual.conv1.weight"):
        load_clip(config, pretrained=known)


def test_a_download_may_be_a_known_archive(known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the hub, open_clip fetches OpenAI's own file for the tag."""
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", {"openai": {"url": "x", "quick_gelu": True}})
    monkeypatch.setattr(open_clip, "download_pretrained", lambda tag: str(known))
    assert same(load_clip("tiny", pretrained="openai"), load_clip("tiny", pretrained=known))


@pytest.mark.shared
@torch.no_grad()
def test_golden_features_through_an_archive(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of the reference code in an archive known to be OpenAI's, under a configuration that says GELU."""
    path = write_archive(load_file(golden / "clip_small.safetensors"), tmp_path / "ViT.pt")
    monkeypatch.setitem(weights.OPENAI, sha256_file(path), "ViT-B-16")
    clip = load_clip(golden / "clip_small_gelu.json", pretrained=path).double()
    assert "switched to QuickGELU" in clip.note
    with np.load(golden / "clip_small_quickgelu.npz") as file:
        cls, patches = clip.encode_image(torch.from_numpy(file["image"]))
        text = clip.encode_tokens(torch.from_numpy(file["token_ids"]).long())
        for value, name in ((cls, "cls"), (patches, "patch"), (text, "text")):
            np.testing.assert_allclose(value, file[name], rtol=0, atol=1e-9 * float(np.abs(file[name]).max()))
