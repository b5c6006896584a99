"""Which images each update takes: a function of (seed, epoch), so that a resumed run repeats and skips nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Batch = dict[str, Any]
Draw = Callable[[int, int], np.ndarray]  # (seed, epoch) -> the images of an epoch in their order, (n_images,)


class Batches(Protocol):
    """Where batches come from: ``indices`` lists, epoch by epoch, which images form each batch."""

    def __call__(self, indices: Sequence[np.ndarray], epoch: int) -> Iterator[Batch]:
        """Yield one batch for each array of image indices."""
        ...


@dataclass(frozen=True)
class Plan:
    """How many updates there are, and which images each takes; ``draw`` None takes every image once in an epoch."""

    n_images: int
    batch_size: int
    accumulate: int
    epochs: int
    seed: int
    draw: Draw | None = None

    @property
    def updates_per_epoch(self) -> int:
        """Updates in an epoch; the last may average fewer micro-batches, and its last batch may be smaller."""
        return -(-self.n_images // (self.batch_size * self.accumulate))

    @property
    def updates(self) -> int:
        """Updates in all epochs."""
        return self.epochs * self.updates_per_epoch

    def micro_batches(self, epoch: int) -> list[np.ndarray]:
        """Return the image indices of every micro-batch of an epoch, drawn by (seed, epoch) alone."""
        if self.draw is not None:
            order = self.draw(self.seed, epoch)
        else:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.n_images)
        return [order[start : start + self.batch_size] for start in range(0, self.n_images, self.batch_size)]


def micro_batches_of_updates(plan: Plan, batches: Batches, done: int) -> Iterator[list[Batch]]:
    """Yield the micro-batches of every update from ``done`` on."""
    for epoch in range(done // plan.updates_per_epoch, plan.epochs):
        skip = (done - epoch * plan.updates_per_epoch) * plan.accumulate if epoch * plan.updates_per_epoch < done else 0
        group: list[Batch] = []
        todo = plan.micro_batches(epoch)[skip:]
        for number, batch in enumerate(batches(todo, epoch), 1):
            group.append(batch)
            if len(group) == plan.accumulate or number == len(todo):
                yield group
                group = []
