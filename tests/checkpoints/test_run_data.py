"""The data of a finished run, without a trainer."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fgzoo.checkpoints.run_data import data_of_card, data_of_run, data_trained_on
from fgzoo.data.datamodule import FGVCDataModule
from fgzoo.data.synthetic import Birds
from fgzoo.errors import CheckpointError, DataError
from tests.builders import make_cub, make_folder, write_lines
from tests.command import IMAGES, MACHINE, NETWORK, fgzoo, fit
from tests.small import CARD


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    root = make_cub(folder / "data", per_class=6)
    assert fit(root, "--data.val_fraction", 0.34, "--seed_everything", 3, "--output", folder / "run").status == 0
    return folder / "run"


@pytest.mark.parametrize("seed", [None, "0"])
def test_what_was_held_out_stays_held_out(run: Path, monkeypatch: pytest.MonkeyPatch, seed: str | None) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    if seed is not None:  # of another run in this process
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
    with np.load(run / "val_probabilities.npz") as scored:
        assert [record.name for record in data_of_run(run).splits["val"]] == scored["names"].tolist()


def test_a_runs_own_birds_are_its_data_and_no_others(tmp_path: Path) -> None:
    birds = "birds: {classes: 3, train_per_class: 2, test_per_class: 1, size: 72, seed: 5}"
    config = f"seed_everything: 0\ndata: {{name: birds, image_size: 64, resize: 72, {birds}}}\n"
    (tmp_path / "config.yaml").write_text(config)
    card = FGVCDataModule("birds", None, 64, 72, birds=Birds(3, 2, 1, 72, seed=5)).card
    assert data_trained_on(card, tmp_path).card == card
    with pytest.raises(DataError, match="listed in birds are not those that the weights were trained on"):
        data_trained_on(replace(card, fingerprint="0" * 16), tmp_path)
    with pytest.raises(CheckpointError, match="class 3 is 'nothing' there"):
        data_trained_on(card, None)


@pytest.mark.parametrize(
    "named", ["birds: {class_path: payload.Birds}", "class_path: payload.Data", "birds: {body: {class_path: payload.X}}"]
)
def test_no_class_that_a_config_names_is_imported(tmp_path: Path, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "payload.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "config.yaml").write_text(f"seed_everything: 0\ndata: {{name: birds, image_size: 64, {named}}}\n")
    with pytest.raises(DataError, match=r"the data is of the class payload\.\w+, and importing what a run names would run"):
        data_of_run(tmp_path)
    assert "payload" not in sys.modules


def test_images_may_lie_elsewhere(run: Path, tmp_path: Path) -> None:
    assert data_of_run(run, tmp_path).root == tmp_path


def test_data_of_a_module_of_ones_own_is_none_that_is_known() -> None:
    with pytest.raises(DataError, match=r"^checkpoint: .*mushrooms"):
        data_of_card(replace(CARD, dataset="mushrooms"))


def test_a_table_among_moved_images_moved_with_them(tmp_path: Path) -> None:
    make_folder(tmp_path / "old", splits=())
    lines = [f"class {target}/image{index}.jpg,{target}" for target in range(3) for index in range(2)]
    write_lines(tmp_path / "old" / "list.csv", ["path,label", *lines])
    data = ("--config", "folder", "--model", "baseline", "--data.root", tmp_path / "old")
    table = ("--data.csv", tmp_path / "old" / "list.csv", "--trainer.max_epochs", 1, "--output", tmp_path / "run")
    assert fgzoo("fit", *data, *table, *NETWORK, *IMAGES, *MACHINE).status == 0
    (tmp_path / "old").rename(tmp_path / "new")
    assert len(data_of_run(tmp_path / "run", tmp_path / "new").listing.train) == 6


def test_settings_that_this_version_does_not_know_are_named(run: Path, tmp_path: Path) -> None:
    text = (run / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("resize_mode: squash", "resize_mode: stretched"))
    with pytest.raises(DataError, match=r"config\.yaml: .*resize_mode"):
        data_of_run(tmp_path)
