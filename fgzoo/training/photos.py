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
from fgzoo.errors import UsageError
from fgzoo.recipes import recipe_files
from fgzoo.training.arguments import settings_of, values_of
from fgzoo.training.command import TrainingCLI, run

#: What trains where no method is named, and why; the table is benchmarks/results/accuracy/preset.md.
METHOD, WHY = "rra", "the most accurate on folds of birds and cars for the same CPU time"
#: Shares that are set apart where the photos name no such part.
TEST, VALIDATION = 0.2, 0.1


def fit_photos(photos: str, arguments: list[str]) -> TrainingCLI:
    """Train on photos, test once, and say what to do next.

    Args:
        photos: A folder of class folders, or a CSV.
        arguments: What else was typed; it wins over what is chosen here.

    Returns:
        The training.

    Raises:
        UsageError: The photos cannot be read as classes, or something else has started several processes.
    """
    if torch.distributed.is_torchelastic_launched() or int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        raise UsageError("fit PHOTOS starts its processes itself; with torchrun or SLURM give --config folder")
    console = Console(soft_wrap=True, highlight=False)
    first = "LOCAL_RANK" not in os.environ  # the other processes are started by the same command line
    chosen, reasons = choose(photos, arguments, torch.cuda.is_available())
    for line in reasons if first else ():
        console.print(line)
    trained = run("fit", [*chosen, *arguments])
    if not first or trained.dry:
        return trained
    folder = trained.run_folder
    run("test", ["--ckpt_path", str(folder), "--trainer.devices", "1", "--trainer.num_nodes", "1"])
    console.print()
    for line in summary(folder):
        console.print(line)
    return trained


def choose(photos: str, arguments: Sequence[str], gpu: bool) -> tuple[list[str], list[str]]:
    """What `fgzoo fit` is given for photos, beside what was typed, and a line for each choice."""
    named = settings_of(arguments).get("model", {}).get("class_path")
    chosen = ["--data.root", photos, "--data.test_fraction", str(TEST), "--data.val_fraction", str(VALIDATION)]
    reasons = []
    if named is None:
        reasons.append(f"Method: {METHOD}, {WHY} (--model NAME for another one).")
    if values_of(arguments, "--config", "-c"):
        chosen += ["--config", "folder", *([] if named else ["--model", METHOD])]
    else:
        recipe = f"folder/{named or METHOD}"
        known = recipe in recipe_files()
        chosen += ["--config", recipe] if known else ["--config", "folder"]
        if not gpu:
            chosen += ["--config", "small"]
            reasons.append("Preset: small, since there is no GPU: a small backbone whose lowest levels stay as they are.")
    return chosen, reasons


def summary(folder: Path) -> list[str]:
    """The accuracy of a tested run with its 95 % interval, what it confuses most, and the next commands."""
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
    run_folder = shlex.quote(str(folder))
    return [
        *lines,
        f"Next: fgzoo predict {run_folder} PHOTOS --output answers.csv",
        f"      fgzoo explain {run_folder} PHOTOS --output looked",
        f"      fgzoo export {run_folder} --output classifier.onnx",
    ]
