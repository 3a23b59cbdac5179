from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fgzoo import FGVCDataModule
from fgzoo.errors import DataError, UsageError
from tests.builders import make_folder, save, write_lines

#: What is said of one image that was added after a run.
UNKNOWN_TO_THE_RUN = "Images left out because split.csv of the run does not know them, added since or unreadable then: 1."


def module(root: Path, **arguments: Any) -> FGVCDataModule:
    return FGVCDataModule("folder", root, **{"num_workers": 0, "seed": 0, **arguments})


def parts(data: FGVCDataModule) -> dict[str, list[str]]:
    return {split: data.names(split) for split in ("train", "val", "test")}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "photos", per_class=10, splits=())


@pytest.fixture
def drawn(root: Path, tmp_path: Path) -> FGVCDataModule:
    """Parts drawn and written to split.csv."""
    data = module(root, test_fraction=0.2, val_fraction=0.25)
    data.write_split(tmp_path / "split.csv")
    return data


def test_a_fraction_of_every_class_is_set_apart(drawn: FGVCDataModule) -> None:
    assert {split: len(names) for split, names in parts(drawn).items()} == {"train": 18, "val": 6, "test": 6}
    assert [record.target for record in drawn.splits["test"]] == [0, 0, 1, 1, 2, 2]
    assert drawn.listing.notes == ("The test split is 0.2 of every class, drawn with seed 0.",)


def test_the_seed_decides_the_test_part(root: Path, drawn: FGVCDataModule) -> None:
    again, other = (module(root, test_fraction=0.2, seed=seed).listing.fingerprint() for seed in (0, 1))
    assert again == drawn.listing.fingerprint() != other


def test_a_fraction_beside_a_test_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has a test split of its own"):
        module(make_folder(tmp_path), test_fraction=0.2).setup()


def test_a_fraction_of_classes_of_one_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing .* can be set apart for testing, since no class has a second image"):
        module(make_folder(tmp_path, per_class=1, splits=()), test_fraction=0.2).setup()


@pytest.mark.skipif(os.name == "nt", reason="names that Windows does not take")
@pytest.mark.parametrize("name", ["a\rb.jpg", "a\nb.jpg", 'a"b,.jpg', os.fsdecode(b"a\xe9.jpg")])
def test_a_split_file_keeps_odd_names(root: Path, tmp_path: Path, name: str) -> None:
    save(root / "class 1" / name)
    data = module(root, test_fraction=0.2)
    data.write_split(tmp_path / "split.csv")
    assert parts(module(root, split_file=tmp_path / "split.csv")) == parts(data)
    assert any(name in one for names in parts(data).values() for one in names)


def test_a_split_file_gives_the_same_parts(root: Path, drawn: FGVCDataModule, tmp_path: Path) -> None:
    read = module(root, split_file=tmp_path / "split.csv")
    assert parts(read) == parts(drawn)
    assert read.listing.fingerprint() == drawn.listing.fingerprint()


def test_a_split_file_does_for_a_table(root: Path, drawn: FGVCDataModule, tmp_path: Path) -> None:
    assert parts(module(root, csv=tmp_path / "split.csv")) == parts(drawn)


def test_a_split_file_keeps_new_images_out_with_a_word(root: Path, drawn: FGVCDataModule, tmp_path: Path) -> None:
    save(root / "class 0" / "new.jpg")
    read = module(root, split_file=tmp_path / "split.csv")
    assert parts(read) == parts(drawn)
    assert read.listing.notes == (
        "Images left out because split.csv of the run does not know them, added since or unreadable then: 1.",
    )


def test_a_split_file_keeps_new_classes_out(root: Path, drawn: FGVCDataModule, tmp_path: Path) -> None:
    save(root / "class 0b" / "new.jpg")
    read = module(root, split_file=tmp_path / "split.csv")
    assert (read.class_names, read.matches(drawn.card)) == (drawn.class_names, True)
    assert read.splits == drawn.splits
    assert read.listing.notes == (
        "Images left out because split.csv of the run does not know them, added since or unreadable then: 1.",
    )


def test_images_that_are_gone_are_named_and_not_trained_without(root: Path, drawn: FGVCDataModule, tmp_path: Path) -> None:
    lost = drawn.names("test")[2]
    (root / lost).unlink()
    read = module(root, split_file=tmp_path / "split.csv")
    with pytest.raises(DataError, match=rf"1 of 30 images are gone: {lost}\. Restore them"):
        read.setup("fit")
    read.setup("test")
    assert (read.gone("test"), read.gone("train", "val")) == ([lost], [])
    assert parts(read) == {**parts(drawn), "test": [name for name in drawn.names("test") if name != lost]}


def test_images_of_another_class_now_are_named(root: Path, drawn: FGVCDataModule, tmp_path: Path) -> None:
    (root / "class 1").rename(root / "class one")
    (root / "class 2").rename(root / "class 1")
    (root / "class one").rename(root / "class 2")
    names = write_lines(
        tmp_path / "swapped.csv", ["path,label", *(f"class {i}/image{j}.jpg,{3 - i}" for i in (1, 2) for j in range(10))]
    )
    with pytest.raises(
        DataError, match=r"split\.csv, line \d+: 'class \d/image\d\.jpg' is of class '\d' now, and was of 'class \d'"
    ):
        module(root, csv=names, split_file=tmp_path / "split.csv").setup()


@pytest.mark.parametrize("line", ["class 0/image0.jpg,class 0", "class 0/image0.jpg,class 0,tset", '"' + "x" * 200_000])
def test_a_damaged_split_file_is_named(line: str, root: Path, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "split.csv", ["path,label,split", line])
    with pytest.raises(DataError, match=r"split\.csv, line 2: "):
        module(root, split_file=path).setup()


def test_folds_are_written_as_validation(root: Path, tmp_path: Path) -> None:
    data = module(root, test_fraction=0.2, folds=3, fold=1)
    data.write_split(tmp_path / "split.csv")
    assert parts(module(root, split_file=tmp_path / "split.csv")) == parts(data)


def test_nothing_is_written_where_nothing_was_drawn(root: Path, tmp_path: Path) -> None:
    module(root).write_split(tmp_path / "split.csv")
    assert not (tmp_path / "split.csv").exists()


def test_names_that_are_no_utf8_are_kept(root: Path, tmp_path: Path) -> None:
    for index in range(3):
        save(root / "class 0" / os.fsdecode(b"\xd6%d.jpg" % index))
    data = module(root, test_fraction=0.4)
    data.write_split(tmp_path / "split.csv")
    assert parts(module(root, split_file=tmp_path / "split.csv")) == parts(data)


# ---------------------------------------------------------------------- near-duplicates


@pytest.fixture
def bursts(tmp_path: Path) -> Path:
    """Three classes of ten different pictures, each of which is there twice."""
    root = make_folder(tmp_path / "photos", per_class=10, splits=())
    for path in list(root.rglob("*.jpg")):
        path.with_name(f"copy of {path.name}").write_bytes(path.read_bytes())
    return root


@pytest.mark.parametrize(("held", "size"), [({"test_fraction": 0.2, "val_fraction": 0.25}, 12), ({"folds": 4, "fold": 2}, 14)])
def test_copies_stay_in_one_part(held: dict[str, Any], size: int, bursts: Path) -> None:
    data = module(bursts, group_duplicates=True, **held)
    for names in parts(data).values():
        assert all(name.replace("copy of ", "") in names for name in names)
    assert len(data.splits["val"]) == size


def test_copies_are_parted_unless_that_is_asked_for(bursts: Path) -> None:
    test = set(module(bursts, test_fraction=0.2).names("test"))
    assert any(name.replace("copy of ", "") not in test for name in test)


def test_what_stays_together_is_said(bursts: Path) -> None:
    (note,) = module(bursts, group_duplicates=True, test_fraction=0.2).listing.notes
    assert note.endswith("drawn with seed 0; 60 near-duplicates stay together.")


# ---------------------------------------------------------------------- images that cannot be read

DRAWN: dict[str, Any] = {"group_duplicates": True, "test_fraction": 0.2, "val_fraction": 0.25}


def damage(*paths: Path) -> None:
    for path in paths:
        path.write_bytes(path.read_bytes()[:200])


def test_where_every_image_is_read_those_that_cannot_be_are_left_out_and_named(root: Path) -> None:
    bad = [f"class {target}/image{index}.jpg" for target in (0, 2) for index in range(3)]
    damage(*(root / name for name in bad))
    data = module(root, **DRAWN)
    assert not set(bad) & {name for names in parts(data).values() for name in names}
    (said,) = (note for note in data.listing.notes if "cannot be read" in note)
    assert said.startswith(f"6 of 30 images cannot be read and are left out: {', '.join(bad[:5])}, .... The first: ")


def test_nothing_left_of_a_class_is_refused(root: Path) -> None:
    damage(*(root / "class 1").iterdir())
    with pytest.raises(DataError, match=r"10 of 30 images cannot be read, which leaves nothing of class 1: class 1/"):
        module(root, **DRAWN).setup()


def test_a_part_that_the_data_names_is_not_made_smaller(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    damage(root / "test" / "class 0" / "image1.jpg", root / "train" / "class 0" / "image1.jpg")
    with pytest.raises(DataError, match=r"2 of 24 images cannot be read, and parts that the data itself names .* test/class 0/"):
        module(root, val_fraction=0.25, group_duplicates=True).setup()
