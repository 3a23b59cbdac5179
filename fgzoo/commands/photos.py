"""`fgzoo fit PHOTOS`: from a folder or a list of photos to a tested classifier and its report, by one command."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from fgzoo.checkpoints.loading import last_test, load
from fgzoo.checkpoints.run_folder import LAST
from fgzoo.data.layouts import find
from fgzoo.errors import UsageError
from fgzoo.prediction.rejection import Calibration
from fgzoo.recipes import recipe_files
from fgzoo.reporting.markup import few_below
from fgzoo.reporting.report import write_report
from fgzoo.training.arguments import expand_presets, settings_of, values_of
from fgzoo.training.command import TrainingCLI, run, score_alone

#: What trains where no method is named, and why: benchmarks/results/accuracy/converged.md. SRBN, Coarse2Fine and WS-DAN stand as
#: high there; RRA takes the least time of them, and is above plain fine-tuning where what decides is smallest (traits.md), too.
METHOD, WHY = "rra", "which stands above plain fine-tuning of as much time on folds of birds and cars"


def fit(arguments: list[str]) -> TrainingCLI:
    """Train; on photos, or where that is asked for, go on to a test, the report and what to do next.

    Args:
        arguments: What was typed, first of all perhaps a folder of class folders, or a CSV; it wins over what is chosen here.

    Returns:
        The training.

    Raises:
        DataError: The photos cannot be read as classes.
        UsageError: Something else has started several processes, or something that was typed is wrong.
    """
    if arguments and not arguments[0].startswith("-"):
        photos, *arguments = arguments
        if values_of(arguments, "--resume"):
            raise UsageError(f"fit {photos} --resume: a run continues with its own photos; leave {photos} away")
        chosen, reasons = choose(photos, arguments, torch.cuda.is_available())
        # The other processes are started by the same command line.
        for line in reasons if "LOCAL_RANK" not in os.environ else ():
            Console(soft_wrap=True, highlight=False, markup=False).print(line)
        arguments = [*chosen, "--report", "true", *arguments]
    trained = run("fit", arguments)
    if trained.reports and trained.trainer.is_global_zero and not trained.dry:
        try:
            finish(trained)
        except KeyboardInterrupt as end:
            raise trained.interrupted() from end
    return trained


def finish(trained: TrainingCLI) -> None:
    """Test once, where there are images to test on, write the report, and say what to do next."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    folder, trust = trained.run_folder, trained.config.fit.trust
    if not trained.datamodule.splits["test"]:
        console.print("Not tested: there is no test image.")
    elif not last_test(folder):
        score_alone(folder / LAST, trust)
    report = write_report(folder, device=trained.trainer.strategy.root_device, trust=trust)
    console.print()
    for line in (*report.lines, *last_words(folder, load(folder / LAST, trust).calibration, report.page)):
        console.print(line)


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
        # A config of one's own may name other data.
        chosen = ["--config", layout.name, "--data.name", layout.name, *([] if named else ["--model", METHOD])]
    else:
        recipe = f"{layout.name}/{named or METHOD}"
        chosen = ["--config", recipe if recipe in recipe_files() else layout.name]
        if not gpu:
            chosen += ["--config", "small"]
            reasons.append("Preset: small, since there is no GPU: a small backbone whose lowest levels stay as they are.")
        elif recipe in recipe_files():
            epochs = settings_of(expand_presets(chosen))["trainer"]["max_epochs"]
            reasons.append(f"Recipe: {recipe}, the method's own of {epochs} epochs, as there is a GPU (shorter: --config small).")
    own = [word for name, value in layout.arguments.items() for word in (f"--data.{name}", str(value))]
    return [*chosen, *own], reasons


def last_words(run_folder: Path, found: Calibration | None, page: Path) -> list[str]:
    """Below which score a photo is unknown, where the report is, and the next commands."""
    folder, lines = shlex.quote(str(run_folder)), []
    if found is not None:
        below = f"photos below a {found.score} of {found.threshold():.4g}, {few_below(found)}"
        lines.append(f"Called unknown: {below} (predict --reject RATE moves that)")
    return [
        *lines,
        f"Report: {page}",
        f"Next: fgzoo predict {folder} PHOTOS --output answers.csv",
        f"      fgzoo explain {folder} PHOTOS --output looked",
        f"      fgzoo export {folder} --output classifier.onnx",
    ]
