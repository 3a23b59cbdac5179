from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fgzoo import FGVCDataModule
from fgzoo.data.layouts import find
from fgzoo.errors import DataError
from tests.builders import make_aircraft, make_cars, make_cub, make_folder, save, write_lines

APART = {"test_fraction": 0.2, "val_fraction": 0.1, "group_duplicates": True}


@pytest.mark.parametrize(("name", "make"), [("cub", make_cub), ("cars", make_cars), ("aircraft", make_aircraft)])
def test_official_formats_are_known(name: str, make: Any, tmp_path: Path) -> None:
    make(tmp_path)
    assert find(tmp_path)[:2] == (name, {"root": str(tmp_path)})


@pytest.mark.parametrize(
    ("splits", "lacking"),
    [
        ((), APART),
        (("train", "test"), {"val_fraction": 0.1, "group_duplicates": True}),
        (("train", "valid"), {"test_fraction": 0.2, "group_duplicates": True}),
        (("train", "valid", "test"), {}),
    ],
)
def test_parts_that_are_lacking_are_to_be_set_apart(splits: tuple[str, ...], lacking: dict[str, Any], tmp_path: Path) -> None:
    found = find(make_folder(tmp_path, splits=splits))
    assert found[:2] == ("folder", {"root": str(tmp_path), **lacking})
    assert FGVCDataModule(found.name, **found.arguments, num_workers=0).splits["test"]


def test_a_table_is_known(tmp_path: Path) -> None:
    make_folder(tmp_path, splits=())
    path = write_lines(tmp_path / "list.csv", [f"class {i}/image{j}.jpg,{i}" for i in range(3) for j in range(4)])
    found = find(path)
    assert found[:2] == ("folder", {"root": str(path), **APART})
    assert "list.csv: 3 classes, 12 training images; 20% of each class are set apart for testing; " in found.sentence


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"val_fraction": 0, "test_fraction": 0.5},
            "50% of each class are set apart for testing; near-",
        ),
        ({"val_fraction": 0, "test_fraction": 0}, "12 training images."),
        ({"test_fraction": 0, "group_duplicates": False}, "12 training images; 10% of the training images for validation."),
        (
            {"folds": 4, "fold": 1, "test_fraction": 0},
            "images; fold 1 of 4 of the training images for validation; near",
        ),
        ({"split_file": "split.csv"}, "12 training images; parts are those of split.csv."),
    ],
)
def test_what_is_typed_is_what_is_said(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    found = find(make_folder(tmp_path, splits=()), given)
    assert said in found.sentence
    parts = {name for name in ("test_fraction", "val_fraction") if given.get(name) == 0}
    assert not parts & set(found.arguments)


@pytest.mark.parametrize("parts", [{}, {"folds": 4, "fold": 1}])
def test_near_duplicates_that_may_be_parted_stay_so(parts: dict[str, int], tmp_path: Path) -> None:
    found = find(make_folder(tmp_path, splits=()), {"group_duplicates": False, **parts})
    assert "group_duplicates" not in found.arguments
    assert "near-duplicates" not in found.sentence


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((6, 6, 1), ("for testing, except of 1 classes with too few images (2); ", "for validation, except of 1 classes")),
        ((2, 2), ("set apart for testing; ", "for validation, except of 2 classes with too few images (0, 1); ")),
    ],
)
def test_classes_too_small_for_a_part_are_told(sizes: tuple[int, ...], said: tuple[str, ...], tmp_path: Path) -> None:
    for target, size in enumerate(sizes):
        for index in range(size):
            save(tmp_path / str(target) / f"{index}.jpg", target, index)
    sentence = find(tmp_path).sentence
    assert all(part in sentence for part in said), sentence


def test_a_table_in_a_folder_is_not_called_class_folders(tmp_path: Path) -> None:
    for target in range(2):
        save(tmp_path / "images" / f"{target}.jpg", target)
    write_lines(tmp_path / "list.csv", ["path,label", "images/0.jpg,crow", "images/1.jpg,wren"])
    found = find(tmp_path)
    assert "class folders" not in found.sentence
    assert found.notes == ("There are no class folders; classes are those of list.csv.",)


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    make_folder(tmp_path / "archive", splits=())
    assert find(tmp_path).notes == ("Read from archive/, in which everything lies.",)


def test_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent: no such file or folder"):
        find(tmp_path / "absent")
