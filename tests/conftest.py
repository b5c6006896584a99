"""Fixtures shared by all tests: where the development data lies, and caches that never leave the test's folder."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from faults import faults as faults  # the fixture
from faults import install

ROOT = Path(__file__).resolve().parent.parent


def shared_folder() -> Path:
    """The folder of development data: ``HPDVAL_SHARED``, else ``../shared`` beside the repository."""
    return Path(os.environ.get("HPDVAL_SHARED") or ROOT.parent / "shared").resolve()


def _folder(name: str) -> Path:
    folder = shared_folder() / name
    if not folder.is_dir():
        pytest.skip(f"development data is not here ({folder}); set HPDVAL_SHARED")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """``$HPDVAL_SHARED/data``; the test is skipped, visibly, where it is missing."""
    return _folder("data")


@pytest.fixture(scope="session")
def golden() -> Path:
    """``$HPDVAL_SHARED/golden/public``; the test is skipped, visibly, where it is missing."""
    return _folder("golden/public")


@pytest.fixture(scope="session")
def spec() -> Path:
    """``$HPDVAL_SHARED/spec``; the test is skipped, visibly, where it is missing."""
    return _folder("spec")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One cache for the whole session, made by it: no test depends on what a machine had before."""
    if not os.environ.get("HPDVAL_TEST_CACHE"):
        os.environ["HPDVAL_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-table", metavar="FILE", help="write the table of injected faults there (Markdown)")


def pytest_configure(config: pytest.Config) -> None:
    install(config)


NOTEBOOKS = ("build/smoke/", "tests/browser/")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several workers a file stays whole, and notebooks stay together: they read each other's runs.

    (``--dist loadgroup`` groups nothing with pytest 9.2: pytest-xdist #1386.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class WholeFiles(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "notebooks" if nodeid.startswith(NOTEBOOKS) else nodeid.split("::")[0]

    return WholeFiles(config, log)


class Loopback:
    """A server on 127.0.0.1 that is honest (Range, If-Range, ETag) until ``plans`` tell it how to fail.

    ``files`` maps a path to its bytes; ``plans`` a path to an iterator of faults, one for each request:
    ``("break", n)`` closes after n bytes of what it sends, ``("ignore range",)``, ``("corrupt",)`` flips a bit,
    ``("stall", n)`` sends n bytes and then waits for ``release``, ``("status", code)``, ``("redirect", url)``,
    ``("length", n)`` says Content-Length n, ``("shift",)`` says that it sends another range than was asked for.
    ``log`` keeps (path, Range header, status) of every request.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.plans: dict[str, Iterator[tuple[Any, ...]]] = {}
        self.log: list[tuple[str, str | None, int]] = []
        self.etags = True
        self.release = threading.Event()
        loopback = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                loopback.answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path, asked = handler.path, handler.headers.get("Range")
        kind, *details = next(self.plans.get(path, iter(())), ("honest",))
        body = self.files.get(path)
        status, headers = (404 if body is None else 200), {}
        body = body or b""
        if kind in ("status", "redirect"):
            status, body = (details[0], b"busy") if kind == "status" else (302, b"")
            headers = {"Location": details[0]} if kind == "redirect" else {}
        elif status == 200:
            tag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
            headers = {"ETag": tag} if self.etags else {}
            if asked and kind != "ignore range" and handler.headers.get("If-Range") in (None, tag):
                start, whole = int(asked.removeprefix("bytes=").rstrip("-")), len(body)
                status = 206 if start < whole else 416
                headers["Content-Range"] = f"bytes {start}-{whole - 1}/{whole}" if status == 206 else f"bytes */{whole}"
                if kind == "shift":
                    headers["Content-Range"] = f"bytes 0-{whole - 1}/{whole}"
                body = body[start:]
        headers["Content-Length"] = str(details[0] if kind == "length" else len(body))
        if kind == "corrupt":
            body = bytes([body[0] ^ 1]) + body[1:]
        self.log.append((path, asked, status))
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body[: details[0]] if kind in ("break", "stall") else body)
        if kind == "stall":
            self.release.wait(20)


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    """A running :class:`Loopback`, reached without a proxy."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Loopback()
    thread = threading.Thread(target=server.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.release.set()
    server.server.shutdown()
    server.server.server_close()
    thread.join()
