"""Weights from files and tags: read without running code, loaded strictly."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed
from safetensors.torch import load as load_bytes
from safetensors.torch import load_file
from torch import Tensor, nn

from hpdval.errors import ModelError

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
FOLDER_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
FOLDER_CONFIG = "open_clip_config.json"
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # scalars in OpenAI's archives
# the sha256 of OpenAI's archives, as their addresses carry it (open_clip/pretrained.py, and github.com/openai/CLIP)
OPENAI = {
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af": "ViT-B-32",
    "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f": "ViT-B-16",
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836": "ViT-L-14",
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02": "ViT-L-14-336",
}
UNUSED = ("logit_scale", "logit_bias")  # of the contrastive training; no encoder uses them, so they may be absent


def weights_in(folder: Path) -> Path:
    """Return the weights file of a folder laid out as open_clip's ``local-dir:``."""
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise ModelError(f"{folder} holds no weights; it needs one of {', '.join(FOLDER_FILES)}")


def download(name: str, tag: str) -> Path:
    """Download the weights open_clip knows as ``tag`` of the model ``name``, or find them in its cache.

    open_clip checks the sha256 of what it fetches from OpenAI's and its own addresses; of a file from the Hugging Face
    hub, where most tags live, only a ``sha256`` given to :func:`hpdval.load_clip` is checked.
    """
    try:
        return Path(open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, tag)))
    except Exception as error:  # hub, urllib and ssl each have their own family of errors
        raise ModelError(
            f"could not download {tag!r} of {name} ({brief(error)}); without a network, fetch the weights "
            f"elsewhere and give the path of the file or folder as pretrained"
        ) from error


def read_state_dict(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of :func:`read`, for callers to whom their origin is no news."""
    return read(path, sha256)[0]


def read(path: Path, sha256: str | None = None) -> tuple[dict[str, Tensor], str | None]:
    """Read named tensors from safetensors or torch's format, running no code but that of a pinned archive.

    A TorchScript archive is code, and is read by ``torch.jit`` if its SHA-256 is ``sha256`` or one of :data:`OPENAI`.
    What is hashed are the bytes that are read, not the file, which may be replaced in between.

    Args:
        path: a file with one of :data:`SUFFIXES`.
        sha256: what the file must have, 64 hexadecimal digits; checked before anything is read from it.

    Returns:
        The tensors by name, and the open_clip model whose archive by OpenAI this is, or None.

    Raises:
        ModelError: absent, damaged, of another kind or hash, a pickle that wants to run code, or an unknown archive.
    """
    if path.suffix not in SUFFIXES:
        raise ModelError(f"{path} has suffix {path.suffix!r}; weights are {', '.join(SUFFIXES)}")
    if not os.path.isfile(path):
        raise ModelError(f"{path} does not exist")
    try:
        if sha256 is None and not _is_torchscript(path):
            state: Any = load_file(path) if path.suffix == ".safetensors" else _torch_load(path)
            origin = None
        else:
            data = path.read_bytes()
            origin = _check(data, path, sha256)
            state = _parse(data, path.suffix)
    except ModelError:
        raise
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
    return {key.removeprefix("module."): value for key, value in state.items() if key not in NOT_WEIGHTS}, origin


def _check(data: bytes, path: Path, sha256: str | None) -> str | None:
    """Refuse bytes that are not the ones asked for, or an archive nobody asked for; return OpenAI's name of them."""
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None:
        wanted = str(sha256).lower()
        if not re.fullmatch("[0-9a-f]{64}", wanted):
            raise ModelError(f"sha256 is {wanted[:80]!r}; it must be 64 hexadecimal digits, as sha256sum prints them")
        if found != wanted:
            raise ModelError(
                f"{path} has sha256 {found[:12]}..., not {wanted[:12]}... as asked; it is damaged or another file, "
                f"and nothing was read from it"
            )
    elif found not in OPENAI and _is_torchscript(io.BytesIO(data)):
        raise ModelError(
            f"{path} is a TorchScript archive, which is code; use the open_clip tag 'openai' or convert it, or accept "
            f"this one, if you trust where it comes from, with sha256='{found}'"
        )
    return OPENAI.get(found)


def _parse(data: bytes, suffix: str) -> Any:
    """Read bytes that were checked."""
    if _is_torchscript(io.BytesIO(data)):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated")  # Future- or DeprecationWarning
            return torch.jit.load(io.BytesIO(data), map_location="cpu").state_dict()
    return load_bytes(data) if suffix == ".safetensors" else _torch_load(io.BytesIO(data))


def _torch_load(source: Path | io.BytesIO) -> Any:
    return torch.load(source, map_location="cpu", weights_only=True)


def load_weights(
    model: nn.Module, state: dict[str, Tensor], path: Path | str, name: str, *, resize: bool = False
) -> None:
    """Load what was read from ``path`` into an open_clip model; every tensor must fit, whatever its precision.

    ``resize``: interpolate the image tower's positional embeddings to the model's grid, as open_clip does.

    Raises:
        ModelError: keys are missing, unexpected or of another shape (some are named), or values are not finite.
    """
    state = convert_state_dict(model, state)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    own = model.state_dict()
    for key in UNUSED:
        if key not in own or key not in state:
            state.pop(key, None)
            state.update({key: own[key]} if key in own else {})
        else:
            state[key] = state[key].reshape(own[key].shape)
    if resize:  # in float32: half precision, as the shipped weights are, has no bicubic interpolation on a CPU
        state = {k: v.float() if k.endswith("positional_embedding") else v for k, v in state.items()}
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


def _is_torchscript(source: Path | io.BytesIO) -> bool:
    try:
        with zipfile.ZipFile(source) as archive:
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
