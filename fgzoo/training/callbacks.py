"""What accompanies every run: its record, reproducible steps, reports, and lines for a log."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from scipy.sparse import coo_array

from fgzoo.checkpoints.run_folder import BEST, CONFIG, COST, LAST, PROBABILITIES, SPLIT
from fgzoo.data.dataset import IGNORED, sample_seed
from fgzoo.data.records import Record
from fgzoo.files import write_json
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.methods.run_length import run_steps
from fgzoo.prediction.rejection import Calibration
from fgzoo.training.environment import cpu_seconds, environment, peak_memory
from fgzoo.training.report import write_calibration, write_probabilities, write_report
from fgzoo.training.run_logger import run_loggers


class ReproducibleSteps(Callback):
    """Seeds every step from (seed, step), so that dropout and mixing are the same in a run that was interrupted."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed torch's generators for this step."""
        done = trainer.current_epoch * int(min(trainer.num_training_batches, 2**31)) + batch_idx
        torch.manual_seed(sample_seed(self.seed, trainer.global_rank, done))


class RunRecord(Callback):
    """Writes config, environment and data fingerprint when a run starts; its cost and reports when it ends.

    Args:
        folder: The run's folder.
        config: The configuration as YAML, `None` where it must not be written (testing a run that has its own).
    """

    def __init__(self, folder: Path, config: str | None) -> None:
        self.folder = folder
        self.config = config
        self.started = self.computed = 0.0
        self.device = torch.device("cpu")
        #: The state of the checkpoint that a resumed run goes on from.
        self.before: dict[str, Any] = {"seconds": 0.0, "cpu_seconds": 0.0, "peak_memory_gib": None}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write what is known before the first step."""
        for logger in run_loggers(trainer):
            logger.trainer = trainer
        if not trainer.is_global_zero:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.config is not None:
            (self.folder / CONFIG).write_text(self.config, encoding="utf-8")
        name = "environment.json" if stage == "fit" else f"environment_{TrainerFn(stage).value}.json"
        write_json(self.folder / name, environment())
        data = getattr(trainer, "datamodule", None)
        if stage == "fit" and data is not None:
            splits = {split: len(records) for split, records in data.splits.items()}
            write_json(self.folder / "data.json", {**asdict(data.card), "images": splits, "notes": list(data.listing.notes)})
            # What an earlier training of a resumed run cost does not say that this one came to its end.
            (self.folder / COST).unlink(missing_ok=True)
            if self.config is not None:
                data.write_split(self.folder / SPLIT)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self.started, self.computed, self.device = time.perf_counter(), cpu_seconds(), trainer.strategy.root_device

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop the rows of metrics.csv that a resumed run does again (its step is not known any earlier)."""
        for logger in run_loggers(trainer):
            logger.forget_from(trainer.global_step)

    def on_sanity_check_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget what the untrained network was given; a training need not validate before it ends."""
        assert isinstance(pl_module, FineGrainedClassifier)
        pl_module.evaluation.reset()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say how many images were skipped, once an epoch."""
        data: Any = getattr(trainer, "datamodule", None)
        skipped = data.skipped() if hasattr(data, "skipped") else []
        if skipped:
            write_json(self.folder / "skipped.json", skipped)
            shown = ", ".join(skipped[:3])
            warnings.warn(f"{len(skipped)} training images cannot be read and are skipped, e.g. {shown}", stacklevel=2)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what training cost, and report on the validation split, where there is one."""
        if trainer.is_global_zero:
            cost = {
                **self.state_dict(),
                "epochs": trainer.current_epoch,
                "device": str(self.device),
                "processes": trainer.world_size,
                "parameters": sum(parameter.numel() for parameter in pl_module.parameters()),
            }
            write_json(self.folder / COST, cost)
        data = getattr(trainer, "datamodule", None)
        if data is not None and data.splits["val"]:
            self._report(trainer, pl_module, "val")

    def state_dict(self) -> dict[str, Any]:
        """What training has cost so far."""
        peak = peak_memory(self.device)
        peaks = [self.before["peak_memory_gib"], None if peak is None else round(peak / 2**30, 3)]
        return {
            "seconds": round(self.before["seconds"] + time.perf_counter() - self.started, 1),
            "cpu_seconds": round(self.before["cpu_seconds"] + cpu_seconds() - self.computed, 1),
            "peak_memory_gib": max((gib for gib in peaks if gib is not None), default=None),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What the run that goes on had cost."""
        self.before = state_dict

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report on the test split."""
        self._report(trainer, pl_module, "test")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report on the validation split, when that is all that was asked for."""
        if trainer.state.fn == "validate":
            self._report(trainer, pl_module, "val")

    def _report(self, trainer: L.Trainer, pl_module: L.LightningModule, split: str) -> None:
        assert isinstance(pl_module, FineGrainedClassifier)
        if not pl_module.evaluation.answers.update_called:
            return  # validation may be set to come less often than once in the whole run
        pairs = pl_module.evaluation.answers.compute().cpu().numpy()
        if trainer.is_global_zero and pl_module.card is not None and len(pairs):
            counts = coo_array((np.ones(len(pairs), dtype=int), pairs.T), shape=(pl_module.num_classes, pl_module.num_classes))
            write_report(self.folder, split, counts, pl_module.card.class_names, pl_module.card.class_counts)


class ImageScores(Callback):
    """What every image of a split was given, in the order of the split: calibrates the model in `fit`, and is written.

    In `fit` every validation calibrates the model, so that the checkpoint that follows it holds temperature and threshold; the
    last one's answers are written at the end. `test` and `validate` write theirs. See [write_probabilities][].

    Attributes:
        steps: Those of the checkpoint that is being scored; `None` where the trainer knows them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps: int | None = None
        self.records: Sequence[Record] = ()
        self.logits = torch.empty(0)
        self.seen = torch.empty(0)
        self.write: Callable[[], None] | None = None

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make room for every image of the split, if this is the round that counts."""
        data: Any = getattr(trainer, "datamodule", None)
        if not trainer.sanity_checking and data is not None:
            assert isinstance(pl_module, FineGrainedClassifier)
            self.records = data.splits[_scored_split(trainer)]
            self.logits = torch.zeros(len(self.records), pl_module.num_classes, device=pl_module.device)
            self.seen = torch.zeros(len(self.records), device=pl_module.device)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Put a batch where its images are in the split."""
        # A step of somebody's own may hand on nothing.
        if not trainer.sanity_checking and outputs is not None and len(self.records):
            # What only fills a process up has no place.
            counts = outputs["targets"] != IGNORED
            index = outputs["index"][counts]
            self.logits[index] = outputs["logits"][counts]
            self.seen[index] = 1

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Calibrate the model, or write the split's file."""
        if trainer.sanity_checking or not len(self.records):
            return
        assert isinstance(pl_module, FineGrainedClassifier)
        # Each image has been in one of the processes, and is zero in the others.
        logits = trainer.strategy.reduce(self.logits, reduce_op="sum").cpu()
        seen = trainer.strategy.reduce(self.seen, reduce_op="sum").cpu() > 0
        if not seen.any():
            return
        records = [record for record, there in zip(self.records, seen.tolist(), strict=True) if there]
        targets = torch.tensor([record.target for record in records])
        path = self.folder / PROBABILITIES[_scored_split(trainer)]
        steps = trainer.global_step if self.steps is None else self.steps
        self.write = partial(write_probabilities, path, logits[seen], targets, [record.name for record in records], steps)
        if trainer.state.fn == TrainerFn.FITTING:
            # By every process, since any may save the model.
            pl_module.calibration = Calibration.fit(logits[seen], targets) if logits.isfinite().all() else None
        elif trainer.is_global_zero:
            self.write()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what the last validation found, and the calibration where these are still its weights."""
        assert isinstance(pl_module, FineGrainedClassifier)
        if not trainer.is_global_zero or self.write is None:
            return
        self.write()
        found = pl_module.calibration
        if found is not None:
            write_calibration(self.folder, found)

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end


def _scored_split(trainer: L.Trainer) -> str:
    return "test" if trainer.state.fn == TrainerFn.TESTING else "val"


class LastCheckpoint(ModelCheckpoint):
    """Writes an epoch's row of metrics.csv before its checkpoint.

    Lightning logs the averages of an epoch after it has saved it. A run that is killed between the two would resume after that
    epoch, and its row would be missing for good; a row without its checkpoint is dropped and done again.

    An epoch that the end of the run cuts short is saved as one that is not done, so that a resumed run finishes it.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing has been logged yet; a run that is resumed within an epoch starts none."""
        super().on_train_start(trainer, pl_module)
        self._earlier = dict(trainer.logged_metrics)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the values of epochs before, which stay where an epoch logs no new ones."""
        self._earlier = dict(trainer.logged_metrics)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the epoch, then save it."""
        values = {
            name: float(value)
            for name, value in trainer.logged_metrics.items()
            if name.startswith("train/") and value is not self._earlier.get(name)
        }
        for logger in run_loggers(trainer):
            logger.log_metrics({**values, "epoch": float(trainer.current_epoch)}, step=trainer.global_step - 1)
        super().on_train_epoch_end(trainer, pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count an epoch by whether the data has more batches of it."""
        data: Any = getattr(trainer, "datamodule", None)
        progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]
        counted = progress["current"]["processed"] > progress["current"]["completed"]
        if counted and data is not None and checkpoint.get(type(data).__qualname__, {}).get("batches"):
            for counts in progress.values():
                counts["processed"] -= 1


class BestCheckpoint(ModelCheckpoint):
    """One of its own class, so that there may be others of Lightning's with the same settings."""


def checkpoints(folder: Path, validates: bool) -> list[Callback]:
    """The run's checkpoints: the last epoch's, and the best one where something is held out to judge it on."""
    where: dict[str, Any] = {"dirpath": folder / LAST.parent, "save_top_k": 1, "enable_version_counter": False}
    last = LastCheckpoint(filename=LAST.stem, save_on_train_epoch_end=True, **where)
    # Straight after validation: the last checkpoint, saved after it, then holds the best score so far, for resuming.
    best = BestCheckpoint(filename=BEST.stem, monitor="val/top1", mode="max", save_on_train_epoch_end=False, **where)
    return [last, best] if validates else [last]


class EpochLines(Callback):
    """A line an epoch; and in a terminal a bar below them, of the whole training, that says how much time is left."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.started = 0.0
        self.validated = False
        self.finished: str | None = None
        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.bar.add_task("", total=None)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the bar; a resumed run's begins where it was."""
        total = run_steps(trainer)
        self.bar.update(self.task, total=None if math.isinf(total) else total, description=_epoch(trainer))
        self.started = time.perf_counter()
        if trainer.is_global_zero:
            self.bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Move the bar."""
        assert isinstance(pl_module, FineGrainedClassifier)
        self.bar.update(self.task, completed=pl_module.position)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the epoch before (its averages are known only now), and start the clock."""
        self._print(trainer)
        self.bar.update(self.task, description=_epoch(trainer))
        self.started, self.validated = time.perf_counter(), False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that this epoch's values of validation are its own."""
        self.validated = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        seconds = time.perf_counter() - self.started
        self.finished = f"{_epoch(trainer)}  {seconds:.1f} s"

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the last epoch."""
        self.bar.stop()
        self._print(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self.bar.stop()

    def _print(self, trainer: L.Trainer) -> None:
        if self.finished is None or not trainer.is_global_zero:
            return
        shown = ("train/loss", "train/top1", *(("val/top1", "val/nll") if self.validated else ()))
        values = {name: float(trainer.callback_metrics[name]) for name in shown if name in trainer.callback_metrics}
        figures = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        self.console.print(f"{self.finished}  {figures}")
        self.finished = None


def _epoch(trainer: L.Trainer) -> str:
    """The current epoch, and of how many, where that is known."""
    now = f"epoch {trainer.current_epoch + 1}"
    return now if trainer.max_epochs in (None, -1) else f"{now}/{trainer.max_epochs}"
