"""Chromium on a JupyterLab: ``with lab.open("01_data_splits.ipynb") as notebook: notebook.run_all()``."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
import psutil
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import Playwright

from .notebook import HEIGHT, WIDTH, NotebookPage
from .server import JupyterLab

# Nothing but this machine is reached; the other flags of a quiet start playwright sets itself.
ALONE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
FLAGS = ["--disable-gpu", "--disable-quic", "--disable-sync", ALONE]


class Lab:
    """A browser and a server; screenshots go to ``shots``."""

    def __init__(self, playwright: Playwright, executable: str, server: JupyterLab, shots: Path) -> None:
        self.playwright, self.executable, self.server, self.shots = playwright, executable, server, shots
        self.launch()

    def launch(self) -> None:
        """Start Chromium with an empty profile; as root it runs only without its sandbox."""
        root = hasattr(os, "geteuid") and os.geteuid() == 0
        self.browser = self.playwright.chromium.launch(
            executable_path=self.executable, args=FLAGS, chromium_sandbox=not root
        )
        self.context = self.browser.new_context(viewport={"width": WIDTH, "height": HEIGHT})

    def write(self, name: str, *cells: str) -> str:
        """A notebook of these code cells."""
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, self.server.notebooks / name)
        return name

    @contextmanager
    def open(self, name: str, seconds: float = 420) -> Iterator[NotebookPage]:
        """Open a notebook of the server's folder; leaving takes a screenshot and checks that there was no error.

        After ``seconds`` the browser is killed, so that no call can wait for ever.
        """
        if not self.browser.is_connected():
            self.launch()
        stem = Path(name).stem
        url = f"{self.server.url}lab/workspaces/{stem}/tree/{name}?token={self.server.token}"
        page = NotebookPage(self.context.new_page(), url, self.shots)
        late = threading.Event()
        timer = threading.Timer(seconds, self.kill, [late])
        timer.start()
        try:
            page.open()
            yield page
            page.check()
            page.shot(stem)
        except (AssertionError, PlaywrightError) as error:
            if late.is_set():
                raise AssertionError(f"{name} took more than {seconds:g} s") from error
            with suppress(PlaywrightError):
                error.add_note(f"screenshot: {page.shot(stem + '-failed', whole=False)}")
            error.add_note(f"log of JupyterLab: {self.server.log}")
            raise
        finally:
            timer.cancel()
            with suppress(PlaywrightError):
                page.close()

    def kill(self, late: threading.Event) -> None:
        """Kill the browser, so that whoever waits for it gets an error."""
        late.set()
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if "--remote-debugging-pipe" in process.cmdline():
                    process.kill()
