"""Accuracy of methods, their parents and ablations: a plan's runs, and the tables made of them.

Every cell of a plan is one `fgzoo fit` and one `fgzoo test` as a person would type them. Cells that are done are skipped, broken
ones resumed. Any number of processes and machines may work on one plan at a time, if they share the folder of the runs.

    python benchmarks/accuracy.py run cub50 --root cub=PATH --weights PATH --dry-run            # what would run
    python benchmarks/accuracy.py run cub50 --root cub=PATH --weights PATH --jobs 2
    python benchmarks/accuracy.py run full --root cub=PATH cars=PATH aircraft=PATH --devices 0 1 2 3
    python benchmarks/accuracy.py run smoke                                                     # minutes, nothing to download
    python benchmarks/accuracy.py collect cub50                                                 # what others finished meanwhile
    python benchmarks/accuracy.py views cub50 --root cub=PATH                                   # the Baseline on more test views
    python benchmarks/accuracy.py table                                                         # or `make table`
    python benchmarks/accuracy.py table --check                                                 # are the tables up to date?
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import common
import numpy as np
from common import Row, hide_paths, say
from costs import cost_of
from filelock import FileLock
from plan import BASELINE, Cell, Plan, cells_of, not_free, read_plan
from results import Results, add_finished, check_answers, predicted_name, targets_name
from runner import Machine, fit_arguments, paths_by_name, run_cells, scores_of
from tables import VIEWS, pages

from fgzoo import FGVCDataModule, load
from fgzoo.checkpoints.run_folder import LAST
from fgzoo.data.datamodule import usable_cores
from fgzoo.errors import UsageError
from fgzoo.prediction.inference import classify

RUNS = Path("runs/accuracy")


def run(
    plan: str,
    *,
    root: Sequence[str] = (),
    weights: Sequence[str] = (),
    devices: Sequence[str] = (),
    jobs: int = 1,
    threads: int | None = None,
    only: str = "*",
    more: str = "",
    dry_run: bool = False,
    runs: Path | None = None,
) -> int:
    """Run a plan's cells that are not done; status 1 where one failed.

    Args:
        plan: A plan's name, or a YAML file; its results, called as it is, lie beside those of the others.
        root: Folders of data sets, NAME=PATH, or PATH where there is one.
        weights: Files instead of timm's hub, BACKBONE=PATH, or PATH for every backbone.
        devices: GPUs by number: a cell at a time on each.
        jobs: Cells at a time, without devices; 0 starts none.
        threads: Threads of a cell (default: the cores shared equally).
        only: Cells whose label, method, data set, variant or name fits this pattern.
        more: Further arguments of every fit, of folders, memory and speed, in one word: '--data.num_workers 0 --data.cache disk'.
        dry_run: List cells and commands, and how long finished ones took.
        runs: Where runs lie, by default in runs/accuracy/PLAN; shared by all who help.
    """
    planned, slots, further = read_plan(plan), list(devices) or [None] * jobs, tuple(shlex.split(more))
    runs = (runs or RUNS / planned.name).expanduser().resolve()
    if others := not_free(further):
        raise UsageError(f"--more: {', '.join(others)} would make other runs than the plan's; put it into a plan of your own")
    places = paths_by_name(root, "--root"), paths_by_name(weights, "--weights")
    machine = Machine(runs, *places, further, threads or max(1, usable_cores() // max(1, len(slots))))
    known = Results(planned.name).rows
    every_cell = all_cells(planned, known)
    cells = [cell for cell in every_cell if cell.is_called(only)]
    if not cells:
        raise UsageError(f"--only: no cell is called {only}")
    seconds = {cell.name: row["train_seconds"] for cell in cells for row in known if cell.is_made_by(row["command"])}
    todo = [cell for cell in cells if cell.name not in seconds and scores_of(cell, runs / cell.name) is None]
    if dry_run:
        for cell in cells:
            state = "to do" if cell in todo else f"done in {seconds.get(cell.name, '?')} s"
            typed = shlex.join(["fgzoo", *map(hide_paths, fit_arguments(cell, machine))])
            say(f"{state}  {cell.name}, epochs: {cell.epochs}\n       {typed}")
        say(f"{len(cells)} cells, {len(todo)} to do.")
        return 0
    succeeded = run_cells(todo, machine, slots) if slots else True
    names = {row["cell"] for row in add_finished(planned, every_cell, runs)}
    done = sum(cell.name in names for cell in cells)
    say(f"{len(names) - len(known)} new, {done} of {len(cells)} cells done. Next: make table")
    return 0 if succeeded else 1


def collect(plan: str, *, runs: Path | None = None) -> int:
    """Bring a plan's finished cells into the results, and start none.

    Args:
        plan: A plan's name, or a YAML file.
        runs: Where runs lie, by default in runs/accuracy/PLAN.
    """
    return run(plan, jobs=0, runs=there(runs, read_plan(plan)))


def there(runs: Path | None, plan: Plan) -> Path:
    """The folder of a plan's runs, by default its own; refuses one that is not there."""
    runs = runs or RUNS / plan.name
    if not runs.is_dir():
        raise UsageError(f"--runs: there is no {runs}")
    return runs


def views(plan: str, *, root: Sequence[str] = (), runs: Path | None = None) -> None:
    """Test a plan's finished Baselines on more views of an image, for the tables.

    Args:
        plan: A plan that runs the test split.
        root: Folders of data sets, NAME=PATH, or PATH where there is one.
        runs: Where runs lie, by default in runs/accuracy/PLAN; those whose checkpoints are gone are left out.
    """
    planned, places, viewed = read_plan(plan), paths_by_name(root, "--root"), {}
    runs, results = there(runs, planned), Results(planned.name)
    baselines = [row for row in results.rows if row["label"] == BASELINE and (runs / row["cell"] / LAST).is_file()]
    if not baselines:
        raise UsageError(f"--runs: {runs} holds no {BASELINE} of {planned.name} with its checkpoint")
    for row in baselines:
        model = load(runs / row["cell"] / LAST)
        images = FGVCDataModule(row["dataset"], places.get(row["dataset"], places.get("")))
        images.setup("test")
        paths = [record.path for record in images.splits["test"]]
        for view in VIEWS:
            predicted = classify([model], paths, top_k=1, tta=view.removeprefix("@") or "none")
            found = np.array([model.card.class_names.index(one.classes[0]) for one in predicted], np.uint16)
            if not view:
                check_answers(row, found, results.arrays[predicted_name(row)])
            else:
                viewed[predicted_name(row) + view] = found
            say(f"{row['cell']}, {VIEWS[view]}: {(found == results.arrays[targets_name(row)]).mean():.4f}")
    with FileLock(runs / ".collect.lock"):  # others may have brought in runs meanwhile
        results = Results(planned.name)
        results.arrays |= viewed
        results.write()


def table(*, check: bool = False) -> int:
    """Write the tables from the results.

    Args:
        check: Write nothing; status 1 where a table is not as its results are.
    """
    texts = pages()
    stale = [path for path, text in texts.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if not check:
            path.write_text(texts[path], encoding="utf-8")
        say(f"{path.name}: {'not as its results are; run make table' if check else 'written'}")
    return int(check and bool(stale))


def all_cells(plan: Plan, rows: Sequence[Row]) -> list[Cell]:
    """Every cell of a plan; of passes that no row of its results has, those that are needed are counted."""
    # Once for all data sets: classes change heads, not passes.
    classes = next(iter(plan.datasets.values()))

    def passes(cell: Cell) -> float:
        known = [float(row["passes"]) for row in rows if cell.is_made_by(row["command"])]
        return known[0] if known else cost_of(replace(cell, classes=classes)).passes

    return cells_of(plan, passes)


VERBS = {"run": run, "collect": collect, "views": views, "table": table}

if __name__ == "__main__":
    sys.exit(common.main(VERBS))
