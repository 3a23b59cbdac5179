"""Parts that were drawn stay as they were, whatever is added to the photos later; and paths may start with ~."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from fgzoo.training.arguments import with_implied
from tests.builders import make_folder, save
from tests.command import IMAGES, MACHINE, NETWORK, fgzoo


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


@pytest.mark.parametrize("arguments", [["--resume", "run"], ["--ckpt_path", "run"]])
def test_a_runs_parts_are_implied_unless_other_data_is_given(arguments: list[str]) -> None:
    Path("run", "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "checkpoints/last.ckpt", "split.csv"):
        Path("run", name).touch()
    option, file = with_implied("fit", arguments)[0][2:4]
    assert (option, Path(file).resolve()) == ("--data.split_file", Path("run/split.csv").resolve())
    assert "--data.split_file" not in with_implied("fit", [*arguments, "--data.root", "other"])[0]
