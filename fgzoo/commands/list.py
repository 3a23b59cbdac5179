"""`fgzoo list`."""

from __future__ import annotations

import json
import sys
from fnmatch import fnmatch
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from fgzoo.checkpoints.registry import read_registry
from fgzoo.commands.data import DATASETS
from fgzoo.methods import available
from fgzoo.recipes import list_recipes


def list_names(
    what: Literal["all", "methods", "recipes", "datasets", "checkpoints"] = "all", pattern: str = "*", *, json_: bool = False
) -> int:
    """Name methods, recipes, data sets and checkpoints.

    Args:
        what: What to list.
        pattern: A shell pattern that names must match, e.g. 'cub*'.
        json_: Print JSON instead of tables.

    Returns:
        The exit status.
    """
    methods = {
        name: path + "".join(f", {key}={value}" for key, value in fixed.items()) for name, (path, fixed) in available().items()
    }
    sections: dict[str, dict[str, Any]] = {
        "methods": methods,
        "recipes": list_recipes(),
        "datasets": DATASETS,
        "checkpoints": {name: entry.as_dict() for name, entry in sorted(read_registry().items())},
    }
    chosen = {
        title: {name: text for name, text in rows.items() if fnmatch(name, pattern)}
        for title, rows in sections.items()
        if what in ("all", title)
    }
    if json_:
        sys.stdout.write(json.dumps(chosen, indent=2) + "\n")
        return 0
    console = Console()
    for title, rows in chosen.items():
        console.print(_checkpoint_table(rows) if title == "checkpoints" else _plain_table(title, rows))
        console.print()
    return 0


def _plain_table(title: str, rows: dict[str, str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(style="dim")
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def _checkpoint_table(rows: dict[str, dict[str, Any]]) -> Table:
    """What one chooses by; `--json` has the rest."""
    if not rows:
        return _plain_table("checkpoints", {"none": "no checkpoint of such a name"})
    table = Table(title="checkpoints", title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
    table.add_column("name", no_wrap=True)
    for column in ("top-1 %", "of seeds", "MB"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("data", style="dim", no_wrap=True)
    for column in ("px", "backbone", "licence"):
        table.add_column(column, style="dim", justify="right" if column == "px" else "left", overflow="fold")
    for name, row in rows.items():
        top1 = row["metrics"]["top1"]
        several = top1["seeds"] > 1
        table.add_row(
            name, f"{100 * top1['value']:.1f}",
            f"{100 * top1['mean']:.1f} ± {100 * top1['std']:.1f} ({top1['seeds']})" if several else "1",
            f"{row['size'] / 1e6:.1f}", row["dataset"], str(row["image_size"]), row["backbone"], row["licence"],
        )  # fmt: skip
    return table
