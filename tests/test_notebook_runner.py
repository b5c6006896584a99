"""A notebook run is done only when it is; wrong parameters start nothing; whatever is killed, nothing stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from faults import Faults
from nbformat.v4 import new_code_cell, new_notebook

from hpdval import notebook_runner
from hpdval.errors import ConfigError, RunError
from hpdval.notebook_parameters import check_parameters, find_notebook, notebook_parameters
from hpdval.notebook_runner import run_notebook
from hpdval.tables import list_runs

PARAMETERS = 'seed = 0\nrate = 0.5\nfast = False\nrecipe = "scenes"\noverrides = ""\ndevice = "auto"\nrun_dir = ""'
FINISH = """import json, pathlib, sys
here = pathlib.Path(run_dir)
(here / "result.json").write_text(json.dumps([seed, rate, fast, overrides, sys.executable]))
(here / "new.json").write_text(json.dumps({"status": "done"}))
(here / "new.json").replace(here / "manifest.json")"""
COUNT = "open(run_dir + '/starts', 'a').write('x')"
KILL_OWN_KERNEL = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
SLEEP = "import os, time; open(run_dir + '/pid', 'w').write(str(os.getpid())); time.sleep(60)"


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Write a notebook with a parameters cell and these code cells."""

    def write(*cells: str, parameters: str = PARAMETERS) -> Path:
        first = new_code_cell(parameters, metadata={"tags": ["parameters"]})
        spec = {"name": "a-kernel-nobody-has", "language": "python", "display_name": "x"}
        notebook = new_notebook(cells=[first, *map(new_code_cell, cells)], metadata={"kernelspec": spec})
        nbformat.write(notebook, tmp_path / "example.ipynb")
        return tmp_path / "example.ipynb"

    return write


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "notebook.json").read_text())


# -- parameters: everything is refused before anything starts ------------------------------------------------------


def test_defaults_are_read_without_running_anything(make: Callable[..., Path]) -> None:
    path = make(parameters='seed = -3  # why\nroot = "a#b"\nx = 1e-3')
    assert notebook_parameters(path) == {"seed": -3, "root": "a#b", "x": 1e-3}


@pytest.mark.parametrize("line", ["import os", "x = [1]", "x = f()", "a, b = 1, 2", "x = None", "x"])
def test_the_parameters_cell_holds_scalars_only(make: Callable[..., Path], line: str) -> None:
    with pytest.raises(ConfigError, match="is not name = scalar"):
        notebook_parameters(make(parameters=line))


def test_strings_take_the_type_of_the_default(make: Callable[..., Path]) -> None:
    given = {"seed": "7", "rate": "1e-3", "fast": "True"}
    assert check_parameters(make(), given) == {"seed": 7, "rate": 0.001, "fast": True}
    assert check_parameters(make(), {"rate": 2}) == {"rate": 2.0}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("sead", "1", "no parameter 'sead'; did you mean seed"),
        ("seed", "1.5", "a whole number, like its default 0"),
        ("seed", True, "a whole number"),
        ("fast", "perhaps", "true or false"),
        ("rate", "much", "a number"),
        ("seed", "-1", "at least 0"),
        ("recipe", "secret", "no recipe 'secret'; recipes: scenes"),
        ("stage1.lr", "fast", "stage1.lr is 'fast'; it must be float"),
        ("stage1.lr", "-1", "lr is -1.0; it must be more than 0"),
        ("stage1.learning_rate", "1", "no field 'stage1.learning_rate'"),
        ("overrides", "stage1.lr", "is not name=value"),
        ("overrides", "stage1.lr=1e-4 seed=3", "overrides names 'seed', which is a parameter"),
        ("device", "gpu", "device is 'gpu'; use 'auto', 'cpu'"),
        ("device", "cuda:x", "'cuda:N'"),
    ],
)
def test_wrong_names_types_and_ranges(make: Callable[..., Path], name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_parameters(make(), {name: value})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_dotted_names_are_collected_for_the_recipe(make: Callable[..., Path]) -> None:
    given = {"stage1.lr": "1e-4", "stage2.init": "a photo of a", "overrides": "stage2.epochs=3", "template": "a {}."}
    values = check_parameters(make(), given)
    assert values == {"overrides": "stage2.epochs=3 stage1.lr=1e-4 stage2.init='a photo of a' template='a {}.'"}


def test_a_wrong_parameter_starts_nothing(make: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        run_notebook(make(), {"stage1.epochs": 0}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_finding_notebooks_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("01_first", "02_second", "02_third"):
        (tmp_path / f"{name}.ipynb").write_text("{}")
    monkeypatch.setattr("hpdval.notebook_parameters.notebooks_dir", lambda: tmp_path)
    assert find_notebook("01").stem == "01_first"
    assert find_notebook("third").stem == "02_third"
    with pytest.raises(ConfigError, match="fits several notebooks: 02_second, 02_third"):
        find_notebook("02")
    with pytest.raises(ConfigError, match="neither a file nor a notebook"):
        find_notebook("nine")


# -- running -------------------------------------------------------------------------------------------------------


def test_done_then_skipped_then_stale(
    make: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    notebook = make(COUNT, "print('a line of progress')", FINISH)
    executed = run_notebook(notebook, {"seed": "3", "stage1.lr": "1e-4"}, folder)
    assert json.loads((folder / "result.json").read_text()) == [3, 0.5, False, "stage1.lr=1e-4", sys.executable]
    assert executed == folder / "executed.ipynb"
    assert nbformat.read(executed, 4).cells[3].outputs[0].text == "a line of progress\n"
    assert record(folder)["status"] == "done"
    assert "a line of progress" in capfd.readouterr().out
    assert not (folder / "partial.ipynb").exists()

    run_notebook(notebook, {"seed": 3, "stage1.lr": "1e-4"}, folder)  # the same, in other words
    assert "already done" in capfd.readouterr().out
    assert (folder / "starts").read_text() == "x"

    with pytest.raises(RunError, match="other parameters, sources or code"):
        run_notebook(notebook, {"seed": 4}, folder)
    assert (folder / "starts").read_text() == "x"

    monkeypatch.setattr(notebook_runner, "package_digest", lambda: "the code has changed")
    with pytest.raises(RunError, match="--force"):
        run_notebook(notebook, {"seed": 3, "stage1.lr": "1e-4"}, folder)
    run_notebook(notebook, {"seed": 3, "stage1.lr": "1e-4"}, folder, replace_stale=True)
    assert (folder / "starts").read_text() == "x"  # counted anew in an emptied folder


def test_the_key_follows_the_files_that_parameters_point_to(make: Callable[..., Path], tmp_path: Path) -> None:
    notebook = make()
    names = ("photos/train.csv", "photos/test.csv", "photos/classes.txt", "clip.safetensors", "run/manifest.json")
    names += ("layout/open_clip_model.safetensors",)
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    values = {"dataset": str(tmp_path / "photos/train.csv"), "test": "test.csv", "clip": str(tmp_path / "layout")}
    values |= {"pretrained": str(tmp_path / "clip.safetensors"), "stage1_run": str(tmp_path / "run")}
    keys = {notebook_runner.notebook_key(notebook, values)}
    for name in names:
        (tmp_path / name).write_text(f"another {name}")
        keys.add(notebook_runner.notebook_key(notebook, values))
    assert len(keys) == 1 + len(names)
    assert notebook_runner.notebook_key(notebook, {**values, "run_dir": "elsewhere"}) in keys
    (tmp_path / "photos/a.jpg").write_text("a picture")  # what a list names is not looked at
    assert notebook_runner.notebook_key(notebook, values) in keys


def test_the_key_follows_the_lists_of_a_prepared_data_set(make: Callable[..., Path], tmp_path: Path) -> None:
    notebook, values = make(), {"dataset": "voc-lt", "root": str(tmp_path)}
    keys = {notebook_runner.notebook_key(notebook, values)}
    names = ("voc_lt_train.txt", "voc_labels.txt", "VOCdevkit/VOC2007/ImageSets/Main/test.txt")
    names += ("annotations/instances_train2014.json",)
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
        keys.add(notebook_runner.notebook_key(notebook, values))
    assert len(keys) == 1 + len(names)
    (tmp_path / "VOCdevkit/VOC2007/a.jpg").write_text("a picture")
    assert notebook_runner.notebook_key(notebook, values) in keys


def test_a_large_file_is_known_by_size_and_time(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notebook_runner, "HASHED_BELOW", 3)
    monkeypatch.setattr(notebook_runner, "package_digest", lambda: "")  # hashes the package's own files
    (tmp_path / "w.pt").write_text("large")
    values = {"pretrained": str(tmp_path / "w.pt")}
    first = notebook_runner.notebook_key(make(), values)
    assert notebook_runner.notebook_key(make(), values) == first
    os.utime(tmp_path / "w.pt", ns=(0, 1))
    assert notebook_runner.notebook_key(make(), values) != first


def test_a_failing_cell_is_named(make: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    with pytest.raises(RunError) as error:
        run_notebook(make("1 / 0", FINISH), {}, folder)
    assert "failed in cell 3" in str(error.value)
    assert "ZeroDivisionError: division by zero" in str(error.value)
    assert str(folder / "partial.ipynb") in str(error.value)
    assert "----> 1 1 / 0" in capfd.readouterr().out
    assert record(folder)["status"] == "failed"
    assert not (folder / "executed.ipynb").exists()


def test_stopped_on_request_it_is_not_done_and_the_same_call_continues(
    make: Callable[..., Path], tmp_path: Path
) -> None:
    folder, said = (
        tmp_path / "run",
        "stage1 stopped on request after update 3 of 8; run the same command again to continue",
    )
    training = f"""import pathlib
from hpdval.stopping import Interrupted
first = pathlib.Path(run_dir, "first")
if not first.exists():
    first.touch()
    raise Interrupted({said!r})"""
    notebook = make(training, FINISH)
    with pytest.raises(RunError, match=f"example stopped in cell 3 after .* s: Interrupted: {said}"):
        run_notebook(notebook, {}, folder)
    assert (record(folder)["status"], record(folder)["error"]) == ("stopped", f"Interrupted: {said}")
    assert list_runs(folder)["status"].tolist() == ["stopped"]
    assert not (folder / "executed.ipynb").exists()
    run_notebook(notebook, {}, folder)
    assert record(folder)["status"] == "done"
    assert "error" not in record(folder)


@pytest.mark.fault
def test_a_killed_kernel_is_never_done(make: Callable[..., Path], tmp_path: Path, faults: Faults) -> None:
    folder, notebook = tmp_path / "run", make(FINISH, KILL_OWN_KERNEL)
    for _ in range(2):  # the second time it is not skipped, and the first one's manifest does not vouch for it
        with faults.injected("kill -9", "notebook's kernel", "killed, never done"):
            with pytest.raises(RunError, match="killed in cell 4"):
                run_notebook(notebook, {}, folder)
            assert record(folder)["status"] == "killed"
            assert (folder / "manifest.json").exists()  # written before the kernel died


def test_without_a_manifest_of_its_own_it_is_not_done(make: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"status": "done"}')  # somebody else's
    with pytest.raises(RunError, match="none finished the run"):
        run_notebook(make("1"), {}, folder)
    assert record(folder)["status"] == "failed"


def test_out_of_time(make: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"killed.* stopped after 8 s"):
        run_notebook(make(SLEEP, FINISH), {}, tmp_path / "run", timeout=8)  # long enough to reach the sleep
    assert record(tmp_path / "run")["status"] == "killed"
    assert not (tmp_path / "run/pid").exists() or gone(tmp_path / "run")  # a very busy machine gets no further


@pytest.mark.nightly
def test_temporary_files_may_lie_deeper_than_a_socket_can(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("deep" * 30)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    run_notebook(make(FINISH), {}, tmp_path / "run")
    assert record(tmp_path / "run")["status"] == "done"
    assert not [*deep.iterdir()]


def test_a_folder_in_use_is_refused_and_foreign_files_are_safe(make: Callable[..., Path], tmp_path: Path) -> None:
    from filelock import FileLock

    folder = tmp_path / "run"
    folder.mkdir()
    with FileLock(folder / "notebook.lock"), pytest.raises(RunError, match="in use"):
        run_notebook(make(FINISH), {}, folder)
    (folder / "thesis.txt").write_text("precious")
    with pytest.raises(RunError, match="no notebook run made"):
        run_notebook(make(FINISH), {}, folder, force=True)
    assert (folder / "thesis.txt").read_text() == "precious"


def gone(folder: Path, seconds: float = 15) -> bool:
    """Whether the kernel of a run has ended, given a little time."""
    kernel = int((folder / "pid").read_text())
    until = time.monotonic() + seconds
    while time.monotonic() < until and psutil.pid_exists(kernel):
        time.sleep(0.1)
    return not psutil.pid_exists(kernel)


@pytest.mark.fault
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_when_the_runner_dies_the_kernel_does(
    make: Callable[..., Path], tmp_path: Path, signum: signal.Signals, faults: Faults
) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "hpdval.cli", "run", str(make(SLEEP, FINISH)), "--out", str(folder)]
    runner = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # what a shell starts in the background ignores Ctrl-C, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until = time.monotonic() + 60
    while not ((folder / "pid").exists() and (folder / "pid").read_text()) and time.monotonic() < until:
        time.sleep(0.1)
    fault = "kill -9" if signum == signal.SIGKILL else signum.name
    with faults.injected(fault, "hpdval run", "killed, kernel ended"):
        os.kill(runner.pid, signum)
        _, errors = runner.communicate(timeout=40)
        assert gone(folder)
        until = time.monotonic() + 15  # the process in between writes the record after the kernel has ended
        while record(folder)["status"] == "running" and time.monotonic() < until:
            time.sleep(0.1)
        assert record(folder)["status"] == "killed"
        if signum == signal.SIGKILL:
            assert runner.returncode == -signal.SIGKILL
        else:
            assert runner.returncode == 130
            assert errors == "hpdval: interrupted; the same command continues\n"
