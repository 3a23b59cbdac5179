"""Which data set a path means: an official one, class folders, or a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from fgzoo.data.datamodule import DatasetName, FGVCDataModule
from fgzoo.data.split import stratified_holdout
from fgzoo.errors import DataError
from fgzoo.files import user_path
from fgzoo.wording import first_five

#: Shares that are set apart where the data itself has no such part: of all images for testing, of the others for validation.
TEST_FRACTION = 0.2
VAL_FRACTION = 0.1

#: Files that an official data set has, below the folder that is meant.
_MARKS: dict[DatasetName, tuple[str, ...]] = {
    "cub": ("image_class_labels.txt", "CUB_200_2011/image_class_labels.txt"),
    "cars": ("cars_annos.mat", "devkit/cars_meta.mat", "stanford_cars/cars_annos.mat", "stanford_cars/devkit/cars_meta.mat"),
    "aircraft": ("variants.txt", "data/variants.txt", "fgvc-aircraft-2013b/data/variants.txt"),
}
_TITLES: dict[DatasetName, str] = {
    "cub": "CUB-200-2011's lists",
    "cars": "Stanford Cars' lists",
    "aircraft": "FGVC-Aircraft's lists",
}


class Layout(NamedTuple):
    """What was found.

    Attributes:
        name: The data set, as `--data.name` takes it.
        arguments: What the data module needs beside its name: `root`, and for a person's own data what sets apart the parts that
            it lacks (`test_fraction`, `val_fraction`, `group_duplicates`).
        sentence: What that is, for the person.
        notes: What was left out and why.
    """

    name: DatasetName
    arguments: dict[str, Any]
    sentence: str
    notes: tuple[str, ...]


def find(path: str | Path, given: Mapping[str, Any] = MappingProxyType({})) -> Layout:
    """Find out what a folder or file of images is.

    Args:
        path: A folder in an official format, a folder of class folders, or a table.
        given: Arguments of the data module that were typed; they win over what is chosen here.

    Returns:
        The data set that it is, with a test and a validation part set apart where a person's own data has none.

    Raises:
        DataError: There is nothing, or nothing that can be read as a data set; says what to do.
    """
    root = user_path(path)
    if not root.exists():
        raise DataError(f"{path}: no such file or folder; give the folder that holds the class folders, or a table.")
    for official, marks in _MARKS.items():
        if any((root / mark).is_file() for mark in marks):
            return Layout(official, {"root": str(root)}, f"{root}: {_TITLES[official]}.", ())
    csv, folds, split_file = (given.get(name) for name in ("csv", "folds", "split_file"))
    listing = FGVCDataModule("folder", root, num_workers=0, csv=csv and str(csv)).listing
    arguments: dict[str, Any] = {"root": str(root)}
    together = given.get("group_duplicates") in (None, True)
    apart, rest = [], listing.train
    if split_file:
        apart.append(f"parts are those of {split_file}")
    elif len({record.target for record in rest}) == len(rest):  # of a class's only image nothing can be set apart
        apart.append("no class has a second image, so that none is set apart for validation or testing")
    else:
        for name, own, usual, what in (
            ("test_fraction", listing.test, TEST_FRACTION, "of each class are set apart for testing"),
            ("val_fraction", listing.val or folds, VAL_FRACTION, "of the training images for validation"),
        ):
            typed = given.get(name)
            fraction = typed if isinstance(typed, int | float) else usual
            if own or not fraction:
                continue
            arguments[name] = fraction
            rest, held_out = stratified_holdout(rest, fraction, seed=0)
            few = listing.lacking(held_out)
            none = f", except of {len(few)} classes with too few images ({first_five(few)})" if few else ""
            apart.append(f"{100 * fraction:g}% {what}{none}")
        if folds:
            apart.append(f"fold {given.get('fold', 0)} of {folds} of the training images for validation")
        if apart and together:
            arguments["group_duplicates"] = True
            apart.append("near-duplicates stay together")
    parts = {"training": listing.train, "validation": listing.val, "test": listing.test}
    sizes = ", ".join(f"{len(records)} {part}" for part, records in parts.items() if records)
    sentence = f"{root}: {len(listing.class_names)} classes, {sizes} images" + "".join(f"; {said}" for said in apart)
    return Layout("folder", arguments, f"{sentence}.", listing.notes)
