from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fgzoo import FGVCDataModule
from fgzoo.data.layouts import find
from fgzoo.errors import DataError
from tests.builders import make_aircraft, make_cars, make_cub, make_folder, write_lines

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
    assert "a table, 3 classes, 12 training images; 20% of each class are set apart for testing; " in found.sentence


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    make_folder(tmp_path / "archive", splits=())
    assert find(tmp_path).notes == ("Read from archive/, in which everything lies.",)


def test_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent: no such file or folder"):
        find(tmp_path / "absent")
