"""Checkpoints: tensors and JSON state in one safetensors file, written atomically, checksummed, with one predecessor.

No pickle is involved.  A checkpoint that is truncated or damaged is never loaded: the good one before it is, with a
warning.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from hpdval.errors import RunError
from hpdval.files import atomic_write

Tensors = Mapping[str, torch.Tensor]


def tensors_digest(tensors: Tensors) -> str:
    """Return a SHA-256 over names, dtypes, shapes and bytes of tensors: equal content, equal digest, on any device.

    >>> tensors_digest({"a": torch.zeros(2)}) == tensors_digest({"a": torch.zeros(2)})
    True
    """
    whole = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        whole.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        whole.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


def save_tensors(path: Path, tensors: Tensors, state: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-able ``state`` to ``path``, atomically, with a checksum over both.

    Raises:
        RunError: the file could not be written; what stood there before is intact.
    """
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(state, allow_nan=False)
    checksum = hashlib.sha256((tensors_digest(plain) + text).encode()).hexdigest()
    with atomic_write(path) as file:
        # one metadata entry: safetensors writes several in random order, and equal content shall give equal bytes
        file.write(save(plain, metadata={"hpdval": json.dumps({"sha256": checksum, "state": text})}))


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what :func:`save_tensors` wrote.

    Raises:
        RunError: the file is absent, truncated, altered or not one of ours; the message names it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except FileNotFoundError:
        raise RunError(f"{path} does not exist") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise RunError(f"{path} is damaged or not a safetensors file ({error}); remove it or restore it") from None
    if "hpdval" not in metadata:
        raise RunError(f"{path} was not written by hpdval (no checksum in its metadata)")
    try:
        record = json.loads(metadata["hpdval"])
        checksum = hashlib.sha256((tensors_digest(tensors) + record["state"]).encode()).hexdigest()
        if checksum != record["sha256"]:
            raise ValueError("checksum differs")
        state = json.loads(record["state"])
        if not isinstance(state, dict):
            raise ValueError("its state is no JSON object")
        return tensors, state
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise RunError(f"{path} is damaged ({error}); remove it or restore it") from None


def _previous(path: Path) -> Path:
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def save_checkpoint(path: Path, tensors: Tensors, state: Mapping[str, Any]) -> None:
    """Write a checkpoint; the one it replaces is kept as ``NAME.previous.safetensors``."""
    fresh = path.with_name(f"{path.stem}.next{path.suffix}")
    save_tensors(fresh, tensors, state)
    if path.exists():
        path.replace(_previous(path))
    fresh.replace(path)


def load_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """Return the newest whole checkpoint, or None where there never was one.

    Raises:
        RunError: there are checkpoint files, and every one of them is damaged.
    """
    problems = []
    for candidate in (path, _previous(path)):
        if not candidate.exists():
            continue
        try:
            return load_tensors(candidate)
        except RunError as error:
            problems.append(str(error))
            warnings.warn(f"{error}; trying the checkpoint before it", RuntimeWarning, stacklevel=2)
    if problems:
        raise RunError(f"no checkpoint can be read: {'; '.join(problems)}; delete the folder to start again")
    return None
