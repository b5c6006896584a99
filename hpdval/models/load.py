"""Find a CLIP by name, configuration or folder, and its weights by tag, file or folder."""

from __future__ import annotations

import copy
import difflib
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import nn

from hpdval.errors import ModelError
from hpdval.files import read_json, sha256_file
from hpdval.models import weights
from hpdval.models.clip import Clip
from hpdval.models.encoder import Preprocess
from hpdval.models.numeric import resolve_device
from hpdval.models.student import build_tower
from hpdval.models.towers import patch_grid

TOWERS = ("vision_cfg", "text_cfg")
MOST_LAYERS, LARGEST = 1000, 1 << 20  # of a configuration; the largest vocabularies have 256,000 tokens


def load_clip(
    name: str | os.PathLike[str],
    *,
    pretrained: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    image_size: int | None = None,
    seed: int = 0,
    sha256: str | None = None,
) -> Clip:
    """Load a CLIP with a ViT image tower, in float32, in eval mode.

    Args:
        name: an open_clip model (``"ViT-B-16"``), a configuration json (``CLIP(**config)``, or open_clip's with
            ``model_cfg`` and ``preprocess_cfg``), a folder with ``open_clip_config.json`` and weights, or ``"scenes"``,
            the small model shipped with this package.
        pretrained: an open_clip tag, downloaded by open_clip on this request only; a local file (.safetensors, .pt,
            .pth, .bin); a folder as above; None for random weights (for ``"scenes"`` and a folder: their own).
            A TorchScript archive is code: OpenAI's own are known, any other needs ``sha256``.
        device: where the model goes; ``"auto"`` is CUDA where there is one.
        image_size: S in pixels, if not the native one: positional embeddings are interpolated (open_clip's own ViTs).
        seed: of the random weights.
        sha256: what the file of weights must have, local or downloaded; of downloads see also
            :func:`hpdval.models.weights.download`.

    Activation and preprocessing travel with the weights. A tag brings both, and so does OpenAI's own archive:
    ``load_clip("ViT-B-16", pretrained="openai")`` switches to the QuickGELU these weights were trained with, and says
    so in ``.note`` (open_clip itself only warns). A folder, or the folder a file lies in, brings the preprocessing of
    its ``open_clip_config.json`` and must agree on the activation. Where neither says anything, ``.note`` does.

    Raises:
        ConfigError: an unknown or absent device.
        ModelError: an unknown name or tag, weights that do not fit, have another sha256 or would run code, a failed
            download, or a tower that gives no projected patch tokens.
    """
    config, source, shown = _resolve(name, pretrained)
    notes: list[str] = []
    state = tag = None
    if source is None and sha256 is not None:
        raise ModelError(
            f"sha256 was given, but {shown} has random weights; give a file, a folder or a tag as pretrained"
        )
    if isinstance(source, Path):
        state, origin = weights.read(source, sha256)
        if origin:
            tag = open_clip.get_pretrained_cfg(origin, "openai")
        elif pretrained is not None:
            notes += _heed_folder(config, source, shown)
    elif source is not None:
        tag = open_clip.get_pretrained_cfg(shown, source)
    if tag:
        notes += _heed_tag(config, tag, str(source))
    if image_size is not None:
        config["model_cfg"]["vision_cfg"]["image_size"] = image_size
    model = _build(config, shown, seed)
    if isinstance(source, str):  # only now: what cannot be built is not downloaded
        state = weights.read_state_dict(weights.download(shown, source), sha256)
    if state is None:
        notes.append("random weights: nothing was loaded (pretrained=None)")
    else:
        weights.load_weights(model, state, str(source), shown, resize=image_size is not None)
    clip = Clip(model, config, shown, None if source is None else str(source), "; ".join(notes))
    return clip.to(resolve_device(device)).eval()


def _resolve(name: Any, pretrained: Any) -> tuple[dict[str, Any], Path | str | None, str]:
    """Return the configuration, where weights come from (a file, a tag or nowhere), and the name to show."""
    shown, source = str(name), None
    if shown == "scenes":
        config, source = _scenes()
    elif os.path.isdir(shown):
        config, source = read_json(Path(shown) / weights.FOLDER_CONFIG), weights.weights_in(Path(shown))
    elif shown.endswith(".json"):
        config = read_json(shown)
    elif shown in open_clip.list_models():
        config = open_clip.get_model_config(shown)
    else:
        near = difflib.get_close_matches(shown, open_clip.list_models(), n=3) or ["ViT-B-16", "ViT-B-32"]
        raise ModelError(
            f"{shown!r} is no open_clip model (try {', '.join(near)}), no configuration json and no folder"
        )
    config = _normal_form(config, shown)
    if pretrained is None:
        return config, source, shown
    if os.path.isdir(pretrained):
        return config, weights.weights_in(Path(pretrained)), shown
    if Path(pretrained).suffix in weights.SUFFIXES or os.path.exists(pretrained):
        return config, Path(pretrained), shown
    if open_clip.is_pretrained_cfg(shown, str(pretrained)):
        return config, str(pretrained), shown
    tags = ", ".join(open_clip.list_pretrained_tags_by_model(shown)) or "none"
    raise ModelError(
        f"pretrained={str(pretrained)!r} is no file, no folder and no open_clip tag of {shown} (tags: {tags})"
    )


def _heed_tag(config: dict[str, Any], tag: dict[str, Any], source: str) -> list[str]:
    """Take over activation and preprocessing of what open_clip knows about weights, and return notes."""
    mine, theirs = (bool(known.get("quick_gelu")) for known in (config["model_cfg"], tag))
    config["model_cfg"]["quick_gelu"] = theirs
    config["preprocess_cfg"].update(tag)
    switched = f"activation switched to {'QuickGELU' if theirs else 'GELU'}, as {source!r} was trained"
    return [] if mine == theirs else [switched]


def _heed_folder(config: dict[str, Any], file: Path, shown: str) -> list[str]:
    """Check the activation against the configuration beside a file, take over its preprocessing, and return notes."""
    beside = file.parent / weights.FOLDER_CONFIG
    if Path(shown) == file.with_suffix(".json"):  # the file's own configuration, as in the folder of a run
        return []
    if not beside.is_file():
        silent = "activation and preprocessing are those of the name; this file does not say"
        return [silent] if shown in open_clip.list_models() else []
    theirs = _normal_form(read_json(beside), str(beside))
    if bool(theirs["model_cfg"].get("quick_gelu")) != bool(config["model_cfg"].get("quick_gelu")):
        way_out = f"load the folder itself: load_clip({str(file.parent)!r})"
        if file.name != weights.FOLDER_FILES[0]:  # a folder stands for the first it has
            way_out = f"load the file with it: load_clip({str(beside)!r}, pretrained={str(file)!r})"
        raise ModelError(f"{beside} and {shown} differ in quick_gelu; {way_out}")
    mine, config["preprocess_cfg"] = config["preprocess_cfg"], theirs["preprocess_cfg"]
    before, after = (Preprocess.from_json({**p, "size": 0}) for p in (mine, config["preprocess_cfg"]))
    return [] if before == after else [f"preprocessing is that of {beside}"]


def _normal_form(config: Any, shown: str) -> dict[str, Any]:
    """Return ``{"model_cfg": ..., "preprocess_cfg": ...}`` from either kind of configuration, complete and copied."""
    model = config.get("model_cfg", config) if isinstance(config, dict) else None
    if not (isinstance(model, dict) and "embed_dim" in model and all(isinstance(model.get(k), dict) for k in TOWERS)):
        raise ModelError(f"{shown} is no CLIP configuration; it needs embed_dim, {', '.join(TOWERS)}, as in open_clip")
    for part in (model, *(model[key] for key in TOWERS)):
        for key, value in part.items():
            most = MOST_LAYERS if key == "layers" else LARGEST
            if any(isinstance(one, int) and one > most for one in (value if isinstance(value, list) else [value])):
                raise ModelError(f"{shown} has {key}={value!r:.80}; at most {most} is built")  # not for hours
    normal = {"model_cfg": model, "preprocess_cfg": dict(config.get("preprocess_cfg") or {})}
    return copy.deepcopy(normal | {key: config[key] for key in ("student",) if key in config})


def _scenes() -> tuple[Any, Path]:
    from hpdval.assets import SCENES_CLIP_SHA256, asset_path

    path = Path(asset_path("scenes_clip.safetensors"))
    if not path.is_file():
        raise ModelError(f"{path} is missing from this installation; reinstall hpdval")
    if sha256_file(path) != SCENES_CLIP_SHA256:
        raise ModelError(f"{path} is damaged: its sha256 is not the pinned one; reinstall hpdval")
    return read_json(asset_path("scenes_clip.json")), path


def _build(config: dict[str, Any], name: str, seed: int) -> nn.Module:
    """Build the open_clip model of a configuration with random weights, and complete the configuration."""
    options = copy.deepcopy(config["model_cfg"])
    if options["text_cfg"].get("hf_model_name"):
        raise ModelError(
            f"{name} has a Hugging Face text tower, which takes no learnable prompts here; use a native one"
        )
    options["vision_cfg"].update(patch_dropout=0.0)  # dropped patches have no place in a grid
    if options["vision_cfg"].get("timm_model_name"):
        options["vision_cfg"]["timm_model_pretrained"] = False  # nothing is downloaded to build a model
    custom = options.pop("custom_text", False)
    kind = open_clip.CLIP if not custom else open_clip.CoCa if "multimodal_cfg" in options else open_clip.CustomTextCLIP
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: Any = kind(**options)
    except Exception as error:  # open_clip asserts, and torch raises as it pleases, on a wrong configuration
        raise ModelError(f"open_clip cannot build {name}: {weights.brief(error)}; see its configuration") from error
    if "student" in config:  # what stage 1 left where it does without CLIP's own image tower
        model.visual = build_tower(config["student"], model.visual, model.visual.image_size[0], options["embed_dim"])
    if min(patch_grid(model.visual, name)) < 1:  # which refuses other towers, before anything is downloaded
        raise ModelError(f"{name} has no whole patch in its image; correct image_size or patch_size")
    height, width = model.visual.image_size
    if height != width:
        raise ModelError(f"{name} takes images of {height} x {width} pixels; only square ones are supported")
    complete = asdict(Preprocess.from_json({**config["preprocess_cfg"], "size": height}))
    config["preprocess_cfg"] = {k: list(v) if isinstance(v, tuple) else v for k, v in complete.items()}
    return model
