"""Scores finished runs of a plan's baseline on several views of every test image, as `fgzoo predict --tta` does.

Some methods look at several views of a test image. A baseline that averages over views, too, tells what views give from what a
method gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from accuracy_plan import Cell, Plan
from accuracy_runs import Where
from accuracy_table import VIEWS, is_baseline, predicted_name, read_predictions, write_predictions
from common import data_of
from filelock import FileLock
from numpy.typing import NDArray

from fgzoo.checkpoints.loading import load
from fgzoo.checkpoints.run_folder import LAST
from fgzoo.data.datamodule import FGVCDataModule
from fgzoo.errors import UsageError
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.prediction.inference import TestTime, compute, probabilities

#: Images decoded at a time.
CHUNK = 256
#: Share of the images that must be given the class that `fgzoo test` gave them; other hardware rounds otherwise.
SAME = 0.98


def score_views(plan: Plan, cells: Sequence[Cell], where: Where, results: Path) -> Iterator[tuple[Cell, dict[TestTime, float]]]:
    """Score runs of the baseline, and keep in the plan's results which classes images were given.

    Args:
        plan: The plan.
        cells: Its cells. Runs without a checkpoint, or whose test was not collected, are passed over; so are those of folds.
        where: Where runs and data lie.
        results: Where results are kept.

    Yields:
        A cell that had not been scored before, and its top-1 accuracy by the views.

    Raises:
        UsageError: By one view the run does not give the classes that its test gave.
    """
    path = results / f"{plan.name}.npz"
    for cell in (cell for cell in cells if cell.fold is None and is_baseline(plan, cell.label)):
        folder, known = where.runs / cell.name, read_predictions(path)
        tested = known.get(predicted_name(cell.name))
        if tested is None or not (folder / LAST).is_file() or all(predicted_name(cell.name, tta) in known for tta in VIEWS):
            continue
        model, data = load(folder / LAST).eval(), data_of(folder, where.roots.get(cell.dataset))
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        targets = np.array([record.target for record in data.splits["test"]])
        again = predicted(model, data, "none")
        if len(again) != len(tested) or (again == tested).mean() < SAME:
            raise UsageError(f"{cell.name}: its test gave other classes; is --root the data that it was tested on?")
        found = {tta: predicted(model, data, tta) for tta in VIEWS}
        with FileLock(where.runs / ".collect.lock"):
            kept = read_predictions(path)
            kept.update({predicted_name(cell.name, tta): classes.astype(tested.dtype) for tta, classes in found.items()})
            write_predictions(path, kept)
        yield cell, {tta: float((classes == targets).mean()) for tta, classes in {"none": again, **found}.items()}


def predicted(model: FineGrainedClassifier, data: FGVCDataModule, tta: TestTime) -> NDArray[np.int64]:
    """Classes (N,) with the largest probability, averaged over an image's views, of the test split."""
    records, read = data.splits["test"], data.dataset("test").read
    found = []
    for start in range(0, len(records), CHUNK):
        images = [read(record) for record in records[start : start + CHUNK]]
        found += [answers.values.argmax(dim=1) for answers in compute([model], images, probabilities, tta=tta)]
    return torch.cat(found).numpy()
