"""The same work in several processes at once, forked from one that has imported everything; what each says comes back.

A worker is a function of this module: a fork server finds it by its name.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from multiprocessing import forkserver, get_context
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import coloured, coloured_set, recipe, tiny

import hpdval
from hpdval import cli
from hpdval.checkpoint import load_tensors
from hpdval.data.prepare.catalogue import CATALOGUE
from hpdval.data.prepare.published import PublishedSet
from hpdval.data.prepare.steps import prepare
from hpdval.data.store import ImageStore
from hpdval.errors import HpdvalError
from hpdval.report import build_report
from hpdval.run import read_metrics, read_predictions
from hpdval.scoring import FeatureStore, features
from hpdval.training import loop

N = 60  # training images
CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["crowd"])


def serve() -> None:
    """Start the fork server, once; up to Python 3.12 it imports only from where this variable says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        forkserver.ensure_running()


class Crowd:
    """Processes that begin together; each does the same with arguments of its own."""

    def __init__(
        self, work: Callable[..., Any], arguments: Sequence[Sequence[Any]], environment: dict[str, str] | None = None
    ) -> None:
        serve()
        self.start = CONTEXT.Barrier(len(arguments))  # held, or it would be gone before a slow child looks for it
        pipes = [CONTEXT.Pipe(duplex=False) for _ in arguments]
        self.ends = [reading for reading, _ in pipes]
        self.processes = [
            CONTEXT.Process(target=_begin, args=(work, given, environment or {}, self.start, writing))
            for given, (_, writing) in zip(arguments, pipes, strict=True)
        ]
        for process, (_, writing) in zip(self.processes, pipes, strict=True):
            process.start()
            writing.close()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to all that live."""
        for process in self.processes:
            if process.is_alive() and process.pid:
                os.kill(process.pid, number)

    def answers(self, seconds: float = 600) -> list[Any]:
        """Return what each said: what its work returned, or the line of its error; None where it was killed."""
        until, found = time.monotonic() + seconds, dict.fromkeys(self.ends)
        while any(not end.closed for end in self.ends):
            ready = wait([end for end in self.ends if not end.closed], max(0.0, until - time.monotonic()))
            assert ready, "they did not all end"
            for end in self.ends:
                if end in ready:
                    try:
                        found[end] = end.recv()
                    except EOFError:
                        end.close()
        for process in self.processes:
            process.join()
        return [found[end] for end in self.ends]


def _begin(work: Callable[..., Any], given: Sequence[Any], environment: dict[str, str], start: Any, end: Any) -> None:
    os.environ |= environment
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore Ctrl-C
    start.wait()
    try:
        end.send(work(*given))
    except HpdvalError as error:
        end.send(f"{type(error).__name__}: {error}")


def check_same(folder: Path, control: Path) -> None:
    """The run has the weights, metrics and predictions of the control, to the bit."""
    tensors, expected = (load_tensors(one / "stage1" / "model.safetensors")[0] for one in (folder, control))
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in tensors)
    assert read_metrics(folder / "stage1") == read_metrics(control / "stage1")
    scores, expected_scores = (read_predictions(one / "stage1")["scores"] for one in (folder, control))
    assert np.array_equal(scores, expected_scores)
    assert not list(folder.rglob("*.tmp"))


# -- what they do ------------------------------------------------------------------------------------------------------


def train(shared: Path, folder: Path, lr: float = 2e-3, slow_from: int = 0, seconds: float = 0.0) -> int:
    """Train stage 1 and return how many updates this process made; from some update on each takes so many seconds."""
    made: list[int] = []
    step = loop.Trainer.step

    def counted(self: loop.Trainer, group: Any) -> None:
        made.append(1)
        time.sleep(seconds if len(made) > slow_from else 0)
        step(self, group)

    loop.Trainer.step = counted  # type: ignore[method-assign]
    loop.CHECKPOINT_SECONDS = 0.0
    experiment = recipe(**{"stages": "stage1", "stage1.epochs": 2, "stage1.batch_size": 16, "stage1.lr": lr})
    hpdval.train(coloured_set(N, 40), experiment, run=folder, clip=tiny(shared), show=False)
    return len(made)


def fill_images(shared: Path, cache: Path) -> tuple[int, str]:
    """Open a store of images and return how many this process decoded, and the key."""
    read: list[int] = []
    split = coloured(N, 1)
    pixels = split.read

    def counted(i: int) -> np.ndarray:
        read.append(i)
        time.sleep(0.005)  # so that the others come while it is filled
        return pixels(i)

    store = ImageStore.open(replace(split, read=counted), 24, cache=cache)
    assert len(store.images) == N
    return len(read), store.key


def fill_features(shared: Path, cache: Path) -> tuple[int, str]:
    """Open a store of features and return how many batches this process encoded, and the key."""
    encoded: list[int] = []
    original, features.BATCH = features.encode, 8

    def counted(*arguments: Any, **options: Any) -> Iterator[Any]:
        for batch in original(*arguments, **options):
            encoded.append(1)
            time.sleep(0.05)
            yield batch

    features.encode = counted
    store = FeatureStore.open(tiny(shared), coloured(N, 1), cache=cache, show=False)
    assert len(store.tokens) == N
    return len(encoded), store.key


def prepared(known: PublishedSet, root: Path) -> bool:
    """Prepare a published data set and say whether it is whole."""
    return prepare(known, root, show=False).ok


def command(words: Sequence[str], known: PublishedSet | None = None, seconds: float = 0.0) -> tuple[int, str]:
    """Run ``hpdval`` with these words and return its exit status and what it said on standard error.

    Args:
        known: stands in the catalogue of published data sets.
        seconds: what an update of a training takes at least.
    """
    if known is not None:
        CATALOGUE[known.name] = known
    step = loop.Trainer.step
    loop.Trainer.step = lambda self, group: (time.sleep(seconds), step(self, group))[1]  # type: ignore[method-assign]
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(io.StringIO()) as said:
        code = cli.main(words)
    return code, said.getvalue()


def report(runs: Sequence[Path], folder: Path) -> int:
    """Build a report of some runs."""
    return len(build_report(runs, folder, figures=("svg",), resamples=5, permutations=5, show=False).read_bytes())
