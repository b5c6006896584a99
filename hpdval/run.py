"""One run, one folder: locked while in use, resumable, and done only when its manifest, written last, says so.

run.json            what was started (key, configuration), written first
data.json           how its data set was loaded, where ``load_dataset`` did it; not in the key
metrics.jsonl       one JSON object a line, each with its seal, as training goes
checkpoint*.safetensors, model.safetensors, model.json
predictions.npz     ids, scores, targets, classes
result.json         the result that tables and reports read
manifest.json       written last: status, code, packages, hardware, seeds, wall time, hash of every file

``run.json`` and ``manifest.json`` are sealed (``files.sealed``): nothing in a finished folder changes unnoticed.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from filelock import FileLock, Timeout

import hpdval
from hpdval.errors import RunError, one_line
from hpdval.files import (
    LOCK_SECONDS,
    atomic_write,
    check_form,
    digest,
    not_written,
    read_sealed,
    resolved,
    sha256_file,
    write_json,
    write_sealed,
)
from hpdval.provenance import code_state, hardware, packages
from hpdval.records import (
    MANIFEST,
    METRICS,
    RESULT,
    altered,
    chained,
    metrics_line,
    read_back,
    read_lines,
    read_manifest,
)
from hpdval.records import read_metrics as read_metrics
from hpdval.records import read_predictions as read_predictions
from hpdval.records import read_result as read_result
from hpdval.stopping import REQUEST, forget_request, listen, stop_listening

# what the notebook runner and `hpdval train` still write or hold when the manifest is written
NOT_LISTED = {
    *("run.lock", "manifest.json", REQUEST),
    *("notebook.json", "notebook.lock", "process.lock", "partial.ipynb", "executed.ipynb"),
    *("train.json", "train.lock", "train.log"),
}

_OPEN: WeakValueDictionary[Path, Run] = WeakValueDictionary()  # the runs this process holds


def run_key(kind: str, config: Mapping[str, Any], inputs: Mapping[str, Any]) -> str:
    """Return the digest that tells runs apart: what is run, how, on what, and by which version."""
    return digest(kind, config, inputs, hpdval.__version__)


class Run:
    """A folder that one process at a time may write; who comes second waits ``HPDVAL_LOCK_WAIT`` seconds, or hardly.

    ``config`` and ``inputs`` (data and weight digests) make the key: the same key resumes or is already done, another
    key in the same folder is refused.  Use it as a context manager, or call :meth:`finish` or :meth:`close`.

    Raises:
        RunError: the folder is in use by another process, or holds a run with another key.
    """

    writes = True  # of several processes that train together, the first one's alone

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        kind: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = resolved(folder)
        self.kind = kind
        # through JSON once, so that what is compared and stored is what a later process will read
        self.config = json.loads(json.dumps(dict(config), default=str))
        self.inputs = json.loads(json.dumps(dict(inputs or {}), default=str))
        check_form(self.config, MANIFEST["config"], "config", given=True)
        self.key = run_key(kind, self.config, self.inputs)
        self._began = time.time()
        self._open()

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if earlier := _OPEN.get(self.folder):  # a notebook cell that is run again takes its folder over
            earlier.close()
        self._lock = FileLock(self.folder / "run.lock")
        try:
            # the operating system frees it when a process dies, so no lock goes stale
            self._lock.acquire(timeout=float(os.environ.get("HPDVAL_LOCK_WAIT") or LOCK_SECONDS))
        except Timeout:
            raise RunError(
                f"{self.folder} is in use by another process; wait for it or choose another folder"
            ) from None
        try:
            self._claim()
        except BaseException:
            self._lock.release()
            raise
        _OPEN[self.folder] = self
        listen(self.folder, self)

    def _claim(self) -> None:
        forget_request(self.folder)
        for stale in self.folder.glob(".*.tmp"):
            stale.unlink(missing_ok=True)
        start, manifest = self.path("run.json"), self.path("manifest.json")
        if start.exists() or manifest.exists():
            old = read_sealed(start if start.exists() else manifest)
            if old.get("key") != self.key:
                raise RunError(
                    f"{self.folder} holds another run ({_difference(old, self.describe())}); "
                    "choose another folder or delete it"
                )
            if not manifest.exists():
                write_sealed(start, {**{n: v for n, v in old.items() if n != "ended"}, "opened": self._began})
        else:
            write_sealed(start, {**self.describe(), "started": self._began})

    def describe(self) -> dict[str, Any]:
        """Return what the key is made of."""
        return {
            "key": self.key,
            "kind": self.kind,
            "version": hpdval.__version__,
            "config": self.config,
            "inputs": self.inputs,
        }

    def path(self, name: str) -> Path:
        """Return the path of a file of this run."""
        return self.folder / name

    @property
    def finished(self) -> bool:
        """Whether the manifest of this very run says it is done."""
        if not self.path("manifest.json").exists():
            return False
        manifest = read_manifest(self.folder)
        return manifest.get("key") == self.key and manifest["status"] == "done"

    # -- metrics ---------------------------------------------------------------------------------------------------

    def log(self, **record: Any) -> None:
        """Append one record to ``metrics.jsonl``, where another process can read it at once.

        Raises:
            ConfigError: a name of :data:`hpdval.records.METRICS`, such as ``epoch`` or ``loss``, has another type.
        """
        line, path = metrics_line(record), self.path("metrics.jsonl")
        check_form(json.loads(line), METRICS, "a record of metrics", given=True)  # as it will be read
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise not_written(path, path, error) from error

    def metrics(self) -> list[dict[str, Any]]:
        """Return all records; a last line cut off by a crash is left out."""
        return read_lines(self.path("metrics.jsonl"))

    def keep_metrics(self) -> None:
        """Have the disk hold all records before a checkpoint counts on them, whatever the power does."""
        if self.path("metrics.jsonl").exists():
            with open(self.path("metrics.jsonl"), "a", encoding="utf-8") as file:
                os.fsync(file.fileno())

    def forget_metrics(self, stage: str, after_step: int, expected: str | None = None) -> str:
        """Drop records of ``stage`` later than ``after_step``, and closing ones: what a resumed run will repeat.

        Returns the chain (:func:`hpdval.records.chained`) of those of ``stage`` that are left.

        Raises:
            RunError: that is not ``expected``.
        """
        kept = [r for r in self.metrics() if r.get("stage") != stage or r.get("step", math.inf) <= after_step]
        chain = chained("", *(record for record in kept if record.get("stage") == stage))
        if expected not in (None, chain):
            raise RunError(
                f"{self.path('metrics.jsonl')} does not hold what was logged up to update {after_step} of {stage}; "
                f"restore it, or delete {self.folder} to start again"
            )
        with atomic_write(self.path("metrics.jsonl"), "w") as file:
            file.writelines(map(metrics_line, kept))
        return chain

    # -- results ---------------------------------------------------------------------------------------------------

    def save_predictions(self, ids: Any, scores: np.ndarray, targets: np.ndarray, classes: Any) -> Path:
        """Write scores (N, C) float32 and targets (N, C) uint8 with their ids and classes to ``predictions.npz``."""
        path = self.path("predictions.npz")
        with atomic_write(path) as file:
            np.savez_compressed(
                file,
                ids=np.asarray(list(ids), dtype=np.str_),
                scores=np.asarray(scores, dtype=np.float32),
                targets=np.asarray(targets, dtype=np.uint8),
                classes=np.asarray(list(classes), dtype=np.str_),
            )
        return path

    def finish(self, result: Mapping[str, Any] | None = None) -> None:
        """Write ``result.json``, then the manifest, then release the folder.

        A run that was finished before keeps its record (code, times); only the hashes of its files are taken anew.

        Raises:
            ConfigError: a name of :data:`hpdval.records.RESULT`, such as ``total`` or ``classes``, has another type.
        """
        if result is not None:
            check_form(json.loads(json.dumps(dict(result), default=str)), RESULT, "result", given=True)
            write_json(self.path("result.json"), dict(result))
        before = read_manifest(self.folder) if self.finished else {}
        manifest = self._manifest()
        for name, known in before.get("files", {}).items():
            changed = read_back(name) and manifest["files"].get(name, known) != known
            if changed and self.path(name).stat().st_mtime < self._began - 1:  # not by whoever holds this run
                raise altered(self.path(name))
        write_sealed(self.path("manifest.json"), {**manifest, **before, "files": manifest["files"]})
        self.close()

    def _manifest(self) -> dict[str, Any]:
        started = read_sealed(self.path("run.json")).get("started", self._began)
        files = sorted(p for p in self.folder.rglob("*") if p.is_file() and p.name not in NOT_LISTED)
        return {
            "status": "done",
            **self.describe(),
            "code": code_state(),
            "packages": packages(),
            "python": platform.python_version(),
            "hardware": hardware(),
            "started": started,
            "finished": time.time(),
            "wall_seconds": self._elapsed(),
            "files": {str(p.relative_to(self.folder)): sha256_file(p) for p in files if not p.name.endswith(".tmp")},
        }

    def close(self, error: BaseException | None = None) -> None:
        """Release the folder; an unfinished run stays resumable, and keeps the line of the ``error`` that ended it."""
        if self._lock.is_locked and not self.path("manifest.json").exists():
            start = {**read_sealed(self.path("run.json")), "elapsed": self._elapsed()}
            ended = {} if error is None else {"ended": one_line(error)}
            write_sealed(self.path("run.json"), {**start, **ended})
        stop_listening(self.folder, self)
        self._lock.release()

    def _elapsed(self) -> float:
        """Seconds of this and of earlier attempts; what a killed process took is not known."""
        return round(float(read_sealed(self.path("run.json")).get("elapsed", 0.0)) + time.time() - self._began, 3)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(value)


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Name the first few leaves in which two descriptions differ."""

    def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
        if not isinstance(value, Mapping):
            return {prefix: value}
        return {k: v for name, inner in value.items() for k, v in leaves(inner, f"{prefix}.{name}".lstrip(".")).items()}

    before, after = leaves({name: old.get(name) for name in new}), leaves(new)  # times are not compared
    changed = [n for n in sorted({*before, *after} - {"key"}) if before.get(n) != after.get(n)]
    return (
        "; ".join(f"{n}: {before.get(n)!r} there, {after.get(n)!r} here" for n in changed[:3])
        or "its record is damaged"
    )
