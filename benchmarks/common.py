"""What the scripts share: their command lines, and how results are written down."""

from __future__ import annotations

import csv
import re
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fgzoo import keep_freed_memory
from fgzoo.commands import parser
from fgzoo.errors import UsageError
from fgzoo.files import atomic_write
from fgzoo.training.environment import environment

RESULTS = Path(__file__).parent / "results"

#: A row of a CSV: values by column, all of them text where it was read.
Row = dict[str, Any]


def main(
    functions: Callable[..., Any] | Mapping[str, Callable[..., Any]],
    typed: Sequence[str] | None = None,
    then: Callable[[Any], int | None] | None = None,
) -> int:
    """Run a script's function, or the one of several that is typed first; `then` is given what it returns.

    Signatures and docstrings are the command line, as those of `fgzoo`. Returns 0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """
    keep_freed_memory()
    try:
        found = parser.run(functions, sys.argv[1:] if typed is None else typed, Path(sys.argv[0]).name)
        return (then(found) if then else found) or 0
    except UsageError as error:
        sys.stderr.write(f"{' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what is done stays\n")
        return 130


def say(text: str) -> None:
    """Print a line at once, whole where threads print, too."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def hide_paths(text: str) -> str:
    """A text in which no folder of this machine stands."""
    return re.sub(r"(?<![\w.])~?/[^\s'\",]+", "PATH", text)


def write_report(title: str, text: str, rows: Sequence[Row], name: str | None) -> None:
    """Print a report; with a name also write results/NAME.md and .csv, both of which say what made them.

    Rows that were read from results keep what they say of that.

    Raises:
        UsageError: There is no row to write.
    """
    if name is not None and not rows:
        raise UsageError(f"nothing that fits was found, so results/{name}.md and .csv stay as they are; see --runs and --only")
    about = environment()
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(hide_paths, sys.argv[1:])])
    made_by = {
        "hardware": next(iter(about["gpus"]), about["processor"]),
        **{key: about[key] for key in ("cores", "threads", "python")},
        **{package: about["packages"][package] for package in ("torch", "lightning", "timm")},
        "fgzoo": about["git"],
    }
    page = f"# {title}\n\n{', '.join(f'{key} {value}' for key, value in made_by.items())}.\n\n`{command}`\n\n{text}\n"
    sys.stdout.write(page)
    if name is not None:
        made_by |= {"time": about["time"], "command": command}
        write_csv(RESULTS / f"{name}.csv", [row | made_by | row for row in rows])
        (RESULTS / f"{name}.md").write_text(page, encoding="utf-8")


def markdown_table(rows: Sequence[Row]) -> str:
    """Rows with every column that one of them has; empty without any."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns), *([row.get(name, "") for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines) if rows else ""


def median_and_range(values: Sequence[float]) -> str:
    """The median and in brackets the smallest and the largest."""
    return f"{statistics.median(values):,.2f} ({min(values):,.2f} to {max(values):,.2f})"


def read_csv(path: Path) -> list[Row]:
    """Rows that were written before; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write all rows in one move, with every column that one of them has."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
