"""Comparing what lies on disk with the official data set."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fgzoo.data.aircraft import list_aircraft
from fgzoo.data.cars import list_cars
from fgzoo.data.cub import list_cub
from fgzoo.data.datamodule import usable_cores
from fgzoo.data.duplicates import told
from fgzoo.data.folder import list_folder
from fgzoo.data.images import decode
from fgzoo.data.lists import copied_files, missing_images
from fgzoo.data.records import Listing
from fgzoo.errors import DataError, UsageError
from fgzoo.files import is_file
from fgzoo.wording import first_five


class Counts(NamedTuple):
    """Size of a data set."""

    classes: int
    train: int
    test: int

    def __str__(self) -> str:
        return f"{self.classes} classes, {self.train} training and {self.test} test images"


#: Sizes of the official releases (Aircraft: variants, training and validation together).
OFFICIAL = {
    "cub": Counts(classes=200, train=5994, test=5794),
    "cars": Counts(classes=196, train=8144, test=8041),
    "aircraft": Counts(classes=100, train=6667, test=3333),
}

_LISTS: dict[str, Callable[[Path], Listing]] = {
    "cub": list_cub,
    "cars": list_cars,
    "aircraft": list_aircraft,
    "folder": list_folder,
}


@dataclass(frozen=True)
class VerifyReport:
    """What was found.

    Attributes:
        dataset: Name of the data set.
        found: Its size on disk, as listed.
        official: The official size; `None` for a folder of one's own.
        missing: Names of listed images that do not exist.
        copied: Names of validation and test images that are files of another split, too, byte by byte.
        contradicted: Names of images that are files of another class, too.
        undecodable: Message per image that cannot be decoded; empty where none was tried.
        decoded: Number of images that were decoded; 0 where none was tried.
    """

    dataset: str
    found: Counts
    official: Counts | None
    missing: tuple[str, ...]
    copied: tuple[str, ...]
    contradicted: tuple[str, ...]
    undecodable: tuple[str, ...]
    decoded: int

    @property
    def passed(self) -> bool:
        """No image is missing or cannot be decoded; the size is the official one, or, of own data, no image is in two parts."""
        whole = self.official == self.found or (self.official is None and not self.copied and not self.contradicted)
        return whole and not self.missing and not self.undecodable

    def __str__(self) -> str:
        lines = [f"{self.dataset}: {self.found}"]
        if self.official is not None:
            lines.append("as published" if self.found == self.official else f"a subset or variant of {self.official}")
        if self.missing:
            lines.append(f"{len(self.missing)} images missing: {first_five(self.missing)}")
        if self.copied:
            lines.append(f"{len(self.copied)} images of validation and test are in another split, too: {first_five(self.copied)}")
        if self.contradicted:
            lines.append(f"{len(self.contradicted)} images are in another class, too: {first_five(self.contradicted)}")
        if self.decoded or self.undecodable:
            lines.append(f"{self.decoded} images decoded, {len(self.undecodable)} failed")
        lines += self.undecodable[:5]
        return "\n".join(lines)


def verify(name: str, root: Path, decode_all: bool | None = None) -> VerifyReport:
    """Count classes and images, look for every image, and for files that are in two splits or classes; decode them all.

    Args:
        name: `cub`, `cars`, `aircraft` or `folder`.
        root: Folder of the data set.
        decode_all: Decode every image: a minute for an official data set; `None`: those of a folder of one's own alone.

    Returns:
        What was found. Missing and broken images are reported, not raised.

    Raises:
        DataError: The lists themselves are missing or inconsistent.
        UsageError: `name` is unknown.
    """
    if name not in _LISTS:
        raise UsageError(f"Unknown data set {name!r}; choose {', '.join(_LISTS)}.")
    listing = _LISTS[name](root)
    chosen = listing.records if decode_all or (decode_all is None and name == "folder") else ()
    files = [record.path for record in chosen if record.path is not None and is_file(record.path)]
    with ThreadPoolExecutor(usable_cores()) as pool:
        undecodable = list(filter(None, told(pool.map(_why_undecodable, files), len(files), "Decoding")))
    found = Counts(len(listing.class_names), len(listing.train), len(listing.test))
    missing = tuple(missing_images(listing))
    copied, contradicted = map(tuple, copied_files({"train": listing.train, "val": listing.val, "test": listing.test}))
    decoded = len(files) - len(undecodable)
    return VerifyReport(name, found, OFFICIAL.get(name), missing, copied, contradicted, tuple(undecodable), decoded)


def _why_undecodable(path: Path) -> str | None:
    try:
        decode(path, enough=1)  # of a JPEG file all is read, and an eighth of its size made
    except DataError as error:
        return str(error)
    return None
