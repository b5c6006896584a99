"""Splits: the long-tail generator, validation carved from training, and disjointness."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpdval.data import (
    Dataset,
    Split,
    carve_validation,
    check_disjoint,
    load_dataset,
    long_tail_subset,
    pareto_reference,
)
from hpdval.errors import ConfigError, DataError


def world(n: int, n_classes: int, seed: int = 0) -> np.ndarray:
    """Multi-label targets with class frequencies from 3 % to 40 %, some rows unlabelled."""
    rng = np.random.default_rng(seed)
    return (rng.random((n, n_classes)) < np.geomspace(0.4, 0.03, n_classes)).astype(np.uint8)


def test_reference_is_a_scaled_pareto_density() -> None:
    """Oracle: SciPy's Pareto density at even spacing, up to one factor."""
    stats = pytest.importorskip("scipy.stats")
    counts = pareto_reference(30, 6, 1128)
    points = np.linspace(1, (1128 / 6) ** (1 / 7), 30)
    density = stats.pareto.pdf(points, b=6)
    assert np.abs(counts - density / density[0] * 1128).max() <= 0.5
    assert (counts[0], counts[-1]) == (1128, 6)
    assert (np.diff(counts) <= 0).all()


def test_reference_edges() -> None:
    assert pareto_reference(1, 5, 5).tolist() == [5]
    assert pareto_reference(3, 7, 7).tolist() == [7, 7, 7]
    for wrong in ({"n_classes": 0}, {"minimum": 0}, {"minimum": 9, "maximum": 8}, {"b": 0.0}):
        with pytest.raises(ConfigError, match="minimum"):
            pareto_reference(**{"n_classes": 3, "minimum": 1, "maximum": 8, **wrong})


def reference_by_class(targets: np.ndarray, minimum: int, maximum: int) -> np.ndarray:
    """Rank by co-occurrence with plain loops, as the docstring says."""
    n_classes = targets.shape[1]
    rank_value = [
        sum(
            (targets[:, i] & targets[:, j]).sum() / targets[:, j].sum()
            for j in range(n_classes)
            if j != i and targets[:, j].any()
        )
        for i in range(n_classes)
    ]
    order = sorted(range(n_classes), key=lambda i: -rank_value[i])
    reference = np.zeros(n_classes, int)
    reference[order] = pareto_reference(n_classes, minimum, maximum)
    return np.minimum(reference, targets.sum(0))


@pytest.mark.parametrize("seed", range(5))
def test_long_tail_meets_its_reference_with_nothing_to_spare(seed: int) -> None:
    targets = world(3000, 12, seed)
    reference = reference_by_class(targets, 4, 300)
    chosen = long_tail_subset(targets, minimum=4, maximum=300, seed=seed)
    counts = targets[chosen].sum(0)
    assert (counts >= reference).all()
    assert (np.diff(chosen) > 0).all()
    for i in chosen:  # no image could be dropped without a class falling below its reference
        assert (counts - targets[i] < reference).any()
    assert counts.sum() <= 1.05 * reference.sum()
    assert counts.min() == 4


def test_long_tail_follows_its_seed_alone() -> None:
    targets = world(2000, 10)
    first = long_tail_subset(targets, minimum=2, maximum=100, seed=1)
    np.random.seed(3)  # noqa: NPY002 - the global generator must not matter
    assert (long_tail_subset(targets, minimum=2, maximum=100, seed=1) == first).all()
    assert not np.array_equal(long_tail_subset(targets, minimum=2, maximum=100, seed=2), first)


def test_long_tail_names_a_class_that_is_too_rare() -> None:
    with pytest.raises(DataError, match="class 1 has 3 images, fewer than minimum=4"):
        long_tail_subset(np.array([[1, 0]] * 9 + [[1, 1]] * 3), minimum=4, maximum=9, seed=0)


@pytest.mark.shared
def test_generated_tail_has_the_groups_of_voc_lt(shared_data: Path) -> None:
    data = load_dataset(shared_data / "splits" / "voc_lt_train.txt", test="voc_lt_test.txt", require_images=False)
    pool = data.test.targets
    chosen = long_tail_subset(pool, minimum=4, maximum=775, seed=0)
    counts = pool[chosen].sum(0)
    assert counts[data.classes.index("person")] == 775  # what comes with everything is head
    assert [(counts >= 100).sum(), (counts < 20).sum()] == [6, 8]  # as published
    published = np.sort(data.class_counts)
    assert np.abs(np.log(np.sort(counts) / published)).mean() < 0.25


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.8])
def test_validation_is_a_stratified_partition(fraction: float) -> None:
    targets = world(1500, 15)
    train, val = carve_validation(targets, fraction, seed=0)
    assert sorted([*train, *val]) == list(range(1500))
    assert (np.diff(train) > 0).all()
    assert (np.diff(val) > 0).all()
    assert abs(len(val) - fraction * 1500) <= 0.02 * 1500
    counts, carved = targets.sum(0), targets[val].sum(0)
    assert np.abs(carved - fraction * counts).max() <= 2 + 0.02 * counts.max()
    at_random = np.random.default_rng(0).permutation(1500)[: len(val)]
    spread = np.abs(targets[at_random].sum(0) - fraction * counts).mean()
    assert np.abs(carved - fraction * counts).mean() < 0.5 * spread


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.95])
@pytest.mark.parametrize("seed", range(10))
def test_every_class_keeps_a_training_positive(fraction: float, seed: int) -> None:
    targets = (np.random.default_rng(seed).random((40, 20)) < 0.06).astype(np.uint8)
    train, val = carve_validation(targets, fraction, seed)
    assert len(train) + len(val) == 40
    assert (targets[train].any(0) == targets.any(0)).all()


def test_carving_follows_its_seed_and_takes_unlabelled_images() -> None:
    targets = np.vstack([world(200, 5), np.zeros((100, 5), np.uint8)])
    train, val = carve_validation(targets, 0.2, seed=4)
    assert (carve_validation(targets, 0.2, seed=4)[1] == val).all()
    assert not np.array_equal(carve_validation(targets, 0.2, seed=5)[1], val)
    assert abs((targets[val].sum(1) == 0).mean() - (targets.sum(1) == 0).mean()) < 0.1
    assert len(train) + len(val) == 300
    with pytest.raises(ConfigError, match="above 0 and below 1"):
        carve_validation(targets, 0.0, seed=0)


@pytest.mark.shared
def test_carving_the_published_lists_keeps_tail_classes(shared_data: Path) -> None:
    for name in ("voc", "coco"):
        data = load_dataset(shared_data / "splits" / f"{name}_lt_train.txt", val=0.2, require_images=False)
        assert data.train.targets.sum(0).min() >= 3
        assert data.val.targets.sum(0).min() >= 1
        assert (data.train.targets.sum(0) + data.val.targets.sum(0) == data.class_counts).all()
        assert abs(len(data.val) / (len(data.val) + len(data.train)) - 0.2) < 0.02


def dataset_of(folder: Path, train: list[str], test: list[str]) -> Dataset:
    for name, rows in (("t.csv", train), ("u.csv", test)):
        (folder / name).write_text("path,labels\n" + "".join(f"{row},dog\n" for row in rows))
    return load_dataset(folder / "t.csv", test="u.csv", classes=["dog"])


def test_same_content_under_two_names_is_found(tmp_path: Path) -> None:
    for i, name in enumerate(("a.png", "b.png", "c.png")):
        Image.new("RGB", (9, 9), (i, 0, 0)).save(tmp_path / name)
    (tmp_path / "copy.png").write_bytes((tmp_path / "b.png").read_bytes())
    check_disjoint(dataset_of(tmp_path, ["a.png", "b.png"], ["c.png"]), size=8)
    leaking = dataset_of(tmp_path, ["a.png", "b.png"], ["c.png", "copy.png"])
    check_disjoint(leaking)  # by name alone they are disjoint
    with pytest.raises(
        DataError, match=r"b\.png in train and copy\.png in test have the same content \(1 such pairs\)"
    ):
        check_disjoint(leaking, size=8)


def test_same_name_is_found_without_reading() -> None:
    def part(*ids: str) -> Split:
        return Split(ids=ids, targets=np.ones((len(ids), 1), np.uint8), read=lambda i: 1 / 0, fingerprints=ids)  # type: ignore

    data = Dataset(
        name="d", classes=("x",), train=part("a", "b"), val=part("c"), test=part("e", "c"), class_counts=np.array([2])
    )
    with pytest.raises(DataError, match="d: c in val and c in test have the same name"):
        check_disjoint(data)


@pytest.mark.shared
def test_miml_and_mosaic_are_disjoint_by_content(shared_data: Path, tmp_path: Path) -> None:
    for train in ("mosaic/train.csv", "miml/lt_train.csv"):
        check_disjoint(load_dataset(shared_data / train, test="test.csv", val=0.1), size=32, cache=tmp_path)
