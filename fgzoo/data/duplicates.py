"""Photos that show the same picture: copies of a file, and copies that were resized, compressed, recoloured, cut or mirrored.

A picture is described by how its brightness changes from each cell of a 16 x 16 grid to the next, down and to the right, scaled
to length 1. Two pictures are near-duplicates where the cosine of their descriptions, or of one's and that of the other's mirror
image, is at least [SIMILARITY][]. All pairs are compared, by matrix products.

Source: the differences of the difference hash (dHash; N. Krawetz, "Kind of Like That", hackerfactor.com, 2013), as numbers
instead of signs and on a finer grid; the threshold is our decision. Among 2,889 photos of fifty bird species, 2,457 of sixty cars
cut out by their boxes, and 1,500 synthetic birds, two of different scenes reach 0.80, 0.86 and 0.72. JPEG at quality 30, a sixth
of the size, a third more light, less contrast, no colour, a caption, or a rotation by one degree leave at least 0.89 in 99 % of
the photos; half of those that lose 3 % of each side keep 0.89, most that lose a tenth are not found.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import PIL
import torch.nn.functional as F
from filelock import FileLock
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from fgzoo.data.cache import disk_folder, stamp_of
from fgzoo.data.images import decode
from fgzoo.data.records import Record
from fgzoo.errors import DataError, UsageError
from fgzoo.files import file_hash, write_json

#: From which cosine on two pictures are the same one.
SIMILARITY = 0.87
#: Cells a side of the grid.
GRID = 16
#: Pixels that a side keeps when a file is decoded.
ENOUGH = 4 * GRID
#: Where brightness changes by less than this, of 255, from cell to cell (root mean square), there is nothing to compare.
FLAT = 0.5
#: Pictures whose descriptions are compared with all others at once.
BLOCK = 512
#: After so many seconds a person is told what takes so long.
PATIENCE = 2.0

Groups = tuple[tuple[int, ...], ...]
_Item = TypeVar("_Item")


class NearDuplicates(NamedTuple):
    """Which of N images are the same picture, as indices into them, in ascending order.

    Attributes:
        groups: Near-duplicates, two or more together; of a group, each image is near at least one other. No image is in two.
        identical: Images whose files are the same to the last byte (of pictures that were read: whose pixels are). Each of these
            groups lies within one of `groups`.
        unreadable: Why an image could not be compared, by index.
    """

    groups: Groups
    identical: Groups
    unreadable: dict[int, str]


def near_duplicates(
    images: Sequence[Path] | Sequence[Record],
    read: Callable[[Record], Tensor] | None = None,
    similarity: float = SIMILARITY,
    threads: int = 1,
) -> NearDuplicates:
    """Find near-duplicates among images.

    Beside decoding, 10,000 images take four seconds on one core, 40,000 three quarters of a minute; each takes 2 KB of memory.

    Args:
        images: Files, or records of a data set.
        read: How the data set reads a record, see [Listing][fgzoo.data.records.Listing]; `None`: by decoding its file.
        similarity: From which cosine, at most 1, on two pictures are the same.
        threads: How many read files at once.

    Returns:
        The groups.
    """
    with ThreadPoolExecutor(threads) as pool:
        seen = list(told(pool.map(lambda image: _look(image, read), images), len(images), "Looking for near-duplicates among"))
    digests: dict[str, list[int]] = defaultdict(list)
    unreadable = {}
    for index, found in enumerate(seen):
        if isinstance(found, str):
            unreadable[index] = found
        else:
            digests[found[0]].append(index)
    identical = tuple(tuple(members) for members in digests.values() if len(members) > 1)
    # Copies stand for one another, so that many of them make few pairs.
    firsts = np.array([members[0] for members in digests.values()], dtype=np.int64)
    cells = np.stack([seen[first][1] for first in firsts]) if len(firsts) else np.empty((0, GRID, GRID), np.float32)
    labels = _components(*_description(cells), similarity)
    groups: dict[int, list[int]] = defaultdict(list)
    for label, members in zip(labels.tolist(), digests.values(), strict=True):
        groups[label] += members
    return NearDuplicates(
        tuple(sorted(tuple(sorted(members)) for members in groups.values() if len(members) > 1)), identical, unreadable
    )


def known_near_duplicates(
    records: Sequence[Record],
    read: Callable[[Record], Tensor] | None = None,
    cache_folder: str | Path | None = None,
    threads: int = 1,
) -> NearDuplicates:
    """As [near_duplicates][], but found once by all processes of a machine and all runs, as long as no file changes.

    Args:
        records: Images of a data set.
        read: As there; pictures that are not decoded from files are not kept in mind.
        cache_folder: Where what was found is kept, in the subfolder `duplicates`; see
            [disk_folder][fgzoo.data.cache.disk_folder]. Where nothing can be written there, the images are compared.
        threads: How many read files at once.
    """
    # In an order that is the same whichever parts they are in.
    order = sorted(range(len(records)), key=lambda index: records[index].name)
    ordered = [records[index] for index in order]
    path = _kept_at(ordered, cache_folder) if read is None else None
    if path is None:
        return near_duplicates(records, read, threads=threads)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A process that comes second waits for what the first one finds.
        with FileLock(path.with_suffix(".lock")):
            found = _read_kept(path)
            if found is None:
                found = near_duplicates(ordered, threads=threads)
                # What cannot be read may be readable once a package is installed.
                if not found.unreadable:
                    write_json(path, {"groups": found.groups, "identical": found.identical})
    except OSError:
        return near_duplicates(records, threads=threads)

    def placed(groups: Groups) -> Groups:
        return tuple(sorted(tuple(sorted(order[place] for place in members)) for members in groups))

    unreadable = {order[place]: reason for place, reason in found.unreadable.items()}
    return NearDuplicates(placed(found.groups), placed(found.identical), unreadable)


def _kept_at(records: Sequence[Record], cache_folder: str | Path | None) -> Path | None:
    """Where what was found of these very files is kept; `None` without a place for it, or where one of them is missing."""
    digest = hashlib.sha256(f"{SIMILARITY} {GRID} {ENOUGH} {FLAT} {PIL.__version__}".encode())
    try:
        for record in records:
            assert record.path is not None
            stamp = stamp_of(record)
            if stamp.size < 0:
                return None
            digest.update(f"\n{record.name} {record.path.resolve()} {stamp}".encode(errors="surrogateescape"))
        return disk_folder(cache_folder, "duplicates") / f"{digest.hexdigest()[:32]}.json"
    except (OSError, UsageError):
        return None


def _read_kept(path: Path) -> NearDuplicates | None:
    try:
        content = json.loads(path.read_bytes())
        groups, identical = (tuple(map(tuple, content[name])) for name in ("groups", "identical"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return NearDuplicates(groups, identical, {})


def told(items: Iterable[_Item], total: int, what: str) -> Iterator[_Item]:
    """Hand items on; where that takes long, say on standard error what is done to how many images, in a terminal with a bar."""
    console = Console(stderr=True, soft_wrap=True)
    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task, started, said = bar.add_task("", total=total), time.monotonic(), False
    try:
        for item in items:
            bar.advance(task)
            if not said and time.monotonic() - started > PATIENCE:
                console.print(f"{what} {total} images", highlight=False)
                bar.start()
                said = True
            yield item
    finally:
        bar.stop()


def _look(image: Path | Record, read: Callable[[Record], Tensor] | None) -> tuple[str, NDArray[np.float32]] | str:
    """The digest of an image, and the mean brightness of its cells, (GRID, GRID); or why it cannot be read."""
    try:
        if read is not None and isinstance(image, Record):
            pixels = read(image)
            digest = hashlib.sha256(f"{tuple(pixels.shape)}".encode() + pixels.contiguous().numpy().tobytes()).hexdigest()
        else:
            path = image.path if isinstance(image, Record) else image
            assert path is not None, "a record without a file is read by its data set"
            pixels, digest = decode(path, enough=ENOUGH), file_hash(path, "sha256")
    except (DataError, OSError) as error:
        return str(error)
    grey = pixels.float().mean(dim=0, keepdim=True)
    return digest, F.adaptive_avg_pool2d(grey, GRID)[0].numpy()


def _description(cells: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Brightness (N, GRID, GRID) -> two parts of descriptions of length 1, both (N, GRID^2 / 2), or 0 where a picture is flat.

    The cosine transform has the steps between neighbours for its eigenvectors: weighted by the roots of their eigenvalues, its
    coefficients have the inner products of the differences themselves, in half the numbers. Mirroring leaves the first part
    (even columns) and negates the second (odd ones).
    """
    steps = 4 * np.sin(np.pi * np.arange(GRID) / (2 * GRID)) ** 2
    waves = dctn(cells, axes=(1, 2), norm="ortho") * np.sqrt(steps[:, None] + steps)
    lengths = np.linalg.norm(waves, axis=(1, 2), keepdims=True)
    flat = lengths < FLAT * GRID
    waves = np.where(flat, 0, waves / np.where(flat, 1, lengths)).astype(np.float32)
    even, odd = (np.ascontiguousarray(waves[:, :, first::2]).reshape(len(waves), GRID * GRID // 2) for first in (0, 1))
    return even, odd


def _components(even: NDArray[np.float32], odd: NDArray[np.float32], similarity: float) -> NDArray[np.int64]:
    """A label for each of N pictures by their descriptions, the same for those that a chain of near ones connects."""
    count = len(even)
    labels = np.arange(count)
    for start in range(0, count, BLOCK):
        some = slice(start, start + BLOCK)
        cosines = odd[some] @ odd[start:].T
        # Of a picture and its mirror image the one that is nearer.
        np.abs(cosines, out=cosines)
        cosines += even[some] @ even[start:].T
        first, second = np.nonzero(cosines >= similarity)
        # What is connected so far stays connected: a picture and the one that its label names are an edge, too.
        rows, columns = np.concatenate([first + start, np.arange(count)]), np.concatenate([second + start, labels])
        graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(count, count))
        components = connected_components(graph, directed=False)[1]
        labels = np.unique(components, return_index=True)[1][components]
    return labels
