"""The one training loop: a task gives losses, the loop follows them, logs, checkpoints and resumes exactly.

The order of images is a function of (seed, epoch) and every view a function of (seed, epoch, image), so a resumed run
repeats nothing and skips nothing: on a CPU its weights are bit-identical to those of an uninterrupted one.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hpdval.config import TrainingConfig
from hpdval.distributed import largest
from hpdval.models.numeric import numeric_mode
from hpdval.progress import progress
from hpdval.run import Run
from hpdval.stopping import LOOK_SECONDS, Interrupted, take_request
from hpdval.training.batches import Batch, Batches, Draw, Plan, micro_batches_of_updates
from hpdval.training.trainer import Task, Trainer

CHECKPOINT_SECONDS = 60.0
SAVE, REQUESTED = 1, 1000  # what a process may ask for after an update, besides a signal


@contextmanager
def _stop_on_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT instead of dying in mid-update; only the main thread may ask for that."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}  # nohup, "&"
    for number in before:
        signal.signal(number, lambda caught, frame: received.append(caught))
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:  # after the last look: all is saved, and what would come next is not begun
        signal.raise_signal(received[0])


@contextmanager
def _threads_afterwards(count: int) -> Iterator[None]:
    """A resumed run uses the number of CPU threads it began with; what comes after it does not."""
    try:
        yield
    finally:
        torch.set_num_threads(count)


def fit(
    task: Task,
    batches: Batches,
    config: TrainingConfig,
    run: Run,
    *,
    stage: str,
    n_images: int,
    seed: int,
    draw: Draw | None = None,
    watch: tuple[str, Callable[[], float]] | None = None,
    keep_best: bool = False,
    show: bool = True,
) -> dict[str, Any]:
    """Train ``task`` in place for ``config.epochs`` epochs, continuing from the run's checkpoint where there is one.

    Returns how it was computed: CPU ``threads``, ``numeric`` mode, whether ``compiled``; and what that took: the number
    of ``parameters`` that were trained, and the ``seconds`` of all attempts, as far as their checkpoints tell.

    Args:
        batches: yields, for arrays of image indices and an epoch, dictionaries with ``ids`` and what the task needs.
        draw: the images of an epoch in their order, where that is not every image once.
        watch: name and function of a mAP in percent that is logged after each epoch, such as ``val_map``.
        keep_best: leave the epoch in which that was best in the task, not the last one.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite.
        Interrupted: SIGTERM came, or a request (:mod:`hpdval.stopping`); a checkpoint was saved.
        KeyboardInterrupt: Ctrl-C came; a checkpoint was saved.
    """
    plan = Plan(n_images, config.batch_size, config.accumulate, config.epochs, seed, draw)
    trainer = Trainer(task, config, plan, run, stage, keep_best=keep_best)
    threads = torch.get_num_threads()
    trainer.resume()
    updates = range(trainer.update, plan.updates)
    with _stop_on_signals() as received, _threads_afterwards(threads):
        stream = micro_batches_of_updates(plan, batches, trainer.update)
        _follow(
            trainer,
            progress(zip(updates, stream, strict=True), stage, total=len(updates), show=show),
            watch,
            received,
        )
        facts = {"threads": torch.get_num_threads()}
    _settle(trainer)
    how = {"numeric": numeric_mode(task.precision, trainer.device), "compiled": task.compiled}
    return {**facts, **how, "parameters": trainer.parameters, "seconds": trainer.seconds}


def _follow(
    trainer: Trainer,
    updates: Iterator[tuple[int, list[Batch]]],
    watch: tuple[str, Callable[[], float]] | None,
    received: list[int],
) -> None:
    plan, saved, looked = trainer.plan, time.monotonic(), -math.inf
    for _, group in updates:
        trainer.step(group)
        epoch_ends = trainer.update % plan.updates_per_epoch == 0
        if epoch_ends:
            trainer.read()
            if watch is not None:
                _watch(trainer, *watch, (trainer.update - 1) // plan.updates_per_epoch)
        due = epoch_ends or time.monotonic() - saved > CHECKPOINT_SECONDS
        own = received[0] if received else SAVE if due else 0
        if trainer.run.writes and time.monotonic() - looked > LOOK_SECONDS:
            looked = time.monotonic()
            own = REQUESTED if take_request() else own
        asked = largest(own)  # of all processes
        if asked:
            trainer.save()
            saved = time.monotonic()
        if asked > SAVE:
            if asked == signal.SIGINT:
                raise KeyboardInterrupt
            after = f"after update {trainer.update} of {plan.updates}"
            if asked == REQUESTED:
                raise Interrupted(f"{trainer.stage} stopped on request {after}; run the same command again to continue")
            raise Interrupted(
                f"{trainer.stage} stopped by SIGTERM {after}; "
                f"{trainer.path} is saved, run the same command again to continue"
            )


def _watch(trainer: Trainer, name: str, function: Callable[[], float], epoch: int) -> None:
    """Log the watched mAP, and keep the weights of the best epoch where that is asked for."""
    with trainer.averaged():
        value = function()
        trainer.log(step=trainer.update, epoch=epoch, **{name: value})
        if trainer.keep_best and value > trainer.best.get("map", float("-inf")):
            trainer.best = {"map": value, "epoch": epoch}
            trainer.best_tensors = {name: p.detach().cpu().clone() for name, p in trainer.named.items()}


@torch.no_grad()
def _settle(trainer: Trainer) -> None:
    """Leave the result in the task: the best epoch, else the moving average, else the last update."""
    if trainer.best_tensors:
        for name, parameter in trainer.named.items():
            parameter.copy_(trainer.best_tensors[name])
    elif trainer.ema is not None:
        trainer.ema.swap()
