"""What a linear classifier can tell from what each method's classifiers read, before the method is trained.

Backbones have pretrained weights, the rest has those that training starts from, with the arguments of a plan's rows. Features are
averaged over an image. Those of one of two folds of the training split train a ridge classifier, whose penalty cross-validation
chooses; its accuracy is on the other fold. What the layers between lose here, training must find again; "kept" is the share of
what the first row has, the baseline. The test split is not read.

    python benchmarks/readouts.py small --only '*all levels learn' --root cub=PATH --weights mobilenetv2_100=PATH --write readouts
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import common
import torch
from common import Row
from plan import cells_of, read_plan
from runner import Machine, paths_by_name, weights_of

from fgzoo import FGVCDataModule, create_model
from fgzoo.interpret.readout import readout


def readouts(
    plan: str, *, root: Sequence[str] = (), weights: Sequence[str] = (), only: str = "*", write: str | None = None
) -> None:
    """Say what a linear classifier can tell from features before training.

    Args:
        plan: A plan's name, or a YAML file; its first data set and variant.
        root: The folder of its data set, NAME=PATH or PATH.
        weights: Files with the backbones' weights, BACKBONE=PATH.
        only: Cells whose label, method, data set, variant or name fits this pattern.
        write: Write results/NAME.md and .csv.
    """
    torch.set_num_threads(1)
    machine = Machine(Path(), paths_by_name(root, "--root"), paths_by_name(weights, "--weights"))
    cells = cells_of(read_plan(plan), lambda _: 1.0)
    # Cells of one data set, variant and seed have the same images.
    first = cells[0]
    cells = [cell for cell in cells if (cell.dataset, cell.variant, cell.seed) == (first.dataset, first.variant, first.seed)]
    folder, folds = machine.roots.get(first.dataset, machine.roots.get("")), []
    for fold in (1, 0):
        data = FGVCDataModule(first.dataset, folder, first.size, num_workers=0, folds=2, fold=fold, seed=first.seed)
        data.setup("fit")
        folds.append([(images, targets) for images, targets, _ in data.val_dataloader()])
    rows: list[Row] = []
    baseline = 0.0
    for cell in cells:
        if cell.is_called(only):
            torch.manual_seed(cell.seed)
            arguments = {"backbone": cell.backbone, **cell.model, **weights_of(cell, machine)}
            top1, features = readout(create_model(cell.experiment.method, data.num_classes, **arguments), *folds)
            baseline = baseline or top1
            found = {"top-1 % of a ridge classifier, held out": f"{100 * top1:.1f}", "kept %": f"{100 * top1 / baseline:.0f}"}
            row = {"row": cell.experiment.label, "method": cell.experiment.method, "features": features}
            rows.append({**row, **found, "arguments": cell.experiment.arguments})
    about = (__doc__ or "").split("\n\n")[1]
    text = f"{about}\n\nPlan `{plan}`, `{first.dataset}`, {first.size} pixels.\n\n{common.markdown_table(rows)}"
    common.write_report("What can be read from features before training", text, rows, write)


if __name__ == "__main__":
    sys.exit(common.main(readouts))
