"""Numeric modes of the image tower: features of ViT-B/16, and forward and backward of the small ViT of this package.

Eager float32 is the default on a CPU, for exact repetition; the others are named modes (hpdval/models/numeric.py).
Random weights for ViT-B/16; every mode once in alternating order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from benchmarks.common import Times, alternate, options, ratio, spread, write_report
from hpdval.models import Clip, load_clip
from hpdval.models.numeric import image_encoder, resolve_device
from hpdval.models.student import make_student

MODES = ("float32", "bfloat16", "pure-bfloat16")


def features(clip: Clip, images: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """Return one pass without gradient for each mode."""
    frozen = clip.requires_grad_(False)
    encoders = {mode: image_encoder(frozen.visual, mode) for mode in MODES}

    def once(mode: str) -> Any:
        with torch.no_grad():
            found = encoders[mode](images)
            _wait(images)
            return found

    return {mode: lambda mode=mode: once(mode) for mode in MODES}


def updates(clip: Clip, images: torch.Tensor, compiled: bool) -> dict[str, Callable[[], None]]:
    """Return forward and backward for each mode, eager and compiled."""
    student = make_student(clip)
    student.visual.requires_grad_(True)
    encoders = {mode: image_encoder(student.visual, mode) for mode in MODES}
    for mode in MODES if compiled else ():
        encoders[f"{mode}, compiled"] = image_encoder(student.visual, mode, compiled=True)

    def once(name: str) -> None:
        student.zero_grad(set_to_none=True)
        found = encoders[name](images)
        (found.cls.float().square().mean() + found.patches.float().square().mean()).backward()
        _wait(images)

    return {name: lambda name=name: once(name) for name in encoders}


def _wait(images: torch.Tensor) -> None:
    if images.device.type == "cuda":
        torch.cuda.synchronize()


def rows(times: Mapping[str, Times]) -> pd.DataFrame:
    """Return a row for each mode against eager float32."""
    base = times["float32"]
    return pd.DataFrame(
        [
            {
                "mode": name,
                "seconds": spread(taken.wall, "s", 3),
                "times as fast": str(ratio(base.wall, taken.wall)),
                "by CPU time": str(ratio(base.cpu, taken.cpu)),
            }
            for name, taken in times.items()
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the report."""
    chosen = options(__doc__ or "", arguments)
    device = resolve_device("auto")
    small = load_clip("scenes", device=device)
    large = small if chosen.quick else load_clip("ViT-B-16", device=device)
    count = 2 if chosen.quick else 128 if device.type == "cuda" else 8
    images, little = (
        torch.randn(n, 3, clip.image_size, clip.image_size, device=device) for n, clip in ((count, large), (32, small))
    )
    inference = alternate(features(large, images), repeats=chosen.repeats)
    training = alternate(updates(small, little, not chosen.quick), repeats=chosen.repeats, warm_up=2)
    write_report(
        "numeric_modes",
        chosen,
        title="Numeric modes",
        compared=f"{(__doc__ or '').split(chr(10), 2)[2].strip()} Device: {device.type}.",
        tables={
            f"Features of {count} images, {large.name}, no gradient": rows(inference),
            "Forward and backward of 32 images, the small ViT (64 pixels, width 128, 5 layers)": rows(training),
        },
    )


if __name__ == "__main__":
    main()
