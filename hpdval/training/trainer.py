"""State of one training and its update: tensors, optimiser, moving average, checkpoints, and what is not finite.

On CUDA losses are not read back at each update: one that is not finite is masked on the device, and every few updates
they are read, which is when the run stops and names the images.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from hpdval.checkpoint import load_checkpoint, save_checkpoint
from hpdval.config import TrainingConfig
from hpdval.distributed import accumulating, everyones, parallel, rank
from hpdval.errors import NonFiniteLossError, RunError
from hpdval.models.numeric import numeric_mode
from hpdval.records import chained
from hpdval.run import Run
from hpdval.training.batches import Batch, Plan
from hpdval.training.optim import MovingAverage, lr_factor, make_optimizer

READ_EVERY = 10  # updates between two looks at the losses, on CUDA
MOST_SKIPPED = 20  # updates in a row that float16 may lose to overflow; the scale has then fallen by a million


class Task(nn.Module):
    """What the loop trains: named scalar losses whose sum is minimised, and the parameters that follow them."""

    precision = "float32"  # the numeric mode it runs in, and whether compiled
    compiled = False
    stochastic = False  # whether its losses draw from torch's generator, as dropout does

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the losses of one batch."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the losses: DistributedDataParallel follows what is called as a module."""
        return self.losses(batch)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimiser's parameter groups, each with its ``lr`` and ``weight_decay``."""
        raise NotImplementedError


@contextmanager
def drawing(task: Task, seed: int, update: int, number: int) -> Iterator[None]:
    """What a stochastic task draws is a function of seed, update and micro-batch, so that a resumed run draws it again.

    Of several processes each has its own images, and so its own draws.
    """
    if not task.stochastic:
        yield
        return
    device = next(task.parameters()).device
    own = int(np.random.SeedSequence((seed, update, number, rank())).generate_state(1, np.uint64)[0]) >> 1
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(own)
        else:
            torch.default_generator.manual_seed(own)
        yield


class Trainer:
    """State of one training: the task's trainable tensors, optimiser, the moving average, and where it stands."""

    def __init__(
        self, task: Task, config: TrainingConfig, plan: Plan, run: Run, stage: str, *, keep_best: bool = False
    ) -> None:
        self.task, self.config, self.plan, self.run, self.stage = task, config, plan, run, stage
        self.model = parallel(task)
        self.named = {name: p for name, p in task.named_parameters() if p.requires_grad}
        groups = task.parameter_groups()
        self.base_lr = [float(group["lr"]) for group in groups]
        self.optimizer = make_optimizer(config.optimizer, groups)
        self.parameters = sum(parameter.numel() for parameter in self.named.values())
        self._began, self._earlier = time.monotonic(), 0.0  # seconds that earlier attempts took
        self.ema = MovingAverage(self.named.values(), config.ema_decay) if config.ema_decay else None
        self.update, self.records = 0, ""  # updates made, and the chain of what they logged
        self.keep_best = keep_best
        self.best: dict[str, Any] = {}
        self.best_tensors: dict[str, torch.Tensor] = {}
        self.path = run.path(f"checkpoint-{stage}.safetensors")
        self.device = next(iter(self.named.values())).device
        self.read_every = READ_EVERY if self.device.type == "cuda" else 1
        self.bad = torch.zeros((), device=self.device)  # 1 as soon as something was not finite; no update follows
        self.unread: list[dict[str, Any]] = []
        self.skipped = torch.zeros((), device=self.device)
        half = numeric_mode(task.precision, self.device) == "float16"
        # PyTorch's own start of 65,536 loses the first updates to overflow, which a short training feels
        self.scaler = torch.amp.GradScaler(self.device.type, init_scale=2.0**10) if half else None

    @property
    def seconds(self) -> float:
        """How long this training has taken, with its earlier attempts."""
        return round(self._earlier + time.monotonic() - self._began, 3)

    # -- state -----------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write everything that a continuation needs."""
        self.read()
        if not self.run.writes:
            return
        tensors: dict[str, torch.Tensor] = {f"task.{name}": p for name, p in self.named.items()}
        for index, parameter in enumerate(self._parameters()):  # all are counted, also those without a state yet
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"optimizer.{index}.{key}": value for key, value in moments.items() if value is not None}
        if self.ema is not None:
            tensors |= {f"ema.{i}": value for i, value in enumerate(self.ema.average)}
        tensors |= {f"best.{name}": value for name, value in self.best_tensors.items()}
        state = {"key": self.run.key, "update": self.update, "best": self.best, "threads": torch.get_num_threads()}
        state |= {"seconds": self.seconds, "records": self.records}
        self.run.keep_metrics()
        if self.scaler is not None:
            state["scaler"] = self.scaler.state_dict()
        save_checkpoint(self.path, tensors, state)

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def resume(self) -> None:
        """Continue from the newest whole checkpoint of this run, if there is one, with its number of CPU threads."""
        loaded = load_checkpoint(self.path)
        if len(set(everyones(None if loaded is None else loaded[1]["update"]))) > 1:
            raise RunError(f"not all processes read the same {self.path}; put the run on a disk that all nodes share")
        if loaded is None:
            self.run.forget_metrics(self.stage, -1)
            return
        tensors, state = loaded
        if state.get("key") != self.run.key:
            raise RunError(f"{self.path} belongs to another run; delete the folder or choose another")
        for name, parameter in self.named.items():
            parameter.copy_(tensors[f"task.{name}"])
        for index, parameter in enumerate(self._parameters()):
            prefix = f"optimizer.{index}."
            moments = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            if moments:
                self.optimizer.state[parameter] = {key: t.to(parameter.device) for key, t in moments.items()}
        if self.ema is not None:
            for index, average in enumerate(self.ema.average):
                average.copy_(tensors[f"ema.{index}"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.best = state["best"]
        self.best_tensors = {n.removeprefix("best."): t for n, t in tensors.items() if n.startswith("best.")}
        self.update, self._earlier = state["update"], state.get("seconds", 0.0)
        torch.set_num_threads(state["threads"])  # sums in another order would give other bits
        self.records = self.run.forget_metrics(self.stage, self.update, state.get("records"))

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

    def step(self, batches: Sequence[Batch]) -> None:
        """Make one update from the mean of the batches' losses; what it recorded is logged by :meth:`read`.

        Raises:
            NonFiniteLossError: before any update is made from it; the images of the batch are named.
        """
        factor = lr_factor(self.update, self.plan.updates, self.config.schedule, self.config.warmup)
        for group, lr in zip(self.optimizer.param_groups, self.base_lr, strict=True):
            group["lr"] = lr * factor
        self.optimizer.zero_grad(set_to_none=True)
        means: dict[str, torch.Tensor] = {}
        for number, batch in enumerate(batches, 1):
            alone = nullcontext() if number == len(batches) else accumulating(self.model)
            with alone, drawing(self.task, self.plan.seed, self.update, number):
                for name, value in self._backward(batch, len(batches)).items():
                    share = value.detach().float() / len(batches)
                    means[name] = means[name] + share if name in means else share
        self._clip_gradients()
        self.unread.append(
            {
                "update": self.update,
                "losses": means,
                "bad": self.bad,
                "lr": self.config.lr * factor,
                "ids": [image for batch in batches for image in batch["ids"]],
            }
        )
        if self.read_every == 1:
            self.read(check_only=True)
        self._apply()
        self.update += 1
        if len(self.unread) >= self.read_every:
            self.read()

    def _backward(self, batch: Batch, count: int) -> dict[str, torch.Tensor]:
        """Add a batch's gradient, one of ``count``, and return its losses and their sum."""
        losses: dict[str, torch.Tensor] = self.model(batch)
        total = torch.stack([value.float() for value in losses.values()]).sum()
        self._note_unless_finite(total)
        loss = total / count
        if self.scaler is not None:  # which leaves out an update whose gradients are not finite
            loss = self.scaler.scale(loss * torch.where(self.bad > 0, math.nan, 1.0))
        loss.backward()
        return {**losses, "loss": total}

    def _note_unless_finite(self, value: torch.Tensor) -> None:
        self.bad = torch.maximum(self.bad, (~torch.isfinite(value.detach())).float())

    def _clip_gradients(self) -> None:
        """Clip the norm of all gradients where the config says so, and note whether it is finite."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.named.values(), self.config.clip_norm or math.inf, foreach=True)
        if self.scaler is not None:  # float16 overflows now and then, which halves the scale; but not for ever
            self.skipped = torch.where(torch.isfinite(norm), 0.0, self.skipped + 1)
            norm = torch.where(self.skipped > MOST_SKIPPED, math.nan, 0.0)
        self._note_unless_finite(norm)

    def _apply(self) -> None:
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.found_inf = self.bad  # type: ignore[attr-defined]  # a fused optimiser skips the update where it is 1
            self.optimizer.step()
        if self.ema is not None:
            self.ema.update()

    def log(self, **record: Any) -> None:
        """Log a record of an update; a checkpoint knows which there were."""
        own = {"stage": self.stage, **record}
        self.run.log(**own)
        self.records = chained(self.records, own)

    def read(self, *, check_only: bool = False) -> None:
        """Look at the updates since the last time: log them, and stop at the first that was not finite.

        Raises:
            NonFiniteLossError: a loss or a gradient was not finite; no update was made from it, nor after it.
        """
        for record in self.unread:
            losses = {name: float(value) for name, value in record["losses"].items()}
            if record["bad"]:
                values = ", ".join(f"{name} {value:g}" for name, value in losses.items() if name != "loss")
                what = "gradient" if math.isfinite(losses["loss"]) else "loss"
                raise NonFiniteLossError(
                    f"{self.stage}: the {what} is not finite at update {record['update']} ({values}), no update was "
                    f"made; lower the learning rate or look at the images {', '.join(map(str, record['ids']))}"
                )
            if not check_only:
                epoch = record["update"] // self.plan.updates_per_epoch
                self.log(step=record["update"] + 1, epoch=epoch, **losses, lr=record["lr"])
        if not check_only:
            self.unread.clear()
