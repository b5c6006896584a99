"""Weights from files and tags: read without running code, loaded strictly."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed
from safetensors.torch import load_file
from torch import Tensor, nn

from hpdval.errors import ModelError

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
FOLDER_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
FOLDER_CONFIG = "open_clip_config.json"
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # scalars in OpenAI's archives
UNUSED = ("logit_scale", "logit_bias")  # of the contrastive training; no encoder uses them, so they may be absent


def weights_in(folder: Path) -> Path:
    """Return the weights file of a folder laid out as open_clip's ``local-dir:``."""
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise ModelError(f"{folder} holds no weights; it needs one of {', '.join(FOLDER_FILES)}")


def download(name: str, tag: str) -> Path:
    """Download the weights open_clip knows as ``tag`` of the model ``name``, or find them in its cache."""
    try:
        return Path(open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, tag)))
    except Exception as error:  # hub, urllib and ssl each have their own family of errors
        raise ModelError(
            f"could not download {tag!r} of {name} ({brief(error)}); without a network, fetch the weights "
            f"elsewhere and give the path of the file or folder as pretrained"
        ) from error


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read named tensors from safetensors or from torch's format, never running code from the file.

    Raises:
        ModelError: absent, damaged, of another kind, a pickle that wants to run code, or a TorchScript archive.
    """
    if path.suffix not in SUFFIXES:
        raise ModelError(f"{path} has suffix {path.suffix!r}; weights are {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise ModelError(f"{path} does not exist")
    if _is_torchscript(path):
        raise ModelError(
            f"{path} is a TorchScript archive, which is code; use the open_clip tag 'openai' or convert it"
        )
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own text here advises to run the code
        raise ModelError(
            f"{path} was refused: a pickle that would run code, or damaged; weights are plain tensors"
        ) from error
    except Exception as error:  # a damaged or hostile file may raise anything from the readers
        raise ModelError(f"{path} was refused: not readable as weights ({brief(error)})") from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]  # a training checkpoint of open_clip
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path} holds no state dict; it must map names to tensors")
    return {key.removeprefix("module."): value for key, value in state.items() if key not in NOT_WEIGHTS}


def load_weights(model: nn.Module, path: Path, name: str, *, resize: bool = False) -> None:
    """Load a file into an open_clip model; every tensor must fit, whatever precision it is stored in.

    ``resize``: interpolate the image tower's positional embeddings to the model's grid, as open_clip does.

    Raises:
        ModelError: keys are missing, unexpected or of another shape (some are named), or values are not finite.
    """
    state = convert_state_dict(model, read_state_dict(path))
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    own = model.state_dict()
    for key in UNUSED:
        if key not in own or key not in state:
            state.pop(key, None)
            state.update({key: own[key]} if key in own else {})
        else:
            state[key] = state[key].reshape(own[key].shape)
    if resize:
        resize_pos_embed(state, model)
    wrong = [
        f"{k} {tuple(v.shape)} for {tuple(own[k].shape)}"
        for k, v in state.items()
        if k in own and v.shape != own[k].shape
    ]
    faults = (("missing", own.keys() - state.keys()), ("unexpected", state.keys() - own.keys()), ("wrong shape", wrong))
    if any(keys for _, keys in faults):
        found = "; ".join(f"{fault} {_some(keys)}" for fault, keys in faults if keys)
        raise ModelError(f"{path} does not fit {name}: {found}; give the configuration these weights were trained with")
    if not all(bool(torch.isfinite(value).all()) for value in state.values()):
        raise ModelError(f"{path} holds NaN or infinite weights; it is damaged or its training diverged")
    model.load_state_dict(state)


def weights_digest(model: nn.Module) -> str:
    """Return a SHA-256 over names, types, shapes and bytes of the parameters: equal weights, equal digest."""
    sha = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        sha.update(f"{key} {value.dtype} {tuple(value.shape)} ".encode())
        sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _some(keys: Iterable[str], limit: int = 3) -> str:
    names = sorted(keys)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def brief(error: Exception) -> str:
    """Return the type and the first words of an error on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:157]}..." if len(text) > 160 else f"{type(error).__name__}: {text}"
