"""The store of features: the numbers of the encoder itself, a key for whatever changes them, and no broken file."""

from __future__ import annotations

import copy
import json
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hpdval
from hpdval.checkpoint import load_tensors
from hpdval.data import ImageStore, Split, load_dataset
from hpdval.errors import ConfigError, ModelError, RunError
from hpdval.models import Clip, ImageFeatures, load_clip
from hpdval.recipes import get_recipe
from hpdval.run import read_metrics, read_predictions
from hpdval.scoring import Features, FeatureStore, encode, encode_split, features, zero_shot_scorer
from hpdval.training import features as training_features
from hpdval.training import stage2

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
N = 300  # three batches, the last one smaller


def noise(n: int = N, seed: int = 0) -> Split:
    images = np.random.default_rng(seed).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
    ids = tuple(f"{seed}/{i}" for i in range(n))
    return Split(ids=ids, targets=np.zeros((n, 2), np.uint8), read=lambda i: images[i], fingerprints=ids)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    path = tmp_path_factory.mktemp("tiny") / "tiny.json"
    path.write_text(json.dumps(TINY))
    return load_clip(path, seed=0).requires_grad_(False)


def direct(clip: Clip, split: Split, **options: Any) -> ImageFeatures:
    """The encoder's own features of all images, no store."""
    images = ImageStore.open(split, clip.image_size, mode=options.pop("resize", "crop")).images
    parts = list(encode(clip, images, show=False, **options))
    return ImageFeatures(torch.cat([part.cls for part in parts]), torch.cat([part.patches for part in parts]))


def stores(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix != ".lock")


# -- what is in it -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 0.0), ("float16", 2**-11), ("bfloat16", 2**-8)])
def test_features_are_the_encoders_to_the_rounding_of_the_dtype(
    clip: Clip, tmp_path: Path, dtype: str, rounding: float
) -> None:
    expected = direct(clip, noise())
    store = FeatureStore.open(clip, noise(), dtype=dtype, cache=tmp_path, show=False)
    assert store.tokens.shape == (N, 1 + 4, 16)
    assert store.path.stat().st_size == N * (5 * 16 * {"float32": 4}.get(dtype, 2) + 32)
    read = Features(store, torch.device("cpu"))
    rows = np.array([299, 0, 128, 127, 0])
    for found, whole in zip(read[rows], expected, strict=True):
        assert found.dtype == torch.float32
        assert found.is_contiguous(), "as if gathered from tensors, so that later sums take the same order"
        assert ((found - whole[rows]).abs() <= rounding * whole[rows].abs() + 2**-25).all()
    in_order = [torch.cat(parts) for parts in zip(*read.batches(), strict=True)]
    assert torch.equal(in_order[0], store.tokens[:, 0].float())
    assert torch.equal(in_order[1], store.tokens[:, 1:].float())
    if dtype == "float32":
        assert all(map(torch.equal, in_order, expected))


def test_images_are_encoded_once(clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = FeatureStore.open(clip, noise(), cache=tmp_path, show=False)
    monkeypatch.setattr(features, "encode", None)
    second = FeatureStore.open(clip, noise(), cache=tmp_path, show=False)
    assert second == first
    assert stores(tmp_path) == [first.path]


def test_an_empty_split_has_an_empty_store(clip: Clip, tmp_path: Path) -> None:
    for _ in range(2):
        store = FeatureStore.open(clip, noise(0), cache=tmp_path, show=False)
        assert store.tokens.shape == (0, 5, 16)


def test_key_follows_everything_the_features_depend_on(
    clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(clip: Clip = clip, split: Split | None = None, **options: Any) -> str:
        return FeatureStore.open(clip, split or noise(3), cache=tmp_path, show=False, **options).key

    weights, mean = copy.deepcopy(clip), copy.deepcopy(clip)
    with torch.no_grad():
        weights.visual.proj[0, 0] += 1e-3
    mean.config["preprocess_cfg"]["mean"] = [0.5, 0.5, 0.5]
    brighter = replace(noise(3), read=lambda i: noise(3).read(i) // 2, fingerprints=("a", "b", "c"))
    renamed = replace(noise(3), ids=("a", "b", "c"))
    keys = {
        "as it is": key(),
        "weights": key(weights),
        "preprocessing": key(mean),
        "order of the images": key(split=noise(3).subset([1, 0, 2])),
        "fewer images": key(split=noise(3).subset([0, 1])),
        "pixels": key(split=brighter),
        "names": key(split=renamed),
        "resize mode": key(resize="squash"),
        "float32": key(dtype="float32"),
        "bfloat16": key(dtype="bfloat16"),
        "numeric mode": key(precision="bfloat16"),
    }
    for where, name in ((features, "VERSION"), (hpdval, "__version__")):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, 99)
            keys[name] = key()
    assert len(set(keys.values())) == len(keys), keys
    assert key(precision="float32") == keys["as it is"], "what auto means on a CPU"
    touched = replace(noise(3), fingerprints=("x", "y", "z"))
    assert key(split=touched) == keys["as it is"], "the same pixels from a file with another date"


def test_wrong_arguments_and_features_that_are_not_finite_are_refused(clip: Clip, tmp_path: Path) -> None:
    def opened(clip: Clip, dtype: str) -> FeatureStore:
        return FeatureStore.open(clip, noise(7), dtype=dtype, cache=tmp_path, show=False)

    with pytest.raises(
        ConfigError, match="dtype of features is 'int8'; choose one of 'float16', 'bfloat16', 'float32'"
    ):
        opened(clip, "int8")
    large, broken = copy.deepcopy(clip), copy.deepcopy(clip)
    with torch.no_grad():
        large.visual.proj.mul_(1e6)
        broken.visual.proj[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"features of 0/0, .*0/4 and 2 more are too large for float16; use float32"):
        opened(large, "float16")
    with pytest.raises(ModelError, match=r"features of 0/0, .* are not finite; check the encoder's weights"):
        opened(broken, "float32")
    assert not [path for path in stores(tmp_path) if not path.name.startswith(".")]
    assert torch.isfinite(opened(large, "float32").tokens).all()


# -- damage, kills, two processes, a full disk -------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "flip a bit", "flip a checksum", "empty", "longer", "swapped for zeros"])
def test_a_damaged_store_is_made_again(clip: Clip, tmp_path: Path, damage: str) -> None:
    path = FeatureStore.open(clip, noise(), cache=tmp_path, show=False).path
    whole = path.read_bytes()
    data = bytearray(whole)
    data[-1 if "checksum" in damage else len(data) // 2] ^= 1
    changed = {"cut": whole[:-100], "empty": b"", "longer": whole + b"x", "swapped for zeros": bytes(len(whole))}
    path.write_bytes(changed.get(damage, data))
    with pytest.warns(UserWarning, match=rf"{path} is damaged; its 300 images are encoded again"):
        FeatureStore.open(clip, noise(), cache=tmp_path, show=False)
    assert path.read_bytes() == whole
    assert stores(tmp_path) == [path]


FILL = """
    import os, sys, warnings
    from pathlib import Path
    import numpy as np, torch
    from hpdval.data import Split
    from hpdval.models import load_clip
    from hpdval.scoring import FeatureStore, features
    warnings.simplefilter("error")
    folder, kill_at = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    images = np.random.default_rng(0).integers(0, 256, (300, 16, 16, 3), dtype=np.uint8)
    ids = tuple(f"0/{i}" for i in range(300))
    split = Split(ids=ids, targets=np.zeros((300, 2), np.uint8), read=lambda i: images[i], fingerprints=ids)
    encode, seen = features.encode, []
    def counted(clip, images, **options):
        for number, batch in enumerate(encode(clip, images, **options)):
            if number == kill_at:
                os.kill(os.getpid(), 9)
            seen.append(len(batch.cls))
            yield batch
    features.encode = counted
    store = FeatureStore.open(load_clip(folder / "tiny.json", seed=0), split, cache=folder / "cache", show=False)
    print(store.path, seen)
"""


def fill(folder: Path, kill_at: int = -1) -> subprocess.CompletedProcess[str]:
    (folder / "tiny.json").write_text(json.dumps(TINY))
    command = [sys.executable, "-c", textwrap.dedent(FILL), str(folder), str(kill_at)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_killed_fill_continues_at_its_last_whole_batch_with_the_same_bytes(clip: Clip, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("whole", "killed")]
    for folder in folders:
        folder.mkdir()
    whole = Path(fill(folders[0]).stdout.split()[0])
    assert fill(folders[1], kill_at=2).returncode == -signal.SIGKILL
    (part,) = stores(folders[1] / "cache")
    assert part.name == f".{whole.name}.part", "no store has that name"
    with open(part, "ab") as file:  # what a write that was cut short may leave: part of a record, or rubbish
        file.write(b"rubbish" * 100)
    done = fill(folders[1])
    assert done.stdout == f"{folders[1] / 'cache' / whole.name} [44]\n", done.stderr
    assert (folders[1] / "cache" / whole.name).read_bytes() == whole.read_bytes()
    assert stores(folders[1] / "cache") == [folders[1] / "cache" / whole.name]


def test_processes_that_fill_one_store_at_once_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(fill, [tmp_path] * 2))
    assert [(result.returncode, result.stderr) for result in results] == [(0, "")] * 2
    paths, seen = zip(*(result.stdout.split(maxsplit=1) for result in results), strict=True)
    assert len(set(paths)) == 1
    assert sorted(seen) == ["[128, 128, 44]\n", "[]\n"], "one encodes, the other waits and reads"


def test_full_disk_stops_with_path_and_bytes_and_leaves_other_stores(clip: Clip, tmp_path: Path) -> None:
    kept = FeatureStore.open(clip, noise(5), cache=tmp_path, show=False)
    before = kept.path.read_bytes()
    ImageStore.open(noise(), 16, mode="crop")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        with pytest.raises(
            RunError, match=rf"could not write {tmp_path}/\w+\.float16 \(30000 bytes written\)"
        ) as caught:
            FeatureStore.open(clip, noise(), cache=tmp_path, show=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert kept.path.read_bytes() == before
    again = FeatureStore.open(clip, noise(), cache=tmp_path, show=False)  # there is room now
    assert torch.equal(again.tokens[:, 0], direct(clip, noise()).cls.half())


def test_a_cache_that_is_no_folder_is_named(clip: Clip, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"the cache .*/file cannot be used"):
        FeatureStore.open(clip, noise(2), cache=tmp_path / "file", show=False)


# -- training from it --------------------------------------------------------------------------------------------------


class Direct:
    """Features of a split that never were in a file, read as a store's are."""

    device = torch.device("cpu")

    def __init__(self, clip: Clip, split: Split, resize: str, precision: str, **_: Any) -> None:
        self.all = direct(clip, split, resize=resize, precision=precision)

    def __getitem__(self, rows: np.ndarray) -> ImageFeatures:
        return ImageFeatures(self.all.cls[rows], self.all.patches[rows])

    def batches(self) -> Iterator[ImageFeatures]:
        yield self.all


def tuned(folder: Path, dataset: hpdval.Dataset, **overrides: Any) -> dict[str, Any]:
    recipe = get_recipe("scenes", **{"stage2.epochs": 1, **overrides})
    start = zero_shot_scorer(load_clip("scenes"), dataset.classes, score=recipe.score)
    stage2.train_stage2(dataset, recipe, run=folder, start=start, device="cpu", show=False)
    result = json.loads((folder / "result.json").read_text())
    tensors, _ = load_tensors(folder / "model.safetensors")
    return {
        "map": result["total"],
        "tensors": tensors,
        "metrics": read_metrics(folder),
        "scores": read_predictions(folder)["scores"],
    }


def test_stage2_from_a_float32_store_is_bit_equal_to_stage2_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = load_dataset("scenes-lt", train=200, test=40)
    dataset = replace(dataset, train=dataset.train.subset(range(150)), val=dataset.train.subset(range(150, 200)))
    stored = tuned(tmp_path / "stored", dataset, **{"stage2.features": "float32"})
    monkeypatch.setattr(training_features, "encode_split", Direct)
    without = tuned(tmp_path / "direct", dataset, **{"stage2.features": "float32"})
    assert stored["metrics"] == without["metrics"]
    assert any("val_map" in record for record in without["metrics"])
    assert stored["tensors"].keys() == without["tensors"].keys()
    assert all(torch.equal(stored["tensors"][name], without["tensors"][name]) for name in without["tensors"])
    assert np.array_equal(stored["scores"], without["scores"])


@pytest.mark.parametrize("dtype", ["float16", pytest.param("bfloat16", marks=pytest.mark.nightly)])
def test_stage2_from_half_precision_is_within_a_tenth_of_a_point(tmp_path: Path, dtype: str) -> None:
    dataset = load_dataset("scenes-lt", train=400, test=400)
    overrides: dict[str, Any] = {"stage2.epochs": 3, "stage2.lr": 5e-3}
    found, exact = (
        tuned(tmp_path / name, dataset, **overrides, **{"stage2.features": name}) for name in (dtype, "float32")
    )
    untrained = zero_shot_scorer(load_clip("scenes"), dataset.classes, score=get_recipe("scenes").score)
    before = hpdval.evaluate(untrained.score(dataset.test, show=False), dataset.test.targets, dataset.class_counts)
    assert not torch.equal(found["tensors"]["text_global"], exact["tensors"]["text_global"]), "the dtype matters"
    assert abs(exact["map"] - before.total) > 0.5, "and so does training"
    assert found["map"] == pytest.approx(exact["map"], abs=0.1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("share", [0.5, 0.0])
def test_a_gpu_reads_the_same_features_from_its_memory_or_from_the_file(
    clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    monkeypatch.setattr(features, "RESIDENT", share)
    store = FeatureStore.open(clip, noise(), cache=tmp_path, show=False)
    read = Features(store, torch.device("cuda"))
    assert read.tokens.is_cuda is (share > 0)
    rows = np.array([5, 299, 5])
    for found, expected in zip(read[rows], Features(store, torch.device("cpu"))[rows], strict=True):
        assert torch.equal(found.cpu(), expected)


def test_encode_split_reads_the_store(clip: Clip) -> None:
    found = encode_split(clip, noise(9), dtype="float32", show=False)
    assert len(found) == 9
    assert all(map(torch.equal, found[range(9)], direct(clip, noise(9))))
