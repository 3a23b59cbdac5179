from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from fgzoo.data.download import extract
from fgzoo.errors import DataError, UsageError


def tar(path: Path, *members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def zipped(path: Path, members: dict[str, bytes], unix_mode: int = 0o100644) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = unix_mode << 16
            archive.writestr(info, content)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


GOOD = (member("top/a.txt"), b"a"), (member("top/inner/\u00fc b.txt"), b"b"), (member("beside.txt"), b"c")
UNPACKED = {"top/a.txt": b"a", "top/inner/\u00fc b.txt": b"b", "beside.txt": b"c"}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tar_is_unpacked(mode: str, tmp_path: Path) -> None:
    extract(tar(tmp_path / "archive", *GOOD, mode=mode), tmp_path / "root")
    assert tree(tmp_path / "root") == UNPACKED


def test_zip_is_unpacked(tmp_path: Path) -> None:
    extract(zipped(tmp_path / "archive", UNPACKED), tmp_path / "root")
    assert tree(tmp_path / "root") == UNPACKED


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_link_that_leads_downwards_is_unpacked(kind: bytes, tmp_path: Path) -> None:
    target = "inner/a.txt" if kind == tarfile.SYMTYPE else "top/inner/a.txt"
    link = member("top/link", kind, target)
    extract(tar(tmp_path / "archive", (member("top/inner/a.txt"), b"a"), (link, b"")), tmp_path / "root")
    assert (tmp_path / "root" / "top" / "link").read_bytes() == b"a"


def sym(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, tarfile.SYMTYPE, target), b""


UNSAFE_TARS: dict[str, Callable[[Path], tuple[tuple[tarfile.TarInfo, bytes], ...]]] = {
    "parent": lambda outside: ((member("../outside/x"), b"x"),),
    "parent in the middle": lambda outside: ((member("top/../../outside/x"), b"x"),),
    "absolute": lambda outside: ((member(f"{outside}/x"), b"x"),),
    "backslash": lambda outside: ((member("..\\outside\\x"), b"x"),),
    "drive": lambda outside: ((member("C:\\x"), b"x"),),
    "symbolic link out": lambda outside: (sym("link", "../outside"), (member("link/x"), b"x")),
    "symbolic link to an absolute path": lambda outside: (sym("link", str(outside)), (member("link/x"), b"x")),
    "hard link out": lambda outside: ((member("link", tarfile.LNKTYPE, "../outside/secret"), b""),),
    "hard link to an absolute path": lambda outside: ((member("link", tarfile.LNKTYPE, f"{outside}/secret"), b""),),
    "chain of links": lambda outside: (
        (member("a/b", tarfile.DIRTYPE), b""),
        sym("here", "a/b"),
        sym("out", "here/../../../outside"),
        (member("out/x"), b"x"),
    ),
    "character device": lambda outside: ((member("null", tarfile.CHRTYPE), b""),),
    "block device": lambda outside: ((member("disk", tarfile.BLKTYPE), b""),),
    "pipe": lambda outside: ((member("pipe", tarfile.FIFOTYPE), b""),),
}


def outside_with_secret(tmp_path: Path) -> Path:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    return outside


@pytest.mark.parametrize("name", UNSAFE_TARS)
def test_unsafe_tar_is_refused_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    outside = outside_with_secret(tmp_path)
    archive = tar(tmp_path / "archive.tgz", GOOD[0], *UNSAFE_TARS[name](outside), GOOD[1])
    with pytest.raises(DataError, match=r"archive\.tgz is refused"):
        extract(archive, tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []
    assert tree(outside) == {"secret": b"secret"}
    assert {path.name for path in tmp_path.iterdir()} == {"archive.tgz", "outside", "root"}


@pytest.mark.parametrize("name", ["../outside/x", "top/../../outside/x", "/tmp/x", "..\\outside\\x", "C:/x"])
def test_unsafe_zip_is_refused_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    outside = outside_with_secret(tmp_path)
    archive = zipped(tmp_path / "archive.zip", {"top/a.txt": b"a", name: b"x"})
    with pytest.raises(DataError, match="leads out of the folder"):
        extract(archive, tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []
    assert tree(outside) == {"secret": b"secret"}


@pytest.mark.parametrize("mode", [0o120777, 0o020666, 0o010666], ids=["link", "device", "pipe"])
def test_special_zip_member_is_refused(mode: int, tmp_path: Path) -> None:
    archive = zipped(tmp_path / "archive.zip", {"link": b"../outside"}, unix_mode=mode)
    with pytest.raises(DataError, match="is a link, a device or a pipe"):
        extract(archive, tmp_path / "root")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_truncated_tar_is_named_and_leaves_nothing(mode: str, tmp_path: Path) -> None:
    noise = bytes(i * i % 251 for i in range(200_000))
    archive = tar(tmp_path / "archive.tgz", (member("top/a.txt"), noise), mode=mode)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(DataError, match=r"archive\.tgz is damaged|archive\.tgz is neither"):
        extract(archive, tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"<html>Not found</html>"], ids=["empty", "text"])
def test_file_that_is_no_archive_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "archive.tgz").write_bytes(content)
    with pytest.raises(DataError, match=r"archive\.tgz is neither a tar nor a zip archive"):
        extract(tmp_path / "archive.tgz", tmp_path / "root")


def test_damaged_zip_is_named(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "archive.zip", {"a.txt": b"hello"})
    archive.write_bytes(archive.read_bytes().replace(b"hello", b"world"))
    with pytest.raises(DataError, match=r"archive\.zip is damaged"):
        extract(archive, tmp_path / "root")


def test_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "root" / "top").mkdir(parents=True)
    (tmp_path / "root" / "top" / "mine.txt").write_bytes(b"mine")
    with pytest.raises(DataError, match="top exists already"):
        extract(tar(tmp_path / "archive", *GOOD), tmp_path / "root")
    assert tree(tmp_path / "root") == {"top/mine.txt": b"mine"}


def test_remains_of_a_killed_process_are_cleared(tmp_path: Path) -> None:
    stale = tmp_path / "root" / ".archive.unpacking" / "top"
    stale.mkdir(parents=True)
    (stale / "half.txt").touch()
    extract(tar(tmp_path / "archive", *GOOD), tmp_path / "root")
    assert tree(tmp_path / "root") == UNPACKED


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be unpacked into"):
        extract(tar(tmp_path / "archive", *GOOD), tmp_path / "file" / "root")
