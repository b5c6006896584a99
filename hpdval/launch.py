"""Training from a source's name: in this process, or in several that ``torchrun`` starts as a subprocess.

``torchrun`` is PyTorch's own launcher; it runs ``hpdval train``, the same command that works without it.  Nothing is
forked, so a notebook whose torch or CUDA is already at work can start it, too.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpdval.attempt import attempt
from hpdval.errors import ConfigError, RunError
from hpdval.overrides import named_values
from hpdval.recipes import get_recipe

GRACE_SECONDS = 60  # processes that are told to end may write a checkpoint first
WATCHED = "HPDVAL_PARENT_HOLDS_STDIN"  # set where the end of standard input means that the launcher is gone


def train_source(
    source: str,
    recipe: str = "scenes",
    *,
    run: str | os.PathLike[str],
    overrides: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    device: str = "auto",
    show: bool = True,
) -> dict[str, Path]:
    """Load a data set by its source, run all stages of a recipe, and return the finished runs as ``hpdval.train`` does.

    Under ``torchrun`` the processes that it started train together; then all of them call this.

    Args:
        overrides: the recipe's fields by dotted name.
        data: options of ``load_dataset``, such as ``root``, ``test`` and ``classes``.

    Raises:
        HpdvalError: what the recipe, the data or the training refuses.
    """
    from hpdval.data.load import load_dataset
    from hpdval.stopping import Interrupted, take_request
    from hpdval.training.stages import run_folders, train

    if os.environ.get(WATCHED):
        threading.Thread(target=_end_with_parent, daemon=True).start()
    experiment = get_recipe(recipe, dataset=source, **(overrides or {}))
    if data and {"val", "val_seed"} & set(data):
        raise ConfigError("the validation part belongs to the recipe: override val=0.2, it is drawn with the seed")
    folders = [folder.name for folder in run_folders(run, experiment).values()]
    with attempt(run, {"source": str(source), "recipe": recipe, "runs": folders}):
        dataset = load_dataset(source, val=experiment.val, val_seed=experiment.seed, **(data or {}))
        if take_request():
            raise Interrupted("stopped on request before the first run; run the same command again to continue")
        return train(dataset, experiment, run=run, device=device, show=show)


def _end_with_parent() -> None:
    """Save and end when the launcher is gone, however it ended: its end of the pipe is closed then."""
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


def launch_training(
    source: str,
    recipe: str = "scenes",
    *,
    run: str | os.PathLike[str],
    processes: int,
    overrides: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    device: str = "auto",
    show: bool = True,
) -> dict[str, Path]:
    """Do what :func:`train_source` does in ``processes`` processes on this machine and show their lines.

    Interrupted, it ends them all; they save first, and the same call continues.

    Args:
        processes: one for each GPU; without any they share the cores.

    Raises:
        ConfigError: the recipe or ``processes`` cannot be used; nothing was started.
        RunError: a process failed, with the last line of the first one that did.
    """
    if isinstance(processes, bool) or not isinstance(processes, int) or processes < 1:
        raise ConfigError(f"processes is {processes!r}; it must be a whole number, at least 1: one for each GPU")
    experiment = get_recipe(recipe, dataset=source, **(overrides or {}))
    words = train_words(source, recipe, run=run, overrides=overrides, data=data, device=device)
    with tempfile.TemporaryDirectory(prefix="hpdval-") as logs:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        torchrun += ["--log-dir", logs, "--tee", "3", "-m", "hpdval.cli", "train"]
        code, lines = _follow([*torchrun, *words], show)
        if code:
            raise RunError(f"training in {processes} processes failed: {_reason(Path(logs), lines)}")

    from hpdval.training.stages import run_folders

    return run_folders(run, experiment)


def train_words(
    source: str,
    recipe: str,
    *,
    run: str | os.PathLike[str],
    overrides: Mapping[str, Any] | None,
    data: Mapping[str, Any] | None,
    device: str,
) -> list[str]:
    """Return the words that tell ``hpdval train`` the same."""
    words = [str(source), "--recipe", recipe, "--out", os.fspath(run), "--device", device]
    words += [word for name, value in (overrides or {}).items() for word in ("-p", f"{name}={value}")]
    return words + [word for name, value in (data or {}).items() for word in ("-d", f"{name}={_json(value)}")]


def json_values(words: Sequence[str]) -> dict[str, Any]:
    """Read ``name=value`` words whose values are JSON; what is not JSON is text.

    >>> json_values(["test=a.csv", 'classes=["cat"]'])
    {'test': 'a.csv', 'classes': ['cat']}
    """
    values: dict[str, Any] = {}
    for name, text in named_values(words).items():
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


def _json(value: Any) -> str:
    return json.dumps(value, default=os.fspath)


def _follow(command: list[str], show: bool) -> tuple[int, list[str]]:
    """Run a command, show its lines, and return its exit code and the lines; it never outlives this call."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,  # stays open for as long as this process lives
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the others
        env={**os.environ, WATCHED: "1", "HPDVAL_HEADLESS": "1"},
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines.append(re.sub(r"^\[\w+\]:", "", line).rstrip())
            if show:
                print(lines[-1], flush=True)
        return process.wait(), lines
    except BaseException:
        process.terminate()  # torchrun passes it on and waits
        raise
    finally:
        try:
            process.communicate(timeout=GRACE_SECONDS)  # closes standard input, which ends processes without torchrun
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _reason(logs: Path, lines: list[str]) -> str:
    """Return why the first process failed: what ``torchrun`` recorded of it, or the signal that ended it."""
    ended = re.findall(r"rank\s*: (\d+).*\n\s*exitcode\s*: -(\d+)", "\n".join(lines))
    for rank, number in ended:
        if int(number) != signal.SIGTERM:
            return f"process {rank} was ended by {signal.Signals(int(number)).name}"
    records = sorted(logs.glob("**/error.json"), key=lambda path: path.stat().st_mtime_ns)
    if records:
        message = json.loads(records[0].read_text(encoding="utf-8"))["message"]
        text = message["message"] if isinstance(message, dict) else message
        return f"process {records[0].parent.name}: {text}"
    return next((line for line in reversed(lines) if line.strip()), "no process said why")
