"""A finished run, read from its folder: how it was trained, its model, its answers, and its images where they still lie."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from fgzoo.checkpoints.loading import load, read_checkpoint
from fgzoo.checkpoints.run_data import data_trained_on
from fgzoo.checkpoints.run_folder import CONFIG, COST, LAST, METRICS
from fgzoo.data.card import DataCard
from fgzoo.data.datamodule import FGVCDataModule
from fgzoo.data.records import Record
from fgzoo.errors import CheckpointError, DataError, UsageError
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.prediction.inference import required_card
from fgzoo.reporting.scores import HeldOut, Scores

#: A curve: (epoch, value), epochs from 1.
Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: Where it lies.
        model: Its last checkpoint.
        curves: What was logged by name, e.g. `train/loss`, of training and validation.
        scores: Its answers by part, calibrated where the model is; what these weights were not scored on is not there.
        data: Its data; `None` where that is not to be found.
        trouble: Why it is not, in one line.
        command: What was typed.
        settings: Its configuration.
        cost: Seconds and so on, as in cost.json; empty where training has not come to its end.
    """

    folder: Path
    model: FineGrainedClassifier
    curves: dict[str, Curve]
    scores: dict[HeldOut, Scores]
    data: FGVCDataModule | None
    trouble: str
    command: str
    settings: dict[str, Any]
    cost: dict[str, Any]

    @property
    def card(self) -> DataCard:
        """What the model remembers of its data."""
        return required_card(self.model, "report")

    @property
    def class_counts(self) -> list[int] | None:
        """Training images by class; `None` where neither the checkpoint nor the data says."""
        return self.card.class_counts or (None if self.data is None else self.data.class_counts)

    def images(self) -> Iterator[tuple[str, Record]]:
        """Part and record of all images; none where the data is not to be found."""
        for part, records in self.data.splits.items() if self.data is not None else ():
            yield from ((part, record) for record in records)


def read_run(folder: Path, root: Path | None = None, trust: Sequence[str] = (), device: torch.device | None = None) -> Run:
    """Read a run's folder.

    Args:
        folder: A folder that `fgzoo fit` wrote.
        root: Where its images lie now; `None`: where they lay.
        trust: Packages whose classes the checkpoint may name.
        device: Where its model goes.

    Raises:
        UsageError: It holds no finished run.
        CheckpointError: Its checkpoint cannot be read.
    """
    if not (folder / CONFIG).is_file() or not (folder / LAST).is_file():
        raise UsageError(f"report: {folder} is no finished run's folder (it needs {CONFIG} and {LAST.as_posix()})")
    text = (folder / CONFIG).read_text(encoding="utf-8")
    first = text.partition("\n")[0]
    settings = yaml.safe_load(text)
    model = load(folder / LAST, trust).to(device or torch.device("cpu"))
    # What `predict` says is calibrated, too.
    temperature = 1.0 if model.calibration is None else model.calibration.temperature
    scores = Scores.read(folder, model.num_classes, read_checkpoint(folder / LAST)["global_step"], temperature)
    data, trouble = _find_data(folder, root, required_card(model, "report"))
    cost = json.loads((folder / COST).read_text(encoding="utf-8")) if (folder / COST).is_file() else {}
    command = first.removeprefix("# ") if first.startswith("#") else ""
    return Run(folder, model, _curves(folder / METRICS), scores, data, trouble, command, settings, cost)


def _find_data(folder: Path, root: Path | None, card: DataCard) -> tuple[FGVCDataModule | None, str]:
    """The run's data, or why it is not to be found."""
    try:
        return data_trained_on(card, folder, root), ""
    except (CheckpointError, DataError) as error:
        return None, " ".join(str(error).split())


def _curves(path: Path) -> dict[str, Curve]:
    """The last value of each epoch, by name."""
    found: dict[str, dict[int, float]] = {}
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if name.startswith(("train/", "val/")) and value and math.isfinite(float(value)):
                        found.setdefault(name, {})[int(row["epoch"]) + 1] = float(value)
    return {name: sorted(values.items()) for name, values in found.items()}
