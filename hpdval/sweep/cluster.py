"""Many runs on many workers: the one module that knows dask.distributed, an optional extra (``hpdval[sweep]``)."""

from __future__ import annotations

import logging
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any
from uuid import uuid4

from hpdval.errors import ConfigError, RunError

GIB = 2**30
MEMORY_GIB = 3.0  # of one run of a small model: kernel, torch and data
LOST_SECONDS = 60  # a worker whose scheduler is gone ends after so long, and its run with it
POLL_SECONDS = 2.0
Outcome = dict[str, Any]


class Cluster:
    """Workers that run one job at a time each: some on this machine, or those of a scheduler elsewhere."""

    def __init__(self, client: Any, place: str, *, gpus: int | None, threads: int | None) -> None:
        self.client, self.place = client, place
        self.gpus = gpus  # on this machine; with any, each job is given one; None: what workers elsewhere offer
        self.threads = threads  # for one job; None leaves it to the worker's environment
        self.name = uuid4().hex  # other sweeps on the same scheduler have jobs of the same names

    @property
    def dashboard(self) -> str:
        """The address of the page that shows workers and jobs, or why there is none."""
        link = self.client.dashboard_link
        return str(link) if link and find_spec("bokeh") else "none (pip install bokeh)"

    def run(
        self, jobs: Mapping[str, Any], needs: Mapping[str, str | None], call: Callable[[Any, int, int | None], Outcome]
    ) -> Iterator[tuple[str, Outcome]]:
        """Yield the outcome of ``call(job, gpus, threads)`` for each job as it ends; it starts after the one it needs.

        A job whose worker dies is given to another one; one that took too many workers with it ends as ``killed``.
        The one that is needed may have failed: who needs it finds that out.
        """
        from distributed import KilledWorker, TimeoutError, wait

        ready = deque(name for name in jobs if needs.get(name) not in jobs)
        waiting: dict[str, list[str]] = {}
        for name in jobs:
            if (first := needs.get(name)) in jobs and first is not None:
                waiting.setdefault(first, []).append(name)
        running: dict[Any, str] = {}
        while ready or running:
            while ready and len(running) < self._slots():
                name = ready.popleft()
                resources = {"GPU": 1} if self._gives_gpus() else {}
                given = (jobs[name], self.gpus or 0, self.threads)
                future = self.client.submit(call, *given, key=f"hpdval-{self.name}-{name}", resources=resources)
                running[future] = name
            try:
                done = wait(list(running), timeout=POLL_SECONDS, return_when="FIRST_COMPLETED").done
            except TimeoutError:
                continue  # workers may have come meanwhile
            ended: dict[str, Outcome] = {}
            for future in done:
                name = running.pop(future)
                ready.extendleft(reversed(waiting.pop(name, [])))
                try:
                    ended[name] = future.result()
                except KilledWorker:
                    why = "its worker died, and again when it was tried on others"
                    ended[name] = {"status": "killed", "error": why}
                except Exception as error:  # of dask or of our own code on the worker: one job, not the sweep
                    why = " ".join(f"{type(error).__name__}: {error}".split())
                    ended[name] = {"status": "failed", "error": why}
                future.release()  # a result that is still asked for is made again where the worker that holds it dies
            yield from ended.items()

    def _slots(self) -> int:
        """How many jobs may be with the workers: one each, and one that waits, so that none is ever idle."""
        return 2 * max(1, len(self._workers()))

    def _gives_gpus(self) -> bool:
        return (
            any("GPU" in one["resources"] for one in self._workers().values()) if self.gpus is None else self.gpus > 0
        )

    def _workers(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.client.scheduler_info(n_workers=-1)["workers"]
        return found


@contextmanager
def open_cluster(scheduler: str | None, *, workers: int | None, retries: int, memory: float) -> Iterator[Cluster]:
    """Give a cluster: the one behind ``scheduler`` (``tcp://host:port``), or workers on this machine that end with us.

    Args:
        workers: on this machine; None for one on each GPU, or without any as many as cores and memory allow.
        retries: how often a job may lose its worker.
        memory: what one job needs, in GiB.

    Raises:
        ConfigError: the extra is not installed, or more workers than GPUs.
        RunError: no scheduler answers there.
    """
    if not find_spec("distributed"):
        raise ConfigError("sweeps need dask.distributed; run: pip install 'hpdval[sweep]'")
    import dask
    from distributed import Client

    if scheduler is not None:
        try:
            client = Client(scheduler, timeout="20s")
        except (OSError, ValueError) as error:
            raise RunError(f"no scheduler answers at {scheduler}: {' '.join(str(error).split())}") from None
        with client:
            print(f"waiting for a worker of {scheduler}", flush=True)
            client.wait_for_workers(1)
            yield Cluster(client, scheduler, gpus=None, threads=None)
        return

    from distributed import LocalCluster

    gpus = visible_gpus()
    count = workers or (gpus or workers_that_fit(memory))
    if gpus and count > gpus:
        raise ConfigError(f"{count} workers for {gpus} GPUs; one run at a time is given a GPU: at most {gpus}")
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, cores() // count))
    settings = {
        "distributed.scheduler.allowed-failures": retries,
        "distributed.worker.daemon": False,
        "distributed.nanny.pre-spawn-environ": {},  # would be put into our own environment, too; see run_job
    }
    with (
        tempfile.TemporaryDirectory(prefix="hpdval-dask-") as scratch,
        dask.config.set(settings),
        LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            processes=True,
            memory_limit=0,  # jobs run in processes of their own, which it does not see
            resources={"GPU": 1} if gpus else None,
            dashboard_address="127.0.0.1:0" if find_spec("bokeh") else None,
            local_directory=scratch,
            death_timeout=LOST_SECONDS,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield Cluster(client, f"{count} on this machine, {threads} thread(s) each", gpus=gpus, threads=threads)


def worker_number() -> int:
    """Return the number of the worker this job runs on, from 0; another worker's name counts as 0."""
    from distributed import get_worker

    name = str(get_worker().name)
    return int(name) if name.isdigit() else 0


def visible_gpus() -> int:
    """Return how many CUDA devices this process may use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def workers_that_fit(memory: float) -> int:
    """Return how many jobs of ``memory`` GiB fit beside each other on this machine, at most one for each core."""
    from distributed.system import MEMORY_LIMIT

    return max(1, min(cores(), int(MEMORY_LIMIT / (memory * GIB))))


def cores() -> int:
    """Return the cores this process may use, as its control group and affinity allow."""
    from dask.system import CPU_COUNT

    return int(CPU_COUNT)
