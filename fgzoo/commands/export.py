"""`fgzoo export`; torch is imported once the arguments are known."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from fgzoo.checkpoints.run_folder import find_checkpoint
from fgzoo.commands.models import RUNS
from fgzoo.export import SUFFIXES, Format


def export(
    checkpoint: str,
    *,
    format_: Format = "onnx",
    output: Path | None = None,
    images: Sequence[str] = (),
    trust: list[str] = [],  # noqa: B006 - it is read only
) -> int:
    """A checkpoint as a file that runs without fgzoo.

    It is written when it answers as torch does: on random images, on synthetic birds and on --images. The file says itself how
    images are prepared and which classes it knows, as JSON in its metadata. Its path goes to standard output, how it compares
    with torch to standard error.

    Args:
        checkpoint: A checkpoint file, a run's folder, a name of `fgzoo list checkpoints`, hf://OWNER/NAME, or `last` or `best` of
            the newest run below runs/.
        format_: ONNX, or a program of torch.export.
        output: An .onnx or .pt2 file; without it the checkpoint's name, in the working folder.
        images: Images of one's own on which the file must answer as torch does, too: files, folders and patterns as for predict;
            some dozens tell what there is to tell.
        trust: A package whose classes the checkpoint may name (repeatable).

    Returns:
        The exit status.
    """
    from fgzoo.checkpoints.loading import load
    from fgzoo.export import exporting
    from fgzoo.prediction.files import image_paths

    path = find_checkpoint(checkpoint, RUNS)
    name = exporting.checkpoint_name(checkpoint, path)
    output = output or Path(f"{name}{SUFFIXES[format_]}")
    exporting.check_request(output, format_)
    shown = image_paths(images, sys.stdin, "export") if images else []
    about, outputs = exporting.export(load(path, trust), output, format_, name, list(shown))
    size = f"{output.stat().st_size / 1e6:.1f} MB" + (f", opset {about['opset']}" if about["opset"] else "")
    sys.stderr.write(f"fgzoo: {size}; {exporting.summary(outputs)}\n")
    sys.stdout.write(f"{output}\n")
    return 0
