"""One file over HTTP from a server that fails in every way: the right file comes in the end, or none."""

from __future__ import annotations

import hashlib
import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

from hpdval.data.prepare import download as module
from hpdval.data.prepare.download import ATTEMPTS, download
from hpdval.errors import DataError

BODY = bytes(range(256)) * 40  # 10,240 bytes
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def url(loopback: Any) -> str:
    loopback.files["/file"] = BODY
    return f"{loopback.url}/file"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "new" / "file.bin"


def fetch(url: str, target: Path, **options: Any) -> None:
    download(url, target, **{"size": len(BODY), "sha256": SHA256, "pause": 0.001} | options)


def nothing_but(target: Path) -> bool:
    """Whether the folder holds the complete file and no trace of how it came."""
    return target.read_bytes() == BODY and list(target.parent.iterdir()) == [target]


def test_an_honest_server_is_asked_once(loopback: Any, url: str, target: Path) -> None:
    told: list[int] = []
    fetch(url, target, advance=told.append)
    assert nothing_but(target)
    assert sum(told) == len(BODY)
    assert loopback.log == [("/file", None, 200)]


@pytest.mark.parametrize("known", [True, False])
def test_what_broke_off_is_continued_where_it_ended(known: bool, loopback: Any, url: str, target: Path) -> None:
    loopback.plans["/file"] = iter([("break", 1000), ("break", 2000), ("break", 0)])
    told: list[int] = []
    fetch(url, target, advance=told.append, **({} if known else {"size": None, "sha256": None}))
    assert nothing_but(target)
    assert [asked for _, asked, _ in loopback.log] == [None, "bytes=1000-", "bytes=3000-", "bytes=3000-"]
    assert sum(told) == len(BODY)


def test_a_later_call_continues_too(loopback: Any, url: str, target: Path) -> None:
    loopback.plans["/file"] = iter([("break", 4000), *repeat(("status", 503), ATTEMPTS)])
    with pytest.raises(DataError, match=r"503.*5 times in a row \(4000 bytes are kept\); the same command continues"):
        fetch(url, target)
    assert not target.exists()
    assert target.with_name("file.bin.part").read_bytes() == BODY[:4000]
    told: list[int] = []
    fetch(url, target, advance=told.append)
    assert loopback.log[-1] == ("/file", "bytes=4000-", 206)
    assert nothing_but(target)
    assert told[0] == 4000
    assert sum(told) == len(BODY)


def test_a_server_that_breaks_off_for_ever_but_goes_on_is_followed(loopback: Any, url: str, target: Path) -> None:
    loopback.plans["/file"] = repeat(("break", 700))
    fetch(url, target)
    assert nothing_but(target)
    assert len(loopback.log) == 15 > ATTEMPTS


def test_a_server_without_range_starts_anew(loopback: Any, url: str, target: Path) -> None:
    loopback.plans["/file"] = iter([("break", 6000), ("ignore range",)])
    told: list[int] = []
    fetch(url, target, advance=told.append)
    assert nothing_but(target)
    assert [status for _, _, status in loopback.log] == [200, 200]
    assert sum(told) == len(BODY)


def test_a_server_that_sends_another_range_is_not_believed(loopback: Any, url: str, target: Path) -> None:
    loopback.plans["/file"] = iter([("break", 6000), ("shift",)])
    fetch(url, target)
    assert nothing_but(target)
    assert [asked for _, asked, _ in loopback.log] == [None, "bytes=6000-", None]


def test_a_file_that_changed_between_two_parts_starts_anew(loopback: Any, url: str, target: Path) -> None:
    loopback.files["/file"] = b"old" * 4000
    loopback.plans["/file"] = iter([("break", 4000), *repeat(("status", 500), ATTEMPTS)])
    with pytest.raises(DataError, match="500"):
        fetch(url, target, size=None, sha256=None)
    loopback.files["/file"] = BODY
    fetch(url, target, size=None, sha256=None)  # neither size nor hash would tell: the ETag does
    assert nothing_but(target)
    assert loopback.log[-1] == ("/file", "bytes=4000-", 200)


@pytest.mark.parametrize("record", [None, "{", '{"url": "http://elsewhere/file", "version": "x"}', "[]"])
def test_a_part_of_unknown_origin_is_not_continued(record: str | None, loopback: Any, url: str, target: Path) -> None:
    target.parent.mkdir()
    target.with_name("file.bin.part").write_bytes(b"something else")
    if record is not None:
        target.with_name("file.bin.part.json").write_text(record)
    fetch(url, target)
    assert nothing_but(target)
    assert loopback.log == [("/file", None, 200)]


def test_a_server_that_names_no_version_is_never_continued(loopback: Any, url: str, target: Path) -> None:
    loopback.etags = False
    loopback.plans["/file"] = iter([("break", 6000)])
    fetch(url, target)
    assert nothing_but(target)
    assert [asked for _, asked, _ in loopback.log] == [None, None]


def test_a_complete_part_needs_no_server(target: Path) -> None:
    target.parent.mkdir()
    target.with_name("file.bin.part").write_bytes(BODY)
    fetch("http://127.0.0.1:1/file", target)  # killed between the last byte and the new name
    assert nothing_but(target)


def test_a_corrupted_file_is_fetched_again(loopback: Any, url: str, target: Path) -> None:
    loopback.plans["/file"] = iter([("corrupt",)])
    told: list[int] = []
    fetch(url, target, advance=told.append)
    assert nothing_but(target)
    assert sum(told) == len(BODY)


def test_a_file_that_is_always_corrupted_is_not_kept(loopback: Any, url: str, target: Path) -> None:
    loopback.plans["/file"] = repeat(("corrupt",))
    with pytest.raises(DataError, match=rf"has sha256 [0-9a-f]{{64}}, twice; expected is {SHA256}"):
        fetch(url, target)
    assert list(target.parent.iterdir()) == []
    assert len(loopback.log) == 2


@pytest.mark.parametrize("plan", [[("status", 500), ("status", 503), ("status", 429)], [("break", 0)] * 4])
def test_a_busy_server_is_asked_again(plan: list[tuple[Any, ...]], loopback: Any, url: str, target: Path) -> None:
    loopback.plans["/file"] = iter(plan)
    fetch(url, target)
    assert nothing_but(target)


@pytest.mark.parametrize("code", [404, 403, 410])
def test_a_refusal_is_final_but_the_next_call_asks_again(code: int, loopback: Any, url: str, target: Path) -> None:
    loopback.plans["/file"] = iter([("status", code)])
    with pytest.raises(DataError, match=f"/file: the server answers {code}"):
        fetch(url, target)
    assert len(loopback.log) == 1
    fetch(url, target)
    assert nothing_but(target)


def test_a_server_that_is_not_there(target: Path) -> None:
    with pytest.raises(DataError, match=r"no connection \(.*refused\), 5 times in a row \(0 bytes are kept\)"):
        fetch("http://127.0.0.1:1/file", target)


def test_redirects_are_followed_with_the_range(loopback: Any, url: str, target: Path) -> None:
    loopback.plans["/moved"] = repeat(("redirect", url))
    loopback.plans["/file"] = iter([("break", 5000)])
    fetch(f"{loopback.url}/moved", target)
    assert nothing_but(target)
    assert loopback.log[-2:] == [("/moved", "bytes=5000-", 302), ("/file", "bytes=5000-", 206)]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("/file", "infinite loop"),
        ("file:///etc/passwd", "not allowed"),
        ("ftp://127.0.0.1/file", "redirects from http to ftp"),
    ],
)
def test_redirects_that_are_not_followed(place: str, message: str, loopback: Any, url: str, target: Path) -> None:
    loopback.plans["/file"] = repeat(("redirect", place))
    with pytest.raises(DataError, match=message) as caught:
        fetch(url, target)
    assert "\n" not in str(caught.value)
    assert list(target.parent.iterdir()) == []


def test_no_redirect_leads_from_https_to_http() -> None:
    handler = module._Redirects()
    request = module.urllib.request.Request("https://safe.example/file")
    with pytest.raises(DataError, match="redirects from https to http "):
        handler.redirect_request(request, None, 302, "Found", {}, "http://plain.example/file")
    followed = handler.redirect_request(request, None, 302, "Found", {}, "https://other.example/file")
    assert followed.full_url == "https://other.example/file"


def test_a_length_too_long_ends_with_the_bytes_that_are_there(loopback: Any, url: str, target: Path) -> None:
    """Asked for the rest, the server must admit that there is none."""
    loopback.plans["/file"] = iter([("length", len(BODY) + 10)])
    fetch(url, target, size=None)
    assert nothing_but(target)
    assert loopback.log[-1] == ("/file", f"bytes={len(BODY)}-", 416)


def test_a_length_too_long_for_ever_is_given_up(loopback: Any, url: str, target: Path) -> None:
    loopback.etags = False
    loopback.plans["/file"] = repeat(("length", len(BODY) + 10))
    with pytest.raises(DataError, match=r"it ended after 10240 of 10250 bytes, 5 times in a row"):
        fetch(url, target, size=None, sha256=None)
    assert not target.exists()


def test_a_length_too_short_does_not_cut_a_file_of_known_size(loopback: Any, url: str, target: Path) -> None:
    loopback.plans["/file"] = iter([("length", 100)])
    fetch(url, target)
    assert nothing_but(target)
    assert [asked for _, asked, _ in loopback.log] == [None, "bytes=100-"]


def test_a_length_too_short_does_not_pass_the_hash(loopback: Any, url: str, target: Path) -> None:
    loopback.plans["/file"] = repeat(("length", 100))
    with pytest.raises(DataError, match="has sha256"):
        fetch(url, target, size=None)
    assert not target.exists()


def test_a_page_in_place_of_the_file_is_seen_before_it_comes(loopback: Any, url: str, target: Path) -> None:
    loopback.files["/file"] = b"<html>moved</html>" * 1000
    with pytest.raises(DataError, match=r"has 18000 bytes \(text/plain\); expected are 10240: this is another file"):
        fetch(url, target)
    loopback.files["/file"] = b"<html>gone</html>"  # shorter, so it looks broken off
    with pytest.raises(DataError, match=r"\(17 bytes are kept\)"):
        fetch(url, target)
    assert not target.exists()


def test_more_than_the_known_size_is_not_written(loopback: Any, url: str, target: Path) -> None:
    """With the true length hidden, the body itself is stopped."""
    loopback.files["/file"] = BODY * 3
    loopback.plans["/file"] = repeat(("length", "unknown"))
    with pytest.raises(DataError, match="has more than the expected 10240 bytes"):
        fetch(url, target)
    assert not target.exists()


def test_what_is_not_usable_does_not_get_its_name(url: str, target: Path) -> None:
    def refuse(part: Path) -> None:
        assert part.read_bytes() == BODY
        raise DataError("it is not an image")

    with pytest.raises(DataError, match=r"/file: what came is not usable: it is not an image"):
        fetch(url, target, check=refuse)
    assert list(target.parent.iterdir()) == []


@contextmanager
def small_disk() -> Iterator[None]:
    """No file of this process may become longer than 5,000 bytes: not the report of the tests either, so no fixture."""
    old, action = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, action)


def test_a_full_disk_is_one_line_and_what_came_stays(url: str, target: Path) -> None:
    words = r"could not write .*file\.bin\.part .*File too large; the same command"
    with pytest.raises(DataError, match=words) as caught, small_disk():
        fetch(url, target)
    assert "\n" not in str(caught.value)
    assert not target.exists()
    assert json.loads(target.with_name("file.bin.part.json").read_text())["url"] == url


def test_an_interrupted_download_keeps_what_came(
    loopback: Any, url: str, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 1000)

    def stop(count: int, seen: list[int] = []) -> None:  # noqa: B006
        seen.append(count)
        if sum(seen) >= 3000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(url, target, advance=stop)
    assert not target.exists()
    fetch(url, target)
    assert nothing_but(target)
    assert loopback.log[-1] == ("/file", "bytes=3000-", 206)


def test_a_killed_download_continues(loopback: Any, target: Path) -> None:
    body = BODY * 50  # several chunks
    loopback.files["/file"], url = body, f"{loopback.url}/file"
    loopback.plans["/file"] = iter([("stall", 300_000)])
    code = "import sys, pathlib; from hpdval.data.prepare.download import download as d; "
    code += "d(sys.argv[1], pathlib.Path(sys.argv[2]))"
    child = subprocess.Popen([sys.executable, "-c", code, url, str(target)])
    part, deadline = target.with_name("file.bin.part"), time.monotonic() + 20
    while not (part.exists() and part.stat().st_size > 200_000):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.01)
    child.kill()
    child.wait()
    kept = part.stat().st_size
    fetch(url, target, size=len(body), sha256=hashlib.sha256(body).hexdigest())
    assert target.read_bytes() == body
    assert loopback.log[-1] == ("/file", f"bytes={kept}-", 206)
