"""``NAME.sha256`` in the root: the content of every image when it was prepared, in the form of ``sha256sum -c``.

Single images have no published hash, and a picture can be damaged in ways that decoders pass over; this notices both.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hpdval.data.listing import read_lines
from hpdval.data.prepare.published import PublishedSet
from hpdval.files import atomic_write, sha256_file
from hpdval.progress import progress


def read_checksums(known: PublishedSet, root: Path) -> dict[str, str]:
    """Return the SHA-256 of each image by its path below ``root``; empty where the set was never complete."""
    path = _file(known, root)
    lines = (line.partition("  ") for line in read_lines(path) if line) if path.is_file() else ()
    return {name: sha256 for sha256, _, name in lines}


def add_checksums(known: PublishedSet, root: Path, paths: Iterable[str], *, show: bool = True) -> None:
    """Write down the images that are not written down yet; what is there stays, so that no change is passed over."""
    there = read_checksums(known, root)
    new = [path for path in paths if path not in there]
    if not new:
        return
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda path: sha256_file(root / path), new)
        there |= zip(new, progress(found, "writing down checksums", total=len(new), show=show), strict=True)
    with atomic_write(_file(known, root), "w") as file:
        file.writelines(f"{sha256}  {name}\n" for name, sha256 in sorted(there.items()))


def _file(known: PublishedSet, root: Path) -> Path:
    return root / f"{known.name}.sha256"
