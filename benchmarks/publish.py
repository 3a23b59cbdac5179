"""Publish trained runs as checkpoints of the zoo: those inside the package, and those of a plan of accuracy runs.

    python benchmarks/interpretability.py --train --epochs 30 --runs runs/birds --write
    python benchmarks/publish.py birds --runs runs/birds
    python benchmarks/accuracy.py run cub50 --root cub=PATH --weights PATH --runs runs/accuracy
    python benchmarks/publish.py cub50 --runs runs/accuracy --table "160 pixels, 10 epochs" --licence CC-BY-NC-4.0
    python benchmarks/publish.py birds --runs runs/birds --methods iagn      # this one alone; the others stay as they are

`birds` are the baseline and the four methods on the synthetic birds, tested (`fgzoo test`) and published (`fgzoo publish`) into
the package. A plan's are the rows that it compares with its baseline, in one of its tables; the first seed's weights, beside
which stand mean and spread over all seeds. All are stored in half precision. Nothing is chosen between runs.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from accuracy_plan import Cell, Costs, Plan, cells_of, read_plan

from fgzoo.checkpoints.registry import REGISTRY, SUFFIX, find_entry
from fgzoo.checkpoints.run_folder import PROBABILITIES
from fgzoo.cli import main as fgzoo
from fgzoo.errors import UsageError

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
METHODS = ("baseline", "rra", "iagn", "coarse2fine", "srbn")
#: Bytes of a file in the package, which everyone who installs it downloads; and of all files of a plan, which every clone holds.
LARGEST, ALL_OF_A_PLAN = 2_500_000, 60_000_000


def run(*arguments: object) -> None:
    """Run one verb."""
    status = fgzoo([str(argument) for argument in arguments])
    if status:
        raise SystemExit(status)


def publish(folder: Path, name: str, output: Path, *more: object) -> int:
    """Publish one run.

    Returns:
        The file's length in bytes.
    """
    run("publish", folder, "--name", name, "--dtype", "float16", "--output", output, "--registry", REGISTRY, *more)
    return find_entry(name).size


def publish_birds(runs: Path, seed: int, methods: Sequence[str] | None) -> None:
    """The runs METHOD-SEED, into the package."""
    for method in methods or METHODS:
        folder, name = runs / f"{method}-{seed}", f"{method}_birds"
        run("test", "--ckpt_path", folder)
        size = publish(folder, name, REGISTRY.parent)
        if size > LARGEST:
            sys.exit(f"{name}{SUFFIX} has {size} bytes; at most {LARGEST} may lie in the package")


def publish_plan(plan: Plan, runs: Path, table: str, licence: str, methods: Sequence[str] | None) -> None:
    """The compared rows of a plan's table, into the repository."""
    for name, folders in finished(plan, runs, table, Costs(runs / "costs.json"), methods).items():
        first, *others = folders
        more = ["--seeds", *others] if others else []
        publish(first, name, CHECKPOINTS, "--licence", licence, *more)
    total = sum(path.stat().st_size for path in CHECKPOINTS.glob(f"*_{plan.name}{SUFFIX}"))
    if total > ALL_OF_A_PLAN:
        sys.exit(f"the checkpoints of {plan.name} have {total} bytes together; at most {ALL_OF_A_PLAN} may lie in the repository")


def finished(plan: Plan, runs: Path, table: str, costs: Costs, methods: Sequence[str] | None = None) -> dict[str, list[Path]]:
    """Names of these methods' checkpoints, and the folders of their finished runs by seed.

    Raises:
        UsageError: The plan has no such table or methods, or the run of a row has not been finished.
    """
    cells = [cell for cell in cells_of(plan, costs) if cell.table == table]
    if not cells:
        raise UsageError(f"{plan.name} has no table '{table}'; it has {', '.join(variant.name for variant in plan.variants)}")
    found = {}
    for label in plan.compare:
        of_row = [cell for cell in cells if cell.label == label]
        if methods is not None and of_row[0].method not in methods:
            continue
        folders = [runs / cell.name for cell in of_row if (runs / cell.name / PROBABILITIES["test"]).is_file()]
        if not folders:
            raise UsageError(f"no run of {label} is finished, such as {runs / of_row[0].name}")
        found[name_of(of_row[0])] = folders
    if not found:
        raise UsageError(f"{plan.name} compares no {' or '.join(methods or [])} with its baseline")
    return found


def name_of(cell: Cell) -> str:
    """What people type: the method, the backbone without a trailing width of 100 %, the plan."""
    return re.sub(r"[^a-z0-9]+", "_", f"{cell.method}_{cell.backbone.removesuffix('_100')}_{cell.plan}".lower())


def main() -> None:
    """Parse the command line and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", help="birds, or a plan of accuracy.py")
    parser.add_argument("--runs", type=Path, required=True, help="where the runs are")
    parser.add_argument("--seed", type=int, default=0, help="of the birds' runs")
    parser.add_argument("--methods", nargs="+", help="what to publish; by default all")
    parser.add_argument("--table", help="of a plan")
    parser.add_argument("--licence", help="of a plan's weights")
    options = parser.parse_args()
    if options.what == "birds":
        publish_birds(options.runs, options.seed, options.methods)
    elif options.table is None or options.licence is None:
        parser.error("a plan's checkpoints need --table and --licence")
    else:
        try:
            publish_plan(read_plan(options.what), options.runs.resolve(), options.table, options.licence, options.methods)
        except UsageError as error:
            sys.exit(f"publish: {error}")


if __name__ == "__main__":
    main()
