"""The process that executes one notebook with papermill: ``python -m hpdval.notebook_process``, started by the runner.

It reads its job as one line of JSON from standard input and then watches that pipe: when it closes, the runner is gone
or gave up, so the kernel and all its children are ended and the run is recorded as killed.  The kernel always runs the
very interpreter that runs this process, whatever kernels are installed, and talks over files in a private folder
instead of TCP ports, so that any number of notebooks can start at once.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from hpdval.files import LOCK_SECONDS, read_json, read_sealed, write_json, write_sealed

GRACE_SECONDS = 10  # a kernel that is told to end may write a checkpoint first
START_ATTEMPTS = 3
PROCESS_LOCK = "process.lock"
LONGEST_SOCKET = 107  # bytes of a path


class Execution:
    """One notebook: its job, its private folder for the kernel, and what has happened so far."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.notebook = Path(job["notebook"])
        self.parameters: dict[str, Any] = job["parameters"]
        self.folder = Path(job["folder"])
        self.timeout: float | None = job["timeout"]
        self.private = Path(job["private"])
        cells = read_json(self.notebook)["cells"]
        self.code_cells = sum(c["cell_type"] == "code" and bool("".join(c["source"]).strip()) for c in cells)
        self.code_cells += bool(self.parameters)  # papermill adds a cell with the parameters
        self.started = self.finished = 0
        self.ending, self.resting = threading.Event(), threading.Event()

    def watch(self) -> None:
        """Wait until the runner is gone or time is up, then end the kernel and this process."""
        timer = threading.Timer(self.timeout, self.end, [f"stopped after {self.timeout:g} s"]) if self.timeout else None
        if timer:
            timer.daemon = True
            timer.start()
        sys.stdin.read()
        self.end("stopped from outside")

    def end(self, reason: str) -> None:
        """End the kernel and everything below it, record the run as killed, and leave."""
        self.ending.set()
        until = time.monotonic() + GRACE_SECONDS
        end_children(GRACE_SECONDS)
        # the main thread may have been about to start a kernel; it rests as soon as it sees that its kernel is gone
        while not self.resting.wait(0.2) and time.monotonic() < until:
            end_children(1)
        self.record(status="killed", cell=self.started, error=reason)
        shutil.rmtree(self.private, ignore_errors=True)
        os._exit(1)

    def record(self, **values: Any) -> None:
        """Add to the runner's record in the run folder."""
        path = self.folder / "notebook.json"
        write_sealed(path, {**read_sealed(path), **values})

    def kernel_environment(self) -> str:
        """Install a kernel for this interpreter in the private folder and return its name."""
        kernel = self.private / "kernels" / "hpdval"
        arguments = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        arguments.append("--HistoryManager.enabled=False")  # a history file would be shared by parallel kernels
        write_json(kernel / "kernel.json", {"argv": arguments, "display_name": "hpdval", "language": "python"})
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [str(self.private), os.environ.get("JUPYTER_PATH")]))
        os.environ["JUPYTER_RUNTIME_DIR"] = str(self.private)
        os.environ["IPYTHONDIR"] = str(self.private / "ipython")
        return "hpdval"

    def on_start(self, cell: Any, cell_index: int) -> None:
        """Say which code cell starts."""
        if cell.cell_type == "code" and cell.source.strip():
            self.started += 1
            print(f"{self.notebook.stem}: cell {self.started} of {self.code_cells}", flush=True)

    def on_executed(self, cell: Any, cell_index: int, execute_reply: Any) -> None:
        """Count the cells whose kernel answered."""
        self.finished += 1

    def execute(self) -> None:
        """Execute with papermill; a kernel that does not start is tried again."""
        import papermill
        from traitlets.config import Config

        # how a run ended is in its record, and is said once, by the runner
        logging.getLogger("papermill").addHandler(logging.NullHandler())
        kernel = self.kernel_environment()
        config = Config()
        socket = self.private / "k-9"
        if sys.platform == "linux" and len(os.fsencode(socket)) <= LONGEST_SOCKET:  # elsewhere there is less room
            config.KernelManager.transport = "ipc"
            config.KernelManager.ip = str(self.private / "k")
        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                papermill.execute_notebook(
                    self.notebook,
                    self.folder / "partial.ipynb",
                    self.parameters,
                    kernel_name=kernel,
                    language="python",
                    cwd=Path.cwd(),
                    progress_bar=False,
                    stdout_file=sys.stdout,
                    start_timeout=60,
                    autosave_cell_every=30,
                    config=config,
                    on_cell_start=self.on_start,
                    on_cell_executed=self.on_executed,
                )
                return
            except RuntimeError:
                if self.started or self.ending.is_set() or attempt == START_ATTEMPTS:
                    raise


def end_children(seconds: float) -> None:
    """End all that this process started, and what those started; after ``seconds`` without asking."""
    import psutil  # comes with ipykernel

    family = psutil.Process().children(recursive=True)
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in psutil.wait_procs(family, timeout=seconds)[1]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def last_lines(traceback: list[str], count: int = 12) -> list[str]:
    """Return the end of a cell's traceback without terminal colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(traceback)).splitlines()[-count:]


def main() -> int:
    """Read the job, execute it, record how it went, and return the exit code."""
    run = Execution(json.loads(sys.stdin.readline()))
    # held until this process ends, which may be a little after its runner: nobody else is at work in the folder then
    lock = FileLock(run.folder / PROCESS_LOCK)
    lock.acquire(timeout=LOCK_SECONDS)
    threading.Thread(target=run.watch, daemon=True).start()
    failure: dict[str, Any] = {}
    try:
        run.execute()
        if run.finished != run.code_cells:
            failure = {"status": "killed", "error": "the kernel died (killed, or out of memory)"}
    except BaseException as error:  # whatever papermill, nbclient or the kernel may raise ends up in the record
        name, text = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
        status = {"DeadKernelError": "killed", "Interrupted": "stopped"}.get(name, "failed")
        failure = {"status": status, "error": " ".join(f"{name}: {text}".split())}
        failure["traceback"] = last_lines(getattr(error, "traceback", []))
        for line in failure["traceback"]:
            print(line, flush=True)
    if run.ending.is_set():
        run.resting.set()
        threading.Event().wait()  # end() is at work in another thread and leaves for us
    if failure:
        run.record(**failure, cell=run.started)
    else:
        run.record(status="executed")
    shutil.rmtree(run.private, ignore_errors=True)
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
