from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest

from fgzoo.data.cars import prepare_cars, read_cars
from fgzoo.data.verify import Counts, verify
from fgzoo.errors import DataError, UsageError
from tests.builders import CARS, Bomb, cell, make_cars, save_mat, struct

FIELDS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "fname", "class")


@pytest.mark.parametrize("layout", ["devkit", "single", "folders"])
@pytest.mark.parametrize("inner", ["", "stanford_cars"])
def test_layout_is_read(inner: str, layout: str, tmp_path: Path) -> None:
    make_cars(tmp_path / inner, layout=layout)
    listing = read_cars(tmp_path)
    assert listing.dataset == "cars"
    assert sorted(listing.class_names) == sorted(CARS[:3])
    assert [record.target for record in listing.train] == [0, 0, 1, 1, 2, 2]
    assert [record.target for record in listing.test] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("layout", ["devkit", "single"])
def test_boxes_start_at_zero(layout: str, tmp_path: Path) -> None:
    make_cars(tmp_path, layout=layout)
    assert read_cars(tmp_path).train[0].box == (2.0, 4.0, 40.0, 36.0)


def test_class_folders_say_that_they_have_no_boxes(tmp_path: Path) -> None:
    listing = read_cars(make_cars(tmp_path, layout="folders"))
    assert listing.train[0].box is None
    assert "no boxes" in listing.notes[-1]


def test_class_folders_of_a_copy_that_is_not_whole_are_refused(tmp_path: Path) -> None:
    shutil.rmtree(next(path for path in (make_cars(tmp_path, layout="folders") / "test").iterdir()))
    with pytest.raises(DataError, match=r"1 classes of train do not occur in test: .* is not whole"):
        read_cars(tmp_path)


def test_names_tell_training_and_test_images_apart(tmp_path: Path) -> None:
    listing = read_cars(make_cars(tmp_path))
    assert listing.train[0].name == "cars_train/00001.jpg"
    assert listing.test[0].name == "cars_test/00001.jpg"


def test_test_labels_beside_the_devkit(tmp_path: Path) -> None:
    make_cars(tmp_path)
    expected = read_cars(tmp_path)
    (tmp_path / "devkit" / "cars_test_annos_withlabels.mat").rename(tmp_path / "cars_test_annos_withlabels.mat")
    assert read_cars(tmp_path) == expected


def test_doubly_nested_image_folder(tmp_path: Path) -> None:
    make_cars(tmp_path)
    (tmp_path / "cars_train").rename(tmp_path / "inner")
    (tmp_path / "cars_train").mkdir()
    (tmp_path / "inner").rename(tmp_path / "cars_train" / "cars_train")
    assert read_cars(tmp_path).train[0].path == tmp_path / "cars_train" / "cars_train" / "00001.jpg"


def test_list_of_a_single_image(tmp_path: Path) -> None:
    make_cars(tmp_path, classes=2, per_class=2)
    annotations = struct(FIELDS, [(1, 1, 2, 2, "00001.jpg", 1)])
    save_mat(tmp_path / "devkit" / "cars_test_annos_withlabels.mat", annotations=annotations)
    assert len(read_cars(tmp_path).test) == 1


@pytest.mark.parametrize("file", ["cars_meta.mat", "cars_train_annos.mat", "cars_test_annos_withlabels.mat"])
def test_missing_list_is_named(file: str, tmp_path: Path) -> None:
    (make_cars(tmp_path) / "devkit" / file).unlink()
    with pytest.raises(DataError, match=f"{file} is missing"):
        read_cars(tmp_path)


def test_nothing_there_names_every_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cars_train/\*\.jpg.*car_ims/\*\.jpg.*train/CLASS/"):
        read_cars(tmp_path)


def test_unlabelled_test_list_is_told_from_the_labelled_one(tmp_path: Path) -> None:
    make_cars(tmp_path)
    annotations = struct(FIELDS[:-1], [(1, 1, 2, 2, "00001.jpg")] * 2)
    save_mat(tmp_path / "devkit" / "cars_test_annos_withlabels.mat", annotations=annotations)
    with pytest.raises(DataError, match="the annotations have no class"):
        read_cars(tmp_path)


@pytest.mark.parametrize("label", [0, 4])
def test_unknown_class_names_the_annotation(label: int, tmp_path: Path) -> None:
    make_cars(tmp_path)
    rows = [(1, 1, 2, 2, "00001.jpg", 1), (1, 1, 2, 2, "00002.jpg", label)]
    save_mat(tmp_path / "devkit" / "cars_train_annos.mat", annotations=struct(FIELDS, rows))
    with pytest.raises(DataError, match=rf"cars_train_annos\.mat, annotation 2: class {label} is not one of 1 to 3"):
        read_cars(tmp_path)


@pytest.mark.parametrize("row", [(1, 1, 2, 2, "00002.jpg", "two"), (1, 1, 2, [2, 3], "00002.jpg", 1)], ids=["class", "box"])
def test_what_is_no_number_names_the_annotation(row: tuple[object, ...], tmp_path: Path) -> None:
    make_cars(tmp_path)
    save_mat(tmp_path / "devkit" / "cars_train_annos.mat", annotations=struct(FIELDS, [(1, 1, 2, 2, "00001.jpg", 1), row]))
    with pytest.raises(DataError, match=r"cars_train_annos\.mat, annotation 2: class and box must be numbers"):
        read_cars(tmp_path)


@pytest.mark.parametrize("content", ["empty", "text", "pickle"])
def test_file_that_is_no_matlab_file_is_named(content: str, tmp_path: Path) -> None:
    path = make_cars(tmp_path) / "devkit" / "cars_meta.mat"
    canary = tmp_path / "canary"
    path.write_bytes({"empty": b"", "text": b"<html>" * 99, "pickle": pickle.dumps(Bomb(canary)) + bytes(200)}[content])
    with pytest.raises(DataError, match=r"cars_meta\.mat is no readable MATLAB file"):
        read_cars(tmp_path)
    assert not canary.exists()


def test_other_matlab_file_is_named(tmp_path: Path) -> None:
    make_cars(tmp_path)
    save_mat(tmp_path / "devkit" / "cars_meta.mat", something=cell(["else"]))
    with pytest.raises(DataError, match="no variable 'class_names'"):
        read_cars(tmp_path)


def test_download_says_what_to_get_and_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be downloaded.*devkit/cars_meta\.mat.*065e5b463ae28d29e77c1b4b166cfe61"):
        prepare_cars(tmp_path)


def test_verify_counts(tmp_path: Path) -> None:
    report = verify("cars", make_cars(tmp_path))
    assert report.found == Counts(3, 6, 6)
    assert report.official == Counts(196, 8144, 8041)


def test_real_subset(real_data: Path) -> None:
    listing = read_cars(real_data / "cars60")
    assert (len(listing.class_names), len(listing.train), len(listing.test)) == (60, 1247, 1210)
    assert listing.class_names[:2] == ("AM General Hummer SUV 2000", "Acura RL Sedan 2012")


def test_kaggles_copy_is_known_and_its_missing_devkit_named(tmp_path: Path) -> None:
    make_cars(tmp_path, layout="single")
    (tmp_path / "car_ims").rename(tmp_path / "cars_train")
    with pytest.raises(DataError, match=r"is Kaggle's copy .*Get the devkit, a file of its own.*devkit/cars_meta\.mat"):
        read_cars(tmp_path)
