"""Anyone's own images: class folders with or without splits, or a table."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from fgzoo.data.lists import checked, consistent
from fgzoo.data.records import Listing, Record
from fgzoo.data.tables import read_image_table
from fgzoo.data.tree import ARCHIVES, TABLES, Labelled, Split, natural_order, read_class_folders, table_within
from fgzoo.errors import DataError
from fgzoo.wording import first_five


def read_folder(root: Path, csv: Path | None = None) -> Listing:
    """As [list_folder][], with every image there.

    Raises:
        DataError: As there; or images are missing.
    """
    return checked(list_folder(root, csv), root)


def list_folder(root: Path, csv: Path | None = None) -> Listing:
    """Read class folders, or a table, and check that the splits fit together; images of a table need not exist.

    Args:
        root: The folder, see [read_class_folders][fgzoo.data.tree.read_class_folders]; or a table itself.
        csv: A table of the images below `root`, see [read_image_table][fgzoo.data.tables.read_image_table]; `None` reads class
            folders, or the one table in `root` where there are none.

    Returns:
        The listing. Names are paths below `root` with `/`; the notes say what was left out, which classes validation or testing
        have no image of, and which may be meant as one. Classes and images are in natural order (`image2` before `image10`), the
        same on every machine.

    Raises:
        DataError: As the two readers; or a split has a class that training lacks, or there is one class only.
    """
    if root.is_file():
        if csv is not None:
            raise DataError(f"{root} is a file; beside a table, --data.root is the folder of its images.")
        csv = _table(root)
    elif not root.is_dir():
        raise DataError(f"{root} is not a folder; give the folder that holds the class folders.")
    inner = table_within(root) if csv is None else None
    if inner is not None:
        root, splits, notes = read_image_table(inner, root)
        notes = (f"There are no class folders; classes are those of {inner.name}.", *notes)
    elif csv is not None:
        root, splits, notes = read_image_table(csv, None if csv == root else root)
    else:
        splits, notes = read_class_folders(root)
    _require_known_classes(root, splits)

    class_names = tuple(sorted({label for label, _ in splits["train"]}, key=natural_order))
    targets = {name: target for target, name in enumerate(class_names)}
    stored = {path.as_posix() for labelled in splits.values() for _, path in labelled}

    def record(label: str, path: Path) -> Record:
        name = path.as_posix()
        composed = unicodedata.normalize("NFC", name)
        # Two files may differ in how accents are stored, and in nothing else.
        return Record(name if composed in stored else composed, targets[label], root / path)

    parts = {split: tuple(record(label, path) for label, path in splits.get(split, ())) for split in get_args(Split)}
    listing = Listing("folder", class_names, parts["train"], parts["test"], parts["val"], notes=notes)
    more = (*_alike_classes(class_names), *absent_classes(listing, listing.val, listing.test))
    return consistent(replace(listing, notes=(*notes, *more)), root)


def _alike_classes(class_names: Sequence[str]) -> list[str]:
    """A line for classes whose names differ in nothing but case, spaces, or how a number is written."""
    alike: dict[str, list[str]] = {}
    for name in class_names:
        alike.setdefault(re.sub(r"(?<=\d)\.0+$", "", re.sub(r"[\s_-]+", "", name.casefold())), []).append(repr(name))
    shown = [" and ".join(names) for names in alike.values() if len(names) > 1]
    return [f"Classes of their own, though their names hardly differ: {first_five(shown)}."] if shown else []


def absent_classes(listing: Listing, val: Sequence[Record], test: Sequence[Record]) -> list[str]:
    """A line for each part that has images, but not of every class."""
    return [
        f"{split} has no image of {len(absent)} of the {len(listing.class_names)} classes, which get no score there: "
        f"{first_five(absent)}."
        for split, records in (("val", val), ("test", test))
        if records and (absent := listing.lacking(records))
    ]


def _table(path: Path) -> Path:
    """A file that was given for a folder, where it is a table."""
    suffix = path.suffix.lower()
    if suffix in ARCHIVES:
        folder = path.with_suffix("")
        there = f"{folder} lies beside it: give that" if folder.is_dir() else f"unpack it and give the folder, e.g. {folder}"
        raise DataError(f"{path} is an archive, and images are read from folders; {there}.")
    if suffix not in TABLES and suffix not in (".xlsx", ".xls", ".ods"):
        raise DataError(f"{path} is a file; give the folder that holds the class folders, or a table ({' '.join(TABLES)}).")
    return path


def _require_known_classes(root: Path, splits: Mapping[Split, Labelled]) -> None:
    trained = {label for label, _ in splits["train"]}
    for split in ("val", "test"):
        classes = {label for label, _ in splits.get(split, ())}
        if alone := sorted(classes - trained, key=natural_order):
            alike = {name.strip().casefold(): name for name in trained}
            near = next((name for name in alone if name.strip().casefold() in alike), None)
            hint = "" if near is None else f" ({near!r} is {alike[near.strip().casefold()]!r} in train)"
            raise DataError(
                f"{root}: {len(alone)} classes occur in {split} and not in train: {first_five(alone)}{hint}. "
                "Add training images or remove them."
            )
