"""Loss curves of a plan's compared methods, from the records that are kept beside its table.

    python benchmarks/curves.py cub50
    python benchmarks/curves.py cub50 --variant "224 pixels, 15 epochs"

A column is a method. Above: its terms of the training loss, epoch by epoch. Below: the accuracy on the batches it was trained
on, beside that of its parent and of the baseline; the ticks at the right are what the test split gave after the last epoch, the
dotted ones the method's single heads. The run with the smallest seed is drawn.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accuracy_plan import Plan, plan_names, read_plan
from accuracy_table import FOLDER, Group, blocks_of, read_rows
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fgzoo.errors import UsageError

METHOD, PARENT, BASELINE = "#1f5fa8", "#d9822b", "#8a8a8a"
#: Single heads this far from the method's accuracy are named.
APART = 0.03


def records_of(plan: Plan, variant: str, folder: Path) -> dict[str, tuple[Group, list[dict[str, str]]]]:
    """The rows of a variant, and the metrics of each one's first run.

    Args:
        plan: The plan.
        variant: The variant's name.
        folder: Where results are kept.

    Returns:
        Groups and metrics by label.

    Raises:
        UsageError: The plan has no such variant, or no results of it.
    """
    found: dict[str, tuple[Group, list[dict[str, str]]]] = {}
    for block in blocks_of(plan, read_rows(folder / f"{plan.name}.csv")):
        for group in block.groups if block.table == variant else ():
            first = min(group.runs, key=lambda run: int(run["seed"]))
            record = folder / plan.name / f"{first['cell']}.json"
            if record.is_file():
                found.setdefault(group.label, (group, json.loads(record.read_text())["metrics"]))
    if not found:
        names = ", ".join(f"'{known.name}'" for known in plan.variants)
        raise UsageError(f"{plan.name}: nothing of the variant '{variant}' has been measured; its variants: {names}")
    return found


def series(metrics: list[dict[str, str]], name: str) -> tuple[list[int], list[float]]:
    """Epochs, counted from 1, and a metric's values, where it was logged."""
    logged = [(int(row["epoch"]) + 1, float(row[name])) for row in metrics if name in row]
    return [epoch for epoch, _ in logged], [value for _, value in logged]


def draw(plan: Plan, variant: str, folder: Path) -> Figure:
    """The picture of a variant.

    Args:
        plan: The plan.
        variant: The variant's name.
        folder: Where results are kept.

    Returns:
        The figure.
    """
    found = records_of(plan, variant, folder)
    parents = {row.label: row.parent for row in plan.rows}
    shown = [label for label in plan.compare if label in found]
    if not shown:
        raise UsageError(f"{plan.name}: none of {', '.join(plan.compare)} has been measured with '{variant}'")
    figure = Figure(figsize=(3.4 * len(shown), 6), dpi=100, layout="constrained")
    axes = figure.subplots(2, len(shown), squeeze=False, sharex="col")
    for column, label in enumerate(shown):
        group, metrics = found[label]
        terms(axes[0][column], metrics)
        axes[0][column].set_title(label, fontweight="bold")
        others = [(PARENT, parents.get(label, "")), (BASELINE, plan.baseline)]
        for colour, other in [*others, (METHOD, label)]:
            if other in found:
                accuracy(axes[1][column], other, found[other][1], colour, heads=other == label)
        axes[1][column].legend(fontsize=7, loc="lower right")
    axes[0][0].set_ylabel("terms of the training loss")
    axes[1][0].set_ylabel("top-1 %, training (ticks: test)")
    figure.suptitle(f"{plan.title}: {variant}, seed {group.first['seed']}", fontsize=10)
    return figure


def terms(axis: Axes, metrics: list[dict[str, str]]) -> None:
    """The terms of a loss over the epochs."""
    names = sorted({name for row in metrics for name in row if name.startswith("train/loss_")})
    for name in names:
        epochs, values = series(metrics, name)
        axis.plot(epochs, values, marker=".", linewidth=1.2, label=name.removeprefix("train/loss_"))
    axis.set_yscale("log")
    if names:
        axis.legend(fontsize=7, ncol=4, loc="upper center", bbox_to_anchor=(0.5, -0.03), handlelength=1.5, columnspacing=1)
    axis.grid(alpha=0.3)


def accuracy(axis: Axes, label: str, metrics: list[dict[str, str]], colour: str, heads: bool) -> None:
    """Training accuracy over the epochs, and what the test gave."""
    epochs, values = series(metrics, "train/top1")
    if not epochs:
        return
    axis.plot(epochs, [100 * value for value in values], color=colour, linewidth=1.4, label=label)
    last: Any = {name: float(value) for row in metrics for name, value in row.items() if name.startswith("test/top1")}
    end = [epochs[-1] + 0.2, epochs[-1] + 1.0]
    for name, value in last.items():
        if name == "test/top1":
            axis.plot(end, [100 * value] * 2, color=colour, linewidth=2.5)
        elif heads:
            axis.plot(end, [100 * value] * 2, color=colour, linewidth=1.2, linestyle=":")
    for value, said in named_heads(last) if heads else []:
        axis.annotate(said, (end[1], 100 * value - 1), fontsize=7, color=colour, ha="right", va="top")
    axis.set_ylim(0, 102)
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)


def named_heads(scores: dict[str, float]) -> list[tuple[float, str]]:
    """Where to write which names: of the heads that lie apart from the whole, those close to one another together."""
    whole = scores.get("test/top1", 0.0)
    heads = sorted((value, name.removeprefix("test/top1_")) for name, value in scores.items() if name != "test/top1")
    groups: list[tuple[float, str]] = []
    for value, name in heads:
        if abs(value - whole) <= APART:
            continue
        if groups and value - groups[-1][0] <= APART:
            groups[-1] = (groups[-1][0], f"{groups[-1][1]}, {name}")
        else:
            groups.append((value, name))
    return groups


def main(typed: Sequence[str] | None = None) -> int:
    """Draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("plan", help=f"{', '.join(plan_names())}, or a YAML file")
    parser.add_argument("--variant", help="by default the plan's first")
    parser.add_argument("--results", type=Path, default=FOLDER, help="where results are kept")
    options = parser.parse_args(typed)
    try:
        plan = read_plan(options.plan)
        figure = draw(plan, options.variant or plan.variants[0].name, options.results)
    except UsageError as error:
        sys.stderr.write(f"curves.py: {error}\n")
        return 2
    path = options.results / f"{plan.name}_curves.png"
    figure.savefig(path)
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
