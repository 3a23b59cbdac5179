"""`fgzoo export`; torch is imported once the arguments are known."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse.typing import PositiveInt

from fgzoo.checkpoints.run_folder import find_checkpoint
from fgzoo.commands.models import RUNS
from fgzoo.export import SUFFIXES, Format, Quantization


def export(
    checkpoint: str,
    *,
    format_: Format = "onnx",
    output: Path | None = None,
    images: Sequence[str] = (),
    quantize: Quantization = "none",
    force: bool = False,
    opset: PositiveInt | None = None,
    size: PositiveInt | None = None,
    trust: list[str] = [],  # noqa: B006 - it is read only
) -> int:
    """A checkpoint as a file that runs without fgzoo.

    It is written when it answers as torch does: on random images, on synthetic birds and on --images. The file says itself how
    images are prepared and which classes it knows, as JSON in its metadata. Its path goes to standard output, how it compares
    with torch to standard error.

    Args:
        checkpoint: A checkpoint file, a run's folder, a name of `fgzoo list checkpoints`, hf://OWNER/NAME, or `last` or `best` of
            the newest run below runs/.
        format_: ONNX, OpenVINO (an .xml file and one of weights beside it), or a program of torch.export.
        output: An .onnx, .xml or .pt2 file; without it the checkpoint's name, in the working folder.
        images: Images of one's own on which the file must answer as torch does, too: files, folders and patterns as for predict;
            some dozens tell what there is to tell. With --quantize accuracy is measured on them.
        quantize: int8: weights and layers in eight bits, calibrated on training images, which are found as the run's config says.
            The change of accuracy is measured on images held out from training, or on --images (in folders of their classes'
            names), and is at most a point.
        force: Write a quantised file whatever it costs.
        opset: Version of ONNX's operators, 18 to 23; without it the exporter's own choice.
        size: Side of the input in pixels, for the checkpoint's own; images are resized in proportion.
        trust: A package whose classes the checkpoint may name (repeatable).

    Returns:
        The exit status.
    """
    from fgzoo.checkpoints.loading import load
    from fgzoo.export import exporting, quantization
    from fgzoo.prediction.files import image_paths

    path = find_checkpoint(checkpoint, RUNS)
    name = exporting.checkpoint_name(checkpoint, path)
    output = output or Path(f"{name}{SUFFIXES[format_]}")
    exporting.check_request(output, format_, quantize != "none", opset)
    shown = image_paths(images, sys.stdin, "export") if images else []
    model = load(path, trust)
    if size is not None:
        model = model.at_size(size)
    calibrated = quantization.quantization_images(model, path, shown) if quantize == "int8" else None
    compared = shown if calibrated is None else quantization.thinned(shown, exporting.COMPARED)
    about, outputs = exporting.export(model, output, format_, name, list(compared), opset, calibrated, force)
    written = [output, *([output.with_suffix(".bin")] if format_ == "openvino" else [])]
    megabytes = sum(file.stat().st_size for file in written) / 1e6
    said = [f"{megabytes:.1f} MB" + (f", opset {about['opset']}" if about["opset"] else ""), exporting.summary(outputs)]
    said += [str(quantization.Loss(**about["int8"]))] if calibrated else []
    sys.stderr.write(f"fgzoo: {'; '.join(said)}\n")
    sys.stdout.write(f"{output}\n")
    return 0
