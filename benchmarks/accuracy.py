"""Accuracy of methods, their parents and ablations: a plan's runs, and the tables made of them.

Every cell of a plan is one `fgzoo fit` and one `fgzoo test` as a person would type them. Cells that are done are skipped, broken
ones resumed. Any number of processes and machines may work on one plan at a time, if they share the folder of the runs.

    python benchmarks/accuracy.py run cub50 --root cub=PATH --weights PATH --dry-run            # what would run
    python benchmarks/accuracy.py run cub50 --root cub=PATH --weights PATH --jobs 2
    python benchmarks/accuracy.py run full --root cub=PATH cars=PATH aircraft=PATH --devices 0 1 2 3
    python benchmarks/accuracy.py run smoke                                                     # minutes, nothing to download
    python benchmarks/accuracy.py collect cub50                                                 # what others finished meanwhile
    python benchmarks/accuracy.py table                                                         # or `make table`
    python benchmarks/accuracy.py table --check                                                 # are the tables up to date?
"""

from __future__ import annotations

import fnmatch
import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common import Line, UsageError, command, hidden, usable_cores
from costs import cost_of
from plan import Cell, Plan, cells_of, read_plan
from results import FOLDER, Results, collect
from rich.console import Console
from runner import Where, check_paths, fit_arguments, is_of, run_cells, scores_of
from tables import README, files

RUNS = Path("runs/accuracy")


def run(
    plan: str,
    root: list[str] = [],  # noqa: B006 - never changed
    weights: list[str] = [],  # noqa: B006
    devices: list[str] = [],  # noqa: B006
    jobs: int = 1,
    threads: int | None = None,
    only: str = "*",
    seeds: list[int] = [],  # noqa: B006
    more: str = "",
    dry_run: bool = False,
    runs: Path = RUNS,
    results: Path = FOLDER,
) -> int:
    """Run a plan's cells that are not done.

    Args:
        plan: A plan's name, or a YAML file.
        root: Folders of data sets, NAME=PATH.
        weights: Files instead of timm's hub, BACKBONE=PATH, or PATH for every backbone.
        devices: GPUs by number: a cell at a time on each.
        jobs: Cells at a time, without devices.
        threads: Threads of a cell (default: the cores shared equally).
        only: Cells whose label, method, data set, variant or name fits this pattern.
        seeds: Cells of these seeds (default: all).
        more: Further arguments of every fit, in one word: '--data.cache disk'.
        dry_run: List cells and commands, and how long finished ones took.
        runs: Where runs lie; shared by all who help.
        results: Where results are kept.

    Returns:
        1 where a cell failed, else 0.
    """
    said, slots, runs = read_plan(plan), list(devices) or [None] * jobs, runs.expanduser().resolve()
    folders = named_paths(root, "--root"), named_paths(weights)
    where = Where(runs, *folders, tuple(shlex.split(more)), threads or max(1, usable_cores() // len(slots)))
    known = Results(said.name, results).rows
    everything = all_cells(said, runs, known)
    cells = [cell for cell in everything if fits(cell, only) and (not seeds or cell.seed in seeds)]
    if not cells:
        raise UsageError("--only, --seeds: they leave no cell")
    took = {cell.name: row["train_seconds"] for cell in cells for row in known if is_of(row["command"], cell)}
    todo = [cell for cell in cells if cell.name not in took and scores_of(cell, runs / cell.name) is None]
    if dry_run:
        for cell in cells:
            state = "to do" if cell in todo else f"done in {took.get(cell.name, '?')} s"
            say(f"{state}  {cell.name}, epochs: {cell.epochs}")
            say(f"       {shlex.join(['fgzoo', *map(hidden, fit_arguments(cell, where))])}")
        say(f"{len(cells)} cells, {len(todo)} to do.")
        return 0
    check_paths(todo, where)
    states = Counter(state.partition(":")[0] for state in run_cells(todo, where, slots, timed).values())
    collect(said, everything, runs, results)
    say(f"{', '.join(f'{number} {state}' for state, number in states.items()) or 'nothing to do'}. Next: make table")
    return int(states["failed"] > 0)


def collect_(plan: str, runs: Path = RUNS, results: Path = FOLDER) -> None:
    """Bring a plan's finished cells into the results, and start none.

    Args:
        plan: A plan's name, or a YAML file.
        runs: Where runs lie.
        results: Where results are kept.
    """
    if not runs.is_dir():
        raise UsageError(f"--runs: there is no {runs}")
    said, known = read_plan(plan), Results(read_plan(plan).name, results).rows
    cells = all_cells(said, runs, known)
    rows = collect(said, cells, runs.resolve(), results)
    found = len({row["cell"] for row in rows} & {cell.name for cell in cells})
    say(f"{len(rows) - len(known)} new, {found} of {len(cells)} cells done. Next: make table")


def table(check: bool = False, readme: Path = README, results: Path = FOLDER) -> int:
    """Write the tables from the results.

    Args:
        check: Write nothing; status 1 where a table is not as its results are.
        readme: Where the tables between the markers go.
        results: Where results are kept.

    Returns:
        1 where a check found one, else 0.
    """
    texts = files(results, readme)
    stale = [path for path, text in texts.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if not check:
            path.write_text(texts[path], encoding="utf-8")
        say(f"{path.name}: {'not as its results are; run make table' if check else 'written'}")
    return int(check and bool(stale))


# ---------------------------------------------------------------------- what the verbs share


def all_cells(plan: Plan, runs: Path, rows: Sequence[Line]) -> list[Cell]:
    """Every cell of a plan; of passes that no row of its results has, those that are needed are counted."""
    # Once for all data sets: classes change heads, not passes.
    classes = next(iter(plan.datasets.values()))

    def passes(cell: Cell) -> float:
        known = next((row["passes"] for row in rows if is_of(row["command"], cell)), None)
        return cost_of(replace(cell, classes=classes), runs / "costs.json").passes if known is None else float(known)

    return cells_of(plan, passes)


def fits(cell: Cell, pattern: str) -> bool:
    """Whether a cell is meant."""
    said = (cell.row.label, cell.row.method, cell.dataset, cell.variant, cell.name)
    return any(fnmatch.fnmatchcase(name, pattern) for name in said)


def named_paths(words: Sequence[str], option: str = "") -> dict[str, Path]:
    """`NAME=PATH ...` as a mapping; a path alone has the name '', which an option that is given refuses."""
    found = {}
    for word in words:
        name, equals, path = word.rpartition("=")
        if option and not equals:
            raise UsageError(f"{option}: '{word}' does not say of which data set; write {option} NAME=PATH")
        found[name] = Path(path).expanduser().resolve()
    return found


def say(text: str) -> None:
    """Print, without breaking lines."""
    Console(soft_wrap=True).print(text, highlight=False, markup=False)


def timed(text: str) -> None:
    """The same with the time of the day."""
    say(f"{time.strftime('%H:%M:%S')}  {text}")


def main(typed: Sequence[str] | None = None) -> int:
    """Parse the command line and do what it says."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return command([run, collect_, table], typed)


if __name__ == "__main__":
    sys.exit(main())
