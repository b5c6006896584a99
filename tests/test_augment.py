"""Augmentation is a pure function of (seed, epoch, image), and does what its fields say."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
import torch

from hpdval.config import AugmentConfig
from hpdval.data.augment import augment

NONE = AugmentConfig(flip=False, randaugment_ops=0, cutout=0.0)
ALL = AugmentConfig(flip=True, randaugment_ops=2, randaugment_magnitude=9, cutout=0.5)


def picture(size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, size, size), np.uint8))


def views(indices: list[int]) -> dict[int, bytes]:
    """Called in worker processes too."""
    made = {i: augment(picture(64, i), seed=5, epoch=3, index=i, config=ALL).numpy().tobytes() for i in indices}
    torch.rand(7)  # what a worker draws in between must not matter
    return made


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_and_order_do_not_matter(method: str) -> None:
    indices = list(range(24))
    torch.manual_seed(11)
    alone = views(indices)
    assert views(indices[::-1]) == alone
    # one thread in each worker, as DataLoader sets it: a forked OpenMP with more of them waits forever
    context, workers = multiprocessing.get_context(method), 2 if method == "fork" else 1  # spawn imports torch again
    with context.Pool(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        parts = pool.map(views, [indices[1::2], indices[::2]])
    assert parts[0] | parts[1] == alone


def test_threads_within_an_operation_do_not_matter() -> None:
    image = picture(224)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 4):
            torch.set_num_threads(threads)
            results.append(torch.stack([augment(image, seed=0, epoch=0, index=i, config=ALL) for i in range(20)]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_global_random_state_is_untouched() -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - the state that must stay
    expected = torch.rand(3), np.random.rand(3)  # noqa: NPY002
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    augment(picture(), seed=0, epoch=0, index=0, config=ALL)
    assert torch.equal(torch.rand(3), expected[0])
    assert (np.random.rand(3) == expected[1]).all()  # noqa: NPY002


def test_seed_epoch_and_index_each_change_the_view() -> None:
    image = picture()
    base = {"seed": 0, "epoch": 0, "index": 0}
    kinds = [base, base | {"seed": 1}, base | {"epoch": 1}, base | {"index": 1}]
    made = {augment(image, **kind, config=ALL).numpy().tobytes() for kind in kinds}
    assert len(made) == 4


def test_each_time_that_an_image_comes_in_an_epoch_has_a_view_of_its_own() -> None:
    image, options = picture(), {"seed": 1, "epoch": 2, "index": 3, "config": ALL}
    made = [augment(image, **options, occurrence=again).numpy().tobytes() for again in range(6)]  # type: ignore[arg-type]
    assert len(set(made)) == 6
    assert made[0] == augment(image, **options).numpy().tobytes(), "the first is the usual one"  # type: ignore[arg-type]
    assert made[4] == augment(image, **options, occurrence=4).numpy().tobytes()  # type: ignore[arg-type]


def test_input_is_not_changed_and_nothing_asked_is_nothing_done() -> None:
    image = picture()
    copy = image.clone()
    for i in range(10):
        view = augment(image, seed=0, epoch=0, index=i, config=ALL)
        assert view.shape == image.shape
        assert view.dtype == torch.uint8
        assert torch.equal(augment(image, seed=0, epoch=0, index=i, config=NONE), image)
    assert torch.equal(image, copy)


def test_flip_mirrors_half_of_the_images() -> None:
    image = picture()
    mirrored = 0
    for i in range(400):
        view = augment(image, seed=0, epoch=0, index=i, config=replace(NONE, flip=True))
        flipped = torch.equal(view, image.flip(2))
        assert flipped or torch.equal(view, image)
        mirrored += flipped
    assert 160 <= mirrored <= 240  # 200 expected, 10 standard deviation


def test_cutout_is_one_square_of_half_the_side_cut_off_at_the_border() -> None:
    size = 32
    image = torch.full((3, size, size), 300 % 256, dtype=torch.uint8)
    image[:, ::2] = 200  # no colour fills both rows, so that what is covered shows in at least one of them
    whole, tops, colours = 0, set(), set()
    for i in range(400):
        view = augment(image, seed=0, epoch=0, index=i, config=replace(NONE, cutout=0.5))
        covered = (view != image).any(0)
        rows, columns = torch.where(covered.any(1))[0], torch.where(covered.any(0))[0]
        box = view[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert (box == box[:, :1, :1]).all()
        height, width = len(range(rows[0], rows[-1] + 1)), columns[-1] - columns[0] + 1
        assert 7 <= height <= size // 2
        assert size // 4 <= width <= size // 2
        inside = rows[0] > 0 and rows[-1] < size - 1 and columns[0] > 0 and columns[-1] < size - 1
        whole += bool(inside and height == width == size // 2)
        tops.add(int(rows[0]))
        colours.add(tuple(box[:, 0, 0].tolist()))
    assert whole > 60  # a quarter of the centres leave the square whole
    assert len(tops) > 20
    assert len(colours) > 350


def test_randaugment_strength_grows_with_magnitude() -> None:
    image = picture(64)
    change = []
    for magnitude in (0, 15, 30):
        config = replace(NONE, randaugment_ops=1, randaugment_magnitude=magnitude)
        made = [augment(image, seed=0, epoch=0, index=i, config=config).float() for i in range(150)]
        change.append(float(torch.stack(made).sub(image).abs().mean()))
    assert change[0] < change[1] < change[2]
