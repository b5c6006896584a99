"""``hpdval data prepare``: lists, then archives or single images, then the check; each step skips what is there.

In the root, beside the data:

    hpdval-data.json    which files came from where, with size and SHA-256
    NAME.sha256         the content of every image, as sha256sum knows it
    downloads/          archives while they are needed, and ``.part`` files that the next call continues
"""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hpdval.data.prepare.checksums import add_checksums
from hpdval.data.prepare.download import PAUSE, download
from hpdval.data.prepare.extract import extract
from hpdval.data.prepare.local import LocalFiles, place
from hpdval.data.prepare.published import Archive, File, PublishedSet
from hpdval.data.prepare.verify import Report, look_at, verify
from hpdval.errors import DataError
from hpdval.files import read_sealed, sha256_file, write_sealed
from hpdval.progress import byte_progress, progress

RECORD = "hpdval-data.json"
LOCK = ".hpdval-data.lock"
AT_ONCE = 6  # single images
NOTHING, WHOLE, EACH = "nothing", "whole", "each"  # what to fetch of an archive


def prepare(
    known: PublishedSet,
    root: Path,
    *,
    source: Path | None = None,
    everything: bool = False,
    keep_archives: bool = False,
    show: bool = True,
    pause: float = PAUSE,
) -> Report:
    """Bring a published data set into ``root`` and return the report of its verification.

    Args:
        known: the data set.
        root: the folder; what it already holds is not fetched again.
        source: take everything from this folder, and download nothing.
        everything: extract all that the archives hold, not only what the data set needs.
        keep_archives: leave downloaded archives in ``root/downloads``.
        show: say what is done.
        pause: as for :func:`download`.

    Raises:
        DataError: a download or an archive cannot be used, the disk is too small, or the root is in use.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / LOCK, timeout=0):
            work = _Work(known, root, everything, keep_archives, show, pause, None)
            if source is not None:
                if not source.is_dir():
                    raise DataError(f"--from {source} is not a folder")
                patterns = [path for archive in known.archives for path in archive.wanted(["*"])]
                names = [file.name for file in (*known.lists, *known.archives)]
                work.local = LocalFiles(source, patterns, names)
            work.run()
    except Timeout:
        raise DataError(f"{root} is being prepared by another process; wait for it or choose another folder") from None
    report = verify(known, root, show=show)
    if report.ok:
        images = [path for archive in known.archives for path in archive.images(archive.stems(root))]
        add_checksums(known, root, images, show=show)
    return report


@dataclass
class _Work:
    known: PublishedSet
    root: Path
    everything: bool
    keep: bool
    show: bool
    pause: float
    local: LocalFiles | None

    def run(self) -> None:
        for file in self.known.lists:
            self.fetch_list(file)
        if self.local is None:
            self.announce()
        for archive in self.known.archives:
            self.fetch_archive(archive)
        folder = self.root / "downloads"
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()

    def say(self, text: str) -> None:
        if self.show:
            print(text, flush=True)

    # --- lists ----------------------------------------------------------------------------------------------------

    def fetch_list(self, file: File) -> None:
        target = self.root / file.name
        if target.is_file() and sha256_file(target) == file.sha256:
            return
        if self.local is None:
            download(file.url, target, size=file.size, sha256=file.sha256, pause=self.pause)
        else:
            good = [path for path in self.local.named(file.name) if sha256_file(path) == file.sha256]
            if not good:
                return  # verification says so
            place(good[0], target)
        self.record(file, target, file.url if self.local is None else str(good[0]))

    # --- archives -------------------------------------------------------------------------------------------------

    def announce(self) -> None:
        """Say what will be downloaded, and refuse when the disk has no room for it."""
        plans = [(archive, *self.plan(archive)) for archive in self.known.archives]
        total = sum(size for _, _, size in plans)
        if not total:
            return
        for archive, how, size in plans:
            single = f"{len(self.missing(archive)):,} images of " if how == EACH else ""
            if size:
                self.say(f"  {_size(size):>9}  {single}{archive.name}")
        self.say(f"{self.known.name}: about {_size(total)} to download into {self.root}")
        free = shutil.disk_usage(self.root).free
        if free < total:
            raise DataError(f"{self.root} has {_size(free)} free but {_size(total)} are to be downloaded; make room")

    def missing(self, archive: Archive) -> list[str]:
        return [path for path in archive.needed(archive.stems(self.root)) if not (self.root / path).is_file()]

    def plan(self, archive: Archive) -> tuple[str, int]:
        """Return NOTHING, WHOLE or EACH, and about how many bytes will come.

        Single images are fetched where there is an address for them and fewer than half of the archive's are missing.
        """
        missing, size = self.missing(archive), archive.size or 0
        listed = not archive.listing or bool(archive.stems(self.root))
        if listed and not missing and (not self.everything or self.recorded(archive).get("everything")):
            return NOTHING, 0
        kept = self.root / "downloads" / archive.name
        single = archive.each and listed and 2 * len(missing) < archive.holds
        if single and not self.everything and not kept.is_file():
            return EACH, size * len(missing) // archive.holds
        there = next((p.stat().st_size for p in (kept, kept.with_name(f"{kept.name}.part")) if p.is_file()), 0)
        return WHOLE, max(0, size - there)

    def fetch_archive(self, archive: Archive) -> None:
        if self.local is not None:
            self.take(archive)
            if archive.members and archive.listing:
                self.take(archive)  # the images, now that the listing is there
        how, _ = self.plan(archive)
        if how == NOTHING:
            return
        if how == EACH and self.local is None:
            self.single(archive)
            return
        path, origin = self.find(archive)
        if path is None:
            return  # verification says what is missing
        self.unpack(archive, path)
        self.record(archive, path, origin, everything=self.everything)
        if path.parent == self.root / "downloads" and not self.keep:
            path.unlink()

    def take(self, archive: Archive) -> None:
        """Link or copy what lies extracted in the user's folder."""
        assert self.local is not None
        paths = [path for path in archive.wanted(archive.stems(self.root)) if not (self.root / path).is_file()]
        for path in progress(paths, f"taking {archive.name}", show=self.show):
            found = self.local.path(path)
            if found is not None:
                place(found, self.root / path)

    def find(self, archive: Archive) -> tuple[Path | None, str]:
        """Return the checked archive, and where it came from: kept, the user's, or downloaded now."""
        kept = self.root / "downloads" / archive.name
        expected = archive.sha256 or self.recorded(archive).get("sha256")
        places = [kept] if kept.is_file() else []
        places += self.local.named(archive.name) if self.local else []
        for path in places:
            self.say(f"checking {path}")
            if expected in (None, sha256_file(path)):
                return path, archive.url if path == kept else str(path)
            if path != kept:
                raise DataError(f"{path} is not {archive.name} as published (sha256); extract it, and give that folder")
            path.unlink()
        if self.local is not None:
            return None, ""
        with byte_progress(archive.name, archive.size, show=self.show) as advance:
            download(archive.url, kept, size=archive.size, sha256=expected, advance=advance, pause=self.pause)
        return kept, archive.url

    def unpack(self, archive: Archive, path: Path) -> None:
        self.say(f"extracting {path.name}")
        if archive.members:
            extract(path, self.root, set(archive.members).__contains__)
        wanted = set(archive.wanted(archive.stems(self.root)))
        with byte_progress(f"extracting {path.name}", None, show=self.show) as advance:
            extract(path, self.root, lambda name: self.everything or name in wanted, advance=advance)
        missing = self.missing(archive)
        if missing:
            raise DataError(f"{path} does not hold {missing[0]} ({len(missing)} such files); it is not what is needed")

    # --- single images --------------------------------------------------------------------------------------------

    def single(self, archive: Archive) -> None:
        """Fetch the missing images one by one, a few at a time."""
        missing = self.missing(archive)
        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            tasks = [pool.submit(self.image, archive, path) for path in missing]
            for task in progress(as_completed(tasks), f"images of {archive.name}", total=len(tasks), show=self.show):
                task.result()
        finally:
            pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C: only those on their way are waited for

    def image(self, archive: Archive, path: str) -> None:
        download(archive.each.format(path=path), self.root / path, check=look_at, pause=self.pause)

    # --- the record -----------------------------------------------------------------------------------------------

    def recorded(self, file: File) -> dict[str, Any]:
        return _read_record(self.root).get(file.name, {})

    def record(self, file: File, path: Path, origin: str, **more: Any) -> None:
        files = _read_record(self.root)
        sha256 = file.sha256 or sha256_file(path)
        files[file.name] = {"from": origin, "size": path.stat().st_size, "sha256": sha256, **more}
        write_sealed(self.root / RECORD, {"files": files})


def _read_record(root: Path) -> dict[str, Any]:
    return read_sealed(root / RECORD)["files"] if (root / RECORD).exists() else {}


def _size(count: float) -> str:
    """Return a number of bytes to two digits or so.

    >>> _size(999), _size(451_020_800), _size(13_510_573_713)
    ('999 B', '451 MB', '13.5 GB')
    """
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
