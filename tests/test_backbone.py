"""CNN backbones: torchvision's own layers as oracle, weights from files, and nothing fetched unasked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from hpdval.errors import ModelError
from hpdval.models.backbone import make_backbone
from hpdval.models.cprfl import Cprfl


def resnet() -> Any:
    """torchvision's ResNet-18 with batch statistics that are not those of its start."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return model.eval()


def test_torchvisions_weights_give_torchvisions_feature_map(tmp_path: Path) -> None:
    model = resnet()
    state = {name: value for name, value in model.state_dict().items() if "num_batches" not in name}  # as of 2017
    save_file(state, tmp_path / "resnet18.safetensors")
    backbone = make_backbone("resnet18.tv_in1k", tmp_path / "resnet18.safetensors").eval()
    images = torch.randn(2, 3, 64, 96)
    layers = torch.nn.Sequential(*list(model.children())[:-2])  # without pooling and classifier
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), layers(images), rtol=1e-4, atol=1e-4)
    assert backbone.width == 512
    assert backbone.mean == (0.485, 0.456, 0.406)


def test_a_category_prompt_model_stands_on_it() -> None:
    backbone = make_backbone("resnet18", seed=1)
    model = Cprfl(torch.randn(5, 7), backbone.width, width=16, heads=2, head_width=8)
    logits = model(backbone(torch.randn(2, 3, 64, 64)))
    assert logits.shape == (2, 5)
    logits.sum().backward()
    first = backbone.get_parameter("trunk.conv1.weight").grad
    assert first is not None
    assert bool(first.any())


def test_random_weights_depend_on_the_seed_alone_and_the_probe_leaves_no_trace() -> None:
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    first, again, other = (make_backbone("resnet18", seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["trunk.conv1.weight"], other["trunk.conv1.weight"])
    assert first["trunk.bn1.num_batches_tracked"] == 0
    assert make_backbone("resnet18").training


def test_timm_is_asked_on_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **options: object) -> None:
        raise OSError("no route to host")

    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **o: offline() if o.get("pretrained") else real(*a, **o))
    make_backbone("resnet18.tv_in1k")
    with pytest.raises(ModelError, match=r"could not fetch 'resnet18.tv_in1k'.*give the file as pretrained"):
        make_backbone("resnet18.tv_in1k", "timm")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet9000", "timm has no model 'resnet9000'"),
        ("hf-hub:somebody/resnet18", "timm has no model"),
        ("resnet18.nobody_in1k", "timm cannot build resnet18.nobody_in1k"),
        ("vit_tiny_patch16_224", "use a CNN"),
        ("swin_tiny_patch4_window7_224", "use a CNN"),
    ],
)
def test_what_is_no_cnn_of_timm_is_refused(name: str, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        make_backbone(name)
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    state, path = resnet().state_dict(), tmp_path / "w.safetensors"
    save_file({name: value for name, value in state.items() if name != "layer4.1.bn2.bias"}, path)
    with pytest.raises(ModelError, match=r"does not fit resnet18: layer4\.1\.bn2\.bias"):
        make_backbone("resnet18", path)
    state["bn1.weight"][3] = float("inf")
    save_file(state, path)
    with pytest.raises(ModelError, match="NaN or infinite"):
        make_backbone("resnet18", path)


@pytest.mark.shared
def test_a_pickle_as_checkpoint_does_not_run(shared_data: Path) -> None:
    with pytest.raises(ModelError, match="refused"):
        make_backbone("resnet18", shared_data / "hostile" / "weights.pt")
