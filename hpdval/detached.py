"""Training that outlives whoever started it: begun in a process of its own, and stopped from anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpdval.attempt import INHERITED, LOCK, LOG, take_lock
from hpdval.errors import ConfigError, RunError
from hpdval.files import lock_held, resolved
from hpdval.launch import WATCHED, train_words
from hpdval.recipes import get_recipe
from hpdval.stopping import request_stop

MOST_RUNS = 1000  # folders below one that is given; a folder with more is no training


def start_training(
    source: str,
    recipe: str = "scenes",
    *,
    run: str | os.PathLike[str],
    overrides: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> Path:
    """Start ``hpdval train`` in a process that needs neither this kernel nor a browser, and return its folder at once.

    What is finished below ``run`` is skipped, what was interrupted continues.  What the process prints is added to
    ``train.log`` in the folder; :func:`hpdval.watch` follows it, ``hpdval stop`` and the button there stop it.

    Args:
        run: the folder below which the runs are made.
        overrides: the recipe's fields by dotted name.
        data: options of ``load_dataset``, such as ``root``, ``test`` and ``classes``.

    Raises:
        ConfigError: the recipe cannot be used; nothing was started.
        RunError: another process trains in the folder; nothing was started.
    """
    get_recipe(recipe, dataset=source, **(overrides or {}))
    folder = resolved(run)
    words = train_words(source, recipe, run=folder, overrides=overrides, data=data, device=device)
    environment = {name: value for name, value in os.environ.items() if name not in (WATCHED, "MPLBACKEND")}
    lock = take_lock(folder)  # which the process inherits, so that nobody comes between
    try:
        with open(folder / LOG, "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-u", "-m", "hpdval.cli", "train", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # no Ctrl-C, closed terminal or kernel that ends reaches it
                pass_fds=[lock],
                env={**environment, "HPDVAL_HEADLESS": "1", INHERITED: str(lock)},
            )
    finally:
        os.close(lock)
    threading.Thread(target=process.wait, daemon=True).start()  # or it would stay in the process table as a zombie
    return folder


def stop_training(run: str | os.PathLike[str], root: str | os.PathLike[str] = "runs") -> list[Path]:
    """Ask what trains in a folder, or below it, to save and stop, and return the folders that were asked.

    It stops within seconds: after the update under way, or after the evaluation.  The same command continues it, bit
    for bit.  Only a file is written, so this works from any machine that sees the folder.

    Args:
        run: a folder of runs, or at least 6 characters of a run's key; see :func:`hpdval.tables.inventory.find_run`.
        root: where a key is looked for.

    Raises:
        RunError: no process is at work there, or no run has that key.
    """
    from hpdval.tables.inventory import find_run

    folder = find_run(run, root)
    asked = at_work(folder)
    if not asked:
        raise RunError(f"nothing trains in {folder}; there is nothing to stop")
    for one in asked:
        request_stop(one)
    return asked


def at_work(folder: Path) -> list[Path]:
    """Return which folders of a training a process holds: ``hpdval train``'s, that of a run, those of runs below it.

    Raises:
        ConfigError: the folder holds many runs, so that it is not that of one training.
    """
    held = [folder] if lock_held(folder / LOCK) else []
    locks = [folder / "run.lock", *sorted(folder.glob("*/run.lock"))]
    if len(locks) > MOST_RUNS:
        raise ConfigError(f"{folder} holds {len(locks) - 1} runs; give the folder of one training")
    return held + [path.parent for path in locks if lock_held(path)]
