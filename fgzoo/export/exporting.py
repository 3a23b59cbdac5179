"""Trained networks as files that run without fgzoo: ONNX, OpenVINO, and programs of torch.export.

The graph takes `images`, (B, 3, S, S) float32 RGB, normalised as in `forward`, with any B and one size S; how an image file
becomes that stands in the file beside the weights (see [description][fgzoo.export.graph.description]). It answers as the network
does in evaluation mode, second looks at crops included, with `logits` and, where the method has maps, `attention`.

A file is moved into place only when what lies on the disk answers as torch does, see [compare][fgzoo.export.parity.compare];
one in eight bits when that costs little accuracy, see [fgzoo.export.quantization][].
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import torch

from fgzoo.checkpoints.hub import SCHEME, hub_file
from fgzoo.checkpoints.run_folder import BEST, run_of
from fgzoo.errors import CheckpointError, ExportError, UsageError
from fgzoo.export import SUFFIXES, Format
from fgzoo.export.graph import (
    description,
    evaluation_network,
    onnx_bytes,
    onnx_file,
    openvino_files,
    outputs_of,
    program_bytes,
    trace,
)
from fgzoo.export.parity import Parity, Run, compare, comparison_images, prepared, read
from fgzoo.export.quantization import INT8_LIMITS, QuantizationImages, check_loss, measure, quantized
from fgzoo.files import prepare_folder, user_path
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.prediction.inference import ImageLike, listed, required_card

#: What a format needs; torch.export needs nothing more than torch.
PACKAGES: dict[Format, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "onnxruntime", "openvino"),
    "torch-export": (),
}
#: The versions of ONNX's operators that can be asked for: what torch's exporter writes.
OPSETS = range(18, 24)
#: On so many given images a file that is then quantised is compared with torch, which takes six passes of each.
COMPARED = 64
#: ONNX files are protocol buffers, which end at 2 GiB; the graph itself takes some of them.
LARGEST_ONNX = 2**31 - 2**24


def export(
    model: FineGrainedClassifier,
    path: str | Path,
    form: Format = "onnx",
    name: str | None = None,
    images: ImageLike | Sequence[ImageLike] | None = None,
    opset: int | None = None,
    quantization: QuantizationImages | None = None,
    force: bool = False,
) -> tuple[dict[str, Any], list[Parity]]:
    """Write a trained model as a file that runs without fgzoo.

    It is compared with torch on random images, some of them glaring, on synthetic birds, and on images of one's own.

    Args:
        model: The model; it stays as it is, on its device.
        path: The file, `.onnx`, `.xml` or `.pt2`; one that is there is replaced when the new one is whole and answers as torch
            does.
        form: `onnx`, `openvino` or `torch-export`.
        name: What the file calls its weights; by default its own name.
        images: Images of one's own: paths, PIL images, uint8 tensors (3, H, W), or a list of them. Each passes the network six
            times; some dozens tell what there is to tell.
        opset: Version of ONNX's operators; by default the exporter's own choice.
        quantization: Images to quantise the file by, see [fgzoo.export.quantization][]; what that costs stands in its description
            under `int8`.
        force: Write a quantised file whatever it costs.

    Returns:
        What the file says of itself, and how each of its outputs, before it is quantised, compares with torch's on each kind of
        images.

    Raises:
        UntrainedError: The model has never been trained.
        CheckpointError: Weights are not finite, or do not know their classes.
        ExportError: The network cannot be traced, the file answers otherwise, loses too much accuracy, or cannot be written.
        UsageError: The file's name or a package that is missing.
        DataError: An image of one's own cannot be read.
    """
    path = user_path(path)
    check_request(path, form, quantization is not None, opset)
    size = required_card(model, "export").image_size
    _check_weights(model, form)
    shown = comparison_images(model, [] if images is None else listed(images))
    network = evaluation_network(model)
    about = description(model, name or path.stem)
    with _quietly():
        program = trace(network, size)
        about["outputs"] = outputs_of(program)
        content = program_bytes(program, about) if form == "torch-export" else onnx_bytes(program, about, opset)
        try:
            with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
                made = Path(folder, path.name)
                write(content, about, made, form)
                run = read(made, form)
                parity = [output for kind, those in shown.items() for output in compare(network, run, those, kind)]
                if quantization is not None:
                    _quantize(model, content, about, made, form, run, quantization, force)
                for file in made.parent.iterdir():
                    file.replace(path.parent / file.name)
        except OSError as error:
            raise ExportError(
                f"export: {path} cannot be written ({error.strerror or error}); what was there before is as it was"
            ) from error
    return about, parity


def write(content: bytes, about: dict[str, Any], path: Path, form: Format) -> None:
    """A file of what was made of a network, with its description; `content` is a program's (torch.export) or an ONNX file's."""
    if form == "torch-export":
        path.write_bytes(content)
    else:
        (openvino_files if form == "openvino" else onnx_file)(content, about, path)


def _quantize(
    model: FineGrainedClassifier,
    content: bytes,
    about: dict[str, Any],
    path: Path,
    form: Format,
    run: Run,
    images: QuantizationImages,
    force: bool,
) -> None:
    """Put an eight-bit file in the place of a float one, `run`, and what it costs into its description."""
    eight = quantized(content, prepared(model, images.calibration))
    about |= INT8_LIMITS[form]
    write(eight, about, path, form)
    measured = prepared(model, images.measured)
    loss = measure(run, read(path, form), measured, images.targets, images.kind, about["threshold"])
    check_loss(loss, force)
    about["int8"] = loss._asdict()
    write(eight, about, path, form)


def summary(outputs: Sequence[Parity]) -> str:
    """One line: what was compared on, each output where it comes nearest to its limit, and wherever images are unsteady."""
    worst = {output.output: output for output in sorted(outputs, key=lambda output: output.difference / output.allowed)}
    told = [str(output) for output in outputs if output.unsteady or output is worst[output.output]]
    shown = dict.fromkeys(f"{output.images} {output.kind}" for output in outputs)
    return f"against torch on {_in_words(shown)}: {'; '.join(told)}"


def check_request(path: Path, form: Format, quantize: bool = False, opset: int | None = None) -> None:
    """Refuse a file that cannot be written or has another suffix, a form whose packages are missing, and an unknown opset.

    Raises:
        UsageError: Something of it does not fit, or the file's folder cannot be made or written to.
    """
    if form not in get_args(Format):
        raise UsageError(f"export: format '{form}' is none of {', '.join(get_args(Format))}")
    if path.suffix != SUFFIXES[form]:  # OpenVINO takes no .XML
        raise UsageError(f"export: {path} must end with {SUFFIXES[form]}, by which programs know a file of format {form}")
    if path.is_dir():
        raise UsageError(f"export: {path} is a folder; give a file in it")
    if quantize and form == "torch-export":
        raise UsageError("export: --quantize int8 goes by onnxruntime; take --format onnx or openvino")
    if opset is not None and opset not in OPSETS:
        raise UsageError(f"export: opset {opset}; from {OPSETS[0]} to {OPSETS[-1]}")
    missing = [package for package in PACKAGES[form] if importlib.util.find_spec(package) is None]
    if missing:
        raise UsageError(
            f"export: {_in_words(missing)} not installed; pip install 'fgzoo[export]', or take --format torch-export"
        )
    prepare_folder(path.parent, "export")


def _check_weights(model: FineGrainedClassifier, form: Format) -> None:
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(f"export: {name} holds a value that is no finite number; these weights are broken")
    weights = sum(value.nbytes for value in model.network.state_dict().values())
    if form != "torch-export" and weights > LARGEST_ONNX:
        raise ExportError(
            f"export: {weights / 2**30:.1f} GiB of weights, and an ONNX file holds less than 2; take --format torch-export"
        )


def checkpoint_name(said: str, checkpoint: Path) -> str:
    """What weights are called, and by default the file they are exported to.

    Args:
        said: What the command line named them by.
        checkpoint: The file that was meant.

    Returns:
        A run's data, method and number (`cub-rra-000`, the best checkpoint's with `-best`), a name of the zoo or of the hub's
        repository, or the file's own name.
    """
    run = run_of(checkpoint)
    if run is not None:
        parts = [run.parent.name, run.name] if run.name.isdigit() else [run.name]
        return "-".join([*parts, *(["best"] if checkpoint.name == BEST.name else [])])
    if said.startswith(SCHEME):
        return hub_file(said).repository.partition("/")[2]
    return checkpoint.stem if user_path(said).exists() else said


@contextmanager
def _quietly() -> Iterator[None]:
    """The exporters' notes to their own authors stay away."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _in_words(things: Any) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *most, last = map(str, things)
    return f"{', '.join(most)} and {last}" if most else last
