"""Run a grid: skip what is finished, schedule the rest, and keep ``sweep.json`` true after every run.

OUT/sweep.json      comparisons, and for each run its parameters, status, seconds and how it failed
OUT/runs/NAME/      the folder of each run (see hpdval.notebook_runner)
OUT/logs/NAME.log   what its notebook printed
OUT/shared/         zero-shot and stage 1 that several runs share
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from hpdval.comparisons import SWEEP
from hpdval.errors import HpdvalError, RunError
from hpdval.files import read_sealed, resolved, write_sealed
from hpdval.notebook_runner import PLACES, RECORD, is_done, run_notebook
from hpdval.progress import progress
from hpdval.stopping import terminated_as_interrupted
from hpdval.sweep.cluster import MEMORY_GIB, Cluster, open_cluster, worker_number
from hpdval.sweep.grid import read_grid
from hpdval.sweep.plan import Job, Plan, make_plan

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_ONE_AT_A_TIME = threading.Lock()
LOCK_WAIT = 3600  # seconds a run waits for another one's stage 1, or for what a dead worker left to end


def sweep(
    notebook: str | os.PathLike[str],
    grid: str | os.PathLike[str],
    *,
    seeds: int = 3,
    out: str | os.PathLike[str],
    parameters: Mapping[str, Any] | None = None,
    only: tuple[str, ...] = (),
    scheduler: str | None = None,
    workers: int | None = None,
    retries: int = 3,
    memory: float = MEMORY_GIB,
    timeout: float | None = None,
    command: str = "",
    dry_run: bool = False,
    show: bool = True,
) -> Path:
    """Run a notebook over a grid with seeds 0, 1, ... and return the folder, which ``hpdval report`` reads.

    Runs that are finished (same notebook, parameters, data, weights and code) are skipped.  Interrupted, the same call
    continues.

    Args:
        grid: a YAML file, or the name of one of this project's (``ablations``).
        only: names of comparisons; empty for all.
        scheduler: the address of a running dask scheduler whose workers see the same files; None works here.
        workers, retries, memory: see :func:`hpdval.sweep.cluster.open_cluster`.
        timeout: seconds for one run.
        command: what the reader can type to repeat this.
        dry_run: print what would be done, and do nothing.

    Raises:
        ConfigError: a grid or a parameter that cannot be used; nothing was started.
        RunError: some runs failed: the others are finished, and each failure was printed.
    """
    folder = resolved(out)
    plan = make_plan(notebook, read_grid(grid, only), seeds=seeds, parameters=parameters, shared=folder / "shared")
    todo = [name for name, job in plan.jobs.items() if not is_done(plan.notebook, job.values, folder / "runs" / name)]
    if dry_run:
        print(describe(plan, todo))
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    common = {"notebook": str(plan.notebook), "folder": str(folder), "cwd": os.getcwd(), "timeout": timeout}
    try:
        with FileLock(folder / "sweep.lock", timeout=0):
            record = _Record(folder, plan, todo, command)
            if todo:
                opened = open_cluster(scheduler, workers=workers, retries=retries, memory=memory)
                _run(plan, todo, record, opened, common, show)
    except Timeout:
        raise RunError(f"{folder} is in use by another sweep; wait for it or choose another folder") from None
    failed = [name for name, run in record.runs.items() if run["status"] != "done"]
    print(f"{len(plan.jobs) - len(failed)} of {len(plan.jobs)} runs are done in {folder}", flush=True)
    if failed:
        print("\n".join(record.failures(failed)), flush=True)
        raise RunError(f"{len(failed)} of {len(plan.jobs)} runs failed; the same command tries them again")
    return folder


def _run(
    plan: Plan,
    todo: list[str],
    record: _Record,
    opened: AbstractContextManager[Cluster],
    common: Mapping[str, Any],
    show: bool,
) -> None:
    """Run the jobs named in ``todo`` on the cluster that ``opened`` gives; ``common`` is what all of them are told."""
    jobs = {name: {**common, "name": name, "values": dict(plan.jobs[name].values)} for name in todo}
    needs = {name: plan.jobs[name].needs for name in todo}
    with terminated_as_interrupted(), opened as cluster:
        print(f"{len(todo)} of {len(plan.jobs)} runs to do; workers: {cluster.place}; dashboard: {cluster.dashboard}")
        for name, outcome in progress(cluster.run(jobs, needs, run_job), "runs", total=len(todo), show=show):
            target = Path(common["folder"]) / "runs" / name
            if outcome["status"] == "done" and not is_done(plan.notebook, plan.jobs[name].values, target):
                why = "its worker says it is done, but not by this code or not in this folder; update the worker"
                outcome = {**outcome, "status": "failed", "error": why}
            record.ended(name, outcome)


def run_job(job: Mapping[str, Any], gpus: int, threads: int | None) -> dict[str, Any]:
    """Run one job on the worker this is called on, and return how it ended; what goes wrong is an outcome, too."""
    with _ONE_AT_A_TIME:  # a worker of several threads has one folder, one environment and one standard error
        return _run_job(job, gpus, threads)


def _run_job(job: Mapping[str, Any], gpus: int, threads: int | None) -> dict[str, Any]:
    os.chdir(job["cwd"])
    folder, name = Path(job["folder"]), job["name"]
    os.environ["HPDVAL_LOCK_WAIT"] = str(LOCK_WAIT)
    # dask's workers ask for their memory back at once; in training this costs a third of the time in page faults
    os.environ.pop("MALLOC_TRIM_THRESHOLD_", None)
    if threads:
        os.environ |= dict.fromkeys(THREADS, str(threads))
    if gpus > 1:  # dask gives a GPU to one run at a time; which one goes by the worker
        visible = os.environ.get("HPDVAL_GPUS") or os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["HPDVAL_GPUS"] = visible = visible or ",".join(map(str, range(gpus)))
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[worker_number() % gpus]
    started, target = time.monotonic(), folder / "runs" / name
    (folder / "logs").mkdir(exist_ok=True)
    problem: dict[str, Any] = {}
    with open(folder / "logs" / f"{name}.log", "a", encoding="utf-8") as log, _all_output_to(log):
        try:
            run_notebook(job["notebook"], job["values"], target, timeout=job["timeout"], replace_stale=True)
        except HpdvalError as error:
            problem = {"status": "failed", "error": str(error)}
            print(error, flush=True)
    if problem:
        with suppress(HpdvalError):  # how it failed, if it came as far as to say so
            found = {key: read_sealed(target / RECORD).get(key) for key in ("status", "error", "cell", "traceback")}
            if found["status"] in ("failed", "killed", "stopped"):
                problem |= {key: value for key, value in found.items() if value}
    return {"status": "done", **problem, "seconds": round(time.monotonic() - started, 1)}


@contextmanager
def _all_output_to(log: IO[str]) -> Iterator[None]:
    """Send what this process prints there, and what processes that it starts write to standard error."""
    kept = os.dup(2)
    os.dup2(log.fileno(), 2)
    try:
        with redirect_stdout(log):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class _Record:
    """``sweep.json``, written anew after every run."""

    def __init__(self, folder: Path, plan: Plan, todo: list[str], command: str) -> None:
        self.folder, self.plan, self.command = folder, plan, command
        self.runs = {name: self._entry(job, name in todo) for name, job in plan.jobs.items()}
        self.write()

    def _entry(self, job: Job, open_still: bool) -> dict[str, Any]:
        values = {name: value for name, value in job.values.items() if name not in PLACES}
        own = {"seed": job.seed, "values": values, "needs": job.needs}
        if open_still:
            return {**own, "status": "pending", "seconds": None}
        record = read_sealed(self.folder / "runs" / job.name / RECORD)
        return {**own, "status": "done", "seconds": record.get("seconds")}

    def ended(self, name: str, outcome: Mapping[str, Any]) -> None:
        """Note how a run ended."""
        self.runs[name] |= outcome
        self.write()

    def write(self) -> None:
        """Write the file; it names runs and files below its own folder only, so the folder can be moved."""
        plan = self.plan
        about = {"title": plan.title, "command": self.command, "notebook": plan.notebook.name}
        counted = {"seeds": list(plan.seeds), "comparisons": list(plan.comparisons), "runs": self.runs}
        write_sealed(self.folder / SWEEP, {**about, **counted})

    def failures(self, names: list[str]) -> list[str]:
        """Return the lines that describe failed runs: what each was, the cell, the end of the traceback."""
        lines = []
        for name in names:
            run = self.runs[name]
            cell = f" in cell {run['cell']}" if run.get("cell") else ""
            lines.append(f"{name} ({_settings(self.plan, name)}): {run['status']}{cell}: {run.get('error', '')}")
            lines += [f"    {line}" for line in run.get("traceback") or []]
        return lines


def _settings(plan: Plan, name: str) -> str:
    """Say for which settings a run is: ``alpha: 0.2; loss: bce``."""
    found = [
        f"{comparison['name']}: {cell['label']}"
        for comparison in plan.comparisons
        for cell in comparison["cells"]
        if name in cell["runs"].values()
    ]
    return "; ".join(found)


def describe(plan: Plan, todo: list[str]) -> str:
    """Return what a sweep would do: each run with its settings, whether it is done, and whose stage 1 it takes."""
    lines = [f"{plan.title}: {plan.notebook.stem}, seeds {', '.join(map(str, plan.seeds))}"]
    for name, job in plan.jobs.items():
        state = "to do" if name in todo else "done "
        shares = f"  (stage 1 of {job.needs})" if job.needs else ""
        lines.append(f"  {state}  {name}  {_settings(plan, name)}{shares}")
    shared = sum(job.needs is not None for job in plan.jobs.values())
    lines.append(f"{len(plan.jobs)} runs, {shared} on a stage 1 that another one makes; {len(todo)} to do")
    return "\n".join(lines)
