"""From images to scores: features of a split, and the :class:`Scorer` that every method returns.

Letters: N images, B in a batch, C classes, P patches, D width of the features.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import save

from hpdval.checkpoint import save_tensors
from hpdval.data.dataset import Split
from hpdval.data.decode import decode
from hpdval.data.store import ImageStore, resize_image
from hpdval.distributed import gather, share
from hpdval.files import atomic_write, sha256_file, write_json
from hpdval.models import Encoder, ImageFeatures
from hpdval.models.numeric import image_encoder
from hpdval.progress import progress

NOTHING_TRAINED = "none (nothing is trained)"
RESIZE_MODES = {"shortest": "crop", "squash": "squash"}  # open_clip's names, and the store's


def native_resize(encoder: Encoder) -> str:
    """Return the store's mode for how this model's images were resized: ``crop`` (CLIP) or ``squash``."""
    return RESIZE_MODES.get(encoder.preprocess.resize_mode, "squash")


def _batches(images: np.ndarray, size: int) -> Iterator[torch.Tensor]:
    for start in range(0, len(images), size):
        yield torch.from_numpy(np.array(images[start : start + size]))  # (B, S, S, 3) uint8


@torch.no_grad()
def encode(
    model: Encoder,
    images: np.ndarray,
    *,
    batch_size: int = 128,
    precision: str = "auto",
    description: str = "encoding",
    show: bool = True,
) -> Iterator[ImageFeatures]:
    """Yield class (B, D) and patch tokens (B, P, D), float32 on the model's device, batch by batch.

    Args:
        images: (N, S, S, 3) uint8, already resized to the model's input, as :class:`ImageStore` keeps them.
    """
    training = model.training
    model.eval()
    try:
        encoder = image_encoder(model.visual, precision)
        total = -(-len(images) // batch_size)
        for batch in progress(_batches(images, batch_size), description, total=total, show=show):
            features = encoder(model.normalise(batch))
            yield ImageFeatures(features.cls.float(), features.patches.float())
    finally:
        model.train(training)


@dataclass(frozen=True)
class SavedEncoder:
    """A file of weights, which weights they are, and how to see that the file was not replaced since."""

    path: Path
    weights_sha256: str
    identity: tuple[int, int, int]

    @classmethod
    def of(cls, path: Path, encoder: Encoder) -> SavedEncoder:
        """Return the record of ``path``, which holds ``encoder``'s weights."""
        return cls(path, encoder.weights_sha256, _identity(path))

    def still_holds(self, encoder: Encoder) -> bool:
        """Whether the file is the one that was seen, and ``encoder`` still has its weights."""
        return (
            self.path.exists()
            and _identity(self.path) == self.identity
            and encoder.weights_sha256 == self.weights_sha256
        )


def _identity(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


class Scorer:
    """Images in, scores (N, C) out: what every method returns and every report reads.

    A scorer is an encoder and what turns its features into scores; a subclass says what that is.

    Attributes:
        encoder: images to features.
        classes: their names.
        resize: how images get the encoder's size, ``crop`` or ``squash``.
        method: the name of the method that made it.
        precision: the numeric mode of the encoder.
        selection: on which images epochs were chosen.
        trained: what that took, for each method on the way here: numbers of ``parameters`` and ``seconds``; None where
            it is not known.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        encoder: Encoder,
        classes: Sequence[str],
        *,
        resize: str | None = None,
        method: str = "",
        precision: str = "auto",
        selection: str = NOTHING_TRAINED,
    ) -> None:
        self.encoder = encoder
        self.classes = tuple(classes)
        self.resize = resize or native_resize(encoder)
        self.method = method
        self.precision = precision
        self.selection = selection
        self.trained: Mapping[str, Mapping[str, float]] | None = {}
        self._saved: SavedEncoder | None = None  # the file that holds these very weights, for a hard link

    def share_encoder_of(self, other: Scorer) -> None:
        """Say that the encoder is ``other``'s, untouched: saving then links its file instead of writing another."""
        self._saved = other._saved

    def score_features(self, features: ImageFeatures) -> torch.Tensor:
        """Return (B, C) float32 scores of encoded images."""
        raise NotImplementedError

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return tensors and JSON from which, with the encoder, the scorer can be made again."""
        raise NotImplementedError

    def score_array(self, images: np.ndarray, **options: Any) -> np.ndarray:
        """Return (N, C) float32 scores of images (N, S, S, 3) uint8 that are already resized."""
        options = {"precision": self.precision, "description": "scoring", **options}
        own = encode(self.encoder, images[share(len(images))], **options)
        parts = [self.score_features(features).cpu() for features in own]
        return gather(torch.cat(parts), len(images)).numpy() if parts else np.zeros((0, len(self.classes)), np.float32)

    def score(self, split: Split, **options: Any) -> np.ndarray:
        """Return (N, C) float32 scores of a split, in its order."""
        return self.score_array(ImageStore.open(split, self.encoder.image_size, mode=self.resize).images, **options)

    def score_images(self, images: Iterable[str | os.PathLike[str] | np.ndarray], **options: Any) -> np.ndarray:
        """Return (N, C) float32 scores of image files, or of (H, W, 3) uint8 arrays of any size.

        Raises:
            DataError: a file cannot be decoded; the message names it.
        """
        size = self.encoder.image_size
        ready = [resize_image(i if isinstance(i, np.ndarray) else decode(i), size, self.resize) for i in images]
        stacked = np.stack(ready) if ready else np.zeros((0, size, size, 3), np.uint8)
        return self.score_array(stacked, **options)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the whole model to ``folder``.

        ``clip.json`` and ``clip.safetensors`` load in open_clip, too; of a CNN they are ``cnn.json`` and
        ``cnn.safetensors``, in timm's names.
        """
        folder, stem = Path(folder), self.encoder.stem
        files = [folder / f"{stem}.json", folder / f"{stem}.safetensors"]
        write_json(files[0], self.encoder.config)
        self._saved = _link_or_write(self._saved, files[1], self.encoder)
        tensors, own = self.state()
        state = {
            "kind": self.kind,
            "encoder": stem,
            "files": {path.name: sha256_file(path) for path in files},
            "classes": self.classes,
            "resize": self.resize,
            "method": self.method,
            "precision": self.precision,
            "selection": self.selection,
        }
        save_tensors(folder / "model.safetensors", tensors, state | own)

    def came_from(self, folder: str | os.PathLike[str]) -> None:
        """Say that ``folder`` holds the files of this scorer."""
        self._saved = SavedEncoder.of(Path(folder) / f"{self.encoder.stem}.safetensors", self.encoder)


def _link_or_write(saved: SavedEncoder | None, target: Path, encoder: Encoder) -> SavedEncoder:
    """A stage that leaves the encoder alone shares their file: a hard link costs no disk."""
    if saved is not None and saved.still_holds(encoder):
        if saved.path.resolve() == target.resolve():
            return saved
        try:
            target.unlink(missing_ok=True)
            os.link(saved.path, target)
            return SavedEncoder.of(target, encoder)
        except OSError:  # another file system
            pass
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in encoder.model.state_dict().items()}
    with atomic_write(target) as file:
        file.write(save(tensors))
    return SavedEncoder.of(target, encoder)
