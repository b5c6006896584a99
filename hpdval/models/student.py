"""The student of stage 1 in every reading: which ViT it starts from, and what projects its tokens into the joint space.

The text tower is always CLIP's; only the image tower is exchanged.  Letters: B images, P patches, W transformer width,
D joint embedding width.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from hpdval.errors import ConfigError, ModelError
from hpdval.files import read_json, sha256_file
from hpdval.models import weights
from hpdval.models.backbone import fetch, load_trunk
from hpdval.models.clip import Clip
from hpdval.models.towers import ProjectedTower

PROJECTIONS = ("clip", "head")
LABELLED = "vit_base_patch16_224.augreg_in1k"  # ImageNet-1K
FOLDER_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # as timm lays out a folder of the hub


def make_student(
    clip: Clip,
    *,
    student: str = "clip",
    student_weights: str | None = None,
    projection: str = "clip",
    normalise: bool = True,
    seed: int = 0,
) -> Clip:
    """Return a copy of ``clip`` with the image tower that a reading of the method trains; ``clip`` stays as it is.

    Args:
        clip: gives the text tower, the joint space and, for ``student="clip"``, the image tower.
        student: ``"clip"`` (released code), a timm ViT such as ``"vit_base_patch16_224.augreg_in1k"`` (the paper's
            ImageNet-1K ViT-B/16), ``"scenes"`` (the small ViT of this package, trained with labels), ``"labelled"``
            (of these two the one that fits ``clip``), or a folder with timm's ``config.json`` and weights.
        student_weights: a local checkpoint (.safetensors, .pt, .pth, .bin) for a timm name; None fetches timm's own,
            on this request only.
        projection: ``"clip"`` keeps CLIP's ``visual.proj``; ``"head"`` puts the paper's two-layer embedding head
            (W - D, Tanh, D - D) in its place, for class token and patches alike.
        normalise: False gives the tower pixels / 255 as they are (released code).  The choice travels with the weights.
        seed: of the head's starting weights.

    Raises:
        ModelError: an unknown ViT, weights that do not fit or would run code, or another input size or width.
    """
    if projection not in PROJECTIONS:
        raise ConfigError(f"projection is {projection!r}; use one of {', '.join(PROJECTIONS)}")
    config = copy.deepcopy(clip.config)
    model: Any = copy.deepcopy(clip.model)
    if student != "clip" or projection == "head":
        section, preprocess, source = _source(student, student_weights, clip.name)
        config["student"] = section | {"head": "two-layer" if projection == "head" else "linear"}
        config["preprocess_cfg"] |= preprocess
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tower = build_tower(config["student"], model.visual, clip.image_size, clip.embed_dim)
        if student != "clip":
            _load_trunk(tower, source, student)
        if projection == "clip":
            _copy_projection(tower, clip, student)
        model.visual = tower.to(clip.device)
    if not normalise:
        config["preprocess_cfg"] |= {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
    result = Clip(model, config, clip.name, clip.pretrained, clip.note)
    return result.train(clip.training)


def build_tower(section: Mapping[str, Any], visual: nn.Module, image_size: int, embed_dim: int) -> ProjectedTower:
    """Return the image tower a configuration's ``student`` section describes.

    Args:
        section: ``architecture`` (``"clip"``: a copy of ``visual`` with its weights; else timm's name, with random
            ones), ``model_args`` of timm, and ``head``, ``"linear"`` or ``"two-layer"``.
        visual: CLIP's own image tower.
        image_size: S in pixels.
        embed_dim: D.
    """
    if section["architecture"] == "clip":
        trunk: Any = copy.deepcopy(visual)
        if getattr(trunk, "proj", None) is None:
            raise ModelError("the embedding head takes the place of visual.proj, which this image tower does not have")
        trunk.proj = None
        width = int(trunk.ln_post.normalized_shape[0])
    else:
        options: dict[str, Any] = {**section["model_args"], "img_size": image_size, "num_classes": 0}
        try:
            trunk = timm.create_model(section["architecture"], pretrained=False, **options)
        except Exception as error:  # timm raises as it pleases on wrong names and arguments
            raise ModelError(f"timm cannot build {section['architecture']}: {weights.brief(error)}") from error
        width = int(trunk.num_features)
    head = EmbeddingHead(width, embed_dim) if section["head"] == "two-layer" else nn.Linear(width, embed_dim, False)
    return ProjectedTower(trunk, head, image_size)


class EmbeddingHead(nn.Sequential):
    """The paper's projection of class token and patches alike: W - D, Tanh, D - D (HP-DVAL: 768-512, Tanh, 512-512).

    >>> EmbeddingHead(768, 512)(torch.zeros(2, 196, 768)).shape
    torch.Size([2, 196, 512])
    """

    def __init__(self, width: int, embed_dim: int) -> None:
        super().__init__(nn.Linear(width, embed_dim), nn.Tanh(), nn.Linear(embed_dim, embed_dim))


def _source(student: str, given: str | None, clip_name: str) -> tuple[dict[str, Any], dict[str, Any], Path | None]:
    """Return the configuration section, the preprocessing, and the file of weights (None: timm fetches them)."""
    if student == "clip":
        return {"architecture": "clip", "model_args": {}}, {}, None
    if student == "labelled":
        student = "scenes" if clip_name == "scenes" else LABELLED
    if student == "scenes":
        folder_config, path = _shipped()
    elif student and os.path.isdir(student):
        folder_config = read_json(Path(student) / "config.json")
        found = [Path(student) / name for name in FOLDER_WEIGHTS if (Path(student) / name).is_file()]
        if not found:
            raise ModelError(f"{student} holds no weights; it needs one of {', '.join(FOLDER_WEIGHTS)}")
        path = found[0]
    else:
        base = student.partition(".")[0]
        if not timm.is_model(base):
            raise ModelError(
                f"student is {student!r}; use 'clip', 'scenes', 'labelled', a timm ViT such as {LABELLED!r}, "
                "or a folder with its config.json and weights"
            )
        if "." in student and student not in timm.list_pretrained(f"{base}.*"):
            tags = ", ".join(timm.list_pretrained(f"{base}.*")) or "none"
            raise ModelError(f"timm knows no weights {student!r}; it knows {tags}")
        known = timm.get_pretrained_cfg(student)
        assert known is not None  # every model that timm lists has one
        folder_config = {"architecture": base, "pretrained_cfg": known.to_dict()}
        path = None
    if given is not None:
        path = Path(given)
    try:
        cfg = folder_config["pretrained_cfg"]
        section = {"architecture": folder_config["architecture"], "model_args": folder_config.get("model_args") or {}}
        preprocess = {"mean": list(cfg["mean"]), "std": list(cfg["std"])}
    except (KeyError, TypeError):
        raise ModelError(f"the config.json of {student} lacks architecture or pretrained_cfg (mean, std)") from None
    return section, preprocess, path


def _shipped() -> tuple[Any, Path]:
    from hpdval.assets import SCENES_VIT_SHA256, asset_path

    path = Path(asset_path("scenes_vit.safetensors"))
    if not path.is_file() or sha256_file(path) != SCENES_VIT_SHA256:
        raise ModelError(f"{path} is missing or damaged (its sha256 is not the pinned one); reinstall hpdval")
    return read_json(asset_path("scenes_vit.json")), path


def _load_trunk(tower: ProjectedTower, path: Path | None, student: str) -> None:
    state = fetch(student, hint="as stage1.student_weights") if path is None else weights.read_state_dict(path)
    hint = "at this input size (student and CLIP must take images of one size)"
    load_trunk(tower.trunk, state, str(path or student), student, hint=hint)


@torch.no_grad()
def _copy_projection(tower: ProjectedTower, clip: Clip, student: str) -> None:
    proj, head = getattr(clip.visual, "proj", None), cast(nn.Linear, tower.head)
    if proj is None or proj.shape[0] != head.in_features:
        have = "none" if proj is None else f"one of width {proj.shape[0]}"
        raise ModelError(
            f"CLIP's projection does not fit {student} (width {head.in_features}; CLIP has {have}); "
            "use stage1.projection=head"
        )
    head.weight.copy_(cast(Tensor, proj).T)
