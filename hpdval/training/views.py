"""Augmented views of training images, batch by batch: what every training takes whose encoder learns.

Letters: N images, B in a batch, C classes, D width of the features, S pixels of a side.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from hpdval.config import AugmentConfig
from hpdval.data.augment import augment
from hpdval.data.dataset import Dataset
from hpdval.data.store import ImageStore
from hpdval.distributed import share
from hpdval.errors import RunError
from hpdval.training.batches import Batch, Draw
from hpdval.training.sampling import earlier

VERDICT_SECONDS = 2.0  # a worker's end is told by a broken pipe and by a signal, in either order


class _Views(TorchDataset[Any]):
    """Augmented views of one epoch; a view depends on (seed, epoch, image, occurrence) and on nothing else."""

    def __init__(self, store: ImageStore, epoch: int, seed: int, config: AugmentConfig) -> None:
        self.store, self.epoch, self.seed, self.config = store, epoch, seed, config

    def __getitem__(self, drawn: tuple[int, int]) -> torch.Tensor:
        index, occurrence = drawn
        image = torch.from_numpy(np.array(self.store.images[index])).permute(2, 0, 1)  # (3, S, S)
        options: dict[str, Any] = {"index": index, "occurrence": occurrence}
        return augment(image, seed=self.seed, epoch=self.epoch, config=self.config, **options)


class ViewBatches:
    """Batches of augmented views (B, 3, S, S) uint8, their targets (B, C) float32 and ids.

    Of several processes each draws the views of its share alone; targets and ids are those of the whole batch.

    On CUDA without workers the images stay on the device and views are drawn there; otherwise views are drawn on the
    CPU, by ``workers`` processes if there are any, and cross over from pinned memory.  ``teacher`` (N, D) is what a
    teacher makes of the images, where that is known beforehand, and goes along.  ``draw`` is the order of an epoch
    where an image may come several times: each time it has another view.
    """

    def __init__(
        self,
        store: ImageStore,
        dataset: Dataset,
        config: AugmentConfig,
        *,
        seed: int,
        device: torch.device,
        workers: int = 0,
        teacher: torch.Tensor | None = None,
        draw: Draw | None = None,
    ) -> None:
        self.store, self.ids, self.config, self.seed, self.workers = store, dataset.train.ids, config, seed, workers
        self.targets = torch.from_numpy(dataset.train.targets.copy())  # (N, C) uint8
        resident = device.type == "cuda" and workers == 0
        resident = (
            resident and store.images.nbytes < torch.cuda.mem_get_info(device)[0] // 4
        )  # the rest is for training
        self.images = torch.from_numpy(np.array(store.images)).to(device) if resident else None  # (N, S, S, 3)
        self.pinned = device.type == "cuda"
        self.teacher, self.draw = teacher, draw

    def __call__(self, indices: Sequence[np.ndarray], epoch: int) -> Iterator[Batch]:
        """Yield one batch for each array of image indices."""
        occurrences = self._occurrences(indices, epoch)
        pairs = zip(indices, occurrences, strict=True)
        own = [list(zip(chosen.tolist(), times.tolist(), strict=True))[share(len(chosen))] for chosen, times in pairs]
        for chosen, images in zip(indices, self._views(own, epoch), strict=True):
            batch = {"images": images, "targets": self.targets[chosen].float(), "ids": [self.ids[i] for i in chosen]}
            if self.teacher is not None:
                batch["teacher"] = self.teacher[torch.from_numpy(chosen).to(self.teacher.device)]
            yield batch

    def _occurrences(self, indices: Sequence[np.ndarray], epoch: int) -> list[np.ndarray]:
        """Return how often each image of each batch came before in this epoch; the batches are its last ones."""
        sizes = [len(chosen) for chosen in indices]
        times = np.zeros(sum(sizes), np.int64) if self.draw is None else earlier(self.draw(self.seed, epoch))
        return np.split(times[len(times) - sum(sizes) :], np.cumsum(sizes)[:-1]) if sizes else []

    def _views(self, drawn: list[list[tuple[int, int]]], epoch: int) -> Iterable[torch.Tensor]:
        config, seed = self.config, self.seed
        if self.images is None:
            views = _Views(self.store, epoch, seed, config)
            options: dict[str, Any] = {"num_workers": self.workers, "pin_memory": self.pinned}
            return DataLoader(views, batch_sampler=drawn, **options)
        resident = self.images.permute(0, 3, 1, 2)  # (N, 3, S, S)
        return (
            torch.stack(
                [augment(resident[i], seed=seed, epoch=epoch, index=i, occurrence=t, config=config) for i, t in batch]
            )
            for batch in drawn
        )


@contextmanager
def lost_workers() -> Iterator[None]:
    """Say in one line that a worker was killed; PyTorch tells the main thread wherever that is at work just then.

    Raises:
        RunError: a worker is gone.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        verdict = str(error) if isinstance(error, RuntimeError) else _verdict()
        if not verdict.startswith("DataLoader worker"):
            raise
        raise RunError(
            f"{verdict}; the last checkpoint stays, run the same command again, with fewer workers if memory was short"
        ) from error


def _verdict() -> str:
    """Return PyTorch's word on a worker whose broken pipe was noticed first; it comes as a signal, and raises here."""
    try:
        time.sleep(VERDICT_SECONDS)
    except RuntimeError as error:
        return str(error)
    return ""
