"""A million images, ten thousand classes: no step that is done for a data set grows with the square of either."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from faults import Faults

from hpdval.data import carve_validation
from hpdval.data.splits import class_members
from hpdval.files import digest
from hpdval.metrics import Interval
from hpdval.plots.data import class_frequency, co_occurrence
from hpdval.plots.results import class_change
from hpdval.scoring import label_digest, runs

pytestmark = pytest.mark.fault

ROOT = Path(__file__).resolve().parents[2]
STEPS = 8  # times as many
BOUND = 24  # times the CPU time: a linear step takes 8, a quadratic one 64
MILLION, SECONDS, MIB = 1_000_000, 240, 4096


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The benchmark, which knows every step and makes the data; on one thread."""
    monkeypatch.syspath_prepend(str(ROOT))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield import_module("benchmarks.scale")
    torch.set_num_threads(threads)


def least(run: Callable[[], Any], repeats: int = 3) -> float:
    """Return the CPU seconds of the fastest repeat."""
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        seconds.append(time.process_time() - began)
    return min(seconds)


def growth(small: Callable[[], Any], large: Callable[[], Any]) -> float:
    """Return how many times longer the large one takes."""
    return least(large) / max(least(small), 1e-3)  # what takes less is the clock, and memory that is new


def test_the_guard_finds_what_grows_with_the_square() -> None:
    def looked_up(n: int) -> Callable[[], Any]:
        names = list(range(n))
        return lambda: [names.index(name) for name in names]

    assert growth(looked_up(1_000), looked_up(1_000 * STEPS)) > BOUND


def test_steps_do_not_grow_with_the_square_of_images(scale: ModuleType, tmp_path: Path, faults: Faults) -> None:
    few, many = 500, 500 * STEPS
    for part, n in (("train", many), ("test", 100)):
        scale.write_images(tmp_path, part, n)
    for n in (few, many):
        scale.write_lists(tmp_path, n, scale.CLASSES)
    for name, (case, most) in scale.BY_IMAGES.items():
        if most < MILLION:  # decodes every image: linear, and long
            continue
        with faults.injected(f"{STEPS} times as many images", name, f"less than {BOUND} times the CPU time"):
            assert growth(*(case(tmp_path, n, scale.CLASSES) for n in (few, many))) < BOUND, name


def test_steps_do_not_grow_with_the_square_of_classes(scale: ModuleType, tmp_path: Path, faults: Faults) -> None:
    n, few, many = 500, 100, 100 * STEPS
    for c in (few, many):
        (tmp_path / f"{c}").mkdir()
        scale.write_lists(tmp_path / f"{c}", n, c, ("csv", "json"))
    for name, case in scale.BY_CLASSES.items():
        if "figures" in name:  # long; below they are looked at
            continue
        with faults.injected(f"{STEPS} times as many classes", name, f"less than {BOUND} times the CPU time"):
            assert growth(*(case(tmp_path / f"{c}", n, c) for c in (few, many))) < BOUND, name


def test_figures_of_many_classes_name_some_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    named, c = 40, 60
    for module in ("data", "results"):
        monkeypatch.setattr(f"hpdval.plots.{module}.NAMED", named)
    names, counts = [f"kind-{i}" for i in range(c)], np.arange(1, c + 1)
    assert not class_frequency(names, counts).axes[0].get_xticklabels()
    changes = [Interval(estimate=float(i), low=0.0, high=float(c), level=0.95, per_seed=()) for i in range(c)]
    changed = class_change(names, counts, changes).axes[0]
    shown = [text.get_text() for text in changed.get_yticklabels()]
    assert (len(shown), shown[0], shown[-1]) == (named, names[0], names[-1])
    assert f"of {c} classes" in changed.get_ylabel()
    together = co_occurrence(names, np.eye(c, dtype=np.uint8)).axes[0]
    assert together.collections[0].get_array().size == named**2
    assert f"commonest of {c})" in together.get_xlabel()


@pytest.mark.parametrize("seed", range(3))
def test_the_digest_of_labels_is_that_of_their_json(
    scale: ModuleType, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    n, n_classes = (int(x) for x in rng.integers(3, 60, 2))
    split = scale.split_of(n, n_classes)
    for digested in (1, 100, 1 << 22):
        monkeypatch.setattr(runs, "DIGESTED", digested)
        for part in (split, split.subset([])):
            assert label_digest(part) == digest(part.ids, part.targets.tolist())


def test_the_images_of_each_class_are_those_of_its_column() -> None:
    targets = (np.random.default_rng(0).random((50, 7)) < 0.2).astype(np.uint8)
    targets[:, 3] = 0
    for found, column in zip(class_members(targets), targets.T, strict=True):
        assert np.array_equal(found, np.flatnonzero(column))


@pytest.mark.parametrize("seed", range(3))
def test_validation_is_carved_as_from_full_columns(seed: int) -> None:
    targets = (np.random.default_rng(seed).random((200, 9)) < 0.15).astype(np.uint8)
    for part, expected in zip(carve_validation(targets, 0.2, seed), _carved(targets, 0.2, seed), strict=True):
        assert np.array_equal(part, expected)


def _carved(targets: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Iterative stratification with whole rows and columns: slow, and plain."""
    rng, shares = np.random.default_rng(seed), np.array([1 - fraction, fraction])
    labels, part = targets.astype(bool), np.full(len(targets), -1)
    wanted, wanted_images = labels.sum(0)[:, None] * shares, len(labels) * shares
    while (part < 0).any():
        left = labels[part < 0].sum(0)
        one = int(np.where(left > 0, left, left.max() + 1).argmin()) if left.any() else None
        candidates = part < 0 if one is None else labels[:, one] & (part < 0)
        for i in rng.permutation(np.flatnonzero(candidates)):
            first = rng.random() < shares[0]
            need = [0.0, 0.0] if one is None else wanted[one]
            keys = [(need[p], wanted_images[p], first == (p == 0)) for p in (0, 1)]
            in_train = labels[part != 1].sum(0)
            part[i] = int(keys[1] > keys[0] and bool((in_train[labels[i]] > 1).all()))
            wanted[labels[i], part[i]] -= 1
            wanted_images[part[i]] -= 1
    return np.flatnonzero(part == 0), np.flatnonzero(part == 1)


ONE = """
import json, sys
from pathlib import Path
from benchmarks import scale
folder, name, n, n_classes, by = sys.argv[1:]
case = scale.BY_IMAGES[name][0] if by == "images" else scale.BY_CLASSES[name]
print(json.dumps(scale.measured(case, Path(folder), int(n), int(n_classes), 1)))
"""


def in_its_own_process(*words: object) -> tuple[float, float]:
    """Return CPU seconds and MiB of one case."""
    done = subprocess.run(
        [sys.executable, "-c", ONE, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    seconds, memory = json.loads(done.stdout.splitlines()[-1])
    return seconds, memory


@pytest.mark.nightly
def test_a_million_images(scale: ModuleType, tmp_path: Path, faults: Faults) -> None:
    for part, n in (("train", MILLION), ("test", MILLION // 100)):
        scale.write_images(tmp_path, part, n)
    scale.write_lists(tmp_path, MILLION, scale.CLASSES)
    for name, (_, most) in scale.BY_IMAGES.items():
        if most < MILLION:
            continue
        with faults.injected("1,000,000 images", name, f"at most {SECONDS} CPU seconds and {MIB:,} MiB"):
            seconds, memory = in_its_own_process(tmp_path, name, MILLION, scale.CLASSES, "images")
            faults.measured(f"{name}, 1,000,000 images", f"{seconds:.1f} s, {memory:,.0f} MiB")
            assert (seconds < SECONDS, memory < MIB) == (True, True), name


@pytest.mark.nightly
def test_ten_thousand_classes(scale: ModuleType, tmp_path: Path, faults: Faults) -> None:
    scale.write_lists(tmp_path, 50_000, 10_000, ("csv", "json"))
    for name in scale.BY_CLASSES:
        with faults.injected("10,000 classes", name, f"at most {SECONDS} CPU seconds and {MIB:,} MiB"):
            seconds, memory = in_its_own_process(tmp_path, name, 50_000, 10_000, "classes")
            faults.measured(f"{name}, 10,000 classes", f"{seconds:.1f} s, {memory:,.0f} MiB")
            assert (seconds < SECONDS, memory < MIB) == (True, True), name
