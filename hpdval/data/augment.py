"""Training views of an image: flip, Cutout and RandAugment as a pure function of (seed, epoch, image).

Letters: S pixels of a side.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torchvision.transforms import v2

if TYPE_CHECKING:
    from hpdval.config import AugmentConfig


def augment(
    image: torch.Tensor, *, seed: int, epoch: int, index: int, config: AugmentConfig, occurrence: int = 0
) -> torch.Tensor:
    """Return a training view of ``image``: horizontal flip, then Cutout, then RandAugment; normalisation comes later.

    The result depends on the arguments and the kind of device alone: neither on the number of workers, nor on their
    order, nor on what was drawn before; and the global random state is as it was.  (torchvision draws from the global
    generator, so do not call this in several threads of one process.)

    Args:
        image: (3, S, S) uint8; it is not changed.
        seed: of the run.
        epoch: counted from 0.
        index: of the image in its split.
        occurrence: how often the image came before in this epoch; each time has a view of its own.
        config: which views; Cutout is a square of ``cutout`` times the side, at a random centre, cut off at the
            border and filled with one random colour, as in the released code.  RandAugment: Cubuk et al., NeurIPS
            2020.

    >>> from hpdval.config import AugmentConfig
    >>> image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    >>> views = [augment(image, seed=0, epoch=1, index=2, config=AugmentConfig()) for _ in range(2)]
    >>> bool((views[0] == views[1]).all())
    True
    """
    again = (occurrence,) if occurrence else ()
    state = int(np.random.SeedSequence((seed, epoch, index, *again)).generate_state(1)[0])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(state)  # torch.manual_seed would also seed CUDA
        if config.flip and torch.rand(()) < 0.5:
            image = image.flip(-1)
        if config.cutout:
            image = _cutout(image, config.cutout)
        if config.randaugment_ops:
            image = _randaugment(config.randaugment_ops, config.randaugment_magnitude)(image)
        return image


def _cutout(image: torch.Tensor, share: float) -> torch.Tensor:
    height, width = image.shape[-2:]
    top, bottom = _stretch(height, share)
    left, right = _stretch(width, share)
    image = image.clone()
    image[:, top:bottom, left:right] = torch.randint(256, (3, 1, 1), dtype=torch.uint8).to(image.device)
    return image


def _stretch(side: int, share: float) -> tuple[int, int]:
    length = int(share * side + 0.5)
    start = int(torch.randint(side, ())) - length // 2
    return max(start, 0), min(start + length, side)


@lru_cache(maxsize=8)
def _randaugment(ops: int, magnitude: int) -> v2.RandAugment:
    return v2.RandAugment(num_ops=ops, magnitude=magnitude)
