"""Training from scratch: the pool is the stream, a pass shows every picture once, and options are fields."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hpdval.data.scenes.world import NAMES, stream_scene
from hpdval.training.stream import draw_pool, fit, read_arguments


@pytest.mark.parametrize(("first", "images"), [(0, 3), (499, 502)])
def test_the_pool_is_the_stream_whatever_the_number_of_workers(first: int, images: int) -> None:
    pixels, shows = draw_pool(images, seed=5, workers=2, first=first)
    assert len(pixels) == len(shows) == images
    for place in (0, 1, images - 1):
        scene = stream_scene(first + place, seed=5)
        assert np.array_equal(pixels[place].permute(1, 2, 0).numpy(), scene.image)
        assert {name for name, shown in zip(NAMES, shows[place], strict=True) if shown} == set(scene.names)


def test_a_pass_shows_every_picture_once_as_it_is_or_mirrored() -> None:
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8)
    untouched, model = pixels.clone(), nn.Linear(3 * 8 * 8, 1)
    seen: list[int] = []
    turned: list[bool] = []

    def loss_of(chosen: list[int], images: Tensor) -> Tensor:
        for place, image in zip(chosen, images, strict=True):
            turned.append(not torch.equal(image, untouched[place]))
            assert torch.equal(image.flip(-1) if turned[-1] else image, untouched[place])
        seen.extend(chosen)
        return model(images.flatten(1) / 255).square().mean()

    start = model.weight.detach().clone()
    fit(model, pixels, loss_of, epochs=4, batch=6, lr=1e-3, weight_decay=0.0)
    assert [sorted(seen[i : i + 12]) for i in range(0, 48, 12)] == [list(range(12))] * 4
    assert 10 < sum(turned) < 38
    assert torch.equal(pixels, untouched)
    assert not torch.equal(model.weight, start)


def test_options_are_the_fields_of_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Some:
        images: int = 5
        weight_decay: float = 0.5

    given = ["--out", "there", "--device", "cpu", "--weight-decay", "0.25"]
    assert read_arguments(argparse.ArgumentParser(), Some, given) == (Some(weight_decay=0.25), Path("there"), "cpu")
    with pytest.raises(SystemExit):
        read_arguments(argparse.ArgumentParser(), Some, ["--out", "there", "--images", "1.5"])
    assert "--images: invalid int value: '1.5'" in capsys.readouterr().err
