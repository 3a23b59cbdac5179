"""Plans of accuracy runs: a short YAML file, and the cells it stands for; what a cell costs, counted and not timed."""

from __future__ import annotations

import difflib
import functools
import hashlib
import inspect
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from common import forward_operations, training_operations
from filelock import FileLock

import fgzoo
from fgzoo import FGVCDataModule, create_model
from fgzoo.errors import UsageError
from fgzoo.methods import find_method
from fgzoo.training.arguments import expand_presets, settings_of
from fgzoo.training.run import write_json

PLANS = Path(__file__).parent / "plans"

# ---------------------------------------------------------------------- the file


@dataclass(frozen=True)
class Data:
    """A data set of a plan: classes and training images, which have to be known before it is read."""

    classes: int
    train_images: int


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


@dataclass(frozen=True)
class Folds:
    """Cross-validation inside the training split: how many folds, and which of them are run."""

    number: int
    run: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Plan:
    """A plan as its file says it.

    Attributes:
        name: The file's, without its ending.
        title: One line above the tables.
        fit: What is typed after `fgzoo fit`, with {dataset} and {method}.
        datasets: The data sets by the name that fgzoo gives them.
        rows: Rows of the tables.
        variants: Settings under which all rows run.
        notes: What must stand beside the numbers.
        details: What else the plan's page says, and README does not.
        baseline: Label of the row that the others are compared with.
        compare: Labels of rows beside which the baseline runs with the same backbone for as many epochs, and for as many passes.
        ensemble: Labels of rows whose probabilities are averaged.
        folds: Validate on folds of the training split; otherwise the test split is run once.
        readme: Place of the plan in README, from 1; 0: README does not show it.
        pinned: What the preset did not set when the runs were made, by method: typed wherever a row does not say otherwise, and
            no part of a cell's name, so that finished runs keep theirs.
    """

    name: str
    title: str
    fit: str
    datasets: dict[str, Data]
    rows: tuple[Row, ...]
    variants: tuple[Variant, ...]
    notes: str = ""
    details: str = ""
    baseline: str = "Baseline"
    compare: tuple[str, ...] = ()
    ensemble: tuple[str, ...] = ()
    folds: Folds | None = None
    readme: int = 0
    pinned: dict[str, str] = field(default_factory=dict)


def read_plan(said: str) -> Plan:
    """Read a plan.

    Args:
        said: A name in `plans`, or a file.

    Returns:
        The plan.

    Raises:
        UsageError: There is none, or something in it is wrong; one line says what.
    """
    path = Path(said) if Path(said).suffix in (".yaml", ".yml") else PLANS / f"{said}.yaml"
    if not path.is_file():
        raise UsageError(f"no plan '{said}'; plans are {', '.join(plan_names())}, or a YAML file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        raise UsageError(f"{path.name}{where}: no YAML: {getattr(error, 'problem', None) or 'cannot be read'}") from error
    try:
        return _checked(path.stem, content)
    except UsageError as error:
        raise UsageError(f"{path.name}: {error}") from error


def plan_names() -> list[str]:
    """The plans that lie beside this script."""
    return sorted(path.stem for path in PLANS.glob("*.yaml"))


def _checked(name: str, content: Any) -> Plan:
    plan: Plan = _make(Plan, {"name": name, **content} if isinstance(content, dict) else content, "the plan")
    datasets = {key: _make(Data, value, f"datasets: {key}") for key, value in _mapping(plan.datasets, "datasets").items()}
    rows = tuple(_row(value, f"rows: {number}") for number, value in enumerate(_list(plan.rows, "rows"), start=1))
    variants = tuple(
        _make(Variant, value, f"variants: {number}") for number, value in enumerate(_list(plan.variants, "variants"), start=1)
    )
    folds = None if plan.folds is None else _make(Folds, plan.folds, "folds")
    labels = [row.label for row in rows]
    for key, used in (("compare", plan.compare), ("ensemble", plan.ensemble), ("parent", [row.parent for row in rows])):
        for label in filter(None, used):
            if label not in labels:
                raise UsageError(f"{key}: no row has the label '{label}'{nearest(label, labels)}")
    if plan.compare and plan.baseline not in labels:
        raise UsageError(f"compare: no row has the label '{plan.baseline}', with which to compare")
    for row in rows:
        for variant in row.variants:
            if variant not in [known.name for known in variants]:
                raise UsageError(f"rows: {row.label}: no variant '{variant}'")
    for method, typed in (_mapping(plan.pinned, "pinned") if plan.pinned else {}).items():
        find_method(method)
        _words(typed)
    twice = next((row for index, row in enumerate(rows) if row in rows[:index]), None)
    if twice is not None:
        raise UsageError(f"rows: '{twice.label}' with {twice.method} stands there twice")
    return replace(plan, datasets=datasets, rows=rows, variants=variants, folds=folds)


def _row(value: Any, where: str) -> Row:
    row: Row = _make(Row, value, where)
    try:
        find_method(row.method)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    label = row.label or " ".join(shlex.split(row.arguments)).replace("--model.", "") or "default"
    return replace(row, label=label)


def _make(kind: Any, value: Any, where: str) -> Any:
    """A dataclass from a mapping, whose keys and types are checked."""
    given = _mapping(value, where)
    known = {known.name: known for known in fields(kind)}
    for key in given:
        if key not in known:
            raise UsageError(f"{where}: no key '{key}'{nearest(str(key), known)}")
    for key, expected in known.items():
        if key not in given:
            if expected.default is MISSING and expected.default_factory is MISSING:
                raise UsageError(f"{where}: '{key}' is missing")
            continue
        plain = {"str": str, "int": int, "bool": bool}.get(str(expected.type))
        if plain is not None and type(given[key]) is not plain:
            raise UsageError(f"{where}: {key}: expected {expected.type}, got '{given[key]}'")
        element = re.fullmatch(r"tuple\[(str|int), \.\.\.\]", str(expected.type))
        if element:
            wanted = {"str": str, "int": int}[element[1]]
            if not isinstance(given[key], list) or any(type(item) is not wanted for item in given[key]):
                raise UsageError(f"{where}: {key}: expected a list of {element[1]}, got '{given[key]}'")
            given[key] = tuple(given[key])
    return kind(**given)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        raise UsageError(f"{where}: expected keys and values, got '{value}'")
    return dict(value)


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise UsageError(f"{where}: expected a list, got '{value}'")
    return value


def nearest(said: str, known: Iterable[str]) -> str:
    """The name that was perhaps meant, as the end of a sentence."""
    near = difflib.get_close_matches(said, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


# ---------------------------------------------------------------------- cells


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        plan: The plan's name.
        table: The variant's name.
        label: The row's.
        method: A name in `fgzoo list`.
        dataset: A name that fgzoo knows.
        arguments: What the row types beside the plan's and the variant's arguments.
        typed: All that is typed after `fgzoo fit`, without folders and what is pinned.
        pinned: What is pinned by the plan and not typed otherwise.
        seed: Of everything random.
        fold: The fold of the training split that is validated on; `None`: the test split is run.
        folds: Of how many.
        settings: What the arguments come to, with the recipes.
        data: Classes and training images.
    """

    plan: str
    table: str
    label: str
    method: str
    dataset: str
    arguments: str
    typed: tuple[str, ...]
    pinned: tuple[str, ...]
    seed: int
    fold: int | None
    folds: int
    data: Data
    settings: dict[str, Any] = field(compare=False)

    @property
    def epochs(self) -> int:
        """Length of the run."""
        return int(self.settings["trainer"]["max_epochs"])

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        default = inspect.signature(FGVCDataModule).parameters["image_size"].default
        return int(self.settings.get("data", {}).get("image_size", default))

    @property
    def backbone(self) -> str:
        """The network whose forward pass is a pass."""
        return backbone_of(self.method, self.settings)

    @property
    def train_images(self) -> int:
        """Images of an epoch."""
        held_out = 0 if self.fold is None else self.data.train_images // self.folds
        return self.data.train_images - held_out

    @property
    def name(self) -> str:
        """The folder's name: readable, and different where anything that is typed is."""
        digest = hashlib.sha256(json.dumps(self.typed).encode()).hexdigest()[:8]
        fold = "" if self.fold is None else f"fold{self.fold}"
        said = re.sub(r"[^\w.+]+", "-", self.arguments.replace("--model.", "").replace("--trainer.", "")).strip("-")[:60]
        parts = (self.dataset, self.method, said, f"{self.size}px", f"{self.epochs}ep", f"seed{self.seed}", fold, digest)
        return "-".join(part for part in parts if part)


def cells_of(plan: Plan, costs: Costs) -> list[Cell]:
    """Every run of a plan, each once.

    Args:
        plan: The plan.
        costs: Says how many passes a method takes, which decides how long the baseline runs beside it.

    Returns:
        The cells, in the order of variants, data sets, rows and seeds.
    """
    cells: dict[str, Cell] = {}
    for variant in plan.variants:
        for dataset in variant.datasets or plan.datasets:
            rows = [row for row in plan.rows if not row.variants or variant.name in row.variants]
            for row in [*rows, *_counterparts(plan, variant, dataset, rows, costs)]:
                for cell in _runs(plan, variant, dataset, row):
                    cells.setdefault(cell.name, cell)
    return list(cells.values())


def _runs(plan: Plan, variant: Variant, dataset: str, row: Row) -> list[Cell]:
    folds = (None,) if plan.folds is None else variant.folds or plan.folds.run
    number = 0 if plan.folds is None else plan.folds.number
    said = (plan.fit.format(dataset=dataset, method=row.method), variant.arguments, row.arguments)
    typed = [word for text in said for word in _words(text)]
    words = _words(plan.pinned.get(row.method, ""))
    pairs = zip(words[::2], words[1::2], strict=True)
    pinned = tuple(word for option, value in pairs if option not in typed for word in (option, value))
    settings = settings_of(expand_presets([*typed, *pinned]))
    if "max_epochs" not in settings.get("trainer", {}):
        raise UsageError(f"{plan.name}: {row.label}: nothing says how many epochs; give --trainer.max_epochs")
    cells = []
    for fold in folds:
        held_out: list[str] = []
        if fold is not None:
            held_out = ["--data.folds", str(number), "--data.fold", str(fold)]
            # Validating at the end alone: no epoch is chosen.
            held_out += ["--trainer.check_val_every_n_epoch", str(settings["trainer"]["max_epochs"])]
        for seed in variant.seeds:
            whole = (*typed, *held_out, "--seed_everything", str(seed))
            cell = Cell(
                plan.name, variant.name, row.label, row.method, dataset, row.arguments, whole, pinned, seed, fold, number,
                plan.datasets[dataset], settings,
            )  # fmt: skip
            cells.append(cell)
    return cells


def _words(text: str) -> list[str]:
    """Options, each with its value."""
    words = shlex.split(text)
    if len(words) % 2:
        raise UsageError(f"every option needs one value: {text}")
    return words


def _counterparts(plan: Plan, variant: Variant, dataset: str, rows: Sequence[Row], costs: Costs) -> list[Row]:
    """The baseline with a compared row's backbone, for as many epochs as that row, and for as many passes."""
    found: dict[tuple[str, int], Row] = {}
    if not plan.compare:
        return []
    base = next(row for row in rows if row.label == plan.baseline)
    base_cell = _runs(plan, variant, dataset, base)[0]
    for row in rows:
        if row.label not in plan.compare:
            continue
        cell = _runs(plan, variant, dataset, row)[0]
        for epochs in (cell.epochs, equal_epochs(cell.epochs, costs.of(cell).passes)):
            if (cell.backbone, epochs) == (base_cell.backbone, base_cell.epochs):
                continue
            other = "" if cell.backbone == base_cell.backbone else f"{cell.backbone}, "
            arguments = f"{base.arguments} --model.backbone {cell.backbone}" if other else base.arguments
            arguments = f"{arguments} --trainer.max_epochs {epochs}".strip()
            found[cell.backbone, epochs] = Row(base.method, f"{base.label}, {other}{epochs} epochs", arguments)
    return list(found.values())


def equal_epochs(epochs: int, passes: float) -> int:
    """Epochs of the baseline, which takes one pass an image, that have as many passes as a method's epochs."""
    return max(1, round(epochs * passes))


# ---------------------------------------------------------------------- what a cell costs


def backbone_of(method: str, settings: Mapping[str, Any]) -> str:
    """The backbone that a method runs with."""
    return str(settings.get("model", {}).get("init_args", {}).get("backbone", _default_backbone(method)))


@functools.cache
def _default_backbone(method: str) -> str:
    return str(inspect.signature(find_method(method)[0]).parameters["backbone"].default)


class Cost(NamedTuple):
    """What a method costs.

    Attributes:
        parameters: Millions.
        test_gmac: Billions of multiply-adds of testing one image.
        train_gmac: Billions of multiply-adds of a training image's forward passes, heads included; as all that follows, the mean
            over the stages by their share of the run.
        passes: Passes of the backbone a training image: the multiply-adds inside the method's backbones, however deep and at
            whatever size they run, over those of one pass.
        backbone_gmac: Billions of multiply-adds of one pass.
    """

    parameters: float
    test_gmac: float
    train_gmac: float
    passes: float
    backbone_gmac: float


class Costs:
    """Counts what methods cost, and remembers it in a file until the code that is counted changes.

    Args:
        path: The file; `None`: only in memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.known: dict[str, list[float]] = {}
        if path is not None and path.is_file():
            self.known = json.loads(path.read_text())

    def of(self, cell: Cell) -> Cost:
        """The cost of a cell's method."""
        arguments = cell.settings.get("model", {}).get("init_args", {})
        return self.count(cell.method, cell.backbone, arguments, cell.size, cell.data.classes)

    def count(self, method: str, backbone: str, arguments: Mapping[str, Any], size: int, classes: int) -> Cost:
        """The cost of a method with its arguments."""
        left_out = ("backbone", "pretrained", "backbone_weights", "second_backbone_weights")
        given = {name: value for name, value in arguments.items() if name not in left_out}
        asked = json.dumps([_code(), Cost._fields, method, backbone, given, size, classes])
        key = hashlib.sha256(asked.encode()).hexdigest()[:24]
        if key not in self.known:
            self.known[key] = list(count(method, backbone, given, size, classes))
            self._save()
        return Cost(*self.known[key])

    def _save(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_suffix(".lock")):
            if self.path.is_file():
                self.known = {**json.loads(self.path.read_text()), **self.known}
            write_json(self.path, self.known)


def count(method: str, backbone: str, arguments: Mapping[str, Any], size: int, classes: int) -> Cost:
    """Count parameters and multiply-adds of a method.

    Args:
        method: Its name.
        backbone: Name of a timm network.
        arguments: Its other arguments.
        size: Side of the images in pixels.
        classes: K.

    Returns:
        The cost.
    """
    model = create_model(method, classes, backbone, pretrained=False, **arguments)
    images = torch.randn(2, 3, size, size)
    train = inside = 0.0
    with torch.no_grad():
        test = forward_operations(model.eval(), images)
        bare = forward_operations(model.make_backbone(), images)
        for index, stage in enumerate(model.stages()):
            found = training_operations(model, index, images)
            train += stage.share * found.total
            inside += stage.share * sum(map(sum, found.inside.values()))
    parameters = sum(parameter.numel() for parameter in model.network.parameters()) / 1e6
    # Two operations are a multiply-add, and there are two images.
    return Cost(parameters, test / 4e9, train / 4e9, inside / bare, bare / 4e9)


def _code() -> str:
    """A hash of the code that is counted."""
    root = Path(fgzoo.__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*root.glob("methods/*.py"), *root.glob("nn/*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
