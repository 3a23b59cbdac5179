"""`fgzoo fit --time 20m`: as many epochs as fit, by what a few steps of every stage take."""

from __future__ import annotations

import copy
import math
import re
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from fgzoo.data.datamodule import FGVCDataModule
from fgzoo.errors import UsageError
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.methods.training_stages import stage_ends

#: Steps in each epoch of the trial, of which the median counts, since the first one starts loaders; batches of a validation.
STEPS, VALIDATED = 5, 2
#: Seconds in a unit of time.
UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}


def duration(text: str) -> float:
    """Seconds of a duration such as `90s`, `20m`, `1.5h`, or a plain number of seconds.

    Raises:
        UsageError: It is none, or not positive.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)", str(text).strip().lower())
    if match is None or match[2] not in UNITS or not (seconds := float(match[1]) * UNITS[match[2]]) > 0:
        raise UsageError(f"--time: '{text}' is no duration; give e.g. 90s, 20m or 1.5h")
    return seconds


class _Clock(Callback):
    """Notes how long training steps of each epoch, with what they wait for, and validation batches take."""

    def __init__(self) -> None:
        self.steps: list[list[float]] = []
        self.validation: list[float] = []
        self.last = 0.0

    def _lap(self) -> float:
        """Seconds since the last lap."""
        before, self.last = self.last, time.perf_counter()
        return self.last - before

    def on_train_epoch_start(self, *_: Any) -> None:
        """The first step begins with the epoch."""
        self.steps.append([])
        self._lap()

    def on_train_batch_end(self, *_: Any) -> None:
        """A step ends, and the next one begins."""
        self.steps[-1].append(self._lap())

    def on_validation_start(self, *_: Any) -> None:
        """The first batch begins with the validation."""
        self._lap()

    def on_validation_batch_end(self, *_: Any) -> None:
        """A batch ends, and the next one begins."""
        self.validation.append(self._lap())


def epochs_within(
    seconds: float,
    model: FineGrainedClassifier,
    data: FGVCDataModule,
    trial: Callable[..., L.Trainer],
    callbacks: Sequence[Callback],
    processes: int,
) -> tuple[int, float]:
    """How many epochs fit into a time, by a trial on a copy of the model.

    The trial has an epoch of a few steps for every stage at least, so that a stage that costs more counts by its share. What
    several processes wait for each other is not measured.

    Args:
        seconds: The time, of training alone.
        model: Any model; it is not changed.
        data: Its data.
        trial: Makes a trainer from arguments that replace its own.
        callbacks: What steps need beside the model.
        processes: How many will share an epoch's batches.

    Returns:
        The number of epochs, at least 1, and how many seconds one takes.
    """
    started, clock = time.perf_counter(), _Clock()
    # As many epochs as it takes to have every stage in its share, as the whole run will.
    shares = [stage.share for stage in model.stages()]
    epochs = next(n for n in range(len(shares), 100) if _in_proportion(model, shares, n))
    trainer = trial(
        max_epochs=epochs, limit_train_batches=STEPS, limit_val_batches=VALIDATED if data.splits["val"] else 0,
        num_sanity_val_steps=0, devices=1, num_nodes=1, strategy="auto", callbacks=[*callbacks, clock],
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(copy.deepcopy(model), datamodule=data)
    batches = math.ceil(len(data.train_dataloader()) / processes)
    epoch = batches * statistics.mean(statistics.median(steps) for steps in clock.steps)
    if clock.validation:
        epoch += math.ceil(len(data.val_dataloader()) / processes) * statistics.median(clock.validation)
    left = seconds - (time.perf_counter() - started)
    return max(1, math.floor(left / epoch)), epoch


def _in_proportion(model: FineGrainedClassifier, shares: list[float], epochs: int) -> bool:
    """Whether stages of so few epochs last as long, relative to each other, as those of a long run, to a twentieth."""
    ends = stage_ends(model.stages(), epochs, 1)
    lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    return all(abs(length / epochs - share) < 0.05 for length, share in zip(lengths, shares, strict=True))
