"""From images to scores: features of a split, the :class:`Scorer` every method returns, and zero-shot.

Letters: N images, B in a batch, C classes, P patches, D joint width.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from hpdval.checkpoint import load_tensors, save_tensors
from hpdval.config import ScoreConfig
from hpdval.data.dataset import Split
from hpdval.data.decode import decode
from hpdval.data.store import ImageStore, resize_image
from hpdval.distributed import gather, share
from hpdval.files import atomic_write, write_json
from hpdval.models import Clip, ImageFeatures, load_clip
from hpdval.models.dual_view import dual_view_scores
from hpdval.models.numeric import image_encoder, resolve_device
from hpdval.models.prompts import TEMPLATE, hand_crafted
from hpdval.progress import progress

NOTHING_TRAINED = "none (nothing is trained)"
GLOBAL_ALPHA = {"paper": 1.0, "released": 0.0}  # the global view alone, in either reading
RESIZE_MODES = {"shortest": "crop", "squash": "squash"}  # open_clip's names, and the store's


def native_resize(clip: Clip) -> str:
    """Return the store's mode for how this model's images were resized: ``crop`` (CLIP) or ``squash``."""
    return RESIZE_MODES.get(clip.preprocess.resize_mode, "squash")


def _batches(images: np.ndarray, size: int) -> Iterator[torch.Tensor]:
    for start in range(0, len(images), size):
        yield torch.from_numpy(np.array(images[start : start + size]))  # (B, S, S, 3) uint8


@torch.no_grad()
def encode(
    clip: Clip,
    images: np.ndarray,
    *,
    batch_size: int = 128,
    precision: str = "auto",
    description: str = "encoding",
    show: bool = True,
) -> Iterator[ImageFeatures]:
    """Yield projected class (B, D) and patch tokens (B, P, D), float32 on the model's device, batch by batch.

    Args:
        images: (N, S, S, 3) uint8, already resized to the model's input, as :class:`ImageStore` keeps them.
    """
    training = clip.training
    clip.eval()
    try:
        encoder = image_encoder(clip.visual, precision)
        total = -(-len(images) // batch_size)
        for batch in progress(_batches(images, batch_size), description, total=total, show=show):
            features = encoder(clip.normalise(batch))
            yield ImageFeatures(features.cls.float(), features.patches.float())
    finally:
        clip.train(training)


@dataclass(frozen=True)
class SavedClip:
    """A file of weights, which weights they are, and how to see that the file was not replaced since."""

    path: Path
    weights_sha256: str
    identity: tuple[int, int, int]

    @classmethod
    def of(cls, path: Path, clip: Clip) -> SavedClip:
        """Return the record of ``path``, which holds ``clip``'s weights."""
        return cls(path, clip.weights_sha256, _identity(path))

    def still_holds(self, clip: Clip) -> bool:
        """Whether the file is the one that was seen, and ``clip`` still has its weights."""
        return (
            self.path.exists() and _identity(self.path) == self.identity and clip.weights_sha256 == self.weights_sha256
        )


def _identity(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


class Scorer:
    """Images in, scores (N, C) out: what every method returns and every report reads.

    ``text_global`` and ``text_local`` (C, D) are the text embeddings of the two views; ``score`` says how the views are
    fused (HP-DVAL eq. 4-5).  ``contexts`` holds learned context vectors (M, W), where there are any; ``selection`` says
    on which images epochs were chosen.
    """

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        text_global: torch.Tensor,
        text_local: torch.Tensor | None = None,
        *,
        score: ScoreConfig | None = None,
        resize: str | None = None,
        template: str = TEMPLATE,
        contexts: Mapping[str, torch.Tensor] | None = None,
        method: str = "",
        precision: str = "auto",
        selection: str = NOTHING_TRAINED,
    ) -> None:
        self.clip = clip
        self.classes = tuple(classes)
        self.text_global = text_global.detach()
        self.text_local = self.text_global if text_local is None else text_local.detach()
        self.score_config = score or ScoreConfig()
        self.resize = resize or native_resize(clip)
        self.template = template
        self.contexts = {name: value.detach() for name, value in (contexts or {}).items()}
        self.method = method
        self.precision = precision
        self.selection = selection
        self._saved: SavedClip | None = None  # the file that holds these very weights, for a hard link

    def share_clip_of(self, other: Scorer) -> None:
        """Say that the encoders are ``other``'s, untouched: saving then links its file instead of writing another."""
        self._saved = other._saved

    @torch.no_grad()
    def score_features(self, features: ImageFeatures) -> torch.Tensor:
        """Return (B, C) float32 scores of encoded images."""
        device = features.cls.device
        return dual_view_scores(
            features.cls,
            features.patches,
            self.text_global.to(device),
            self.text_local.to(device),
            **asdict(self.score_config),
        )

    def score_array(self, images: np.ndarray, **options: Any) -> np.ndarray:
        """Return (N, C) float32 scores of images (N, S, S, 3) uint8 that are already resized."""
        options = {"precision": self.precision, "description": "scoring", **options}
        own = encode(self.clip, images[share(len(images))], **options)
        parts = [self.score_features(features).cpu() for features in own]
        return gather(torch.cat(parts), len(images)).numpy() if parts else np.zeros((0, len(self.classes)), np.float32)

    def score(self, split: Split, **options: Any) -> np.ndarray:
        """Return (N, C) float32 scores of a split, in its order."""
        return self.score_array(ImageStore.open(split, self.clip.image_size, mode=self.resize).images, **options)

    def score_images(self, images: Iterable[str | os.PathLike[str] | np.ndarray], **options: Any) -> np.ndarray:
        """Return (N, C) float32 scores of image files, or of (H, W, 3) uint8 arrays of any size.

        Raises:
            DataError: a file cannot be decoded; the message names it.
        """
        size = self.clip.image_size
        ready = [resize_image(i if isinstance(i, np.ndarray) else decode(i), size, self.resize) for i in images]
        stacked = np.stack(ready) if ready else np.zeros((0, size, size, 3), np.uint8)
        return self.score_array(stacked, **options)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the whole model to ``folder``: ``clip.json`` and ``clip.safetensors`` load in open_clip, too."""
        folder = Path(folder)
        write_json(folder / "clip.json", self.clip.config)
        self._saved = _link_or_write(self._saved, folder / "clip.safetensors", self.clip)
        state = {
            "classes": self.classes,
            "score": asdict(self.score_config),
            "resize": self.resize,
            "template": self.template,
            "method": self.method,
            "precision": self.precision,
            "selection": self.selection,
        }
        tensors = {"text_global": self.text_global, "text_local": self.text_local}
        tensors |= {f"context.{name}": value for name, value in self.contexts.items()}
        save_tensors(folder / "model.safetensors", tensors, state)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> Scorer:
        """Read what :meth:`save` wrote."""
        folder = Path(folder)
        where = resolve_device(device)
        tensors, state = load_tensors(folder / "model.safetensors")
        tensors = {name: value.to(where) for name, value in tensors.items()}
        clip = load_clip(str(folder / "clip.json"), pretrained=str(folder / "clip.safetensors"), device=str(where))
        scorer = cls(
            clip,
            state["classes"],
            tensors["text_global"],
            tensors["text_local"],
            score=ScoreConfig(**state["score"]),
            resize=state["resize"],
            template=state["template"],
            contexts={name.removeprefix("context."): t for name, t in tensors.items() if name.startswith("context.")},
            method=state["method"],
            precision=state["precision"],
            selection=state["selection"],
        )
        scorer._saved = SavedClip.of(folder / "clip.safetensors", clip)
        return scorer


def _link_or_write(saved: SavedClip | None, target: Path, clip: Clip) -> SavedClip:
    """A stage that leaves the encoders alone shares their file: a hard link costs no disk."""
    if saved is not None and saved.still_holds(clip):
        if saved.path.resolve() == target.resolve():
            return saved
        try:
            target.unlink(missing_ok=True)
            os.link(saved.path, target)
            return SavedClip.of(target, clip)
        except OSError:  # another file system
            pass
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in clip.model.state_dict().items()}
    with atomic_write(target) as file:
        file.write(save(tensors))
    return SavedClip.of(target, clip)


def zero_shot(
    clip: Clip,
    split: Split,
    classes: Sequence[str],
    *,
    template: str = TEMPLATE,
    alpha: float | None = None,
    k: int | float = 32 / 196,
    reading: str = "paper",
    resize: str | None = None,
    **options: Any,
) -> np.ndarray:
    """Return zero-shot scores (N, C) float32 of a split: cosines with the hand-crafted prompts of the classes.

    By default CLIP's own global view; an ``alpha``, which weighs the view that ``reading`` says, mixes in the mean of
    the k best patches (HP-DVAL eq. 4-5).
    """
    score = ScoreConfig(alpha=GLOBAL_ALPHA.get(reading, 1.0) if alpha is None else alpha, k=k, reading=reading)
    return zero_shot_scorer(clip, classes, template=template, score=score, resize=resize).score(split, **options)


def zero_shot_scorer(
    clip: Clip,
    classes: Sequence[str],
    *,
    template: str = TEMPLATE,
    score: ScoreConfig | None = None,
    resize: str | None = None,
) -> Scorer:
    """Return CLIP as it is, as a :class:`Scorer`; global view only unless ``score`` says otherwise."""
    return Scorer(
        clip,
        classes,
        hand_crafted(clip, classes, template),
        score=score or ScoreConfig(alpha=1.0),
        resize=resize,
        template=template,
        method="zero-shot",
    )
