"""Files shipped with the package: the small CLIP of the embedded world and its model card."""

from __future__ import annotations

from pathlib import Path

SCENES_CLIP_SHA256 = "b01c6a94b698362a90d0b86e46b9bc1a58d85b2adadf88421e47120edf650245"


def asset_path(name: str) -> Path:
    """Return the path of a shipped file.

    >>> asset_path("scenes_clip.json").is_file()
    True
    """
    return Path(__file__).parent / name
