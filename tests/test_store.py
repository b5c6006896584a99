"""The decoded store: the pixels of Pillow, whole or absent, checked when opened, safe between processes."""

from __future__ import annotations

import hashlib
import os
import pickle
import resource
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from hpdval.data import ImageStore, Split, load_dataset, resize_image
from hpdval.errors import ConfigError, DataError, RunError


def split_of(images: list[np.ndarray], reads: list[int] | None = None, fingerprint: str = "1") -> Split:
    def read(i: int) -> np.ndarray:
        if reads is not None:
            reads.append(i)
        return images[i]

    n = len(images)
    ids = tuple(f"{i}.png" for i in range(n))
    return Split(ids=ids, targets=np.zeros((n, 2), np.uint8), read=read, fingerprints=(fingerprint,) * n)


def noise(n: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (int(rng.integers(3, 60)), int(rng.integers(3, 60)), 3), np.uint8) for _ in range(n)]


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (37, 101), (224, 225), (16, 16), (5, 7), (4, 64)])
@pytest.mark.parametrize("size", [16, 33])
def test_resize_equals_torchvision(height: int, width: int, size: int) -> None:
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    bicubic = v2.InterpolationMode.BICUBIC
    squash = v2.Resize((size, size), bicubic)(Image.fromarray(image))
    crop = v2.CenterCrop(size)(v2.Resize(size, bicubic)(Image.fromarray(image)))
    assert (resize_image(image, size, "squash") == np.asarray(squash)).all()
    assert (resize_image(image, size, "crop") == np.asarray(crop)).all()


def test_extreme_shapes_stay_small() -> None:
    tall = np.zeros((3001, 1, 3), np.uint8)
    tall[1499:1502] = 255
    cropped = resize_image(tall, 288, "crop")
    assert cropped.shape == (288, 288, 3)
    assert (cropped[144] > 250).all()  # the middle is what is kept
    assert resize_image(np.zeros((1, 100_000, 3), np.uint8), 32, "squash").shape == (32, 32, 3)


@pytest.mark.parametrize("mode", ["squash", "crop"])
def test_store_holds_the_resized_images_in_order(mode: str, tmp_path: Path) -> None:
    images = noise(300)  # more than one chunk
    store = ImageStore.open(split_of(images), 12, mode=mode, cache=tmp_path)
    assert store.images.shape == (300, 12, 12, 3)
    assert store.images.dtype == np.uint8
    assert len(store) == 300
    for i in (0, 1, 255, 256, 299):
        expected = resize_image(images[i], 12, mode)
        assert (store.images[i] == expected).all()
        assert store.hashes[i] == hashlib.sha256(expected.tobytes()).hexdigest()
    with pytest.raises(ValueError, match="read-only"):
        store.images[0, 0, 0, 0] = 1


def test_images_are_decoded_once(tmp_path: Path) -> None:
    reads: list[int] = []
    split = split_of(noise(5), reads)
    ImageStore.open(split, 8, cache=tmp_path)
    ImageStore.open(split, 8, cache=tmp_path)
    assert sorted(reads) == [0, 1, 2, 3, 4]
    assert [p.suffix for p in tmp_path.iterdir() if p.suffix != ".lock"] == [".u8"]


def test_key_follows_everything_the_pixels_depend_on(tmp_path: Path) -> None:
    images = noise(3)
    split = split_of(images)
    stores = [
        ImageStore.open(split, 8, cache=tmp_path),
        ImageStore.open(split, 9, cache=tmp_path),
        ImageStore.open(split, 8, mode="crop", cache=tmp_path),
        ImageStore.open(split_of(images, fingerprint="2"), 8, cache=tmp_path),
        ImageStore.open(split.subset([0, 1]), 8, cache=tmp_path),
        ImageStore.open(split.subset([1, 0, 2]), 8, cache=tmp_path),
    ]
    assert len({store.key for store in stores}) == len(stores)


def test_changed_files_are_decoded_again(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,labels\na.png,dog\n")
    for time, colour in enumerate(("red", "blue")):
        Image.new("RGB", (9, 9), colour).save(tmp_path / "a.png", "BMP")  # as many bytes for either colour
        os.utime(tmp_path / "a.png", (time, time))
        store = ImageStore.open(load_dataset(tmp_path / "t.csv", classes=["dog"]).train, 4, cache=tmp_path)
        assert store.images[0, 0, 0].tolist() == {"red": [255, 0, 0], "blue": [0, 0, 255]}[colour]


@pytest.mark.parametrize("damage", ["cut", "flip a pixel", "flip a hash", "empty", "longer"])
def test_damaged_store_is_made_again(damage: str, tmp_path: Path) -> None:
    images = noise(4)
    path = ImageStore.open(split_of(images), 8, cache=tmp_path).path
    whole = path.read_bytes()
    data = bytearray(whole)
    if "flip" in damage:
        data[-1 if "hash" in damage else len(data) // 2] ^= 1
    path.write_bytes({"cut": data[:-100], "empty": b"", "longer": data + b"x"}.get(damage, data))
    with pytest.warns(UserWarning, match="is damaged; its 4 images are decoded again"):
        store = ImageStore.open(split_of(images), 8, cache=tmp_path)
    assert path.read_bytes() == whole
    assert (store.images[3] == resize_image(images[3], 8)).all()


def test_an_empty_split_has_an_empty_store(tmp_path: Path) -> None:
    store = ImageStore.open(split_of([]), 8, cache=tmp_path)
    assert store.images.shape == (0, 8, 8, 3)
    assert ImageStore.open(split_of([]), 8, cache=tmp_path).hashes == ()


def test_undecodable_image_leaves_nothing_behind(tmp_path: Path) -> None:
    def read(i: int) -> np.ndarray:
        if i == 2:
            raise DataError("2.png cannot be decoded")
        return np.zeros((4, 4, 3), np.uint8)

    split = Split(ids=("0", "1", "2"), targets=np.zeros((3, 1), np.uint8), read=read, fingerprints=("",) * 3)
    with pytest.raises(DataError, match=r"2\.png"):
        ImageStore.open(split, 8, cache=tmp_path)
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".lock"] == []


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mode is 'stretch'; choose one of 'squash', 'crop'"):
        ImageStore.open(split_of([]), 8, mode="stretch", cache=tmp_path)
    for size in (0, -3, 2.5, True):
        with pytest.raises(ConfigError, match="size is"):
            ImageStore.open(split_of([]), size, cache=tmp_path)  # type: ignore[arg-type]


def test_progress_sees_every_image(tmp_path: Path) -> None:
    seen = []

    def progress(images: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        for image in images:
            seen.append(image.shape)
            yield image

    ImageStore.open(split_of(noise(7)), 8, cache=tmp_path, progress=progress)
    assert seen == [(8, 8, 3)] * 7


def test_pickled_store_maps_the_same_file(tmp_path: Path) -> None:
    store = ImageStore.open(split_of(noise(50)), 32, cache=tmp_path)
    assert store.images.shape[0] == 50
    data = pickle.dumps(store)
    assert len(data) < 50 * 32 * 32  # the path and the hashes, not the pixels
    assert (pickle.loads(data).images == store.images).all()
    assert torch.from_numpy(store.images[3].copy()).shape == (32, 32, 3)


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    path = ImageStore.open(split_of(noise(2)), 8, cache=tmp_path).path
    path.unlink()
    stale = tmp_path / f".{path.name}.abc.tmp"
    stale.write_bytes(b"half")
    ImageStore.open(split_of(noise(2)), 8, cache=tmp_path)
    assert not stale.exists()


def test_a_cache_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"the cache .*/file cannot be used"):
        ImageStore.open(split_of(noise(2)), 8, cache=tmp_path / "file")


SCRIPT = """
    import sys
    import numpy as np
    from hpdval.data import ImageStore, Split
    ids = tuple(map(str, range(200)))
    split = Split(ids=ids, targets=np.zeros((200, 1), np.uint8), fingerprints=ids,
                  read=lambda i: np.full((64, 64, 3), i, np.uint8))
    store = ImageStore.open(split, 32, cache=sys.argv[1])
    assert (store.images[:, 5, 5, 0] == np.arange(200)).all()
    print(store.key)
"""


def run_script(cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), cache], capture_output=True, text=True, check=False
    )


def test_processes_that_fill_one_cache_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(run_script, [tmp_path] * 3))
    assert [r.returncode for r in results] == [0, 0, 0], results[0].stderr
    assert len({r.stdout for r in results}) == 1
    assert [r.stderr for r in results] == ["", "", ""]


def test_full_disk_stops_with_path_and_bytes_and_leaves_other_stores(tmp_path: Path) -> None:
    kept = ImageStore.open(split_of(noise(2)), 8, cache=tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(RunError, match=rf"could not write {tmp_path}/.*\.u8 \(\d+ bytes written\)"):
            ImageStore.open(split_of(noise(40)), 32, cache=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p for p in tmp_path.iterdir() if p.suffix != ".lock"] == [kept.path]
    assert (ImageStore.open(split_of(noise(2)), 8, cache=tmp_path).images == kept.images).all()


@pytest.mark.shared
def test_mosaic_is_stored_at_its_own_size_unchanged(shared_data: Path, tmp_path: Path) -> None:
    test = load_dataset(shared_data / "mosaic" / "train.csv", test="test.csv").test
    store = ImageStore.open(test, 64, cache=tmp_path)
    for i in (0, 999, 1999):
        with Image.open(shared_data / "mosaic" / test.ids[i]) as image:
            assert (store.images[i] == np.asarray(image.convert("RGB"))).all()
