"""Accuracy of methods, their parents and ablations: a plan's runs, and the tables made of them.

Every cell of a plan is one `fgzoo fit` and one `fgzoo test` as a person would type them. Cells that are done are skipped, broken
ones resumed. Any number of processes and machines may work on one plan at a time, if they share the folder of the runs.

    python benchmarks/accuracy.py run cub50 --root cub=PATH --weights PATH --dry-run            # what would run, and how long
    python benchmarks/accuracy.py run cub50 --root cub=PATH --weights PATH --jobs 2
    python benchmarks/accuracy.py run full --root cub=PATH cars=PATH aircraft=PATH --devices 0,1,2,3
    python benchmarks/accuracy.py run smoke                                                     # minutes, nothing to download
    python benchmarks/accuracy.py collect cub50                                                 # what others finished meanwhile
    python benchmarks/accuracy.py views cub50 --root cub=PATH                                   # the baseline on more test views
    python benchmarks/accuracy.py table                                                         # or `make table`
    python benchmarks/accuracy.py table --check                                                 # are the tables up to date?

Plans lie in `plans`, results in `results/accuracy`: `PLAN.csv`, a row a cell; `PLAN/CELL.json`, its settings, metrics and
environment; `PLAN.npz`, the classes that single test images were given. The tables are made of these alone.
"""

from __future__ import annotations

import argparse
import fnmatch
import shlex
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from accuracy_plan import Cell, Cost, Costs, cells_of, plan_names, read_plan
from accuracy_runs import PATH, RESULT, Progress, Where, run_cells, shown_command
from accuracy_table import FOLDER, README, collect, files, read_rows
from accuracy_views import score_views
from rich.console import Console
from rich.live import Live
from rich.table import Table

from fgzoo.data.datamodule import usable_cores
from fgzoo.errors import UsageError

# ---------------------------------------------------------------------- how long it takes


class Clock:
    """Estimates training seconds from multiply-adds: those of all forward passes.

    Args:
        cells: The plan's cells.
        costs: Counts them.
        rows: Finished cells, from which the seconds a GMAC are taken: the median.
        speed: Images a second that the first cell trains on, instead.
    """

    def __init__(self, cells: Sequence[Cell], costs: Costs, rows: Sequence[dict[str, str]], speed: float | None) -> None:
        self.costs = costs
        self.rate: float | None = None
        if speed is not None:
            cost = costs.of(cells[0])
            self.rate = 1 / (speed * cost.train_gmac)
            self.source = f"{speed:g} images/s of {cells[0].method}, {cells[0].backbone}, {cells[0].size} pixels"
            return
        by_name = {cell.name: cell for cell in cells}
        rates = [float(row["train_seconds"]) / self.work(by_name[row["cell"]]) for row in rows if row["cell"] in by_name]
        self.rate = statistics.median(rates) if rates else None
        self.source = f"{len(rates)} finished cells" if rates else "nothing: no cell is done; give --images-per-second"

    def work(self, cell: Cell) -> float:
        """GMAC of all forward passes of a cell's training."""
        cost: Cost = self.costs.of(cell)
        return cost.train_gmac * cell.train_images * cell.epochs

    def seconds(self, cell: Cell) -> float | None:
        """Estimated seconds of training a cell."""
        return None if self.rate is None else self.rate * self.work(cell)


def span(seconds: float | None) -> str:
    """A duration for people."""
    if seconds is None:
        return "?"
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def dry_run(console: Console, cells: Sequence[Cell], done: set[str], where: Where, clock: Clock, slots: int) -> None:
    """List the cells with their commands and estimated time, and add it up."""
    total = left = 0.0
    for cell in cells:
        seconds = clock.seconds(cell)
        total += seconds or 0
        left += 0 if cell.name in done else seconds or 0
        fold = "" if cell.fold is None else f", fold {cell.fold} of {cell.folds}"
        lines = [
            f"{'done ' if cell.name in done else 'to do'}  {cell.dataset}, {cell.table}: {cell.label}, seed {cell.seed}{fold};",
            f"epochs: {cell.epochs}, passes an image: {clock.costs.of(cell).passes:.1f}, about {span(seconds)}",
        ]
        console.print(" ".join(lines), highlight=False)
        console.print(f"       {shown_command(cell, where)}", highlight=False)
    console.print(f"{len(cells)} cells, {sum(cell.name not in done for cell in cells)} to do.", highlight=False)
    if clock.rate is None:
        console.print(f"Time: estimated from {clock.source}.", highlight=False)
        return
    console.print(
        f"About {total / 3600:.1f} hours of training in all, {left / 3600:.1f} to do, {left / 3600 / slots:.1f} with {slots} at "
        f"a time; estimated from {clock.source}.",
        highlight=False,
    )


# ---------------------------------------------------------------------- what one sees


def live_table(all_progress: Sequence[Progress], where: Where, clock: Clock, rows: int) -> Table:
    """The cells that run, failed or were done last, and how many there are of each kind."""
    counts = Counter(progress.state for progress in all_progress)
    title = ", ".join(f"{number} {state}" for state, number in counts.items())
    shown = Table(title=title, title_justify="left")
    for column in ("cell", "state", "epoch", "top-1 %", "time left"):
        shown.add_column(column, justify="left" if column in ("cell", "state") else "right", no_wrap=column != "cell")
    rank = {"running": 0, "failed": 1, "elsewhere": 2, "stopped": 3, "waiting": 4, "done": 5}
    for progress in sorted(all_progress, key=lambda progress: rank[progress.state])[:rows]:
        cell = progress.cell
        top1 = "" if progress.top1 is None else f"{100 * progress.top1:.1f}"
        name = f"{cell.dataset}, {cell.table}: {cell.label} {cell.seed}"
        name += "" if cell.fold is None else f", fold {cell.fold}"
        epoch = progress.epoch(where)
        left = clock.seconds(cell) if progress.state == "waiting" and clock.rate is not None else None
        if epoch is not None and epoch[0]:
            left = (cell.epochs - epoch[0]) * epoch[1]
        state = f"{progress.state}: {progress.note}" if progress.note else progress.state
        epochs = f"{epoch[0]}/{cell.epochs}" if epoch is not None else ""
        shown.add_row(name, state, epochs, top1, "" if left is None else span(left))
    return shown


def plain_lines(console: Console) -> Callable[[Sequence[Progress]], None]:
    """Says what has changed, a line each."""
    known: dict[str, str] = {}

    def show(all_progress: Sequence[Progress]) -> None:
        for progress in all_progress:
            cell, state = progress.cell, progress.state
            if known.get(cell.name, "waiting") == state:
                continue
            first = cell.name not in known
            known[cell.name] = state
            if first and state == "done" and progress.top1 is None:
                continue
            top1 = "" if progress.top1 is None else f", top-1 {100 * progress.top1:.2f} %"
            note = f": {progress.note}" if progress.note else ""
            console.print(f"{time.strftime('%H:%M:%S')}  {state}{note}  {cell.name}{top1}", highlight=False)

    return show


# ---------------------------------------------------------------------- the verbs


def run(options: argparse.Namespace, console: Console) -> int:
    """Run a plan's cells.

    Returns:
        1 where a cell failed, else 0.
    """
    plan = read_plan(options.plan)
    where = Where(options.runs, options.root, options.weights, tuple(shlex.split(options.more)), stale=60 * options.stale)
    costs = Costs(options.runs / "costs.json")
    cells = chosen(cells_of(plan, costs), options.only, options.seeds)
    if not cells:
        raise UsageError("--only, --seeds: they leave no cell")
    slots: list[str | None] = options.devices.split(",") if options.devices else [None] * options.jobs
    where.threads = options.threads or max(1, usable_cores() // len(slots))
    rows = read_rows(options.results / f"{plan.name}.csv")
    done = {row["cell"] for row in rows} | {cell.name for cell in cells if (where.runs / cell.name / RESULT).is_file()}
    clock = Clock(cells, costs, rows, options.images_per_second)
    if options.dry_run:
        dry_run(console, cells, done, where, clock, len(slots))
        return 0
    finished = show_and_run(console, cells, done, where, clock, slots)
    collect(plan, cells_of(plan, costs), where.runs, options.results)
    counts = Counter(progress.state for progress in finished)
    console.print(f"{', '.join(f'{number} {state}' for state, number in counts.items())}. Next: make table", highlight=False)
    return int(counts["failed"] + counts["stopped"] > 0)


def show_and_run(
    console: Console, cells: Sequence[Cell], done: set[str], where: Where, clock: Clock, slots: Sequence[str | None]
) -> list[Progress]:
    """Run the cells under a live table, or with plain lines where there is no terminal."""
    if not console.is_terminal:
        return run_cells(cells, done, where, clock.costs, slots, plain_lines(console))
    with Live(console=console, auto_refresh=False) as live:

        def show(all_progress: Sequence[Progress]) -> None:
            live.update(live_table(all_progress, where, clock, max(8, console.height - 6)), refresh=True)

        return run_cells(cells, done, where, clock.costs, slots, show)


def chosen(cells: Sequence[Cell], only: str | None, seeds: Sequence[int] | None) -> list[Cell]:
    """The cells of some seeds whose label, method, data set, table or name fits a pattern."""
    return [
        cell
        for cell in cells
        if (seeds is None or cell.seed in seeds)
        and (
            only is None
            or any(fnmatch.fnmatchcase(said, only) for said in (cell.label, cell.method, cell.dataset, cell.table, cell.name))
        )
    ]


def collected(options: argparse.Namespace, console: Console) -> int:
    """Bring into the results what is finished, and start nothing."""
    plan = read_plan(options.plan)
    if not options.runs.is_dir():
        raise UsageError(f"--runs: there is no {options.runs}")
    cells = cells_of(plan, Costs(options.runs / "costs.json"))
    before = {row["cell"] for row in read_rows(options.results / f"{plan.name}.csv")}
    rows = {row["cell"] for row in collect(plan, cells, options.runs, options.results)}
    console.print(
        f"{len(rows - before)} new, {len(rows & {cell.name for cell in cells})} of {len(cells)} cells done. Next: make table",
        highlight=False,
    )
    return 0


def viewed(options: argparse.Namespace, console: Console) -> int:
    """Score the baseline's finished runs on more views of the test images."""
    plan = read_plan(options.plan)
    cells = cells_of(plan, Costs(options.runs / "costs.json"))
    number = 0
    for cell, found in score_views(plan, cells, Where(options.runs, options.root), options.results):
        number += 1
        said = ", ".join(f"{views} {100 * top1:.2f}" for views, top1 in found.items())
        console.print(f"{cell.name}: top-1 % {said}", highlight=False)
    console.print(f"{number} runs scored. Next: make table", highlight=False)
    return 0


def tables(options: argparse.Namespace, console: Console) -> int:
    """Write the tables, or with --check say which are not as the results are.

    Returns:
        1 where --check found one, else 0.
    """
    texts = files(options.results, options.readme)
    stale = [path for path, text in texts.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if not options.check:
            path.write_text(texts[path], encoding="utf-8")
        console.print(f"{path.name}: {'not as its results are; run make table' if options.check else 'written'}", highlight=False)
    return int(options.check and bool(stale))


# ---------------------------------------------------------------------- the command line


def named_paths(words: Sequence[str], option: str) -> dict[str, Path]:
    """`NAME=PATH ...` as a mapping; a path alone has the name ''."""
    found = {}
    for word in words:
        name, equals, path = word.rpartition("=")
        if option == "--root" and not equals:
            raise UsageError(f"--root: '{word}' does not say of which data set; write --root NAME={PATH}")
        found[name] = Path(path).expanduser().resolve()
    return found


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    runs = verbs.add_parser("run", help="run a plan's cells that are not done")
    runs.add_argument("--weights", nargs="+", default=[], metavar="[BACKBONE=]PATH", help="files instead of timm's hub")
    runs.add_argument("--devices", help="GPUs by number, e.g. 0,1,2,3: a cell at a time on each")
    runs.add_argument("--jobs", type=int, default=1, help="cells at a time, without --devices")
    runs.add_argument("--threads", type=int, help="threads of a cell (default: the cores shared equally)")
    runs.add_argument("--only", metavar="GLOB", help="cells whose label, method, data set, table or name fits")
    runs.add_argument("--seeds", type=int, nargs="+", help="cells of these seeds")
    runs.add_argument("--more", default="", help="further arguments of every fit, in one word: '--data.cache ram'")
    runs.add_argument("--stale", type=float, default=10, help="minutes of silence after which another machine's cell is taken")
    runs.add_argument("--dry-run", action="store_true", help="list cells, commands and estimated time")
    runs.add_argument("--images-per-second", type=float, help="of training the plan's first row, for the estimate")
    gathered = verbs.add_parser("collect", help="bring a plan's finished cells into the results, and start none")
    views = verbs.add_parser("views", help="score the baseline's finished runs on more views of the test images")
    for verb in (runs, views):
        verb.add_argument("--root", nargs="+", default=[], metavar="NAME=PATH", help="folders of data sets")
    for verb in (runs, gathered, views):
        verb.add_argument("plan", help=f"{', '.join(plan_names())}, or a YAML file")
        verb.add_argument("--runs", type=Path, default=Path("runs/accuracy"), help="where runs lie; shared by all who help")
    written = verbs.add_parser("table", help="write the tables from the results")
    written.add_argument("--check", action="store_true", help="write nothing; status 1 where a table is not up to date")
    written.add_argument("--readme", type=Path, default=README, help="where the tables between the markers go")
    for verb in (runs, gathered, views, written):
        verb.add_argument("--results", type=Path, default=FOLDER, help="where results are kept")
    return parser


def main(typed: Sequence[str] | None = None) -> int:
    """Parse the command line and do what it says."""
    options = arguments().parse_args(typed)
    console = Console(soft_wrap=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if options.verb == "table":
            return tables(options, console)
        options.runs = options.runs.expanduser().resolve()
        if options.verb == "collect":
            return collected(options, console)
        options.root = named_paths(options.root, "--root")
        if options.verb == "views":
            return viewed(options, console)
        options.weights = named_paths(options.weights, "--weights")
        return run(options, console)
    except UsageError as error:
        sys.stderr.write(f"accuracy: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("accuracy: interrupted; what is done stays, and the next call goes on\n")
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
