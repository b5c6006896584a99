"""Files that are whole or absent: atomic writes, hashes, and where caches live."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from filelock import FileLock

from hpdval.errors import HpdvalError, RunError

T = TypeVar("T")

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
        size = temporary.stat().st_size if temporary and temporary.exists() else 0
        raise RunError(f"could not write {path} ({size} bytes written): {error.strerror or error}") from error
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinity are refused because JSON has neither."""
    with atomic_write(path, "w") as file:
        json.dump(value, file, indent=1, ensure_ascii=False, allow_nan=False, sort_keys=False)
        file.write("\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        HpdvalError: the file is absent or not JSON; the message names it.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HpdvalError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HpdvalError(f"{path} is not valid JSON: {error}") from None


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
