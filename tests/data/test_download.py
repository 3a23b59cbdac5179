"""Downloads from a real server on this machine; no other address can be reached."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fgzoo.data import download
from fgzoo.data.datamodule import FGVCDataModule, fetch_dataset
from fgzoo.data.download import Archive, fetch
from fgzoo.errors import DataError, UsageError
from tests.builders import make_aircraft, make_cub
from tests.server import CONTENT, Server


def offered(server: Server, behaviour: str, content: bytes = CONTENT) -> Archive:
    server.content = content
    return Archive(server.url(behaviour), hashlib.md5(content).hexdigest(), "file.tgz")


def remains(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


def test_download_is_verified_and_moved_into_place(server: Server, tmp_path: Path) -> None:
    path = fetch(offered(server, "fine"), tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "file.tgz"
    assert path.read_bytes() == CONTENT
    assert remains(path.parent) == {"file.tgz"}


def test_progress_goes_to_standard_error(server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fetch(offered(server, "fine"), tmp_path)
    captured = capfd.readouterr()
    assert "file.tgz" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(("behaviour", "requests"), [("redirect", 2), ("no-ranges", 2), ("flaky", 3)])
def test_server_that_redirects_knows_no_ranges_or_recovers(behaviour: str, requests: int, server: Server, tmp_path: Path) -> None:
    assert fetch(offered(server, behaviour), tmp_path).read_bytes() == CONTENT
    assert len(server.requests) == requests


@pytest.mark.parametrize("behaviour", ["breaks", "stalls"])
def test_broken_download_is_resumed_where_it_stopped(behaviour: str, server: Server, tmp_path: Path) -> None:
    assert fetch(offered(server, behaviour), tmp_path).read_bytes() == CONTENT
    first, second = server.requests
    assert first == (behaviour, None)
    assert second[1] is not None
    assert int(second[1].removeprefix("bytes=").removesuffix("-")) >= 1 << 20


def test_half_download_of_an_earlier_call_is_resumed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.tgz.part").write_bytes(CONTENT[:1000])
    assert fetch(offered(server, "fine"), tmp_path).read_bytes() == CONTENT
    assert server.requests == [("fine", "bytes=1000-")]


@pytest.mark.parametrize("part", [b"other" * 100, CONTENT + b"too long"], ids=["another file's", "too long"])
def test_unfit_half_download_is_thrown_away(part: bytes, server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.tgz.part").write_bytes(part)
    assert fetch(offered(server, "fine"), tmp_path).read_bytes() == CONTENT
    assert server.requests[-1] == ("fine", None)


def test_whole_download_that_was_not_yet_renamed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.tgz.part").write_bytes(CONTENT)
    assert fetch(offered(server, "fine"), tmp_path).read_bytes() == CONTENT


# behaviour: what the message says, how many requests are made
FAILURES = {
    "404": ("404 Client Error", 1),
    "500": ("HTTP 500", 3),
    "always-breaks": ("broke", 3),
    "loop": ("redirects", 31),
}


@pytest.mark.parametrize("behaviour", [*FAILURES])
def test_failure_names_address_file_and_way_out(behaviour: str, server: Server, tmp_path: Path) -> None:
    message, requests = FAILURES[behaviour]
    archive = offered(server, behaviour, CONTENT * 2)  # three resumed pieces do not complete it
    with pytest.raises(UsageError, match=message) as caught:
        fetch(archive, tmp_path)
    assert len(server.requests) == requests
    assert archive.url in str(caught.value)
    assert f"put it at {tmp_path / 'file.tgz'} (md5 {archive.md5})" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "file.tgz" not in remains(tmp_path)


def test_lasting_stall_ends_with_an_error(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    with pytest.raises(UsageError, match="timed out"):
        fetch(offered(server, "silent"), tmp_path)
    assert len(server.requests) == 3


@pytest.mark.usefixtures("server")
def test_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/file"
    with pytest.raises(UsageError, match=r"could not be downloaded.*get the file by other means"):
        fetch(Archive(url, "0" * 32, "file.tgz"), tmp_path)


def test_wrong_bytes_are_deleted(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="delivered another file than expected"):
        fetch(offered(server, "wrong"), tmp_path)
    assert remains(tmp_path) == set()


def test_existing_archive_is_verified_without_a_download(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.tgz").write_bytes(CONTENT)
    assert fetch(offered(server, "fine"), tmp_path) == tmp_path / "file.tgz"
    assert server.requests == []


def test_existing_archive_that_is_wrong_is_named_and_kept(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.tgz").write_bytes(CONTENT[:-1])
    with pytest.raises(DataError, match=r"file\.tgz is not the official archive.*Delete it"):
        fetch(offered(server, "fine"), tmp_path)
    assert remains(tmp_path) == {"file.tgz"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_full_disk_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.tgz.part").symlink_to("/dev/full")
    with pytest.raises(UsageError, match=r"could not be written to .*file\.tgz\.part: the disk is full"):
        fetch(offered(server, "fine"), tmp_path)
    assert not (tmp_path / "file.tgz").exists()


def test_folder_that_cannot_be_made_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot be written.*choose another data folder"):
        fetch(offered(server, "fine"), tmp_path / "file" / "inner")


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_existing_archive_in_a_read_only_folder(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.tgz").write_bytes(CONTENT)
    tmp_path.chmod(0o500)
    assert fetch(offered(server, "fine"), tmp_path).read_bytes() == CONTENT


def start_fetch(archive: Archive, folder: Path) -> subprocess.Popen[bytes]:
    program = (
        "import sys; from pathlib import Path; from fgzoo.data.download import Archive, fetch; "
        "fetch(Archive(*sys.argv[2:]), Path(sys.argv[1]))"
    )
    return subprocess.Popen([sys.executable, "-c", program, str(folder), *archive])


def test_two_processes_download_once(server: Server, tmp_path: Path) -> None:
    archive = offered(server, "slow")
    processes = [start_fetch(archive, tmp_path) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert len(server.requests) == 1
    assert (tmp_path / "file.tgz").read_bytes() == CONTENT


def test_killed_process_leaves_a_half_that_is_resumed(server: Server, tmp_path: Path) -> None:
    archive = offered(server, "stalls")
    process = start_fetch(archive, tmp_path)
    part = tmp_path / "file.tgz.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size >= 1 << 20) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert fetch(archive, tmp_path).read_bytes() == CONTENT
    assert server.requests[1][1] == f"bytes={1 << 20}-"


def packed(folder: Path) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        archive.add(folder, folder.name)
    return stream.getvalue()


@pytest.mark.parametrize(("name", "make"), [("cub", make_cub), ("aircraft", make_aircraft)])
def test_data_set_is_prepared_once(
    name: str, make: Callable[[Path], Path], server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "source")
    (source,) = (tmp_path / "source").iterdir()
    monkeypatch.setattr(f"fgzoo.data.{name}.ARCHIVE", offered(server, "fine", packed(source)))
    for _ in range(2):
        fetch_dataset(name, tmp_path / name)
        assert FGVCDataModule(name, tmp_path / name).num_classes == 3
    assert len(server.requests) == 1


def test_preparing_an_existing_data_set_needs_no_network(tmp_path: Path) -> None:
    fetch_dataset("cub", make_cub(tmp_path))
    fetch_dataset("cub", tmp_path)
