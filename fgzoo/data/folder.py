"""Anyone's own images: class folders with or without splits, or a CSV file."""

from __future__ import annotations

import csv as csv_format
import io
import re
import unicodedata
from collections import Counter
from pathlib import Path

from fgzoo.data.lists import Row, checked, first_five, read_text
from fgzoo.data.records import Listing, Record
from fgzoo.data.split import stratified_holdout
from fgzoo.errors import DataError, UsageError

#: Suffixes that are read, in any case.
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
#: What systems leave behind beside hidden files, in lower case.
LITTER = ("__macosx", "thumbs.db", "desktop.ini")

_SPLITS = ("train", "val", "test")

#: One split: label and image path below the root, in natural order.
_Labelled = list[tuple[str, Path]]


def read_folder(root: Path, csv: Path | None = None, test_fraction: float = 0.0, seed: int = 0) -> Listing:
    """Read class folders, or a CSV file, and check that the splits fit together.

    Three forms are understood:

    * `root/train/CLASS/*`, and `root/val/CLASS/*` and `root/test/CLASS/*` where they exist;
    * one tree, `root/CLASS/*`: everything is training data;
    * a CSV file with the columns `path` (below `root`), `label` and `split` (`train`, `val` or `test`).

    Images lie directly in their class folder. Classes and images are in natural order (`image2` before `image10`), the
    same on every machine. Hidden files, `Thumbs.db`, `desktop.ini` and `__MACOSX` are ignored; so are files that are no
    images, whose number is given in the listing's notes.

    Args:
        root: The folder.
        csv: The CSV file; `None` reads class folders.
        test_fraction: Where the data has no test split, hold out this fraction of every class.
        seed: Seed of that choice.

    Returns:
        The listing. Names are paths below `root` with `/`.

    Raises:
        DataError: A class folder is empty or nested, a split lacks a class or has one of its own, there is one class
            only, a CSV line is wrong (its number is given), or images are missing.
        UsageError: `test_fraction` is given although the data has a test split, or is outside [0, 1).
    """
    ignored: Counter[str] = Counter()
    if csv is not None:
        splits = _from_csv(csv)
    elif not root.is_dir():
        raise DataError(f"{root} is not a folder; give the folder that holds the class folders.")
    elif any(entry.is_dir() for entry in _entries(root / "train")):
        splits = {split: _from_classes(root, root / split, ignored) for split in _SPLITS if (root / split).is_dir()}
    else:
        splits = {"train": _from_classes(root, root, ignored)}
    _require_same_classes(root, splits)

    class_names = tuple(sorted({label for label, _ in splits["train"]}, key=natural_order))
    targets = {name: target for target, name in enumerate(class_names)}
    train, val, test = (
        tuple(Record(_posix(path), targets[label], root / path) for label, path in splits.get(split, ())) for split in _SPLITS
    )
    notes = []
    if test_fraction:
        if test:
            raise UsageError(f"{root} has a test split of its own; leave test_fraction at 0.")
        train, test = stratified_holdout(train, test_fraction, seed)
        notes.append(f"The test split is {test_fraction:g} of every class, drawn with seed {seed}.")
    if ignored:
        kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in sorted(ignored.items()))
        notes.append(f"Files ignored because they are no images: {kinds}.")
    return checked(Listing("folder", class_names, train, test, val, notes=tuple(notes)), root)


def find_images(folder: Path, above: frozenset[Path] = frozenset()) -> list[Path]:
    """The image files below a folder at any depth, in natural order; litter and files that are no images are ignored.

    Args:
        folder: The folder.
        above: Folders that this one lies in; a link back to one of them is not followed.

    Returns:
        Their paths; a folder's images stand where its name does among its neighbours.
    """
    here = folder.resolve()
    if here in above:
        return []
    found: list[Path] = []
    for entry in _entries(folder):
        if entry.is_dir():
            found += find_images(entry, above | {here})
        elif entry.suffix.lower() in IMAGE_SUFFIXES:
            found.append(entry)
    return found


def natural_order(text: str) -> tuple[list[str | int], str]:
    """Sort key of paths under which `image2` comes before `image10`, independent of locale and file system."""
    composed = unicodedata.normalize("NFC", text)  # some file systems store accents as characters of their own
    pieces = re.split(r"([0-9]+)", composed)
    return [int(piece) if index % 2 else piece.casefold() for index, piece in enumerate(pieces)], composed


def _posix(path: Path) -> str:
    return unicodedata.normalize("NFC", path.as_posix())


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, without litter, in natural order; nothing where there is no folder."""
    if not folder.is_dir():
        return []
    kept = [entry for entry in folder.iterdir() if entry.name[0] != "." and entry.name.lower() not in LITTER]
    return sorted(kept, key=lambda entry: natural_order(entry.name))


def _from_classes(root: Path, tree: Path, ignored: Counter[str]) -> _Labelled:
    labelled = []
    for folder in _entries(tree):
        if not folder.is_dir():
            ignored[folder.suffix.lower()] += 1
            continue
        images = []
        for entry in _entries(folder):
            if entry.is_dir():
                raise DataError(f"{entry} is a folder inside a class folder; move its images up into {folder}.")
            if entry.suffix.lower() in IMAGE_SUFFIXES:
                images.append((unicodedata.normalize("NFC", folder.name), entry.relative_to(root)))
            else:
                ignored[entry.suffix.lower()] += 1
        if not images:
            raise DataError(f"Class folder {folder} holds no image ({' '.join(IMAGE_SUFFIXES)}); fill it or delete it.")
        labelled += images
    if not labelled:
        raise DataError(f"{tree} holds no class folder; images lie in one folder per class.")
    return labelled


def _from_csv(csv: Path) -> dict[str, _Labelled]:
    reader = csv_format.DictReader(io.StringIO(read_text(csv), newline=""), strict=True)
    splits: dict[str, _Labelled] = {"train": []}
    seen: dict[str, int] = {}
    last = 1
    try:
        columns = tuple(reader.fieldnames or ())
        if sorted(columns) != ["label", "path", "split"]:
            found = ",".join(columns)
            raise Row(csv, 1, columns).error(f"expected the header path,label,split, found {found!r}.")
        for fields in reader:
            last = reader.line_num
            row = Row(csv, last, ())
            if None in fields or None in fields.values():
                raise row.error("expected 3 columns: path,label,split.")
            path, label, split = (fields[column].strip() for column in ("path", "label", "split"))
            if split not in _SPLITS:
                raise row.error(f"unknown split {split!r}; choose train, val or test.")
            if not path or not label:
                raise row.error("path and label must not be empty.")
            if path in seen:
                raise row.error(f"{path!r} stands already on line {seen[path]}; remove one of the two.")
            seen[path] = last
            splits.setdefault(split, []).append((unicodedata.normalize("NFC", label), Path(path)))
    except csv_format.Error as error:
        raise Row(csv, last + 1, ()).error(f"not a CSV line ({error}).") from error
    return {split: sorted(labelled, key=lambda item: natural_order(_posix(item[1]))) for split, labelled in splits.items()}


def _require_same_classes(root: Path, splits: dict[str, _Labelled]) -> None:
    trained = {label for label, _ in splits["train"]}
    for split in ("val", "test"):
        if split not in splits:
            continue
        classes = {label for label, _ in splits[split]}
        if alone := sorted(classes - trained, key=natural_order):
            raise DataError(
                f"{root}: {len(alone)} classes occur in {split} and not in train: {first_five(alone)}. "
                "Add training images or remove them."
            )
        if absent := sorted(trained - classes, key=natural_order):
            raise DataError(
                f"{root}: {len(absent)} classes of train do not occur in {split}: {first_five(absent)}. "
                f"Add images to {split} or remove the classes from train."
            )
