from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import pytest

from fgzoo.data.folder import read_folder
from fgzoo.data.verify import verify
from fgzoo.errors import DataError
from tests.builders import make_folder, save, write_lines
from tests.command import IMAGES, MACHINE, NETWORK, fgzoo


def names(records: tuple[object, ...]) -> list[str]:
    return [record.name for record in records]


def test_splits_in_folders(tmp_path: Path) -> None:
    listing = read_folder(make_folder(tmp_path, splits=("train", "val", "test")))
    assert listing.class_names == ("class 0", "class 1", "class 2")
    assert (len(listing.train), len(listing.val), len(listing.test)) == (12, 12, 12)
    assert listing.train[0].name == "train/class 0/image0.jpg"
    assert listing.train[0].path == tmp_path / "train" / "class 0" / "image0.jpg"


def test_one_tree_is_training_data(tmp_path: Path) -> None:
    listing = read_folder(make_folder(tmp_path, splits=()))
    assert (len(listing.train), len(listing.val), len(listing.test)) == (12, 0, 0)


def test_one_tree_with_a_class_called_train(tmp_path: Path) -> None:
    save(tmp_path / "train" / "a.jpg")
    save(tmp_path / "tram" / "a.jpg")
    assert read_folder(tmp_path).class_names == ("train", "tram")


def test_natural_order_of_classes_and_images(tmp_path: Path) -> None:
    for folder in ("class 10", "class 9"):
        for file in ("image10.jpg", "Image2.jpg", "image1.jpg"):
            save(tmp_path / folder / file)
    listing = read_folder(tmp_path)
    assert listing.class_names == ("class 9", "class 10")
    assert names(listing.train)[:3] == ["class 9/image1.jpg", "class 9/Image2.jpg", "class 9/image10.jpg"]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_are_named_alike_on_every_file_system(form: str, tmp_path: Path) -> None:
    save(tmp_path / unicodedata.normalize(form, "\u00d6lsardine") / unicodedata.normalize(form, "\u00e9.jpg"))
    save(tmp_path / "z" / "a.jpg")
    listing = read_folder(tmp_path)
    assert listing.class_names == ("z", "\u00d6lsardine")
    assert names(listing.train)[1] == "\u00d6lsardine/\u00e9.jpg"


@pytest.mark.parametrize(
    "name",
    ["with space.jpg", "\u9e1f.jpg", "dots.in.name.png", "A.JPG", "b.JpEg", "c.webp", "d.bmp", "e.tiff", "f.gif"],
)
def test_unusual_names_and_suffixes_are_read(name: str, tmp_path: Path) -> None:
    make_folder(tmp_path, splits=())
    save(tmp_path / "class 0" / name)
    assert f"class 0/{name}" in names(read_folder(tmp_path).train)


@pytest.mark.parametrize(
    "litter",
    [
        ".DS_Store",
        "class 0/.hidden.jpg",
        "class 0/._image0.jpg",
        "class 0/Thumbs.db",
        "class 0/desktop.ini",
        "__MACOSX/class 0/._image0.jpg",
        "__MACOSX/image.jpg",
        "class 0/@eaDir/image0.jpg/SYNOPHOTO_THUMB_M.jpg",
        "#recycle/class 9/image.jpg",
    ],
)
def test_litter_is_ignored(litter: str, tmp_path: Path) -> None:
    make_folder(tmp_path, splits=())
    expected = read_folder(tmp_path)
    save(tmp_path / litter)
    assert read_folder(tmp_path) == expected


def test_folders_that_begin_with_a_dot_are_named_where_they_hold_images(tmp_path: Path) -> None:
    make_folder(tmp_path, splits=())
    save(tmp_path / ".class 9" / "image.jpg")
    save(tmp_path / "class 0" / ".ipynb_checkpoints" / "image.jpg")
    (tmp_path / ".git").mkdir()
    listing = read_folder(tmp_path)
    assert len(listing.class_names) == 3
    assert listing.notes == (
        "Folders of images left out because their name begins with a dot: .class 9/, class 0/.ipynb_checkpoints/.",
    )


def test_files_that_are_no_images_are_counted(tmp_path: Path) -> None:
    make_folder(tmp_path, splits=())
    for name in ("class 0/a.heic", "class 1/b.HEIC", "README"):
        (tmp_path / name).touch()
    (said,) = read_folder(tmp_path).notes
    assert said.startswith("Files left out because they are no images that can be read: 1 without suffix, 2 .heic")


@pytest.mark.parametrize("splits", [(), ("train", "test")])
def test_empty_class_folder_is_named(splits: tuple[str, ...], tmp_path: Path) -> None:
    make_folder(tmp_path, splits=splits)
    (tmp_path / (splits or ("",))[-1] / "class 7").mkdir()
    with pytest.raises(DataError, match="class 7 holds no image"):
        read_folder(tmp_path)


def test_images_beside_class_folders_within_a_class_folder_are_refused(tmp_path: Path) -> None:
    save(make_folder(tmp_path, splits=()) / "class 0" / "inner" / "a.jpg")
    with pytest.raises(DataError, match=r"class 0 holds 4 images beside folders of images \(inner/\)"):
        read_folder(tmp_path)


@pytest.mark.parametrize("split", ["val", "test"])
def test_class_outside_training_is_named(split: str, tmp_path: Path) -> None:
    make_folder(tmp_path, splits=("train", split))
    shutil.rmtree(tmp_path / "train" / "class 1")
    with pytest.raises(DataError, match=f"1 classes occur in {split} and not in train: class 1"):
        read_folder(tmp_path)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_may_lack_classes_which_is_said(split: str, tmp_path: Path) -> None:
    make_folder(tmp_path, splits=("train", split))
    shutil.rmtree(tmp_path / split / "class 1")
    listing = read_folder(tmp_path)
    assert {record.target for record in (*listing.val, *listing.test)} == {0, 2}
    assert listing.notes == (f"{split} has no image of 1 of the 3 classes, which get no score there: class 1.",)


def test_images_without_class_folders_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"1 images and no class folders\. Put images into one folder per class"):
        read_folder(tmp_path)


def test_absent_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent is not a folder"):
        read_folder(tmp_path / "absent")


def make_csv(root: Path, *extra: str, header: str = "path,label,split") -> Path:
    make_folder(root / "images", splits=())
    lines = [
        f"images/class {target}/image{index}.jpg,bird {target},{split}"
        for target in range(2)
        for index, split in enumerate(("train", "train", "val", "test"))
    ]
    return write_lines(root / "list.csv", [header, *lines, *extra])


def test_csv(tmp_path: Path) -> None:
    listing = read_folder(tmp_path, make_csv(tmp_path))
    assert listing.class_names == ("bird 0", "bird 1")
    assert (len(listing.train), len(listing.val), len(listing.test)) == (4, 2, 2)
    assert listing.train[0].name == "images/class 0/image0.jpg"


@pytest.mark.parametrize("prefix", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_csv_line_ends_and_byte_order_mark(prefix: bytes, end: bytes, tmp_path: Path) -> None:
    path = make_csv(tmp_path)
    expected = read_folder(tmp_path, path)
    path.write_bytes(prefix + path.read_bytes().replace(b"\n", end))
    assert read_folder(tmp_path, path) == expected


def test_csv_quotes(tmp_path: Path) -> None:
    save(tmp_path / "a, b.jpg")
    assert "a, b.jpg" in names(read_folder(tmp_path, make_csv(tmp_path, '"a, b.jpg",bird 0,train')).train)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("images/x.jpg,bird 0", "expected 3 columns"),
        ("images/x.jpg,bird 0,train,more", "expected 3 columns"),
        ("images/x.jpg,bird 0,tain", "unknown split 'tain'; choose train, val or test"),
        (",bird 0,train", "must not be empty"),
        ("images/class 0/image1.jpg,bird 0,test", "in 'test' here and in 'train' on line 3"),
        ("images/class 0/image1.jpg,bird 1,train", "of class 'bird 1' here and of class 'bird 0' on line 3"),
        ('"images/x.jpg,bird 0,train', "not a CSV line"),
    ],
)
def test_csv_bad_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"list\.csv, line 10: .*{message}"):
        read_folder(tmp_path, make_csv(tmp_path, line))


def test_csv_wrong_header_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"list\.csv, line 1: no column of classes among file, sort, split; expected a header"):
        read_folder(tmp_path, make_csv(tmp_path, header="file,sort,split"))


def test_verify_knows_no_official_size(tmp_path: Path) -> None:
    report = verify("folder", make_folder(tmp_path))
    assert report.official is None
    assert report.passed


def test_verify_opens_every_image_of_ones_own(tmp_path: Path) -> None:
    root = make_folder(tmp_path, splits=())
    broken = root / "class 0" / "image0.jpg"
    broken.write_bytes(broken.read_bytes()[:-40])
    report = verify("folder", root)
    assert not report.passed
    assert f"{report.found.train - 1} images decoded, 1 failed\n{broken} is damaged or incomplete: " in str(report)


def test_verify_reports_what_a_table_names_and_is_not_there(tmp_path: Path) -> None:
    make_csv(tmp_path, "images/nowhere.jpg,bird 1,train").rename(tmp_path / "images" / "list.csv")
    (tmp_path / "images" / "class 0" / "image0.jpg").unlink()
    report = verify("folder", tmp_path / "images" / "list.csv")
    assert report.missing == ("images/class 0/image0.jpg", "images/nowhere.jpg")
    assert not report.passed


def test_verify_finds_files_that_are_in_two_splits(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    shutil.copy(root / "train/class 0/image0.jpg", root / "test/class 0/copy.jpg")
    shutil.copy(root / "train/class 0/image0.jpg", root / "train/class 0/twice.jpg")
    report = verify("folder", root)
    assert report.copied == ("test/class 0/copy.jpg",)
    assert not report.contradicted
    assert not report.passed
    assert "1 images of validation and test are in another split, too: test/class 0/copy.jpg" in str(report)


def test_a_file_of_two_classes_is_told(tmp_path: Path) -> None:
    root = make_folder(tmp_path, splits=())
    shutil.copy(root / "class 0/image1.jpg", root / "class 2/other.jpg")
    report = verify("folder", root)
    assert (report.passed, report.contradicted) == (False, ("class 2/other.jpg",))
    assert "1 images are in another class, too: class 2/other.jpg" in str(report)
    typed = ("--config", "folder", "--model", "baseline", "--data.root", root, "--trainer.fast_dev_run", "true")
    said = fgzoo("fit", *typed, *NETWORK, *IMAGES, *MACHINE).out
    assert "1 image is a file of another class, too: class 2/other.jpg" in said


def test_fit_says_which_files_are_in_two_splits(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    shutil.copy(root / "train/class 0/image0.jpg", root / "test/class 0/copy.jpg")
    typed = ("--config", "folder", "--model", "baseline", "--data.root", root, "--trainer.fast_dev_run", "true")
    result = fgzoo("fit", *typed, *NETWORK, *IMAGES, *MACHINE)
    assert result.status == 0
    assert "Note: 1 validation or test image is a file of another split, too: test/class 0/copy.jpg" in result.out
