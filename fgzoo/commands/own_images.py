"""`fgzoo predict`, `explain` and `export`: what is done with a checkpoint; torch is imported once the arguments are known."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fgzoo.errors import UsageError

if TYPE_CHECKING:
    from fgzoo.methods.base import FineGrainedClassifier

#: Where predictions and features can be written to, by suffix.
PREDICTION_FILES = (".csv", ".jsonl")
FEATURE_FILES = (".npy", ".npz", ".csv", ".jsonl")


# ---------------------------------------------------------------------- what both take


class _Parser(argparse.ArgumentParser):
    """A parser of `fgzoo VERB` whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog.removeprefix('fgzoo ')}: {message} (see `{self.prog} --help`)")


def _parser(verb: str, description: str, epilog: str, batch_size: int) -> _Parser:
    """A checkpoint, images, and how they are read and computed."""
    parser = _Parser(prog=f"fgzoo {verb}", description=description, epilog=epilog, allow_abbrev=False)
    add = parser.add_argument
    add(
        "checkpoint",
        help="a checkpoint file, a run's folder, a name of `fgzoo list checkpoints`, or `last` or `best` of the newest run below "
        "runs/",
    )
    add(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="a file, a folder (every image below it), a quoted pattern such as 'photos/**/*.jpg', or - for a list of paths, one "
        "a line, on standard input",
    )
    add("--top-k", type=_at_least(1), default=5, metavar="K", help="classes to name, at most all of them (default: 5)")
    add(
        "--batch-size",
        type=_at_least(1),
        default=batch_size,
        metavar="N",
        help="images that pass the network at once (default: %(default)s)",
    )
    add("--num-workers", type=_at_least(0), metavar="N", help="loader processes (default: one per usable core, at most 8)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:0 or mps (default: auto)")
    add(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="a package whose classes a checkpoint may name (repeatable)",
    )
    return parser


def _at_least(low: int) -> Any:
    def integer(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"{value} is less than {low}")
        return value

    return integer


def _models(given: argparse.Namespace, device: Any, *more: str) -> list[FineGrainedClassifier]:
    from fgzoo.checkpoints.loading import load
    from fgzoo.checkpoints.run_folder import find_checkpoint

    sources = [find_checkpoint(said, Path("runs")) for said in (given.checkpoint, *more)]
    return [load(source, given.trust).to(device) for source in sources]


def _workers(given: argparse.Namespace) -> int:
    from fgzoo.data.datamodule import default_workers

    return default_workers("folder") if given.num_workers is None else int(given.num_workers)


# ---------------------------------------------------------------------- predict


def predict_command(arguments: list[str]) -> int:
    """Run `fgzoo predict`."""
    # Options may stand between the images, too.
    given = _predict_parser().parse_intermixed_args(arguments)
    _check_file(given.output, given.embed)
    if given.embed and given.also:
        raise UsageError("predict: --embed takes one checkpoint, because features of several have no common meaning")
    return predict(given)


def _predict_parser() -> _Parser:
    parser = _parser(
        "predict",
        "Classes and probabilities of images, a row each; a file that cannot be read is a row with its error.",
        "Exit status: 0, or 1 where not one image could be read. Without --output: a table on a terminal, CSV in a pipe.",
        batch_size=32,
    )
    add = parser.add_argument
    add("--also", action="append", default=[], metavar="CHECKPOINT", help="one more; probabilities are averaged (repeatable)")
    add("--output", type=Path, metavar="FILE", help="a .csv or .jsonl file; with --embed also .npy or .npz")
    add(
        "--tta",
        choices=("none", "flip", "five-crop", "ten-crop"),
        default="none",
        help="average over the image and its mirror image, over the four corners and the centre, or over those five and their "
        "mirror images (default: none)",
    )
    add("--embed", action="store_true", help="features of the backbone instead of classes; they need --output or a pipe")
    add("--precision", choices=("32-true", "bf16-mixed", "16-mixed"), default="32-true", help="default: 32-true")
    return parser


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


def predict(given: argparse.Namespace) -> int:
    """Classify images, or take their features, and write them.

    Args:
        given: The arguments of `fgzoo predict`.

    Returns:
        0, or 1 where not one image could be read.
    """
    from fgzoo.prediction import files as prediction_files
    from fgzoo.prediction import predict as prediction

    paths = prediction_files.image_paths(given.images, sys.stdin)
    models = _models(given, prediction_files.find_device(given.device), *given.also)
    how = {"batch_size": given.batch_size, "tta": given.tta, "num_workers": _workers(given), "precision": given.precision}
    with prediction_files.Watch(len(paths)) as watch:
        if given.embed:
            answers = prediction.embed(models, list(paths), **how)
            prediction_files.write_features(given.output, paths, watch.features(answers))
        else:
            columns = min(given.top_k, len(prediction.class_names(models)))
            predictions = prediction.predict(models, list(paths), given.top_k, **how)
            prediction_files.write_predictions(given.output, paths, watch.predictions(predictions), columns)
    watch.report()
    return 1 if watch.failed == len(paths) else 0


# ---------------------------------------------------------------------- explain


def explain_command(arguments: list[str]) -> int:
    """Run `fgzoo explain`."""
    given = _explain_parser().parse_intermixed_args(arguments)
    if given.output.exists() and not given.output.is_dir():
        raise UsageError(f"explain: --output {given.output} is a file; give a folder")
    return explain(given)


def _explain_parser() -> _Parser:
    parser = _parser(
        "explain",
        "Where a checkpoint looked: a page, DIR/index.html, with every image's classes, the method's maps over it and Grad-CAM "
        "for comparison; and the same maps as PNG files, a folder an image.",
        "Exit status: 0, or 1 where not one image could be read. The page is one file that needs no network.",
        batch_size=8,
    )
    add = parser.add_argument
    add("--output", type=Path, metavar="DIR", required=True, help="the folder to write to")
    add(
        "--class",
        dest="explained",
        default="predicted",
        metavar="NAME",
        help="the class that the maps explain, by name; `predicted`: each image's most probable one (default: predicted)",
    )
    add("--page-only", action="store_true", help="the page alone, without PNG files")
    return parser


def explain(given: argparse.Namespace) -> int:
    """Write the page, and the PNG files beside it.

    Args:
        given: The arguments of `fgzoo explain`.

    Returns:
        0, or 1 where not one image could be read.
    """
    from fgzoo.interpret import explanation, page, pictures
    from fgzoo.prediction import files as prediction_files

    paths = prediction_files.image_paths(given.images, sys.stdin, "explain")
    (model,) = _models(given, prediction_files.find_device(given.device, "explain"))
    explained = None if given.explained == "predicted" else given.explained
    found = explanation.explain(model, list(paths), given.top_k, explained, given.batch_size, _workers(given))
    given.output.mkdir(parents=True, exist_ok=True)
    with prediction_files.Watch(len(paths), "explain") as watch:
        counted = watch.predictions(found)
        drawn = counted if given.page_only else pictures.write_pictures(given.output, paths, counted)
        written = page.write_page(given.output / "index.html", model, paths, drawn, given.checkpoint, explained)
    watch.report()
    sys.stdout.write(f"{written}\n")
    return 1 if watch.failed == len(paths) else 0


# ---------------------------------------------------------------------- export

#: Suffix of a file by its format.
EXPORTED = {"onnx": ".onnx", "torch-export": ".pt2"}


def export_command(arguments: list[str]) -> int:
    """Run `fgzoo export`: the file's path goes to standard output, how it compares with torch to standard error."""
    return export(_export_parser().parse_args(arguments))


def _export_parser() -> _Parser:
    parser = _Parser(
        prog="fgzoo export",
        description="A checkpoint as a file that runs without fgzoo. It is written when it answers as torch does: on random "
        "images, on synthetic birds and on --images.",
        epilog="The file says itself how images are prepared and which classes it knows, as JSON in its metadata.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "checkpoint",
        help="a checkpoint file, a run's folder, a name of `fgzoo list checkpoints`, or `last` or `best` of the newest run below "
        "runs/",
    )
    add("--format", choices=tuple(EXPORTED), default="onnx", help="ONNX, or a program of torch.export (default: onnx)")
    add(
        "--output",
        type=Path,
        metavar="FILE",
        help="an .onnx or .pt2 file (default: the checkpoint's name, in the working folder)",
    )
    add(
        "--images",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="images of one's own on which the file must answer as torch does, too: files, folders and patterns as for predict; "
        "some dozens tell what there is to tell",
    )
    add(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="a package whose classes the checkpoint may name (repeatable)",
    )
    return parser


def export(given: argparse.Namespace) -> int:
    """Write the file.

    Args:
        given: The arguments of `fgzoo export`.

    Returns:
        0.
    """
    from fgzoo.checkpoints.loading import load
    from fgzoo.checkpoints.run_folder import find_checkpoint
    from fgzoo.export import exporting
    from fgzoo.prediction import files as prediction_files

    checkpoint = find_checkpoint(given.checkpoint, Path("runs"))
    name = exporting.checkpoint_name(given.checkpoint, checkpoint)
    output = given.output or Path(f"{name}{EXPORTED[given.format]}")
    exporting.check_request(output, given.format)
    images = prediction_files.image_paths(given.images, sys.stdin, "export") if given.images else []
    about, outputs = exporting.export(load(checkpoint, given.trust), output, given.format, name, list(images))
    size = f"{output.stat().st_size / 1e6:.1f} MB" + (f", opset {about['opset']}" if about["opset"] else "")
    sys.stderr.write(f"fgzoo: {size}; {exporting.summary(outputs)}\n")
    sys.stdout.write(f"{output}\n")
    return 0
