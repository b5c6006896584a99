"""Class-aware sampling: which images an epoch has, and in which order, from the order alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from hpdval.training.batches import Plan
from hpdval.training.sampling import class_aware

LONG_TAIL = np.repeat(np.eye(4, dtype=np.uint8), [30, 10, 4, 1], axis=0)  # (45, 4), one label each: it names the class
OF = LONG_TAIL.argmax(axis=1)


def test_an_order_is_a_function_of_seed_and_epoch() -> None:
    np.random.seed(1)  # noqa: NPY002 - the generator that must not matter
    draw, same = class_aware(LONG_TAIL), class_aware(LONG_TAIL.copy())
    later = draw(0, 1)
    np.random.seed(2)  # noqa: NPY002
    assert np.array_equal(same(0, 0), draw(0, 0))
    assert np.array_equal(same(0, 1), later), "whatever was drawn before"
    assert not np.array_equal(draw(0, 0), later)
    assert not np.array_equal(draw(0, 0), draw(1, 0))


def test_a_plan_takes_its_images_in_this_order() -> None:
    plan = Plan(n_images=45, batch_size=8, accumulate=1, epochs=2, seed=5, draw=class_aware(LONG_TAIL))
    batches = plan.micro_batches(1)
    assert [len(batch) for batch in batches] == [8, 8, 8, 8, 8, 5]
    assert np.array_equal(np.concatenate(batches), class_aware(LONG_TAIL)(5, 1))


@pytest.mark.parametrize("images", [1, 3, 4])
def test_class_follows_class_and_each_is_met_equally_often(images: int) -> None:
    for epoch in range(5):
        order = class_aware(LONG_TAIL, images)(3, epoch)
        assert order.shape == (45,)
        turns = [set(OF[order[start : start + images]]) for start in range(0, 45, images)]
        assert all(len(turn) == 1 for turn in turns), "images of one class after another"
        classes = [next(iter(turn)) for turn in turns]
        met = Counter(classes)
        assert max(met.values()) - min(met[c] for c in range(4)) <= 1
        for start in range(0, len(classes) - 3, 4):
            assert set(classes[start : start + 4]) == {0, 1, 2, 3}, "all classes before any comes again"


def test_all_images_of_a_class_come_before_any_comes_again() -> None:
    order = class_aware(LONG_TAIL)(0, 0)
    for c, size in enumerate([30, 10, 4, 1]):
        own = order[OF[order] == c].tolist()
        for start in range(0, len(own), size):
            once = own[start : start + size]
            assert len(set(once)) == len(once)
    second = [i for i in order.tolist() if OF[i] == 2]
    assert second[:4] != second[4:8], "and then in another order (of 24; the seed is one that shows it)"


def test_images_with_several_labels_come_for_each_of_them_and_those_with_none_never() -> None:
    targets = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]], np.uint8)
    order = class_aware(targets)(0, 0)
    assert len(order) == 6
    assert set(order.tolist()) == {0, 1}, "the third class has no positives, and is left out"
    counts = Counter(order.tolist())
    assert counts[0] in (4, 5), "three times for the second class, and once or twice for the first"


def test_without_any_positive_every_image_comes_once() -> None:
    draw = class_aware(np.zeros((7, 2), np.uint8))
    assert sorted(draw(0, 0).tolist()) == list(range(7))
    assert draw(0, 0).tolist() != draw(0, 1).tolist()
