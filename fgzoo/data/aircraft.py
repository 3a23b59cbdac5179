"""FGVC-Aircraft 2013b: 10,000 images, labelled at three levels (100 variants, 70 families, 30 manufacturers).

Maji, Rahtu, Kannala, Blaschko, Vedaldi: Fine-Grained Visual Classification of Aircraft. arXiv:1306.5151, 2013.
"""

from __future__ import annotations

from pathlib import Path

from fgzoo.data.download import Archive
from fgzoo.data.lists import box_from_one, by_name, checked, read_box_list, read_lines, read_table
from fgzoo.data.records import AircraftLevel, Listing, Record
from fgzoo.errors import DataError, UsageError

ARCHIVE = Archive(
    url="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
    md5="d4acdd33327262359767eeaa97a4f732",
    filename="fgvc-aircraft-2013b.tar.gz",
)

_CLASS_FILES = {"variant": "variants.txt", "family": "families.txt", "manufacturer": "manufacturers.txt"}


def read_aircraft(root: Path, level: AircraftLevel = "variant") -> Listing:
    """Read the lists and check that every image is there.

    Training is on the official `trainval` lists, as in all published figures, so `val` stays empty.

    Args:
        root: The folder that holds `fgvc-aircraft-2013b/`, that folder itself, or its `data/`.
        level: Which of the three label hierarchies is the target.

    Returns:
        The official split, with boxes where `images_box.txt` exists. A subset in the same format is legal.

    Raises:
        DataError: A list is missing or inconsistent (file and line are named), or images are missing.
        UsageError: `level` is unknown.
    """
    return checked(list_aircraft(root, level), root)


def list_aircraft(root: Path, level: AircraftLevel = "variant") -> Listing:
    """What [read_aircraft][] reads, without a look for the images."""
    if level not in _CLASS_FILES:
        raise UsageError(f"Unknown level {level!r}; choose variant, family or manufacturer.")
    folder = _folder(root)
    class_names = [name for _, name in read_lines(folder / _CLASS_FILES[level])]
    targets = {name: target for target, name in enumerate(class_names)}
    if len(targets) != len(class_names):
        raise DataError(f"{folder / _CLASS_FILES[level]} names a class twice; remove one of the two.")
    boxes = read_box_list(folder / "images_box.txt", box_from_one)

    def split(name: str) -> tuple[Record, ...]:
        records = []
        for key, row in read_table(folder / f"images_{level}_{name}.txt", 2, open_end=True, header="Image").items():
            label = row.fields[1]
            if label not in targets:
                raise row.error(f"class {label!r} is unknown to {_CLASS_FILES[level]}; add it there or remove the line.")
            records.append(Record(key, targets[label], folder / "images" / f"{key}.jpg", boxes.get(key)))
        return by_name(records)

    note = f"Labels of level {level}; the training split is the official training and validation lists together."
    return Listing("aircraft", tuple(class_names), split("trainval"), split("test"), notes=(note,))


def _folder(root: Path) -> Path:
    for folder in (root, root / "data", root / "fgvc-aircraft-2013b" / "data"):
        if (folder / "variants.txt").is_file():
            return folder
    raise DataError(
        f"{root} holds no FGVC-Aircraft: neither data/variants.txt nor fgvc-aircraft-2013b/data/variants.txt exists. "
        f"Unpack {ARCHIVE.filename} there (from {ARCHIVE.url})."
    )
