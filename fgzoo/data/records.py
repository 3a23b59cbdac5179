"""What a data set knows about its images before any of them is opened."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor

#: What a class of FGVC-Aircraft is.
AircraftLevel = Literal["variant", "family", "manufacturer"]

#: x0, y0, x1, y1 in pixels of the upright image.
Box = tuple[float, float, float, float]


class Part(NamedTuple):
    """A visible part of the object: its name and centre in pixels of the upright image."""

    name: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Record:
    """One image as its data set lists it.

    Attributes:
        name: Identifier inside the data set, the same on every machine (usually the path below the root, with `/`).
        target: Class index in `[0, num_classes)`.
        path: The image file; `None` where the image is generated.
        box: Bounding box of the object, where the data set has one. Never used in training or testing.
        parts: Visible parts, where the data set has them. Never used in training or testing.
    """

    name: str
    target: int
    path: Path | None = None
    box: Box | None = None
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Listing:
    """A data set as its lists describe it; no image has been opened.

    Attributes:
        dataset: `cub`, `cars`, `aircraft`, `folder` or `birds`.
        class_names: Names by class index.
        train: Records of the training split (the official one, validation included where the protocol trains on it).
        test: Records of the test split; may be empty for a user's own data.
        val: Records of a validation split that the data set itself names; empty where it names none.
        read: Turns a record into an upright uint8 image (3, H, W). `None` means: decode the file at `record.path`.
        identity: What else tells this data from others whose lists are alike (generated images: their settings).
        notes: Facts that must stand beside any number measured on this data.
    """

    dataset: str
    class_names: tuple[str, ...]
    train: tuple[Record, ...]
    test: tuple[Record, ...]
    val: tuple[Record, ...] = ()
    read: Callable[[Record], Tensor] | None = None
    identity: str = ""
    notes: tuple[str, ...] = ()

    @property
    def records(self) -> tuple[Record, ...]:
        """All records in the order training, validation, test."""
        return (*self.train, *self.val, *self.test)

    def lacking(self, records: Iterable[Record]) -> list[str]:
        """Names of the classes that none of some records is of."""
        there = {record.target for record in records}
        return [name for target, name in enumerate(self.class_names) if target not in there]

    def fingerprint(self) -> str:
        """Sixteen digits of a SHA-256 of names, classes, splits and identity: two runs on the same lists have the same."""
        digest = hashlib.sha256(self.identity.encode())
        for class_name in self.class_names:
            digest.update(f"class {class_name}\n".encode())
        for split, records in (("train", self.train), ("val", self.val), ("test", self.test)):
            for record in records:
                digest.update(f"{split} {record.target} {record.name}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]
