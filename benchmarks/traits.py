"""When is an attention method worth its time? Measured on synthetic birds, where the part that decides and its size are known.

    python benchmarks/traits.py pretrain    # a tiny backbone, on other species: the weights of `birds_resnet`
    python benchmarks/traits.py cost        # CPU seconds of every method's training; results/traits_cost.csv
    python benchmarks/traits.py run         # results/traits.csv and .npz; what is there already is skipped
    python benchmarks/traits.py report      # results/traits.md and .png, of as much as has been run

Three sweeps round one central setting: the body's length, by which the deciding part's share of the image grows, training images
a class, and clutter. Methods, parents and controls train as many epochs as plain fine-tuning; and plain fine-tuning and each
parent train once more, as long as a method that takes longer. All begin with the same weights and are judged on the same test
images. Learning rates were chosen for plain fine-tuning, then every method had four trials at the centre, with a seed that no
table has; what won are the recipes `birds/*`.
"""

from __future__ import annotations

import json
import signal
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache, cached_property
from itertools import chain, product
from pathlib import Path
from typing import Any, NamedTuple

import common
import lightning as L
import numpy as np
import torch
from common import Row, markdown_table, read_csv, say, write_csv, write_report
from filelock import FileLock
from interpretability import TOLERANCE, Batch, batches_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from plan import BASELINE, slug
from results import Arrays, predicted_name, targets_name
from runner import locked
from safetensors.torch import save_file
from tables import Group, difference, gain, mean_std, paired, with_interval

from fgzoo import FGVCDataModule, FineGrainedClassifier, create_model
from fgzoo.data.synthetic import MAX_CLASSES, Birds, SyntheticBirds
from fgzoo.data.transforms import default_resize
from fgzoo.errors import TrainingError, UsageError
from fgzoo.files import atomic_write
from fgzoo.interpret import metrics
from fgzoo.interpret.explanation import own_maps
from fgzoo.methods import available
from fgzoo.nn.birds_resnet import WEIGHTS
from fgzoo.recipes import read_recipe
from fgzoo.training.callbacks import ReproducibleSteps
from fgzoo.training.command import quieten
from fgzoo.training.environment import environment
from fgzoo.training.faults import FiniteLoss


class Setting(NamedTuple):
    """What the sweeps vary."""

    body: float  # length of the body as a share of the image's side
    trait: float  # factor of the usual size of the parts in which species differ
    train: int  # training images a class
    clutter: float  # factor of the usual clutter


class Method(NamedTuple):
    """A row of the tables; its parent is the label of another one."""

    label: str
    method: str
    more: dict[str, Any] = {}  # noqa: RUF012 - never changed
    parent: str = ""

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of the recipe `birds/METHOD`, and more."""
        return read_recipe(f"birds/{self.method}")["model"]["init_args"] | self.more

    @property
    def settings(self) -> str:
        """All its arguments."""
        return json.dumps(self.arguments, sort_keys=True)


#: What every recipe of the birds has.
RECIPE = read_recipe("birds/baseline")
#: The recipes' own birds.
CENTRE = Setting(RECIPE["data"]["birds"]["body"][0], 1.0, RECIPE["data"]["birds"]["train_per_class"], 1.0)
PARTS = (0.17, 1.0), (0.24, 1.0), (0.42, 1.0), (0.8, 1.3), (0.8, 3.0)
#: By the setting's field on the axis; a larger deciding part has a larger body, then larger parts on it.
SWEEPS = {
    "body": [CENTRE._replace(body=body, trait=trait) for body, trait in PARTS],
    "train": [CENTRE._replace(train=train) for train in (10, 30, 100)],
    "clutter": [CENTRE._replace(clutter=clutter) for clutter in (0.0, 1.0, 3.0)],
}
SETTINGS = tuple(dict.fromkeys(chain.from_iterable(SWEEPS.values())))
SEEDS = (0, 1, 2, 3, 4)
#: By training images a class; at the centre the recipes'. Steps decide when a network has converged.
EPOCHS = {10: 12, 30: RECIPE["trainer"]["max_epochs"], 100: 3}
CLASSES, TEST, SIZE, BATCH = 12, 50, RECIPE["data"]["image_size"], RECIPE["data"]["batch_size"]
#: Test images whose maps are judged, and over which the deciding part's share is averaged: ten a class.
SHOWN = 10 * CLASSES
#: Whose differences are drawn, beside their parents', and what is written below the panels.
COLOURS = {"RRA": "#d1495b", "IAGN": "#2e86ab", "Coarse2Fine": "#3d9a50", "SRBN": "#e0952b"}
AXES = {"body": "deciding part, % of the image", "train": "training images a class", "clutter": "clutter, times the usual"}

#: What the backbone was pretrained on: all other species, small and large, in much clutter and little.
PRETRAINING = Birds(
    MAX_CLASSES - CLASSES, 60, 3, default_resize(SIZE, "standard"), body=(0.1, 0.8), clutter=2.0, first_class=CLASSES
)
METHODS = (
    Method(BASELINE, "baseline"),
    Method("RRA's parent", "rra-parent"),  # plain fine-tuning, but for how its classifier begins
    Method("RRA", "rra", parent=BASELINE),
    Method("two networks, no recursion", "rra", {"recursion": False}, BASELINE),
    Method("PMG", "pmg"),
    Method("IAGN", "iagn", parent="PMG"),
    Method("WS-DAN", "wsdan"),
    Method("Coarse2Fine", "coarse2fine", parent="WS-DAN"),
    Method("B-CNN", "bcnn"),
    Method("B-CNN + SPP", "bcnn-spp", parent="B-CNN"),
    Method("SRBN", "srbn", parent="B-CNN"),
    Method("two networks, concatenated", "bcnn", {"combine": "concat", "dropout": 0.0}),
)


def methods() -> dict[str, Method]:
    """The rows, by label, whose method there is."""
    return {row.label: row for row in METHODS if row.method in available()}


def painted(birds: Birds, seed: int, batch: int) -> FGVCDataModule:
    """The data with every image painted, which whoever comes first would pay for otherwise."""
    data = FGVCDataModule("birds", None, SIZE, birds.size, batch_size=batch, num_workers=0, seed=seed, birds=birds)
    for record in data.listing.records:
        data.listing.read(record)
    return data


def birds_of(setting: Setting, seed: int) -> Birds:
    """The birds of a setting and seed."""
    body, side = (setting.body, setting.body), default_resize(SIZE, "standard")
    return Birds(CLASSES, setting.train, TEST, side, seed=seed, body=body, trait=setting.trait, clutter=setting.clutter)


@cache
def fingerprint(birds: Birds) -> str:
    """That of their data, before an image is painted."""
    return SyntheticBirds(birds).listing().fingerprint()


class Images:
    """The images of a setting and seed, the same for all methods."""

    def __init__(self, setting: Setting, seed: int) -> None:
        birds = birds_of(setting, seed)
        self.data = painted(birds, seed, BATCH)
        shares = map(SyntheticBirds(birds).deciding_share, self.data.listing.test[:SHOWN])
        #: The deciding part's mean share of an image.
        self.share = statistics.mean(shares)
        model = create_model("baseline", CLASSES, **METHODS[0].arguments)
        model.card = self.data.card
        #: The test images, normalised, and where the part lies; the data alone decides how models prepare them.
        self.test = [one._replace(images=one.images.contiguous(memory_format=torch.channels_last))
                     for one in batches_of(model, self.data, None)]  # fmt: skip


def train(method: Method, data: FGVCDataModule, epochs: int, seed: int) -> tuple[FineGrainedClassifier, float]:
    """Train as `fgzoo fit` does on a CPU, without a folder; returns the model and the CPU seconds that it took."""
    quieten()
    L.seed_everything(seed, workers=True, verbose=False)
    model = create_model(method.method, data.num_classes, **method.arguments)
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", precision="32-true", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, limit_val_batches=0,
        callbacks=[ReproducibleSteps(seed), FiniteLoss()],
    )  # fmt: skip
    started = time.process_time()
    trainer.fit(model, datamodule=data)
    return model.eval(), time.process_time() - started


def judge(model: FineGrainedClassifier, batches: Sequence[Batch]) -> tuple[Row, NDArray[np.uint16]]:
    """Accuracy, and how often maps of the first images hit a visible deciding part; and the classes predicted for all."""
    logits, hits, shown = [], defaultdict(list), 0
    for batch in batches:
        with torch.no_grad():
            logits.append(model(batch.images).logits.float())
        if shown < SHOWN:
            shown += len(batch.images)
            maps, names = own_maps(model, batch.images, logits[-1].argmax(dim=1))
            region = metrics.disc_region(batch.deciding, TOLERANCE * SIZE / 224, (SIZE, SIZE))
            judged = {"chance": torch.ones(region.shape)} | ({"final": maps[:, -1], "mean": maps.mean(dim=1)} if names else {})
            for name, one in judged.items():
                hits[name].append(metrics.pointing_game(one, region))
    scores, targets = torch.cat(logits), torch.cat([batch.targets for batch in batches])
    predicted = scores.argmax(dim=1)
    row = {"top1": (predicted == targets).double().mean(), "nll": torch.nn.functional.cross_entropy(scores, targets)}
    row |= {f"hits_{name}": torch.cat(found).nanmean() for name, found in hits.items()}
    return {name: f"{float(value):.4f}" for name, value in row.items()}, predicted.numpy().astype(np.uint16)


def pretrain(*, epochs: int = 35, seed: int = 0) -> None:
    """Train the backbone on other species: the weights of `birds_resnet`, in half precision, and results/traits_backbone.md.

    Args:
        epochs: Epochs.
        seed: Seed.
    """
    data = painted(PRETRAINING, seed, 32)
    scratch = Method("pretraining", "baseline", {"pretrained": False, "lr": 0.004, "backbone_lr_factor": 1.0})
    model, seconds = train(scratch, data, epochs, seed)
    row, _ = judge(model, list(batches_of(model, data, None)))
    weights = model.network.backbone.model.state_dict().items()
    with atomic_write(WEIGHTS) as part:
        save_file({name: one.half().contiguous() for name, one in weights if one.is_floating_point()}, part)
    row = {"backbone": model.backbone, "images": data.listing.identity, "pixels": SIZE, "epochs": epochs, "seed": seed} | row
    row |= {"CPU seconds": round(seconds), "KB": WEIGHTS.stat().st_size // 1000}
    write_report("The backbone `birds_resnet`, trained on other species", markdown_table([row]), [row], "traits_backbone")


class Cell(NamedTuple):
    """One training: of the method that has this label, for so many epochs."""

    setting: Setting
    seed: int
    label: str
    epochs: int

    @property
    def name(self) -> str:
        """What no other cell is called."""
        body, trait, train, clutter = self.setting
        return f"body{body}-trait{trait}-train{train}-clutter{clutter}-seed{self.seed}-{slug(self.label)}-{self.epochs}-epochs"


def cost(*, rounds: int = 7) -> None:
    """Measure what an epoch of every method takes at the centre: results/traits_cost.csv.

    Args:
        rounds: Trainings of each method, by turns, each straight after one of plain fine-tuning; the median ratio counts.
    """
    images, rows = Images(CENTRE, SEEDS[0]), []
    for method in rounds * list(methods().values()):
        both = METHODS[0], method
        base, own = (train(one, images.data, 1, SEEDS[0])[1] for one in both)
        rows.append({"label": method.label, "CPU seconds": f"{own:.2f}", "times the Baseline's": f"{own / base:.3f}"})
        say(", ".join(rows[-1].values()))
    write_report("CPU seconds of a training of one epoch at the centre of `traits.py`", markdown_table(rows), rows, "traits_cost")


def costs() -> dict[str, float]:
    """How many times the Baseline's seconds a method takes, by label, as `cost` measured it: the median round."""
    found = defaultdict(list)
    for row in read_csv(common.RESULTS / "traits_cost.csv"):
        found[row["label"]].append(float(row["times the Baseline's"]))
    if missing := set(methods()) - set(found):
        raise UsageError(f"results/traits_cost.csv lacks {', '.join(sorted(missing))}; run `traits.py cost`")
    return {label: statistics.median(ratios) for label, ratios in found.items()} | {BASELINE: 1.0}


def equal_time(base: str, label: str, setting: Setting, known: Mapping[str, float]) -> int:
    """Epochs that take `base` as long as a method: times 1, 2, 3 ..., the nearest, so that several methods share a run."""
    return EPOCHS[setting.train] * max(1, round(known[label] / known[base]))


def cells() -> list[Cell]:
    """Every training, seed by seed and setting by setting."""
    rows, known = methods(), costs()
    pairs = [(base, row.label) for row in rows.values() for base in (BASELINE, row.parent) if base]
    found = {}
    for seed, setting in product(SEEDS, SETTINGS):
        wanted = [(label, EPOCHS[setting.train]) for label in rows]
        wanted += [(base, equal_time(base, label, setting, known)) for base, label in pairs]
        found |= {Cell(setting, seed, label, epochs): None for label, epochs in wanted}
    return list(found)


class Results:
    """What has been run: rows by the cell's name, and the predicted classes of its test images."""

    def __init__(self) -> None:
        self.table, self.file = (common.RESULTS / f"traits.{end}" for end in ("csv", "npz"))
        self.rows = {row["cell"]: row for row in read_csv(self.table)}

    @cached_property
    def arrays(self) -> Arrays:
        """Predicted classes under `predicted/CELL`, true ones under `targets/`."""
        if not self.file.is_file():
            return {}
        with np.load(self.file) as found:
            return dict(found)

    def has(self, cell: Cell) -> bool:
        """Whether a cell was run on the images, and with the arguments, that it has now."""
        row, images = self.rows.get(cell.name, {}), fingerprint(birds_of(cell.setting, cell.seed))
        same = (row.get("arguments"), row.get("fingerprint")) == (methods()[cell.label].settings, images)
        return same and row.get("batch") in (None, "", str(BATCH))  # older rows do not say it

    def add(self, row: Row, arrays: Arrays) -> None:
        """Write a cell; the table comes last, and says that the rest is there."""
        self.rows[row["cell"]] = row
        with atomic_write(self.file) as part, part.open("wb") as file:
            np.savez_compressed(file, **self.arrays | arrays)
        write_csv(self.table, list(self.rows.values()))

    def group(self, setting: Setting, label: str, epochs: int | None = None) -> Group:
        """A method's rows by seed, by default those of as many epochs as all methods have."""
        epochs = epochs or EPOCHS[setting.train]
        named = {(str(seed), ""): Cell(setting, seed, label, epochs).name for seed in SEEDS}
        return Group(label, "", "", "", epochs, {key: self.rows[name] for key, name in named.items() if name in self.rows})


def run(*, only: str = "*", budget: float = 12.0, locks: Path = Path("runs/traits")) -> int:
    """Train and judge every method in every setting; what is in results/traits.csv already is skipped.

    Any number of processes may share the folders. SIGTERM ends it as Ctrl-C does; the training in work is all that is lost.

    Args:
        only: A pattern of the cells' names, as in "body0.24-*-seed0-*".
        budget: CPU hours after which no training is begun.
        locks: Folder where it is noted which trainings are in work.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    locks.mkdir(parents=True, exist_ok=True)
    about, images, failed = environment(), {}, 0
    left = [cell for cell in cells() if fnmatchcase(cell.name, only) and not Results().has(cell)]
    for number, cell in enumerate(left):
        if time.process_time() > 3600 * budget:
            say(f"{budget:g} CPU hours are over; {len(left) - number} of {len(left)} trainings are left")
            break
        with locked(locks / f"{cell.name}.lock") as lock:
            if lock is None or Results().has(cell):
                continue
            place, method = (cell.setting, cell.seed), methods()[cell.label]
            images = images if place in images else {place: Images(*place)}
            data = images[place].data
            try:
                model, seconds = train(method, data, cell.epochs, cell.seed)
            except TrainingError as error:
                failed += 1
                say(f"failed  {cell.name}: {error}")
                continue
            scores, predicted = judge(model, images[place].test)
            row = {
                "cell": cell.name, **cell.setting._asdict(), "share": f"{images[place].share:.6f}", "label": cell.label,
                "seed": cell.seed, "fold": "", "epochs": cell.epochs, "batch": BATCH, "train_seconds": f"{seconds:.2f}", **scores,
                "method": method.method, "arguments": method.settings, "fingerprint": data.card.fingerprint,
                "torch": about["packages"]["torch"], "fgzoo": about["git"] or about["fgzoo"], "hardware": about["processor"],
            }  # fmt: skip
            targets = np.array([record.target for record in data.listing.test], dtype=np.uint16)
            with FileLock(locks / ".results.lock"):
                Results().add(row, {predicted_name(row): predicted, targets_name(row): targets})
            say(f"{time.strftime('%X')}  {number + 1}/{len(left)}  {cell.name}  top-1 {scores['top1']}  {seconds:.0f} s")
    return int(failed > 0)


PAGE = f"""\
# When is an attention method worth its time?

Twelve species of synthetic birds, {{cells}} trainings; `benchmarks/traits.py` has every setting and argument. A setting is the
deciding part's share of the image (pixels that would differ were it the nearest other species), training images a class, and
clutter, times the usual.

![Points more than plain fine-tuning that took as long](traits.png)

Points more than plain fine-tuning that took as long, with 95 % intervals; dashed: the methods' parents.

## What a method is worth

Differences in points, paired by seed and image, in brackets 95 % intervals by a bootstrap of both. At equal CPU time the
Baseline, or the parent, had as many more epochs as the method takes longer (`traits_cost.md`), to the nearest multiple. CPU s is
training alone.

{{worth}}

## How often a map hits the deciding part, %

The map's maximum is at most {TOLERANCE} pixels (of 224) from the part's centre; several maxima share the hit. The final map is
the last that `explain` gives, the mean map that of all; the Baseline's is its class activation map. Mean ± standard deviation
over seeds.

{{hits}}
"""


def worth(results: Results, known: Mapping[str, float], setting: Setting, title: str) -> list[Row]:
    """The table's lines of a setting: what each method is worth beside plain fine-tuning and beside its parent."""
    rows: list[Row] = []
    for label, method in methods().items():
        mine = results.group(setting, label)
        row = {"setting": title, "what": label, "runs": len(mine.runs), "epochs": mine.epochs}
        for name, column, *shown in (("top-1 %", "top1"), ("NLL", "nll", 1, 3), ("CPU s", "train_seconds", 1, 0)):
            row[name] = mean_std(mine.values(column), *shown)
        for name, base in (("Baseline", BASELINE), ("parent", method.parent)):
            for equal in ("epochs", "CPU time") if base not in ("", label) else ():
                epochs = mine.epochs if equal == "epochs" else equal_time(base, label, setting, known)
                row[f"to {name}, equal {equal}"] = difference(mine, results.group(setting, base, epochs), results.arrays)
        rows += [row] if mine.runs else []
    return rows


def hits(results: Results, label: str, name: str, titles: Mapping[Setting, str]) -> Row:
    """How often a method's `final` or `mean` map, or `chance`, hits the deciding part, by setting."""
    found = {title: mean_std(results.group(setting, label).values(f"hits_{name}")) for setting, title in titles.items()}
    return {"map": "uniform (chance)" if name == "chance" else f"{label}, {name}"} | found


def draw(axes: Axes, sweep: str, results: Results, known: Mapping[str, float], shares: Mapping[Setting, float]) -> None:
    """A sweep: differences to plain fine-tuning that took as long, of methods with intervals, of their parents dashed."""
    places = {one: shares[one] if sweep == "body" else getattr(one, sweep) for one in SWEEPS[sweep] if one in shares}
    for number, (label, colour) in enumerate(COLOURS.items()):
        aside = number - (len(COLOURS) - 1) / 2  # so that no interval covers another one
        for name in (label, *({methods()[label].parent} - {"", BASELINE})):
            found = []
            for one, place in places.items():
                base = results.group(one, BASELINE, equal_time(BASELINE, name, one, known))
                mine, theirs = paired(results.group(one, name), base)
                if mine.runs:
                    x = place + 0.06 * aside if sweep == "clutter" else place * 1.035**aside
                    found.append((x, *(100 * value for value in with_interval([gain(mine, theirs, results.arrays)]))))
            x, mean, low, high = np.array(found).reshape(-1, 4).T
            if name == label:
                axes.errorbar(x, mean, [mean - low, high - mean], color=colour, marker="o", markersize=4, capsize=2, label=name)
            elif found:
                axes.plot(x, mean, "--", color=colour, linewidth=1, alpha=0.7, label=name)
    axes.axhline(0, color="#888888", linewidth=1)
    axes.set(xlabel=AXES[sweep], xscale="linear" if sweep == "clutter" else "log")
    axes.set_xticks(list(places.values()), [f"{round(place, 2):g}" for place in places.values()])
    axes.set_xticks([], minor=True)


def report() -> None:
    """Write results/traits.md and traits.png from what has been run."""
    results, known = Results(), costs()
    found = {setting: results.group(setting, BASELINE).values("share") for setting in SETTINGS}
    shares = {setting: 100 * statistics.mean(values) for setting, values in found.items() if values}
    if not shares:
        raise UsageError("results/traits.csv has no plain fine-tuning yet; run `traits.py run`")
    titles = {one: f"{share:.2f} %, {one.train} images, clutter {one.clutter:g}" for one, share in shares.items()}
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    panels = figure.subplots(1, len(SWEEPS), sharey=True)
    for axes, sweep in zip(panels, SWEEPS, strict=True):
        draw(axes, sweep, results, known, shares)
    panels[0].set_ylabel("points more than plain fine-tuning\nthat took as long")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2 * len(COLOURS), frameon=False)
    figure.savefig(common.RESULTS / "traits.png", dpi=120)
    lines = [row for setting, title in titles.items() for row in worth(results, known, setting, title)]
    maps = [*product(methods(), ("final", "mean")), (BASELINE, "chance")]
    shown = markdown_table([hits(results, *one, titles) for one in maps])
    text = PAGE.format(cells=len(results.rows), worth=markdown_table(lines), hits=shown)
    (common.RESULTS / "traits.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(common.main({"pretrain": pretrain, "cost": cost, "run": run, "report": report}))
