"""Comparing what lies on disk with the official data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fgzoo.data.aircraft import list_aircraft
from fgzoo.data.cars import list_cars
from fgzoo.data.cub import list_cub
from fgzoo.data.folder import read_folder
from fgzoo.data.images import decode
from fgzoo.data.lists import first_five, missing_images
from fgzoo.data.records import Listing
from fgzoo.errors import DataError, UsageError


class Counts(NamedTuple):
    """Size of a data set."""

    classes: int
    train: int
    test: int


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
    "folder": read_folder,
}


@dataclass(frozen=True)
class VerifyReport:
    """What was found.

    Attributes:
        dataset: Name of the data set.
        found: Its size on disk, as listed.
        official: The official size; `None` for a folder of one's own.
        missing: Names of listed images that do not exist.
        undecodable: Message per image that cannot be decoded; empty where none was tried.
        decoded: Number of images that were decoded; 0 where none was tried.
    """

    dataset: str
    found: Counts
    official: Counts | None
    missing: tuple[str, ...] = ()
    undecodable: tuple[str, ...] = ()
    decoded: int = 0

    @property
    def intact(self) -> bool:
        """Every listed image exists, and every one that was tried could be decoded."""
        return not self.missing and not self.undecodable

    @property
    def complete(self) -> bool:
        """Intact, and of official size where there is one; a subset is not complete."""
        return self.intact and self.official in (None, self.found)

    def __str__(self) -> str:
        lines = [f"{self.dataset}: {_sizes(self.found)}"]
        if self.official is not None:
            verdict = "as published" if self.found == self.official else f"a subset or variant of {_sizes(self.official)}"
            lines.append(verdict)
        if self.missing:
            lines.append(f"{len(self.missing)} images missing: {first_five(self.missing)}")
        if self.decoded or self.undecodable:
            lines.append(f"{self.decoded} images decoded, {len(self.undecodable)} failed")
        lines += self.undecodable[:5]
        return "\n".join(lines)


def verify(name: str, root: Path, decode_all: bool = False) -> VerifyReport:
    """Count classes and images, look for every image, and decode them all where asked.

    Args:
        name: `cub`, `cars`, `aircraft` or `folder`.
        root: Folder of the data set.
        decode_all: Decode every image: minutes for an official data set.

    Returns:
        What was found. Missing and broken images are reported, not raised.

    Raises:
        DataError: The lists themselves are missing or inconsistent.
        UsageError: `name` is unknown.
    """
    if name not in _LISTS:
        raise UsageError(f"Unknown data set {name!r}; choose {', '.join(_LISTS)}.")
    listing = _LISTS[name](root)
    missing = missing_images(listing)
    decoded, undecodable = 0, []
    if decode_all:
        absent = set(missing)
        for record in (*listing.train, *listing.val, *listing.test):
            if record.path is None or record.name in absent:
                continue
            try:
                decode(record.path)
                decoded += 1
            except DataError as error:
                undecodable.append(str(error))
    found = Counts(len(listing.class_names), len(listing.train), len(listing.test))
    return VerifyReport(name, found, OFFICIAL.get(name), tuple(missing), tuple(undecodable), decoded)


def _sizes(counts: Counts) -> str:
    return f"{counts.classes} classes, {counts.train} training and {counts.test} test images"
