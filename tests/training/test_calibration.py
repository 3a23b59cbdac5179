"""What held-out images leave in a run and its checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fgzoo import FGVCDataModule, load
from fgzoo.methods.baseline import Baseline
from fgzoo.prediction.rejection import Calibration
from fgzoo.training import command, known_classes
from tests.builders import make_cub
from tests.command import fgzoo, fit


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
    # In order and without augmentation: the images of training as they are tested.
    seen = FGVCDataModule("cub", calibrated.root, 64, 64, val_fraction=0.5, seed=0, num_workers=0, augmentation="paper")
    trained = [(image, target) for image, target, _ in seen.dataset("train")]  # type: ignore[misc]
    with torch.no_grad():
        known = model.features(model.normalize(torch.stack([one[0] for one in trained])))
        means = [known[[k == target for _, target in trained]].mean(dim=0) for k in range(model.num_classes)]
        features, logits = model.features(model.normalize(images)), model(model.normalize(images)).logits
    cosines = torch.nn.functional.cosine_similarity(features[:, None], torch.stack(means), dim=2).amax(dim=1)
    expected = Calibration.fit(logits, targets)
    assert model.calibration.score == "cosine"
    assert torch.allclose(model.calibration.scores(logits, features), cosines, atol=1e-3)
    assert (model.calibration.images, expected.images) == (6, 6)
    assert model.calibration.temperature == pytest.approx(expected.temperature, rel=1e-3)
    assert model.calibration.threshold(0.2) == pytest.approx(float(cosines.quantile(0.2, interpolation="lower")), abs=1e-3)
    assert load(calibrated.run / "checkpoints" / "best.ckpt").calibration == model.calibration


def test_the_run_says_it_in_a_file_and_a_line(calibrated: SimpleNamespace) -> None:
    found = load(calibrated.run).calibration
    said = json.loads((calibrated.run / "calibration.json").read_text())
    assert {name: said[name] for name in ("score", "images")} == {"score": "cosine", "images": 6}
    assert said["thresholds"] == list(found.thresholds)
    assert (said["threshold"], said["rejected"]) == (found.threshold(0.05), 0.05)
    assert f"By 6 held-out images: temperature {found.temperature:.3g}" in calibrated.out


def test_the_best_epoch_has_class_means_of_its_own_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = iter([1.0, 0.0])

    def log(self: Baseline) -> None:
        self.log("val/top1", next(accuracies))

    monkeypatch.setattr(Baseline, "on_validation_epoch_end", log)
    root = make_cub(tmp_path / "data", per_class=8)
    how = ("--data.val_fraction", 0.5, "--trainer.num_sanity_val_steps", 0, "--output", tmp_path / "run")
    assert fit(root, *how, epochs=2).status == 0
    last, best = (load(tmp_path / "run" / "checkpoints" / f"{name}.ckpt").calibration for name in ("last", "best"))
    assert (last.score, best.score) == ("cosine", "cosine")  # type: ignore[union-attr]
    assert not torch.equal(last.means.directions, best.means.directions)  # type: ignore[union-attr]


def test_a_run_that_was_killed_before_it_knew_its_classes_learns_them_when_it_is_resumed(
    calibrated: SimpleNamespace, tmp_path: Path
) -> None:
    run = shutil.copytree(calibrated.run, tmp_path / "run")
    last = run / "checkpoints" / "last.ckpt"
    content = torch.load(last)
    whole = content["fgzoo"]["calibration"]
    content["fgzoo"]["calibration"] = {name: value for name, value in whole.items() if name != "means"} | {"score": "probability"}
    torch.save(content, last)
    assert fgzoo("fit", "--resume", run).status == 0
    assert torch.load(last)["fgzoo"]["calibration"] == whole
    written = last.stat().st_mtime_ns
    assert fgzoo("fit", "--resume", run).status == 0
    assert last.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("owner", "name", "value"), [(Baseline, "_backbones", lambda _: []), (known_classes, "MOST_NUMBERS", 3)],
    ids=["no features", "too many means"],
)  # fmt: skip
def test_without_class_means_probabilities_reject_which_is_said(
    owner: Any, name: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, value)
    root = make_cub(tmp_path / "data", per_class=8)
    done = fit(root, "--data.val_fraction", 0.5, "--output", tmp_path / "run")
    assert done.status == 0, done.err
    assert "probabilities decide what is unknown" in done.out
    assert load(tmp_path / "run").calibration.score == "probability"  # type: ignore[union-attr]


def test_a_gpu_too_small_for_class_means_ends_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nSee documentation")

    monkeypatch.setattr(command, "learn_known_classes", full)
    root = make_cub(tmp_path / "data", per_class=8)
    done = fit(root, "--data.val_fraction", 0.5, "--output", tmp_path / "run")
    assert done.status == 0, done.err
    assert "Note: CUDA out of memory.; probabilities decide what is unknown" in done.out


def test_a_training_that_ends_early_has_scored_its_held_out_images(calibrated: SimpleNamespace) -> None:
    assert (calibrated.run / "val_probabilities.npz").is_file()


def test_weights_that_learn_on_without_held_out_images_forget_it(calibrated: SimpleNamespace, tmp_path: Path) -> None:
    result = fit(calibrated.root, "--ckpt_path", calibrated.run, "--output", tmp_path / "tuned")
    assert result.status == 0, result.err
    assert load(tmp_path / "tuned").calibration is None
    assert not (tmp_path / "tuned" / "calibration.json").exists()
