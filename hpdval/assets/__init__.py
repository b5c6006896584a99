"""Files shipped with the package: small CLIP and labelled ViT, their cards, published numbers, a page's template."""

from __future__ import annotations

from pathlib import Path

SCENES_CLIP_SHA256 = "e420b9a7ba7ae74d156c7a192bac94e42a8967862f75b802a5000276d8952613"
SCENES_VIT_SHA256 = "612bd9ba87b01412ca14597eb4f351e5fe6915e44c39574c42216976cf715aa8"


def asset_path(name: str) -> Path:
    """Return the path of a shipped file.

    >>> asset_path("scenes_clip.json").is_file()
    True
    """
    return Path(__file__).parent / name
