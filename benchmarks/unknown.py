"""Can a network say "I do not know"? It learns half of the classes of CUB-200-2011; the other half, and cars, are unknown to it.

    python benchmarks/unknown.py run --root cub=PATH cars=PATH --weights PATH     # results/unknown.csv; what is there is skipped
    python benchmarks/unknown.py report                                           # results/unknown.md, of as much as has been run

The seed draws the half, too. A fifth of its training images is held out; it gives the temperature and the thresholds. Known are
the test images of the learnt classes; unknown those of the other half (near) and those of Stanford Cars (far). Class means and
their covariance are of the images that were trained on.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import NamedTuple

import common
import torch
import torch.nn.functional as F
from common import Row, markdown_table, read_csv, say, write_csv
from filelock import FileLock
from runner import Machine, locked, paths_by_name, train
from tables import mean_std
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, multiclass_calibration_error

from fgzoo import FGVCDataModule, FineGrainedClassifier, files, load
from fgzoo.data.records import Record
from fgzoo.errors import DataError, TrainingError, UsageError
from fgzoo.prediction.inference import Classifier, compute
from fgzoo.prediction.rejection import Calibration, ClassMeans, energy, maximum_probability
from fgzoo.training.environment import environment

METHODS = ("baseline", "rra", "coarse2fine", "iagn", "srbn")
SEEDS = (0, 1, 2)
#: What is typed beside method, data and seed, and how much is held out.
SETTINGS, HELD_OUT = "--config small --data.image_size 160 --data.resize 183 --trainer.max_epochs 15", 0.2
NEAR, FAR = "other birds", "cars"
PLAIN = "maximum probability, T = 1"
SCORES = (PLAIN, "maximum probability", "energy", "Mahalanobis", "cosine")
TABLE = "unknown"


class Answers(NamedTuple):
    """What a network gave of images: logits (N, K), features (N, D), and the classes (N,)."""

    logits: Tensor
    features: Tensor
    targets: Tensor


def arguments_of(method: str, seed: int | str) -> str:
    """What is typed after `fgzoo fit`, but for folders; rows say it of their runs."""
    return f"--config folder --model {method} {SETTINGS} --data.val_fraction {HELD_OUT} --seed_everything {seed}"


def halves(classes: int, seed: int) -> tuple[list[int], list[int]]:
    """The classes that are learnt, and the others."""
    order = random.Random(seed).sample(range(classes), classes)
    return sorted(order[: classes // 2]), sorted(order[classes // 2 :])


def write_list(path: Path, data: FGVCDataModule, classes: Sequence[int], root: Path) -> None:
    """The images of some classes, as `--data.csv` takes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        (record.path.relative_to(root).as_posix(), data.class_names[record.target], split)
        for split, records in (("train", data.listing.train), ("test", data.listing.test))
        for record in records
        if record.target in classes and record.path is not None
    ]
    files.write_csv(path, ("path", "label", "split"), rows)


def both(model: Classifier, images: Tensor) -> Tensor:
    """Logits and features (B, K + D)."""
    return torch.cat(model.logits_and_features(images), dim=1)


@dataclass(frozen=True)
class Mahalanobis:
    r"""Classes as points in the space of features, and one covariance S around all of them.

    S is that of the features less their class's mean, drawn towards a multiple of the unit matrix by as much as Ledoit and Wolf
    (2004) find best, so that it can be inverted where there are more features than images.

    Source: Lee et al., arXiv 1807.03888; the shrinkage is our decision.

    Attributes:
        means: (K, D), double precision.
        factor: (D, D), the lower Cholesky factor of S.
    """

    means: Tensor
    factor: Tensor

    @classmethod
    def fit(cls, features: Tensor, targets: Tensor) -> Mahalanobis:
        """From the features (N, D) of training images and their classes (N,), each of which has an image."""
        values = features.double()
        counts = torch.bincount(targets).double()
        means = torch.zeros(len(counts), values.shape[1], dtype=values.dtype).index_add_(0, targets, values) / counts[:, None]
        return cls(means, torch.linalg.cholesky(shrunk_covariance(values - means[targets])))

    def score(self, features: Tensor) -> Tensor:
        r"""The score $-\min_k (f - \mu_k)^\top S^{-1} (f - \mu_k)$, (B,), of features (B, D)."""
        white, centres = (
            torch.linalg.solve_triangular(self.factor, one.double().T, upper=False).T for one in (features, self.means)
        )
        return -torch.cdist(white, centres).amin(dim=1).square()


def shrunk_covariance(centred: Tensor) -> Tensor:
    r"""Ledoit and Wolf's estimate of the covariance of N points (N, D) whose mean is 0: $(1 - a) S + a\, m I$.

    S is their covariance, m the mean of its diagonal; a, from 0 to 1, is the share at which the estimate's expected squared error
    is least (Journal of Multivariate Analysis 88, 2004).
    """
    count, size = centred.shape
    covariance = centred.T @ centred / count
    mean = covariance.diagonal().mean()
    spread = covariance.square().sum() - size * mean**2
    noise = (centred.square().sum(dim=1).square().sum() / count - covariance.square().sum()) / count
    share = (noise / spread).clamp(0, 1)
    return (1 - share) * covariance + share * mean * torch.eye(size, dtype=centred.dtype)


def answers(model: FineGrainedClassifier, records: Sequence[Record]) -> Answers:
    """What a model gives of images; for those of classes that it does not know, the targets mean nothing."""
    found = []
    for batch in compute([model], [str(record.path) for record in records], both):
        for error in filter(None, batch.errors):
            raise DataError(f"unknown: {error}")
        found.append(batch.values)
    values = torch.cat(found)
    targets = torch.tensor([record.target for record in records])
    return Answers(values[:, : model.num_classes], values[:, model.num_classes :], targets)


def auroc(known: Tensor, unknown: Tensor) -> float:
    """The share of pairs in which the known image scores higher; half of those that are equal."""
    scores = torch.cat([known, unknown])
    # As ranks: the metric would squash what lies outside [0, 1], and make large scores equal.
    ranks = scores.unique(return_inverse=True)[1].double() / len(scores)
    return float(binary_auroc(ranks, torch.cat([torch.ones(len(known)), torch.zeros(len(unknown))]).long()))


def false_positives(known: Tensor, unknown: Tensor, accepted: float = 0.95) -> float:
    """The share of unknown images that is accepted where this share of known ones is."""
    threshold = known.sort(descending=True).values[max(0, round(accepted * len(known)) - 1)]
    return float((unknown >= threshold).double().mean())


def judge(train: Answers, held_out: Answers, known: Answers, unknown: dict[str, Answers]) -> list[Row]:
    """A row for every score and kind of unknown images."""
    temperature = Calibration.fit(held_out.logits, held_out.targets).temperature
    means = ClassMeans.fit(train.features, train.targets, train.logits.shape[1])
    mahalanobis = Mahalanobis.fit(train.features, train.targets)
    scores = {
        PLAIN: lambda one: maximum_probability(one.logits.double()),
        "maximum probability": lambda one: maximum_probability(one.logits.double(), temperature),
        "energy": lambda one: energy(one.logits.double()),
        "Mahalanobis": lambda one: mahalanobis.score(one.features),
        "cosine": lambda one: means.cosine(one.features),
    }
    right = (known.logits.argmax(dim=1) == known.targets).double()
    about = {"top1": right.mean(), "temperature": temperature}
    for name, factor in (("", 1.0), ("_calibrated", temperature)):
        logits = known.logits.double() / factor
        about[f"nll{name}"] = F.cross_entropy(logits, known.targets)
        about[f"ece{name}"] = multiclass_calibration_error(logits.softmax(1), known.targets, known.logits.shape[1], n_bins=15)
    rows = []
    for (kind, images), (name, score) in product(unknown.items(), scores.items()):
        threshold = score(held_out).quantile(0.05, interpolation="lower")
        mine, theirs = score(known), score(images)
        found = {"auroc": auroc(mine, theirs), "fpr95": false_positives(mine, theirs)}
        found |= {"known_rejected": (mine < threshold).double().mean(), "unknown_rejected": (theirs < threshold).double().mean()}
        found |= {"top1_accepted": right[mine >= threshold].mean(), "auroc_right": auroc(mine[right == 1], mine[right == 0])}
        rows.append({"unknown": kind, "score": name, **{key: f"{float(value):.5f}" for key, value in (found | about).items()}})
    return rows


def run(
    *, root: Sequence[str] = (), weights: Sequence[str] = (), runs: Path = Path("runs/unknown"), only: str = "*",
    seeds: Sequence[int] = SEEDS, threads: int = 1,
) -> int:  # fmt: skip
    """Train every method on half of the classes, and judge every score; what is in results/unknown.csv already is skipped.

    Rows of a cell that was run with other arguments give way.

    Any number of processes may share the folders; a training that was stopped goes on.

    Args:
        root: The folders of both data sets: cub=PATH cars=PATH.
        weights: Files with the backbones' weights, BACKBONE=PATH; a path alone is of the first.
        runs: Where the trainings lie.
        only: A pattern of the cells' names, such as "rra-seed0".
        seeds: Seeds.
        threads: Threads of a process.
    """
    torch.set_num_threads(threads)
    machine = Machine(runs, paths_by_name(root, "--root"), paths_by_name(weights, "--weights"), threads=threads)
    if absent := {"cub", "cars"} - set(machine.roots):
        raise UsageError(f"--root: where is {' and '.join(sorted(absent))}? Give cub=PATH cars=PATH")
    table, failed = common.RESULTS / f"{TABLE}.csv", 0
    runs.mkdir(parents=True, exist_ok=True)
    for seed, method in product(seeds, METHODS):
        name = f"{method}-seed{seed}"
        with locked(runs / f"{name}.lock") as lock:
            wanted = {"cell": name, "arguments": arguments_of(method, seed)}
            if lock is None or not fnmatchcase(name, only) or any(wanted.items() <= row.items() for row in read_csv(table)):
                continue
            say(f"{time.strftime('%X')}  running  {name}")
            try:
                rows = measure(method, seed, machine, runs / name, lock)
            except TrainingError as error:
                failed += 1
                say(f"{time.strftime('%X')}  failed: {common.hide_paths(str(error))}  {name}")
                continue
            with FileLock(runs / ".results.lock"):
                others = [row for row in read_csv(table) if row["cell"] != name]
                write_csv(table, [*others, *({"cell": name, "method": method, "seed": seed} | row for row in rows)])
            say(f"{time.strftime('%X')}  done  {name}")
    return int(failed > 0)


def measure(method: str, seed: int, machine: Machine, folder: Path, lock: int) -> list[Row]:
    """The rows of one training, which is made or ended first."""
    root = machine.roots["cub"]
    birds, cars = (FGVCDataModule(name, machine.roots[name], num_workers=0, seed=seed) for name in ("cub", "cars"))
    learnt, others = halves(birds.num_classes, seed)
    images = folder.parent / f"half{seed}.csv"
    write_list(images, birds, learnt, root)
    arguments = arguments_of(method, seed)
    weights = {"backbone_weights": machine.weights.get("mobilenetv2_100", machine.weights.get(""))}
    if method == "srbn":
        weights["second_backbone_weights"] = machine.weights.get("tf_efficientnet_lite0")
    places = [word for key, path in weights.items() if path for word in (f"--model.{key}", str(path))]
    typed = ["fit", *arguments.split(), "--data.root", str(root), "--data.csv", str(images), *places]
    environment_of_run = {**os.environ, "OMP_NUM_THREADS": str(machine.threads)}
    train(f"fgzoo fit {arguments}", typed, folder, environment_of_run, lock, threading.Event(), ["--data.csv"])
    data = FGVCDataModule("folder", root, csv=images, val_fraction=HELD_OUT, seed=seed, num_workers=0)
    model, about = load(folder), environment()
    splits = [answers(model, data.splits[split]) for split in ("train", "val", "test")]
    near = answers(model, [record for record in birds.listing.test if record.target in others])
    made_by = {
        "train_seconds": json.loads((folder / "cost.json").read_text(encoding="utf-8"))["seconds"], "classes": len(learnt),
        **{split: len(records) for split, records in data.splits.items()}, "fingerprint": data.listing.fingerprint(),
        "arguments": arguments, "torch": about["packages"]["torch"], "timm": about["packages"]["timm"],
        "fgzoo": about["git"] or about["fgzoo"], "hardware": next(iter(about["gpus"]), about["processor"]), "time": about["time"],
    }  # fmt: skip
    return [row | made_by for row in judge(*splits, {NEAR: near, FAR: answers(model, cars.listing.test)})]


PAGE = """\
# Saying "I do not know"

{about}

{hardware}. `fgzoo fit {arguments}`. Mean ± standard deviation over runs, of which "runs" says how many: over methods and seeds in
the first table, over seeds in the others.

AUROC: the share of pairs of a known and an unknown image in which the known one scores higher (50: chance). FPR95: the share of
unknown images that is accepted where 95 % of the known test images are. "Rejected" is what the threshold of the held-out images
rejects, which accepts 95 % of those. AUROC of right and wrong: whether the known images that are called by their names score
higher than those that are not.

## By score, mean over methods

{by_score}

## By method and score

{by_method}

## Temperature

Known test images; a temperature above 1 makes answers less certain. ECE: expected calibration error, 15 bins.

{temperature}
"""


def figures(rows: Sequence[Row], column: str, **shown: int) -> str:
    """Mean and standard deviation of a column."""
    return mean_std([float(row[column]) for row in rows], **shown)


def shared_arguments(row: Row) -> str:
    """A row's arguments without its method and its seed."""
    return row["arguments"].replace(f"--model {row['method']} ", "--model METHOD ").partition(" --seed_everything ")[0]


def report() -> None:
    """Write results/unknown.md from what has been run."""
    rows = read_csv(common.RESULTS / f"{TABLE}.csv")
    if not rows:
        raise UsageError(f"results/{TABLE}.csv has no run yet; `unknown.py run` makes them")
    named = {"AUROC": "auroc", "FPR95": "fpr95", "rejected": "unknown_rejected"}
    methods = [method for method in METHODS if any(row["method"] == method for row in rows)]

    def line(what: Row, chosen: Sequence[Row]) -> Row:
        kinds = {kind: [row for row in chosen if row["unknown"] == kind] for kind in (NEAR, FAR)}
        found = {f"{kind}: {title} %": figures(ones, column) for kind, ones in kinds.items() for title, column in named.items()}
        known = {"known rejected %": "known_rejected", "AUROC of right and wrong %": "auroc_right"}
        return what | {"runs": len(kinds[NEAR])} | found | {title: figures(kinds[NEAR], one) for title, one in known.items()}

    by_score = [line({"score": score}, [row for row in rows if row["score"] == score]) for score in SCORES]
    by_method = [
        line({"method": method, "score": score}, [row for row in rows if (row["method"], row["score"]) == (method, score)])
        for method, score in product(methods, SCORES)
    ]
    temperature = []
    for method in methods:
        runs = [row for row in rows if (row["method"], row["score"], row["unknown"]) == (method, PLAIN, NEAR)]
        found = {"top-1 %": figures(runs, "top1"), "temperature": figures(runs, "temperature", factor=1, digits=2)}
        for title, name, how in (("NLL", "nll", {"factor": 1, "digits": 3}), ("ECE %", "ece", {})):
            found |= {title: figures(runs, name, **how), f"{title}, calibrated": figures(runs, f"{name}_calibrated", **how)}
        temperature.append({"method": method, "runs": len(runs)} | found)
    made_by = {key: ", ".join(sorted({row[key] for row in rows})) for key in ("hardware", "torch", "timm", "fgzoo")}
    text = PAGE.format(
        about=(__doc__ or "").split("\n\n")[2],
        hardware="; ".join(f"{key} {value}" for key, value in made_by.items()),
        arguments="`, `fgzoo fit ".join(sorted({shared_arguments(row) for row in rows})),
        by_score=markdown_table(by_score), by_method=markdown_table(by_method), temperature=markdown_table(temperature),
    )  # fmt: skip
    (common.RESULTS / f"{TABLE}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(common.main({"run": run, "report": report}))
