"""`fgzoo fit PHOTOS`: from a folder or a list of photos to a tested classifier and its report, by one command."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from fgzoo.data.layouts import find
from fgzoo.errors import UsageError
from fgzoo.prediction.rejection import REJECTED
from fgzoo.recipes import recipe_files
from fgzoo.reporting.report import write_report
from fgzoo.training.arguments import settings_of, values_of
from fgzoo.training.command import TrainingCLI, run

#: What trains where no method is named, and why; the table is benchmarks/results/accuracy/preset.md.
METHOD, WHY = "rra", "which stood above plain fine-tuning on folds of birds and cars, epoch for epoch"


def fit_photos(photos: str, arguments: list[str]) -> TrainingCLI:
    """Train on photos, test once where there are images to test on, write the report, and say what to do next.

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
    if trained.datamodule.splits["test"]:
        run("test", ["--ckpt_path", str(trained.run_folder), "--trainer.devices", "1", "--trainer.num_nodes", "1"], closing=False)
    else:
        console.print("Not tested: there is no test image.")
    report = write_report(trained.run_folder, device=trained.trainer.strategy.root_device, trust=values_of(arguments, "--trust"))
    console.print()
    for line in (*report.lines, *last_words(trained, report.page)):
        console.print(line)
    return trained


def choose(photos: str, arguments: Sequence[str], gpu: bool) -> tuple[list[str], list[str]]:
    """What `fgzoo fit` is given for photos, before what was typed; and a line for each choice.

    Raises:
        DataError: The photos cannot be read as classes.
    """
    given = settings_of(arguments)
    typed = given.get("data")
    layout = find(photos, typed if isinstance(typed, dict) else {})
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
    own = [word for name, value in layout.arguments.items() for word in (f"--data.{name}", str(value))]
    return [*chosen, *own], reasons


def last_words(trained: TrainingCLI, page: Path) -> list[str]:
    """Below which score a photo is unknown, where the report is, and the next commands."""
    found, folder, lines = trained.model.calibration, shlex.quote(str(trained.run_folder)), []
    if found is not None:
        share = f"{REJECTED:.0%} of {found.images} held-out ones are" if found.images * REJECTED >= 1 else (
            f"none of only {found.images} held-out ones is, too few to choose it by"
        )  # fmt: skip
        below = f"photos below a {found.score} of {found.threshold():.4g}"
        lines.append(f"Called unknown: {below}, as {share} (predict --reject RATE moves that)")
    return [
        *lines,
        f"Report: {page}",
        f"Next: fgzoo predict {folder} PHOTOS --output answers.csv",
        f"      fgzoo explain {folder} PHOTOS --output looked",
        f"      fgzoo export {folder} --output classifier.onnx",
    ]
