"""What is given beside `--resume` is taken, as the run's settings from then on, or refused by name."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf

from fgzoo.methods.baseline import Baseline
from tests.builders import make_cub, make_folder
from tests.command import IMAGES, MACHINE, NETWORK, Result, breaking_off, fgzoo, fit, metrics, weights

RATES = ("--trainer.callbacks+=LearningRateMonitor", "--trainer.log_every_n_steps", 1)


def refused(result: Result, *said: str) -> bool:
    return result.status == 2 and result.err.count("\n") == 1 and all(text in result.err for text in said)


def rates(run: Path) -> list[float]:
    """Learning rates of the new layers, step by step."""
    return [float(row["lr-SGD/new"]) for row in metrics(run) if "lr-SGD/new" in row]


def cosine(share: float) -> float:
    return 0.01 * (1 + math.cos(math.pi * share)) / 2


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run of four epochs of five steps that was interrupted after two."""
    folder = tmp_path_factory.mktemp("begun")
    root = make_cub(folder / "data", per_class=12)
    with breaking_off(Baseline, epoch=2, batch=1):
        assert fit(root, "--output", folder / "run", "--data.val_fraction", 0.2, *RATES, epochs=4).status == 130
    return SimpleNamespace(root=root, run=folder / "run")


@pytest.fixture
def run(begun: SimpleNamespace, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun.run, tmp_path / "run"))


# ---------------------------------------------------------------------- taken


def test_the_schedule_goes_on_by_its_share_of_epochs_whatever_the_batch(run: Path) -> None:
    assert fgzoo("fit", "--resume", run, "--data.batch_size", 5).status == 0
    # Fifteen images: five steps an epoch by threes, three by fives.
    expected = [cosine(step / 20) for step in range(10)] + [cosine(0.5 + step / 12) for step in range(6)]
    assert rates(run) == pytest.approx(expected, rel=1e-6)


def test_a_run_of_steps_ends_where_its_schedule_does_whatever_the_batch(begun: SimpleNamespace, tmp_path: Path) -> None:
    with breaking_off(Baseline, epoch=2, batch=1):
        steps = ("--trainer.max_steps", 20, "--data.val_fraction", 0.2, *RATES)
        assert fit(begun.root, "--output", tmp_path / "run", *steps, epochs=-1).status == 130
    assert fgzoo("fit", "--resume", tmp_path / "run", "--data.batch_size", 5).status == 0
    # Ten steps by threes are two epochs, six steps by fives.
    assert rates(tmp_path / "run")[10:] == pytest.approx([cosine(step / 20) for step in range(6, 20)], rel=1e-6)


def test_what_a_run_is_given_holds_and_is_its_own_from_then_on(run: Path) -> None:
    given = ("--model.lr", 0.5, "--model.schedule", "constant", "--model.weight_decay", 0.03, "--trainer.max_epochs", 5)
    with breaking_off(Baseline, epoch=4, batch=1):
        assert fgzoo("fit", "--resume", run, *given).status == 130
    assert fgzoo("fit", "--resume", run).status == 0
    assert rates(run)[10:] == pytest.approx([0.5] * 15)
    assert (
        torch.load(run / "checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"][-2]["weight_decay"]
        == 0.03
    )
    assert "5 epochs" in fgzoo("fit", "--resume", run).out
    head = (run / "config.yaml").read_text().splitlines()[:3]
    assert [line.startswith("#") for line in head] == [True, True, False]
    assert "--model.lr 0.5" in head[1]


def test_a_run_that_was_begun_by_a_checkpoint_begins_by_it_again(tmp_path: Path, trained: SimpleNamespace) -> None:
    tuned = ("--ckpt_path", trained.run, "--model.lr", 1e-9, "--trainer.max_epochs", 1)
    with breaking_off(Baseline, epoch=0, batch=1):
        assert fgzoo("fit", *tuned, "--output", tmp_path / "run").status == 130
    assert fgzoo("fit", "--resume", tmp_path / "run").status == 0
    name = "network.classifier.weight"
    torch.testing.assert_close(weights(tmp_path / "run")[name], weights(trained.run)[name], rtol=0, atol=1e-6)


def test_weights_that_a_checkpoint_replaces_are_not_looked_for(tmp_path: Path) -> None:
    root = make_cub(tmp_path / "data", per_class=6)
    assert fit(root, "--output", "run", "--data.val_fraction", 0.34).status == 0
    config = tmp_path / "run/config.yaml"
    config.write_text(config.read_text().replace("backbone_weights: null", "backbone_weights: gone.safetensors"))
    for verb in (
        ("test", "--ckpt_path", "run"),
        ("validate", "--ckpt_path", "run"),
        ("fit", "--resume", "run", "--trainer.max_epochs", 2),
    ):
        result = fgzoo(*verb)
        assert result.status == 0, result.err
    assert "backbone_weights: gone.safetensors" in config.read_text()


def test_a_network_whose_folder_is_gone_is_built_by_what_the_checkpoint_says(
    tmp_path: Path, trained: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = timm.create_model("test_efficientnet", num_classes=5)
    save_for_hf(network, tmp_path / "net", model_args={"act_layer": "relu"}, safe_serialization=True)
    backbone = f"local-dir:{tmp_path / 'net'}"
    assert fit(trained.root, "--output", "run", "--model.backbone", backbone).status == 0
    (tmp_path / "net").rename(tmp_path / "elsewhere")
    monkeypatch.setattr("fgzoo.nn.timm_networks._kept_configs", {})
    for verb in (("test", "--ckpt_path", "run"), ("fit", "--resume", "run", "--trainer.max_epochs", 2)):
        result = fgzoo(*verb)
        assert result.status == 0, result.err


# ---------------------------------------------------------------------- the middle of an epoch


def steps(root: Path, run: Path, count: int, *more: object) -> Result:
    what = ("--config", "cub", "--model", "baseline", "--data.root", root, "--output", run, *NETWORK, *IMAGES, *MACHINE)
    return fgzoo("fit", *what, "--model.schedule", "constant", "--model.dropout", 0.5, "--trainer.max_steps", count, *more)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_its_steps_ended_within_an_epoch_goes_on_to_the_same_bits(
    begun: SimpleNamespace, tmp_path: Path, workers: int
) -> None:
    # Six steps an epoch.
    assert steps(begun.root, tmp_path / "whole", 10).status == 0
    assert steps(begun.root, tmp_path / "parts", 2, "--data.num_workers", workers).status == 0
    for done in (6, 8, 10):
        assert fgzoo("fit", "--resume", tmp_path / "parts", "--trainer.max_steps", done).status == 0
    torch.testing.assert_close(weights(tmp_path / "parts"), weights(tmp_path / "whole"), rtol=0, atol=0)
    assert [(row["epoch"], row["step"]) for row in metrics(tmp_path / "parts")] == [
        ("0", "1"),
        ("0", "5"),
        ("1", "7"),
        ("1", "9"),
    ]
    assert "done already: 10 steps" in fgzoo("fit", "--resume", tmp_path / "parts").out


def test_an_epoch_is_finished_by_the_batches_it_was_begun_with(begun: SimpleNamespace, tmp_path: Path) -> None:
    assert steps(begun.root, tmp_path / "run", 2).status == 0
    result = fgzoo("fit", "--resume", tmp_path / "run", "--trainer.max_steps", 6, "--data.batch_size", 2)
    assert refused(result, "stopped in the middle of epoch 1", "batches of 3 images")


# ---------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model.dropout", 0.3), "model.dropout is 0.0"),
        (("--model.backbone", "test_resnet"), "model.backbone is 'test_efficientnet'"),
        (("--model.optimizer", "adamw"), "model.optimizer is 'sgd'"),
        (("--data.val_fraction", 0.4), "data.val_fraction is 0.2"),
        (("--data.image_size", 96), "data.image_size is 64"),
        (("--seed_everything", 3), "seed_everything is 0"),
        (("--output", "other"), "leave --output away"),
        (("--ckpt_path", "last"), "ckpt_path"),
        (("--trainer.fast_dev_run", "true"), "leave --trainer.fast_dev_run away"),
    ],
)
def test_what_a_resumed_run_cannot_take_is_refused_by_name(
    begun: SimpleNamespace, arguments: tuple[object, ...], said: str
) -> None:
    assert refused(fgzoo("fit", "--resume", begun.run, *arguments), "--resume", said)


def test_a_network_whose_arguments_were_edited_is_refused(run: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("freeze: 0", "freeze: 2"))
    assert refused(fgzoo("fit", "--resume", run), "model.freeze is 0")


def folders(root: Path, run: Path) -> Any:
    what = ("--config", "folder", "--model", "baseline", "--data.root", root, "--output", run)
    result = fgzoo("fit", *what, *NETWORK, *IMAGES, *MACHINE, "--trainer.max_epochs", 1)
    assert result.status == 0, result.err
    return lambda: fgzoo("fit", "--resume", run, "--trainer.max_epochs", 2)


def test_a_class_that_was_renamed_is_not_trained_as_another(tmp_path: Path) -> None:
    resume = folders(make_folder(tmp_path / "data"), tmp_path / "run")
    for split in ("train", "test"):
        (tmp_path / "data" / split / "class 0").rename(tmp_path / "data" / split / "class 9")
    assert refused(resume(), "class 0 is 'class 0' there and 'class 1' here")


def test_images_that_were_added_are_noticed(tmp_path: Path) -> None:
    resume = folders(make_folder(tmp_path / "data"), tmp_path / "run")
    there = json.loads((tmp_path / "run/data.json").read_text())["fingerprint"]
    shutil.copy(tmp_path / "data/train/class 0/image0.jpg", tmp_path / "data/train/class 0/image9.jpg")
    assert refused(resume(), f"fingerprint {there} there", "added")
