"""Plans of accuracy runs: a short YAML file, and the cells it stands for."""

from __future__ import annotations

import inspect
import re
import shlex
from argparse import ArgumentError
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from fgzoo import FGVCDataModule
from fgzoo.errors import UsageError
from fgzoo.methods import find_method
from fgzoo.training.arguments import expand_presets, settings_of

PLANS = Path(__file__).parent / "plans"
#: Label of the experiment that all others are compared with.
BASELINE = "Baseline"
#: Options of folders, memory, speed and precision (which tables show), which a run may have beside those of its plan.
FREE = re.compile(
    r"--(data\.(root|cache\w*|num_workers|decoder)|model\.\w*backbone_weights|trainer\.(accelerator|devices|precision|strategy))"
)


@dataclass(frozen=True)
class Variant:
    """One setting under which all experiments run."""

    name: str
    arguments: str = ""
    seeds: tuple[int, ...] = (0,)
    folds: tuple[int, ...] = (0,)  # which of the plan's folds are run
    datasets: tuple[str, ...] = ()  # by default all


@dataclass(frozen=True)
class Experiment:
    """A method and what is typed beside it, one row of the tables. Without a label its arguments are the label."""

    method: str
    label: str = ""
    arguments: str = ""
    parent: str = ""  # label of the experiment that it is also compared with
    parent_epochs: int = 0  # in which the parent trains as long as this one, to be compared with, too; 0: that is not run
    variants: tuple[str, ...] = ()  # names of those under which it runs; by default all
    teachers: tuple[str, ...] = ()  # labels of experiments whose runs of the same data, seed and fold it learns from

    @property
    def short_arguments(self) -> str:
        """The arguments, as short as they can be read."""
        return " ".join(shlex.split(self.arguments)).replace("--model.", "") or "default"


@dataclass(frozen=True)
class Plan:
    """A plan as its file says it."""

    title: str  # one line above the tables
    fit: str  # what is typed after `fgzoo fit`, with {dataset} and {method}
    datasets: dict[str, int]  # classes by the data set's name in fgzoo: they have to be known before it is read
    rows: tuple[Experiment, ...]  # of the tables
    variants: tuple[Variant, ...]
    notes: str = ""  # what must stand beside the numbers
    compare: tuple[str, ...] = ()  # labels of those that are averaged, and that have the baseline run as long, and as many passes
    folds: int = 0  # into how many the training split is divided, to validate on; 0: the test split is run once
    readme: int = 0  # the place among the plans that README shows; 0: not shown
    name: str = ""  # the file's, without its ending


def read_plan(name: str) -> Plan:
    """Read a plan by its name in `plans`, or a YAML file; one line says what is wrong."""
    path = Path(name) if Path(name).suffix in (".yaml", ".yml") else PLANS / f"{name}.yaml"
    if not path.is_file():
        raise UsageError(f"no plan '{name}'; plans are {', '.join(plan_names())}, or a YAML file")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Plan)
    try:
        content = parser.instantiate(parser.parse_path(path))
        return _checked(Plan(**vars(content) | {"name": path.stem}))
    except (ArgumentError, UsageError) as error:
        raise UsageError(f"{path.name}: {' '.join(str(error).split())}") from error


def plan_names() -> list[str]:
    """The plans that lie beside this script."""
    return sorted(path.stem for path in PLANS.glob("*.yaml"))


def _checked(plan: Plan) -> Plan:
    """The plan with all labels, if what it refers to is there."""
    rows = tuple(replace(row, label=row.label or row.short_arguments) for row in plan.rows)
    labels, variants = [row.label for row in rows], [variant.name for variant in plan.variants]
    for key, used, known in (
        ("compare", plan.compare and (BASELINE, *plan.compare), labels),
        ("parent", [row.parent for row in rows if row.parent], labels),
        ("teachers", [name for row in rows for name in row.teachers], labels),
        ("variants", [name for row in rows for name in row.variants], variants),
        ("datasets", [name for variant in plan.variants for name in variant.datasets], plan.datasets),
    ):
        for name in used:
            if name not in known:
                raise UsageError(f"{key}: there is no '{name}', only {', '.join(known)}")
    for row in rows:
        find_method(row.method)
        if row.parent_epochs and not row.parent:
            raise UsageError(f"parent_epochs: {row.label} has no parent")
        if row.teachers and "--model.teacher_weight" not in row.arguments:
            raise UsageError(f"teachers: {row.label} needs --model.teacher_weight, which tells its command from others")
    return replace(plan, rows=rows)


def slug(text: str) -> str:
    """A text as a part of a file's name."""
    return re.sub(r"[^\w.]+", "-", text.replace("'", "").lower()).strip("-")


@dataclass(frozen=True)
class Cell:
    """One run, called by its experiment, where there are several its data set and variant, its seed and its fold."""

    name: str
    variant: str
    experiment: Experiment
    dataset: str
    classes: int
    typed: tuple[str, ...]  # all that is typed after `fgzoo`, without folders
    seed: int
    fold: int | None  # the fold of the training split that is validated on; `None`: the test split is run
    folds: int  # of how many, 0: of none
    epochs: int
    size: int  # side of the images in pixels
    backbone: str  # the network whose forward pass is a pass
    model: dict[str, Any] = field(compare=False)  # arguments of the method, recipes' included, defaults not
    teachers: tuple[str, ...] = ()  # names of the cells that it learns from

    @property
    def command(self) -> str:
        """What tells this run from every other one: the command that makes it, without folders."""
        return shlex.join(["fgzoo", *self.typed])

    def is_made_by(self, command: str | None) -> bool:
        """Whether a command, which may say more of folders and speed, makes this run."""
        return command is not None and is_made_by(self.command, command, self.located)

    @property
    def located(self) -> tuple[str, ...]:
        """Options that name runs on this machine, which its command leaves out."""
        return ("--model.teacher",) if self.teachers else ()

    def is_called(self, pattern: str) -> bool:
        """Whether one of its names fits a pattern."""
        names = (self.experiment.label, self.experiment.method, self.dataset, self.variant, self.name)
        return any(fnmatchcase(name, pattern) for name in names)


def is_made_by(wanted: str, command: str, located: Sequence[str] = ()) -> bool:
    """Whether a command, which may say more of folders and speed, and these options, makes the run that is wanted."""
    more = command.removeprefix(wanted)
    return command.startswith(wanted) and more[:1] in ("", " ") and set(not_free(shlex.split(more))) <= {*located}


def not_free(words: Sequence[str]) -> list[str]:
    """Those of a command's words that say more than folders, memory and speed."""
    options = [word.partition("=")[0] for place, word in enumerate(words) if word.startswith("--") or place == 0]
    return [option for option in options if not FREE.fullmatch(option)]


def default_of(kind: Any, argument: str) -> Any:
    """The default of a class's argument."""
    return inspect.signature(kind).parameters[argument].default


def cells_of(plan: Plan, passes: Callable[[Cell], float]) -> list[Cell]:
    """Every run of a plan, each once; how many `passes` a compared cell's method takes decides how long the baseline runs."""
    cells: dict[str, Cell] = {}
    commands: dict[str, str] = {}
    for variant in plan.variants:
        for dataset in variant.datasets or plan.datasets:
            rows = [row for row in plan.rows if not row.variants or variant.name in row.variants]
            longer = [*_longer_baselines(plan, variant, dataset, rows, passes), *longer_parents(rows).values()]
            for experiment in [*rows, *longer]:
                for cell in _runs(plan, variant, dataset, experiment):
                    cells.setdefault(cell.command, cell)
                    if commands.setdefault(cell.name, cell.command) != cell.command:
                        raise UsageError(f"{plan.name}: two rows would be called {cell.name}; give one of them another label")
    return list(cells.values())


def _runs(plan: Plan, variant: Variant, dataset: str, experiment: Experiment) -> list[Cell]:
    """An experiment's runs under a variant: one for every fold and seed."""
    fit = plan.fit.format(dataset=dataset, method=experiment.method)
    typed = shlex.split(f"{fit} {variant.arguments} {experiment.arguments}")
    settings = flattened(settings_of(expand_presets(typed)))
    if "trainer.max_epochs" not in settings:
        raise UsageError(f"{plan.name}: {experiment.label}: nothing says how many epochs; give --trainer.max_epochs")
    model = {name.removeprefix("model."): value for name, value in settings.items() if name.startswith("model.")}
    model.pop("class_path", None)
    shared = {
        "variant": variant.name, "experiment": experiment, "dataset": dataset, "classes": plan.datasets[dataset],
        "folds": plan.folds, "epochs": settings["trainer.max_epochs"], "model": model,
        "size": settings.get("data.image_size") or default_of(FGVCDataModule, "image_size"),
        "backbone": model.get("backbone") or default_of(find_method(experiment.method)[0], "backbone"),
    }  # fmt: skip
    called = partial(_name, plan, variant, dataset)
    teachers = [row for label in experiment.teachers for row in plan.rows if row.label == label]
    cells = []
    for fold, seed in product(variant.folds if plan.folds else (None,), variant.seeds):
        arguments = ["fit", *typed]
        if fold is not None:
            arguments += ["--data.folds", str(plan.folds), "--data.fold", str(fold)]
            # Validating at the end alone: no epoch is chosen.
            arguments += ["--trainer.check_val_every_n_epoch", str(settings["trainer.max_epochs"])]
        arguments += ["--seed_everything", str(seed)]
        learns_from = tuple(called(teacher, seed, fold) for teacher in teachers)
        cells.append(
            Cell(called(experiment, seed, fold), typed=tuple(arguments), seed=seed, fold=fold, teachers=learns_from, **shared)
        )
    return cells


def _name(plan: Plan, variant: Variant, dataset: str, experiment: Experiment, seed: int, fold: int | None) -> str:
    """What a run is called."""
    # A label of arguments alone does not tell one method from another.
    labelled = experiment.label != experiment.short_arguments
    called = [slug(experiment.label if labelled else f"{experiment.method} {experiment.label}")]
    called += [dataset] if any(len(known.datasets or plan.datasets) > 1 for known in plan.variants) else []
    called += [slug(variant.name)] if len(plan.variants) > 1 else []
    return "-".join([*called, f"seed{seed}", *([] if fold is None else [f"fold{fold}"])])


def _longer_baselines(
    plan: Plan, variant: Variant, dataset: str, rows: Sequence[Experiment], passes: Callable[[Cell], float]
) -> list[Experiment]:
    """The baseline with a compared one's backbone, for as many epochs, and for as many passes."""
    base = next((row for row in rows if row.label == BASELINE), None)
    if base is None:
        return []
    usual = _runs(plan, variant, dataset, base)[0]
    found: dict[tuple[str, int], Experiment] = {}
    for row in (row for row in rows if row.label in plan.compare):
        cell = _runs(plan, variant, dataset, row)[0]
        its = base
        if cell.backbone != usual.backbone:
            arguments = f"{base.arguments} --model.backbone {cell.backbone}"
            its = replace(base, label=f"{base.label}, {cell.backbone}", arguments=arguments)
        for epochs in (cell.epochs, epochs_of_equal_passes(cell.epochs, passes(cell))):
            if (cell.backbone, epochs) != (usual.backbone, usual.epochs):
                found[cell.backbone, epochs] = _longer(its, epochs)
    return list(found.values())


def longer_parents(rows: Sequence[Experiment]) -> dict[str, Experiment]:
    """The parents that train as long as a row, by that row's label."""
    by_label = {row.label: row for row in rows}
    wanted = [row for row in rows if row.parent_epochs and row.parent in by_label]
    return {row.label: _longer(by_label[row.parent], row.parent_epochs) for row in wanted}


def _longer(row: Experiment, epochs: int) -> Experiment:
    """A row as it trains for so many epochs, compared with nothing."""
    return Experiment(row.method, f"{row.label}, {epochs} epochs", f"{row.arguments} --trainer.max_epochs {epochs}".strip())


def epochs_of_equal_passes(epochs: int, passes: float) -> int:
    """Epochs of the baseline, which takes one pass an image, that have as many passes as a method's epochs."""
    return max(1, round(epochs * passes))


def flattened(value: Any, name: str = "") -> dict[str, Any]:
    """Nested settings by dotted name, a method's `init_args` as the method's own."""
    if not isinstance(value, Mapping):
        return {name.replace("model.init_args.", "model."): value}
    return {key: found for inner, given in value.items() for key, found in flattened(given, f"{name}.{inner}".strip(".")).items()}
