"""`fgzoo predict`; torch is imported once the arguments are known."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal, cast

from jsonargparse.typing import NonNegativeInt, PositiveInt

from fgzoo.commands.models import load_models, loader_processes
from fgzoo.errors import UsageError
from fgzoo.files import is_stream, prepare_folder
from fgzoo.prediction import Form, Precision, Reject, TestTime

#: What predictions and features can be written as; by default a file's suffix says it.
PREDICTION_FORMS = ("csv", "jsonl")
FEATURE_FORMS = ("npy", "npz", "csv", "jsonl")
#: `--output` that means standard output.
STREAM = Path("-")
#: Why no image is called unknown that is shown at another size.
OWN_SIZE = "temperature and thresholds hold at the checkpoint's own size, and --size is another one"


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
    format_: Literal["csv", "jsonl"] | None = None,
    reject: Reject | None = None,
    tta: TestTime = "none",
    size: PositiveInt | None = None,
    embed: bool = False,
    precision: Precision = "32-true",
) -> int:
    """Classes and probabilities of images, a row each; a file that cannot be read is a row with its error.

    A checkpoint that was trained with images held out (--data.val_fraction) gives calibrated probabilities, and calls unknown
    what does not look like its classes. Exit status: 0, or 1 where not one image could be read. Without --output: a table on a
    terminal, CSV in a pipe. Ctrl-C leaves the rows of classes that are done.

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
        output: A .csv or .jsonl file; with --embed also .npy or .npz; - for standard output, a row as soon as it is computed
            (features when all are).
        format_: CSV or JSON lines, in a pipe and where the file's name does not say it.
        reject: The share of images of the known classes, 0 to 0.5, that may be called unknown so that others are: 0.05 unless
            given, where the checkpoint has a threshold; a larger one finds more that are unknown. off calls nothing unknown.
        tta: Average over the image and its mirror image, over the four corners and the centre, or over those five and
            their mirror images.
        size: Side of the input in pixels, for the checkpoint's own; images are resized in proportion. Temperature and threshold
            hold at its own size alone.
        embed: Features of the backbone instead of classes; they need --output or a pipe.
        precision: Of the computation.

    Returns:
        0, or 1 where not one image could be read.
    """
    form = _form(output, format_, embed)
    output = None if output == STREAM else output
    if embed and also:
        raise UsageError("predict: --embed takes one checkpoint, because features of several have no common meaning")
    if embed and reject is not None:
        raise UsageError("predict: --embed gives features, of which --reject has nothing to reject")
    from fgzoo.prediction import files, inference

    if output is not None and not is_stream(output):
        prepare_folder(output.resolve().parent, "predict")
    paths = files.image_paths(images, sys.stdin)
    models = load_models([checkpoint, *also], trust, files.find_device(device))
    resized = models if size is None else [model.at_size(size) for model in models]
    lost = [one.calibration for one in resized] != [one.calibration for one in models]
    models = resized
    workers = loader_processes(num_workers, single_batch=len(paths) <= batch_size)
    rows_shown = output is None and form is not None and sys.stdout.isatty()
    with files.Watch(len(paths), shown=not rows_shown) as watch:
        if embed:
            assert form is not None
            batches = inference.embed(models, list(paths), batch_size, tta, workers, precision)
            files.write_features(output, form, paths, watch.features(batches))
        else:
            columns = min(top_k, len(inference.class_names(models)))
            missing = OWN_SIZE if lost else inference.why_no_threshold(models, tta)
            # Refused before anything is written.
            if lost and reject not in (None, "off"):
                raise UsageError(f"predict: reject {reject}: {OWN_SIZE}")
            inference.threshold_of(models, tta, reject)
            if missing and reject is None:
                sys.stderr.write(f"fgzoo: nothing is called unknown: {missing}\n")
            predictions = inference.classify(models, list(paths), top_k, batch_size, tta, workers, precision, reject)
            files.write_predictions(output, form, paths, watch.predictions(predictions), columns)
    watch.report()
    return 1 if watch.failed == len(paths) else 0


def _form(output: Path | None, asked: Literal["csv", "jsonl"] | None, features: bool) -> Form | None:
    """What is written, `None` for a table; an output that cannot be written is refused before anything is computed."""
    if output is None or output == STREAM:
        if features and output is None and sys.stdout.isatty():
            raise UsageError("predict: --embed gives numbers by the thousand; write them by --output FILE, or into a pipe")
        return asked or (None if output is None and sys.stdout.isatty() else "csv")
    known = FEATURE_FORMS if features else PREDICTION_FORMS
    said = output.suffix.lower().removeprefix(".")
    if asked is None and said not in known:
        hint = " (features, by --embed)" if said in FEATURE_FORMS else ""
        ends = ", ".join(f".{form}" for form in known)
        raise UsageError(f"predict: --output {output}{hint}: the file's name ends in none of {ends}; - is standard output")
    if asked is not None and said in FEATURE_FORMS and said != asked:
        raise UsageError(f"predict: --output {output} and --format {asked} contradict each other; leave one away")
    if os.path.isdir(output):  # noqa: PTH112 - Path.is_dir raises
        raise UsageError(f"predict: --output {output} is a folder; give a file in it")
    return asked or cast(Form, said)
