"""What the scripts share: their command lines, what they know of the machine, and how results are written down.

Everything of fgzoo that lies behind its public names is imported here, for all scripts.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from jsonargparse import auto_cli

from fgzoo import keep_freed_memory
from fgzoo.checkpoints.run_folder import CONFIG, METRICS, PROBABILITIES
from fgzoo.data.card import DataCard
from fgzoo.data.datamodule import usable_cores
from fgzoo.errors import UsageError
from fgzoo.files import atomic_write
from fgzoo.methods import find_method, method_name
from fgzoo.nn.backbone import Backbone
from fgzoo.prediction import TestTime
from fgzoo.prediction.inference import classify
from fgzoo.recipes import list_recipes, read_config, read_recipe
from fgzoo.training.arguments import expand_presets, settings_of
from fgzoo.training.callbacks import ReproducibleSteps
from fgzoo.training.command import default_precision, quieten
from fgzoo.training.environment import environment, peak_memory
from fgzoo.training.faults import FiniteLoss

__all__ = [
    "CONFIG",
    "METRICS",
    "PROBABILITIES",
    "Backbone",
    "DataCard",
    "FiniteLoss",
    "ReproducibleSteps",
    "TestTime",
    "UsageError",
    "atomic_write",
    "classify",
    "default_precision",
    "expand_presets",
    "find_method",
    "list_recipes",
    "method_name",
    "peak_memory",
    "quieten",
    "read_config",
    "read_recipe",
    "settings_of",
    "usable_cores",
]  # fmt: skip

# As every verb does.
keep_freed_memory()

RESULTS = Path(__file__).parent / "results"
Line = dict[str, str]

# ---------------------------------------------------------------------- command lines


def command(functions: Sequence[Callable[..., Any]], typed: Sequence[str] | None = None, after: Any = int) -> int:
    """Run one of some functions, whose signatures and docstrings are its command line; where there is one its name is not typed.

    What it returns, if anything, is given to `after`. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """
    words = list(sys.argv[1:] if typed is None else typed)
    verbs = {function.__name__.strip("_"): function for function in functions}
    chosen = verbs.get(words[0] if words else "", functions[0])
    try:
        found = auto_cli(verbs if len(verbs) > 1 else functions[0], args=as_parsed(words, chosen))
        return int((after(found) if found else 0) or 0)
    except UsageError as error:
        sys.stderr.write(f"{Path(sys.argv[0]).name}: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what is done stays\n")
        return 130


def as_parsed(words: Sequence[str], function: Callable[..., Any]) -> list[str]:
    """What people type as jsonargparse takes it: `--dry-run --root a` as `--dry_run=true --root=["a"]`, by a signature."""
    kinds, found, rest = get_type_hints(function), [], list(words)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        kind = kinds.get(name.removeprefix("--").replace("-", "_"))
        kind = get_args(kind)[0] if type(None) in get_args(kind) else kind
        if not name.startswith("--") or kind is None:
            found.append(f"{name}{equals}{value}")
            continue
        name, values = f"--{name[2:].replace('-', '_')}", [value] if equals else []
        several = get_origin(kind) is list
        while (
            not equals and rest and not rest[0].startswith("--") and (several or (kind is bool and rest[0] in ("true", "false")))
        ):
            values.append(rest.pop(0))
        if several:
            found.append(f"{name}=[{', '.join(values)}]" if get_args(kind)[0] in (int, float) else f"{name}={json.dumps(values)}")
        elif kind is bool:
            found.append(f"{name}={values[0] if values else 'true'}")
        else:
            found.append(f"{name}={value}" if equals else name)
    return found


def process_environment(threads: int) -> dict[str, str]:
    """The environment of a process with so many threads."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}


# ---------------------------------------------------------------------- results


def hidden(text: str) -> str:
    """A text in which no folder of this machine stands."""
    return re.sub(r"(?<![\w.])~?/[^\s'\",]+", "PATH", text)


def deliver(title: str, text: str, rows: Sequence[Mapping[str, Any]], name: str | None) -> None:
    """Print a report, and with a name write results/NAME.md and NAME.csv, whose rows say what made them where they do not yet."""
    about = environment()
    typed = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(hidden, sys.argv[1:])])
    packages = {package: about["packages"][package] for package in ("torch", "lightning", "timm")}
    made = {"hardware": next(iter(about["gpus"]), about["processor"]), "cores": about["cores"], "threads": about["threads"]}
    made |= {"python": about["python"], **packages, "fgzoo": about["git"], "time": about["time"], "command": typed}
    said = ", ".join(f"{key} {value}" for key, value in made.items() if key not in ("time", "command"))
    page = f"# {title}\n\n{said}.\n\n`{typed}`\n\n{text}\n"
    sys.stdout.write(page)
    if name is not None:
        write_csv(
            RESULTS / f"{name}.csv", [{**row, **{key: row.get(key) or value for key, value in made.items()}} for row in rows]
        )
        (RESULTS / f"{name}.md").write_text(page, encoding="utf-8")


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in [columns, ["---"] * len(columns), *rows])


def middle(values: Sequence[float], digits: int = 2) -> str:
    """The median and, of several values, in brackets the smallest and the largest."""
    low, median, high = (f"{value:,.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return median if len(values) == 1 else f"{median} ({low} to {high})"


def read_csv(path: Path) -> list[Line]:
    """Rows that were written before; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], first: Sequence[str] = ()) -> None:
    """Write all rows in one move: these columns first, then the others as they come, unless they are empty everywhere."""
    others = dict.fromkeys(name for row in rows for name, value in row.items() if value not in (None, ""))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(
            file, list(dict.fromkeys([*first, *others])), restval="", lineterminator="\n", extrasaction="ignore"
        )
        writer.writeheader()
        writer.writerows(rows)
