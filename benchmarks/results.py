"""Results of a plan, of which its tables are made: three files, whatever its number of runs.

* `PLAN.csv`: a row a cell; what the tables need, then every setting that it ran with (as in its config.yaml), what it cost, its
  environment and its data.
* `PLAN_epochs.csv`: a row an epoch of a cell, as in its metrics.csv.
* `PLAN.npz`: arrays by `KIND/NAME`. `predicted/CELL`: the classes that the images were given (`predicted/CELL@flip` where the
  test averaged over views); `targets/...`, see [targets_name][]; `probabilities/CELL`, float16, of rows that a plan averages.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, Row, hide_paths, read_csv, write_csv
from costs import cost_of
from filelock import FileLock
from numpy.typing import NDArray
from plan import Cell, Plan, flattened
from runner import command_of, scores_of

from fgzoo.checkpoints.run_folder import CONFIG, METRICS, PROBABILITIES
from fgzoo.errors import UsageError
from fgzoo.files import atomic_write
from fgzoo.recipes import read_config

FOLDER = RESULTS / "accuracy"
SCORES = ("top1", "top5", "macro", "nll", "ece")
#: Settings of a run that its row leaves out.
UNKEPT = ("environment.command", "prepared.class_names", "prepared.class_counts", "prepared.notes")
Arrays = dict[str, NDArray[Any]]


class Results:
    """The three files of a plan, as `rows`, `epochs` and `arrays`."""

    def __init__(self, plan: str) -> None:
        self.paths = [FOLDER / f"{plan}{end}" for end in (".csv", "_epochs.csv", ".npz")]
        self.page = FOLDER / f"{plan}.md"
        self.rows, self.epochs = read_csv(self.paths[0]), read_csv(self.paths[1])
        self.arrays: Arrays = {}
        if self.paths[2].is_file():
            with np.load(self.paths[2]) as found:
                self.arrays = dict(found)

    def write(self) -> None:
        """Write all three, each in one move."""
        write_csv(self.paths[0], self.rows)
        write_csv(self.paths[1], self.epochs)
        with atomic_write(self.paths[2]) as part, part.open("wb") as file:
            np.savez_compressed(file, **{name: self.arrays[name] for name in sorted(self.arrays)})

    def rename_cells(self, cells: Sequence[Cell]) -> None:
        """Take the plan's present names, to which those of rows of earlier settings give way."""
        names: dict[str, str] = {}
        taken = {cell.name for cell in cells}
        for row in self.rows:
            cell, name = next((cell for cell in cells if cell.is_made_by(row["command"])), None), row["cell"]
            if cell is not None:
                name = cell.name
                row |= {"variant": cell.variant, "label": cell.experiment.label, "arguments": cell.experiment.arguments}
            while cell is None and name in taken:
                name += "-earlier"
            taken.add(name)
            names[row["cell"]] = name
        for row in (*self.rows, *self.epochs):
            row["cell"] = names[row["cell"]]
        renamed = {}
        for key, array in self.arrays.items():
            kind, cell_name, view = parts_of(key)
            renamed[f"{kind}/{names.get(cell_name, cell_name)}{view}"] = array
        self.arrays = renamed

    def add(self, cell: Cell, folder: Path, averaged: bool) -> None:
        """Bring in a finished run, its probabilities, too, where they are averaged; one of the same cell gives way."""
        row = row_of(cell, folder)
        # Its views, too, which are of the run before.
        self.arrays = {name: array for name, array in self.arrays.items() if parts_of(name)[1] != cell.name}
        epochs = [{"cell": cell.name, **epoch} for epoch in read_csv(folder / METRICS)]
        self.rows = [*(known for known in self.rows if known["cell"] != cell.name), row]
        self.epochs = [*(known for known in self.epochs if known["cell"] != cell.name), *epochs]
        with np.load(folder / PROBABILITIES[row["split"]]) as scored:
            self.arrays[predicted_name(row)] = scored["predicted"].astype(np.uint16)
            self.arrays[targets_name(row)] = scored["targets"].astype(np.uint16)
            if averaged:
                self.arrays[f"probabilities/{cell.name}"] = scored["probabilities"].astype(np.float16)


def parts_of(name: str) -> tuple[str, str, str]:
    """Kind, cell and view (`@flip`, or nothing) of an array's name."""
    kind, _, rest = name.partition("/")
    cell, at, view = rest.partition("@")
    return kind, cell, at + view


def row_of(cell: Cell, folder: Path) -> Row:
    """A finished cell's row, without this machine's folders."""
    scores, counted = scores_of(cell, folder), cost_of(cell)
    cost, environment, data = (json.loads((folder / f"{name}.json").read_text()) for name in ("cost", "environment", "data"))
    config, split = read_config(folder / CONFIG), "test" if cell.fold is None else "val"
    on_gpu = cost["device"].startswith("cuda")
    row = {
        "cell": cell.name, "variant": cell.variant, "label": cell.experiment.label, "method": cell.experiment.method,
        "backbone": cell.backbone, "dataset": cell.dataset, "fingerprint": data["fingerprint"],
        "arguments": cell.experiment.arguments, "seed": cell.seed,
        "fold": "" if cell.fold is None else f"{cell.fold} of {cell.folds}",
        "epochs": cell.epochs, "size": cell.size, "split": split, **{name: scores[f"{split}/{name}"] for name in SCORES},
        # Of classes of unequal size alone.
        **({"tail": scores[f"{split}/tail"]} if f"{split}/tail" in scores else {}),
        # Of a run that an earlier version resumed, the seconds are of the last epochs alone.
        "train_seconds": f"{cost['seconds'] * cell.epochs / max(1, cost['epochs']):.0f}",
        "peak_gib": "" if cost["peak_memory_gib"] is None else f"{cost['peak_memory_gib']:.2f}",
        "precision": config["trainer"]["precision"],
        "threads": environment["threads"], "hardware": environment["gpus"][0] if on_gpu else environment["processor"],
        "torch": environment["packages"]["torch"], "fgzoo": environment["git"] or environment["fgzoo"],
        **{name: f"{value:.4f}" for name, value in counted._asdict().items()}, "command": command_of(folder),
    }  # fmt: skip
    for name, value in flattened({**config, "cost": cost, "environment": environment, "prepared": data}).items():
        if value is not None and name not in UNKEPT:
            row[name] = hide_paths(value if isinstance(value, str) else json.dumps(value))
    return {name: str(value) for name, value in row.items()}


def add_finished(plan: Plan, cells: Sequence[Cell], runs: Path) -> list[Row]:
    """Bring finished runs into the plan's results, and return all rows; what is there from runs that are gone stays."""
    with FileLock(runs / ".collect.lock"):
        results = Results(plan.name)
        results.rename_cells(cells)
        known = {row["cell"]: row.get("environment.time") for row in results.rows}
        for cell in cells:
            run = runs / cell.name
            if scores_of(cell, run) is None:
                continue
            if known.get(cell.name) != json.loads((run / "environment.json").read_text())["time"]:
                results.add(cell, run, averaged=cell.experiment.label in plan.compare and cell.fold is None)
        results.write()
    return results.rows


def predicted_name(row: Row) -> str:
    """Under which name the classes are kept that a run gave the images."""
    return f"predicted/{row['cell']}"


def check_answers(row: Row, found: NDArray[Any], known: NDArray[Any]) -> None:
    """Refuse a run that does not answer as the plan's results say; a few answers may differ by roundings.

    Raises:
        UsageError: It is another run.
    """
    if len(found) != len(known):
        raise UsageError(f"{row['cell']}: there are {len(found)} images, and the plan's results are of {len(known)}")
    if (changed := (found != known).mean()) > 0.002:
        raise UsageError(f"{row['cell']}: {changed:.1%} of the classes are not those of the plan's results")


def targets_name(row: Row) -> str:
    """Under which name the classes of the images are kept that a run was scored on; the seed deals images to folds."""
    fold = row["fold"].replace(" ", "-")
    return f"targets/{row['fingerprint']}" + (f"/seed-{row['seed']}-fold-{fold}" if fold else "")
