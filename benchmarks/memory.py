"""Memory of a stage-1 step of ViT-B/16 on a CUDA card, by resolution and batch, and what fits on the usual cards."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import pandas as pd
import torch

from benchmarks.common import options, write_report
from benchmarks.growth import stage1_step

GIB = 2**30
RESOLUTIONS, BATCHES = (224, 336, 448), (8, 16, 32, 64, 128)
CARDS = (8, 12, 16, 24, 40, 80)  # GiB
CONTEXT = 1.0  # GiB that CUDA's context and the desktop take beside torch


def peak(resolution: int, batch: int) -> float | None:
    """Return what torch reserved at most during three steps, in GiB; None where memory did not suffice."""
    step, gib = None, None
    try:
        step = stage1_step("ViT-B-16-quickgelu", resolution, batch, "cuda")
        torch.cuda.reset_peak_memory_stats()
        for _ in range(3):
            step()
        torch.cuda.synchronize()
        gib = torch.cuda.max_memory_reserved() / GIB
    except torch.OutOfMemoryError:
        print(f"memory: {resolution} pixels, batch {batch}: out of memory")
    del step
    gc.collect()
    torch.cuda.empty_cache()
    return gib


def peak_table(peaks: dict[tuple[int, int], float | None]) -> pd.DataFrame:
    """Return GiB by batch (rows) and resolution (columns)."""
    resolutions, batches = (sorted({key[i] for key in peaks}) for i in (0, 1))

    def shown(value: float | None) -> str:
        return "out of memory" if value is None else f"{value:.1f}"

    return pd.DataFrame({"batch": [str(b) for b in batches]} | {
        f"{r} pixels, GiB": [shown(peaks[r, b]) for b in batches] for r in resolutions
    })  # fmt: skip


def card_table(peaks: dict[tuple[int, int], float | None]) -> pd.DataFrame:
    """Return the largest measured batch that leaves ``CONTEXT`` free, by card and resolution.

    >>> card_table({(224, 8): 5.0, (224, 16): 7.5}).iloc[0].to_list()
    ['8 GiB', '8']
    """
    resolutions = sorted({resolution for resolution, _ in peaks})
    rows = []
    for card in CARDS:
        row = {"card": f"{card} GiB"}
        for r in resolutions:
            fits = [b for (s, b), gib in peaks.items() if s == r and gib is not None and gib + CONTEXT <= card]
            row[f"{r} pixels"] = str(max(fits)) if fits else "none measured"
        rows.append(row)
    return pd.DataFrame(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the report; without a CUDA device, say so."""
    chosen = options(__doc__ or "", arguments)
    if not torch.cuda.is_available():
        print("memory: needs a CUDA device, and torch sees none here; nothing was measured or written")
        return
    grid = [
        (r, b) for r in (RESOLUTIONS[:1] if chosen.quick else RESOLUTIONS) for b in BATCHES[: 1 if chosen.quick else 5]
    ]
    peaks = {(r, b): peak(r, b) for r, b in grid}
    write_report(
        "memory",
        chosen,
        title="Memory of a stage-1 step",
        compared="ViT-B/16 student and teacher, recipe `hpdval` (the card's default precision, AdamW), random weights "
        "and images: the most that torch reserved during three updates.",
        tables={"Peak": peak_table(peaks), "Largest batch that fits, of those measured": card_table(peaks)},
        notes=[
            f"A card is counted with {CONTEXT:g} GiB less, for CUDA's context and what else is shown on it",
            "Decoded training images that stay on the card (3 S S bytes each) come on top",
        ],
    )


if __name__ == "__main__":
    main()
