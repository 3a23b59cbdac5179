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

#: Style and justification of what is shown of a checkpoint, by column.
COLUMNS: dict[str, tuple[str, Literal["left", "right"]]] = {
    "name": ("", "left"), "top-1 %": ("", "right"), "of seeds": ("", "right"), "MB": ("", "right"),
    "data": ("dim", "left"), "px": ("dim", "right"), "backbone": ("dim", "left"), "licence": ("dim", "left"),
}  # fmt: skip
#: The columns that go first where a terminal is narrow.
DROPPED = ("backbone", "px", "of seeds", "data", "MB")
#: The width of a line that no terminal shows.
PIPED = 10_000


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
    # Whoever reads a pipe or a file reads it by lines.
    console = Console(width=None if sys.stdout.isatty() else PIPED)
    for title, rows in chosen.items():
        console.print(_checkpoint_table(rows, console) if title == "checkpoints" else _plain_table(title, rows))
        console.print()
    return 0


def _plain_table(title: str, rows: dict[str, str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(style="dim")
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def _checkpoint_table(rows: dict[str, dict[str, Any]], console: Console) -> Table:
    """What one chooses by, without the columns that there is no room for; `--json` has the rest."""
    if not rows:
        return _plain_table("checkpoints", {"none": "no checkpoint of such a name"})
    for dropped in range(len(DROPPED) + 1):
        shown = [title for title in COLUMNS if title not in DROPPED[:dropped]]
        table = Table(
            title="checkpoints", title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0), pad_edge=False
        )
        for title in shown:
            style, justify = COLUMNS[title]
            table.add_column(title, style=style, justify=justify, no_wrap=True)
        for name, row in rows.items():
            cells = _cells(name, row)
            table.add_row(*(cells[title] for title in shown))
        if console.measure(table, options=console.options.update(width=PIPED)).maximum <= console.width:
            break
    return table


def _cells(name: str, row: dict[str, Any]) -> dict[str, str]:
    """A checkpoint's row, by column."""
    top1 = row["metrics"]["top1"]
    seeds = f"{100 * top1['mean']:.1f} ± {100 * top1['std']:.1f} ({top1['seeds']})" if top1["seeds"] > 1 else "1"
    return {
        "name": name, "top-1 %": f"{100 * top1['value']:.1f}", "of seeds": seeds, "MB": f"{row['size'] / 1e6:.1f}",
        "data": row["dataset"], "px": str(row["image_size"]), "backbone": row["backbone"], "licence": row["licence"],
    }  # fmt: skip
