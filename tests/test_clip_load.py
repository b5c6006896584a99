"""Loading: every kind of name and weights, what must be refused, and that nothing is run or downloaded unasked."""

from __future__ import annotations

import json
import pickle
import socket
import zipfile
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

import hpdval.assets
from hpdval.errors import ConfigError, HpdvalError, ModelError
from hpdval.files import sha256_file
from hpdval.models import Clip, load_clip, weights

SMALL: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 1},
}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a test of loading opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SMALL))
    return path


@pytest.fixture
def trained(config: Path) -> Clip:
    """Stands for a trained model: other weights than the ones ``load_clip(config)`` begins with."""
    return load_clip(config, seed=7)


def changed(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps({**SMALL, **changes}))
    return path


# -- names and configurations ----------------------------------------------------------------------------------------


def test_random_weights_are_seeded_noted_and_leave_the_generator_alone(config: Path) -> None:
    state = torch.get_rng_state()
    clip = load_clip(config)
    assert torch.equal(state, torch.get_rng_state())
    assert "random weights" in clip.note
    assert clip.pretrained is None
    assert not clip.training
    assert clip.weights_sha256 == load_clip(config).weights_sha256 != load_clip(config, seed=1).weights_sha256


def test_attributes_say_what_the_model_is(config: Path) -> None:
    clip = load_clip(str(config))
    assert (clip.embed_dim, clip.text_width, clip.context_length) == (16, 24, 20)
    assert (clip.image_size, clip.patch_grid) == (32, (4, 4))
    assert clip.preprocess.size == 32
    assert clip.preprocess.mean == open_clip.OPENAI_DATASET_MEAN
    assert clip.name == str(config)


def test_an_open_clip_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", SMALL)
    assert load_clip("tiny").config["model_cfg"] == SMALL
    assert open_clip.get_model_config("tiny") == SMALL  # open_clip's own table is not touched


def test_preprocessing_comes_with_the_configuration(tmp_path: Path) -> None:
    options = {
        "size": 999,
        "mean": [0.5, 0.4, 0.3],
        "interpolation": "bilinear",
        "resize_mode": "squash",
        "mode": "RGB",
    }
    path = tmp_path / "both.json"
    path.write_text(json.dumps({"model_cfg": SMALL, "preprocess_cfg": options}))
    preprocess = load_clip(path).preprocess
    assert (preprocess.mean, preprocess.interpolation, preprocess.resize_mode) == (
        (0.5, 0.4, 0.3),
        "bilinear",
        "squash",
    )
    assert preprocess.std == open_clip.OPENAI_DATASET_STD
    assert preprocess.size == 32  # the tower's own


def vision(**changes: Any) -> dict[str, Any]:
    return {"vision_cfg": {**SMALL["vision_cfg"], **changes}}


def timm(name: str, pool: str, size: int) -> dict[str, Any]:
    return {"vision_cfg": {"timm_model_name": name, "timm_pool": pool, "timm_proj": None, "image_size": size}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (vision(layers=[1, 1, 1, 1]), "has a ModifiedResNet, which has no patch tokens"),
        (vision(attentional_pool=True, attn_pooler_heads=2), "pools its patches by attention"),
        (vision(pool_type="none"), "has no global embedding"),
        (timm("test_convnext", "", 160), "has timm's ConvNeXt, which has no patch tokens"),
        (timm("vit_pe_core_tiny_patch16_384", "map", 384), "pools its patches by 'map'"),
        (timm("test_vit", "token", 64), "images of 160 pixels only, not 64"),
        (vision(image_size=[32, 48]), "images of 32 x 48 pixels; only square ones"),
        ({"text_cfg": {"hf_model_name": "roberta-base"}}, "has a Hugging Face text tower"),
        (vision(widht=3), "cannot build .*widht"),
        (vision(head_width=0), "cannot build"),
        ({"vision_cfg": 3}, "is no CLIP configuration"),
    ],
)
def test_what_gives_no_projected_patches_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        load_clip(changed(tmp_path / "config.json", **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{}", "[1]", '"ViT"', '{"model_cfg": 3}', '{"embed_dim": 3, "text_cfg": {}}'])
def test_a_json_that_is_no_configuration_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ModelError, match=r"x.json is no CLIP configuration; it needs embed_dim, vision_cfg, text_cfg"):
        load_clip(tmp_path / "x.json")


def test_unknown_names_files_and_devices_are_errors(config: Path) -> None:
    with pytest.raises(ModelError, match=r"'ViT-B16' is no open_clip model \(try ViT-B-16"):
        load_clip("ViT-B16")
    with pytest.raises(HpdvalError, match=r"nowhere.json does not exist"):
        load_clip("nowhere.json")
    with pytest.raises(ConfigError, match=r"device is 'abacus'"):
        load_clip(config, device="abacus")


def test_the_shipped_model_is_checked_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch, trained: Clip, config: Path, tmp_path: Path
) -> None:
    config.rename(tmp_path / "scenes_clip.json")
    monkeypatch.setattr(hpdval.assets, "asset_path", lambda name: tmp_path / name)
    weights = tmp_path / "scenes_clip.safetensors"
    with pytest.raises(ModelError, match=r"scenes_clip.safetensors is missing"):
        load_clip("scenes")
    save_file(trained.model.state_dict(), weights)
    monkeypatch.setattr(hpdval.assets, "SCENES_CLIP_SHA256", sha256_file(weights))
    assert load_clip("scenes").weights_sha256 == trained.weights_sha256
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelError, match=r"is damaged: its sha256 is not the pinned one"):
        load_clip("scenes")


# -- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_local_files_in_any_precision(
    config: Path, trained: Clip, tmp_path: Path, suffix: str, dtype: torch.dtype
) -> None:
    state = {key: value.to(dtype) for key, value in trained.model.state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    clip = load_clip(config, pretrained=path)
    for key, value in clip.model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[key].float())
    assert clip.note == ""
    assert clip.pretrained == str(path)


def test_a_training_checkpoint_of_open_clip(config: Path, trained: Clip, tmp_path: Path) -> None:
    state = {f"module.{key}": value for key, value in trained.model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "epoch_3.pt")
    assert load_clip(config, pretrained=tmp_path / "epoch_3.pt").weights_sha256 == trained.weights_sha256


def test_old_names_fit_a_separate_text_tower(config: Path, trained: Clip, tmp_path: Path) -> None:
    save_file(trained.model.state_dict(), tmp_path / "weights.safetensors")
    clip = load_clip(changed(config, custom_text=True), pretrained=tmp_path / "weights.safetensors")
    assert torch.equal(clip.encode_text(["a dog."]), trained.encode_text(["a dog."]))


def test_a_saved_folder_loads_here_and_in_open_clip(trained: Clip, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    trained.save(folder)
    again = load_clip(folder)
    assert again.fingerprint == trained.fingerprint
    assert again.note == ""
    theirs = open_clip.create_model(f"local-dir:{folder}")
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(theirs.eval().encode_image(images), again.encode_image(images).cls)
    assert load_clip(folder / "open_clip_config.json", pretrained=folder).weights_sha256 == trained.weights_sha256


def test_a_folder_of_another_activation_is_refused(config: Path, trained: Clip, tmp_path: Path) -> None:
    trained.save(tmp_path / "model")
    with pytest.raises(ModelError, match=r"differ in quick_gelu; load the folder itself"):
        load_clip(changed(config, quick_gelu=True), pretrained=tmp_path / "model")


def test_a_folder_without_weights_is_an_error(config: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"empty holds no weights; it needs one of open_clip_model.safetensors"):
        load_clip(config, pretrained=tmp_path / "empty")


def test_a_file_beside_a_configuration_is_checked_as_its_folder_is(config: Path, trained: Clip, tmp_path: Path) -> None:
    trained.save(tmp_path / "model")
    beside = tmp_path / "model" / "open_clip_config.json"
    other = (tmp_path / "model" / "open_clip_model.safetensors").rename(tmp_path / "model" / "epoch_3.safetensors")
    changed(config, quick_gelu=True)
    with pytest.raises(ModelError, match=r"open_clip_config.json and .*config.json differ in quick_gelu") as caught:
        load_clip(config, pretrained=other)
    way_out = str(caught.value).partition("load the file with it: ")[2]
    assert eval(way_out, {"load_clip": load_clip}).fingerprint == trained.fingerprint
    beside.write_text("[]")
    with pytest.raises(ModelError, match=r"open_clip_config.json is no CLIP configuration"):
        load_clip(config, pretrained=other)


@pytest.mark.parametrize("whole", [True, False])
def test_preprocessing_comes_from_beside_the_weights(config: Path, trained: Clip, tmp_path: Path, whole: bool) -> None:
    folder = tmp_path / "model"
    trained.save(folder)
    source = folder if whole else folder / "open_clip_model.safetensors"
    assert load_clip(config, pretrained=source).note == ""  # the same as the configuration's
    theirs = {**trained.config, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "size": 999}}
    (folder / "open_clip_config.json").write_text(json.dumps(theirs))
    clip = load_clip(config, pretrained=source)
    assert (clip.preprocess.mean, clip.preprocess.size) == ((0.5, 0.4, 0.3), 32)
    assert clip.note == f"preprocessing is that of {folder / 'open_clip_config.json'}"


def test_a_file_that_does_not_say_how_it_was_trained_is_noted(
    config: Path, trained: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", {**SMALL, "quick_gelu": True})
    save_file(trained.model.state_dict(), tmp_path / "weights.safetensors")
    clip = load_clip("tiny", pretrained=tmp_path / "weights.safetensors")
    assert clip.note == "activation and preprocessing are those of the name; this file does not say"
    assert clip.config["model_cfg"]["quick_gelu"] is True
    assert load_clip(config, pretrained=tmp_path / "weights.safetensors").note == ""  # a configuration says it itself


def test_the_clip_of_a_run_has_its_own_configuration(trained: Clip, tmp_path: Path) -> None:
    """``clip.json`` belongs to ``clip.safetensors``, whatever else was saved into the folder."""
    options = {"model_cfg": {**SMALL, "quick_gelu": True}, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3]}}
    (tmp_path / "clip.json").write_text(json.dumps(options))
    save_file(trained.model.state_dict(), tmp_path / "clip.safetensors")
    alone = load_clip(tmp_path / "clip.json", pretrained=tmp_path / "clip.safetensors")
    trained.save(tmp_path)
    again = load_clip(tmp_path / "clip.json", pretrained=tmp_path / "clip.safetensors")
    assert (alone.note, again.note) == ("", "")
    assert again.fingerprint == alone.fingerprint != trained.fingerprint
    assert again.preprocess.mean == (0.1, 0.2, 0.3)


# -- a hash that is asked for ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_the_hash_is_checked_before_anything_is_read(
    config: Path, trained: Clip, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, state = tmp_path / f"weights{suffix}", trained.model.state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    pin = sha256_file(path)
    assert load_clip(config, pretrained=path, sha256=pin.upper()).weights_sha256 == trained.weights_sha256
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    monkeypatch.setattr(weights, "_parse", None)  # would fail if it were called
    with pytest.raises(ModelError, match=rf"has sha256 {sha256_file(path)[:12]}..., not {pin[:12]}...") as caught:
        load_clip(config, pretrained=path, sha256=pin)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_what_was_hashed_is_what_is_read(
    config: Path, trained: Clip, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(clip: Clip) -> None:
        state = clip.model.state_dict()
        save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)

    def check_then_replace(*args: Any) -> Any:
        found = check(*args)
        write(load_clip(config, seed=8))
        return found

    path, check = tmp_path / f"weights{suffix}", weights._check
    write(trained)
    monkeypatch.setattr(weights, "_check", check_then_replace)
    clip = load_clip(config, pretrained=path, sha256=sha256_file(path))
    assert clip.weights_sha256 == trained.weights_sha256


@pytest.mark.parametrize("pin", ["", "5806e77cd80f", "g" * 64])
def test_a_hash_that_is_none_is_an_error(config: Path, trained: Clip, tmp_path: Path, pin: str) -> None:
    trained.save(tmp_path / "model")
    with pytest.raises(ModelError, match=rf"sha256 is '{pin}'; it must be 64 hexadecimal digits"):
        load_clip(config, pretrained=tmp_path / "model", sha256=pin)
    with pytest.raises(ModelError, match=r"sha256 was given, but .*config.json has random weights; give a file"):
        load_clip(config, sha256=pin)


def test_weights_that_do_not_fit_are_named(config: Path, trained: Clip, tmp_path: Path) -> None:
    state = trained.model.state_dict()
    state["visual.surplus"] = state.pop("visual.proj")
    state["ln_final.weight"] = torch.ones(25)
    save_file(state, tmp_path / "weights.safetensors")
    expected = r"missing visual.proj; unexpected visual.surplus; wrong shape ln_final.weight \(25,\) for \(24,\)"
    with pytest.raises(ModelError, match=expected):
        load_clip(config, pretrained=tmp_path / "weights.safetensors")


def test_the_contrastive_scale_may_be_absent_or_extra(config: Path, trained: Clip, tmp_path: Path) -> None:
    state = {key: value for key, value in trained.model.state_dict().items() if key != "logit_scale"}
    save_file({**state, "logit_bias": torch.zeros(1)}, tmp_path / "weights.safetensors")
    clip = load_clip(config, pretrained=tmp_path / "weights.safetensors")
    assert torch.equal(clip.encode_text(["a dog."]), trained.encode_text(["a dog."]))


def test_positions_are_interpolated_only_when_asked(config: Path, trained: Clip, tmp_path: Path) -> None:
    trained.save(tmp_path / "model")
    larger = load_clip(config, pretrained=tmp_path / "model", image_size=64)
    assert (larger.image_size, larger.patch_grid, larger.preprocess.size) == (64, (8, 8), 64)
    assert load_clip("scenes", image_size=96).patch_grid == (12, 12)  # whose weights are stored in half precision
    assert larger.encode_image(torch.zeros(1, 3, 64, 64)).patches.shape == (1, 64, 16)
    changed(config, vision_cfg={**SMALL["vision_cfg"], "image_size": 64})
    with pytest.raises(ModelError, match=r"wrong shape visual.positional_embedding \(17, 32\) for \(65, 32\)"):
        load_clip(config, pretrained=tmp_path / "model")


def test_weights_that_are_not_finite_are_refused(config: Path, trained: Clip, tmp_path: Path) -> None:
    state = trained.model.state_dict()
    state["visual.proj"][0, 0] = torch.nan
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match=r"NaN or infinite weights"):
        load_clip(config, pretrained=tmp_path / "weights.safetensors")


# -- files that are damaged, or would run code -----------------------------------------------------------------------


class _Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.target), "w")


@pytest.mark.parametrize("writer", ["pickle", "torch"])
@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
def test_a_pickle_is_refused_and_does_not_run(config: Path, tmp_path: Path, writer: str, suffix: str) -> None:
    trace, path = tmp_path / "pwned", tmp_path / f"weights{suffix}"
    if writer == "pickle":
        path.write_bytes(pickle.dumps({"visual.proj": _Payload(trace)}, protocol=2))
    else:
        torch.save({"visual.proj": _Payload(trace)}, path)
    with pytest.raises(ModelError, match=r"was refused"):
        load_clip(config, pretrained=path)
    assert not trace.exists()


@pytest.mark.shared
def test_the_hostile_pickle_leaves_no_trace(
    config: Path, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"weights.pt was refused: a pickle that would run code"):
        load_clip(config, pretrained=shared_data / "hostile" / "weights.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_torchscript_archive_is_refused_with_a_way_out(config: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "ViT-B-16.pt", "w") as archive:
        archive.writestr("ViT-B-16/data.pkl", b"")
        archive.writestr("ViT-B-16/constants.pkl", b"")
    with pytest.raises(ModelError, match=r"TorchScript archive, which is code; use the open_clip tag 'openai'"):
        load_clip(config, pretrained=tmp_path / "ViT-B-16.pt")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_damaged_files_are_refused(config: Path, trained: Clip, tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"weights{suffix}"
    state = trained.model.state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "text": b"these are no weights"}[damage])
    with pytest.raises(ModelError, match=rf"weights{suffix} was refused") as caught:
        load_clip(config, pretrained=path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, torch.zeros(3)])
def test_a_file_that_holds_no_state_dict_is_refused(config: Path, tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / "weights.pt")
    with pytest.raises(ModelError, match=r"holds no state dict"):
        load_clip(config, pretrained=tmp_path / "weights.pt")


def test_other_files_and_absent_files_are_errors(config: Path, tmp_path: Path) -> None:
    (tmp_path / "weights.npz").write_bytes(b"")
    with pytest.raises(ModelError, match=r"suffix '.npz'; weights are .safetensors"):
        load_clip(config, pretrained=tmp_path / "weights.npz")
    with pytest.raises(ModelError, match=r"weights.pt does not exist"):
        load_clip(config, pretrained=tmp_path / "weights.pt")


# -- tags ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tagged(monkeypatch: pytest.MonkeyPatch, trained: Clip, tmp_path: Path) -> str:
    """A model that open_clip knows by name, with a tag whose weights were trained with QuickGELU."""
    save_file(trained.model.state_dict(), tmp_path / "openai.safetensors")
    tag = {"hf_hub": "somebody/tiny/", "quick_gelu": True, "mean": (0.5, 0.5, 0.5), "interpolation": "bilinear"}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", SMALL)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", {"openai": tag})
    monkeypatch.setattr(open_clip, "download_pretrained", lambda tag: str(tmp_path / "openai.safetensors"))
    return "tiny"


def test_a_tag_brings_weights_preprocessing_and_activation(tagged: str, trained: Clip, tmp_path: Path) -> None:
    clip = load_clip(tagged, pretrained="openai")
    assert clip.weights_sha256 == trained.weights_sha256
    assert clip.config["model_cfg"]["quick_gelu"] is True
    assert "switched to QuickGELU" in clip.note
    assert (clip.preprocess.mean, clip.preprocess.interpolation) == ((0.5, 0.5, 0.5), "bilinear")
    quick = load_clip(changed(tmp_path / "q.json", quick_gelu=True), pretrained=tmp_path / "openai.safetensors")
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(clip.encode_image(images).cls, quick.encode_image(images).cls)
    assert not torch.equal(clip.encode_image(images).cls, trained.encode_image(images).cls)
    clip.save(tmp_path / "model")  # and the activation is not lost on the way through a folder
    assert load_clip(tmp_path / "model").fingerprint == clip.fingerprint


def test_a_failed_download_says_what_to_do(tagged: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(tag: object) -> str:
        raise OSError("Name or service not known\n(while asking the hub)")

    monkeypatch.setattr(open_clip, "download_pretrained", offline)
    with pytest.raises(ModelError, match=r"could not download 'openai' of tiny .* give the path of the file") as caught:
        load_clip(tagged, pretrained="openai")
    assert "\n" not in str(caught.value)


def test_a_download_is_held_to_the_hash_asked_for(tagged: str, trained: Clip, tmp_path: Path) -> None:
    pin = sha256_file(tmp_path / "openai.safetensors")
    assert load_clip(tagged, pretrained="openai", sha256=pin).weights_sha256 == trained.weights_sha256
    with pytest.raises(ModelError, match=r"openai.safetensors has sha256 .*, not 000000000000... as asked"):
        load_clip(tagged, pretrained="openai", sha256="0" * 64)


def test_an_unknown_tag_lists_the_known_ones(tagged: str, config: Path) -> None:
    with pytest.raises(ModelError, match=r"'laion' is no file, .* and no open_clip tag of tiny \(tags: openai\)"):
        load_clip(tagged, pretrained="laion")
    with pytest.raises(ModelError, match=r"no open_clip tag of .*config.json \(tags: none\)"):
        load_clip(config, pretrained="openai")


def test_openai_weights_are_known_to_be_quickgelu() -> None:
    """The real table: should open_clip stop saying so, the switch above would be silent."""
    assert open_clip.get_pretrained_cfg("ViT-B-16", "openai")["quick_gelu"] is True
    assert not open_clip.get_model_config("ViT-B-16").get("quick_gelu")


@pytest.mark.shared
def test_the_photograph_clip_keeps_its_weights(shared_data: Path) -> None:
    folder = shared_data / "mosaic"
    clip = load_clip(folder / "photo_clip.json", pretrained=folder / "photo_clip.safetensors")
    assert (clip.patch_grid, clip.embed_dim, clip.context_length) == ((8, 8), 128, 24)
    stored = load_file(folder / "photo_clip.safetensors")
    assert all(torch.equal(clip.model.state_dict()[key], value.float()) for key, value in stored.items())
