"""CUB-200-2011: 200 bird species, 11,788 images, boxes and 15 parts; and others in its format, such as NABirds.

Wah, Branson, Welinder, Perona, Belongie: The Caltech-UCSD Birds-200-2011 Dataset. CNS-TR-2011-001, 2011.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from fgzoo.data.download import Archive
from fgzoo.data.lists import by_name, checked, read_box_list, read_rows, read_table, require_same_ids
from fgzoo.data.records import Listing, Part, Record
from fgzoo.errors import DataError

ARCHIVE = Archive(
    url="https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
    md5="97eceeb196236b17998738112f37df78",
    filename="CUB_200_2011.tgz",
)

NOTE = (
    "About two dozen of the official test images are also in ImageNet's training set: "
    "a backbone trained on ImageNet has seen them."
)

#: How CUB-200-2011 calls its classes: `001.Black_footed_Albatross`.
_CLASS_NAME = re.compile(r"(?:0\d\d|1\d\d|200)\.\w[\w-]*", re.ASCII)


def is_cub(class_names: Iterable[str]) -> bool:
    """Whether data in CUB's format is CUB-200-2011 itself, or a part of it, by the names of its classes."""
    return all(map(_CLASS_NAME.fullmatch, class_names))


def read_cub(root: Path) -> Listing:
    """Read the lists and check that every image is there.

    Args:
        root: The folder with `images.txt`, or the one that holds `CUB_200_2011/`. A subset in the same format is legal.

    Returns:
        The official split. Boxes and parts are filled in where `bounding_boxes.txt` and `parts/` exist.

    Raises:
        DataError: A list is missing or inconsistent (file and line are named), or images are missing.
    """
    return checked(list_cub(root), root)


def list_cub(root: Path) -> Listing:
    """What [read_cub][] reads, without a look for the images."""
    folder = _folder(root)
    images = read_table(folder / "images.txt", 2, open_end=True)
    labels = read_table(folder / "image_class_labels.txt", 2)
    splits = read_table(folder / "train_test_split.txt", 2)
    classes = read_table(folder / "classes.txt", 2, open_end=True)
    for table in (labels, splits):
        require_same_ids(table, images)

    def class_number(key: str) -> int:
        if not key.isdecimal():
            raise classes[key].error(f"expected a class number, found {key!r}.")
        return int(key)

    used = {labels[key].fields[1] for key in images}
    ordered = [key for key in sorted(classes, key=class_number) if key in used]
    targets = {key: target for target, key in enumerate(ordered)}
    boxes = read_box_list(folder / "bounding_boxes.txt", lambda x, y, width, height: (x, y, x + width, y + height))
    parts = _parts(folder)

    train: list[Record] = []
    test: list[Record] = []
    for key, row in images.items():
        label, split = labels[key].fields[1], splits[key].fields[1]
        if label not in classes:
            raise labels[key].error(f"class {label!r} is unknown to classes.txt; add it there or remove the image.")
        if split not in ("0", "1"):
            raise splits[key].error(f"expected 1 (training) or 0 (test), found {split!r}.")
        name = row.fields[1]
        record = Record(name, targets[label], folder / "images" / name, boxes.get(key), tuple(parts.get(key, ())))
        (train if split == "1" else test).append(record)
    class_names = tuple(classes[key].fields[1] for key in ordered)
    empty = len(classes) - len(ordered)
    notes = [NOTE] if is_cub(class_names) else []
    notes += [f"Classes of classes.txt that no image has are left out: {empty}."] if empty else []
    return Listing("cub", class_names, by_name(train), by_name(test), notes=tuple(notes))


def _folder(root: Path) -> Path:
    for folder in (root, root / "CUB_200_2011"):
        if (folder / "images.txt").is_file():
            return folder
    raise DataError(
        f"{root} holds no CUB-200-2011: neither images.txt nor CUB_200_2011/images.txt exists. "
        f"Unpack {ARCHIVE.filename} there (from {ARCHIVE.url})."
    )


def _parts(folder: Path) -> dict[str, list[Part]]:
    path = folder / "parts" / "part_locs.txt"
    if not path.is_file():
        return {}
    names = {key: row.fields[1] for key, row in read_table(folder / "parts" / "parts.txt", 2, open_end=True).items()}
    parts: dict[str, list[Part]] = defaultdict(list)
    for row in read_rows(path, 5):
        image, part = row.fields[:2]
        if part not in names:
            raise row.error(f"part {part!r} is unknown to parts.txt.")
        x, y, visible = row.numbers(2)
        if visible:
            parts[image].append(Part(names[part], x, y))
    return parts
