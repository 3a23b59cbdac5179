"""What exported files of a classifier weigh, take and know: in single precision and in eight bits, by onnxruntime and OpenVINO.

Accuracy is that of test images, spread evenly over the classes; time is CPU time of an image at a time on one thread, the files
taking turns. Training images calibrate.

    python benchmarks/exports.py rra_mobilenetv2_cub50 --root PATH --write exports
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import common
import torch
from common import Row

from fgzoo.checkpoints.loading import load
from fgzoo.checkpoints.run_folder import resolve
from fgzoo.export import SUFFIXES, Format
from fgzoo.export.exporting import write
from fgzoo.export.graph import description, evaluation_network, onnx_bytes, outputs_of, trace
from fgzoo.export.parity import Run, prepared, read
from fgzoo.export.quantization import INT8_LIMITS, quantization_images, quantized, thinned
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.prediction.inference import required_card

#: What reads which format.
RUNTIMES: dict[str, Format] = {"onnxruntime": "onnx", "OpenVINO": "openvino"}


def exports(
    checkpoints: list[str], *, root: Path, images: int = 500, turns: int = 15, block: int = 10, write: str | None = None
) -> None:
    """Compare the files that checkpoints are exported to.

    Args:
        checkpoints: Names of the zoo, or files.
        root: The folder of their data set.
        images: Test images that accuracy is measured on, at most.
        turns: Blocks that each file is timed in.
        block: Images a block.
        write: Write results/NAME.md and .csv.
    """
    torch.set_num_threads(1)
    os.environ["FGZOO_DATA"] = str(root)
    rows = [row for checkpoint in checkpoints for row in compared(checkpoint, images, turns, block)]
    about = (
        f"At most {images} test images; CPU milliseconds an image, medians of {turns} blocks of {block} images in turns, with "
        "the smallest and the largest; one thread. *otherwise*: images to which a file gives another class than torch."
    )
    common.write_report("Exported files", f"{about}\n\n{common.markdown_table(rows)}", rows, write)


@torch.no_grad()
def compared(checkpoint: str, most: int, turns: int, block: int) -> list[Row]:
    """A row for torch, and for every file."""
    path = resolve(checkpoint)
    model = load(path)
    found = quantization_images(model, path, [])
    assert found.targets is not None
    targets = torch.tensor(thinned(found.targets, most))
    with tempfile.TemporaryDirectory() as folder:
        runs, sizes = files(model, prepared(model, found.calibration), Path(folder))
        named: dict[str, list[torch.Tensor]] = {what: [] for what in runs}
        shown = []
        for batch in prepared(model, thinned(found.measured, most)):
            shown += batch.split(1)[:1]
            for what, run in runs.items():
                named[what].append(run(batch)["logits"].argmax(dim=1))
        took = timed(runs, shown, turns, block)
    classes = {what: torch.cat(answers) for what, answers in named.items()}
    return [
        {
            "checkpoint": checkpoint,
            "pixels": required_card(model).image_size,
            "file": what,
            "MB": f"{sizes.get(what, path.stat().st_size) / 1e6:.1f}",
            "CPU ms": common.median_and_range(took[what]),
            "top-1 %": f"{100 * float((answers == targets).float().mean()):.2f}",
            "images": len(targets),
            "otherwise": int((answers != classes["torch"]).sum()),
        }
        for what, answers in classes.items()
    ]


def files(
    model: FineGrainedClassifier, calibration: Iterator[torch.Tensor], folder: Path
) -> tuple[dict[str, Run], dict[str, int]]:
    """What answers, by its name, and the files' sizes in bytes."""
    network = evaluation_network(model)
    program = trace(network, required_card(model).image_size)
    about = description(model, "benchmark")
    about["outputs"] = outputs_of(program)
    content = onnx_bytes(program, about)
    runs, sizes = {"torch": network}, {}
    for bits, bytes_ in (("", content), (", int8", quantized(content, calibration))):
        for name, form in RUNTIMES.items():
            what, path = f"{name}{bits}", folder / f"{name}{len(bits)}{SUFFIXES[form]}"
            write(bytes_, about | (INT8_LIMITS[form] if bits else {}), path, form)
            runs[what] = read(path, form)
            sizes[what] = sum(file.stat().st_size for file in folder.glob(f"{path.stem}.*"))
    return runs, sizes


def timed(runs: dict[str, Run], images: Sequence[torch.Tensor], turns: int, block: int) -> dict[str, list[float]]:
    """CPU milliseconds an image of every block, after one that does not count."""
    took: dict[str, list[float]] = {what: [] for what in runs}
    for turn in range(turns + 1):
        for what, run in runs.items():
            before = time.process_time()
            for place in range(block):
                run(images[(turn * block + place) % len(images)])
            took[what] += [1e3 * (time.process_time() - before) / block] if turn else []
    return took


if __name__ == "__main__":
    sys.exit(common.main(exports))
