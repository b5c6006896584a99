"""What a run left in its folder, read and checked: metrics, manifest, predictions, result; see :mod:`hpdval.run`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from hpdval.errors import RunError, shown
from hpdval.files import check_form, digest, read_json, read_sealed, sealed, sha256_file, unsealed

PREDICTIONS = ("ids", "scores", "targets", "classes")
MANIFEST: Any = {
    "status": str,
    "key": str,
    "kind": str,
    "config": {
        "name?": str,
        "seed?": int,
        "stage1?": {"student?": str},
        "rival?": ({"backbone?": (str, None), "weights?": (str, None)}, None),
    },
    "inputs": dict,
    "files": {...: str},
    "code": {"version": str, "commit": (str, None), "dirty": (bool, None)},
    "packages": {...: (str, None)},
    "hardware": {"machine": str, "cuda": (str, None)},
    "finished": float,
    "wall_seconds": float,
}
RESULT: Any = {
    **{f"{name}?": str for name in ("method", "recipe", "protocol", "readout", "selection")},
    **{f"{name}?": (float, None) for name in ("total", "head", "medium", "tail", "variance", "chance_total")},  # NaN
    **{f"{name}?": [(float, None)] for name in ("per_class", "chance")},
    **{f"{name}?": int for name in ("seed", "n_images", "episodes")},
    **{f"{name}?": [str] for name in ("excluded_names", "notes")},
    "classes?": ([str], None),
    "class_counts?": [float],
    "excluded?": [int],
    "folders?": {...: str},
    "trained?": {...: {"parameters": int, "seconds": float}},
}
METRICS: Any = {  # of a line that has these; other names may be anything
    "stage?": str,
    **{f"{name}?": int for name in ("step", "epoch")},
    **{f"{name}?": float for name in ("cls", "kd", "sc", "cse", "loss", "lr", "val_map", "test_map")},
}


def read_metrics(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the records of ``metrics.jsonl`` in ``folder``; a last line cut off by a crash is left out.

    Raises:
        RunError: a line is not what was logged, or the file not the one of the manifest, where there is one; the
            message names it.
    """
    name = "metrics.jsonl"
    if os.path.exists(Path(folder) / "manifest.json") and name in read_manifest(folder)["files"]:
        return read_lines(checked_file(folder, name))
    return read_lines(Path(folder) / name)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records in a file as :func:`metrics_line` made them; none where there is no file."""
    if not os.path.exists(path):
        return []
    *lines, cut = path.read_text(encoding="utf-8", errors="replace").split("\n")
    records = [metrics_record(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]
    with suppress(RunError):  # what a crash cut off has no end of line
        records += [metrics_record(cut, path)] if cut else []
    return records


def metrics_record(line: str | bytes, where: object) -> dict[str, Any]:
    """Return the record in a line of ``metrics.jsonl``.

    Args:
        where: names the line in the error.

    Raises:
        RunError: the line is no JSON object, or not what was logged.
    """
    try:
        record = unsealed(json.loads(line), where)
    except (ValueError, RecursionError):
        raise RunError(f"{where} is not JSON; the file is damaged") from None
    check_form(record, METRICS, str(where))
    return record


def metrics_line(record: Mapping[str, Any]) -> str:
    """Return the line of a record, with its seal."""
    return json.dumps(sealed(record), allow_nan=False) + "\n"


def chained(chain: str, *records: Mapping[str, Any]) -> str:
    """Return the digest of ``chain`` and records after it: it tells whether any was lost, changed or exchanged.

    >>> chained(chained("", {"step": 1}), {"step": 2}) == chained("", {"step": 1}, {"step": 2})
    True
    """
    for record in records:
        chain = digest(chain, record)
    return chain


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the manifest of a finished run.

    Raises:
        RunError: there is no manifest: the run did not finish; the message says how to go on.  Or it is damaged.
    """
    path = Path(folder) / "manifest.json"
    if not os.path.exists(path):
        what = "is not a finished run" if os.path.exists(path.parent / "run.json") else "is not a run folder"
        raise RunError(f"{path.parent} {what} (no manifest.json); run the same command again to finish it")
    manifest = read_sealed(path)
    check_form(manifest, MANIFEST, str(path))
    start = path.with_name("run.json")
    if start.exists() and read_sealed(start).get("key") != manifest.get("key"):
        raise RunError(f"{path} is that of another run than run.json; restore it")
    return manifest


def read_predictions(folder: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return ids, scores, targets and classes of a finished run, checked against the manifest's hash.

    Raises:
        RunError: the run is unfinished, has no predictions, or the file was altered or holds other than plain arrays.
    """
    path = checked_file(folder, "predictions.npz")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        shapes = {name: array.shape for name, array in found.items()}  # what is no array is bytes to NumPy
    except Exception as error:  # NumPy and zipfile raise as damaged bytes lead them, and advise to unpickle
        raise RunError(f"{path} was refused: it holds no plain arrays, as another program's or a pickle") from error
    kinds = "".join(found[name].dtype.kind for name in PREDICTIONS if name in found)
    size = (*shapes.get("ids", ()), *shapes.get("classes", ()))
    if kinds != "UfuU" or len(size) != 2 or not shapes["scores"] == shapes["targets"] == size:
        raise RunError(f"{path} holds {shown(shapes)}; predictions are ids (N), scores and targets (N, C), classes (C)")
    return found


def read_result(folder: str | os.PathLike[str], *wanted: str) -> dict[str, Any]:
    """Return the record in ``result.json`` of a finished run, checked against the manifest's hash.

    Args:
        wanted: names that it must have, as runs of a method have them.

    Raises:
        RunError: the run is unfinished, has no such result, or the file was altered.
    """
    record: dict[str, Any] = read_checked(folder, "result.json")
    check_form(record, RESULT, f"{folder}/result.json")
    for name in wanted:
        if name not in record:
            raise RunError(f"{folder}/result.json has no {name!r}; give runs of a method, as score_run finishes them")
    return record


def read_checked(folder: str | os.PathLike[str], name: str) -> Any:
    """Return the content of a JSON file of a finished run, checked against the manifest's hash.

    Raises:
        RunError: as :func:`checked_file`.
    """
    return read_json(checked_file(folder, name))


def checked_file(folder: str | os.PathLike[str], name: str) -> Path:
    """Return the path of a file of a finished run, which is the one that the manifest knows.

    Raises:
        RunError: the run is unfinished, has no such file, or the file was altered.
    """
    files, path = read_manifest(folder)["files"], Path(folder) / name
    if name not in files or not os.path.exists(path):
        raise RunError(f"{folder} has no {name}")
    if sha256_file(path) != files[name]:
        raise altered(path)
    return path


def altered(path: Path) -> RunError:
    """Return the error of a file that is not the one that the manifest knows."""
    return RunError(f"{path} differs from its hash in the manifest; it is damaged or was altered")


def read_back(name: str) -> bool:
    """Whether a file of a run is ever read again; figures and tables are not."""
    return name.endswith((".safetensors", ".npz", ".jsonl", "run.json", "data.json", "clip.json", "cnn.json"))
