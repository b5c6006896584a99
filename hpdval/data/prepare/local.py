"""Files that the user already has: where below a folder they lie, and how they come into the root uncopied."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath


class LocalFiles:
    """Finds files and image folders anywhere below ``folder``.

    A file of the root such as ``VOCdevkit/VOC2012/JPEGImages/a.jpg`` is looked for in folders whose path ends in
    ``VOC2012/JPEGImages``, ``train2017/b.jpg`` in folders called ``train2017``; lists and archives by their names.
    """

    def __init__(self, folder: Path, paths: Iterable[str], names: Iterable[str]) -> None:
        """Walk ``folder`` once, for the folders of ``paths`` and for files called one of ``names``."""
        wanted, names = {_key(path) for path in paths}, set(names)
        self._folders: dict[tuple[str, ...], list[Path]] = {}
        self._files: dict[str, list[Path]] = {}
        for place, folders, files in os.walk(folder.resolve()):
            folders.sort()
            inner = [Path(place), *(Path(place, name) for name in folders if os.path.islink(Path(place, name)))]
            for here in inner:  # links to folders are looked at, too, but not walked through
                for key in wanted:
                    if here.parts[-len(key) :] == key:
                        self._folders.setdefault(key, []).append(here)
            for name in names.intersection(files):
                self._files.setdefault(name, []).append(Path(place, name))

    def path(self, path: str) -> Path | None:
        """Return where the file that the root calls ``path`` lies, or None."""
        candidates = (folder / PurePosixPath(path).name for folder in self._folders.get(_key(path), []))
        return next((file for file in candidates if file.is_file()), None)

    def named(self, name: str) -> list[Path]:
        """Return the files of this name."""
        return self._files.get(name, [])


def _key(path: str) -> tuple[str, ...]:
    parts = PurePosixPath(path).parent.parts
    return parts[1:] if parts[:1] == ("VOCdevkit",) else parts


def place(source: Path, target: Path) -> None:
    """Make ``target`` the same file as ``source``: a hard link where the disk allows it, else a copy."""
    if target.exists() and target.samefile(source):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.part")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), temporary)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(source, temporary)
    temporary.replace(target)
