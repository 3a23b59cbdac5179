"""Checkpoints of the zoo as verified files on this machine. Importing this module imports no torch.

Files that are here already (inside the package, in a checkout of the repository, in the cache) are used where their hash is
right; else the sources are asked in order. The transfer is that of [fgzoo.data.download][].
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sys
from pathlib import Path
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

from fgzoo.checkpoints.hub import SCHEME, fetch_from_hub
from fgzoo.checkpoints.registry import SUFFIX, ZooEntry, base_url, find_entry
from fgzoo.data.download import TransferError, WriteError, accept, by_hand_to, download, has_digest, locked, offline
from fgzoo.errors import CheckpointError
from fgzoo.files import user_path

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).parents[1]
#: The root of the repository, where fgzoo runs from a checkout.
CHECKOUT = PACKAGE.parent


def cache_folder() -> Path:
    """Where downloaded checkpoints lie: below `FGZOO_CACHE`, else below ~/.cache/fgzoo.

    Raises:
        CheckpointError: There is no home folder.
    """
    try:
        given = os.environ.get("FGZOO_CACHE")
        base = user_path(given) if given else Path.home() / ".cache" / "fgzoo"
    except RuntimeError as error:
        raise CheckpointError(
            "download: there is no home folder to keep checkpoints in; set FGZOO_CACHE to a folder for them"
        ) from error
    return base.absolute() / "checkpoints"


def fetch_checkpoint(name: str) -> Path:
    """A checkpoint of the zoo as a verified file; downloaded where it is not here yet. Two processes do it once.

    Args:
        name: A name of [list_checkpoints][fgzoo.list_checkpoints], or an address on the hub, see [fgzoo.checkpoints.hub][].

    Returns:
        The file, whose hash is right.

    Raises:
        CheckpointError: There is no such checkpoint, or no source delivered it. The message says how to supply it by hand.
        UsageError: The cache cannot be written.
    """
    if name.startswith(SCHEME):
        try:
            return fetch_from_hub(name)
        except TransferError as error:
            raise CheckpointError(f"download: {error}") from error
    entry = find_entry(name)
    digest = f"sha256:{entry.sha256}"
    for path in _own_files(entry):
        if has_digest(path, digest):
            return path
    target = cache_folder() / f"{entry.name}{SUFFIX}"
    if has_digest(target, digest):
        return target
    with locked(target.parent, f"{target.name}.lock", "set FGZOO_CACHE to a folder that can"):
        if has_digest(target, digest):
            return target
        if target.exists():
            log.warning("%s is damaged or of another version; it is fetched again.", target)
        _fetch(entry, target, digest)
    return target


def _own_files(entry: ZooEntry) -> list[Path]:
    """The places inside the package and the checkout where the file may lie."""
    places = []
    for source in entry.sources:
        scheme, colon, rest = source.partition(":")
        if scheme == "package":
            places.append(PACKAGE / rest)
        elif not colon:
            places.append(CHECKOUT / source)
    return places


def _addresses(entry: ZooEntry) -> list[str]:
    """Where a checkpoint can be fetched from, in order; a path in the repository stands for its file at the base address."""
    base = base_url()
    found = []
    for source in entry.sources:
        if ":" in source:
            found += [] if source.startswith("package:") else [source]
        elif base is not None:
            found.append(f"{base}/{quote(source.rpartition('/')[2])}")
    return list(dict.fromkeys(found))


def _fetch(entry: ZooEntry, target: Path, digest: str) -> None:
    """Ask one address after another."""
    asked = _addresses(entry)
    by_hand = by_hand_to(target, digest)
    if offline():
        remote = [address for address in asked if not address.startswith("file:")]
        asked = [address for address in asked if address not in remote]
        if not asked:
            state = "damaged" if target.exists() else "not on this machine"
            whence = f" from {', '.join(remote)}" if remote else ""
            raise CheckpointError(
                f"download: {entry.name} is {state}, and FGZOO_OFFLINE forbids fetching it{whence}; unset FGZOO_OFFLINE, or get "
                f"the file by other means and put it at {target} ({digest.replace(':', ' ')})."
            )
    if not asked:
        raise CheckpointError(
            f"download: {entry.name} has no address to fetch it from; set FGZOO_ZOO_URL to one that holds {target.name}, or put "
            f"the file at {target} ({digest.replace(':', ' ')})."
        )
    failures = []
    for address in asked:
        try:
            return _get(address, target, digest, entry.size)
        except WriteError as error:
            raise CheckpointError(f"download: {error}; make room or set FGZOO_CACHE to another folder. {by_hand}") from error
        except TransferError as error:
            log.debug("%s", error)
            failures.append(str(error))
    raise CheckpointError(f"download: {entry.name}: {'; '.join(failures)}. {by_hand}")


def _get(address: str, target: Path, digest: str, size: int) -> None:
    if address.startswith(("http:", "https:")):
        return download(address, target, digest, size, progress=sys.stderr.isatty())
    source = fetch_from_hub(address) if address.startswith("hf:") else Path(url2pathname(urlsplit(address).path))
    part = target.with_name(f"{target.name}.part")
    if not source.is_file():
        raise TransferError(f"{address} could not be copied: no file {source}")
    try:
        shutil.copyfile(source, part)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise WriteError(f"{address} could not be written to {part}: the disk is full") from error
        raise TransferError(f"{address} could not be copied: {error}") from error
    return accept(part, target, digest, address)
