"""Fuzzing with hypothesis: what breaks a valid input, and how each answer to it is judged.

A :class:`Target` draws bytes or values and checks one of them in a folder of its own.  Whatever was drawn, the answer
is a result that holds, or one of our errors: one line that names what was given.  Anything else that is raised fails
the test, and so do an answer that does not come, memory that grows, and a file that appears outside the folder.
"""

from __future__ import annotations

import copy
import json
import random
import resource
import shutil
import signal
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from faults import Faults
from hypothesis import HealthCheck, Phase, example, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from hpdval.errors import HpdvalError

T = TypeVar("T")

ANSWER_WITHIN = 120.0  # seconds for one case, which none needs on a machine however busy
LONGEST_LINE = 20_000  # characters of an error: 2,000, of which some may be escaped
MOST_MEMORY = 1 << 20  # KiB by which a target's cases may let this process grow

NUMBERS = (
    *("0", "-0", "-1", "1", "2", "7", "1.5", "-1e-400", "1e400", "-1e400", "NaN", "Infinity", "-Infinity"),
    *(str(2**31), str(2**63), str(2**64), "1" + "0" * 400, "9" * 4300, "9" * 5000),
)
NAMES = (
    *(
        "",
        " ",
        "a",
        "a.png",
        "A.PNG",
        "dog",
        "dog;cat",
        "dog,cat",
        "../x",
        "../../x",
        "a/../../x",
        "/etc/passwd",
        "c:/x",
    ),
    *(
        "..\\x",
        "a\\b",
        "~",
        "~root/x",
        "loop",
        "loop/x",
        ".",
        "nul\0",
        "\u202eabc",
        "\u200b",
        "\u2028",
        "\x1b[2J",
        "\x85",
    ),
    *(
        "é",
        "e\u0301",
        "x" * 300,
        "x" * 5000,
        "%s",
        "{}",
        "{0[0]}",
        "$HOME",
        "-1",
        "1e400",
        "nan",
        "true",
        "null",
        "0x10",
    ),
    *("9" * 5000, "\ud800", "\udcff", "\U0001f600"),
)
PIECES = (  # what bytes are spoilt with
    *(
        b"\0",
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b'"',
        b'""',
        b"'",
        b",",
        b";",
        b" ",
        b"\t",
        b"=",
        b":",
        b"-",
        b"[",
        b"]",
        b"{",
        b"}",
    ),
    *(b"<", b">", b"&", b"&a;", b"&#0;", b"<!--", b"#", b"*a", b"&a", b"!!", b"\\", b"\\ud800", b"../", b"/etc/passwd"),
    *(b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc3", b"\xe2\x80\xae", b"\xe2\x80\xa8", b"\x1b[2J"),
    *(b"9" * 5000, b"1e400", b"NaN", b"-1", b"x" * 140_000, b"[" * 3000, b"\x7f" * 8, b"\xff" * 8),
)


# -- answers -----------------------------------------------------------------------------------------------------------


class Hang(BaseException):
    """No answer came in time; no ``except Exception`` keeps it."""


@contextmanager
def in_time(case: object) -> Iterator[None]:
    """Let the block fail where it takes longer than ``ANSWER_WITHIN``."""

    def strike(number: int, frame: types.FrameType | None) -> None:
        raise Hang(f"no answer within {ANSWER_WITHIN:g} s to {case!r:.500}")

    before = signal.signal(signal.SIGALRM, strike)
    signal.setitimer(signal.ITIMER_REAL, ANSWER_WITHIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def little_memory() -> Iterator[None]:
    """Let the block fail where it asks for much more memory than is in use, touched or not."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2 * MOST_MEMORY * 1024, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def answer(call: Callable[[], T], *named: object) -> T | None:
    """Return what ``call`` returns, or None where it refuses as it should: in one line that has one of ``named``."""
    try:
        return call()
    except HpdvalError as error:
        check_line(str(error), *named)
        return None


def check_line(text: str, *named: object) -> None:
    """Check that an error is one short line of printable characters that has one of ``named``."""
    assert text, "an error without a word"
    assert text.isprintable(), f"not one line, or with characters that a terminal obeys: {text!r}"
    assert len(text) <= LONGEST_LINE, f"{len(text)} characters: {text:.200}"
    assert not named or any(str(name) in text for name in named), f"names none of {named}: {text}"


# -- targets -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """One thing that reads what others wrote.

    ``share``: examples for every change; a nightly run has ``nightly``.  ``examples`` are cases that once got through.
    """

    where: str  # in the table of faults
    cases: SearchStrategy[Any]
    check: Callable[[Path, Any], None]  # of a folder that is empty, and a case
    examples: Sequence[Any] = ()
    share: int = 30
    nightly: int = 500


def parametrize(targets: Sequence[Target]) -> pytest.MarkDecorator:
    """Give a test each target twice: a small share of cases, and those of a night."""
    found = [pytest.param(target, False, id=f"{target.where}, share") for target in targets]
    night = [pytest.param(target, True, id=target.where, marks=pytest.mark.nightly) for target in targets]
    return pytest.mark.parametrize(("target", "nightly"), [*found, *night])


def fuzz(target: Target, nightly: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: Faults) -> None:
    """Check a share of cases, the same each time, or those of a night, drawn anew; count what was checked."""
    outcome = "a result, or an error in one line"
    with faults.injected("fuzzed input", target.where, outcome, times=target.share) as entry:
        entry.times = _fuzz(target, nightly, tmp_path, monkeypatch)


def _fuzz(target: Target, nightly: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    outer, here = tmp_path / "outer", tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    count = 0

    def check(case: Any) -> None:
        nonlocal count
        count += 1
        folder = outer / "inner" / "case"
        folder.mkdir(parents=True)
        try:
            with in_time(case):
                target.check(folder, case)
        finally:
            shutil.rmtree(folder)
        stray = [path for path in tmp_path.rglob("*") if path not in (outer, here, folder.parent)]
        assert not stray, f"left outside the folder: {stray}"

    test: Any = given(target.cases)(check)
    test = settings(
        max_examples=target.nightly if nightly else target.share,
        derandomize=not nightly,
        database=None,
        deadline=None,  # ours strikes while a case hangs, and is no matter of how busy the machine is
        print_blob=True,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )(test)
    if nightly:
        number = random.SystemRandom().getrandbits(32)
        print(f"hypothesis.seed({number})")  # shown where the test fails, beside the case
        test = seed(number)(test)
    for case in target.examples:
        test = example(case)(test)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with little_memory():
        test()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < MOST_MEMORY, f"{target.where}: memory grew by {grown} KiB"
    return count


def one_of(values: Sequence[T]) -> SearchStrategy[T]:
    """``sampled_from`` whose description does not repeat long values."""
    return st.integers(0, len(values) - 1).map(lambda i: values[i])


# -- broken inputs -----------------------------------------------------------------------------------------------------


class Raw(str):
    """A piece of JSON that no value gives."""


TOKENS = (
    *map(Raw, NUMBERS),
    *(Raw(text) for text in ("true", "false", "null", "[]", "{}", "[[]]", "[null]", '{"a": 1}', '{"a": {"a": []}}')),
    *(Raw(text) for text in ("[" * 300 + "]" * 300, '{"a":' * 300 + "1" + "}" * 300, "[" * 5000 + "]" * 5000)),
    *map(Raw, map(json.dumps, NAMES)),
)


def _json(value: Any) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)}: {_json(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_json, value)) + "]"
    return json.dumps(value)


def other_values(valid: Any) -> SearchStrategy[Any]:
    """Values of the form of ``valid`` of which one to three are others, missing or twice; none that only JSON has."""
    return _other(
        valid, st.none() | st.booleans() | st.integers() | st.floats() | one_of(NAMES) | st.just([]) | st.just({})
    )


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in inner:
        yield from _places(one, (*path, name))


def _get(value: Any, path: tuple[Any, ...]) -> Any:
    for name in path:
        value = value[name]
    return value


@st.composite
def _other(draw: st.DrawFn, valid: Any, new_value: SearchStrategy[Any]) -> Any:
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(_places(value))))
        old = _get(value, path)
        kind = draw(st.sampled_from(("new", "new", "new", "remove", "copy", "twice", "wrap")))
        if kind == "new":
            new: Any = draw(new_value)
        elif kind == "copy":
            new = copy.deepcopy(_get(value, draw(st.sampled_from(list(_places(value))))))
        elif kind == "twice" and isinstance(old, list):
            new = [*old, *old]
        else:
            new = [old]
        if not path:
            value = new
        elif kind == "remove":
            del _get(value, path[:-1])[path[-1]]
        else:
            _get(value, path[:-1])[path[-1]] = new
    return value


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | one_of(TOKENS),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(("a", "id", "name", "")), inner, max_size=3)
    ),
    max_leaves=5,
)


def broken_bytes(valid: bytes) -> SearchStrategy[bytes]:
    """Valid bytes of which some were flipped, put in, left out, moved or cut off."""
    place = st.integers(0, len(valid))
    change = st.tuples(
        st.sampled_from(("put", "put", "flip", "remove", "repeat", "cut")),
        place,
        place,
        one_of(PIECES),
        st.integers(0, 255),
    )
    return st.lists(change, min_size=1, max_size=3).map(lambda changes: _spoilt(valid, changes))


def _spoilt(data: bytes, changes: Sequence[tuple[str, int, int, bytes, int]]) -> bytes:
    for kind, one, other, piece, byte in changes:
        start, end = sorted((min(one, len(data)), min(other, len(data))))
        if kind == "put":
            data = data[:start] + piece + data[start:]
        elif kind == "flip":
            data = data[:start] + bytes([byte]) + data[start + 1 :]
        elif kind == "remove":
            data = data[:start] + data[min(end, start + 40) :]
        elif kind == "repeat":
            data = data[:end] + data[start:]
        else:
            data = data[:start]
    return data


def broken_json(valid: Any) -> SearchStrategy[bytes]:
    """JSON in which some values are others than they should be, or missing, or twice; or broken bytes of it."""
    other = _other(valid, one_of(TOKENS) | one_of(TOKENS) | ANY_JSON).map(lambda value: _json(value).encode())
    twice = st.tuples(other, st.sampled_from(sorted(valid)), one_of(TOKENS)).map(_with_again)
    return st.one_of(other, other, other, twice, broken_bytes(json.dumps(valid).encode()), st.binary(max_size=60))


def _with_again(case: tuple[bytes, str, str]) -> bytes:
    """An object that has one of its names twice; readers take the last."""
    text, name, value = case
    return text.rstrip(b"}") + f', "{name}": {value}}}'.encode()


def broken_lines(rows: Sequence[Sequence[str]], separator: str) -> SearchStrategy[bytes]:
    """Lines of cells of which some are others, missing, too many or twice; or broken bytes of them."""
    valid = _lines(rows, separator).encode()
    cell = one_of(NAMES) | st.sampled_from([one for row in rows for one in row]) | st.text(max_size=6)
    change = st.tuples(
        st.sampled_from(("cell", "cell", "cell", "add", "remove", "row", "swap")),
        st.integers(0, len(rows) - 1),
        st.integers(0, 5),
        cell,
    )
    other = st.lists(change, min_size=1, max_size=3).map(lambda changes: _lines(_changed(rows, changes), separator))
    ends = st.sampled_from(("\n", "\n", "\r\n", "\r", "\n\n"))
    written = st.tuples(other, ends).map(lambda both: both[0].replace("\n", both[1]).encode("utf-8", "surrogatepass"))
    return st.one_of(written, written, broken_bytes(valid), st.binary(max_size=60))


def _lines(rows: Sequence[Sequence[str]], separator: str) -> str:
    return "".join(separator.join(row) + "\n" for row in rows)


def _changed(rows: Sequence[Sequence[str]], changes: Sequence[tuple[str, int, int, str]]) -> list[list[str]]:
    found = [list(row) for row in rows]
    for kind, row, column, cell in changes:
        cells = found[row]
        place = column % max(len(cells), 1)
        if kind == "cell" and cells:
            cells[place] = cell
        elif kind == "add":
            cells.insert(place, cell)
        elif kind == "remove" and cells:
            del cells[place]
        elif kind == "row":
            found.insert(row, list(cells))
        elif kind == "swap":
            cells.reverse()
    return found
