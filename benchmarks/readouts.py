"""What a linear classifier can tell from what each method's classifiers read, before the method is trained.

Backbones have pretrained weights, the rest has those that training starts from, with the arguments of a plan's rows. Features are
averaged over an image. Those of one of two folds of the training split train a ridge classifier, whose penalty cross-validation
chooses; its accuracy is on the other fold. What the layers between lose here, training must find again; "kept" is the share of
what the first row has, the baseline. The test split is not read.

    python benchmarks/readouts.py small --only '*all levels learn' --root cub=PATH --weights mobilenetv2_100=PATH --write readouts
"""

from __future__ import annotations

import fnmatch
import sys
from pathlib import Path
from typing import Any

import common
import torch
from accuracy import named_paths
from plan import cells_of, read_plan
from runner import Where, weights_of

from fgzoo import FGVCDataModule, create_model
from fgzoo.interpret.readout import readout


def readouts(plan: str, root: list[str] = [], weights: list[str] = [], only: str = "*", write: str | None = None) -> None:  # noqa: B006
    """Say what a linear classifier can tell from features before training.

    Args:
        plan: A plan's name, or a YAML file; its first data set and variant.
        root: Folders of data sets, NAME=PATH.
        weights: Files with the backbones' weights, BACKBONE=PATH.
        only: Rows whose label fits this pattern.
        write: Write results/NAME.md and .csv.
    """
    torch.set_num_threads(1)
    where = Where(Path(), named_paths(root), named_paths(weights))
    cells = cells_of(read_plan(plan), lambda _: 1.0)
    cells = [
        cell for cell in cells if (cell.dataset, cell.variant, cell.seed) == (cells[0].dataset, cells[0].variant, cells[0].seed)
    ]
    folds = []
    for fold in (1, 0):
        shape = {"image_size": cells[0].size, "resize": round(cells[0].size * 8 / 7), "num_workers": 0}
        module = FGVCDataModule(
            cells[0].dataset, where.roots.get(cells[0].dataset), folds=2, fold=fold, seed=cells[0].seed, **shape
        )
        module.setup("fit")
        folds.append([(images, targets) for images, targets, *_ in module.val_dataloader()])
    rows: list[dict[str, Any]] = []
    for cell in (cell for cell in cells if fnmatch.fnmatchcase(cell.row.label, only)):
        torch.manual_seed(cell.seed)
        arguments = {"backbone": cell.backbone, "pretrained": not weights, **cell.model, **weights_of(cell, where)}
        top1, features = readout(create_model(cell.row.method, module.num_classes, **arguments), *folds)
        rows.append({"row": cell.row.label, "method": cell.row.method, "features": features, "top1": top1})
        rows[-1] |= {"kept": top1 / rows[0]["top1"], "arguments": cell.row.arguments}
    lines = [
        [row["row"], row["method"], row["features"], f"{100 * row['top1']:.1f}", f"{100 * row['kept']:.0f} %"] for row in rows
    ]
    columns = ["row", "method", "features", "top-1 % of a ridge classifier, held out", "kept"]
    about_it = (__doc__ or "").split("\n\n")[1]
    about = f"Plan `{plan}`, `{cells[0].dataset}`, {cells[0].size} pixels."
    text = f"{about_it}\n\n{about}\n\n{common.table(columns, lines)}"
    common.deliver("What can be read from features before training", text, rows, write)


if __name__ == "__main__":
    sys.exit(common.command([readouts]))
