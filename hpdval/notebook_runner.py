"""Run a notebook with checked parameters in a process of its own: ``hpdval run``, and every step of ``hpdval demo``.

A run folder holds, beside what :mod:`hpdval.run` writes there:

    notebook.json       the runner's record: key, parameters, status (running, done, failed, killed or stopped)
    executed.ipynb      the executed copy; ``partial.ipynb`` while it runs, and after a failure

A notebook is done when every cell ran *and* its own last cell wrote ``manifest.json``; the exit code alone is not
believed, because a kernel that was killed can look like one that finished.  Nothing here imports torch or papermill: a
finished notebook is skipped in a fraction of a second.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import hpdval
from hpdval.errors import ConfigError, RunError
from hpdval.files import LOCK_SECONDS, digest, read_json, read_sealed, resolved, sha256_file, write_sealed
from hpdval.notebook_parameters import check_parameters, find_notebook, notebook_parameters
from hpdval.notebook_process import GRACE_SECONDS, PROCESS_LOCK

RECORD, RUNNER_LOCK = "notebook.json", "notebook.lock"
LOCKS = (RUNNER_LOCK, PROCESS_LOCK)
PLACES = ("run_dir", "shared")  # parameters that say where results lie, not what they are
HASHED_BELOW = 64 * 2**20  # bytes
# what says which images have which labels below the root of a prepared data set
LISTS = ("*_lt_*.txt", "*_labels.txt", "VOCdevkit/*/ImageSets/Main/*.txt", "annotations/instances_*.json")


@cache
def package_digest() -> str:
    """Return a digest of the package's code and assets: any change makes a finished notebook stale.

    Grids are left out: they say what is run, and that is in the parameters of each run.
    """
    root = Path(__file__).resolve().parent
    assets = (p for p in root.glob("assets/**/*") if p.is_file() and p.parent.name != "grids")
    files = [*root.rglob("*.py"), *assets]
    return digest(sorted((str(p.relative_to(root)), sha256_file(p)) for p in files))


def notebook_key(notebook: Path, values: Mapping[str, Any]) -> str:
    """Return a digest of sources, parameters, package, and the files and finished runs that parameters point to.

    A parameter points to a file by its path, from here or from the folder of ``dataset``, where a list of classes may
    lie, too.  Of a folder, a finished run's manifest, weights in open_clip's layout and, of ``root``, the lists of a
    prepared data set count; pictures never do.
    """
    cells = [[cell["cell_type"], "".join(cell["source"])] for cell in read_json(notebook)["cells"]]
    values = {name: value for name, value in values.items() if name not in PLACES}
    given = {name: Path(value) for name, value in values.items() if isinstance(value, str) and value}
    source = given.get("dataset", Path())
    folders = [Path(), source if os.path.isdir(source) else source.parent]
    beside = [Path("classes.txt"), Path(f"{source.stem.split('_')[0]}_labels.txt")] if "dataset" in given else []
    pointed = {folder / path for path in (*given.values(), *beside) for folder in folders}
    files = [file for p in sorted(pointed) for file in (p, p / "manifest.json", *sorted(p.glob("open_clip_*")))]
    files += [file for pattern in LISTS if "root" in given for file in sorted(given["root"].glob(pattern))]
    inputs = [_fingerprint(file) for file in files]
    return digest(cells, values, [known for known in inputs if known], hpdval.__version__, package_digest())


def _fingerprint(path: Path) -> str | None:
    """Return what changes with the content of a file: its hash, or size and time where hashing would take long."""
    try:
        if not path.is_file():
            return None
        state = path.stat()
        return sha256_file(path) if state.st_size < HASHED_BELOW else f"{state.st_size} {state.st_mtime_ns}"
    except (OSError, ValueError):  # a text that is no path, or one that we may not read
        return None


def _status(folder: Path) -> dict[str, Any]:
    return read_sealed(folder / RECORD) if (folder / RECORD).exists() else {}


def is_done(notebook: Path, values: Mapping[str, Any], folder: Path) -> bool:
    """Whether ``folder`` holds this very run, finished: same sources, parameters, inputs and code."""
    return _is_done(folder, notebook_key(notebook, values)) and (folder / "executed.ipynb").exists()


def _is_done(folder: Path, key: str) -> bool:
    record, manifest = _status(folder), folder / "manifest.json"
    wanted = record.get("status") == "done" and record.get("key") == key
    return wanted and manifest.exists() and read_sealed(manifest).get("status") == "done"


def run_notebook(
    notebook: str | os.PathLike[str],
    parameters: Mapping[str, Any] | None = None,
    out_dir: str | os.PathLike[str] | None = None,
    *,
    timeout: float | None = None,
    force: bool = False,
    replace_stale: bool = False,
) -> Path:
    """Run a notebook into a folder and return the executed copy; skip it when this very run is already done.

    Args:
        notebook: a path, or a name or number that :func:`find_notebook` knows.
        parameters: values for the notebook's parameters; dotted names go to its recipe.
        out_dir: the run folder, given to the notebook as ``run_dir``; by default ``runs/<notebook>-<key>``.
        timeout: seconds until the run is stopped; None waits.
        force: run again, and throw away what an earlier run of any key left in the folder.
        replace_stale: as ``force``, but only where the folder's run has another key.

    Raises:
        ConfigError: a wrong parameter; nothing was started.
        RunError: the folder is in use or holds another run, or the notebook failed: status, cell and last error line.
    """
    source = find_notebook(notebook)
    values = check_parameters(source, dict(parameters or {}))
    if "run_dir" not in notebook_parameters(source):
        raise ConfigError(f"{source.name} has no parameter run_dir; it needs one to be told where its results go")
    key = notebook_key(source, values)
    folder = resolved(out_dir or Path("runs") / f"{source.stem}-{key[:8]}")
    folder.mkdir(parents=True, exist_ok=True)
    executed = folder / "executed.ipynb"
    if not force and _skipped(source, folder, key):
        return executed
    wait = os.environ.get("HPDVAL_LOCK_WAIT")
    try:
        with FileLock(folder / RUNNER_LOCK, timeout=float(wait or LOCK_SECONDS)):
            with FileLock(folder / PROCESS_LOCK, timeout=float(wait or GRACE_SECONDS + 10)):
                pass  # the process of a runner that died, which ends its kernel and writes its record, has ended
            if force or not _skipped(source, folder, key):  # whoever held the folder may have finished this very run
                _make_room(folder, key, force=force, replace_stale=replace_stale)
                _run(source, {**values, "run_dir": str(folder)}, folder, key, timeout)
    except Timeout:
        raise RunError(f"{folder} is in use by another notebook run; wait for it or choose another folder") from None
    return executed


def _skipped(source: Path, folder: Path, key: str) -> bool:
    done = _is_done(folder, key) and (folder / "executed.ipynb").exists()
    if done:
        print(f"{source.stem}: already done in {_short(folder)}, skipped", flush=True)
    return done


def _make_room(folder: Path, key: str, *, force: bool, replace_stale: bool) -> None:
    old = _status(folder)
    other = bool(old) and old.get("key") != key
    if other and not (force or replace_stale):
        raise RunError(
            f"{folder} holds a run of {old.get('notebook')} with other parameters, sources or code; "
            "choose another --out, or --force to replace it"
        )
    if old:
        (folder / "manifest.json").unlink(missing_ok=True)  # of an attempt that ended badly; this one writes its own
    if force or other:
        if not old and any(p.name not in LOCKS for p in folder.iterdir()):
            raise RunError(f"{folder} holds files that no notebook run made; choose another --out")
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in LOCKS:
                path.unlink()


def _run(source: Path, values: dict[str, Any], folder: Path, key: str, timeout: float | None) -> None:
    started = time.time()
    record = {"notebook": source.name, "key": key, "parameters": values, "status": "running", "started": started}
    write_sealed(folder / RECORD, record)
    manifest = folder / "manifest.json"
    before = _identity(manifest)
    print(f"{source.stem}: running into {_short(folder)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="hpdval-", ignore_cleanup_errors=True) as private:
        job = {"notebook": str(source), "parameters": values, "folder": str(folder), "private": private}
        code = _supervise({**job, "timeout": timeout})
    record = _status(folder) or record
    seconds = round(time.time() - started, 1)
    if code != 0 or record["status"] != "executed":
        if record["status"] not in ("failed", "killed", "stopped"):
            record |= {"status": "killed", "error": f"its process ended with exit code {code}"}
    elif _identity(manifest) in (None, before) or read_sealed(manifest).get("status") != "done":
        record |= {
            "status": "failed",
            "error": "every cell ran but none finished the run (no new manifest.json)",
        }
    else:
        (folder / "partial.ipynb").replace(folder / "executed.ipynb")
        record["status"] = "done"
    write_sealed(folder / RECORD, {**record, "seconds": seconds})
    if record["status"] != "done":
        cell = f" in cell {record['cell']}" if record.get("cell") else ""
        partial = folder / "partial.ipynb"
        where = f"; see {_short(partial)}" if partial.exists() else ""
        raise RunError(f"{source.stem} {record['status']}{cell} after {seconds:.0f} s: {record.get('error')}{where}")
    print(f"{source.stem}: done in {seconds:.0f} s", flush=True)


def _identity(path: Path) -> tuple[int, int] | None:
    """What changes when a file is written anew by an atomic replacement."""
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else None


def _supervise(job: dict[str, Any]) -> int:
    """Run the job in a session of its own; it ends, with its kernel, when this process does, however that is.

    The pipe to its standard input is the lifeline: it closes when we leave this function or die, even by SIGKILL.
    """
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}  # figures belong in cells
    environment["HPDVAL_HEADLESS"] = "1"  # progress as lines
    command = [sys.executable, "-m", "hpdval.notebook_process"]
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(json.dumps(job) + "\n")
        child.stdin.flush()
        for line in child.stdout:
            if line.strip():
                print(f"  {line.rstrip()}", flush=True)
        return child.wait()
    except BrokenPipeError:
        return child.wait()
    finally:
        child.stdin.close()
        try:
            child.wait(timeout=30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
