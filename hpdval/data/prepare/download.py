"""One file over HTTP: resumed where it broke off, checked against what is known of it, whole or not there at all.

While it comes, a file is ``NAME.part``; beside it ``NAME.part.json`` keeps the server's word for this version (ETag or
date), so that what is appended later belongs to the same file.
"""

from __future__ import annotations

import http.client
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import hpdval
from hpdval.errors import DataError, HpdvalError
from hpdval.files import read_json, sha256_file, write_json

CHUNK = 1 << 16  # bytes
ATTEMPTS = 5  # without a byte more than before
PAUSE = 1.0  # seconds before the second attempt; doubled each time
LONGEST_PAUSE = 30.0
TIMEOUT = 60.0  # seconds without a byte
TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)  # HTTP answers that may be better next time

Advance = Callable[[int], object]


class _BrokenError(Exception):
    """The connection or the server failed in a way that may not come again."""


@dataclass(frozen=True)
class _Job:
    url: str
    path: Path
    size: int | None
    advance: Advance

    @property
    def part(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part")

    @property
    def version(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part.json")

    def forget(self) -> None:
        """Remove what came so far."""
        self.advance(-_size(self.part))
        self.part.unlink(missing_ok=True)
        self.version.unlink(missing_ok=True)


def download(
    url: str,
    path: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    check: Callable[[Path], object] = lambda part: None,
    advance: Advance = lambda count: None,
    pause: float = PAUSE,
) -> None:
    """Fetch ``url`` into ``path``, which appears only when it is complete and has the size and hash that are known.

    What an earlier call left is continued (HTTP Range with If-Range) when the server still has the same version, else
    begun anew.  A broken connection or a busy server is tried again as long as each ``ATTEMPTS`` bring bytes; a file
    with a wrong hash is fetched once more from its start.

    Args:
        url: http or https; redirects are followed, but never from https to http.
        size: bytes, where known.
        sha256: hexadecimal, where known.
        check: looks at the complete file before it gets its name; what it raises as DataError is passed on.
        advance: told the number of bytes that came (negative: that were thrown away).
        pause: seconds before the second attempt; doubled each time, up to ``LONGEST_PAUSE``.

    Raises:
        DataError: the server refuses, goes on failing, or has another file than the one that is known.
    """
    job = _Job(url, path, size, advance)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        advance(_size(job.part))
        for again in (True, False):
            _complete(job, pause)
            found = sha256_file(job.part) if sha256 else None
            if found == sha256:
                break
            job.forget()
            if not again:
                raise DataError(f"{url} has sha256 {found}, twice; expected is {sha256}. Nothing of it was kept")
        try:
            check(job.part)
        except DataError as error:
            job.forget()
            raise DataError(f"{url}: what came is not usable: {error}") from None
        job.part.replace(path)
        job.version.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"could not write {job.part} ({_size(job.part)} bytes are there): {error.strerror or error}; "
            "the same command continues when that is mended"
        ) from error


def _complete(job: _Job, pause: float) -> None:
    """Ask until the part is complete; give up after ``ATTEMPTS`` in a row that brought nothing."""
    most, failures = _size(job.part), 0
    while job.size is None or _size(job.part) != job.size:
        try:
            return _ask(job)
        except _BrokenError as error:
            if _size(job.part) > most:
                most, failures = _size(job.part), 0
            failures += 1
            if failures >= ATTEMPTS:
                raise DataError(
                    f"{job.url}: {error}, {ATTEMPTS} times in a row ({_size(job.part)} bytes are kept); "
                    "the same command continues"
                ) from None
            time.sleep(min(pause * 2 ** (failures - 1), LONGEST_PAUSE))


def _ask(job: _Job) -> None:
    """Send one request and append what it brings.

    Raises:
        _BrokenError: less came than there is.
        DataError: it makes no sense to ask again.
    """
    have, headers = _size(job.part), {"User-Agent": f"hpdval/{hpdval.__version__}", "Accept-Encoding": "identity"}
    known = _version_of(job) if have else None
    if have and known is None:
        job.forget()  # nobody can say what this is the beginning of
        have = 0
    elif have:
        headers |= {"Range": f"bytes={have}-", "If-Range": str(known)}
    try:
        with _opener().open(urllib.request.Request(job.url, headers=headers), timeout=TIMEOUT) as response:
            _receive(job, response, have if response.status == 206 else 0)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing there at and after our last byte
            if error.headers.get("Content-Range") == f"bytes */{have}" and job.size in (None, have):
                return
            job.forget()
            raise _BrokenError("it has another length than before") from None
        if error.code in TRY_AGAIN:
            raise _BrokenError(f"the server answers {error.code} {error.reason}") from None
        raise DataError(f"{job.url}: the server answers {error.code} {' '.join(str(error.reason).split())}") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, OSError) and not isinstance(error.reason, ssl.SSLCertVerificationError):
            raise _BrokenError(f"no connection ({error.reason})") from None
        raise DataError(f"{job.url}: {error.reason}") from None
    except (http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
        raise _BrokenError(f"the connection broke ({type(error).__name__})") from None


def _receive(job: _Job, response: Any, start: int) -> None:
    """Append the body from byte ``start`` on; 0 begins anew."""
    announced = response.headers.get("Content-Length")
    total = start + int(announced) if announced and announced.isdigit() else None
    if start and not str(response.headers.get("Content-Range")).startswith(f"bytes {start}-"):
        job.forget()
        raise _BrokenError("it sent another part than was asked for")
    if job.size is not None and total is not None and total > job.size:
        kind = response.headers.get_content_type()
        raise DataError(f"{job.url} has {total} bytes ({kind}); expected are {job.size}: this is another file")
    if not start:
        job.forget()
        word = response.headers.get("ETag") or ""
        word = response.headers.get("Last-Modified") if not word or word.startswith("W/") else word
        write_json(job.version, {"url": job.url, "version": word or None})
    with open(job.part, "ab") as file:
        try:
            _copy(job, response, file)
        finally:
            file.flush()
            os.fsync(file.fileno())
    have = _size(job.part)
    wanted = total if job.size is None else job.size
    if wanted is not None and have < wanted:
        raise _BrokenError(f"it ended after {have} of {wanted} bytes")


def _copy(job: _Job, response: Any, file: IO[bytes]) -> None:
    have = file.tell()
    while chunk := response.read(CHUNK):
        have += len(chunk)
        if job.size is not None and have > job.size:
            file.truncate(0)
            raise DataError(f"{job.url} has more than the expected {job.size} bytes: this is another file")
        file.write(chunk)
        job.advance(len(chunk))


def _version_of(job: _Job) -> str | None:
    try:
        record = read_json(job.version)
        return record["version"] if record["url"] == job.url else None
    except (HpdvalError, KeyError, TypeError):
        return None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new not in ("http", "https") or (old == "https" and new == "http"):
            raise DataError(f"{req.full_url} redirects from {old} to {new} ({newurl}); that is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_Redirects)
