from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from fgzoo.data.aircraft import read_aircraft
from fgzoo.data.datamodule import FGVCDataModule
from fgzoo.data.images import decode
from fgzoo.data.verify import verify
from fgzoo.errors import DataError, UsageError
from tests.builders import make_aircraft, save, write_lines


@pytest.mark.parametrize("inner", ["", "fgvc-aircraft-2013b", "fgvc-aircraft-2013b/data"])
def test_any_of_three_folders(inner: str, tmp_path: Path) -> None:
    listing = read_aircraft(make_aircraft(tmp_path) / inner)
    assert (len(listing.class_names), len(listing.train), len(listing.test)) == (3, 6, 6)


@pytest.mark.parametrize(
    ("level", "names"),
    [
        ("variant", ("737-200", "737-300", "F/A-18")),
        ("family", ("Boeing 737", "F/A-18")),
        ("manufacturer", ("Boeing", "McDonnell Douglas")),
    ],
)
def test_levels_have_their_classes(level: str, names: tuple[str, ...], tmp_path: Path) -> None:
    listing = read_aircraft(make_aircraft(tmp_path), level)
    assert listing.class_names == names
    assert {record.target for record in listing.train} == set(range(len(names)))


def test_training_is_on_training_and_validation_lists(tmp_path: Path) -> None:
    root = make_aircraft(tmp_path)
    listing = read_aircraft(root)
    data = root / "fgvc-aircraft-2013b" / "data"
    names = {line.split()[0] for part in ("train", "val") for line in open_lines(data / f"images_variant_{part}.txt")}
    assert {record.name for record in listing.train} == names
    assert listing.val == ()


def open_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_boxes_start_at_zero(tmp_path: Path) -> None:
    assert read_aircraft(make_aircraft(tmp_path)).train[0].box == (2.0, 4.0, 40.0, 36.0)


def test_an_image_is_its_file_where_no_banner_is_cut(tmp_path: Path) -> None:
    root = make_aircraft(tmp_path)
    cut, whole = (FGVCDataModule("aircraft", root, banner=banner) for banner in (True, False))
    record = cut.listing.train[0]
    assert whole.source(record) == record.path
    assert torch.equal(torch.as_tensor(cut.source(record)), decode(whole.source(record))[:, :-20])


def test_unknown_level(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="choose variant, family or manufacturer"):
        read_aircraft(make_aircraft(tmp_path), "engine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0000001 Concorde", "class 'Concorde' is unknown"),
        ("0000000 F/A-18", "stands"),
    ],
)
def test_bad_line_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = make_aircraft(tmp_path) / "fgvc-aircraft-2013b" / "data" / "images_variant_trainval.txt"
    lines = open_lines(path)
    write_lines(path, [lines[0], text, *lines[2:]])
    with pytest.raises(DataError, match=rf"images_variant_trainval\.txt, line 2: .*{message}"):
        read_aircraft(tmp_path)


def test_class_listed_twice_is_refused(tmp_path: Path) -> None:
    path = make_aircraft(tmp_path) / "fgvc-aircraft-2013b" / "data" / "variants.txt"
    write_lines(path, [*open_lines(path), "F/A-18"])
    with pytest.raises(DataError, match="names a class twice"):
        read_aircraft(tmp_path)


def test_folder_without_the_data_set_says_what_to_put_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Unpack fgvc-aircraft-2013b\.tar\.gz there"):
        read_aircraft(tmp_path)


@pytest.fixture(scope="module")
def official_lists(tmp_path_factory: pytest.TempPathFactory, real_data: Path) -> Path:
    """The official lists beside 10,000 links to one small picture."""
    root = tmp_path_factory.mktemp("aircraft")
    shutil.copytree(real_data / "aircraft_lists", root, dirs_exist_ok=True)
    data = root / "fgvc-aircraft-2013b" / "data"
    picture = save(data / "images" / "picture.jpg", height=60)
    for line in open_lines(data / "images_box.txt"):
        (data / "images" / f"{line.split()[0]}.jpg").symlink_to(picture)
    return root


@pytest.mark.parametrize(("level", "classes"), [("variant", 100), ("family", 70), ("manufacturer", 30)])
def test_official_lists(level: str, classes: int, official_lists: Path) -> None:
    listing = read_aircraft(official_lists, level)
    assert (len(listing.class_names), len(listing.train), len(listing.test)) == (classes, 6667, 3333)
    assert all(record.box is not None for record in listing.train)


def test_official_lists_are_complete(official_lists: Path) -> None:
    assert verify("aircraft", official_lists).passed
