"""The tables of a plan, made of its results alone, and how sure the differences in them are."""

from __future__ import annotations

import functools
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import Row, markdown_table
from numpy.typing import NDArray
from plan import BASELINE, Plan, epochs_of_equal_passes, longer_parents, plan_names, read_plan
from results import Arrays, Results, predicted_name, targets_name

from fgzoo.errors import UsageError

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- accuracy:begin -->", "<!-- accuracy:end -->"
RESAMPLES = 10_000

#: What the tables call the views of a test image that the baseline averages over, by what follows a cell's name in the arrays.
VIEWS = {"": "1", "@flip": "2 (flip)", "@ten-crop": "10 (ten-crop)"}
#: Columns that are averaged over runs: what the tables call them, and digits.
MEANS = {
    "passes": ("passes a training image", 1), "train_gmac": ("GMAC a training image, forward", 2),
    "test_gmac": ("GMAC a test image", 2), "parameters": ("parameters, M", 1),
}  # fmt: skip
#: The columns that README shows.
README_COLUMNS = ("what", "runs", "top-1 %", "to Baseline", "to parent", "passes a training image")


def with_interval(gains: Sequence[NDArray[Any]], resamples: int = RESAMPLES, seed: int = 0) -> list[float]:
    """The mean gain in accuracy over data sets, and the ends of its 95 % percentile interval by paired bootstrap.

    A data set's gain is (S, N), of seed s on image n; a resample draws N images and S seeds of each with replacement. On folds,
    which the seed deals, n is another image for every seed: what is drawn are places in what each seed holds out.
    """
    means = np.zeros(resamples)
    for gained in gains:
        seeds, images = gained.shape
        # A resample's mean is sum_sn u_s v_n gained_sn / (S N), with u and v how often seeds and images were drawn.
        by_seed = np.concatenate([counts @ gained.T for counts in np.array_split(drawn_counts(images, resamples, seed), 20)])
        means += (drawn_counts(seeds, resamples, seed + 1) * by_seed).sum(axis=1) / gained.size / len(gains)
        seed += 2
    return [float(np.mean([gained.mean() for gained in gains])), *np.percentile(means, [2.5, 97.5]).tolist()]


@functools.lru_cache(maxsize=8)
def drawn_counts(things: int, resamples: int, seed: int) -> NDArray[Any]:
    """(resamples, things), how often each thing is drawn by as many draws with replacement."""
    generator = np.random.default_rng(seed)
    counts = np.empty((resamples, things), dtype=np.uint16)
    for row in counts:
        row[:] = np.bincount(generator.integers(0, things, things), minlength=things)
    return counts


class Group(NamedTuple):
    """Runs that differ in their seed or fold alone."""

    label: str
    method: str
    arguments: str
    backbone: str
    epochs: int
    runs: dict[tuple[str, str], Row]  # by seed and fold

    def values(self, column: str) -> list[float]:
        """Numbers of a column, where they are known."""
        return [float(run[column]) for run in self.runs.values() if run.get(column)]

    def of(self, seeds: Collection[tuple[str, str]]) -> Group:
        """Some of the runs, in the order of seeds and folds."""
        return self._replace(runs={seed: self.runs[seed] for seed in sorted(seeds)})


def paired(*groups: Group) -> list[Group]:
    """Groups with those runs alone whose seeds and folds all of them have."""
    common = set.intersection(*(set(group.runs) for group in groups))
    return [group.of(common) for group in groups]


def difference(first: Group, second: Group, arrays: Arrays) -> str:
    """How many points a group is more accurate than another one, paired by seed; with the interval where images are known."""
    first, second = paired(first, second)
    if not first.runs:
        return "-"
    mean = statistics.mean(mine - theirs for mine, theirs in zip(first.values("top1"), second.values("top1"), strict=True))
    gained = gain(first, second, arrays)
    return percentage_points(mean) if gained is None else percentage_points(mean, *with_interval([gained])[1:])


def gain(first: Group, second: Group, arrays: Arrays) -> NDArray[Any] | None:
    """(seeds, images) of paired groups: 1 where the first alone was right, -1 where the second was; `None` where unknown."""
    hits = []
    for group in (first, second):
        predicted, targets = (stacked(group, name, arrays) for name in (predicted_name, targets_name))
        if predicted is None or targets is None:
            return None
        hits.append((predicted == targets).astype(np.float64))
    return hits[0] - hits[1]


def percentage_points(mean: float, *interval: float) -> str:
    """A difference in points; what rounds to zero is +0.0 (`z`), on whichever side the sum of roundings left it."""
    mean, *interval = (f"{100 * value:+z.1f}" for value in (mean, *interval))
    return f"{mean} [{', '.join(interval)}]" if interval else mean


def stacked(group: Group, name: Callable[[Row], str], arrays: Arrays) -> NDArray[Any] | None:
    """(seeds, images), a seed's folds in a row; `None` where single images are not known, or seeds differ in their folds."""
    seeds: dict[str, dict[str, NDArray[Any] | None]] = defaultdict(dict)
    for (seed, fold), run in group.runs.items():
        seeds[seed][fold] = arrays.get(name(run))
    known = all(found is not None for folds in seeds.values() for found in folds.values())
    if not known or len({tuple(folds) for folds in seeds.values()}) != 1:
        return None
    return np.stack([np.concatenate(list(folds.values())) for folds in seeds.values()])


def mean_std(values: Sequence[float], factor: float = 100.0, digits: int = 1) -> str:
    """Mean and, of several, standard deviation."""
    if not values:
        return "-"
    shown = f"{factor * statistics.mean(values):.{digits}f}"
    return f"{shown} ± {factor * statistics.stdev(values):.{digits}f}" if len(values) > 1 else shown


def mean_seconds(group: Group, on_cpu: bool) -> str:
    """How long runs train, by the clock or in CPU seconds, which pauses do not lengthen; of all epochs where one was resumed."""
    seconds = group.values("train_seconds")
    if on_cpu:
        runs = group.runs.values()
        seconds = [float(run["cost.cpu_seconds"]) * float(run["epochs"]) / max(1.0, float(run["cost.epochs"])) for run in runs]
    return f"{statistics.mean(seconds):.0f}" if seconds else "-"


class Block(NamedTuple):
    """Groups that may be compared, of one data set under one variant, and the tables made of them, empty without any rows."""

    plan: Plan
    variant: str
    dataset: str
    groups: list[Group]
    arrays: Arrays

    @property
    def by_label(self) -> dict[str, Group]:
        """The first group of every label, which is that of today's settings where rows of earlier ones were kept."""
        return {group.label: group for group in reversed(self.groups)}

    @property
    def baselines(self) -> list[Group]:
        """The baseline, and its longer runs, as `cells_of` names these."""
        return [group for group in self.groups if re.fullmatch(rf"{BASELINE}(, (\S+, )?\d+ epochs)?", group.label)]

    @property
    def compared(self) -> list[Group]:
        """The groups beside which the baseline has longer runs."""
        return [group for group in self.groups if group.label in self.plan.compare]

    @property
    def has_all_compared(self) -> bool:
        """Whether there are several groups to compare, and all of them are there."""
        return len(self.compared) == len(self.plan.compare) > 1

    def baseline_for(self, group: Group, epochs: int) -> Group | None:
        """The baseline with a group's backbone that ran for so many epochs."""
        wanted = (group.backbone, epochs)
        return next((base for base in self.baselines if (base.backbone, base.epochs) == wanted), None)

    def equal_epochs(self, wanted: Sequence[str] = ()) -> str:
        """All groups beside the baseline of as many epochs and beside their parent, with the wanted columns or all."""
        parents = {row.label: row.parent for row in self.plan.rows}
        by_label = self.by_label
        elsewhere = {parent.label for parent in longer_parents(self.plan.rows).values()}
        others = [group for group in self.groups if group not in self.baselines and group.label not in elsewhere]
        needed = {(group.backbone, group.epochs) for group in others}
        # Time and memory are those of the machine that most runs are of.
        usual = Counter(run["hardware"] for group in self.groups for run in group.runs.values()).most_common(1)[0][0]
        at_usual = [run for group in self.groups for run in group.runs.values() if run["hardware"] == usual]
        on_cpu = all(run.get("cost.device") == "cpu" and run.get("cost.cpu_seconds") for run in at_usual)
        rows = []
        for group in self.groups:
            timed = group._replace(runs={key: run for key, run in group.runs.items() if run["hardware"] == usual})
            to_baseline = to_parent = ""
            if group in others:
                base, parent = self.baseline_for(group, group.epochs), by_label.get(parents.get(group.label, ""))
                to_baseline = "" if base is None else difference(group, base, self.arrays)
                to_parent = "" if parent is None else difference(group, parent, self.arrays)
            elif group.label in elsewhere or (group.label != BASELINE and (group.backbone, group.epochs) not in needed):
                continue
            rows.append({
                "what": group.label, "model": f"`{group.method} {group.arguments}".strip() + "`",
                "runs": len(group.runs), "epochs": group.epochs,
                "top-1 %": mean_std(group.values("top1")), "to Baseline": to_baseline, "to parent": to_parent,
                "top-5 %": mean_std(group.values("top5")), "macro %": mean_std(group.values("macro")),
                "tail %": mean_std(group.values("tail")),
                "NLL": mean_std(group.values("nll"), 1, 3), "ECE %": mean_std(group.values("ece")),
                **{name: f"{statistics.mean(group.values(key)):.{digits}f}" for key, (name, digits) in MEANS.items()},
                "training, CPU s" if on_cpu else "training, s": mean_seconds(timed, on_cpu),
                "peak memory, GiB": f"{max(timed.values('peak_gib')):.1f}" if timed.values("peak_gib") else "-",
                "precision": ", ".join(dict.fromkeys(run["precision"] for run in group.runs.values())),
            })  # fmt: skip
        columns = [name for name in wanted or rows[0] if any(row[name] not in ("", "-") for row in rows)]
        return markdown_table([{name: row[name] for name in columns} for row in rows])

    def equal_passes(self) -> str:
        """The compared groups beside the baseline of as many passes, both of the seeds that they share."""
        rows = []
        for group in self.compared:
            passes = statistics.mean(group.values("passes"))
            base = self.baseline_for(group, epochs_of_equal_passes(group.epochs, passes))
            if base is None or not group.runs.keys() & base.runs.keys():
                continue
            mine, theirs = paired(group, base)
            rows.append({
                "what": group.label, "runs": len(mine.runs), "top-1 %": mean_std(mine.values("top1")), "epochs": group.epochs,
                "passes an image in all": f"{group.epochs * passes:.0f}", "Baseline's epochs": base.epochs,
                "Baseline's top-1 %": mean_std(theirs.values("top1")), "difference": difference(mine, theirs, self.arrays),
            })  # fmt: skip
        return markdown_table(rows)

    def equal_time(self) -> str:
        """Groups beside their parent that trained as long, both of the seeds that they share."""
        by_label, rows = self.by_label, []
        for label, longer in longer_parents(self.plan.rows).items():
            group, parent = by_label.get(label), by_label.get(longer.label)
            if group is None or parent is None or not group.runs.keys() & parent.runs.keys():
                continue
            mine, theirs = paired(group, parent)
            rows.append({
                "what": label, "runs": len(mine.runs), "top-1 %": mean_std(mine.values("top1")), "epochs": group.epochs,
                "its parent": longer.label, "the parent's top-1 %": mean_std(theirs.values("top1")),
                "difference": difference(mine, theirs, self.arrays),
            })  # fmt: skip
        return markdown_table(rows)

    def views(self) -> str:
        """The compared groups beside the baseline that was tested on more views of an image, in runs of which all are known."""
        rows = []
        for base in self.baselines:
            known = [seed for seed, run in base.runs.items() if all(predicted_name(run) + view in self.arrays for view in VIEWS)]
            for view, name in VIEWS.items() if known else ():
                viewed = base._replace(runs={seed: self.viewed(base.runs[seed], view) for seed in known})
                about = {"what": base.label, "test views": name, "runs": len(known), "top-1 %": mean_std(viewed.values("top1"))}
                rows.append(about | {group.label: difference(group, viewed, self.arrays) for group in self.compared})
        return markdown_table(rows)

    def viewed(self, run: Row, view: str) -> Row:
        """A run's row as it would be had its test averaged over views."""
        viewed = {**run, "cell": run["cell"] + view}
        viewed["top1"] = float((self.arrays[predicted_name(viewed)] == self.arrays[targets_name(run)]).mean())
        return viewed

    def agreement(self) -> str:
        """How often two of the compared groups predict the same class, where that is known of all."""
        members = paired(*self.compared) if len(self.compared) > 1 else []
        predicted = [stacked(group, predicted_name, self.arrays) for group in members]
        if not predicted or any(found is None for found in predicted):
            return ""
        rows = []
        for (one, first), (two, second) in combinations(zip(members, predicted, strict=True), 2):
            same = f"{100 * (first == second).mean():.1f}"
            rows.append({"predict the same class": f"{one.label} and {two.label}", "% of test images": same})
        return markdown_table(rows)

    def mean_difference(self) -> str:
        """How far all compared groups together are above the baseline on average, in the runs that all of them have."""
        base = self.baseline_for(self.compared[0], self.compared[0].epochs) if self.has_all_compared else None
        if base is None:
            return ""
        *members, base = paired(*self.compared, base)
        gains = [gain(member, base, self.arrays) for member in members] if base.runs else [None]
        known = [gained for gained in gains if gained is not None]
        if len(known) < len(members):
            return ""
        shown = percentage_points(*with_interval([np.mean(known, axis=0)]))
        return f"Mean of the differences of {', '.join(self.plan.compare)} to {base.label}: {shown}."

    def averaged(self) -> str:
        """What the averaged probabilities of all compared groups reach, in runs of which they are known."""
        if not self.has_all_compared:
            return ""
        runs, arrays = {}, dict(self.arrays)
        for seed, run in self.compared[0].runs.items():
            names = [f"probabilities/{group.runs.get(seed, {}).get('cell')}" for group in self.compared]
            if all(name in arrays for name in names):
                predicted = np.mean([arrays[name] for name in names], axis=0, dtype=np.float32).argmax(axis=1)
                right = float((predicted == arrays[targets_name(run)]).mean())
                runs[seed] = run | {"cell": f"{run['cell']}, averaged", "top1": right}
                arrays[predicted_name(runs[seed])] = predicted
        if not runs:
            return ""
        together = self.compared[0]._replace(runs=runs)
        base = self.baseline_for(together, together.epochs)
        gained = "" if base is None else f", {difference(together, base, arrays)} to {base.label}"
        # Of the seeds that were averaged alone: some members may have more.
        alone = ", ".join(f"{group.label} {mean_std(group.of(runs).values('top1'))}" for group in self.compared)
        labels = ", ".join(self.plan.compare)
        return f"Probabilities of {labels} averaged: {mean_std(together.values('top1'))} %{gained} ({alone})."


def blocks_of(plan: Plan, rows: Sequence[Row], arrays: Arrays) -> list[Block]:
    """Rows in blocks: the plan's variants first, in its order."""
    variants = {variant.name: place for place, variant in enumerate(plan.variants)}
    places = {(row.label, row.method): place for place, row in enumerate(plan.rows)}
    current = {(row.label, row.method, row.arguments) for row in plan.rows}

    def order(row: Row) -> tuple[int, bool]:
        label = row["label"], row["method"]
        return places.get(label, len(places)), (*label, row["arguments"]) not in current

    found: dict[tuple[str, ...], dict[tuple[str, ...], dict[tuple[str, str], Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in sorted(rows, key=order):
        groups = found[row["variant"], row["dataset"], row["fingerprint"]]
        key = (row["label"], row["method"], row["arguments"], row["backbone"], row["epochs"])
        groups[key][row["seed"], row["fold"]] = row
    blocks = []
    for (variant, dataset, _), groups in sorted(found.items(), key=lambda item: variants.get(item[0][0], len(variants))):
        ordered = [Group(*key, int(epochs), runs) for (*key, epochs), runs in groups.items()]
        blocks.append(Block(plan, variant, dataset, ordered, arrays))
    return blocks


def over_datasets(blocks: Sequence[Block]) -> str:
    """Rows that were run on all of several data sets: accuracy on each, and the mean of the differences to the baseline."""
    if len(blocks) == 1 or len({block.dataset for block in blocks}) < len(blocks):
        return ""
    rows: dict[str, Row] = defaultdict(dict)
    gains: dict[tuple[str, str], list[NDArray[Any]]] = defaultdict(list)
    parents = {row.label: row.parent for row in blocks[0].plan.rows}
    for block in blocks:
        by_label = block.by_label
        for group in (group for group in block.groups if group.label in parents):
            shown = f"{mean_std(group.values('top1'))} ({len(group.runs)} runs)"
            rows[group.label] |= {"what": group.label, f"{block.dataset}, top-1 %": shown}
            bases = block.baseline_for(group, group.epochs), by_label.get(parents[group.label])
            for name, base in zip((BASELINE, "parent"), bases, strict=True):
                if base is not None and base is not group and group.runs.keys() & base.runs.keys():
                    gained = gain(*paired(group, base), block.arrays)
                    gains[group.label, name] += [] if gained is None else [gained]
    known = {parent for parent in parents.values() if parent}
    only = known.pop() if len(known) == 1 else ""  # whom all rows have for their parent
    for (label, name), found in gains.items():
        if len(found) == len(blocks):
            named = only if name == "parent" and only else name
            rows[label][f"mean difference to {named}"] = percentage_points(*with_interval(found))
    return markdown_table([row for row in rows.values() if all(f"{block.dataset}, top-1 %" in row for block in blocks)])


MORE_VIEWS = (
    "Beside the baseline tested on more views of an image, whose probabilities are averaged: itself and its mirror image (flip), "
    "corners, centre and their mirror images (ten-crop). The methods are tested as above; the differences are theirs to it:"
)
LEGEND = (
    "Last epoch; the spread is the standard deviation over runs, which differ in their seed (folds: in what is held out). "
    f"Differences are in points, paired by seed, in brackets from 2.5 to 97.5 % of {RESAMPLES:,} paired bootstrap resamples of "
    "images and seeds (of images alone where there is one seed; without brackets where single images were not kept). At "
    "equal passes, methods and baseline have the seeds that both were run with. A pass is a forward pass of the backbone over an "
    "image; passes are the multiply-adds inside a method's backbones over those of a pass."
)


OF_FOLDS = (
    " Of folds, which the seed deals, a resample draws places in what each seed holds out: a place is another image for another "
    "seed."
)
OF_ONE_MACHINE = "; they, and memory, are of the machine that most runs are of"


def plan_page(plan: Plan, rows: Sequence[Row], arrays: Arrays) -> str:
    """All tables of a plan as Markdown."""
    machines = {f"{row['hardware']}, {row['threads']} thread(s) a run, torch {row['torch']}" for row in rows}
    text = [
        f"# {plan.title}",
        plan.notes.strip(),
        LEGEND + (OF_FOLDS if plan.folds else ""),
        f"{'; '.join(sorted(machines))}. Seconds where other work ran on the machine are an upper bound"
        f"{OF_ONE_MACHINE if len({row['hardware'] for row in rows}) > 1 else ''}.",
        f"`python benchmarks/accuracy.py run {plan.name}` makes the runs, `make table` this page. Every run's command, "
        f"settings and environment: `{plan.name}.csv`; its epochs: `{plan.name}_epochs.csv`.",
    ]
    blocks = blocks_of(plan, rows, arrays)
    for block in blocks:
        sections = {
            f"## {block.dataset}, {block.variant}": block.equal_epochs(),
            "### Equal passes": block.equal_passes(),
            "### Parents that train as long": block.equal_time(),
            f"### More views of a test image\n\n{MORE_VIEWS}": block.views(),
            "### Together": "\n\n".join(filter(None, [block.agreement(), block.mean_difference(), block.averaged()])),
        }
        text += [f"{title}\n\n{section}" for title, section in sections.items() if section]
    overall = over_datasets(blocks)
    text += [f"## Over the data sets\n\n{overall}"] if overall else []
    return "\n\n".join(filter(None, text)) + "\n"


def readme_part(plan: Plan, rows: Sequence[Row], arrays: Arrays) -> str:
    """README's tables, one a data set: the plan's rows as they are set today, in its first variant."""
    # A row of earlier settings may have the label of today's.
    current = {(row.label, row.method, row.arguments) for row in plan.rows}
    blocks = [
        block._replace(groups=[group for group in block.groups if (group.label, group.method, group.arguments) in current])
        for block in blocks_of(plan, rows, arrays)
    ]
    page = f"[what this is, more tables, every run](benchmarks/results/accuracy/{plan.name}.md)"
    tables = []
    for block in (block for block in blocks if block.groups and block.variant == plan.variants[0].name):
        title = ", ".join([plan.title, *([block.dataset] if len(plan.datasets) > 1 else []), block.variant])
        tables.append(f"{title}; differences in points, with 95 % intervals: {page}.\n\n{block.equal_epochs(README_COLUMNS)}")
    return "\n\n".join(tables)


def pages() -> dict[Path, str]:
    """Every file that tables stand in, as its results say it should be; of README only the part between the markers is ours."""
    texts: dict[Path, str] = {}
    parts: dict[int, str] = {}
    for name in plan_names():
        results = Results(name)
        if results.rows:
            plan = read_plan(name)
            texts[results.page] = plan_page(plan, results.rows, results.arrays)
            parts |= {plan.readme: readme_part(plan, results.rows, results.arrays)} if plan.readme else {}
    part = "\n\n".join(parts[place] for place in sorted(parts)) or "No accuracy has been measured yet."
    between = re.compile(f"(?<={BEGIN}\n).*(?=\n{END})", re.DOTALL)
    texts[README], found = between.subn(lambda _: part, README.read_text(encoding="utf-8"))
    if found != 1:
        raise UsageError(f"{README.name} needs the markers {BEGIN} and {END}, each once")
    return texts
