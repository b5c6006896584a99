"""All runs below some folders as one table, finished or not, from their small JSON files alone; no torch."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpdval.errors import ConfigError, HpdvalError, RunError
from hpdval.files import lock_held, read_json, read_sealed, sha256_file, unsealed
from hpdval.metrics.protocol import SELECTED_ON_TEST, selection_rule
from hpdval.tables.choose import chosen_rows, sorted_rows
from hpdval.tables.scores import COLUMNS

Folder = str | os.PathLike[str]
Record = Mapping[str, Any]
# what makes a folder a run: its files, and the names that a record of ours has
RECORDS = {
    "run.json": {"key", "kind"},
    "manifest.json": {"key", "kind", "status"},
    "notebook.json": {"key", "notebook"},
}
STANDARD = (
    *("status", "method", "kind", "recipe", "dataset", "seed", "stages", *COLUMNS, "minutes", "started", "finished"),
    *("commit", "version", "protocol", "selected_on_test", "error", "folder"),
)
NUMBERS, TIMES = (*COLUMNS, "minutes"), ("started", "finished")


def list_runs(*folders: Folder, where: str | Sequence[str] = (), sort: str | None = None) -> pd.DataFrame:
    """Return a row for each run folder below ``folders`` (default: ``runs``), whatever became of it.

    Columns: ``status`` (done, running, failed, killed, stopped, unfinished, damaged), ``method``, ``kind``, ``recipe``,
    ``dataset``, ``seed``, ``stages``, ``total``, ``head``, ``medium`` and ``tail`` (test mAP in percent, of runs that
    are done), ``minutes``, ``started`` and ``finished`` (UTC), ``commit`` ("+": the checkout was changed), ``version``,
    ``protocol``, ``selected_on_test``, ``error``, ``folder``, and every scalar field of the configurations by its
    dotted name, such as ``stage1.lr``.  What a run does not have is missing.  No lock is taken and nothing is written;
    linked folders are followed, and no folder is listed twice.

    Args:
        where: conditions that all hold, such as ``"total>50"`` or ``"recipe=scenes"``; see ``choose.chosen_rows``.
        sort: a column, with ``-`` before it for the largest first; by default rows are in the order of folders.

    Raises:
        ConfigError: a folder does not exist, or a condition or column that there is not.
    """
    roots = [Path(os.path.expanduser(folder)) for folder in folders or ("runs",)]
    for root in roots:
        if not os.path.isdir(root):
            raise ConfigError(f"there is no folder {root}; give folders that hold runs")
    table = _table([row for folder, failure in _walk(roots) if (row := _row(folder, failure))])
    table = chosen_rows(table, [where] if isinstance(where, str) else where)
    return sorted_rows(table, sort) if sort else table


def find_run(run: Folder, root: Folder = "runs") -> Path:
    """Return the folder of a run: the one that is given, or that of the one run below ``root`` whose key begins so.

    The key is that in ``run.json`` or ``notebook.json``; at least 6 of its hexadecimal digits are wanted.

    Raises:
        RunError: there is no such folder, and no run or more than one with that key.
    """
    folder = Path(os.path.expanduser(run))
    if os.path.isdir(folder):
        return folder.resolve()
    given = str(run)
    if not re.fullmatch(r"[0-9a-f]{6,64}", given):
        raise RunError(f"there is no folder {given}; give a run's folder, or at least 6 characters of its key")
    root = Path(os.path.expanduser(root))
    found = [inner for inner, _ in _walk([root]) if any(key.startswith(given) for key in _keys(inner))]
    if len(found) != 1:
        where = f"{len(found)} runs: {', '.join(map(str, found[:3]))}; give the folder" if found else "none"
        raise RunError(f"the key {given} is that of {where} below {root}" + "; see hpdval runs" * (not found))
    return found[0].resolve()


def _keys(folder: Path) -> Iterator[str]:
    for name in ("run.json", "notebook.json"):
        with suppress(HpdvalError, OSError):
            yield str(read_sealed(folder / name).get("key", ""))


def _walk(roots: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Yield every folder once, in order, and why it cannot be read; what is linked comes after what is not."""
    waiting, linked, seen = deque(roots), deque[Path](), set[tuple[int, int]]()
    while waiting or linked:
        folder = (waiting or linked).popleft()
        try:
            state = folder.stat()
            if (state.st_dev, state.st_ino) in seen:
                continue
            seen.add((state.st_dev, state.st_ino))
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name, reverse=True)
            inner = [e for e in entries if not e.name.startswith(".") and e.is_dir()]
        except OSError as error:
            yield folder, f"the folder cannot be read: {error.strerror}"
            continue
        if any(entry.name in RECORDS for entry in entries):
            yield folder, ""
        waiting.extendleft(Path(folder, entry.name) for entry in inner if not entry.is_symlink())
        linked.extend(Path(folder, entry.name) for entry in reversed(inner) if entry.is_symlink())


def _row(folder: Path, failure: str) -> dict[str, Any] | None:
    """Return what is known of a run, or None where the folder holds somebody else's files."""
    found: dict[str, Record] = {}
    for name, wanted in RECORDS.items():
        try:
            if os.path.lexists(folder / name):
                record = _mapping(read_json(folder / name))  # what is no object is somebody else's
                found |= {name: unsealed(record, folder / name)} if wanted <= record.keys() else {}
        except (HpdvalError, OSError) as error:
            failure = failure or str(error)
    if not found and not failure:
        return None
    start, manifest, notebook = (found.get(name, {}) for name in RECORDS)
    done = manifest.get("status") == "done"
    result: Record = {}
    if not failure and done:
        result, failure = _result(folder, start, manifest)
    status, why = ("damaged", failure) if failure else ("done", None) if done else _status(folder, start, notebook)
    return {**_facts(manifest or start, notebook, result), "status": status, "error": why, "folder": str(folder)}


def _status(folder: Path, start: Record, notebook: Record) -> tuple[str, str | None]:
    """Return what became of a run without a manifest, and why."""
    if lock_held(folder / "run.lock") or lock_held(folder / "notebook.lock"):
        return "running", None
    if notebook.get("status") in ("failed", "killed", "stopped"):
        cell = f"cell {notebook['cell']}: " if notebook.get("cell") else ""
        return notebook["status"], f"{cell}{notebook.get('error') or 'no reason recorded'}"
    return "unfinished", start.get("ended")


def _result(folder: Path, start: Record, manifest: Record) -> tuple[Record, str]:
    """Return the result of a finished run, and what is wrong with it: it must be the one that the manifest hashed."""
    if start and start["key"] != manifest["key"]:
        return {}, "manifest.json is that of another run than run.json"
    hashed = _mapping(manifest.get("files")).get("result.json")
    if hashed is None:
        return {}, ""
    try:
        if sha256_file(folder / "result.json") != hashed:
            return {}, "result.json differs from its hash in the manifest"
        return _mapping(read_json(folder / "result.json")), ""
    except (HpdvalError, OSError) as error:
        return {}, str(error)


def _facts(run: Record, notebook: Record, result: Record) -> dict[str, Any]:
    """Return columns from the records of a run, each of which may be empty."""
    config, parameters, code = (_mapping(m) for m in (run.get("config"), notebook.get("parameters"), run.get("code")))
    asked = {**parameters, **config}  # a notebook that failed early left its parameters alone
    commit = str(code.get("commit") or "")[:10]
    seed = asked.get("seed")
    selection = result.get("selection")
    return {
        **dict(_leaves(config)),
        "method": result.get("method") or run.get("kind"),
        "kind": run.get("kind") or str(notebook.get("notebook", "")).removesuffix(".ipynb") or None,
        "recipe": result.get("recipe") or config.get("name") or parameters.get("recipe"),
        "dataset": _mapping(run.get("inputs")).get("dataset") or asked.get("dataset"),
        "seed": seed if isinstance(seed, int) and abs(seed) < 2**63 else None,
        "stages": config.get("stages"),
        **{name: _number(result.get(name)) for name in COLUMNS},
        "minutes": _number(run.get("wall_seconds", run.get("elapsed", notebook.get("seconds")))) / 60,
        "started": _number(run.get("started", notebook.get("started"))),
        "finished": _number(run.get("finished")),
        "commit": commit + "+" * bool(code.get("dirty")) if commit else None,
        "version": run.get("version"),
        "protocol": result.get("protocol"),
        "selected_on_test": selection_rule(selection) == SELECTED_ON_TEST if isinstance(selection, str) else None,
    }


def _mapping(value: Any) -> Record:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if number else float("nan")


def _leaves(config: Record, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield scalar fields by dotted name."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        elif not isinstance(value, list):
            yield prefix + name, value


def _table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    fields = dict.fromkeys(name for row in rows for name in row if name not in STANDARD)
    table = pd.DataFrame(list(rows), columns=[*STANDARD, *fields])
    table["seed"] = pd.array([row["seed"] for row in rows], dtype="Int64")
    for name in NUMBERS:
        table[name] = table[name].astype(np.float64)
    for name in TIMES:
        table[name] = pd.to_datetime(table[name].astype(np.float64), unit="s", utc=True, errors="coerce").dt.floor("ms")
    return table
