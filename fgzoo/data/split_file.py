"""Which part every image is in, as a run keeps it: parts that were drawn stay, whatever is added to a folder later."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fgzoo.data.lists import Row, read_text
from fgzoo.data.records import Listing, Record
from fgzoo.data.tree import Split, split_of
from fgzoo.errors import DataError
from fgzoo.files import atomic_write

HEADER = ("path", "label", "split")


def write_split(path: Path, class_names: Sequence[str], splits: Mapping[Split, Sequence[Record]]) -> None:
    """Write a table of path, label and split, which also does for `--data.csv` where its names are usual ones.

    Args:
        path: The file; it is written in one move.
        class_names: Names by class index.
        splits: The images.
    """
    # File names need not be valid UTF-8; their bytes come out as they are.
    with atomic_write(path) as part, part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)  # whose own line ends are what it quotes in names
        writer.writerow(HEADER)
        writer.writerows((r.name, class_names[r.target], split) for split, records in splits.items() for r in records)


def read_parts(path: Path) -> dict[str, tuple[Row, str, Split]]:
    """What a run's table says of every image: its row, its label and its part.

    Raises:
        DataError: The table cannot be read.
    """
    reader = csv.reader(io.StringIO(read_text(path, errors="surrogateescape"), newline=""))
    try:
        rows = list(reader)
    except csv.Error as error:
        raise Row(path, reader.line_num, ()).error(f"not a CSV line ({error}).") from error
    if not rows or tuple(rows[0]) != HEADER:
        raise DataError(f"{path}, line 1: expected the header {','.join(HEADER)}, as a run's split.csv has it.")
    found = {}
    for line, fields in enumerate(rows[1:], start=2):
        row = Row(path, line, tuple(fields))
        if len(fields) != len(HEADER):
            raise row.error(f"expected {len(HEADER)} columns, found {len(fields)}.")
        name, label, said = fields
        split = split_of(said)
        if split is None:
            raise row.error(f"unknown split {said!r}.")
        found[name] = row, label, split
    return found


def read_split(path: Path, listing: Listing) -> tuple[dict[str, Split], Listing]:
    """Give images the parts that a run's table says they are in.

    Args:
        path: What [write_split][] has written.
        listing: The data as it is now.

    Returns:
        Part by image, of those that are gone, too; and the listing whose test images are the table's, without images and classes
        that the table does not know.

    Raises:
        DataError: The table cannot be read, or images of it are of another class.
    """
    said = read_parts(path)
    parts = {name: split for name, (_, _, split) in said.items()}
    known = [record for record in listing.records if record.name in parts]
    for record in known:
        row, label, _ = said[record.name]
        if (now := listing.class_names[record.target]) != label:
            raise row.error(f"{record.name!r} is of class {now!r} now, and was of {label!r}.")
    new = len(listing.records) - len(known)
    labels = {label for _, label, _ in said.values()}
    class_names = tuple(name for name in listing.class_names if name in labels)
    if class_names != tuple(listing.class_names):
        targets = {name: target for target, name in enumerate(class_names)}
        known = [replace(record, target=targets[listing.class_names[record.target]]) for record in known]
    note = f"Images left out because {path.name} of the run does not know them, added since or unreadable then: {new}."
    own_val = {record.name for record in listing.val}
    return parts, replace(
        listing,
        class_names=class_names,
        train=tuple(record for record in known if parts[record.name] != "test" and record.name not in own_val),
        val=tuple(record for record in known if record.name in own_val),
        test=tuple(record for record in known if parts[record.name] == "test"),
        notes=(*listing.notes, note) if new else listing.notes,
    )
