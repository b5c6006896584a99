"""A folder of files that is built in place: it is ours or refused, and its manifest knows every file in it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from hpdval.errors import RunError
from hpdval.files import atomic_write, read_json


def earlier_files(folder: Path, kind: str) -> set[str]:
    """Return the files of what was built in ``folder`` before.

    Args:
        kind: what the manifest of such a folder says it is.

    Raises:
        RunError: it holds other files, too, or is no folder.
    """
    if not folder.exists():
        return set()
    if not folder.is_dir():
        raise RunError(f"{folder} is a file; choose a folder for the report")
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    manifest = read_json(folder / "manifest.json") if "manifest.json" in there else {}
    ours = isinstance(manifest, dict) and manifest.get("kind") == kind and isinstance(manifest.get("files"), dict)
    listed = manifest["files"] if ours else {}
    known = {"manifest.json", *listed} if listed else set()
    # what a killed build left half written begins with a point, see files.atomic_write; the manifest comes first
    left = "." if listed else ".manifest.json."
    foreign = sorted(name for name in there - known if not Path(name).name.startswith(left))
    if foreign:
        raise RunError(
            f"{folder} holds files that are not of a report ({', '.join(foreign[:3])}); choose another folder"
        )
    return there - {"manifest.json"}


def write_folder(folder: Path, kind: str, files: Mapping[str, bytes], about: Mapping[str, Any]) -> None:
    """Write the files, remove those of an earlier build, and say so in the manifest, before and after.

    Raises:
        RunError: the folder holds other files, too, or cannot be written.
    """
    with _alone(folder):
        _write(folder, kind, files, about, earlier_files(folder, kind))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder; who comes second waits, for writing takes no longer than a look at it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder, os.O_RDONLY)  # the folder itself: a lock file would be one more file in it
    except OSError as error:
        raise RunError(f"{folder} cannot be used: {error.strerror or error}; choose another folder") from error
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _write(folder: Path, kind: str, files: Mapping[str, bytes], about: Mapping[str, Any], earlier: set[str]) -> None:
    hashes = {name: sha256(data).hexdigest() for name, data in sorted(files.items())}
    begun = {"kind": kind, "status": "being written", "files": dict.fromkeys(sorted({*hashes, *earlier}))}
    _write_manifest(folder, begun)
    for name, data in files.items():
        with atomic_write(folder / name) as file:
            file.write(data)
    for name in earlier - {*files}:
        (folder / name).unlink(missing_ok=True)
    for place in {(folder / name).parent for name in earlier} - {folder}:
        if place.exists() and not os.listdir(place):
            place.rmdir()
    _write_manifest(folder, {"kind": kind, "status": "done", **about, "files": hashes})


def _write_manifest(folder: Path, record: Mapping[str, Any]) -> None:
    with atomic_write(folder / "manifest.json", "w") as file:
        json.dump(record, file, indent=1, ensure_ascii=False)
        file.write("\n")
