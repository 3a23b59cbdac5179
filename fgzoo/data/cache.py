"""Images as they are after decoding and resizing, in one file that loader workers, ranks and later runs share.

A cache is two files: `NAME.pixels`, the images one after another and 16 random bytes, and `NAME.json`, which says where each
image lies and which file it was made from. Both are written under another name and moved into place when they are complete;
the random bytes show that they belong together. `NAME` holds a hash of all settings that decide the pixels.
"""

from __future__ import annotations

import errno
import hashlib
import inspect
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import PIL
import torch
import torchvision
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from fgzoo.data.download import locked
from fgzoo.data.loader import Loader
from fgzoo.data.records import Record
from fgzoo.errors import DataError, UsageError
from fgzoo.files import atomic_write, user_path

CacheMode = Literal["none", "disk"]

#: Version of the files' layout and of the resize; a higher one makes every older file obsolete.
FORMAT = 1
#: Share of a file system's free space that a cache may take: a run on a full disk loses its checkpoints, and where the cache
#: lies in /dev/shm, loader workers pass their batches through it.
ROOM = 0.9

_TOKEN = 16
_GB = 1e9
_WAYS_OUT = "give another --data.cache_folder, choose a smaller data.resize, or use --data.cache none"


class Stamp(NamedTuple):
    """What a look at a file's metadata tells; a write that keeps size and modification time still changes `ctime_ns`."""

    size: int
    mtime_ns: int
    ctime_ns: int


class CachedImage(NamedTuple):
    """An image in the cache.

    Attributes:
        offset: Its first byte.
        height: In pixels; 0: the image could not be read and is not in the cache.
        width: In pixels.
        channels_last: Order of its bytes: (H, W, 3), as decoders write them, else (3, H, W).
        stamp: The file it was made from.
        digest: Hash of that file's bytes.
    """

    offset: int
    height: int
    width: int
    channels_last: bool
    stamp: Stamp
    digest: str


class Manifest(NamedTuple):
    """What a file of pixels holds.

    Attributes:
        token: Its last 16 bytes, in hexadecimal digits.
        length: Its length in bytes.
        entries: The images by name.
    """

    token: str
    length: int
    entries: dict[str, CachedImage]


class ImageCache:
    """Reads images from a file in which they lie decoded and resized; fills it first where that is needed.

    The file is opened by every process for itself, so that the object can be sent to workers, whether they are forked or spawned.
    An image that could not be read is not in the file: it is read anew each time, and raises what it raises without a cache.

    Args:
        folder: Where caches lie; made where it does not exist.
        label: Beginning of the file's name, for those who look into the folder.
        settings: All that decides an image's pixels beside its file; one file for each.
        read: Record -> upright uint8 (3, H, W).
        resize: uint8 (3, H, W) -> uint8 (3, H', W'), nothing random.
        side: The least of H' and W' in pixels.
        limit_gb: Largest size of the file in GB (10^9 bytes).
    """

    def __init__(
        self,
        folder: Path,
        label: str,
        settings: Mapping[str, object],
        read: Callable[[Record], Tensor],
        resize: Callable[[Tensor], Tensor],
        side: int,
        limit_gb: float,
    ) -> None:
        text = json.dumps({"format": FORMAT, **settings}, sort_keys=True)
        key = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        self.path = folder / f"{label}-{key}.pixels"
        self.source = read
        self.resize = resize
        self.side = side
        self.limit_gb = limit_gb
        self._manifest: Manifest | None = None
        self._pixels: np.memmap[Any, np.dtype[np.uint8]] | None = None

    def __getstate__(self) -> dict[str, object]:
        """A worker opens the file for itself."""
        return {**self.__dict__, "_pixels": None}

    # ------------------------------------------------------------------ reading

    @property
    def ready(self) -> bool:
        """Whether images can be read: [prepare][ImageCache.prepare] has been called."""
        return self._manifest is not None

    def read(self, record: Record) -> Tensor:
        """An image after decoding and resizing.

        Args:
            record: One of those that the cache was prepared for.

        Returns:
            uint8 (3, H', W'), the caller's own copy, with the strides that the resize gives it.

        Raises:
            DataError: The image cannot be read.
            UsageError: The file was removed or replaced since the cache was prepared.
        """
        assert self._manifest is not None
        entry = self._manifest.entries[record.name]
        if entry.height == 0:
            return self.resize(self.source(record))
        if self._pixels is None:
            self._pixels = self._map(self._manifest)
            if self._pixels is None:
                raise UsageError(f"data.cache: {self.path} was removed or replaced while this run used it; start the run again")
        size = 3 * entry.height * entry.width
        pixels = torch.from_numpy(np.array(self._pixels[entry.offset : entry.offset + size]))
        if entry.channels_last:
            return pixels.view(entry.height, entry.width, 3).permute(2, 0, 1)
        return pixels.view(3, entry.height, entry.width)

    def _map(self, manifest: Manifest) -> np.memmap[Any, np.dtype[np.uint8]] | None:
        """The file of pixels; `None` where it is not there, broken off, or another than the manifest's."""
        try:
            pixels = np.memmap(self.path, dtype=np.uint8, mode="r")
        except (OSError, ValueError):  # absent, empty
            return None
        matches = len(pixels) == manifest.length and pixels[-_TOKEN:].tobytes() == bytes.fromhex(manifest.token)
        return pixels if matches else None

    # ------------------------------------------------------------------ preparing

    def prepare(self, records: Sequence[Record], num_workers: int = 0) -> None:
        """Make sure that the file holds these records as they are now; fill it where it does not.

        Every file is looked at: where size or times differ from what they were, its bytes are hashed, and where those differ too,
        the cache is filled anew. One process fills; others wait for it and use the result.

        Args:
            records: All images, of all splits.
            num_workers: Processes that decode; 0: this one does.

        Raises:
            UsageError: There is not enough room, or the folder cannot be written.
        """
        records = list({record.name: record for record in records}.values())
        waiting = f"Waiting for another process that fills {self.path}"
        with locked(self.path.parent, f"{self.path.stem}.lock", _WAYS_OUT, waiting):
            try:
                manifest = self._current_manifest(records)
                if manifest is None:
                    self._clean_up()
                    manifest = self._fill(records, num_workers)
            except OSError as error:
                reason = "no space is left" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
                raise UsageError(f"data.cache: {self.path} cannot be written ({reason}); {_WAYS_OUT}") from error
            # Opened before workers are forked: they see the same file, whatever lies there later.
            self._manifest, self._pixels = manifest, self._map(manifest)

    def _clean_up(self) -> None:
        """Remove what is obsolete: the file about to be replaced, and what killed processes left half written."""
        self.path.unlink(missing_ok=True)
        for path in list(self.path.parent.glob("*.pixels.part")):
            name = path.name.partition(".")[0]
            if name == self.path.stem:
                continue
            with suppress(Timeout, OSError), FileLock(path.with_name(f"{name}.lock")).acquire(timeout=0):
                path.unlink(missing_ok=True)

    # ------------------------------------------------------------------ the manifest

    def _current_manifest(self, records: Sequence[Record]) -> Manifest | None:
        """The manifest, unless the cache must be filled anew."""
        manifest = _read_manifest(self.path.with_suffix(".json"))
        if manifest is None or self._map(manifest) is None:
            return None
        touched = {}
        for record in records:
            entry = manifest.entries.get(record.name)
            if entry is None:
                return None
            stamp = stamp_of(record)
            if stamp != entry.stamp:
                if _digest(record) != entry.digest:
                    return None
                touched[record.name] = entry._replace(stamp=stamp)
        if touched:
            manifest.entries.update(touched)
            _write_manifest(self.path.with_suffix(".json"), manifest)
        return manifest

    # ------------------------------------------------------------------ filling

    def _fill(self, records: Sequence[Record], num_workers: int) -> Manifest:
        """Write every image that can be read, and then the manifest."""
        part = self.path.with_suffix(".pixels.part")
        token = os.urandom(_TOKEN)
        try:
            with part.open("wb") as file:
                entries, length = self._write_images(file, records, num_workers)
                file.write(token)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.path)
        finally:
            part.unlink(missing_ok=True)
        manifest = Manifest(token.hex(), length + _TOKEN, entries)
        _write_manifest(self.path.with_suffix(".json"), manifest)
        return manifest

    def _write_images(self, file: BinaryIO, records: Sequence[Record], num_workers: int) -> tuple[dict[str, CachedImage], int]:
        """Write the images one after another; returns where they lie, and the end of the last one."""
        count, length = len(records), 0
        free = int(shutil.disk_usage(self.path.parent).free * ROOM)
        least = 3 * self.side**2 * count
        self._check_room(least, free, f"{count} images take at least {least / _GB:.3g} GB")
        loader = Loader(
            records,
            batch_size=None,
            num_workers=num_workers,
            collate_fn=self._resized,  # of one record, as there are no batches
            # Without one of its own, a loader draws from torch's: a run that fills would differ from one that does not.
            generator=torch.Generator(),
        )
        entries: dict[str, CachedImage] = {}
        with _progress(count, self.path) as advance:
            for record, (pixels, entry) in zip(records, loader, strict=True):
                entries[record.name] = entry._replace(offset=length)
                if pixels is not None:
                    length += pixels.numel()
                    guess = length / len(entries) * count / _GB
                    self._check_room(length, free, f"{count} images take about {guess:.3g} GB")
                    file.write(pixels.numpy())
                advance()
        return entries, length

    def _resized(self, record: Record) -> tuple[Tensor | None, CachedImage]:
        """The bytes of an image, `None` where it cannot be read, and its entry, whose offset is not yet known."""
        # Looked at before it is decoded: a file that changes in between will not look the same when the cache is next opened.
        stamp, digest = stamp_of(record), _digest(record)
        try:
            image = self.resize(self.source(record))
        except DataError:
            return None, CachedImage(0, 0, 0, False, stamp, digest)
        rows = image.permute(1, 2, 0)
        channels_last = rows.is_contiguous()
        pixels = rows if channels_last else image
        return pixels.reshape(-1), CachedImage(0, image.shape[1], image.shape[2], channels_last, stamp, digest)

    def _check_room(self, needed: int, free: int, about: str) -> None:
        if needed > self.limit_gb * _GB:
            raise UsageError(
                f"data.cache_limit_gb: {about}, the limit is {self.limit_gb:g} GB; raise it, choose a smaller data.resize, or "
                "use --data.cache none"
            )
        if needed > free:
            raise UsageError(f"data.cache: {about}, and {self.path.parent} has room for {free / _GB:.3g} GB; {_WAYS_OUT}")


# ---------------------------------------------------------------------- where, and under which name


def disk_folder(given: str | Path | None, kind: str = "images") -> Path:
    """The folder of caches on disk.

    Args:
        given: The folder that holds it; by default the environment variable FGZOO_CACHE, else `~/.cache/fgzoo`.
        kind: Its name there.

    Raises:
        UsageError: Nothing is given, and there is no home folder.
    """
    home = os.environ.get("HOME") or os.environ.get("USERPROFILE")
    base = given or os.environ.get("FGZOO_CACHE") or (home and Path(home, ".cache", "fgzoo"))
    if not base:
        raise UsageError("data.cache_folder: there is no home folder to cache images in; give --data.cache_folder PATH")
    return user_path(base) / kind


def pixel_versions(decoder: str, *modules: ModuleType) -> dict[str, str]:
    """What else decides an image's pixels: versions of libraries, the processor, and the code of our own modules that make it.

    Args:
        decoder: `torchcodec`, `pillow` or `generated`.
        *modules: Those modules.
    """
    source = "".join(inspect.getsource(module) for module in modules)
    return {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
        "numpy": np.__version__,
        "torchcodec": version("torchcodec") if decoder == "torchcodec" else "",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "code": hashlib.blake2b(source.encode(), digest_size=8).hexdigest(),
    }


# ---------------------------------------------------------------------- files


def stamp_of(record: Record) -> Stamp:
    """That of a record's file; of one that is not there the size is -1."""
    if record.path is None:
        return Stamp(0, 0, 0)  # the settings of generated images are in the cache's name
    try:
        found = record.path.stat()
    except OSError:
        return Stamp(-1, 0, 0)
    return Stamp(found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _digest(record: Record) -> str:
    """Hash of the file's bytes; empty where there is no file, or none that can be read: decoding it says why."""
    if record.path is None:
        return ""
    try:
        with record.path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError:
        return ""


def _read_manifest(path: Path) -> Manifest | None:
    """A manifest; `None` where there is none, or a damaged one."""
    try:
        content = json.loads(path.read_bytes())
        entries = {name: CachedImage(*row) for name, row in content["entries"].items()}
        entries = {name: entry._replace(stamp=Stamp(*entry.stamp)) for name, entry in entries.items()}
        return Manifest(content["token"], content["length"], entries)
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError):
        return None


def _write_manifest(path: Path, manifest: Manifest) -> None:
    with atomic_write(path) as part:
        part.write_text(json.dumps(manifest._asdict()), encoding="utf-8")


@contextmanager
def _progress(total: int, path: Path) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, else a line; yields what is to be called for every image."""
    console = Console(stderr=True, soft_wrap=True)
    if not console.is_terminal:
        console.print(f"Caching {total} images in {path}", highlight=False, markup=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"caching images in {path.parent}", total=total)
        yield lambda: bar.advance(task)
