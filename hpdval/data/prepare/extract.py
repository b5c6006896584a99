"""Files out of a zip or tar archive that nobody has to trust: only regular files, only below the folder, each whole.

Nothing is left to ``extractall``: every member is read here and written to a temporary file that then takes its name.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hpdval.data.listing import safe_path
from hpdval.errors import DataError, HpdvalError

CHUNK = 1 << 20  # bytes
MOST_UNPACKED = 100  # times the size of the archive; the annotations of COCO grow to about five times theirs
TEMPORARY = ".hpdval-extract.tmp"  # beside the file to be; one at a time, so the next run overwrites a left one


@dataclass(frozen=True)
class _Member:
    name: str  # in normal form, below the folder
    size: int  # bytes, as declared
    read: Callable[[], IO[bytes]]


def extract(
    archive: Path,
    root: Path,
    wanted: Callable[[str], bool],
    *,
    advance: Callable[[int], object] = lambda count: None,
) -> list[str]:
    """Write the wanted members of ``archive`` below ``root`` and return their names.

    Files that are there with the declared size are left as they are, so an interrupted call continues.

    Args:
        archive: a zip or a tar.
        root: folder that member names start from.
        wanted: says of a name in normal form whether to extract it.
        advance: told the bytes of each member that is done.

    Raises:
        DataError: not an archive, damaged or cut off; a wanted member that is a link, a device or encrypted, whose name
            leaves the folder or comes twice, or that holds another number of bytes than declared; more bytes declared
            than the disk or ``MOST_UNPACKED`` allows.
    """
    with _open(archive) as source:
        members = list(_members(archive, source, wanted))
        _check_sizes(archive, root, members)
        for member in members:
            target = root / member.name
            if not (os.path.isfile(target) and target.stat().st_size == member.size):
                _write(archive, member, target)
            advance(member.size)
    return [member.name for member in members]


@contextmanager
def _open(archive: Path) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    try:
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tar:
                yield tar
        elif zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                yield packed
        else:
            raise DataError(f"{archive} is neither a zip nor a tar; remove it, and the same command fetches it again")
    except (HpdvalError, OSError):
        raise
    except Exception as error:  # the readers of archives raise whatever damaged bytes lead them into
        raise DataError(
            f"{archive} is damaged or cut off: {str(error) or repr(error)}; remove it and fetch it again"
        ) from None


def _members(
    archive: Path, source: zipfile.ZipFile | tarfile.TarFile, wanted: Callable[[str], bool]
) -> Iterator[_Member]:
    seen: set[str] = set()
    in_tar = isinstance(source, tarfile.TarFile)
    entries: Any = source if in_tar else source.infolist()  # type: ignore[union-attr]
    for entry in entries:
        if entry.isdir() if in_tar else entry.is_dir():
            continue
        raw = entry.name if in_tar else entry.filename
        name = safe_path(raw, str(archive)) if wanted(raw.removeprefix("./")) else None
        if name is None:
            continue
        if not (entry.isreg() if in_tar else stat.S_IFMT(entry.external_attr >> 16) in (0, stat.S_IFREG)):
            raise DataError(f"{archive}: {raw} is a link or a device; only regular files are extracted")
        if name in seen:
            raise DataError(f"{archive}: {raw} is there twice; which one is meant is unknown")
        if not in_tar and entry.flag_bits & 1:
            raise DataError(f"{archive}: {raw} is encrypted")
        seen.add(name)
        yield _Member(name, entry.size if in_tar else entry.file_size, _reader(source, entry))


def _reader(source: Any, entry: Any) -> Callable[[], IO[bytes]]:
    return lambda: source.open(entry) if isinstance(source, zipfile.ZipFile) else source.extractfile(entry)


def _check_sizes(archive: Path, root: Path, members: list[_Member]) -> None:
    total, packed = sum(member.size for member in members), archive.stat().st_size
    if total > MOST_UNPACKED * packed:
        raise DataError(f"{archive} has {packed} bytes but declares {total} unpacked; such an archive is not opened")
    root.mkdir(parents=True, exist_ok=True)
    there = sum(member.size for member in members if os.path.isfile(root / member.name))
    free = shutil.disk_usage(root).free
    if total - there > free:
        raise DataError(f"{root} has {free} bytes free but {archive.name} needs {total - there}; make room")


def _write(archive: Path, member: _Member, target: Path) -> None:
    temporary = target.with_name(TEMPORARY)
    written = 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with member.read() as source, open(temporary, "wb") as file:
            while chunk := source.read(CHUNK):
                written += len(chunk)
                if written > member.size:
                    break
                file.write(chunk)
        if written != member.size:
            raise DataError(f"{archive}: {member.name} has other than the declared {member.size} bytes; fetch it again")
        temporary.replace(target)
    except OSError as error:
        raise DataError(
            f"could not write {target} ({written} bytes): {error.strerror or error}; the same command continues when "
            "that is mended"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
