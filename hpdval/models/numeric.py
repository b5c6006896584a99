"""Where and how precisely to compute: the device, and the autocast region of encoders."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from hpdval.errors import ConfigError


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


def autocast(device: torch.device, precision: str = "auto") -> AbstractContextManager[object]:
    """Return the context encoders run in: bfloat16 autocast on CUDA (``auto``) or where asked for, else nothing."""
    wanted = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16) if wanted else nullcontext()
