"""Results of a plan: the rows and predictions that are kept, and the tables made of them alone."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import statistics
from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from accuracy_plan import Cell, Plan, equal_epochs, plan_names, read_plan
from accuracy_runs import COLUMNS, RESULT
from bootstrap import RESAMPLES, Difference, agreement, paired_difference
from common import RESULTS, table
from filelock import FileLock
from numpy.typing import NDArray

from fgzoo.errors import UsageError
from fgzoo.training.run import PROBABILITIES
from fgzoo.zoo.prediction import TestTime

FOLDER = RESULTS / "accuracy"
README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- accuracy:begin -->", "<!-- accuracy:end -->"

#: How the baseline averages over views of a test image, and how many these are; see [fgzoo.zoo.prediction][].
VIEWS: dict[TestTime, int] = {"flip": 2, "ten-crop": 10}
#: Arrays by name: what [predicted_name][] and [targets_name][] say, both (N,) in the order of the split, and what
#: [ensemble_name][] says, the classes with the largest averaged probabilities.
Predictions = dict[str, NDArray[Any]]
Line = dict[str, str]

# ---------------------------------------------------------------------- what is kept


def read_rows(path: Path) -> list[Line]:
    """Rows that were written before."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: Iterable[Line]) -> None:
    """Write all rows, in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)


def read_predictions(path: Path) -> Predictions:
    """Predictions that were written before."""
    if not path.is_file():
        return {}
    with np.load(path) as found:
        return {name: found[name] for name in found.files}


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write all predictions, in one move; in the smallest type that holds the classes."""
    if not predictions:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez_compressed(file, **{name: predictions[name] for name in sorted(predictions)})
    part.replace(path)


def collect(plan: Plan, cells: Sequence[Cell], runs: Path, folder: Path = FOLDER) -> list[Line]:
    """Bring finished runs into the plan's results; what is there from runs that are gone stays.

    Args:
        plan: The plan.
        cells: Its cells.
        runs: Where the runs' folders lie.
        folder: Where the results are kept.

    Returns:
        All rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    runs.mkdir(parents=True, exist_ok=True)
    with FileLock(runs / ".collect.lock"):
        rows = {row["cell"]: row for row in read_rows(folder / f"{plan.name}.csv")}
        predictions = read_predictions(folder / f"{plan.name}.npz")
        for cell in cells:
            result = runs / cell.name / RESULT
            if not result.is_file():
                continue
            found = json.loads(result.read_text())
            rows[cell.name] = found["row"]
            _write_record(folder / plan.name / f"{cell.name}.json", found["record"])
            given = runs / cell.name / PROBABILITIES["test" if cell.fold is None else "val"]
            if given.is_file():
                with np.load(given) as scored:
                    predictions[predicted_name(cell.name)] = _small(scored["predicted"])
                    predictions[targets_name(rows[cell.name])] = _small(scored["targets"])
                    if cell.label in plan.ensemble and cell.fold is None:
                        kept = {"probabilities": scored["probabilities"].astype(np.float16)}
                        write_predictions(_probabilities(folder, plan, cell.name), kept)
        for cell in cells:
            # A run may have been made for another plan that has the same cell, or before this one named it anew.
            if cell.name in rows:
                rows[cell.name] |= {"plan": plan.name, "table": cell.table, "label": cell.label, "arguments": cell.arguments}
        predictions.update(_ensembles(plan, rows.values(), folder))
        order = {cell.name: number for number, cell in enumerate(cells)}
        ordered = sorted(rows.values(), key=lambda row: order.get(row["cell"], len(order)))
        write_rows(folder / f"{plan.name}.csv", ordered)
        write_predictions(folder / f"{plan.name}.npz", predictions)
    return ordered


def _write_record(path: Path, record: dict[str, Any]) -> None:
    """A run's record, a line for each of its parts, so that it stays small."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"  {json.dumps(name)}: {json.dumps(value, separators=(',', ':'))}" for name, value in record.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _small(classes: NDArray[Any]) -> NDArray[Any]:
    return classes.astype(np.uint8 if classes.max(initial=0) < 256 else np.uint16)


def _probabilities(folder: Path, plan: Plan, cell: str) -> Path:
    return folder / plan.name / f"{cell}.npz"


def predicted_name(cell: str, tta: TestTime = "none") -> str:
    """Under which name the classes are kept that a cell gave the images; with [VIEWS][], that is a row of its own."""
    return f"predicted/{cell}" if tta == "none" else f"predicted/{cell}@{tta}"


def targets_name(row: Line) -> str:
    """Under which name the classes of the images are kept that a run was scored on; the seed deals images to folds."""
    fold = row["fold"].replace(" ", "-")
    return f"targets/{row['fingerprint']}" + (f"/seed-{row['seed']}-fold-{fold}" if fold else "")


def ensemble_name(cells: Iterable[str]) -> str:
    """Under which name the averaged prediction of some cells is kept: a run made anew with other arguments is another member."""
    return f"ensemble/{hashlib.sha256(' '.join(sorted(cells)).encode()).hexdigest()[:16]}"


def _ensembles(plan: Plan, rows: Iterable[Line], folder: Path) -> Predictions:
    """The classes with the largest averaged probabilities, where all members' probabilities are kept."""
    groups: dict[tuple[str, str, str], dict[str, str]] = defaultdict(dict)
    for row in rows:
        if row["label"] in plan.ensemble and not row["fold"]:
            groups[row["table"], row["dataset"], row["seed"]][row["label"]] = row["cell"]
    found: Predictions = {}
    for members in groups.values():
        paths = [_probabilities(folder, plan, cell) for cell in members.values()]
        if len(paths) == len(plan.ensemble) and all(path.is_file() for path in paths):
            mean = np.mean([read_predictions(path)["probabilities"].astype(np.float32) for path in paths], axis=0)
            found[ensemble_name(members.values())] = _small(mean.argmax(axis=1))
    return found


# ---------------------------------------------------------------------- groups of runs


class Group(NamedTuple):
    """Runs that differ in their seed or fold alone."""

    label: str
    runs: list[Line]

    @property
    def first(self) -> Line:
        """What holds of all of them."""
        return self.runs[0]

    @property
    def number(self) -> int:
        """Epochs."""
        return int(self.first["epochs"])

    def values(self, column: str) -> list[float]:
        """Numbers of a column, where they are known."""
        return [float(run[column]) for run in self.runs if run.get(column)]

    def by_seed(self) -> dict[tuple[str, str], Line]:
        """The runs by what they are paired by."""
        return {(run["seed"], run["fold"]): run for run in self.runs}

    def of(self, seeds: Container[tuple[str, str]]) -> Group:
        """The runs of these seeds alone."""
        return self._replace(runs=[run for seed, run in self.by_seed().items() if seed in seeds])


class Block(NamedTuple):
    """Groups that may be compared: of one data set under one variant."""

    table: str
    dataset: str
    groups: list[Group]


def blocks_of(plan: Plan, rows: Sequence[Line]) -> list[Block]:
    """Rows in blocks: the plan's variants first, in its order."""
    found: dict[tuple[str, str, str], dict[tuple[str, str, str], list[Line]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        members = found[row["table"], row["dataset"], row["fingerprint"]]
        members[row["label"], row["method"], row["arguments"]].append(row)
    order = [variant.name for variant in plan.variants]
    places = sorted(found, key=lambda place: order.index(place[0]) if place[0] in order else len(order))
    labels = [(row.label, row.method) for row in plan.rows]
    blocks = []
    for place in places:
        groups = sorted(
            found[place].items(), key=lambda item: labels.index(item[0][:2]) if item[0][:2] in labels else len(labels)
        )
        blocks.append(Block(place[0], place[1], [Group(key[0], members) for key, members in groups]))
    return blocks


def difference(first: Group, second: Group, predictions: Predictions) -> tuple[float, Difference | None] | None:
    """How much more accurate a group is than another one, paired by seed.

    Args:
        first: The group.
        second: The other one.
        predictions: What single images were given.

    Returns:
        The difference and its interval (`None` where single images are not known); `None` without a common seed.
    """
    mine, theirs = first.by_seed(), second.by_seed()
    common = sorted(mine.keys() & theirs.keys())
    if not common:
        return None
    mean = statistics.mean(float(mine[seed]["top1"]) - float(theirs[seed]["top1"]) for seed in common)
    hits = [_hits([group[seed] for seed in common], predictions) for group in (mine, theirs)]
    if hits[0] is None or hits[1] is None:
        return mean, None
    return mean, paired_difference(hits[0], hits[1])


def _predicted(runs: Sequence[Line], predictions: Predictions) -> NDArray[Any] | None:
    """(seeds, images), a seed's folds in a row; `None` where single images are not known, or seeds differ in their folds."""
    return _by_seed(runs, [predicted_name(run["cell"]) for run in runs], predictions)


def _hits(runs: Sequence[Line], predictions: Predictions) -> NDArray[np.bool_] | None:
    predicted = _predicted(runs, predictions)
    targets = _by_seed(runs, [targets_name(run) for run in runs], predictions)
    return None if predicted is None or targets is None else predicted == targets


def _by_seed(runs: Sequence[Line], names: Sequence[str], predictions: Predictions) -> NDArray[Any] | None:
    if any(name not in predictions for name in names):
        return None
    seeds: dict[str, dict[str, NDArray[Any]]] = defaultdict(dict)
    for run, name in zip(runs, names, strict=True):
        seeds[run["seed"]][run["fold"]] = predictions[name]
    if len({tuple(sorted(folds)) for folds in seeds.values()}) > 1:
        return None
    return np.stack([np.concatenate([folds[fold] for fold in sorted(folds)]) for folds in seeds.values()])


def shown_difference(found: tuple[float, Difference | None] | None) -> str:
    """Points, and the interval in brackets where there is one."""
    if found is None:
        return "-"
    mean, interval = found
    # What rounds to zero is +0.0 (`z`), on whichever side the sum of roundings left it.
    values = [mean] if interval is None else [mean, interval.low, interval.high]
    points = [f"{100 * value:+z.1f}" for value in values]
    return points[0] if interval is None else f"{points[0]} [{points[1]}, {points[2]}]"


def spread(values: Sequence[float], factor: float = 100.0, digits: int = 1) -> str:
    """Mean and, of several, standard deviation."""
    if not values:
        return "-"
    shown = f"{factor * statistics.mean(values):.{digits}f}"
    return f"{shown} ± {factor * statistics.stdev(values):.{digits}f}" if len(values) > 1 else shown


def baselines(plan: Plan, block: Block) -> list[Group]:
    """The baseline and its longer runs, as `cells_of` names them."""
    return [group for group in block.groups if is_baseline(plan, group.label)]


def is_baseline(plan: Plan, label: str) -> bool:
    """Whether a label is the baseline's, or that of a longer run of it."""
    return re.fullmatch(rf"{re.escape(plan.baseline)}(, (\S+, )?\d+ epochs)?", label) is not None


def baseline_for(plan: Plan, block: Block, backbone: str, epochs: int) -> Group | None:
    """The baseline with a backbone that ran for so many epochs."""
    fitting = [group for group in baselines(plan, block) if (group.first["backbone"], group.number) == (backbone, epochs)]
    return next(iter(fitting), None)


# ---------------------------------------------------------------------- tables


def equal_epochs_table(plan: Plan, block: Block, predictions: Predictions, short: bool) -> str:
    """All rows, with their differences to the baseline of as many epochs and to the parent.

    Args:
        plan: The plan.
        block: The runs.
        predictions: What single images were given.
        short: With few columns.

    Returns:
        Markdown.
    """
    parents = {row.label: row.parent for row in plan.rows}
    by_label = {group.label: group for group in block.groups}
    rest = [group for group in block.groups if group not in baselines(plan, block)]
    needed = {(group.first["backbone"], group.number) for group in rest}
    shown = []
    for group in block.groups:
        longer = group not in rest and group.label != plan.baseline
        if longer and (group.first["backbone"], group.number) not in needed:
            continue
        first = group.first
        base = baseline_for(plan, block, first["backbone"], group.number)
        parent = by_label.get(parents.get(group.label, ""))
        against = [
            ""
            if other is None or other is group or group not in rest
            else shown_difference(difference(group, other, predictions))
            for other in (base, parent)
        ]
        line = {
            "what": group.label,
            "model": f"`{first['method']} {'' if short else first['arguments']}".strip() + "`",
            "runs": len(group.runs),
            "epochs": group.number,
            "top-1 %": spread(group.values("top1")),
            "to Baseline": against[0],
            "to parent": against[1],
            "top-5 %": spread(group.values("top5")),
            "macro %": spread(group.values("macro")),
            "NLL": spread(group.values("nll"), 1, 3),
            "ECE %": spread(group.values("ece")),
            "passes a training image": f"{statistics.mean(group.values('passes')):.1f}",
            "GMAC a training image, forward": f"{statistics.mean(group.values('train_gmac')):.2f}",
            "GMAC a test image": f"{statistics.mean(group.values('test_gmac')):.2f}",
            "parameters, M": f"{statistics.mean(group.values('parameters')):.1f}",
            "training, s": f"{statistics.mean(group.values('train_seconds')):.0f}",
            "peak memory, GiB": f"{max(group.values('peak_gib')):.1f}" if group.values("peak_gib") else "-",
            "precision": ", ".join(dict.fromkeys(run["precision"] for run in group.runs)),
        }
        shown.append(line)
    columns = list(shown[0])
    if short:
        columns = ["what", "model", "runs", "top-1 %", "to Baseline", "to parent", "NLL", "passes a training image", "precision"]
    columns = [name for name in columns if any(line[name] not in ("", "-") for line in shown)]
    return table(columns, [[line[name] for name in columns] for line in shown])


def equal_passes_table(plan: Plan, block: Block, predictions: Predictions) -> str:
    """The compared rows beside the baseline that had as many passes, both of the seeds that they share; empty where none is."""
    shown = []
    for group in block.groups:
        if group.label not in plan.compare:
            continue
        passes = statistics.mean(group.values("passes"))
        base = baseline_for(plan, block, group.first["backbone"], equal_epochs(group.number, passes))
        if base is None:
            continue
        common = group.by_seed().keys() & base.by_seed().keys()
        if not common:
            continue
        mine, theirs = (spread(each.of(common).values("top1")) for each in (group, base))
        against = shown_difference(difference(group, base, predictions))
        cells = [group.label, len(common), mine, group.number, f"{group.number * passes:.0f}"]
        shown.append([*cells, base.number, theirs, against])
    columns = (
        "what",
        "runs",
        "top-1 %",
        "epochs",
        "passes an image in all",
        "Baseline's epochs",
        "Baseline's top-1 %",
        "difference",
    )
    return table(columns, shown) if shown else ""


def views_table(plan: Plan, block: Block, predictions: Predictions, short: bool) -> str:
    """The compared rows beside the baseline that was tested on more views of an image; empty where that was not scored.

    Args:
        plan: The plan.
        block: The runs.
        predictions: What single images were given.
        short: Of the baseline alone, without its longer runs.

    Returns:
        Markdown. A line has the runs of which all views are known.
    """
    compared = [group for group in block.groups if group.label in plan.compare]
    shown = []
    for base in baselines(plan, block):
        runs = [run for run in base.runs if all(predicted_name(run["cell"], tta) in predictions for tta in VIEWS)]
        if not runs or (short and base.label != plan.baseline):
            continue
        for tta, number in {"none": 1, **VIEWS}.items():
            viewed = Group(base.label, [_viewed(run, tta, predictions) for run in runs])
            against = [shown_difference(difference(group, viewed, predictions)) for group in compared]
            views = str(number) if tta == "none" else f"{number} ({tta})"
            shown.append([base.label, views, len(runs), spread(viewed.values("top1")), *against])
    return table(("what", "test views", "runs", "top-1 %", *(group.label for group in compared)), shown) if shown else ""


def _viewed(run: Line, tta: TestTime, predictions: Predictions) -> Line:
    """A run's row as it would be had its test averaged over views."""
    name = predicted_name(run["cell"], tta)
    top1 = float((predictions[name] == predictions[targets_name(run)]).mean())
    return {**run, "cell": name.removeprefix("predicted/"), "top1": str(top1)}


def together_table(plan: Plan, block: Block, predictions: Predictions) -> str:
    """How often methods agree, and what their averaged probabilities reach; empty where single images are not known."""
    members = [group for label in plan.ensemble for group in block.groups if group.label == label]
    if len(members) < 2:
        return ""
    common = sorted(set.intersection(*(set(group.by_seed()) for group in members)))
    predicted = [_predicted([group.by_seed()[seed] for seed in common], predictions) for group in members]
    if not common or any(found is None for found in predicted):
        return ""
    lines = [
        [f"{one.label} and {two.label}", f"{100 * agreement(first, second):.1f}"]
        for (one, first), (two, second) in combinations(zip(members, predicted, strict=True), 2)
    ]
    text = table(("predict the same class", "% of test images"), lines)
    targets = predictions[targets_name(members[0].first)]
    averaged = {seed: ensemble_name(group.by_seed()[seed]["cell"] for group in members) for seed in common}
    hits = {seed: float((predictions[name] == targets).mean()) for seed, name in averaged.items() if name in predictions}
    if not hits or len(members) < len(plan.ensemble):
        return text
    # Of the seeds that were averaged alone: some members may have more.
    alone = [f"{group.label} {spread(group.of(hits).values('top1'))}" for group in members]
    together = spread(list(hits.values()))
    return f"{text}\n\nProbabilities of {', '.join(plan.ensemble)} averaged: {together} % ({', '.join(alone)})."


def machines(rows: Sequence[Line]) -> str:
    """Hardware and versions of rows."""
    found = {f"{row['hardware']}, {row['threads']} thread(s) a run, torch {row['torch']}" for row in rows}
    return "; ".join(sorted(found))


VIEWED = (
    "Beside the baseline tested on more views of an image, whose probabilities are averaged: itself and its mirror image (flip), "
    "corners, centre and their mirror images (ten-crop). The methods are tested as above; the differences are theirs to it:"
)
EXPLAINED = (
    "Last epoch; the spread is the standard deviation over runs, which differ in their seed (folds: in what is held out). "
    f"Differences are in points, paired by seed, in brackets from 2.5 to 97.5 % of {RESAMPLES:,} paired bootstrap resamples of "
    "images and seeds (of images alone where there is one seed; without brackets where single images were not kept). At "
    "equal passes, methods and baseline have the seeds that both were run with. A pass is a forward pass of the backbone over an "
    "image; passes are the multiply-adds inside a method's backbones over those of a pass."
)


def report(plan: Plan, rows: Sequence[Line], predictions: Predictions) -> str:
    """All tables of a plan.

    Args:
        plan: The plan.
        rows: Its results.
        predictions: What single images were given.

    Returns:
        Markdown.
    """
    text = [f"# {plan.title}", ""]
    for said in (plan.notes, plan.details):
        text += [said.strip(), ""] if said.strip() else []
    text += [EXPLAINED, ""]
    text += [f"{machines(rows)}. Seconds where other work ran on the machine are an upper bound.", ""]
    text += [f"`python benchmarks/accuracy.py run {plan.name}` makes the runs, `make table` this page. Every run's command and "]
    text[-1] += f"settings: `{plan.name}.csv`, and one file a run in `{plan.name}/`."
    text.append("")
    for block in blocks_of(plan, rows):
        text += [f"## {block.dataset}, {block.table}", "", equal_epochs_table(plan, block, predictions, short=False), ""]
        passes = equal_passes_table(plan, block, predictions)
        text += ["### Equal passes", "", passes, ""] if passes else []
        views = views_table(plan, block, predictions, short=False)
        text += ["### More views of a test image", "", VIEWED, "", views, ""] if views else []
        together = together_table(plan, block, predictions)
        text += ["### Together", "", together, ""] if together else []
    return "\n".join(text).rstrip() + "\n"


def of_today(plan: Plan, block: Block) -> Block:
    """A block without earlier settings, which may have the label of today's: the plan's rows and the longer baselines."""
    today = {(row.label, row.method, row.arguments) for row in plan.rows}
    longer = [group for group in baselines(plan, block) if group.label != plan.baseline]
    kept = [
        group
        for group in block.groups
        if group in longer or (group.label, group.first["method"], group.first["arguments"]) in today
    ]
    return block._replace(groups=kept)


def summary(plan: Plan, rows: Sequence[Line], predictions: Predictions) -> str:
    """A plan's tables for README, of today's settings."""
    page = f"[Arguments, earlier settings and all figures](benchmarks/results/accuracy/{plan.name}.md)."
    text = [" ".join([f"**{plan.title}.**", *plan.notes.split(), page]), ""]
    blocks = [of_today(plan, block) for block in blocks_of(plan, rows)]
    for block in (block for block in blocks if block.groups):
        where = f"{block.dataset}, {block.table}" if len(plan.datasets) > 1 else block.table
        text += [f"{where[0].upper()}{where[1:]}:", "", equal_epochs_table(plan, block, predictions, short=True), ""]
        passes = equal_passes_table(plan, block, predictions)
        text += ["At equal passes:", "", passes, ""] if passes else []
        views = views_table(plan, block, predictions, short=True)
        text += [VIEWED, "", views, ""] if views else []
        together = together_table(plan, block, predictions).rpartition("\n\n")[2]
        text += [together, ""] if together.startswith("Probabilities") else []
    return "\n".join(text)


def files(folder: Path = FOLDER, readme: Path = README) -> dict[Path, str]:
    """Every file that tables stand in, as its results say it should be.

    Args:
        folder: Where results are kept.
        readme: README, in which only the part between the markers is ours.

    Returns:
        Texts by file.

    Raises:
        UsageError: README has no markers.
    """
    texts: dict[Path, str] = {}
    parts: dict[int, str] = {}
    for name in plan_names():
        rows = read_rows(folder / f"{name}.csv")
        if not rows:
            continue
        plan, predictions = read_plan(name), read_predictions(folder / f"{name}.npz")
        texts[folder / f"{name}.md"] = report(plan, rows, predictions)
        if plan.readme:
            parts[plan.readme] = summary(plan, rows, predictions)
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise UsageError(f"{readme.name} needs the markers {BEGIN} and {END}, each once")
    body = "\n".join([*(parts[place] for place in sorted(parts)), EXPLAINED]) if parts else "No accuracy has been measured yet."
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    texts[readme] = pattern.sub(lambda _: f"{BEGIN}\n{body}\n{END}", text)
    return texts
