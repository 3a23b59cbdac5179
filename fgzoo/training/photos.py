"""`fgzoo fit PHOTOS`: from a folder or a list of photos to a tested classifier and its report, by one command."""

from __future__ import annotations

import csv
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from fgzoo.checkpoints.run_folder import PROBABILITIES
from fgzoo.data.layouts import find
from fgzoo.errors import UsageError
from fgzoo.prediction.rejection import REJECTED, Calibration
from fgzoo.recipes import recipe_files
from fgzoo.training.arguments import settings_of, values_of
from fgzoo.training.command import TrainingCLI, run

#: What trains where no method is named, and why; the table is benchmarks/results/accuracy/preset.md.
METHOD, WHY = "rra", "the most accurate on folds of birds and cars for the same CPU time"


def fit_photos(photos: str, arguments: list[str]) -> TrainingCLI:
    """Train on photos, test once, and say what to do next.

    Args:
        photos: A folder of class folders, or a CSV.
        arguments: What else was typed; it wins over what is chosen here.

    Returns:
        The training.

    Raises:
        DataError: The photos cannot be read as classes.
        UsageError: Something else has started several processes, or something that was typed is wrong.
    """
    if torch.distributed.is_torchelastic_launched() or int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        raise UsageError("fit PHOTOS starts its processes itself; with torchrun or SLURM give --config folder")
    console = Console(soft_wrap=True, highlight=False)
    first = "LOCAL_RANK" not in os.environ  # the other processes are started by the same command line
    chosen, reasons = choose(photos, arguments, torch.cuda.is_available())
    for line in reasons if first else ():
        console.print(line)
    trained = run("fit", [*chosen, *arguments], closing=False)
    if not first or trained.dry:
        return trained
    folder = trained.run_folder
    run("test", ["--ckpt_path", str(folder), "--trainer.devices", "1", "--trainer.num_nodes", "1"], closing=False)
    console.print()
    for line in summary(folder, trained.model.calibration):
        console.print(line)
    return trained


def choose(photos: str, arguments: Sequence[str], gpu: bool) -> tuple[list[str], list[str]]:
    """What `fgzoo fit` is given for photos, before what was typed; and a line for each choice.

    Raises:
        DataError: The photos cannot be read as classes.
    """
    layout, given = find(photos), settings_of(arguments)
    named = given.get("model", {}).get("class_path")
    reasons = [layout.sentence]
    if named is None:
        reasons.append(f"Method: {METHOD}, {WHY} (--model NAME for another one).")
    if values_of(arguments, "--config", "-c"):
        chosen = ["--config", layout.name, *([] if named else ["--model", METHOD])]
    else:
        recipe = f"{layout.name}/{named or METHOD}"
        chosen = ["--config", recipe if recipe in recipe_files() else layout.name]
        if not gpu:
            chosen += ["--config", "small"]
            reasons.append("Preset: small, since there is no GPU: a small backbone whose lowest levels stay as they are.")
    apart = {"val_fraction"} if "folds" in given.get("data", {}) else set()
    data = {name: value for name, value in layout.arguments.items() if name not in apart}
    return [*chosen, *(word for name, value in data.items() for word in (f"--data.{name}", str(value)))], reasons


def summary(folder: Path, calibration: Calibration | None) -> list[str]:
    """The accuracy of a tested run with its 95 % interval, what it confuses most, what is unknown, and the next commands."""
    from scipy.stats import binomtest

    with np.load(folder / PROBABILITIES["test"]) as found:
        right, count = int((found["predicted"] == found["targets"]).sum()), len(found["targets"])
    interval = binomtest(right, count).proportion_ci(method="wilson")
    lines = [
        f"{100 * right / count:.1f} % of {count} test photos are right "
        f"(95 % interval {100 * interval.low:.1f} to {100 * interval.high:.1f})."
    ]
    with (folder / "test_confused.csv").open(newline="", encoding="utf-8") as file:
        pairs = [f"{row['true']} taken for {row['predicted']} ({row['images']})" for row in csv.DictReader(file)][:3]
    lines += [f"Most often confused: {'; '.join(pairs)}."] if pairs else []
    if calibration is not None:
        lines.append(
            f"Called unknown: answers below a {calibration.score} of {calibration.threshold():.2f}, as {REJECTED:.0%} of "
            f"{calibration.images} held-out photos are (predict --reject RATE moves that)."
        )
    run_folder = shlex.quote(str(folder))
    return [
        *lines,
        f"Next: fgzoo predict {run_folder} PHOTOS --output answers.csv",
        f"      fgzoo explain {run_folder} PHOTOS --output looked",
        f"      fgzoo export {run_folder} --output classifier.onnx",
    ]
