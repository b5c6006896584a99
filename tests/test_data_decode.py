"""Decoding: every odd file gives the right pixels or an error that names it."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpdval.data.decode import MAX_PIXELS, decode, image_size
from hpdval.errors import DataError


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def hostile_files() -> list[str]:
    """Names are fixed here so that the list does not shrink with the folder."""
    return [
        *("ok_red.jpg", "ok_green.jpg", "ok_blue.jpg", "truncated.jpg", "zero_byte.jpg", "text_named.jpg"),
        *("png_named.jpg", "cmyk.jpg", "gray.jpg", "gray16.png", "rgba_transparent.png", "palette.png"),
        *("palette_transparency.png", "upright.jpg", "exif_orientation6.jpg", "tall_1x3000.png", "animated.gif"),
        *("huge_12000x12000.png", "café photo №1 日本.jpg", "weights.pt"),
    ]


@pytest.mark.shared
@pytest.mark.parametrize("name", hostile_files())
def test_hostile_files_decode_or_are_refused_by_name(name: str, shared_data: Path) -> None:
    folder = shared_data / "hostile"
    expected = {entry["file"]: entry for entry in json.loads((folder / "expected.json").read_text(encoding="utf-8"))}
    assert {n for n in expected if not n.endswith(".csv")} == set(hostile_files())
    entry = expected[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an error line is all a user should see
        if entry["expect"] == "error" or name.startswith("huge"):
            with pytest.raises(DataError) as caught:
                decode(folder / name)
            assert name in str(caught.value)
            assert "\n" not in str(caught.value)
            return
        pixels = decode(folder / name)
    width, height = entry.get("upright_width", entry["width"]), entry.get("upright_height", entry["height"])
    assert pixels.shape == (height, width, 3)
    assert pixels.dtype == np.uint8
    assert image_size(folder / name) == (width, height)
    if "same_as" in entry:
        difference = np.abs(pixels.astype(int) - decode(folder / entry["same_as"]))
        assert difference.mean() < 4  # JPEG noise; a negative or a turned picture is tens of levels away


@pytest.mark.shared
def test_hostile_pixels(shared_data: Path) -> None:
    folder = shared_data / "hostile"
    ramp = np.rint(np.linspace(0, 65535, 128 * 96) / 257).reshape(96, 128)
    assert np.abs(decode(folder / "gray16.png")[..., 0] - ramp).max() <= 1
    corners = decode(folder / "palette.png")[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]]
    assert (decode(folder / "rgba_transparent.png")[:, :80] == 255).all()  # white, not the hidden magenta
    assert (decode(folder / "animated.gif") == [255, 0, 0]).all()
    grey = decode(folder / "gray.jpg")
    assert (grey == grey[..., :1]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int, tmp_path: Path) -> None:
    """Oracle: store the picture as a camera held that way would, by the EXIF standard's own table."""
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8] = 255
    as_stored = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a), 7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](upright)  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(Image.fromarray(np.ascontiguousarray(as_stored)), "PNG", exif=exif))
    assert (decode(path) == upright).all()
    assert image_size(path) == (24, 16)


def test_partial_transparency_is_flattened_on_white() -> None:
    pixels = decode(encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 128)), "PNG"))
    assert np.abs(pixels[0, 0].astype(int) - [255, 127, 127]).max() <= 1


def test_sixteen_bit_grey_rounds_to_the_nearest() -> None:
    values = np.array([[0, 128, 129, 256, 257, 385, 386, 65535]], np.uint16)
    pixels = decode(encoded(Image.fromarray(values), "PNG"))
    assert pixels[0, :, 0].tolist() == [round(v / 257) for v in values[0].tolist()]


def test_pixel_limit_is_read_from_the_header() -> None:
    flat = encoded(Image.new("1", (MAX_PIXELS // 1000 + 1, 1000)), "PNG")
    with pytest.raises(DataError, match=r"64001 x 1000 pixels, more than 64,000,000"):
        decode(flat)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_cut_file_is_refused_or_has_all_its_pixels() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"):
        whole = encoded(noise, kind)
        refused = 0
        for length in range(0, len(whole), 61):
            try:
                assert (decode(whole[:length]) == decode(whole)).all()  # the end marker may be what is missing
            except DataError:
                refused += 1
        assert refused > 0.9 * len(range(0, len(whole), 61))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_bytes_give_pixels_or_an_error_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8))
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"):
        whole = np.frombuffer(encoded(noise, kind), np.uint8)
        for _ in range(60):
            damaged = whole.copy()
            damaged[rng.integers(0, min(len(damaged), 400), 3)] = rng.integers(0, 256, 3)
            try:
                pixels = decode(damaged.tobytes())
            except DataError:
                continue
            assert pixels.ndim == 3
            assert pixels.shape[2] == 3
            assert pixels.dtype == np.uint8


def test_a_folder_or_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.jpg does not exist"):
        decode(tmp_path / "nothing.jpg")
    with pytest.raises(DataError, match="cannot be decoded"):
        decode(tmp_path)
