"""Parts that were drawn stay as they were, whatever is added to the photos later; and paths may start with ~."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from fgzoo.data.datamodule import FGVCDataModule
from fgzoo.errors import UsageError
from fgzoo.reporting.report import write_report
from fgzoo.training.arguments import with_implied
from tests.builders import make_cub, make_folder, save
from tests.command import IMAGES, MACHINE, NETWORK, fgzoo, fit, metrics


def test_a_run_keeps_its_parts_and_its_place_below_home(tmp_path: Path) -> None:
    root = make_folder(Path.home() / "photos", per_class=6, splits=())
    (root / "notes.txt").touch()
    what = ("--config", "folder", "--model", "baseline", "--data.root=~/photos", "--trainer.max_epochs", 1)
    apart = ("--data.test_fraction", 0.34, "--data.val_fraction", 0.25, "--data.group_duplicates", "true")
    done = fgzoo("fit", *what, *apart, *NETWORK, *IMAGES, *MACHINE, "--output=~/run")
    assert done.status == 0, done.err
    assert "Note: Files left out because they are no images that can be read: 1 .txt." in done.out
    assert not Path("~").exists()
    run = Path.home() / "run"
    with (run / "split.csv").open(newline="") as file:
        test = [row["path"] for row in csv.DictReader(file) if row["split"] == "test"]
    assert len(test) == 6
    for target in range(3):
        for index in range(20, 30):
            save(root / f"class {target}" / f"new{index}.jpg", target, index)
    done = fgzoo("test", "--ckpt_path=~/run")
    assert done.status == 0, done.err
    with np.load(run / "test_probabilities.npz") as found:
        assert found["names"].tolist() == test


def test_parts_may_lack_classes_which_then_have_no_accuracy(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos", splits=("train", "val", "test"))
    shutil.rmtree(root / "val" / "class 0")
    shutil.rmtree(root / "test" / "class 1")
    what = ("--config", "folder", "--model", "baseline", "--data.root", root, "--trainer.max_epochs", 1)
    done = fgzoo("fit", *what, *NETWORK, *IMAGES, *MACHINE, "--output", "run")
    assert done.status == 0, done.err
    assert "Note: val has no image of 1 of the 3 classes, which get no score there: class 0." in done.out
    assert fgzoo("test", "--ckpt_path", "run").status == 0
    with Path("run/test_per_class.csv").open(newline="") as file:
        recall = {row["class"]: row["recall"] for row in csv.DictReader(file)}
    assert recall["class 1"] == ""
    known = [float(recall[name]) for name in ("class 0", "class 2")]
    assert float(metrics(Path("run"))[-1]["test/macro"]) == pytest.approx(sum(known) / 2, abs=1e-4)
    assert write_report(Path("run"), mistakes=1).lines[0].endswith("%)")


def test_classes_that_drawing_leaves_without_a_held_out_image_are_named(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos", per_class=6, splits=())
    for extra in sorted((root / "class 2").iterdir())[1:]:
        extra.unlink()
    what = ("--config", "folder", "--model", "baseline", "--data.root", root, "--trainer.max_epochs", 1)
    apart = ("--data.test_fraction", 0.34, "--data.val_fraction", 0.25)
    done = fgzoo("fit", *what, *apart, *NETWORK, *IMAGES, *MACHINE, "--output", "run")
    assert done.status == 0, done.err
    for part in ("val", "test"):
        assert done.out.count(f"Note: {part} has no image of 1 of the 3 classes, which get no score there: class 2.") == 1


def test_who_has_rare_classes_is_told_what_helps_unless_it_is_asked_for(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos", per_class=6, splits=("train",))
    for extra in sorted((root / "train" / "class 2").iterdir())[2:]:
        extra.unlink()
    what = ("--config", "folder", "--model", "baseline", "--data.root", root, "--trainer.max_epochs", 1)
    told = "Note: classes have 2 to 6 training images; of what lets rare ones be found, --model.logit_adjustment 1"
    assert told in fgzoo("fit", *what, *NETWORK, *IMAGES, *MACHINE, "--output", "plain").out
    for number, way in enumerate(("--model.logit_adjustment=1", "--model.class_weights=sqrt", "--data.balance=full")):
        done = fgzoo("fit", *what, *NETWORK, *IMAGES, *MACHINE, way, "--output", f"evened{number}")
        assert done.status == 0, done.err
        assert "rare ones" not in done.out


@pytest.fixture(scope="module")
def parted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    """A trained run beside its photos, and the names in its parts."""
    folder = tmp_path_factory.mktemp("parted")
    root = make_folder(folder / "photos", per_class=8, splits=())
    what = ("--config", "folder", "--model", "baseline", "--data.root", root, "--trainer.max_epochs", 1)
    apart = ("--data.test_fraction", 0.25, "--data.val_fraction", 0.34)
    assert fgzoo("fit", *what, *apart, *NETWORK, *IMAGES, *MACHINE, "--output", folder / "run").status == 0
    with (folder / "run/split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return folder, {part: [row["path"] for row in rows if row["split"] == part] for part in ("train", "val", "test")}


@pytest.mark.parametrize(("verb", "part"), [("test", "test"), ("validate", "val")])
def test_images_that_are_gone_are_left_out_of_the_runs_own_part(
    verb: str, part: str, parted: tuple[Path, dict[str, list[str]]], tmp_path: Path
) -> None:
    shutil.copytree(parted[0], tmp_path / "copy")
    lost, *left = parted[1][part]
    (tmp_path / "copy/photos" / lost).unlink()
    split = ("--data.split_file", tmp_path / "copy/run/split.csv")
    done = fgzoo(verb, "--ckpt_path", tmp_path / "copy/run", "--data.root", tmp_path / "copy/photos", *split)
    assert done.status == 0, done.err
    assert f"Note: 1 {part} image is gone, and left out: {lost}" in done.out
    with np.load(tmp_path / f"copy/run/{part}_probabilities.npz") as found:
        assert found["names"].tolist() == left


@pytest.mark.parametrize("verb", ["test", "validate"])
@pytest.mark.parametrize("drawn", [["--data.split_file", "null"], ["--data.root", "grown"]], ids=["null", "root"])
def test_images_of_another_part_are_not_scored(
    drawn: list[str], verb: str, parted: tuple[Path, dict[str, list[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, parts = parted
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "copy")
    config = Path("copy/run/config.yaml")
    config.write_text(config.read_text().replace(str(folder / "photos"), str(tmp_path / "grown")))
    Path("copy/photos").rename("grown")
    for name in (*parts["test"][:3], *parts["val"][:3]):
        Path("grown", name).unlink()
    done = fgzoo(verb, "--ckpt_path", "copy/run", *drawn)
    assert done.status == 2
    assert "images are of another part of" in done.err
    assert "--data.split_file" in done.err


@pytest.mark.parametrize("arguments", [["--resume", "run"], ["--ckpt_path", "run"]])
def test_a_runs_parts_are_implied_unless_other_data_is_given(arguments: list[str]) -> None:
    Path("run", "checkpoints").mkdir(parents=True)
    for name in ("checkpoints/last.ckpt", "split.csv"):
        Path("run", name).touch()
    Path("run/config.yaml").write_text("seed_everything: 0\ntrainer: {}\nmodel: {}\ndata: {}\n")
    option, file = with_implied("fit", arguments)[0][2:4]
    assert (option, Path(file).resolve()) == ("--data.split_file", Path("run/split.csv").resolve())
    assert "--data.split_file" not in with_implied("fit", [*arguments, "--data.root", "other"])[0]
    with pytest.raises(UsageError, match=r"^--data\.folds: images stay in the parts that they have in .*run/split\.csv"):
        with_implied("fit", [*arguments, "--data.folds", "4", "--data.fold=2"])


@pytest.mark.parametrize("said", ["run", "run/config.yaml"])
def test_a_runs_own_checkpoint_is_scored_not_the_one_that_it_began_from(said: str, tmp_path: Path) -> None:
    root = make_cub(tmp_path / "data")
    assert fit(root, "--output", "parent").status == 0
    assert fit(root, "--output", "run", "--ckpt_path", "parent").status == 0
    before = Path("parent/metrics.csv").read_text()
    assert fgzoo("test", "--config", said).status == 0
    assert Path("parent/metrics.csv").read_text() == before
    assert Path("run/test_probabilities.npz").is_file()


def test_another_checkpoint_of_a_run_is_reported_in_a_folder_of_its_own(tmp_path: Path) -> None:
    root = make_cub(tmp_path / "data", per_class=6)
    assert fit(root, "--output", "run", "--data.val_fraction", 0.34).status == 0
    assert fgzoo("test", "--ckpt_path", "run").status == 0
    reports = {path: path.read_bytes() for path in Path("run").glob("test_*")}
    result = fgzoo("test", "--ckpt_path", "run/checkpoints/best.ckpt")
    assert result.status == 0, result.err
    assert {path: path.read_bytes() for path in Path("run").glob("test_*")} == reports
    assert {path.name for path in Path("run/best").glob("test_*")} == {path.name for path in reports}


def test_folds_of_data_with_a_part_for_validation_are_refused(tmp_path: Path) -> None:
    data = FGVCDataModule("folder", make_folder(tmp_path, splits=("train", "val")), folds=2)
    with pytest.raises(UsageError, match=r"data\.folds: this data has a validation split of its own"):
        _ = data.splits
