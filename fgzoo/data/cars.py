"""Stanford Cars: 196 models of cars, 16,185 images with boxes, read from existing copies (the download is gone).

Krause, Stark, Deng, Fei-Fei: 3D Object Representations for Fine-Grained Categorization. 3DRR, 2013.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from fgzoo.data.folder import list_folder
from fgzoo.data.lists import box_from_one, by_name, checked
from fgzoo.data.matlab import read_matlab
from fgzoo.data.records import Listing, Record
from fgzoo.errors import DataError, UsageError
from fgzoo.wording import first_five

#: The official files and their md5; they have no address any more.
OFFICIAL_FILES = {
    "cars_train.tgz": "065e5b463ae28d29e77c1b4b166cfe61",
    "cars_test.tgz": "4ce7ebf6a94d07f1952d94dd34c4d501",
    "car_devkit.tgz": "c3b158d763b6e2245038c8ad08e45376",
    "cars_test_annos_withlabels.mat": "b0a2b23655a3edd16d84508592a98d10",
}

KNOWN_LAYOUTS = (
    "(1) cars_train/*.jpg, cars_test/*.jpg, devkit/cars_meta.mat, devkit/cars_train_annos.mat and "
    "cars_test_annos_withlabels.mat (in devkit/ or beside it); "
    "(2) car_ims/*.jpg and cars_annos.mat; "
    "(3) train/CLASS/*.jpg and test/CLASS/*.jpg"
)


def read_cars(root: Path) -> Listing:
    """Read whichever of the three layouts in circulation is there, and check that every image is.

    Args:
        root: The folder, or the one that holds it as `stanford_cars/`:

            1. `cars_train/`, `cars_test/`, `devkit/`, `cars_test_annos_withlabels.mat` (in `devkit/` or beside it);
            2. `car_ims/` and `cars_annos.mat`;
            3. `train/CLASS/` and `test/CLASS/`, without boxes.

    Returns:
        The official split. A subset in the same format is legal.

    Raises:
        DataError: A list is missing or inconsistent, or images are missing; says where each file must lie.
    """
    return checked(list_cars(root), root)


def list_cars(root: Path) -> Listing:
    """What [read_cars][] reads, in the layouts with lists without a look for the images."""
    for folder in (root, root / "stanford_cars"):
        if (folder / "devkit").is_dir():
            return _devkit(folder)
        if (folder / "cars_train").is_dir():
            raise DataError(
                f"{folder} is Kaggle's copy of Stanford Cars, without the lists of cars_train/ and cars_test/ (cars_annos.mat is "
                "that of car_ims/, whose numbers are others). Get the devkit, a file of its own, and put it there as "
                "devkit/cars_meta.mat, devkit/cars_train_annos.mat and devkit/cars_test_annos_withlabels.mat."
            )
        if (folder / "cars_annos.mat").is_file():
            return _single_list(folder)
        if (folder / "train").is_dir() and (folder / "test").is_dir():
            note = "Read from class folders: there are no boxes, and names and order of classes are the folders'."
            listing = list_folder(folder)
            if absent := listing.lacking(listing.test):
                raise DataError(
                    f"{folder / 'test'}: {len(absent)} classes of train do not occur in test: {first_five(absent)}. This copy of "
                    "Stanford Cars is not whole; unpack it again."
                )
            return replace(listing, dataset="cars", notes=(*listing.notes, note))
    raise DataError(f"{root} holds no Stanford Cars. One of these must lie there: {KNOWN_LAYOUTS}.")


def prepare_cars(root: Path) -> NoReturn:
    """Say how to get the data set into `root`: the official download is gone.

    Raises:
        UsageError: Always; names the files, their hashes and where each must lie.
    """
    files = ", ".join(f"{name} (md5 {md5})" for name, md5 in OFFICIAL_FILES.items())
    raise UsageError(
        f"Stanford Cars cannot be downloaded: its official address no longer exists. Get a copy and put it into "
        f"{root} in one of these layouts: {KNOWN_LAYOUTS}. The official files are {files}."
    )


def _devkit(root: Path) -> Listing:
    class_names = _class_names(root / "devkit" / "cars_meta.mat")
    labelled = "cars_test_annos_withlabels.mat"
    test_list = next((path for path in (root / "devkit" / labelled, root / labelled) if path.is_file()), None)
    if test_list is None:
        raise DataError(
            f"{root / 'devkit' / labelled} is missing; it is a file of its own beside the devkit, whose "
            "cars_test_annos.mat has no labels. Put it into devkit/ or beside it."
        )

    def split(folder: str, path: Path) -> tuple[Record, ...]:
        nested = root / folder / folder  # some copies hold cars_train/cars_train/*.jpg
        images = nested if nested.is_dir() else root / folder
        return by_name(
            _record(path, number, row, class_names, f"{folder}/{row['fname']}", images / str(row["fname"]))
            for number, row in enumerate(_annotations(path, "fname"), start=1)
        )

    train = split("cars_train", root / "devkit" / "cars_train_annos.mat")
    return Listing("cars", class_names, train, split("cars_test", test_list))


def _single_list(root: Path) -> Listing:
    path = root / "cars_annos.mat"
    class_names = _class_names(path)
    train: list[Record] = []
    test: list[Record] = []
    for number, row in enumerate(_annotations(path, "relative_im_path", "test"), start=1):
        name = str(row["relative_im_path"])
        record = _record(path, number, row, class_names, name, root / name)
        (test if row["test"] == 1 else train).append(record)
    return Listing("cars", class_names, by_name(train), by_name(test))


def _record(path: Path, number: int, row: Any, class_names: Sequence[str], name: str, image: Path) -> Record:
    try:
        target = int(row["class"]) - 1
        edges = [float(row[f"bbox_{edge}"]) for edge in ("x1", "y1", "x2", "y2")]
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}, annotation {number}: class and box must be numbers ({error}).") from error
    if not 0 <= target < len(class_names):
        raise DataError(f"{path}, annotation {number}: class {target + 1} is not one of 1 to {len(class_names)}.")
    return Record(name, target, image, box_from_one(*edges))


def _class_names(path: Path) -> tuple[str, ...]:
    return tuple(str(name) for name in _load(path, "class_names"))


def _annotations(path: Path, *fields: str) -> Any:
    rows = _load(path, "annotations")
    needed = {"class", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", *fields}
    if absent := sorted(needed - set(rows.dtype.names or ())):
        raise DataError(f"{path}: the annotations have no {', '.join(absent)}; this is not the official file.")
    return rows


def _load(path: Path, variable: str) -> Any:
    """One variable of a MATLAB file, as an array of at least one dimension."""
    if not path.is_file():
        raise DataError(f"{path} is missing. One of these layouts must be complete: {KNOWN_LAYOUTS}.")
    return read_matlab(path, variable)
