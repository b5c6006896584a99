"""Several processes that train or score as one: ``torchrun`` starts them, DistributedDataParallel joins them.

Each process has a share of the images; scores are gathered, so that every process computes the same loss on the whole
batch, and the mean of their gradients is the gradient of one process.  The first process alone writes to a run; in a
single process every function here returns what it was given.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hpdval.errors import ConfigError, HpdvalError, RunError
from hpdval.run import Run
from hpdval.stopping import take_request

TIMEOUT = timedelta(hours=1)  # how long processes wait for one that decodes images or writes a checkpoint


def join(device: str = "auto") -> None:
    """Join the processes that ``torchrun`` started with this one: NCCL between GPUs, one for each process, else gloo.

    Raises:
        ConfigError: a device with a number, or more processes on this machine than GPUs.
    """
    if not dist.is_torchelastic_launched() or dist.is_initialized() or int(os.environ["WORLD_SIZE"]) == 1:
        return
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device is {device!r} under torchrun; use 'auto', 'cpu' or 'cuda': each process takes a GPU")
    cuda = torch.cuda.is_available() and device != "cpu"
    if cuda:
        own, found = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if own >= found:
            raise ConfigError(
                f"process {own + 1} of torchrun is one too many for {found} GPU(s); use --nproc-per-node {found}"
            )
        torch.cuda.set_device(own)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=TIMEOUT)
    atexit.register(leave)


def leave() -> None:
    """Leave the other processes; this happens by itself when a process ends."""
    if dist.is_initialized():
        gc.collect()  # what a caught error still holds would end after its group, which aborts the process
        dist.destroy_process_group()


def size() -> int:
    """Return how many processes work together: 1, unless :func:`join` joined several."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return which of them this is, from 0 on."""
    return dist.get_rank() if dist.is_initialized() else 0


# -- shares of a batch or a split ----------------------------------------------------------------------------------


def share(n: int) -> slice:
    """Return which of n rows this process computes: ceil(n / size), fewer at the end.

    A process for which none is left takes the last row, too, which :func:`gather` leaves out: a model needs an input.

    >>> share(5)
    slice(0, 5, None)
    """
    each = -(-n // size())
    first = max(0, min(rank() * each, n - 1))
    return slice(first, min(first + each, n))


def gather(rows: Tensor, n: int) -> Tensor:
    """Return the n rows of all processes, of each one's :func:`share`, on every process; gradients flow back.

    A loss of these rows must be the same on all processes.  What flows back is ``size`` times its gradient, so that
    the mean which DistributedDataParallel takes is the gradient of a single process.
    """
    return rows if size() == 1 or n == 0 else _Gather.apply(rows, n)  # type: ignore[no-untyped-call, no-any-return]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, n: int) -> Tensor:
        each = -(-n // size())
        ctx.first, ctx.shape = rank() * each, rows.shape
        padded = rows.new_zeros((each, *rows.shape[1:]))
        padded[: len(rows)] = rows
        whole = rows.new_empty((each * size(), *rows.shape[1:]))
        dist.all_gather_into_tensor(whole, padded)
        return whole[:n]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        own = gradients[0].new_zeros(ctx.shape)
        part = gradients[0][ctx.first : ctx.first + len(own)]
        own[: len(part)] = part * size()
        return own, None


def parallel(module: nn.Module) -> nn.Module:
    """Return ``module`` with the gradients of all processes averaged, and the first one's weights in all of them."""
    return module if size() == 1 else DistributedDataParallel(module)


def accumulating(module: nn.Module) -> AbstractContextManager[None]:
    """Return the context of all micro-batches of an update but the last: gradients add up, unaveraged."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


# -- what all processes agree on -----------------------------------------------------------------------------------


def everyones(value: Any) -> list[Any]:
    """Return the JSON-able values of all processes by rank; it waits for all of them.

    >>> everyones("here")
    ['here']
    """
    if size() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = torch.empty(size(), dtype=torch.int64)
    dist.all_gather_into_tensor(lengths, torch.tensor([len(text)]))
    padded = torch.zeros(int(lengths.max()), dtype=torch.uint8)
    padded[: len(text)] = torch.from_numpy(text.copy())
    whole = torch.empty(size() * len(padded), dtype=torch.uint8)
    dist.all_gather_into_tensor(whole, padded)
    parts = whole.view(size(), -1).numpy()
    return [json.loads(part[:length].tobytes()) for part, length in zip(parts, lengths.tolist(), strict=True)]


def largest(value: int) -> int:
    """Return the largest value of any process: one message between CPUs, which waits for no GPU."""
    if size() == 1:
        return value
    found = torch.tensor(value)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def asked_to_stop() -> bool:
    """Return whether a stop was asked for where the first process holds a folder, on all processes alike."""
    return bool(largest(int(rank() == 0 and take_request())))


@contextmanager
def same_error() -> Iterator[None]:
    """Raise on every process what the block raised on purpose on one of them; they wait for each other at its end."""
    problem: HpdvalError | None = None
    try:
        yield
    except HpdvalError as error:
        problem = error
    texts = everyones(str(problem) if problem else "")
    if problem:
        raise problem
    for number, text in enumerate(texts):
        if text:
            raise RunError(f"{text} (process {number})")


# -- one run, held by the first process ----------------------------------------------------------------------------


class FollowedRun(Run):
    """A run as the other processes see it: the same key and paths, and nothing is locked or written."""

    writes = False
    done = False

    def _open(self) -> None:
        pass

    @property
    def finished(self) -> bool:
        """What the first process found when it opened the run."""
        return self.done

    def log(self, **record: Any) -> None:
        """Leave it to the first process."""

    def keep_metrics(self) -> None:
        """Leave it to the first process."""

    def forget_metrics(self, stage: str, after_step: int, expected: str | None = None) -> str:
        """Leave it to the first process."""
        return ""

    def finish(self, result: Mapping[str, Any] | None = None) -> None:
        """Leave it to the first process."""
        self.done = True

    def close(self, error: BaseException | None = None) -> None:
        """Hold nothing."""


def follow(run: Run) -> Run:
    """Return ``run`` once all processes have it, and know whether the first one found it finished."""
    finished = everyones(run.finished)[0]
    if isinstance(run, FollowedRun):
        run.done = finished
    return run
