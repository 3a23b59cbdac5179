"""Lightning's own settings, callbacks and loggers beside fgzoo's."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger

from fgzoo.checkpoints.run_folder import PROBABILITIES, newest_run
from fgzoo.methods.baseline import Baseline
from fgzoo.training.command import TrainingCLI
from tests.builders import make_cub
from tests.command import IMAGES, MACHINE, NETWORK, fgzoo, fit, metrics, weights


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifteen images to train on, five steps by threes, and three held out, where a fifth is."""
    return make_cub(tmp_path_factory.mktemp("data"), per_class=12)


HELD_OUT = ("--data.val_fraction", 0.2)


def steps(run: Path, what: str = "train/loss") -> list[int]:
    """The steps at which something was logged."""
    return [int(row["step"]) for row in metrics(run) if what in row]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [(("limit_train_batches", 0.5), [1, 3]), (("accumulate_grad_batches", 2), [2, 5]), (("max_steps", 7), [4, 6])],
)
def test_how_many_steps_an_epoch_has(root: Path, setting: tuple[str, object], expected: list[int]) -> None:
    assert fit(root, "--output", "run", *HELD_OUT, f"--trainer.{setting[0]}", setting[1], epochs=2).status == 0
    assert steps(Path("run")) == expected


def test_a_number_of_batches_is_no_share_of_them() -> None:
    # In a process of its own, since what is imported first decides how Lightning's own annotations come out.
    limits = ["--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1.0", "--print_config"]
    done = subprocess.run([sys.executable, "-m", "fgzoo", "fit", *limits], capture_output=True, text=True, check=True)
    said = yaml.safe_load(done.stdout)["trainer"]
    assert (said["limit_train_batches"], said["limit_val_batches"]) == (1, 1.0)
    assert (type(said["limit_train_batches"]), type(said["limit_val_batches"])) == (int, float)


def test_training_on_nothing_is_refused(root: Path) -> None:
    result = fit(root, "--trainer.limit_train_batches", 0)
    assert result.status == 2
    assert "--trainer.limit_train_batches 0 trains nothing" in result.err


def test_a_line_of_an_epoch_has_no_validation_of_another(root: Path) -> None:
    result = fit(root, "--output", "run", *HELD_OUT, "--trainer.check_val_every_n_epoch", 2, epochs=3)
    lines = [line for line in result.out.splitlines() if line.startswith("epoch ")]
    assert ["val/top1" in line for line in lines] == [False, True, False]


def test_a_profiler_reports(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert fit(root, "--output", "run", "--trainer.profiler", "simple").status == 0
    assert "run_training_epoch" in caplog.text


def test_overfitting_shows_the_same_images_in_every_epoch(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[list[int]] = []
    step = Baseline.training_step

    def watched(self: Baseline, batch: Any, batch_idx: int) -> Any:
        shown.append(batch[2].tolist())
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Baseline, "training_step", watched)
    with pytest.warns(UserWarning, match="turning off the train dataloader shuffling"):
        assert fit(root, "--output", "run", "--trainer.overfit_batches", 2, epochs=2).status == 0
    assert shown == 2 * [[0, 1, 2], [3, 4, 5]]


def test_a_run_may_validate_within_an_epoch(root: Path) -> None:
    assert fit(root, "--output", "run", *HELD_OUT, "--trainer.val_check_interval", 2, epochs=2).status == 0
    assert steps(Path("run"), "val/top1") == [1, 3, 6, 8]


def test_the_last_validation_is_kept_whichever_it_is(root: Path) -> None:
    assert fit(root, "--output", "run", *HELD_OUT, "--trainer.check_val_every_n_epoch", 2, epochs=3).status == 0
    (row,) = (row for row in metrics(Path("run")) if "val/top1" in row)
    with np.load(Path("run") / PROBABILITIES["val"]) as scored:
        assert (scored["predicted"] == scored["targets"]).mean() == pytest.approx(float(row["val/top1"]))


def test_a_run_that_never_validates_reports_nothing_of_it(root: Path) -> None:
    assert fit(root, "--output", "run", *HELD_OUT, "--trainer.check_val_every_n_epoch", 2).status == 0
    assert not list(Path("run").glob("val_*"))


def test_a_callback_of_a_config_file_stops_early_and_what_is_held_out_is_scored(root: Path) -> None:
    stop = "{class_path: EarlyStopping, init_args: {monitor: val/nll, stopping_threshold: 100}}"
    Path("early.yaml").write_text(f"trainer: {{callbacks: [{stop}]}}\n")
    assert fit(root, "--config", "early.yaml", "--output", "run", *HELD_OUT, epochs=3).status == 0
    assert steps(Path("run")) == [4]
    assert (Path("run") / PROBABILITIES["val"]).is_file()
    assert "done already: early stopping ended it after epoch 1" in fgzoo("fit", "--resume", "run").out
    assert steps(Path("run")) == [4]


def test_early_stopping_has_ended_a_run_until_something_given_lets_it_go_on(root: Path) -> None:
    stop = ("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/nll", "--trainer.callbacks.min_delta=9")
    assert fit(root, "--output", "run", *HELD_OUT, *stop, "--trainer.callbacks.patience=1", epochs=9).status == 0
    assert len(steps(Path("run"))) == 2
    before = weights(Path("run"))
    result = fgzoo("fit", "--resume", "run", "--model.lr", 0.5)
    assert (result.status, "done already: early stopping ended it after epoch 2" in result.out) == (0, True)
    torch.testing.assert_close(weights(Path("run")), before, rtol=0, atol=0)
    assert fgzoo("fit", "--resume", "run", "--trainer.callbacks.patience=3").status == 0
    assert len(steps(Path("run"))) == 4
    assert fgzoo("fit", "--resume", "run", "--trainer.max_epochs", 10).status == 0
    assert len(steps(Path("run"))) == 5


def test_lightnings_own_checkpoints_lie_beside_the_runs(root: Path) -> None:
    own = (
        "--trainer.callbacks+=ModelCheckpoint",
        "--trainer.callbacks.save_last",
        "true",
        "--trainer.callbacks.monitor",
        "val/top1",
    )
    assert fit(root, "--output", "runs/run", *HELD_OUT, *own, "--trainer.callbacks.mode", "max", epochs=2).status == 0
    assert sorted(path.name for path in Path("runs/run/checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert Path("runs/run/lightning/checkpoints/last.ckpt").is_file()
    assert newest_run(Path("runs")) == Path("runs/run")
    result = fgzoo("test", "--ckpt_path", "runs/run")
    assert result.status == 0, result.err


def test_a_second_logger_has_what_the_first_has(root: Path) -> None:
    second = ("--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "logs")
    assert fit(root, "--output", "run", *second).status == 0
    with Path("logs/lightning_logs/version_0/metrics.csv").open(newline="") as file:
        (row,) = (row for row in csv.DictReader(file) if row["train/loss"])
    assert float(row["train/loss"]) == pytest.approx(float(metrics(Path("run"))[0]["train/loss"]))


@pytest.mark.parametrize(
    ("verb", "given", "kinds"),
    [("fit", None, ["TensorBoardLogger"]), ("fit", False, []), ("test", None, []), ("fit", CSVLogger("x"), ["CSVLogger"])],
)
def test_tensorboard_logs_a_training_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, verb: str, given: Any, kinds: list[str]
) -> None:
    monkeypatch.setattr("fgzoo.training.command._TENSORBOARD_AVAILABLE", True)
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE", True)
    cli: Any = SimpleNamespace(verb=verb, dry=False, resuming=False, run_folder=Path("run"))
    chosen = TrainingCLI._other_loggers(cli, given)
    assert [type(logger).__name__ for logger in chosen] == kinds
    if given is None and kinds:
        assert Path(str(chosen[0].log_dir)) == Path("run/tensorboard")


def test_a_recipe_that_was_printed_and_read_again_gives_the_same_run(root: Path) -> None:
    what = ("--config", "cub", "--config", "small", "--model", "baseline", "--data.root", root, *NETWORK, *IMAGES, *MACHINE)
    typed = (*what, "--model.freeze", 0, "--trainer.max_epochs", 2)
    printed = fgzoo("fit", *typed, "--print_config")
    Path("printed.yaml").write_text(printed.out)
    assert fgzoo("fit", *typed, "--output", "typed").status == 0
    assert fgzoo("fit", "--config", "printed.yaml", "--output", "read").status == 0
    torch.testing.assert_close(weights(Path("read")), weights(Path("typed")), rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "16-true"])
def test_a_run_in_another_precision_is_trained_and_tested(root: Path, precision: str) -> None:
    result = fit(root, "--output", "run", "--trainer.precision", precision)
    assert result.status == 0, result.err
    result = fgzoo("test", "--ckpt_path", "run")
    assert result.status == 0, result.err
    rows = metrics(Path("run"))
    assert np.isfinite([float(rows[0]["train/loss"]), float(rows[-1]["test/nll"])]).all()
