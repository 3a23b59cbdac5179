"""Results of a plan, of which its tables are made: three files, whatever its number of runs.

* `PLAN.csv`: a row a cell; what the tables need, then every setting that it ran with (as in its config.yaml), what it cost, its
  environment and its data.
* `PLAN_epochs.csv`: a row an epoch of a cell, as in its metrics.csv.
* `PLAN.npz`: arrays by `KIND/NAME`. `predicted/CELL`: the classes that the images were given (`predicted/CELL@flip` where the
  test averaged over views); `targets/...`, see [targets_name][]; `probabilities/CELL`, float16, of rows that a plan averages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import CONFIG, METRICS, PROBABILITIES, RESULTS, Line, TestTime, atomic_write, hidden, read_config, read_csv, write_csv
from costs import cost_of
from filelock import FileLock
from numpy.typing import NDArray
from plan import Cell, Plan, flat
from runner import command_of, is_of, scores_of

FOLDER = RESULTS / "accuracy"
SCORES = ("top1", "top5", "macro", "nll", "ece")
#: The first columns of a plan's results, in order.
COLUMNS = (
    "cell", "variant", "label", "method", "backbone", "dataset", "fingerprint", "arguments", "seed", "fold", "epochs", "size",
    "split", *SCORES, "train_seconds", "peak_gib", "precision", "threads", "hardware", "torch", "fgzoo", "parameters",
    "test_gmac", "train_gmac", "passes", "command",
)  # fmt: skip
Arrays = dict[str, NDArray[Any]]


class Results:
    """The three files of a plan, as `rows`, `epochs` and `arrays`."""

    def __init__(self, plan: str, folder: Path = FOLDER) -> None:
        self.paths = [folder / f"{plan}{end}" for end in (".csv", "_epochs.csv", ".npz")]
        self.rows, self.epochs = read_csv(self.paths[0]), read_csv(self.paths[1])
        self.arrays: Arrays = {}
        if self.paths[2].is_file():
            with np.load(self.paths[2]) as found:
                self.arrays = {name: found[name] for name in found.files}

    def write(self) -> None:
        """Write all three, each in one move."""
        write_csv(self.paths[0], self.rows, COLUMNS)
        write_csv(self.paths[1], self.epochs, ("cell", "epoch", "step"))
        with atomic_write(self.paths[2]) as part, part.open("wb") as file:
            np.savez_compressed(file, **{name: self.arrays[name] for name in sorted(self.arrays)})

    def follow(self, cells: Sequence[Cell]) -> None:
        """Take the plan's names and order of today; rows of settings that it had before come last and give way to its names."""
        names: dict[str, str] = {}
        taken = {cell.name for cell in cells}
        for row in self.rows:
            cell, name = next((cell for cell in cells if is_of(row["command"], cell)), None), row["cell"]
            while cell is None and name in taken:
                name += "-earlier"
            taken.add(name)
            names[row["cell"]] = name if cell is None else cell.name
            if cell is not None:
                row |= {"variant": cell.variant, "label": cell.row.label, "arguments": cell.row.arguments}
        for row in (*self.rows, *self.epochs):
            row["cell"] = names[row["cell"]]
        self.arrays = {_renamed(key, names): array for key, array in self.arrays.items()}
        order = {cell.name: number for number, cell in enumerate(cells)}
        for rows in (self.rows, self.epochs):
            rows.sort(key=lambda row: order.get(row["cell"], len(order)))

    def add(self, cell: Cell, folder: Path, costs: Path, averaged: bool) -> None:
        """Bring in a finished run, its probabilities, too, where they are averaged; one of the same cell gives way."""
        row = row_of(cell, folder, costs)
        self.rows = [*(known for known in self.rows if known["cell"] != cell.name), row]
        epochs = [{"cell": cell.name, **line} for line in read_csv(folder / METRICS)]
        self.epochs = [*(known for known in self.epochs if known["cell"] != cell.name), *epochs]
        with np.load(folder / PROBABILITIES[row["split"]]) as scored:
            small = np.uint8 if scored["probabilities"].shape[1] <= 256 else np.uint16
            self.arrays[predicted_name(cell.name)] = scored["predicted"].astype(small)
            self.arrays[targets_name(row)] = scored["targets"].astype(small)
            if averaged:
                self.arrays[f"probabilities/{cell.name}"] = scored["probabilities"].astype(np.float16)


def _renamed(key: str, names: Mapping[str, str]) -> str:
    kind, _, rest = key.partition("/")
    cell, at, view = rest.partition("@")
    return f"{kind}/{names.get(cell, cell)}{at}{view}"


def row_of(cell: Cell, folder: Path, costs: Path) -> Line:
    """A finished cell's row, without this machine's folders."""
    scored, counted = scores_of(cell, folder), cost_of(cell, costs)
    assert scored is not None
    cost, environment, data = (json.loads((folder / f"{name}.json").read_text()) for name in ("cost", "environment", "data"))
    config, split = read_config(folder / CONFIG), "test" if cell.fold is None else "val"
    on_gpu = cost["device"].startswith("cuda")
    row = {
        "cell": cell.name, "variant": cell.variant, "label": cell.row.label, "method": cell.row.method,
        "backbone": cell.backbone, "dataset": cell.dataset, "fingerprint": data["fingerprint"],
        "arguments": cell.row.arguments, "seed": cell.seed, "fold": "" if cell.fold is None else f"{cell.fold} of {cell.folds}",
        "epochs": cell.epochs, "size": cell.size, "split": split, **{name: scored[f"{split}/{name}"] for name in SCORES},
        # A resumed run knows the seconds of the epochs that it did itself.
        "train_seconds": f"{cost['seconds'] * cell.epochs / max(1, cost['epochs']):.0f}",
        "peak_gib": f"{cost['peak_memory_gib']:.2f}", "precision": config["trainer"]["precision"],
        "threads": environment["threads"], "hardware": environment["gpus"][0] if on_gpu else environment["processor"],
        "torch": environment["packages"]["torch"], "fgzoo": environment["git"] or environment["fgzoo"],
        "parameters": f"{counted.parameters:.3f}", "test_gmac": f"{counted.test_gmac:.4f}",
        "train_gmac": f"{counted.train_gmac:.4f}", "passes": f"{counted.passes:.4f}", "command": command_of(folder),
    }  # fmt: skip
    return {name: str(value) for name, value in row.items()} | settings_of_run(config, cost, environment, data)


def settings_of_run(config: Any, cost: Any, environment: Any, data: Any) -> Line:
    """All that a run's files say of it, flat: `model.lr`, `cost.seconds`, `environment.python`, `prepared.images.train`."""
    environment = {name: value for name, value in environment.items() if name != "command"}
    data = {name: value for name, value in data.items() if name not in ("class_names", "notes")}
    found = flat({**config, "cost": cost, "environment": environment, "prepared": data})
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in found.items() if value is not None}
    return {name: hidden(text) for name, text in texts.items()}


def collect(plan: Plan, cells: Sequence[Cell], runs: Path, folder: Path = FOLDER) -> list[Line]:
    """Bring finished runs into the plan's results, and return all rows; what is there from runs that are gone stays."""
    with FileLock(runs / ".collect.lock"):
        results = Results(plan.name, folder)
        results.follow(cells)
        known = {row["cell"]: row.get("environment.time") for row in results.rows}
        for cell in cells:
            run = runs / cell.name
            if scores_of(cell, run) is None:
                continue
            if known.get(cell.name) != json.loads((run / "environment.json").read_text())["time"]:
                results.add(cell, run, runs / "costs.json", averaged=cell.row.label in plan.ensemble and cell.fold is None)
        results.follow(cells)
        results.write()
    return results.rows


def predicted_name(cell: str, tta: TestTime = "none") -> str:
    """Under which name the classes are kept that a cell gave the images."""
    return f"predicted/{cell}" if tta == "none" else f"predicted/{cell}@{tta}"


def targets_name(row: Line) -> str:
    """Under which name the classes of the images are kept that a run was scored on; the seed deals images to folds."""
    fold = row["fold"].replace(" ", "-")
    return f"targets/{row['fingerprint']}" + (f"/seed-{row['seed']}-fold-{fold}" if fold else "")
