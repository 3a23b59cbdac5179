"""Archives: downloaded whole and verified, or not at all; unpacked whole and inside their folder, or not at all.

[download][] and [locked][] serve checkpoints, too.
"""

from __future__ import annotations

import errno
import gzip
import logging
import lzma
import os
import shutil
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from fgzoo.errors import DataError, UsageError
from fgzoo.files import file_hash

log = logging.getLogger(__name__)

#: How often a download that breaks off is taken up again before giving up.
ATTEMPTS = 5
#: Seconds without a byte after which the server counts as stalled.
TIMEOUT = 30.0
#: Seconds to wait before the second attempt; doubled for each further one.
PAUSE = 1.0
#: Seconds to wait for another process before saying so.
PATIENCE = 10.0

_CHUNK = 1 << 20
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,  # an encrypted zip file
)


class TransferError(Exception):
    """An address did not deliver the file: says which and why; what to do about it is the caller's to say."""


class WriteError(TransferError):
    """The file cannot be written here, wherever it comes from."""


class WrongFileError(TransferError):
    """An address delivered another file than expected."""


class Archive(NamedTuple):
    """An archive as its publisher offers it."""

    url: str
    md5: str
    filename: str


def prepare(root: Path, archive: Archive, proofs: Sequence[str]) -> None:
    """Download and unpack an archive, unless that is done already. Two processes do it once.

    Args:
        root: Folder for the archive and its contents; made where it does not exist.
        archive: What to download.
        proofs: Files below `root` any of which shows that the archive is unpacked.

    Raises:
        UsageError: The download failed; the message says how to supply the archive by hand.
        DataError: The archive is not the official one, or is unsafe to unpack.
    """

    def unpacked() -> bool:
        return any((root / proof).is_file() for proof in proofs)

    if unpacked():
        return
    with locked(root, f"{archive.filename}.prepare.lock"):
        if not unpacked():
            extract(fetch(archive, root), root)


def fetch(archive: Archive, folder: Path) -> Path:
    """Download an archive into a folder and verify it; one that lies there already is verified too.

    The bytes arrive in `FILENAME.part`. A download that breaks off is resumed where it stopped, by this call or a later
    one; the file gets its name only after its hash has been checked. A lock keeps a second process waiting meanwhile.

    Args:
        archive: What to download.
        folder: Where to put it; made where it does not exist.

    Returns:
        The verified file.

    Raises:
        UsageError: No connection, an HTTP error, or the file cannot be written. The message names the address, the
            file and how to supply it by hand.
        DataError: The hash of an existing or freshly downloaded file is wrong.
    """
    target = folder / archive.filename
    if not target.exists():
        with locked(folder, f"{archive.filename}.lock"):
            if not target.exists():
                _download_archive(archive, target)
                return target
    found = file_hash(target, "md5")
    if found != archive.md5:
        raise DataError(
            f"{target} is not the official archive: its md5 is {found}, expected {archive.md5}. "
            f"Delete it and run again to download it from {archive.url}."
        )
    return target


def extract(archive: Path, folder: Path) -> None:
    """Unpack a tar or zip archive whose members are not trusted.

    Members are unpacked beside their destination and moved into place when all of them are complete, so that a
    top-level member exists whole or not at all. Refused are `..`, absolute paths, devices, pipes, and links whose
    target is absolute or contains `..`: links that only lead downwards cannot leave the folder, chained or not.

    Args:
        archive: The archive; its type is read from its content.
        folder: Where its members appear; made where it does not exist.

    Raises:
        DataError: A member is unsafe, the archive is damaged or of unknown type, or a top-level folder exists already.
            Nothing has been written outside a temporary folder, which is removed.
        UsageError: The folder cannot be written.
    """
    temporary = folder / f".{archive.name}.unpacking"
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
        temporary.mkdir(parents=True)
        if tarfile.is_tarfile(archive):
            _unpack_tar(archive, temporary)
        elif zipfile.is_zipfile(archive):
            _unpack_zip(archive, temporary)
        else:
            raise DataError(f"{archive} is neither a tar nor a zip archive, or it is damaged; delete it and download it again.")
        members = list(temporary.iterdir())
        for member in members:
            if (folder / member.name).is_dir():
                raise DataError(f"{folder / member.name} exists already; delete or rename it before unpacking {archive}.")
        for member in members:
            member.replace(folder / member.name)
    except _DAMAGED as error:
        raise DataError(f"{archive} is damaged or unsafe: {error}. Delete it and download it again.") from error
    except OSError as error:
        raise UsageError(f"{archive} cannot be unpacked into {folder}: {error}. Nothing was kept.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unpack_tar(archive: Path, folder: Path) -> None:
    def refuse_unsafe(member: tarfile.TarInfo, destination: str) -> tarfile.TarInfo | None:
        _require_inside(archive, member.name)
        if member.issym() or member.islnk():
            _require_inside(archive, member.linkname, f"link {member.name!r} to ")
        elif not (member.isfile() or member.isdir()):
            raise DataError(f"{archive} is refused: member {member.name!r} is a device or a pipe.")
        return tarfile.data_filter(member, destination)

    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter=refuse_unsafe)


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            _require_inside(archive, member.orig_filename)
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DataError(f"{archive} is refused: member {member.filename!r} is a link, a device or a pipe.")
            opened.extract(member, folder)


def _require_inside(archive: Path, name: str, what: str = "member ") -> None:
    path = PureWindowsPath(name)  # splits at both kinds of slash and knows drives
    if path.drive or path.root or ".." in path.parts:
        raise DataError(f"{archive} is refused: {what}{name!r} leads out of the folder. Download it again from its publisher.")


def _download_archive(archive: Archive, target: Path) -> None:
    by_hand = by_hand_to(target, f"md5:{archive.md5}")
    try:
        download(archive.url, target, f"md5:{archive.md5}")
    except WrongFileError as error:
        raise DataError(f"{error}. {by_hand}") from error
    except TransferError as error:
        raise UsageError(f"{error}. {by_hand}") from error


@contextmanager
def locked(folder: Path, name: str, otherwise: str = "choose another data folder", waiting: str | None = None) -> Iterator[None]:
    """Keep other processes waiting.

    Args:
        folder: Folder of the lock; made where it does not exist.
        name: The lock's file.
        otherwise: What to do where the folder cannot be written, for the message.
        waiting: What is said where another process has kept this one waiting for a while.

    Raises:
        UsageError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / name)
        try:
            lock.acquire(timeout=-1 if waiting is None else PATIENCE)
        except Timeout:
            Console(stderr=True, soft_wrap=True).print(waiting, highlight=False, markup=False)
            lock.acquire()
    except OSError as error:
        raise UsageError(f"{folder} cannot be written ({error}); {otherwise}.") from error
    try:
        yield
    finally:
        lock.release()


def offline() -> bool:
    """Whether `FGZOO_OFFLINE` forbids downloads."""
    return os.environ.get("FGZOO_OFFLINE", "").strip().lower() not in ("", "0", "false", "no")


def by_hand_to(target: Path, digest: str) -> str:
    """The sentence that says how to supply a file which could not be downloaded."""
    return f"Run again to resume, or get the file by other means and put it at {target} ({digest.replace(':', ' ')})."


def has_digest(path: Path, digest: str) -> bool:
    """Whether a file is there and has this hash, e.g. `sha256:...`."""
    return path.is_file() and _digest_like(path, digest) == digest


def _digest_like(path: Path, digest: str) -> str:
    algorithm = digest.partition(":")[0]
    return f"{algorithm}:{file_hash(path, algorithm)}"


def accept(part: Path, target: Path, digest: str, source: str) -> None:
    """Move a file that has arrived into place if its hash is right; delete it otherwise.

    Raises:
        WrongFileError: The hash is wrong.
    """
    found = _digest_like(part, digest)
    if found == digest:
        part.replace(target)
        return
    size = part.stat().st_size
    part.unlink()
    raise WrongFileError(
        f"{source} delivered another file than expected ({found.replace(':', ' ')}, {size} bytes); it was deleted"
    )


def download(url: str, target: Path, digest: str, size: int | None = None, progress: bool = True) -> None:
    """Download a file from one address, verify it and move it into place. The caller holds the lock.

    Args:
        url: An `http` or `https` address.
        target: Where the file goes; the bytes arrive in `TARGET.part`, where a later call resumes.
        digest: The hash it must have, e.g. `sha256:...`.
        size: Its length in bytes, where it is known.
        progress: Show a progress bar on standard error.

    Raises:
        TransferError: The address did not deliver the file, or downloads are forbidden.
        WriteError: The file cannot be written.
        WrongFileError: The address delivered another file.
    """
    if offline():
        raise TransferError(f"{url} could not be downloaded: FGZOO_OFFLINE is set")
    import requests  # here and below: every verb imports this module, hardly any transfers

    transient = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    part = target.with_name(f"{target.name}.part")
    attempt = 0
    while True:
        attempt += 1
        try:
            resumed = _receive(url, part, size, progress)
        except requests.RequestException as error:
            if not isinstance(error, transient) or attempt >= ATTEMPTS:
                raise TransferError(f"{url} could not be downloaded: {error}") from error
        except OSError as error:
            reason = "the disk is full" if error.errno == errno.ENOSPC else str(error)
            raise WriteError(f"{url} could not be written to {part}: {reason}") from error
        else:
            try:
                return accept(part, target, digest, url)
            except WrongFileError:
                # What an earlier call or another address left there may be to blame.
                if not resumed:
                    raise
        log.warning("Download of %s was interrupted; attempt %d of %d follows.", url, attempt + 1, ATTEMPTS)
        time.sleep(PAUSE * 2 ** (attempt - 1))


def _receive(url: str, part: Path, size: int | None, progress: bool) -> bool:
    """Append what is missing to `part`; True where it held some bytes before."""
    import requests

    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416:  # range not satisfiable
            return True  # nothing is missing; the hash decides
        if response.status_code >= 500:
            raise requests.ConnectionError(f"HTTP {response.status_code} {response.reason}")  # it may recover
        response.raise_for_status()
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if not resumed:
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length and length.isdecimal() else None
        if size is not None and total not in (None, size) and "Content-Encoding" not in response.headers:
            raise WrongFileError(f"{url} announces another file than expected ({total} bytes instead of {size})")
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        shown = Progress(*columns, console=Console(stderr=True), disable=not progress)
        with part.open("ab" if resumed else "wb") as file, shown as bar:
            task = bar.add_task(part.stem, total=total, completed=have)
            for chunk in response.iter_content(_CHUNK):
                file.write(chunk)
                bar.advance(task, len(chunk))
                if size is not None and file.tell() > size:
                    break  # it may never end; the hash refuses it
    if total is not None and part.stat().st_size < total:
        raise requests.ConnectionError(f"the connection broke off at {part.stat().st_size} of {total} bytes")
    return resumed
