"""Images decoded once: a file of resized pixels that training, scoring and notebooks map into memory.

Letters: N images, S pixels of a side.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from hpdval.data.dataset import Split
from hpdval.errors import ConfigError
from hpdval.files import atomic_write, cache_dir, digest, made_once

VERSION = 2  # raise it when decode or resize_image would give other pixels, or the file's layout changes
MODES = ("squash", "crop")
MAX_ASPECT = 16
_CHUNK = 256  # images in flight: bounds memory while threads decode
_THREADS = min(8, os.cpu_count() or 1)

Progress = Callable[[Iterable[Any]], Iterable[Any]]


def resize_image(image: np.ndarray, size: int, mode: str = "squash") -> np.ndarray:
    """Return (S, S, 3) uint8 by Pillow's antialiased bicubic filter, as CLIP's preprocessing does.

    ``squash`` ignores the aspect ratio.  ``crop`` is torchvision's ``Resize(S)`` followed by ``CenterCrop(S)``; of an
    image longer than ``MAX_ASPECT`` times its shorter side only the middle is resized, so that 1 x 3000 stays cheap.

    Args:
        image: (H, W, 3) uint8.
        size: S.
        mode: one of ``MODES``.

    >>> resize_image(np.zeros((1, 3000, 3), np.uint8), 8, "crop").shape
    (8, 8, 3)
    """
    if mode not in MODES:
        raise ConfigError(f"mode is {mode!r}; choose one of {', '.join(map(repr, MODES))}")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ConfigError(f"size is {size!r}; it must be a number of pixels, at least 1")
    picture = Image.fromarray(image)
    if mode == "squash":
        return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))
    longest = MAX_ASPECT * min(picture.size)
    picture = _centre(picture, min(picture.width, longest), min(picture.height, longest))
    shorter = min(picture.size)
    width, height = int(size * picture.width / shorter), int(size * picture.height / shorter)
    return np.asarray(_centre(picture.resize((width, height), Image.Resampling.BICUBIC), size, size))


def view_box(height: int, width: int, size: int, mode: str = "squash") -> tuple[float, float, float, float]:
    """Return the part of an image that :func:`resize_image` keeps: left, top, right, bottom in its own pixels.

    >>> view_box(100, 300, 64, "crop"), view_box(100, 300, 64)
    ((100.0, 0.0, 200.0, 100.0), (0.0, 0.0, 300.0, 100.0))
    """
    if mode == "squash":
        return 0.0, 0.0, float(width), float(height)
    kept = [min(side, MAX_ASPECT * min(height, width)) for side in (width, height)]
    edges = []
    for side, whole in zip(kept, (width, height), strict=True):
        resized = int(size * side / min(kept))
        offset, pixel = round((whole - side) / 2), side / resized
        start = round((resized - size) / 2)
        edges.append((offset + start * pixel, offset + (start + size) * pixel))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def _centre(picture: Image.Image, width: int, height: int) -> Image.Image:
    left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
    return picture.crop((left, top, left + width, top + height))


@dataclass(frozen=True)
class ImageStore:
    """The resized images of a split, in the split's order.

    ``images`` is a read-only memory map, (N, S, S, 3) uint8; ``hashes`` the SHA-256 of each image's S x S x 3 bytes,
    as hex. The file lies under ``cache_dir()`` by its ``key``, a digest of ids, fingerprints, size, mode and code
    version.  It is written whole or not at all, by one process at a time.  When it is opened, every image is checked
    against its hash, and all hashes against a checksum that holds the key; a damaged or foreign file is made again.
    A store pickles as its path, so worker processes map the same pages.
    """

    key: str
    path: Path
    shape: tuple[int, int, int, int]
    offset: int
    hashes: tuple[str, ...]

    @classmethod
    def open(
        cls,
        split: Split,
        size: int,
        *,
        mode: str = "squash",
        cache: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
    ) -> ImageStore:
        """Return the store of ``split`` at S = ``size``, decoding the images where no intact store exists.

        Args:
            split: the images.
            size: S.
            mode: ``squash`` or ``crop``, see :func:`resize_image`.
            cache: folder to keep stores in; default: ``images`` under ``cache_dir()``.
            progress: wraps the iteration over the N images while they are decoded.

        Raises:
            DataError: an image cannot be decoded; nothing is kept.
            RunError: the store cannot be written (disk full, no permission); the message names path and bytes written.
        """
        key = digest("images", VERSION, PIL.__version__, split.ids, split.fingerprints, size, mode)
        path = Path(cache or cache_dir() / "images") / f"{key}.u8"
        resize_image(np.zeros((1, 1, 3), np.uint8), size, mode)  # refuses a wrong size or mode, also for no images
        read = partial(_read, key, path, len(split), size)
        return made_once(path, read, partial(_write, key, path, split, size, mode, progress))

    @cached_property
    def images(self) -> np.ndarray:
        """The pixels, (N, S, S, 3) uint8, read-only."""
        if not len(self):
            return np.zeros(self.shape, np.uint8)
        return np.memmap(self.path, np.uint8, "r", self.offset, self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageStore, (self.key, self.path, self.shape, self.offset, self.hashes)


def _resized(split: Split, size: int, mode: str) -> Iterator[np.ndarray]:
    with ThreadPoolExecutor(_THREADS) as pool:  # Pillow lets go of the interpreter while it decodes and resizes
        for start in range(0, len(split), _CHUNK):
            chunk = range(start, min(start + _CHUNK, len(split)))
            yield from pool.map(lambda i: resize_image(split.read(i), size, mode), chunk)


def _write(key: str, path: Path, split: Split, size: int, mode: str, progress: Progress | None) -> None:
    """Write the hashes after the pixels: (N, S, S, 3) uint8, then (N, 32) uint8; then the checksum, 32 bytes."""
    for stale in path.parent.glob(f".{path.name}.*.tmp"):  # of a killed process: the lock is ours
        stale.unlink(missing_ok=True)
    hashes = []
    with atomic_write(path) as file:
        images = _resized(split, size, mode)
        for image in progress(images) if progress else images:
            data = image.tobytes()
            file.write(data)
            hashes.append(hashlib.sha256(data).digest())
        file.write(b"".join(hashes) + _checksum(key, b"".join(hashes)))


def _checksum(key: str, hashes: bytes) -> bytes:
    return hashlib.sha256(key.encode() + hashes).digest()


def _read(key: str, path: Path, n: int, size: int) -> ImageStore | None:
    """Return the store if it is there and every image has the hash it should have."""
    if not path.exists():
        return None
    shape, image_bytes = (n, size, size, 3), size * size * 3
    if path.stat().st_size == n * (image_bytes + 32) + 32:
        with open(path, "rb") as file:
            file.seek(n * image_bytes)
            hashes, checksum = file.read(32 * n), file.read()
        store = ImageStore(key, path, shape, 0, tuple(hashes[32 * i : 32 * i + 32].hex() for i in range(n)))

        def intact(start: int) -> bool:
            stop = min(start + _CHUNK, n)
            return all(hashlib.sha256(store.images[i]).hexdigest() == store.hashes[i] for i in range(start, stop))

        with ThreadPoolExecutor(_THREADS) as pool:
            if checksum == _checksum(key, hashes) and all(pool.map(intact, range(0, n, _CHUNK))):
                return store
    warnings.warn(f"{path} is damaged; its {n} images are decoded again", stacklevel=4)
    return None
