"""Archives that want to write elsewhere, more than they say, or only half: nothing of the sort happens."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hpdval.data.prepare import extract as module
from hpdval.data.prepare.extract import extract
from hpdval.errors import DataError

CONTENT = {"a/one.txt": b"one" * 1000, "a/b/two.txt": b"two" * 10, "three.txt": b""}


def write_tar(path: Path, content: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_zip(path: Path, content: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


WRITERS = pytest.mark.parametrize("write", [write_tar, write_zip])
Writer = Callable[[Path, dict[str, bytes]], Path]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "inner" / "root"


def every(name: str) -> bool:
    return True


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@WRITERS
def test_wanted_members_only(write: Writer, tmp_path: Path, root: Path) -> None:
    archive = write(tmp_path / "archive", CONTENT)
    told: list[int] = []
    assert extract(archive, root, lambda name: name.startswith("a/"), advance=told.append) == [*CONTENT][:2]
    assert files(root) == {name: data for name, data in CONTENT.items() if name.startswith("a/")}
    assert sum(told) == 3030
    extract(archive, root, every)
    assert files(root) == CONTENT


@WRITERS
def test_what_is_there_is_left_and_what_is_cut_off_is_written_again(write: Writer, tmp_path: Path, root: Path) -> None:
    archive = write(tmp_path / "archive", CONTENT)
    extract(archive, root, every)
    whole, cut = root / "a/one.txt", root / "a/b/two.txt"
    before = whole.stat()
    cut.write_bytes(b"tw")
    extract(archive, root, every)
    assert files(root) == CONTENT
    assert (whole.stat().st_ino, whole.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@WRITERS
@pytest.mark.parametrize("name", ["../evil.txt", "a/../../../evil.txt", "/evil.txt", "..\\evil.txt", "C:\\evil.txt"])
def test_no_member_leaves_the_folder(name: str, write: Writer, tmp_path: Path, root: Path) -> None:
    archive = write(tmp_path / "archive", {"fine.txt": b"fine", name: b"evil"})
    with pytest.raises(DataError, match=r"evil\.txt leaves the image folder"):
        extract(archive, root, every)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["archive"]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE], ids=str
)
def test_no_link_and_no_device_from_a_tar(kind: bytes, tmp_path: Path, root: Path) -> None:
    with tarfile.open(tmp_path / "archive.tar", "w") as archive:
        info = tarfile.TarInfo("door")
        info.type, info.linkname = kind, "/etc"
        archive.addfile(info)
        through = tarfile.TarInfo("door/passwd")
        archive.addfile(through, io.BytesIO())
    with pytest.raises(DataError, match="door is a link or a device"):
        extract(tmp_path / "archive.tar", root, every)
    assert not root.exists()


def test_no_link_from_a_zip(tmp_path: Path, root: Path) -> None:
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        info = zipfile.ZipInfo("door")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc")
    with pytest.raises(DataError, match="door is a link or a device"):
        extract(tmp_path / "archive.zip", root, every)


def test_members_that_nobody_wants_do_no_harm(tmp_path: Path, root: Path) -> None:
    archive = write_tar(tmp_path / "archive", {"../evil.txt": b"evil", "fine.txt": b"fine"})
    extract(archive, root, {"fine.txt"}.__contains__)
    assert files(tmp_path / "inner") == {"root/fine.txt": b"fine"}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@WRITERS
def test_a_name_that_comes_twice(write: Writer, tmp_path: Path, root: Path) -> None:
    archive = write(tmp_path / "archive", {"a.txt": b"1", "./a.txt": b"2"})
    with pytest.raises(DataError, match=r"a\.txt is there twice"):
        extract(archive, root, every)


def test_a_bomb_is_refused_by_what_it_declares(tmp_path: Path, root: Path) -> None:
    archive = write_zip(tmp_path / "archive", {"zeros": bytes(10_000_000)})
    with pytest.raises(DataError, match=r"has \d+ bytes but declares 10000000 unpacked"):
        extract(archive, root, every)
    assert not root.exists()


def test_a_tar_that_declares_more_than_it_holds(tmp_path: Path, root: Path) -> None:
    archive = write_tar(tmp_path / "archive", {"zeros": b""})
    header = bytearray(archive.read_bytes())
    header[124:136] = b"77777777777\0"  # 8 GB
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    archive.write_bytes(header)
    with pytest.raises(DataError, match="damaged or cut off: unexpected end of data"):
        extract(archive, root, every)


def test_more_than_the_disk_has_is_refused_first(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write_tar(tmp_path / "archive", CONTENT)
    usage = type("Usage", (), {"free": 3029})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match="has 3029 bytes free but archive needs 3030; make room"):
        extract(archive, root, every)
    assert files(root) == {}


def test_no_more_bytes_than_declared_leave_a_zip(tmp_path: Path, root: Path) -> None:
    """Both headers of a stored member are changed to say 100 bytes; the file has 3,000."""
    archive = write_zip(tmp_path / "archive", {"one.txt": CONTENT["a/one.txt"]}, zipfile.ZIP_DEFLATED)
    data = archive.read_bytes()
    archive.write_bytes(data.replace(struct.pack("<I", 3000), struct.pack("<I", 100)))
    with pytest.raises(DataError, match=r"archive.*(damaged|declared)"):
        extract(archive, root, every)
    assert files(root) == {}


def test_a_flipped_bit_in_a_zip(tmp_path: Path, root: Path) -> None:
    archive = write_zip(
        tmp_path / "archive", {"fine.txt": b"fine", "one.txt": CONTENT["a/one.txt"]}, zipfile.ZIP_STORED
    )
    archive.write_bytes(archive.read_bytes().replace(b"oneone", b"onfone", 1))
    with pytest.raises(DataError, match=r"damaged or cut off: Bad CRC-32"):
        extract(archive, root, every)
    assert files(root) == {"fine.txt": b"fine"}  # whole or not at all


@WRITERS
@pytest.mark.parametrize("share", [0.5, 0.02])
def test_a_cut_off_archive(share: float, write: Writer, tmp_path: Path, root: Path) -> None:
    archive = write(tmp_path / "archive", {"one.txt": bytes(range(256)) * 100})
    data = archive.read_bytes()
    archive.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match=r"damaged or cut off|neither a zip nor a tar|declare"):
        extract(archive, root, every)
    assert not root.exists() or files(root) == {}


def test_an_encrypted_member(tmp_path: Path, root: Path) -> None:
    archive = write_zip(tmp_path / "archive", {"one.txt": b"one"}, zipfile.ZIP_STORED)
    data = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(signature) + offset] |= 1
    archive.write_bytes(data)
    with pytest.raises(DataError, match=r"one\.txt is encrypted"):
        extract(archive, root, every)


@pytest.mark.parametrize("data", [b"", b"<html>not found</html>"])
def test_what_is_no_archive(data: bytes, tmp_path: Path, root: Path) -> None:
    (tmp_path / "archive").write_bytes(data)
    with pytest.raises(DataError, match="neither a zip nor a tar; remove it"):
        extract(tmp_path / "archive", root, every)


def test_what_cannot_be_written_is_one_line(tmp_path: Path, root: Path) -> None:
    archive = write_tar(tmp_path / "archive", {"a/one.txt": b"one"})
    root.mkdir(parents=True)
    (root / "a").write_text("in the way")
    with pytest.raises(
        DataError, match=r"could not write .*one\.txt \(0 bytes\): .*; the same command continues"
    ) as caught:
        extract(archive, root, every)
    assert "\n" not in str(caught.value)
