from __future__ import annotations

from pathlib import Path

import pytest

from fgzoo.data.lists import box_from_one, checked, read_lines, read_rows, read_table, require_same_ids
from fgzoo.data.records import Listing, Record
from fgzoo.errors import DataError
from fgzoo.wording import first_five


def listed(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "content",
    [b"1 a\n2 b\n", b"1 a\r\n2 b\r\n", b"\xef\xbb\xbf1 a\n2 b\n", b"\xef\xbb\xbf1 a\r\n2 b", b"1 a\n\n2 \t b \n\n"],
    ids=["plain", "crlf", "bom", "bom and crlf", "blank lines"],
)
def test_text_variants_read_alike(content: bytes, tmp_path: Path) -> None:
    assert [row.fields for row in read_rows(listed(tmp_path, content), 2)] == [("1", "a"), ("2", "b")]


def test_lines_keep_their_numbers(tmp_path: Path) -> None:
    assert list(read_lines(listed(tmp_path, b"\n\none\n\ntwo\n"))) == [(3, "one"), (5, "two")]


def test_open_end_keeps_spaces(tmp_path: Path) -> None:
    rows = read_rows(listed(tmp_path, "7 a b \u00fc.JPG\n".encode()), 2, open_end=True)
    assert rows[0].fields == ("7", "a b \u00fc.JPG")


def test_header_is_skipped_on_the_first_line_alone(tmp_path: Path) -> None:
    assert len(read_rows(listed(tmp_path, b"Image\n1 a\n"), 2, header="Image")) == 1
    with pytest.raises(DataError, match="line 2"):
        read_rows(listed(tmp_path, b"1 a\nImage\n"), 2, header="Image")


@pytest.mark.parametrize("line", [b"3", b"3 c d"])
def test_wrong_column_count_names_file_and_line(line: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"list\.txt, line 3: expected 2 columns, found [13]"):
        read_rows(listed(tmp_path, b"1 a\n2 b\n" + line + b"\n"), 2)


def test_duplicate_identifier_names_both_lines(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 3: identifier '1' stands already on line 1"):
        read_table(listed(tmp_path, b"1 a\n2 b\n1 c\n"), 2)


def test_number_expected(tmp_path: Path) -> None:
    row = read_rows(listed(tmp_path, b"1 2 x\n"), 3)[0]
    with pytest.raises(DataError, match="line 1: expected numbers, found '2 x'"):
        row.numbers()


def test_not_utf8_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2: not UTF-8"):
        read_rows(listed(tmp_path, b"1 a\n2 \xfc\n"), 2)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.txt is missing"):
        read_rows(tmp_path / "absent.txt", 2)


def test_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path, 2)


def test_empty_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is empty"):
        read_rows(listed(tmp_path, b"\xef\xbb\xbf\r\n"), 2)


@pytest.mark.parametrize(("ours", "theirs"), [(b"1 a\n9 b\n", b"1 a\n"), (b"1 a\n", b"1 a\n9 b\n")])
def test_unknown_identifier_names_the_line(ours: bytes, theirs: bytes, tmp_path: Path) -> None:
    table = read_table(listed(tmp_path, ours), 2)
    reference = read_table(listed(tmp_path, theirs), 2)
    with pytest.raises(DataError, match="line 2: identifier '9' is unknown"):
        require_same_ids(table, reference)


def test_boxes_of_pixels_that_are_counted_from_one_start_at_zero() -> None:
    assert box_from_one(1, 1, 424, 240) == (0, 0, 424, 240)


def test_first_five_tells_that_there_are_more() -> None:
    assert first_five(list("abc")) == "a, b, c"
    assert first_five(list("abcdefg")) == "a, b, c, d, e, ..."


def listing(tmp_path: Path, **changes: object) -> Listing:
    records = []
    for name, target in (("a", 0), ("b", 1)):
        (tmp_path / name).touch()
        records.append(Record(name, target, tmp_path / name))
    return Listing(**{"dataset": "cub", "class_names": ("A", "B"), "train": tuple(records), "test": (), **changes})


def test_sound_listing_passes(tmp_path: Path) -> None:
    sound = listing(tmp_path)
    assert checked(sound, tmp_path) is sound


def test_missing_images_are_counted_and_the_first_five_named(tmp_path: Path) -> None:
    absent = tuple(Record(f"absent{i}", 0, tmp_path / f"absent{i}") for i in range(7))
    with pytest.raises(DataError, match=r"7 of 9 listed images are missing: absent0, .*absent4, \.\.\."):
        checked(listing(tmp_path, test=absent), tmp_path)


def test_image_in_two_splits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="listed more than once: a"):
        checked(listing(tmp_path, test=(Record("a", 0, tmp_path / "a"),)), tmp_path)


def test_class_without_training_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 classes have no training image: C"):
        checked(listing(tmp_path, class_names=("A", "B", "C")), tmp_path)


def test_single_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least two"):
        checked(listing(tmp_path, class_names=("A",)), tmp_path)
