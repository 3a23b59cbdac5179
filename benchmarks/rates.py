"""What a learning-rate finder says: the range test of Smith (arXiv 1506.01186), of a plan's rows, on the images they train on.

For a hundred batches the rates of all parameter groups grow together by a factor each; a row's finder suggests the rate at which
the loss, averaged as Lightning's finder averages it, falls fastest: by the rate, as Lightning's does, or by its logarithm.

    python benchmarks/rates.py converged --only 'baseline-c*' --root cub=PATH cars=PATH --weights BACKBONE=PATH --write rates
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import lightning as L
import torch
from accuracy import all_cells
from common import Row, markdown_table, write_report
from lightning.pytorch.callbacks import Callback
from plan import read_plan
from runner import Machine, fit_arguments, paths_by_name

from fgzoo.training.command import run


class RangeTest(Callback):
    """Trains each batch at a larger rate than the one before, and ends the training.

    Args:
        batches: How many.
        lowest, highest: Peak rates of the first batch and the last, of the group without a factor of its own.
        diverged: Ends it as soon as the averaged loss is so many times the smallest one.
    """

    def __init__(self, batches: int = 100, lowest: float = 1e-6, highest: float = 1.0, diverged: float = 4.0) -> None:
        self.rates = torch.logspace(*torch.tensor([lowest, highest]).log10().tolist(), batches).tolist()
        self.diverged, self.losses, self.mean = diverged, [], 0.0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the rates of the batch."""
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = group["initial_lr"] / pl_module.hparams["lr"] * self.rates[len(self.losses)]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average the loss, by 0.98 as Lightning's finder does."""
        self.mean = 0.98 * self.mean + 0.02 * float(outputs["loss"])
        self.losses.append(self.mean / (1 - 0.98 ** (len(self.losses) + 1)))
        far = len(self.losses) > 1 and self.losses[-1] > self.diverged * min(self.losses)
        trainer.should_stop = far or len(self.losses) == len(self.rates)


def suggested(rates: Sequence[float], losses: Sequence[float], *, logarithm: bool, first: int = 10) -> float:
    """The rate at which the loss falls fastest, but for the first batches and the last, as Lightning's finder has it."""
    tried, found = torch.tensor(rates[first : len(losses) - 1]), torch.tensor(losses[first:-1])
    slopes = torch.gradient(found, spacing=[tried.log() if logarithm else tried])[0]
    return float(tried[slopes.argmin()])


def find(
    plan: str, *, root: Sequence[str] = (), weights: Sequence[str] = (), only: str = "*", more: str = "", write: str | None = None
) -> None:
    """Say what the finder suggests for rows of a plan.

    Args:
        plan: A plan's name, or a YAML file.
        root: Folders of its data sets, NAME=PATH or PATH.
        weights: Files with the backbones' weights, BACKBONE=PATH.
        only: Cells whose label, method, data set, variant or name fits this pattern.
        more: Further arguments of every `fgzoo fit`.
        write: Write results/NAME.md and .csv.
    """
    machine = Machine(Path(), paths_by_name(root, "--root"), paths_by_name(weights, "--weights"), more=tuple(more.split()))
    rows: list[Row] = []
    for cell in (cell for cell in all_cells(read_plan(plan), []) if cell.is_called(only)):
        with tempfile.TemporaryDirectory() as folder:
            typed = [*fit_arguments(cell, machine), "--trainer.callbacks+=rates.RangeTest", "--output", f"{folder}/run"]
            trained = run("fit", typed[1:], closing=False)
        test: Any = next(one for one in trained.trainer.callbacks if type(one).__name__ == RangeTest.__name__)
        row = {"cell": cell.name, "data": cell.dataset, "batches": len(test.losses), "the plan's": trained.model.hparams["lr"]}
        for what in ("rate", "its logarithm"):
            row[f"by {what}"] = suggested(test.rates, test.losses, logarithm=what != "rate")
        rows.append(row)
    shown = []
    for dataset in dict.fromkeys(row["data"] for row in rows):
        ours = [row for row in rows if row["data"] == dataset]
        line = {"data": dataset, "runs": len(ours), "the plan's": ours[0]["the plan's"]}
        for what in ("by rate", "by its logarithm"):
            found = [row[what] for row in ours]
            line[what] = f"{statistics.geometric_mean(found):.1e} ({min(found):.1e} to {max(found):.1e})"
        shown.append(line)
    text = f"{(__doc__ or '').split(chr(10) * 2)[1]} Geometric means over seeds, and ranges.\n\n{markdown_table(shown)}"
    write_report("What a learning-rate finder suggests", text, rows, write)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(common.main(find))
