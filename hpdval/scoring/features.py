"""Features computed once: a file of class and patch tokens that training maps into memory.

Letters: N images, B in a batch, P patches, D joint width.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import open_clip
import torch

import hpdval
from hpdval.data.dataset import Split
from hpdval.data.store import ImageStore
from hpdval.errors import ConfigError, ModelError, RunError
from hpdval.files import cache_dir, digest, made_once
from hpdval.models import Encoder, ImageFeatures
from hpdval.models.numeric import numeric_mode
from hpdval.scoring.scorer import encode, native_resize

VERSION = 2  # of the encoder's path: raise it when encode, or the file's layout, would give other bytes
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
BATCH = 128  # images encoded together; a fill continues at a whole batch, so that it gives the same bits
CHECKSUM = 32  # bytes after the tokens of each image: the SHA-256 of key, number and tokens
RESIDENT = 0.5  # share of a GPU's free memory that a store may take; a larger one stays in its file
_THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class FeatureStore:
    """The features of a split by one encoder, in the split's order, in a file under ``cache_dir()``.

    An image's record is its class token and its patches (1 + P, D) in ``dtype``, then a checksum.  The file's name
    is its ``key``, a digest of weights, architecture and preprocessing, the images' ids and pixels, resize mode, dtype,
    numeric mode of the encoder and code version.  One process at a time fills a store; a fill that was killed goes on
    where it was.  Every record is checked when a store is opened, and a damaged file is made again.
    """

    key: str
    path: Path
    shape: tuple[int, int, int]
    dtype: str

    @classmethod
    def open(
        cls,
        encoder: Encoder,
        split: Split,
        *,
        resize: str | None = None,
        dtype: str = "float16",
        precision: str = "auto",
        cache: str | os.PathLike[str] | None = None,
        show: bool = True,
    ) -> FeatureStore:
        """Return the store of ``split`` by ``encoder``, encoding the images where no intact store exists.

        Args:
            resize: ``crop`` or ``squash``, see :func:`hpdval.data.store.resize_image`; None is the model's own.
            dtype: what is kept, one of ``DTYPES``; ``float32`` gives the bits that :func:`encode` gives.
            precision: the mode in which the encoder runs, see :mod:`hpdval.models.numeric`.
            cache: folder to keep stores in; default: ``features`` under ``cache_dir()``.

        Raises:
            ConfigError: unknown dtype.
            ModelError: features that are not finite in this dtype; the message names the images.
            RunError: the store cannot be written (disk full, no permission); the message names path and bytes written.
        """
        if dtype not in DTYPES:
            raise ConfigError(f"dtype of features is {dtype!r}; choose one of {', '.join(map(repr, DTYPES))}")
        mode = resize or native_resize(encoder)
        images = ImageStore.open(split, encoder.image_size, mode=mode)
        code = (VERSION, hpdval.__version__, torch.__version__, open_clip.__version__)
        numeric = encoder.device.type, numeric_mode(precision, encoder.device), torch.get_float32_matmul_precision()
        key = digest("features", code, encoder.fingerprint, split.ids, images.hashes, mode, dtype, numeric)
        path = Path(cache or cache_dir() / "features") / f"{key}.{dtype}"
        rows, columns = encoder.patch_grid
        store = cls(key, path, (len(split), 1 + rows * columns, encoder.embed_dim), dtype)
        fill = partial(_fill, store, encoder, images.images, split.ids, precision, show)
        return made_once(path, partial(_intact, store), fill)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def record(self) -> int:
        """Bytes of an image: its tokens and their checksum."""
        return self.shape[1] * self.shape[2] * DTYPES[self.dtype].itemsize + CHECKSUM

    @cached_property
    def tokens(self) -> torch.Tensor:
        """Class token and patches of every image, (N, 1 + P, D) in ``dtype``: the mapped file, not to be written to."""
        if not len(self):
            return torch.empty(self.shape, dtype=DTYPES[self.dtype])
        size = DTYPES[self.dtype].itemsize
        plain = np.memmap(self.path, {2: np.int16, 4: np.int32}[size], "r", shape=(len(self), self.record // size))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nobody writes
            words = torch.from_numpy(plain).view(DTYPES[self.dtype])
        return words[:, : -CHECKSUM // size].unflatten(1, self.shape[1:])


class Features:
    """Float32 features on a device, rows of a store: ``features[rows]`` are class (B, D) and patch tokens (B, P, D).

    A GPU holds the store, in the store's dtype, where that takes at most half of its free memory; otherwise rows are
    read from the mapped file when they are asked for.  The CPU always reads the file, which the system keeps in memory
    as far as it can.
    """

    def __init__(self, store: FeatureStore, device: torch.device) -> None:
        self.tokens, self.device = store.tokens, device
        if device.type == "cuda" and self.tokens.nbytes <= RESIDENT * torch.cuda.mem_get_info(device)[0]:
            self.tokens = self.tokens.to(device)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: np.ndarray | range) -> ImageFeatures:
        chosen = queued(torch.from_numpy(np.asarray(rows, np.int64)), self.tokens.device)
        parts = self.tokens[chosen, 0], self.tokens[chosen, 1:]
        return ImageFeatures(*(queued(part, self.device).float() for part in parts))  # it travels in the store's dtype

    def batches(self) -> Iterator[ImageFeatures]:
        """Yield all features in order."""
        for start in range(0, len(self), BATCH):
            yield self[range(start, min(start + BATCH, len(self)))]


def queued(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on a device; a copy to a GPU is queued there, and nobody waits for it."""
    if device.type == "cuda" and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def encode_split(
    encoder: Encoder,
    split: Split,
    *,
    resize: str | None = None,
    dtype: str = "float16",
    precision: str = "auto",
    show: bool = True,
) -> Features:
    """Return the features of a split from its store, on the model's device; see :meth:`FeatureStore.open`."""
    store = FeatureStore.open(encoder, split, resize=resize, dtype=dtype, precision=precision, show=show)
    return Features(store, encoder.device)


def _fill(
    store: FeatureStore, encoder: Encoder, images: np.ndarray, ids: Sequence[str], precision: str, show: bool
) -> None:
    """Write the records of all images; what an earlier process left whole is kept.  The lock is ours."""
    store.path.unlink(missing_ok=True)  # damaged, and perhaps still mapped elsewhere: it must not change there
    part = store.path.with_name(f".{store.path.name}.part")
    part.touch()
    done = min(_whole_records(part, store), len(store)) // BATCH * BATCH
    os.truncate(part, done * store.record)
    try:
        with open(part, "ab") as file:
            for features in encode(encoder, images[done:], batch_size=BATCH, precision=precision, show=show):
                tokens = torch.cat([features.cls[:, None], features.patches], dim=1).cpu()  # (B, 1 + P, D)
                file.write(_records(tokens, store, done, ids[done : done + len(tokens)]))
                done += len(tokens)
            file.flush()
            os.fsync(file.fileno())
        part.replace(store.path)
    except OSError as error:
        raise RunError(
            f"could not write {store.path} ({part.stat().st_size} bytes written): {error.strerror or error}; "
            "make room, or set HPDVAL_CACHE to another folder; the same command then continues"
        ) from error


def _records(tokens: torch.Tensor, store: FeatureStore, first: int, ids: Sequence[str]) -> bytes:
    dtype = store.dtype
    kept = tokens.to(DTYPES[dtype]).contiguous()
    broken = [name for name, row in zip(ids, kept, strict=True) if not bool(torch.isfinite(row).all())]
    if broken:
        names = ", ".join(broken[:5]) + (f" and {len(broken) - 5} more" if len(broken) > 5 else "")
        if bool(torch.isfinite(tokens).all()):
            raise ModelError(f"features of {names} are too large for {dtype}; use float32 (stage2.features=float32)")
        raise ModelError(f"features of {names} are not finite; check the encoder's weights, or use precision='float32'")
    rows = kept.view(torch.uint8).flatten(1).numpy()
    return b"".join(row.tobytes() + _checksum(store, number, row) for number, row in enumerate(rows, first))


def _checksum(store: FeatureStore, number: int, tokens: np.ndarray) -> bytes:
    checksum = hashlib.sha256(f"{store.key} {number} ".encode())  # neither another store's record nor another image's
    checksum.update(tokens.tobytes())
    return checksum.digest()


def _whole_records(path: Path, store: FeatureStore) -> int:
    """Return how many records from the first on have the checksum they should have."""
    record = store.record
    count = path.stat().st_size // record
    if not count:
        return 0
    rows = np.memmap(path, np.uint8, "r", shape=(count, record))

    def whole(start: int) -> list[bool]:
        part = enumerate(rows[start:][:BATCH], start)
        return [_checksum(store, number, row[:-CHECKSUM]) == row[-CHECKSUM:].tobytes() for number, row in part]

    with ThreadPoolExecutor(_THREADS) as pool:
        results = [good for part in pool.map(whole, range(0, count, BATCH)) for good in part]
    return results.index(False) if False in results else count


def _intact(store: FeatureStore) -> FeatureStore | None:
    """Return the store if its file is there and every record is whole."""
    if not store.path.exists():
        return None
    size = store.path.stat().st_size
    if size == len(store) * store.record and _whole_records(store.path, store) == len(store):
        return store
    warnings.warn(f"{store.path} is damaged; its {len(store)} images are encoded again", stacklevel=4)
    return None
