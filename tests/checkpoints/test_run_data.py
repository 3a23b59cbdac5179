"""The data of a finished run, without a trainer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fgzoo.checkpoints.run_data import data_of_run
from fgzoo.errors import DataError
from tests.builders import make_cub
from tests.command import fit


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


def test_images_may_lie_elsewhere(run: Path, tmp_path: Path) -> None:
    assert data_of_run(run, tmp_path).root == tmp_path


def test_settings_that_this_version_does_not_know_are_named(run: Path, tmp_path: Path) -> None:
    text = (run / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("resize_mode: squash", "resize_mode: stretched"))
    with pytest.raises(DataError, match=r"config\.yaml: .*resize_mode"):
        data_of_run(tmp_path)
