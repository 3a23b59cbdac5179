"""Folders as people have them: every layout is read, or named."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from fgzoo.data.folder import read_folder
from fgzoo.data.records import Listing
from fgzoo.data.tree import find_pictures, natural_order, split_of
from fgzoo.errors import DataError
from tests.builders import make_folder, save


def photos(root: Path, *folders: str, count: int = 2) -> Path:
    for target, folder in enumerate(folders):
        for index in range(count):
            save(root / folder / f"{index}.jpg", target, index)
    return root


def counts(listing: Listing) -> tuple[int, int, int]:
    return len(listing.train), len(listing.val), len(listing.test)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *((name, "train") for name in ("train", "Train", "TRAINING", "train_set", "training-images", " train ", "trainval")),
        *((name, "val") for name in ("val", "valid", "Validation", "dev", "val_data", "validate", "vld")),
        *((name, "test") for name in ("test", "Test", "testing", "test set", "evaluation")),
        *((name, None) for name in ("trainer", "tram", "value", "testudo", "latest", "", "train/a", "training-a")),
    ],
)
def test_names_of_splits(name: str, split: str | None) -> None:
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "valid", "test"),
        ("Training", "validation", "Testing"),
        ("TRAIN", "dev", "Evaluation"),
        ("train", "validate", "birds-test"),
        ("01_train", "02_val", "03_test"),
        ("train2017", "val2017", "test2017"),
        ("seg_train/seg_train", "seg_val/seg_val", "seg_test/seg_test"),
        ("Bird Train Images", "Bird Valid Images", "Bird Test Images"),
        ("train_val_2014", "validation (2)", "2014.testset"),
    ],
)
def test_splits_are_read_as_other_tools_call_them(train: str, val: str, test: str, tmp_path: Path) -> None:
    listing = read_folder(photos(tmp_path, *(f"{split}/{name}" for split in (train, val, test) for name in ("crow", "wren"))))
    assert listing.class_names == ("crow", "wren")
    assert counts(listing) == (4, 4, 4)
    assert not listing.notes


@pytest.mark.parametrize("name", ["unlabeled", "seg_pred", "query", "test_old"])
def test_class_folders_beside_splits_are_left_out_with_the_reason(name: str, tmp_path: Path) -> None:
    listing = read_folder(
        photos(tmp_path, *(f"{split}/{bird}" for split in ("train", "test", name) for bird in ("crow", "wren")))
    )
    assert counts(listing) == (4, 0, 4)
    assert listing.notes == (
        "Images left out because their folder is not called as a split is, train, val or test (also training, valid, validation, "
        f"dev, testing): 4 in {name}/.",
    )


@pytest.mark.parametrize(
    "folders",
    [
        ("train", "extra"),
        ("train", "query", "gallery"),
        ("augmented", "original"),
        ("tr", "va", "te"),
        ("train/augmented", "train/original", "test"),
        ("birds/2023", "birds/2024"),
    ],
)
def test_folders_of_the_same_classes_that_are_no_splits_are_refused(folders: tuple[str, ...], tmp_path: Path) -> None:
    photos(tmp_path, *(f"{folder}/{bird}" for folder in folders for bird in ("crow", "jay", "wren")))
    photos(tmp_path, f"{folders[0]}/emu")
    with pytest.raises(DataError, match=r"hold the same folders \(crow, jay, wren\).*; call splits train, val or test .*a table"):
        read_folder(tmp_path)


@pytest.mark.parametrize("folders", [("oak/leaf", "oak/bark", "elm/leaf", "elm/twig"), ("crow/images", "wren/images")])
def test_folders_that_share_a_name_are_classes(folders: tuple[str, ...], tmp_path: Path) -> None:
    assert len(read_folder(photos(tmp_path, *folders)).class_names) == len(folders)


def test_two_folders_of_one_split_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="val and valid are both read as val; keep one"):
        read_folder(photos(tmp_path, "train/crow", "train/wren", "val/crow", "valid/crow"))


def test_splits_without_a_training_part_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds Test, valid and no training part"):
        read_folder(photos(tmp_path, "Test/crow", "Test/wren", "valid/crow", "valid/wren"))


def test_splits_without_class_folders_are_not_taken_for_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the images in test, train have no class"):
        read_folder(photos(tmp_path, "train", "test"))


@pytest.mark.parametrize(
    ("folders", "split", "place"),
    [
        (("train/crow", "train/wren", "test"), (4, 0, 0), "test/"),
        (("train/crow", "train/wren", "test/crow", "test/wren", "images to predict"), (4, 0, 4), "images to predict/"),
        (("crow", "wren", ""), (4, 0, 0), "the folder itself"),
    ],
)
def test_images_in_no_class_folder_are_left_out_with_a_word(
    folders: tuple[str, ...], split: tuple[int, int, int], place: str, tmp_path: Path
) -> None:
    listing = read_folder(photos(tmp_path, *folders))
    assert counts(listing) == split
    assert listing.notes == (f"Images left out because they lie in no class folder: 2 in {place}.",)


def test_tables_beside_one_folder_of_images_are_named(tmp_path: Path) -> None:
    for name in ("train.csv", "test.csv"):
        (photos(tmp_path, "images") / name).touch()
    with pytest.raises(DataError, match=r"no class folders\. .*fgzoo fit FILE\.csv\), such as test\.csv, train\.csv there"):
        read_folder(tmp_path)


def test_splits_within_classes_are_read(tmp_path: Path) -> None:
    listing = read_folder(photos(tmp_path, "crow/train", "crow/test", "wren/train", "wren/test"))
    assert listing.class_names == ("crow", "wren")
    assert counts(listing) == (4, 0, 4)


@pytest.mark.parametrize("other", ["emu", "emu/extra", "crow/extra"])
def test_a_class_without_the_splits_of_the_others_is_named(other: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"crow/ holds splits, and {other} is none; give each class its train"):
        read_folder(photos(tmp_path, "crow/train", "crow/test", "wren/train", "wren/test", other))


@pytest.mark.parametrize("above", ["archive/birds", "archive/data/images"])
@pytest.mark.parametrize("splits", [(), ("train", "test")])
def test_folders_too_many_are_gone_through_with_a_word(above: str, splits: tuple[str, ...], tmp_path: Path) -> None:
    make_folder(tmp_path / above, splits=splits)
    listing = read_folder(tmp_path)
    assert listing.class_names == ("class 0", "class 1", "class 2")
    assert counts(listing) == ((12, 0, 12) if splits else (12, 0, 0))
    assert listing.notes == (f"Read from {above}/, in which everything lies.",)
    assert listing.train[0].name.startswith(f"{above}/")


def test_a_folder_too_many_within_splits_is_gone_through(tmp_path: Path) -> None:
    classes = (
        "training_set/training_set/cats",
        "training_set/training_set/dogs",
        "test_set/test_set/cats",
        "test_set/test_set/dogs",
    )
    assert read_folder(photos(tmp_path, *classes)).class_names == ("cats", "dogs")


def test_a_folder_of_annotations_is_no_class(tmp_path: Path) -> None:
    make_folder(tmp_path / "Images", splits=())
    (tmp_path / "Annotation" / "class 0").mkdir(parents=True)
    (tmp_path / "Annotation" / "class 0" / "image0.xml").touch()
    listing = read_folder(tmp_path)
    assert counts(listing) == (12, 0, 0)
    assert "1 .xml" in listing.notes[-1]


def test_classes_are_the_innermost_folders(tmp_path: Path) -> None:
    listing = read_folder(photos(tmp_path, "Cardinalidae/cardinal", "Cardinalidae/bunting", "Emberizidae/sparrow"))
    assert listing.class_names == ("bunting", "cardinal", "sparrow")
    assert listing.notes == ("Classes are the innermost folders: Cardinalidae/bunting is class 'bunting'.",)


def test_a_class_is_called_by_its_path_where_its_name_is_taken(tmp_path: Path) -> None:
    listing = read_folder(photos(tmp_path, "oak/leaf", "oak/bark", "elm/leaf"))
    assert listing.class_names == ("bark", "elm/leaf", "oak/leaf")
    assert set(Counter(record.target for record in listing.train).values()) == {2}


def test_a_class_in_other_splits_has_the_same_name_at_any_depth(tmp_path: Path) -> None:
    listing = read_folder(photos(tmp_path, "train/A/crow", "train/B/wren", "test/A/crow", "test/C/wren"))
    assert listing.class_names == ("crow", "wren")


def test_a_family_called_train_is_no_split(tmp_path: Path) -> None:
    listing = read_folder(photos(tmp_path, "train/steam", "train/diesel", "car/suv", "car/sedan"))
    assert listing.class_names == ("diesel", "sedan", "steam", "suv")


def test_a_class_of_pictures_that_need_a_package_is_named(tmp_path: Path) -> None:
    (make_folder(tmp_path, splits=()) / "class 9").mkdir()
    (tmp_path / "class 9" / "a.NEF").touch()
    with pytest.raises(DataError, match=r"class 9 holds no image that can be read: 1 \.nef \(export as JPEG or TIFF\)"):
        read_folder(tmp_path)


def test_a_class_that_differs_in_case_is_pointed_at(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not in train: Crow \\('Crow' is 'crow' in train\\)"):
        read_folder(photos(tmp_path, "train/crow", "train/wren", "test/Crow", "test/wren"))


@pytest.mark.parametrize(
    ("name", "said"), [("photos.zip", "unpack it and give the folder"), ("photos.pdf", "is a file; give the")]
)
def test_a_file_that_is_no_folder_is_named(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(DataError, match=said):
        read_folder(tmp_path / name)


def test_an_archive_beside_its_folder_is_answered_with_that(tmp_path: Path) -> None:
    make_folder(tmp_path / "photos", splits=())
    (tmp_path / "photos.zip").touch()
    with pytest.raises(DataError, match="photos lies beside it: give that"):
        read_folder(tmp_path / "photos.zip")


def test_a_folder_of_archives_is_named(tmp_path: Path) -> None:
    (tmp_path / "photos.zip").touch()
    with pytest.raises(DataError, match=r"holds no image but photos\.zip; unpack that first"):
        read_folder(tmp_path)


# ---------------------------------------------------------------------- links and names


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    root = photos(tmp_path / "root", "crow", "wren")
    photos(tmp_path / "elsewhere", "jay")
    (root / "jay").symlink_to(tmp_path / "elsewhere" / "jay")
    (root / "crow" / "linked.jpg").symlink_to(root / "crow" / "0.jpg")
    for loop in (root / "crow" / "up", root / "round"):
        loop.symlink_to(root)
    (root / "itself").symlink_to(root / "itself")
    listing = read_folder(root)
    assert listing.class_names == ("crow", "jay", "wren")
    assert counts(listing) == (7, 0, 0)
    assert len(find_pictures(root)) == 7


def test_a_link_that_leads_nowhere_is_a_missing_image(tmp_path: Path) -> None:
    root = photos(tmp_path, "crow", "wren")
    (root / "crow" / "gone.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(DataError, match=r"1 of 5 listed images are missing: crow/gone\.jpg"):
        read_folder(root)


def test_numbers_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    assert read_folder(photos(tmp_path, "10", "2", "1", "02b", "100")).class_names == ("1", "2", "02b", "10", "100")


def test_numbers_of_any_length_are_ordered() -> None:
    assert sorted(["9" * 5000, "a", "1" + "0" * 5000], key=natural_order) == ["9" * 5000, "1" + "0" * 5000, "a"]


@pytest.mark.parametrize(
    "name", ["a, b", 'the "red" one', "two\nlines", "\u05e2\u05d5\u05e8\u05d1", "\u7ea2\u96c0", "$a^2$", "100%"]
)
def test_any_name_is_a_class(name: str, tmp_path: Path) -> None:
    listing = read_folder(photos(tmp_path, name, "other"))
    assert set(listing.class_names) == {name, "other"}
    assert len(listing.fingerprint()) == 16


def test_composed_and_decomposed_accents_are_one_class(tmp_path: Path) -> None:
    forms = [unicodedata.normalize(form, "\u00d6l") for form in ("NFC", "NFD")]
    root = photos(tmp_path, *forms, "other")
    if len(list(root.iterdir())) < 3:
        pytest.skip("this file system takes both for one folder")
    listing = read_folder(root)
    assert set(listing.class_names) == {"other", "\u00d6l"}
    assert len({record.path for record in listing.train}) == len({record.name for record in listing.train}) == 6


def test_a_class_whose_name_is_no_utf8_is_named(tmp_path: Path) -> None:
    photos(tmp_path, "other")
    save(tmp_path / os.fsdecode(b"\xd6l") / "a.jpg")
    with pytest.raises(DataError, match=r"name is not valid UTF-8 .*rename it"):
        read_folder(tmp_path)


def test_an_image_whose_name_is_no_utf8_is_read(tmp_path: Path) -> None:
    photos(tmp_path, "crow", "wren")
    save(tmp_path / "crow" / os.fsdecode(b"\xd6l.jpg"))
    listing = read_folder(tmp_path)
    assert counts(listing) == (5, 0, 0)
    assert len(listing.fingerprint()) == 16


# ---------------------------------------------------------------------- sizes


def linked(root: Path, *sizes: int) -> Path:
    """Class folders with this many links to one picture."""
    picture = save(root.parent / "picture.jpg")
    for target, size in enumerate(sizes):
        (root / f"{target}").mkdir(parents=True)
        for index in range(size):
            os.link(picture, root / f"{target}" / f"{index}.jpg")
    return root


def test_ten_thousand_classes_of_one_image(tmp_path: Path) -> None:
    listing = read_folder(linked(tmp_path / "root", *[1] * 10_000))
    assert len(listing.class_names) == counts(listing)[0] == 10_000
    assert listing.class_names[:3] == ("0", "1", "2")


def test_classes_of_one_and_of_ten_thousand_images(tmp_path: Path) -> None:
    assert Counter(record.target for record in read_folder(linked(tmp_path / "root", 1, 10_000)).train) == {0: 1, 1: 10_000}
