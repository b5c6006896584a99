"""Class-aware sampling: which images an epoch has, and in which order, from the order alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from hpdval import distributed
from hpdval.config import AugmentConfig, TrainingConfig
from hpdval.data.augment import augment
from hpdval.data.dataset import Dataset, Split
from hpdval.data.store import ImageStore
from hpdval.training.batches import Plan, micro_batches_of_updates
from hpdval.training.sampling import class_aware, draw_for, earlier
from hpdval.training.views import ViewBatches

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


def test_what_a_training_asks_for_is_what_it_gets() -> None:
    assert draw_for(TrainingConfig(sampling="uniform"), LONG_TAIL) is None
    drawn = draw_for(TrainingConfig(sampling="class-aware"), LONG_TAIL)
    assert drawn is not None
    assert np.array_equal(drawn(1, 2), class_aware(LONG_TAIL)(1, 2))


# -- an image that comes again has another view ------------------------------------------------------------------------

STRONG = AugmentConfig(flip=True, randaugment_ops=2, randaugment_magnitude=9, cutout=0.5)


@pytest.mark.parametrize("n", [0, 1, 2, 50])
def test_how_often_an_image_came_before(n: int) -> None:
    order = np.random.default_rng(n).integers(0, 9, n)
    assert earlier(order).tolist() == [order[:i].tolist().count(image) for i, image in enumerate(order.tolist())]


@pytest.fixture(scope="module")
def long_tail() -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (45, 32, 32, 3), np.uint8)
    prints = tuple(f"long tail {i}" for i in range(45))
    train = Split(ids=prints, targets=LONG_TAIL, read=lambda i: images[i], fingerprints=prints)
    nothing = train.subset([])
    counts = LONG_TAIL.sum(0).astype(np.int64)
    return Dataset(name="tail", classes=tuple("abcd"), train=train, val=nothing, test=nothing, class_counts=counts)


def views(data: Dataset, sampling: str = "class-aware", **options: int) -> ViewBatches:
    store = ImageStore.open(data.train, 32)
    draw = draw_for(TrainingConfig(sampling=sampling), data.train.targets)
    return ViewBatches(store, data, STRONG, seed=5, device=torch.device("cpu"), draw=draw, **options)


def plan_of(accumulate: int = 1) -> Plan:
    return Plan(n_images=45, batch_size=4, accumulate=accumulate, epochs=2, seed=5, draw=class_aware(LONG_TAIL))


def test_an_image_drawn_again_has_another_view_and_the_first_is_the_usual_one(long_tail: Dataset) -> None:
    order = class_aware(LONG_TAIL)(5, 1)
    batches = list(views(long_tail)(plan_of().micro_batches(1), 1))
    assert [image for batch in batches for image in batch["ids"]] == [long_tail.train.ids[i] for i in order]
    drawn = torch.cat([batch["images"] for batch in batches])
    images, seen = ImageStore.open(long_tail.train, 32).images, Counter[int]()
    every = np.arange(45)
    usual = torch.cat([batch["images"] for batch in views(long_tail, "uniform")(np.split(every, 9), 1)])
    for view, i in zip(drawn, order.tolist(), strict=True):
        if not seen[i]:
            assert torch.equal(view, usual[i])
        image = torch.from_numpy(np.array(images[i])).permute(2, 0, 1)
        assert torch.equal(view, augment(image, seed=5, epoch=1, index=i, config=STRONG, occurrence=seen[i]))
        seen[i] += 1
    rare = int(np.flatnonzero(OF == 3)[0])
    own = {view.numpy().tobytes() for view, i in zip(drawn, order, strict=True) if i == rare}
    assert len(own) == seen[rare] > 8, "the only image of its class, in as many views as it comes"


@pytest.mark.parametrize("accumulate", [1, 3])
def test_in_mid_epoch_it_goes_on_with_the_same_views(long_tail: Dataset, accumulate: int) -> None:
    plan = plan_of(accumulate)
    whole = list(micro_batches_of_updates(plan, views(long_tail), 0))
    assert len(whole) == plan.updates
    for done in (1, 2, plan.updates_per_epoch, plan.updates - 1):
        rest = list(micro_batches_of_updates(plan, views(long_tail), done))
        assert len(rest) == plan.updates - done
        for one, other in zip(rest, whole[done:], strict=True):
            assert [batch["ids"] for batch in one] == [batch["ids"] for batch in other]
            assert all(torch.equal(a["images"], b["images"]) for a, b in zip(one, other, strict=True))


def test_neither_workers_nor_processes_change_a_view(long_tail: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    indices = plan_of().micro_batches(0)
    whole = [batch["images"] for batch in views(long_tail)(indices, 0)]
    working = [batch["images"] for batch in views(long_tail, workers=1)(indices, 0)]
    assert all(torch.equal(a, b) for a, b in zip(whole, working, strict=True))
    monkeypatch.setattr(distributed, "size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(list(views(long_tail)(indices, 0)))
    for i, images in enumerate(whole):
        own = torch.cat([batches[i]["images"] for batches in shares])
        assert torch.equal(own[: len(images)], images)
        assert shares[0][i]["ids"] == shares[1][i]["ids"], "of the whole batch"
