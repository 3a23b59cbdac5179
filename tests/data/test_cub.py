from __future__ import annotations

import random
from pathlib import Path

import pytest

from fgzoo.data.cub import read_cub
from fgzoo.data.images import decode
from fgzoo.data.records import Part
from fgzoo.data.verify import Counts, verify
from fgzoo.errors import DataError, UsageError
from tests.builders import make_cub, save, write_lines


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("inner", ["", "CUB_200_2011"])
def test_root_or_the_folder_above(inner: str, tmp_path: Path) -> None:
    make_cub(tmp_path)
    listing = read_cub(tmp_path / inner)
    assert (len(listing.class_names), len(listing.train), len(listing.test)) == (3, 6, 6)


def test_record_of_an_image(tmp_path: Path) -> None:
    folder = make_cub(tmp_path)
    record = read_cub(tmp_path).train[0]
    assert record.name == "001.Black_footed_Albatross/Black_footed_Albatross_0000_1.jpg"
    assert record.path == folder / "images" / record.name
    assert record.target == 0
    assert record.box == (4.0, 6.0, 34.0, 26.0)


def test_only_visible_parts_are_read(tmp_path: Path) -> None:
    make_cub(tmp_path)
    assert read_cub(tmp_path).train[0].parts == (Part("left wing", 10.0, 12.0),)


def test_boxes_and_parts_are_optional(tmp_path: Path) -> None:
    folder = make_cub(tmp_path, parts=False)
    (folder / "bounding_boxes.txt").unlink()
    record = read_cub(tmp_path).train[0]
    assert record.box is None
    assert record.parts == ()


def test_order_of_the_lists_does_not_matter(tmp_path: Path) -> None:
    folder = make_cub(tmp_path)
    expected = read_cub(tmp_path).fingerprint()
    for path in folder.glob("*.txt"):
        lines = lines_of(path)
        random.Random(path.name).shuffle(lines)
        write_lines(path, lines)
    assert read_cub(tmp_path).fingerprint() == expected


def test_classes_are_ordered_by_number(tmp_path: Path) -> None:
    folder = make_cub(tmp_path, classes=2)
    write_lines(folder / "classes.txt", ["10 ten", "9 nine"])
    labels = lines_of(folder / "image_class_labels.txt")
    write_lines(folder / "image_class_labels.txt", [f"{line.split()[0]} {8 + int(line.split()[1])}" for line in labels])
    assert read_cub(tmp_path).class_names == ("nine", "ten")


@pytest.mark.parametrize("name", ["with space.jpg", "\u00fcml\u00e4ut.jpg", "dots.in.name.JPG"])
def test_unusual_file_names(name: str, tmp_path: Path) -> None:
    folder = make_cub(tmp_path)
    lines = lines_of(folder / "images.txt")
    lines[0] = f"1 001.Black_footed_Albatross/{name}"
    write_lines(folder / "images.txt", lines)
    save(folder / "images" / "001.Black_footed_Albatross" / name)
    assert any(record.name.endswith(name) for record in read_cub(tmp_path).train)


BAD_LINES = [
    ("images.txt", 2, "1 again.jpg", "identifier '1' stands already on line 1"),
    ("image_class_labels.txt", 3, "3 77", "class '77' is unknown to classes.txt"),
    ("image_class_labels.txt", 3, "999 1", "identifier '999' is unknown to images.txt"),
    ("image_class_labels.txt", 3, "3 1 1", "expected 2 columns, found 3"),
    ("train_test_split.txt", 4, "4 train", "expected 1 .training. or 0 .test., found 'train'"),
    ("classes.txt", 1, "one first", "expected a class number"),
    ("bounding_boxes.txt", 2, "2 4.0 6.0 30.0 wide", "expected numbers"),
    ("parts/part_locs.txt", 2, "1 9 0 0 0", "part '9' is unknown"),
]


@pytest.mark.parametrize(("file", "line", "text", "message"), BAD_LINES)
def test_bad_line_is_named(file: str, line: int, text: str, message: str, tmp_path: Path) -> None:
    folder = make_cub(tmp_path)
    lines = lines_of(folder / file)
    lines[line - 1] = text
    write_lines(folder / file, lines)
    with pytest.raises(DataError, match=rf"{Path(file).name}, line {line}: {message}"):
        read_cub(tmp_path)


@pytest.mark.parametrize("file", ["image_class_labels.txt", "train_test_split.txt", "classes.txt"])
def test_missing_list_is_named(file: str, tmp_path: Path) -> None:
    (make_cub(tmp_path) / file).unlink()
    with pytest.raises(DataError, match=f"{file} is missing"):
        read_cub(tmp_path)


def test_folder_without_the_data_set_says_what_to_put_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Unpack CUB_200_2011\.tgz there \(from https://"):
        read_cub(tmp_path)


def test_overlap_with_imagenet_is_noted(tmp_path: Path) -> None:
    make_cub(tmp_path)
    assert "ImageNet" in read_cub(tmp_path).notes[0]


def test_what_is_known_of_cub_is_not_said_of_others_in_its_format(tmp_path: Path) -> None:
    folder = make_cub(tmp_path, classes=2)
    write_lines(folder / "classes.txt", ["1 Oak Titmouse", "2 Mallard (Female/Juvenile)"])
    assert read_cub(tmp_path).notes == ()


def test_verify_calls_a_subset_a_subset(tmp_path: Path) -> None:
    make_cub(tmp_path)
    report = verify("cub", tmp_path, decode_all=True)
    assert report.found == Counts(3, 6, 6)
    assert (report.decoded, report.missing, report.undecodable) == (12, (), ())
    assert not report.passed
    assert "a subset or variant of 200 classes, 5994 training and 5794 test images" in str(report)


def test_verify_reports_missing_and_broken_images(tmp_path: Path) -> None:
    folder = make_cub(tmp_path)
    missing, broken, *_ = sorted(folder.rglob("*.jpg"))
    missing.unlink()
    broken.write_bytes(broken.read_bytes()[:-20])
    report = verify("cub", tmp_path, decode_all=True)
    assert len(report.missing) == 1
    assert len(report.undecodable) == 1
    assert broken.name in str(report)
    assert not report.passed


def test_verify_refuses_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="choose cub, cars, aircraft, folder"):
        verify("dogs", tmp_path)


def test_real_subset(real_data: Path) -> None:
    listing = read_cub(real_data / "cub50")
    assert (len(listing.class_names), len(listing.train), len(listing.test)) == (50, 1500, 1389)
    record = listing.train[0]
    _, height, width = decode(record.path).shape
    x0, y0, x1, y1 = record.box
    assert 0 <= x0 < x1 <= width + 1
    assert 0 <= y0 < y1 <= height + 1


def test_classes_that_no_image_has_are_left_out_with_a_word(tmp_path: Path) -> None:
    folder = make_cub(tmp_path)
    names = (folder / "classes.txt").read_text().splitlines()
    write_lines(folder / "classes.txt", ["0 Birds", "1009 Ducks, Geese, and Swans", *names])
    listing = read_cub(tmp_path)
    assert listing.class_names == tuple(name.partition(" ")[2] for name in names)
    assert listing.notes[-1] == "Classes of classes.txt that no image has are left out: 2."
