"""Plans of accuracy runs: a short YAML file, and the cells it stands for."""

from __future__ import annotations

import functools
import inspect
import re
import shlex
from argparse import ArgumentError
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from common import UsageError, expand_presets, find_method, settings_of
from jsonargparse import ArgumentParser

from fgzoo import FGVCDataModule

PLANS = Path(__file__).parent / "plans"


@dataclass(frozen=True)
class Variant:
    """One setting under which all rows run, its seeds, and which of the plan's folds and data sets it has (by default all)."""

    name: str
    arguments: str = ""
    seeds: tuple[int, ...] = (0,)
    folds: tuple[int, ...] = ()
    datasets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One row of the tables: a method and what is typed beside it. Without a label its arguments are the label."""

    method: str
    label: str = ""
    arguments: str = ""
    parent: str = ""
    variants: tuple[str, ...] = ()

    @property
    def said(self) -> str:
        """The arguments, as short as they can be read."""
        return " ".join(shlex.split(self.arguments)).replace("--model.", "") or "default"

    @property
    def slug(self) -> str:
        """The row's part of a cell's name; arguments alone do not tell one method's row from another's."""
        return slug(self.label if self.label != self.said else f"{self.method} {self.said}")


@dataclass(frozen=True)
class Folds:
    """Cross-validation inside the training split: how many folds, and which of them are run."""

    number: int
    run: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Plan:
    """A plan as its file says it."""

    title: str  # one line above the tables
    fit: str  # what is typed after `fgzoo fit`, with {dataset} and {method}
    datasets: dict[str, int]  # classes by the data set's name in fgzoo: they have to be known before it is read
    rows: tuple[Row, ...]
    variants: tuple[Variant, ...]
    notes: str = ""  # what must stand beside the numbers
    details: str = ""  # what else the plan's page says, and README does not
    baseline: str = "Baseline"  # label of the row that the others are compared with
    compare: tuple[str, ...] = ()  # labels of rows beside which the baseline runs, with their backbone, epochs, and passes
    ensemble: tuple[str, ...] = ()  # labels of rows whose probabilities are averaged
    folds: Folds | None = None  # validate on folds of the training split; otherwise the test split is run once
    readme: int = 0  # README shows the measured plan of the lowest number; 0: never this one
    name: str = ""  # the file's, without its ending


def read_plan(said: str) -> Plan:
    """Read a plan by its name in `plans` or its file; where there is none, or something in it is wrong, one line says what."""
    path = Path(said) if Path(said).suffix in (".yaml", ".yml") else PLANS / f"{said}.yaml"
    if not path.is_file():
        raise UsageError(f"no plan '{said}'; plans are {', '.join(plan_names())}, or a YAML file")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Plan)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise UsageError(f"expected keys and values, got {content!r}")
        return _checked(Plan(**vars(parser.instantiate(parser.parse_object(content))) | {"name": path.stem}))
    except (yaml.YAMLError, ArgumentError, UsageError) as error:
        raise UsageError(f"{path.name}: {' '.join(str(error).split())}") from error


def plan_names() -> list[str]:
    """The plans that lie beside this script."""
    return sorted(path.stem for path in PLANS.glob("*.yaml"))


def _checked(plan: Plan) -> Plan:
    rows = tuple(replace(row, label=row.label or row.said) for row in plan.rows)
    labels, variants = [row.label for row in rows], [variant.name for variant in plan.variants]
    for key, used, known in (
        ("compare", (*plan.compare, *([plan.baseline] if plan.compare else [])), labels),
        ("ensemble", plan.ensemble, labels),
        ("parent", [row.parent for row in rows if row.parent], labels),
        ("variants", [name for row in rows for name in row.variants], variants),
        ("datasets", [name for variant in plan.variants for name in variant.datasets], plan.datasets),
    ):
        for name in used:
            if name not in known:
                raise UsageError(f"{key}: there is no '{name}', only {', '.join(known)}")
    for row in rows:
        find_method(row.method)
    return replace(plan, rows=rows)


def slug(text: str) -> str:
    """A text as a part of a file's name."""
    return re.sub(r"[^\w.]+", "-", text.replace("'", "").lower()).strip("-")


# ---------------------------------------------------------------------- cells


@dataclass(frozen=True)
class Cell:
    """One run, called by its row, where there are several its data set and variant, its seed and its fold."""

    name: str
    variant: str
    row: Row
    dataset: str
    typed: tuple[str, ...]  # all that is typed after `fgzoo`, without folders
    seed: int
    fold: int | None  # the fold of the training split that is validated on; `None`: the test split is run
    folds: int  # of how many
    classes: int
    settings: dict[str, Any] = field(compare=False)  # what the arguments come to, by dotted name; recipes included, defaults not

    @property
    def command(self) -> str:
        """What tells this run from every other one: the command that makes it, without folders."""
        return shlex.join(["fgzoo", *self.typed])

    @property
    def epochs(self) -> int:
        """Length of the run."""
        return int(self.settings["trainer.max_epochs"])

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return int(self.settings.get("data.image_size") or _default(FGVCDataModule, "image_size"))

    @property
    def model(self) -> dict[str, Any]:
        """Arguments of the method."""
        named = {name.removeprefix("model."): value for name, value in self.settings.items() if name.startswith("model.")}
        return {name: value for name, value in named.items() if name != "class_path"}

    @property
    def backbone(self) -> str:
        """The network whose forward pass is a pass."""
        return str(self.model.get("backbone") or _default(find_method(self.row.method)[0], "backbone"))


@functools.cache
def _default(kind: Any, argument: str) -> Any:
    return inspect.signature(kind).parameters[argument].default


def cells_of(plan: Plan, passes: Callable[[Cell], float]) -> list[Cell]:
    """Every run of a plan, each once, in the order of variants, data sets, rows and seeds.

    Args:
        plan: The plan.
        passes: Says how many passes a cell's method takes, which decides how long the baseline runs beside a compared row; asked
            of these alone.

    Raises:
        UsageError: Two different runs would have one name.
    """
    cells: dict[str, Cell] = {}
    named: dict[str, str] = {}
    for variant in plan.variants:
        for dataset in variant.datasets or plan.datasets:
            rows = [row for row in plan.rows if not row.variants or variant.name in row.variants]
            for row in [*rows, *_counterparts(plan, variant, dataset, rows, passes)]:
                for cell in _runs(plan, variant, dataset, row):
                    cells.setdefault(cell.command, cell)
                    if named.setdefault(cell.name, cell.command) != cell.command:
                        raise UsageError(f"{plan.name}: two rows would be called {cell.name}; give one of them another label")
    return list(cells.values())


def _runs(plan: Plan, variant: Variant, dataset: str, row: Row) -> list[Cell]:
    typed = ["fit", *shlex.split(plan.fit.format(dataset=dataset, method=row.method))]
    typed += [*shlex.split(variant.arguments), *shlex.split(row.arguments)]
    if len(typed) % 2 == 0:
        raise UsageError(f"every option needs one value: {shlex.join(typed[1:])}")
    settings = flat(settings_of(expand_presets(typed[1:])))
    if "trainer.max_epochs" not in settings:
        raise UsageError(f"{plan.name}: {row.label}: nothing says how many epochs; give --trainer.max_epochs")
    several = any(len(known.datasets or plan.datasets) > 1 for known in plan.variants)
    place = [row.slug, *([dataset] if several else []), *([slug(variant.name)] if len(plan.variants) > 1 else [])]
    number = 0 if plan.folds is None else plan.folds.number
    folds: Sequence[int | None] = (None,) if plan.folds is None else variant.folds or plan.folds.run
    cells = []
    for fold, seed in product(folds, variant.seeds):
        held_out = [] if fold is None else ["--data.folds", str(number), "--data.fold", str(fold)]
        # Validating at the end alone: no epoch is chosen.
        held_out += [] if fold is None else ["--trainer.check_val_every_n_epoch", str(settings["trainer.max_epochs"])]
        whole = (*typed, *held_out, "--seed_everything", str(seed))
        name = "-".join([*place, f"seed{seed}", *([] if fold is None else [f"fold{fold}"])])
        cells.append(Cell(name, variant.name, row, dataset, whole, seed, fold, number, plan.datasets[dataset], settings))
    return cells


def _counterparts(plan: Plan, variant: Variant, dataset: str, rows: Sequence[Row], passes: Callable[[Cell], float]) -> list[Row]:
    """The baseline with a compared row's backbone, for as many epochs as that row, and for as many passes."""
    found: dict[tuple[str, int], Row] = {}
    base = next((row for row in rows if row.label == plan.baseline), None)
    for row in (row for row in rows if base is not None and row.label in plan.compare):
        usual, cell = (_runs(plan, variant, dataset, one)[0] for one in (base, row))
        for epochs in (cell.epochs, equal_epochs(cell.epochs, passes(cell))):
            if (cell.backbone, epochs) == (usual.backbone, usual.epochs):
                continue
            other = "" if cell.backbone == usual.backbone else f"{cell.backbone}, "
            arguments = f"{base.arguments} --model.backbone {cell.backbone}" if other else base.arguments
            arguments = f"{arguments} --trainer.max_epochs {epochs}".strip()
            found[cell.backbone, epochs] = Row(base.method, f"{base.label}, {other}{epochs} epochs", arguments)
    return list(found.values())


def equal_epochs(epochs: int, passes: float) -> int:
    """Epochs of the baseline, which takes one pass an image, that have as many passes as a method's epochs."""
    return max(1, round(epochs * passes))


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested settings by dotted name, a method's `init_args` as the method's own."""
    if not isinstance(value, Mapping):
        return {name.replace("model.init_args.", "model."): value}
    return {key: found for inner, given in value.items() for key, found in flat(given, f"{name}.{inner}".strip(".")).items()}
