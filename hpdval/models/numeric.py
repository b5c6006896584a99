"""Where and how precisely to compute: the device, and the named numeric modes in which encoders run.

- ``float32``: weights and arithmetic in float32, eager; the default on a CPU, for exact repetition.
- ``bfloat16``: weights float32, autocast; the default on CUDA.
- ``pure-bfloat16``: bfloat16 throughout; weights that learn have a float32 master, from which each step casts them.
- ``float16``: weights float32, autocast with a scaled loss; the default on CUDA without bfloat16.

Scores, losses and weights that learn are float32 in every mode.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hpdval.errors import ConfigError
from hpdval.models.towers import ImageFeatures, image_features

AUTOCAST = {"bfloat16": torch.bfloat16, "pure-bfloat16": torch.bfloat16, "float16": torch.float16}
Encoder = Callable[[Tensor], ImageFeatures]


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device asked for; ``"auto"`` is CUDA where there is one, else the CPU.

    Raises:
        ConfigError: CUDA is asked for and not available, there is no such device, or the name means nothing to torch.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device is {device!r}; use 'auto', 'cpu', 'cuda' or 'cuda:N'") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is {device!r}, but torch sees no CUDA device here; use 'auto' or 'cpu'")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device is {device!r}, but torch sees {torch.cuda.device_count()} CUDA device(s), from 0 on")
    return chosen


def numeric_mode(precision: str, device: torch.device) -> str:
    """Return the mode that ``precision`` means on a device: ``"auto"`` is the safe and usual one.

    >>> numeric_mode("auto", torch.device("cpu"))
    'float32'
    """
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def autocast(device: torch.device, precision: str = "auto") -> AbstractContextManager[object]:
    """Return the context in which texts, and encoders of the autocast modes, run."""
    dtype = AUTOCAST.get(numeric_mode(precision, device))
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def image_encoder(visual: nn.Module, precision: str = "auto", *, compiled: bool = False) -> Encoder:
    """Return the function from normalised images (B, 3, S, S) float32 to features in which an image tower runs.

    Where weights learn, gradients reach them in float32.  A frozen tower is cast to bfloat16 once, so ask again after
    its weights have changed.

    Args:
        visual: a tower of :func:`hpdval.models.towers.image_features`.
        precision: a mode, or ``"auto"``.
        compiled: through ``torch.compile``, which needs a C++ compiler on a CPU and takes half a minute at first.
    """
    tower = _Tower(visual)
    parameters = dict(tower.named_parameters())
    device = next(iter(parameters.values())).device
    mode = numeric_mode(precision, device)
    encode: Callable[[Tensor], tuple[Tensor, Tensor]] = tower
    if mode == "pure-bfloat16":
        if any(parameter.requires_grad for parameter in parameters.values()):

            def encode(images: Tensor) -> tuple[Tensor, Tensor]:
                halves = {name: parameter.to(torch.bfloat16) for name, parameter in tower.named_parameters()}
                return functional_call(tower, halves, (images.to(torch.bfloat16),))

        else:
            frozen = copy.deepcopy(tower).to(torch.bfloat16)

            def encode(images: Tensor) -> tuple[Tensor, Tensor]:
                return frozen(images.to(torch.bfloat16))

    run = torch.compile(encode) if compiled else encode

    def features(images: Tensor) -> ImageFeatures:
        around = nullcontext() if mode == "pure-bfloat16" else autocast(device, mode)
        with around:
            return ImageFeatures(*run(images))

    return features


class _Tower(nn.Module):
    """An image tower whose ``forward`` gives both kinds of tokens, for ``functional_call`` and ``torch.compile``."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = image_features(self.visual, images)
        return features.cls, features.patches
