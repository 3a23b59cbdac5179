"""The tables of a plan, made of its results alone, and how sure the differences in them are."""

from __future__ import annotations

import functools
import re
import statistics
from collections import defaultdict
from collections.abc import Container, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import Line, TestTime, UsageError, table
from numpy.typing import NDArray
from plan import Plan, equal_epochs, plan_names, read_plan
from results import FOLDER, Arrays, Results, predicted_name, targets_name

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- accuracy:begin -->", "<!-- accuracy:end -->"
RESAMPLES = 10_000
#: Resamples that are drawn at a time; so many rows of counts are held.
CHUNK = 500

#: How the baseline averages over views of a test image, and what the tables call it.
VIEWS: dict[TestTime, str] = {"none": "1", "flip": "2 (flip)", "ten-crop": "10 (ten-crop)"}
#: Columns that are averaged over runs: what the tables call them, and digits.
MEANS = {
    "passes": ("passes a training image", 1), "train_gmac": ("GMAC a training image, forward", 2),
    "test_gmac": ("GMAC a test image", 2), "parameters": ("parameters, M", 1), "train_seconds": ("training, s", 0),
}  # fmt: skip
#: The columns that README shows.
FRONT = ("what", "runs", "top-1 %", "to Baseline", "to parent", "passes a training image")

Hits = NDArray[np.bool_]

# ---------------------------------------------------------------------- how sure a difference is


def paired_difference(first: Hits, second: Hits, resamples: int = RESAMPLES, seed: int = 0) -> list[float]:
    """Accuracy of the first minus that of the second, and the ends of its 95 % percentile interval by paired bootstrap.

    A resample draws N images and S seeds with replacement, the same ones for both models.

    Args:
        first: (S, N), whether seed s was right on image n.
        second: (S, N), the other model's, of the same seeds and images.
        resamples: How many.
        seed: Of the resamples.
    """
    if first.shape != second.shape or first.ndim != 2 or first.size == 0:
        raise ValueError(f"(seeds, images) of both must be equal and not empty: {first.shape} and {second.shape}")
    gained = first.astype(np.float64) - second
    seeds, images = gained.shape
    # A resample's mean is sum_sn u_s v_n gained_sn / (S N), with u and v how often seeds and images were drawn.
    per_seed = np.concatenate([counts @ gained.T for counts in np.array_split(drawn_counts(images, resamples, seed), 20)])
    means = (drawn_counts(seeds, resamples, seed + 1) * per_seed).sum(axis=1) / gained.size
    return [float(gained.mean()), *np.percentile(means, [2.5, 97.5]).tolist()]


@functools.lru_cache(maxsize=8)
def drawn_counts(things: int, resamples: int, seed: int) -> NDArray[Any]:
    """(resamples, things), how often each thing is drawn by as many draws with replacement."""
    generator = np.random.default_rng(seed)
    counts = np.empty((resamples, things), dtype=np.uint16)
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        drawn = generator.integers(0, things, (rows, things)) + things * np.arange(rows)[:, None]
        counts[start : start + rows] = np.bincount(drawn.ravel(), minlength=rows * things).reshape(rows, things)
    return counts


# ---------------------------------------------------------------------- groups of runs


class Group(NamedTuple):
    """Runs that differ in their seed or fold alone."""

    label: str
    runs: list[Line]

    @property
    def epochs(self) -> int:
        """Of each of them."""
        return int(self.runs[0]["epochs"])

    def values(self, column: str) -> list[float]:
        """Numbers of a column, where they are known."""
        return [float(run[column]) for run in self.runs if run.get(column)]

    def by_seed(self) -> dict[tuple[str, str], Line]:
        """The runs by what they are paired by."""
        return {(run["seed"], run["fold"]): run for run in self.runs}

    def of(self, seeds: Container[tuple[str, str]]) -> Group:
        """The runs of these seeds alone."""
        return self._replace(runs=[run for seed, run in self.by_seed().items() if seed in seeds])


def difference(first: Group, second: Group, arrays: Arrays) -> str:
    """How many points a group is more accurate than another one, paired by seed; with the interval where images are known."""
    mine, theirs = first.by_seed(), second.by_seed()
    common = sorted(mine.keys() & theirs.keys())
    if not common:
        return "-"
    mean = statistics.mean(float(mine[seed]["top1"]) - float(theirs[seed]["top1"]) for seed in common)
    predicted, targets = [], []
    for group in (mine, theirs):
        runs = [group[seed] for seed in common]
        predicted.append(per_seed(runs, [predicted_name(run["cell"]) for run in runs], arrays))
        targets.append(per_seed(runs, [targets_name(run) for run in runs], arrays))
    if any(found is None for found in (*predicted, *targets)):
        return points(mean)
    return points(mean, *paired_difference(predicted[0] == targets[0], predicted[1] == targets[1])[1:])


def points(mean: float, *interval: float) -> str:
    """A difference in points; what rounds to zero is +0.0 (`z`), on whichever side the sum of roundings left it."""
    mean, *interval = (f"{100 * value:+z.1f}" for value in (mean, *interval))
    return f"{mean} [{', '.join(interval)}]" if interval else mean


def per_seed(runs: Sequence[Line], names: Sequence[str], arrays: Arrays) -> NDArray[Any] | None:
    """(seeds, images), a seed's folds in a row; `None` where single images are not known, or seeds differ in their folds."""
    if any(name not in arrays for name in names):
        return None
    seeds: dict[str, dict[str, NDArray[Any]]] = defaultdict(dict)
    for run, name in zip(runs, names, strict=True):
        seeds[run["seed"]][run["fold"]] = arrays[name]
    if len({tuple(sorted(folds)) for folds in seeds.values()}) > 1:
        return None
    return np.stack([np.concatenate([folds[fold] for fold in sorted(folds)]) for folds in seeds.values()])


def spread(values: Sequence[float], factor: float = 100.0, digits: int = 1) -> str:
    """Mean and, of several, standard deviation."""
    if not values:
        return "-"
    shown = f"{factor * statistics.mean(values):.{digits}f}"
    return f"{shown} ± {factor * statistics.stdev(values):.{digits}f}" if len(values) > 1 else shown


# ---------------------------------------------------------------------- tables


class Block(NamedTuple):
    """Groups that may be compared, of one data set under one variant, and the tables made of them."""

    plan: Plan
    variant: str
    dataset: str
    groups: list[Group]
    arrays: Arrays

    def is_baseline(self, group: Group) -> bool:
        """Whether a group is the baseline, or a longer run of it, as `cells_of` names these."""
        return re.fullmatch(rf"{re.escape(self.plan.baseline)}(, (\S+, )?\d+ epochs)?", group.label) is not None

    def baseline_for(self, group: Group, epochs: int) -> Group | None:
        """The baseline with a group's backbone that ran for so many epochs."""
        wanted = (group.runs[0]["backbone"], epochs)
        known = filter(self.is_baseline, self.groups)
        return next((base for base in known if (base.runs[0]["backbone"], base.epochs) == wanted), None)

    def of_today(self) -> Block:
        """The plan's rows and the longer baselines, without earlier settings, which may have the label of today's."""
        today = {(row.label, row.method, row.arguments) for row in self.plan.rows}
        kept = [
            group
            for group in self.groups
            if (self.is_baseline(group) and group.label != self.plan.baseline)
            or (group.label, group.runs[0]["method"], group.runs[0]["arguments"]) in today
        ]
        return self._replace(groups=kept)

    def equal_epochs(self, wanted: Sequence[str] = ()) -> str:
        """All rows, with their differences to the baseline of as many epochs and to the parent, and the wanted columns or all."""
        parents = {row.label: row.parent for row in self.plan.rows}
        by_label = {group.label: group for group in self.groups}
        rest = [group for group in self.groups if not self.is_baseline(group)]
        needed = {(group.runs[0]["backbone"], group.epochs) for group in rest}
        shown = []
        for group in self.groups:
            first, is_rest = group.runs[0], group in rest
            if not is_rest and group.label != self.plan.baseline and (first["backbone"], group.epochs) not in needed:
                continue
            others = (self.baseline_for(group, group.epochs), by_label.get(parents.get(group.label, "")))
            against = [difference(group, other, self.arrays) if other is not None and is_rest else "" for other in others]
            means = {name: statistics.mean(group.values(name)) for name in MEANS}
            line = {
                "what": group.label,
                "model": f"`{first['method']} {first['arguments']}".strip() + "`",
                "runs": len(group.runs),
                "epochs": group.epochs,
                "top-1 %": spread(group.values("top1")),
                "to Baseline": against[0],
                "to parent": against[1],
                "top-5 %": spread(group.values("top5")),
                "macro %": spread(group.values("macro")),
                "NLL": spread(group.values("nll"), 1, 3),
                "ECE %": spread(group.values("ece")),
                **{said: f"{means[name]:.{digits}f}" for name, (said, digits) in MEANS.items()},
                "peak memory, GiB": f"{max(group.values('peak_gib')):.1f}" if group.values("peak_gib") else "-",
                "precision": ", ".join(dict.fromkeys(run["precision"] for run in group.runs)),
            }
            shown.append(line)
        columns = [name for name in shown[0] if any(line[name] not in ("", "-") for line in shown)]
        columns = [name for name in columns if name in wanted or not wanted]
        return table(columns, [[line[name] for name in columns] for line in shown])

    def equal_passes(self) -> str:
        """The compared rows beside the baseline that had as many passes, both of the seeds that they share; empty without any."""
        shown = []
        for group in (group for group in self.groups if group.label in self.plan.compare):
            passes = statistics.mean(group.values("passes"))
            base = self.baseline_for(group, equal_epochs(group.epochs, passes))
            common = set() if base is None else group.by_seed().keys() & base.by_seed().keys()
            if base is not None and common:
                mine, theirs = (spread(each.of(common).values("top1")) for each in (group, base))
                cells = [group.label, len(common), mine, group.epochs, f"{group.epochs * passes:.0f}", base.epochs, theirs]
                shown.append([*cells, difference(group, base, self.arrays)])
        columns = ("what", "runs", "top-1 %", "epochs", "passes an image in all", "Baseline's epochs", "Baseline's top-1 %")
        return table((*columns, "difference"), shown) if shown else ""

    def views(self) -> str:
        """The compared rows beside the baseline that was tested on more views of an image, in the runs of which all are known."""
        compared = [group for group in self.groups if group.label in self.plan.compare]
        shown = []
        for base in filter(self.is_baseline, self.groups):
            runs = [run for run in base.runs if all(predicted_name(run["cell"], tta) in self.arrays for tta in VIEWS)]
            for tta, said in VIEWS.items() if runs else ():
                viewed = Group(base.label, [self.viewed(run, tta) for run in runs])
                against = [difference(group, viewed, self.arrays) for group in compared]
                shown.append([base.label, said, len(runs), spread(viewed.values("top1")), *against])
        return table(("what", "test views", "runs", "top-1 %", *(group.label for group in compared)), shown) if shown else ""

    def viewed(self, run: Line, tta: TestTime) -> Line:
        """A run's row as it would be had its test averaged over views."""
        name = predicted_name(run["cell"], tta)
        top1 = float((self.arrays[name] == self.arrays[targets_name(run)]).mean())
        return {**run, "cell": name.removeprefix("predicted/"), "top1": str(top1)}

    def together(self) -> tuple[str, str]:
        """How often methods predict the same class, and what their averaged probabilities reach; each empty where unknown."""
        members = [group for label in self.plan.ensemble for group in self.groups if group.label == label]
        if len(members) < 2:
            return "", ""
        common = sorted(set.intersection(*(set(group.by_seed()) for group in members)))
        runs = [[group.by_seed()[seed] for seed in common] for group in members]
        predicted = [per_seed(mine, [predicted_name(run["cell"]) for run in mine], self.arrays) for mine in runs]
        if not common or any(found is None for found in predicted):
            return "", ""
        lines = [
            [f"{one.label} and {two.label}", f"{100 * (first == second).mean():.1f}"]
            for (one, first), (two, second) in combinations(zip(members, predicted, strict=True), 2)
        ]
        agreement = table(("predict the same class", "% of test images"), lines)
        hits = {}
        for seed in common if len(members) == len(self.plan.ensemble) else []:
            names = [f"probabilities/{group.by_seed()[seed]['cell']}" for group in members]
            if all(name in self.arrays for name in names):
                mean = np.mean([self.arrays[name].astype(np.float32) for name in names], axis=0)
                hits[seed] = float((mean.argmax(axis=1) == self.arrays[targets_name(members[0].runs[0])]).mean())
        if not hits:
            return agreement, ""
        # Of the seeds that were averaged alone: some members may have more.
        alone = ", ".join(f"{group.label} {spread(group.of(hits).values('top1'))}" for group in members)
        averaged = ", ".join(self.plan.ensemble)
        return agreement, f"Probabilities of {averaged} averaged: {spread(list(hits.values()))} % ({alone})."


def blocks_of(plan: Plan, rows: Sequence[Line], arrays: Arrays) -> list[Block]:
    """Rows in blocks: the plan's variants first, in its order."""
    found: dict[tuple[str, str, str], dict[tuple[str, str, str], list[Line]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        members = found[row["variant"], row["dataset"], row["fingerprint"]]
        members[row["label"], row["method"], row["arguments"]].append(row)
    variants, labels = [variant.name for variant in plan.variants], [(row.label, row.method) for row in plan.rows]

    def place(name: Any, known: Sequence[Any]) -> int:
        return known.index(name) if name in known else len(known)

    blocks = []
    for (variant, dataset, _), groups in sorted(found.items(), key=lambda item: place(item[0][0], variants)):
        ordered = sorted(groups.items(), key=lambda item: place(item[0][:2], labels))
        blocks.append(Block(plan, variant, dataset, [Group(key[0], runs) for key, runs in ordered], arrays))
    return blocks


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


def report(plan: Plan, rows: Sequence[Line], arrays: Arrays) -> str:
    """All tables of a plan as Markdown."""
    machines = {f"{row['hardware']}, {row['threads']} thread(s) a run, torch {row['torch']}" for row in rows}
    text = [f"# {plan.title}", *(said.strip() for said in (plan.notes, plan.details) if said.strip()), EXPLAINED]
    text.append(f"{'; '.join(sorted(machines))}. Seconds where other work ran on the machine are an upper bound.")
    text.append(
        f"`python benchmarks/accuracy.py run {plan.name}` makes the runs, `make table` this page. Every run's command, "
        f"settings and environment: `{plan.name}.csv`; its epochs: `{plan.name}_epochs.csv`."
    )
    for block in blocks_of(plan, rows, arrays):
        text += [f"## {block.dataset}, {block.variant}", block.equal_epochs()]
        for title, said in (
            ("### Equal passes", block.equal_passes()),
            (f"### More views of a test image\n\n{VIEWED}", block.views()),
            ("### Together", "\n\n".join(filter(None, block.together()))),
        ):
            text += [title, said] if said else []
    return "\n\n".join(text) + "\n"


def front(plan: Plan, rows: Sequence[Line], arrays: Arrays) -> str:
    """README's table: methods, parents and the baseline, as they are set today, in the plan's first variant."""
    block = next(block for block in (each.of_today() for each in blocks_of(plan, rows, arrays)) if block.groups)
    named = {plan.baseline, *plan.compare, *(row.parent for row in plan.rows)}
    block = block._replace(groups=[group for group in block.groups if group.label in named])
    page = f"[what this is, more tables, every run](benchmarks/results/accuracy/{plan.name}.md)"
    return f"{plan.title}, {block.variant}; differences in points, with 95 % intervals: {page}.\n\n{block.equal_epochs(FRONT)}"


def files(folder: Path = FOLDER, readme: Path = README) -> dict[Path, str]:
    """Every file that tables stand in, as its results say it should be; of README only the part between the markers is ours."""
    texts: dict[Path, str] = {}
    parts: dict[int, str] = {}
    for name in plan_names():
        found = Results(name, folder)
        if found.rows:
            plan = read_plan(name)
            texts[folder / f"{name}.md"] = report(plan, found.rows, found.arrays)
            parts |= {plan.readme: front(plan, found.rows, found.arrays)} if plan.readme else {}
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise UsageError(f"{readme.name} needs the markers {BEGIN} and {END}, each once")
    body = parts[min(parts)] if parts else "No accuracy has been measured yet."
    before, _, rest = text.partition(BEGIN)
    texts[readme] = f"{before}{BEGIN}\n{body}\n{END}{rest.partition(END)[2]}"
    return texts
