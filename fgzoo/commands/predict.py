"""`fgzoo predict`; torch is imported once the arguments are known."""

from __future__ import annotations

import sys
from pathlib import Path

from jsonargparse.typing import NonNegativeInt, PositiveInt

from fgzoo.commands.models import load_models, loader_processes
from fgzoo.errors import UsageError
from fgzoo.prediction import Precision, TestTime

#: Where predictions and features can be written to, by suffix.
PREDICTION_FILES = (".csv", ".jsonl")
FEATURE_FILES = (".npy", ".npz", ".csv", ".jsonl")


def predict(
    checkpoint: str,
    images: list[str],
    *,
    top_k: PositiveInt = 5,
    batch_size: PositiveInt = 32,
    num_workers: NonNegativeInt | None = None,
    device: str = "auto",
    trust: list[str] = [],  # noqa: B006 - it is read only
    also: list[str] = [],  # noqa: B006
    output: Path | None = None,
    tta: TestTime = "none",
    embed: bool = False,
    precision: Precision = "32-true",
) -> int:
    """Classes and probabilities of images, a row each; a file that cannot be read is a row with its error.

    Exit status: 0, or 1 where not one image could be read. Without --output: a table on a terminal, CSV in a pipe.

    Args:
        checkpoint: A checkpoint file, a run's folder, a name of `fgzoo list checkpoints`, hf://OWNER/NAME, or `last` or `best` of
            the newest run below runs/.
        images: A file, a folder (every image below it), a quoted pattern such as 'photos/**/*.jpg', or - for a list of paths, one
            a line, on standard input.
        top_k: Classes to name, at most all of them.
        batch_size: Images that pass the network at once.
        num_workers: Loader processes; without it one per usable core, at most 8, and none for a single batch.
        device: auto, cpu, cuda, cuda:0 or mps.
        trust: A package whose classes a checkpoint may name (repeatable).
        also: One more checkpoint; probabilities are averaged (repeatable).
        output: A .csv or .jsonl file; with --embed also .npy or .npz.
        tta: Average over the image and its mirror image, over the four corners and the centre, or over those five and
            their mirror images.
        embed: Features of the backbone instead of classes; they need --output or a pipe.
        precision: Of the computation.

    Returns:
        0, or 1 where not one image could be read.
    """
    _check_file(output, embed)
    if embed and also:
        raise UsageError("predict: --embed takes one checkpoint, because features of several have no common meaning")
    from fgzoo.prediction import files, inference

    paths = files.image_paths(images, sys.stdin)
    models = load_models([checkpoint, *also], trust, files.find_device(device))
    workers = loader_processes(num_workers, single_batch=len(paths) <= batch_size)
    with files.Watch(len(paths)) as watch:
        if embed:
            batches = inference.embed(models, list(paths), batch_size, tta, workers, precision)
            files.write_features(output, paths, watch.features(batches))
        else:
            columns = min(top_k, len(inference.class_names(models)))
            predictions = inference.classify(models, list(paths), top_k, batch_size, tta, workers, precision)
            files.write_predictions(output, paths, watch.predictions(predictions), columns)
    watch.report()
    return 1 if watch.failed == len(paths) else 0


def _check_file(output: Path | None, features: bool) -> None:
    """Refuse an output that cannot be written before anything is computed."""
    if output is None:
        if features and sys.stdout.isatty():
            raise UsageError("predict: --embed gives numbers by the thousand; write them by --output FILE, or into a pipe")
        return
    known = FEATURE_FILES if features else PREDICTION_FILES
    if output.suffix.lower() not in known:
        hint = " (features, by --embed)" if output.suffix.lower() in FEATURE_FILES else ""
        raise UsageError(f"predict: --output {output}{hint}: the file's name ends in none of {', '.join(known)}")
    if output.is_dir():
        raise UsageError(f"predict: --output {output} is a folder; give a file in it")
    output.parent.mkdir(parents=True, exist_ok=True)
