"""What held-out images leave in a run and its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fgzoo import FGVCDataModule, load
from fgzoo.prediction.rejection import Calibration
from tests.builders import make_cub
from tests.command import fit


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run with images held out that its second batch ends, in the first of four epochs."""
    folder = tmp_path_factory.mktemp("calibrated")
    root = make_cub(folder / "data", per_class=8)
    more = ("--data.val_fraction", 0.5, "--trainer.max_steps", 2, "--output", folder / "run")
    done = fit(root, *more, epochs=4)
    assert done.status == 0, done.err
    return SimpleNamespace(root=root, run=folder / "run", out=done.out)


def test_checkpoints_hold_what_their_weights_say_of_the_held_out_images(calibrated: SimpleNamespace) -> None:
    model = load(calibrated.run)
    data = FGVCDataModule("cub", calibrated.root, 64, 64, val_fraction=0.5, seed=0, num_workers=0)
    images, targets, _ = next(iter(data.val_dataloader()))  # type: ignore[misc]
    with torch.no_grad():
        expected = Calibration.fit(model(model.normalize(images)).logits, targets)
    assert model.calibration is not None
    assert (model.calibration.images, expected.images) == (6, 6)
    assert model.calibration.temperature == pytest.approx(expected.temperature, rel=1e-3)
    assert model.calibration.thresholds == pytest.approx(expected.thresholds, rel=1e-3)
    assert load(calibrated.run / "checkpoints" / "best.ckpt").calibration == model.calibration


def test_the_run_says_it_in_a_file_and_a_line(calibrated: SimpleNamespace) -> None:
    found = load(calibrated.run).calibration
    assert found is not None
    said = json.loads((calibrated.run / "calibration.json").read_text())
    assert Calibration.read(said) == found
    assert (said["threshold"], said["rejected"]) == (found.threshold(0.05), 0.05)
    assert f"By 6 held-out images: temperature {found.temperature:.3g}" in calibrated.out


def test_a_training_that_ends_early_has_scored_its_held_out_images(calibrated: SimpleNamespace) -> None:
    assert (calibrated.run / "val_probabilities.npz").is_file()


def test_weights_that_learn_on_without_held_out_images_forget_it(calibrated: SimpleNamespace, tmp_path: Path) -> None:
    result = fit(calibrated.root, "--ckpt_path", calibrated.run, "--output", tmp_path / "tuned")
    assert result.status == 0, result.err
    assert load(tmp_path / "tuned").calibration is None
    assert not (tmp_path / "tuned" / "calibration.json").exists()
