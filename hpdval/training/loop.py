"""The one training loop: a task gives losses, the loop follows them, logs, checkpoints and resumes exactly.

The order of images is a function of (seed, epoch) and every view a function of (seed, epoch, image), so a resumed run
repeats nothing and skips nothing: on a CPU its weights are bit-identical to those of an uninterrupted one.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hpdval.checkpoint import load_checkpoint, save_checkpoint
from hpdval.config import TrainingConfig
from hpdval.errors import NonFiniteLossError, RunError
from hpdval.progress import progress
from hpdval.run import Run
from hpdval.training.batches import Batch, Batches, Plan, micro_batches_of_updates
from hpdval.training.optim import MovingAverage, lr_factor

CHECKPOINT_SECONDS = 60.0


class Task(nn.Module):
    """What the loop trains: named scalar losses whose sum is minimised, and the parameters that follow them."""

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the losses of one batch."""
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return AdamW's parameter groups, each with its ``lr`` and ``weight_decay``."""
        raise NotImplementedError


class Interrupted(RunError):
    """Training was asked to stop; it saved a checkpoint first."""


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


class Trainer:
    """State of one training: the task's trainable tensors, AdamW, the moving average, and where it stands."""

    def __init__(
        self, task: Task, config: TrainingConfig, plan: Plan, run: Run, stage: str, *, keep_best: bool = False
    ) -> None:
        self.task, self.config, self.plan, self.run, self.stage = task, config, plan, run, stage
        self.named = {name: p for name, p in task.named_parameters() if p.requires_grad}
        groups = task.parameter_groups()
        self.base_lr = [float(group["lr"]) for group in groups]
        self.optimizer = torch.optim.AdamW(groups)
        self.ema = MovingAverage(self.named.values(), config.ema_decay) if config.ema_decay else None
        self.update = 0
        self.keep_best = keep_best
        self.best: dict[str, Any] = {}
        self.best_tensors: dict[str, torch.Tensor] = {}
        self.path = run.path(f"checkpoint-{stage}.safetensors")

    # -- state -----------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write everything that a continuation needs."""
        tensors: dict[str, torch.Tensor] = {f"task.{name}": p for name, p in self.named.items()}
        for index, parameter in enumerate(self._parameters()):  # all are counted, also those without a state yet
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"optimizer.{index}.{key}": value for key, value in moments.items()}
        if self.ema is not None:
            tensors |= {f"ema.{i}": value for i, value in enumerate(self.ema.average)}
        tensors |= {f"best.{name}": value for name, value in self.best_tensors.items()}
        save_checkpoint(self.path, tensors, {"key": self.run.key, "update": self.update, "best": self.best})

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def resume(self) -> None:
        """Continue from the newest whole checkpoint of this run, if there is one."""
        loaded = load_checkpoint(self.path)
        if loaded is None:
            self.run.forget_metrics(self.stage, -1)
            return
        tensors, state = loaded
        if state["key"] != self.run.key:
            raise RunError(f"{self.path} belongs to another run; delete the folder or choose another")
        for name, parameter in self.named.items():
            parameter.copy_(tensors[f"task.{name}"])
        for index, parameter in enumerate(self._parameters()):
            prefix = f"optimizer.{index}."
            moments = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            if moments:  # AdamW keeps its step counter on the CPU
                self.optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(parameter.device) for key, value in moments.items()
                }
        if self.ema is not None:
            for index, average in enumerate(self.ema.average):
                average.copy_(tensors[f"ema.{index}"])
        self.best = state["best"]
        self.best_tensors = {n.removeprefix("best."): t for n, t in tensors.items() if n.startswith("best.")}
        self.update = state["update"]
        self.run.forget_metrics(self.stage, self.update)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Look at the averaged weights, where a moving average is kept."""
        if self.ema is None:
            yield
            return
        self.ema.swap()
        try:
            yield
        finally:
            self.ema.swap()

    # -- one update ------------------------------------------------------------------------------------------------

    def step(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Make one update from the mean of the batches' losses; return the mean of each named loss.

        Raises:
            NonFiniteLossError: before any update is made from it; the images of the batch are named.
        """
        factor = lr_factor(self.update, self.plan.updates, self.config.schedule, self.config.warmup)
        for group, lr in zip(self.optimizer.param_groups, self.base_lr, strict=True):
            group["lr"] = lr * factor
        self.optimizer.zero_grad(set_to_none=True)
        record: dict[str, float] = {}
        for batch in batches:
            losses = self.task.losses(batch)
            total = torch.stack([value.float() for value in losses.values()]).sum()
            if not torch.isfinite(total):
                values = ", ".join(f"{name} {value.item():g}" for name, value in losses.items())
                raise NonFiniteLossError(
                    f"{self.stage}: the loss is not finite at update {self.update} ({values}), no update was made; "
                    f"lower {self.stage}.lr or look at the images {', '.join(map(str, batch['ids']))}"
                )
            (total / len(batches)).backward()
            for name, value in {**losses, "loss": total}.items():
                record[name] = record.get(name, 0.0) + float(value.detach()) / len(batches)
        norm = nn.utils.clip_grad_norm_(self.named.values(), self.config.clip_norm or math.inf)
        if not torch.isfinite(norm):
            raise NonFiniteLossError(
                f"{self.stage}: the gradient is not finite at update {self.update}, no update was made; lower "
                f"{self.stage}.lr or look at the images {', '.join(str(i) for b in batches for i in b['ids'])}"
            )
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update()
        self.update += 1
        return {**record, "lr": self.config.lr * factor}


def fit(
    task: Task,
    batches: Batches,
    config: TrainingConfig,
    run: Run,
    *,
    stage: str,
    n_images: int,
    seed: int,
    watch: tuple[str, Callable[[], float]] | None = None,
    keep_best: bool = False,
    show: bool = True,
) -> None:
    """Train ``task`` in place for ``config.epochs`` epochs, continuing from the run's checkpoint where there is one.

    Args:
        batches: yields, for arrays of image indices and an epoch, dictionaries with ``ids`` and what the task needs.
        watch: name and function of a mAP in percent that is logged after each epoch, such as ``val_map``.
        keep_best: leave the epoch in which that was best in the task, not the last one.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite.
        Interrupted: SIGTERM came; a checkpoint was saved.
        KeyboardInterrupt: Ctrl-C came; a checkpoint was saved.
    """
    plan = Plan(n_images, config.batch_size, config.accumulate, config.epochs, seed)
    trainer = Trainer(task, config, plan, run, stage, keep_best=keep_best)
    trainer.resume()
    updates = range(trainer.update, plan.updates)
    with _stop_on_signals() as received:
        stream = micro_batches_of_updates(plan, batches, trainer.update)
        _follow(
            trainer,
            progress(zip(updates, stream, strict=True), stage, total=len(updates), show=show),
            watch,
            received,
        )
    _settle(trainer)


def _follow(
    trainer: Trainer,
    updates: Iterator[tuple[int, list[Batch]]],
    watch: tuple[str, Callable[[], float]] | None,
    received: list[int],
) -> None:
    plan, run, saved = trainer.plan, trainer.run, time.monotonic()
    for _, group in updates:
        record = trainer.step(group)
        epoch_ends = trainer.update % plan.updates_per_epoch == 0
        epoch = (trainer.update - 1) // plan.updates_per_epoch
        run.log(stage=trainer.stage, step=trainer.update, epoch=epoch, **record)
        if epoch_ends and watch is not None:
            _watch(trainer, *watch, epoch)
        if epoch_ends or received or time.monotonic() - saved > CHECKPOINT_SECONDS:
            trainer.save()
            saved = time.monotonic()
        if received:
            if received[0] == signal.SIGINT:
                raise KeyboardInterrupt
            raise Interrupted(
                f"{trainer.stage} stopped by SIGTERM after update {trainer.update} of {plan.updates}; "
                f"{trainer.path} is saved, run the same command again to continue"
            )


def _watch(trainer: Trainer, name: str, function: Callable[[], float], epoch: int) -> None:
    """Log the watched mAP, and keep the weights of the best epoch where that is asked for."""
    with trainer.averaged():
        value = function()
        trainer.run.log(stage=trainer.stage, step=trainer.update, epoch=epoch, **{name: value})
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
