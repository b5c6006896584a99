"""Files that are whole or absent: atomic writes, hashes, sealed records, and where caches live."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from filelock import FileLock

from hpdval.errors import ConfigError, HpdvalError, RunError, shown

T = TypeVar("T")

SEAL, SEAL_KIND = "seal", "sha256:"
LOCK_SECONDS = 0.2  # more than the instant for which `lock_held` asks, less than anybody notices


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path`` that replaces it when the block ends well, and vanishes when it does not.

    Raises:
        RunError: the file could not be written (disk full, no permission); the message names path and bytes written.

    >>> import tempfile, pathlib
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "a.txt"
    >>> with atomic_write(target, "w") as file:
    ...     _ = file.write("whole")
    >>> target.read_text()
    'whole'
    """
    path = Path(path)
    encoding = None if "b" in mode else "utf-8"
    newline = None if "b" in mode else "\n"
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        with os.fdopen(handle, mode, encoding=encoding, newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files private; results are meant to be shared
        temporary.replace(path)
    except OSError as error:
        raise not_written(path, temporary, error) from error
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def not_written(path: Path, part: Path | None, error: OSError) -> RunError:
    """Return the error of a file that could not be written, with the size of the ``part`` that came of it."""
    size = part.stat().st_size if part and part.exists() else 0
    return RunError(f"could not write {path} ({size} bytes written): {error.strerror or error}")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinity are refused because JSON has neither."""
    with atomic_write(path, "w") as file:
        json.dump(value, file, indent=1, ensure_ascii=False, allow_nan=False, sort_keys=False)
        file.write("\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        HpdvalError: the file is absent, unreadable or not JSON; the message names it.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HpdvalError(f"{path} does not exist") from None
    except OSError as error:
        raise HpdvalError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a number of more digits than Python reads
        raise HpdvalError(f"{path} is not valid JSON: {error}") from None


def resolved(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path that ``~`` and links lead to; of text that leads nowhere, what can be said of it.

    ``Path.expanduser`` and ``Path.resolve`` raise on an unknown user and on links that lead to themselves.

    >>> resolved("/tmp/../no/such/place").as_posix()
    '/no/such/place'
    """
    return Path(os.path.realpath(os.path.expanduser(path)))


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(*parts: Any) -> str:
    """Return a SHA-256 over the JSON form of ``parts``: equal values, equal digest, on every machine.

    >>> digest("a", 1) == digest("a", 1), digest("a", 1) == digest("a1")
    (True, False)
    """
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with a checksum over all else that it holds.

    >>> sealed({"seed": 0})
    {'seed': 0, 'seal': 'sha256:73c35c29fdb7d074'}
    """
    return {**record, SEAL: _seal(record)}


def unsealed(record: Any, where: object) -> dict[str, Any]:
    """Return what was sealed, without the seal; what never was, by an older version or by hand, is taken as it is.

    Args:
        where: names the record in the error.

    Raises:
        RunError: it is no JSON object, or not what was sealed.
    """
    if not isinstance(record, dict):
        raise RunError(f"{where} holds no JSON object; it is damaged, restore it")
    plain = {name: value for name, value in record.items() if name != SEAL}
    # a damaged name does not hide a seal: its value shows what it is
    wears = SEAL in record or any(isinstance(v, str) and v.startswith(SEAL_KIND) for v in plain.values())
    if wears and record.get(SEAL) != _seal(plain):
        raise RunError(
            f"{where} is not what was written: it is damaged or was altered; restore it, or remove its {SEAL!r} to "
            "take it as it is"
        )
    return plain


def _seal(record: Mapping[str, Any]) -> str:
    text = json.dumps(record, default=str)  # through JSON once: what is sealed is what will be read
    try:
        return SEAL_KIND + digest(json.loads(text))[:16]
    except UnicodeEncodeError:  # half a character, which no file of ours holds
        return ""


def write_sealed(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Write a JSON object with its seal, atomically."""
    write_json(path, sealed(record))


def read_sealed(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what :func:`write_sealed` wrote.

    Raises:
        HpdvalError: the file is absent, no JSON object, or not what was written; the message names it.
    """
    return unsealed(read_json(path), path)


def check_form(value: Any, form: Any, where: str, *, given: bool = False) -> None:
    """Check that what was read, or is to be written, has the form that its reader counts on.

    Args:
        form: a type, where ``float`` is any finite number; a list of one form, for lists of it; a form and None in a
            tuple, where null may stand, too; or a mapping of names to forms, in which a name that ends in "?" may be
            missing, and ``...`` stands for every name.
        where: names ``value`` in the error.
        given: it is to be written, and comes from a caller.

    Raises:
        RunError: the first part that has another form.
        ConfigError: the same, of what was ``given``.

    >>> check_form({"seed": 0, "files": {"a": "b"}}, {"seed": int, "files": {...: str}, "note?": str}, "x.json")
    """
    if isinstance(form, dict):
        if not isinstance(value, dict):
            raise _other_form(value, "an object", where, given)
        for name, inner in form.items():
            for key in value if name is ... else [name.removesuffix("?")]:
                if name is ... or key == name or key in value:
                    check_form(value.get(key), inner, f"{where}: {key}", given=given)
    elif isinstance(form, tuple):
        if value is not None:
            check_form(value, form[0], where, given=given)
    elif isinstance(form, list):
        if not isinstance(value, list):
            raise _other_form(value, "a list", where, given)
        for one in value:
            check_form(one, form[0], where, given=given)
    elif form in (int, float):
        largest = 2**63 if form is int else sys.float_info.max  # NaN is not smaller
        kinds = (int,) if form is int else (int, float)
        if type(value) not in kinds or not abs(value) < largest:
            raise _other_form(value, "a whole number" if form is int else "a finite number", where, given)
    elif not isinstance(value, form):
        raise _other_form(value, {str: "text", bool: "true or false", dict: "an object"}[form], where, given)


def _other_form(value: Any, wanted: str, where: str, given: bool) -> HpdvalError:
    if given:
        return ConfigError(f"{where} is {shown(value)}, not {wanted}; this name has one meaning, so use another")
    return RunError(f"{where} is {shown(value)}, not {wanted}; it is damaged or somebody else's")


def cache_dir() -> Path:
    """Return the folder for caches: ``HPDVAL_CACHE``, else ``hpdval`` under ``XDG_CACHE_HOME`` or ``~/.cache``."""
    chosen = os.environ.get("HPDVAL_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "hpdval"


def lock_held(path: str | os.PathLike[str]) -> bool:
    """Return whether a process, this one included, holds the ``FileLock`` of an existing file; nothing is created.

    The question itself holds the lock for an instant, shared, so that any number may ask at once; who takes such a lock
    waits ``LOCK_SECONDS`` before it gives up.
    """
    import fcntl

    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:  # no such file, or not ours to read
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the latter on some network file systems
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(file)
    return False


def made_once(path: Path, read: Callable[[], T | None], make: Callable[[], None]) -> T:
    """Return what ``read`` finds in the cached file ``path``; where it finds nothing, one process at a time makes it.

    Raises:
        RunError: the folder cannot be used, or ``read`` finds nothing in what was just made.
    """
    try:
        found = read()
        if found is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):
                found = read()  # another process may have made it meanwhile
                if found is None:
                    make()
                    found = read()
    except OSError as error:
        raise RunError(
            f"the cache {path.parent} cannot be used: {error.strerror or error}; "
            "set HPDVAL_CACHE to a folder that can be written"
        ) from error
    if found is None:
        raise RunError(f"{path} does not hold what was just written to it; check the disk")
    return found
