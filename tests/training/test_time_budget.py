"""`fgzoo fit --time`."""

from __future__ import annotations

from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from fgzoo.errors import UsageError
from fgzoo.training.time_budget import duration
from tests.command import fgzoo, weights

TINY = ["--data.birds", "{classes: 2, train_per_class: 8, test_per_class: 1, size: 48}", "--data.image_size", "32"]
TINY += ["--data.resize", "36", "--data.batch_size", "2"]
FIT = ["fit", "--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--data.num_workers", "0"]


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20m", 1200), ("1.5h", 5400), ("2 min", 120), ("45", 45)])
def test_a_duration_has_a_unit_or_is_in_seconds(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "-5m", "20 parsecs", "m", "1h30m", "nan", "inf"])
def test_what_is_no_duration_is_refused_before_anything_is_built(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no duration; give "):
        duration(text)
    assert "--time: '" in fgzoo(*FIT, "--config", "birds/baseline", f"--time={text}", "--output", tmp_path / "run").err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", ["birds/baseline", "birds/coarse2fine"])
def test_a_time_gives_epochs_and_nothing_else(recipe: str, tmp_path: Path) -> None:
    common = [*FIT, "--config", recipe, *TINY]
    timed = fgzoo(*common, "--time", "4s", "--output", tmp_path / "timed")
    settings = yaml.safe_load((tmp_path / "timed" / "config.yaml").read_text())
    epochs = settings["trainer"]["max_epochs"]
    assert f"4 s: {epochs} epochs of about " in timed.out
    assert settings["time"] is None
    by_count = fgzoo(*common, "--trainer.max_epochs", epochs, "--output", tmp_path / "counted")
    assert (timed.status, by_count.status) == (0, 0)
    counted = weights(tmp_path / "counted")
    assert all(torch.equal(tensor, counted[name]) for name, tensor in weights(tmp_path / "timed").items())


def test_a_teacher_teaches_within_a_time(tmp_path: Path) -> None:
    taught = ["--model.teacher", "baseline_birds", "--data.birds.classes", "12", "--time", "1s", "--output", tmp_path / "run"]
    result = fgzoo(*FIT, "--config", "birds/baseline", *TINY, *taught)
    assert result.status == 0, result.err
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]["init_args"]["teacher"] == "baseline_birds"


def test_steps_of_the_rate_come_at_the_same_shares_of_the_time(tmp_path: Path) -> None:
    steps = ["--model.schedule", "step", "--model.milestones", "[30, 60]", "--trainer.max_epochs", "90"]
    result = fgzoo(*FIT, "--config", "birds/baseline", *TINY, *steps, "--time", "3s", "--output", tmp_path / "run")
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    epochs, milestones = settings["trainer"]["max_epochs"], settings["model"]["init_args"]["milestones"]
    assert milestones == [max(1, round(epochs / 3)), max(1, round(epochs * 2 / 3))]
    assert f"The learning rate falls after epochs {milestones} of {epochs}, not [30, 60] of 90." in result.out
    group = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt")["optimizer_states"][0]["param_groups"][0]
    assert group["lr"] == pytest.approx(group["initial_lr"] / 100)


def test_a_training_without_an_end_is_refused(tmp_path: Path) -> None:
    result = fgzoo(*FIT, "--ckpt_path", "baseline_birds", "--output", tmp_path / "run")
    assert (result.status, result.err) == (2, "fgzoo: fit: how long? Give --trainer.max_epochs, or --time 20m\n")


@pytest.mark.parametrize(("time", "epochs"), [("31s", 3), ("23s", 2), ("1s", 1)])
def test_what_a_trial_leaves_is_filled_with_epochs_of_which_one_is_the_least(
    time: str, epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A clock that is read once a step: the trial's start, five steps and end take 7 s, the 8 steps of an epoch 8 s.
    clock = SimpleNamespace(perf_counter=partial(next, count()))
    monkeypatch.setattr("fgzoo.training.time_budget.time", clock)
    fgzoo(*FIT, "--config", "birds/baseline", *TINY, "--time", time, "--output", tmp_path / "run")
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["trainer"]["max_epochs"] == epochs


def test_an_epoch_of_one_batch_has_a_length(tmp_path: Path) -> None:
    timed = fgzoo(
        *FIT, "--config", "birds/baseline", *TINY, "--data.batch_size", 99, "--time", "1s", "--output", tmp_path / "run"
    )
    assert (timed.status, timed.err) == (0, "")


def test_a_resumed_run_keeps_its_epochs(tmp_path: Path) -> None:
    fgzoo(*FIT, "--config", "birds/baseline", *TINY, "--trainer.max_epochs", 1, "--output", tmp_path / "run")
    assert "a resumed run keeps its epochs" in fgzoo("fit", "--resume", tmp_path / "run", "--time", "5s").err
