"""A JupyterLab of its own: nothing of the user's settings, nothing left behind."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

START_SECONDS = 120
END_SECONDS = 30
# JupyterLab that ends, with its kernels, when its standard input does: also where the test itself is killed.
START = """import os, signal, threading
def watch():
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=watch, daemon=True).start()
from jupyterlab.labapp import main
main()"""
MARK = "HPDVAL_BROWSER_TEST"  # in the environment of the server, so of all it starts


class JupyterLab:
    """JupyterLab on a free port of 127.0.0.1 that serves the notebooks in ``folder / "notebooks"``; log in ``log``."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.token = secrets.token_hex(16)
        self.log = log
        self.notebooks = folder / "notebooks"
        self.notebooks.mkdir(exist_ok=True)
        folders = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
        environment = {**os.environ, **folders, "IPYTHONDIR": str(folder / "ipython"), MARK: self.token}
        settings = folder / "config/lab/user-settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
        settings.parent.mkdir(parents=True)
        settings.write_text('{"fetchNews": "false"}', encoding="utf-8")  # or it asks, over the notebook
        with log.open("wb") as file:
            streams = {"stdin": subprocess.PIPE, "stdout": file, "stderr": subprocess.STDOUT}
            self.process = subprocess.Popen(self.command(), env=environment, start_new_session=True, **streams)
        self.url = self.wait(folder / "runtime" / f"jpserver-{self.process.pid}.json")

    def command(self) -> list[str]:
        """What starts it; as root, JupyterLab must be told that this is meant."""
        options = {
            "ServerApp.ip": "127.0.0.1",
            "ServerApp.port": 0,
            "ServerApp.root_dir": self.notebooks,
            "IdentityProvider.token": self.token,
            "LabApp.expose_app_in_browser": True,  # window.jupyterapp tells what the cells do
            "LabApp.extension_manager": "readonly",
            "LabApp.news_url": None,
            "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        }
        root = ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        told = [f"--{name}={value}" for name, value in options.items()]
        return [sys.executable, "-c", START, "--no-browser", *root, *told]

    def wait(self, record: Path) -> str:
        """Its address, once it listens: the record is written after that."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            try:
                return str(json.loads(record.read_text(encoding="utf-8"))["url"])
            except (OSError, ValueError):
                time.sleep(0.1)
        self.stop()
        raise RuntimeError(f"JupyterLab did not start; its log is {self.log}")

    def family(self) -> list[psutil.Process]:
        """Every process that it started, also where the parent is gone."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.token and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:  # another user's, or just gone
                continue
        return found

    def stop(self) -> list[str]:
        """End it, which ends the kernels; returns the commands of processes that stayed, which are killed."""
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(END_SECONDS)
        stayed = psutil.wait_procs(self.family(), timeout=END_SECONDS)[1]
        commands = [" ".join(process.cmdline()) for process in stayed if process.is_running()]
        for process in stayed:
            process.kill()
        self.process.wait()
        return commands
