"""Image files to pixels: one function that returns upright RGB whatever the file holds, or a one-line error.

Letters: H x W pixels.
"""

from __future__ import annotations

import io
import logging
import os
import threading
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from hpdval.errors import DataError

MAX_PIXELS = 64_000_000  # W * H, read from the header before anything is decoded: 192 MB as RGB
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # no EPS, no PDF: those run other programs

logging.getLogger("PIL").addHandler(logging.NullHandler())  # what it has to say of a damaged file is in our error
_header_lock = threading.Lock()  # warnings.catch_warnings is not safe in threads


def decode(source: str | os.PathLike[str] | bytes) -> np.ndarray:
    """Return an image as (H, W, 3) uint8 RGB, upright.

    The format follows from the content, not from the suffix.  EXIF orientation is applied; CMYK, grey and palette
    images become RGB; 16-bit grey is scaled by 1/257; transparency is flattened on white; an animation gives its
    first frame; colour profiles are ignored, as CLIP's preprocessing does.

    Args:
        source: a path, or the bytes of a file.

    Raises:
        DataError: not an image of one of ``FORMATS``, damaged, or more than ``MAX_PIXELS`` pixels.

    >>> buffer = io.BytesIO()
    >>> Image.new("CMYK", (3, 2)).save(buffer, "JPEG")
    >>> decode(buffer.getvalue()).shape
    (2, 3, 3)
    """
    name = "image bytes" if isinstance(source, bytes) else os.fspath(source)
    try:
        with _open(source, name) as image:
            return np.array(_upright_rgb(image))
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{name} does not exist") from None
    except Exception as error:  # Pillow's parsers raise whatever damaged bytes lead them into
        raise DataError(f"{name} cannot be decoded: {_reason(source, error)}") from error


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return (width, height) of the upright image from its header alone; errors as for :func:`decode`."""
    name = os.fspath(path)
    try:
        with _open(path, name) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (image.height, image.width) if turned else (image.width, image.height)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{name} does not exist") from None
    except Exception as error:  # as in `decode`
        raise DataError(f"{name} cannot be decoded: {_reason(path, error)}") from error


def read_indices(path: str | os.PathLike[str]) -> np.ndarray:
    """Return the palette indices (or grey values) of a PNG as (H, W) uint8: what a picture of labels stores.

    Raises:
        DataError: damaged, too large, or of colours instead of one byte for each pixel.
    """
    name = os.fspath(path)
    try:
        with _open(path, name) as image:
            if image.format != "PNG" or image.mode not in ("P", "L"):
                raise DataError(f"{name} is {image.format} {image.mode}; label pictures are PNG with a palette")
            return np.array(image)
    except DataError:
        raise
    except Exception as error:  # as in `decode`
        raise DataError(f"{name} cannot be decoded: {_reason(path, error)}") from error


def _open(source: str | os.PathLike[str] | bytes, name: str) -> Image.Image:
    """Read the header and refuse what is too large to decode."""
    try:
        with _header_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our limit is the stricter one
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except Image.DecompressionBombError:
        raise DataError(f"{name} has far more than {MAX_PIXELS:,} pixels, the limit; make it smaller") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise DataError(f"{name} has {width} x {height} pixels, more than {MAX_PIXELS:,}, the limit; make it smaller")
    return image


def _upright_rgb(image: Image.Image) -> Image.Image:
    image.load()
    ImageOps.exif_transpose(image, in_place=True)  # a copy of a large image is 256 MB
    if image.mode.startswith("I"):  # I;16, I;16B, and I as older Pillow has it
        values = np.asarray(image).astype(np.int32)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"grey values from {values.min()} to {values.max()}; 0 to 65535 are allowed")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point grey values have no agreed range; store 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _reason(source: str | os.PathLike[str] | bytes, error: Exception) -> str:
    size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size if os.path.isfile(source) else None
    if size == 0:
        return "it is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        return f"it is not an image of a known format ({', '.join(FORMATS)})"
    return str(error) or type(error).__name__
