"""Evaluation: average precision beside scikit-learn's, and the memory of dual-view scores up to 10,000 classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import average_precision_score

from benchmarks.common import MIB, alternate, options, peak_memory, ratio, resident, spread, write_report
from hpdval.metrics import average_precision, evaluate
from hpdval.models import dual_view
from hpdval.models.dual_view import dual_view_scores

TARGETS = {(5_000, 80): "50", (40_504, 80): "500"}  # VOC-LT and COCO-LT test images, COCO's classes
PATCHES, WIDTH = 196, 512  # ViT-B/16 at 224 pixels


def ranking(n: int, c: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random scores (N, C) float32 and targets (N, C) uint8, 3 % of them positive, some in every class."""
    rng = np.random.default_rng(0)
    targets = (rng.random((n, c), dtype=np.float32) < 0.03).astype(np.uint8)
    targets[0] = 1
    return rng.standard_normal((n, c), dtype=np.float32), targets


def scikit_learn(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the AP of each class, (C,), as the oracle computes it."""
    return np.array([average_precision_score(targets[:, c], scores[:, c]) for c in range(scores.shape[1])])


def ap_table(shapes: Sequence[tuple[int, int]], repeats: int) -> pd.DataFrame:
    """Return one row for each (N, C)."""
    rows = []
    for shape in shapes:
        data = ranking(*shape)
        cases: dict[str, Callable[[], np.ndarray]] = {
            "hpdval": partial(average_precision, *data),
            "scikit-learn": partial(scikit_learn, *data),
        }
        times = alternate(cases, repeats=repeats)
        rows.append(
            {
                "images x classes": f"{shape[0]:,} x {shape[1]:,}",
                "hpdval, ms": spread(times["hpdval"].cpu),
                "target, ms": TARGETS.get(shape, "-"),
                "scikit-learn, ms": spread(times["scikit-learn"].cpu),
                "ratio": str(ratio(times["scikit-learn"].cpu, times["hpdval"].cpu)),
                "largest difference of an AP": f"{np.abs(cases['hpdval']() - cases['scikit-learn']()).max():.0e}",
            }
        )
    return pd.DataFrame(rows)


def features(b: int, c: int, *, learn: bool = False) -> tuple[torch.Tensor, ...]:
    """Return random class tokens (B, D), patches (B, P, D) and texts (C, D)."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((b, WIDTH), (b, PATCHES, WIDTH), (c, WIDTH))
    return tuple(torch.randn(shape, generator=generator).requires_grad_(learn) for shape in shapes)


def forward(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return scores (B, C)."""
    with torch.no_grad():
        return dual_view_scores(*inputs)


def backward(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return scores (B, C) after a backward pass to features and texts."""
    scores = dual_view_scores(*inputs)
    scores.sum().backward()
    for tensor in inputs:
        tensor.grad = None
    return scores


def similarity_table(cases: Sequence[tuple[int, int, bool]]) -> pd.DataFrame:
    """Return one row for each (images, classes, with a backward pass)."""
    rows = []
    for b, c, learn in cases:
        inputs, run = features(b, c, learn=learn), backward if learn else forward
        run(inputs)  # what libraries set up on first use is not counted
        chunked = peak_memory(partial(run, inputs))
        with patch.object(dual_view, "CHUNK", 1 << 62):
            whole = peak_memory(partial(run, inputs))
        rows.append(
            {
                "pass": "forward + backward" if learn else "forward",
                "images": str(b),
                "classes": f"{c:,}",
                "B P C in float32, MiB": f"{4 * b * PATCHES * c / MIB:.0f}",
                "in one piece, MiB": f"{whole:.0f}",
                "in chunks, MiB": f"{chunked:.0f}",
            }
        )
    return pd.DataFrame(rows)


def chunk_table(b: int, c: int, sizes: Sequence[int], repeats: int) -> pd.DataFrame:
    """Return the time of a forward pass with chunks of several sizes, in elements."""
    inputs = features(b, c)

    def run(size: int) -> None:
        with patch.object(dual_view, "CHUNK", size):
            forward(inputs)

    times = alternate({str(size): partial(run, size) for size in sizes}, repeats=repeats)
    own = times[str(dual_view.CHUNK)].cpu
    return pd.DataFrame(
        {
            "chunk, MiB": [f"{4 * size / MIB:.0f}" + (" (used)" if size == dual_view.CHUNK else "") for size in sizes],
            "forward, ms": [spread(times[str(size)].cpu) for size in sizes],
            "time / that of the one used": [str(ratio(times[str(size)].cpu, own)) for size in sizes],
        }
    )


def evaluate_table(shapes: Sequence[tuple[int, int]]) -> pd.DataFrame:
    """Return memory and time of ``evaluate`` for each (N, C)."""
    rows = []
    for n, c in shapes:
        run = partial(evaluate, *ranking(n, c), np.full(c, 50))
        peak = peak_memory(run)
        time = median(alternate({"evaluate": run}, repeats=2, warm_up=0)["evaluate"].cpu)
        rows.append(
            {
                "images x classes": f"{n:,} x {c:,}",
                "scores and targets, MiB": f"{5 * n * c / MIB:.0f}",
                "more while it runs, MiB": f"{peak:.0f}",
                "CPU time, s": f"{time:.2f}",
            }
        )
    return pd.DataFrame(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the report."""
    chosen = options(__doc__ or "", arguments)
    quick = chosen.quick
    torch.set_num_threads(1)
    started, own = resident(), dual_view.CHUNK
    similar = [(128, c, False) for c in (20, 80, 1_000, 10_000)] + [(32, c, True) for c in (80, 1_000, 10_000)]
    tables = {
        "Average precision": ap_table(
            [(500, 8)] if quick else [(5_000, 80), (40_504, 80), (2_000, 2_000)], chosen.repeats
        ),
        "Memory of dual-view scores": similarity_table([(8, 80, False), (8, 80, True)] if quick else similar),
        "Size of a chunk": chunk_table(8, 20, [own], 1)
        if quick
        else chunk_table(128, 2_000, [own >> 4, own >> 2, own, own << 2, own << 4], chosen.repeats),
        "Memory of evaluate": evaluate_table([(500, 8)] if quick else [(2_000, 10_000), (5_000, 10_000)]),
    }
    write_report(
        "evaluation",
        chosen,
        title="Evaluation",
        compared="`average_precision` with scikit-learn's `average_precision_score` on the same random scores, in CPU "
        f"time; and what `dual_view_scores` takes above its inputs (P = {PATCHES}, D = {WIDTH}, k = 32, float32), "
        f"whole and in the chunks of {4 * own // MIB} MiB in which the package computes similarities.",
        tables=tables,
        notes=[
            f"Median of {chosen.repeats} alternating repeats (least to largest); ratios of medians, of single repeats",
            "A backward pass keeps the places of the k best patches (8 B C k bytes), not the similarities",
            f"Memory of the process before this, with torch, open_clip and scikit-learn loaded: {started:.0f} MiB",
            "One thread; CPU time, which other work on the machine changes little",
        ],
    )


if __name__ == "__main__":
    main()
