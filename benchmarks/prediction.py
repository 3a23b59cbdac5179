"""What `predict` costs beside the bare forward pass of the same network over the same images, in CPU time on one thread.

    python benchmarks/prediction.py --write
    python benchmarks/prediction.py --backbone resnet50 --size 448 --methods rra

Three times an image: the *bare forward* pass of prepared batches; `predict` on images that are decoded already, which it resizes,
normalises, ranks and names; and `predict` on files. The last stands beside the sum of its parts done by hand: decoding and
resizing every image, and the bare forward pass. Passes alternate, so that a machine that slows down slows down all of them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import build, deliver, heading, machine, parse, table
from data_loading import draw_birds

from fgzoo import list_models
from fgzoo.data.card import DataCard
from fgzoo.data.images import decode
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.prediction.inference import predict


def trained(method: str, options: argparse.Namespace) -> FineGrainedClassifier:
    """A model with random weights that passes for a trained one."""
    model = build(method, options.backbone, options.classes, seed=options.seed).eval()
    names = [f"class {index}" for index in range(options.classes)]
    resize = round(options.size * 256 / 224)
    model.card = DataCard("folder", names, options.size, resize, "squash", "bilinear", "torchcodec", "none")
    model.trained = True
    return model


def ways(model: FineGrainedClassifier, paths: list[Path], batch_size: int) -> dict[str, Callable[[], Any]]:
    """What is timed, by name; each handles all images once."""
    decoded = [decode(path) for path in paths]
    prepared = [model.transform(image) for image in decoded]
    batches = [
        model.normalize(torch.stack(prepared[start : start + batch_size])).contiguous(memory_format=torch.channels_last)
        for start in range(0, len(prepared), batch_size)
    ]

    @torch.inference_mode()
    def forward() -> None:
        for batch in batches:
            model(batch)

    return {
        "bare forward": forward,
        "predict, decoded": lambda: list(predict([model], decoded, batch_size=batch_size)),
        "decoding and resizing": lambda: [model.transform(decode(path)) for path in paths],
        "predict, files": lambda: list(predict([model], list(paths), batch_size=batch_size)),
    }


def measure(timed: dict[str, Callable[[], Any]], images: int, repeats: int) -> dict[str, list[float]]:
    """CPU milliseconds an image of each way, for each repeat after one to warm up."""
    found: dict[str, list[float]] = {name: [] for name in timed}
    for repeat in range(repeats + 1):
        for name, run in timed.items():
            started = time.process_time()
            run()
            if repeat:
                found[name].append(1e3 * (time.process_time() - started) / images)
    return found


def row(method: str, measured: dict[str, list[float]]) -> list[str]:
    """One method as a row: medians, and the median over repeats of the two overheads."""
    bare, decoded, reading, files = measured.values()
    memory = statistics.median(ours / theirs - 1 for ours, theirs in zip(decoded, bare, strict=True))
    disk = statistics.median(ours / (one + two) - 1 for ours, one, two in zip(files, bare, reading, strict=True))
    times = [f"{statistics.median(values):.2f}" for values in measured.values()]
    return [method, *times, f"{memory:+.1%}", f"{disk:+.1%}"]


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list_models(), default=list_models())
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write results/prediction.md and .json")
    return parser


def main() -> None:
    """Measure, print, and write where that is asked for."""
    options = parse(arguments(), {"methods": ["baseline"], "backbone": "test_resnet", "size": 64, "images": 4, "repeats": 1})
    torch.set_num_threads(1)
    measured: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = draw_birds(Path(folder), options.images)
        for method in options.methods:
            measured[method] = measure(ways(trained(method, options), paths, options.batch_size), len(paths), options.repeats)
    where = machine()
    names = list(next(iter(measured.values())))
    columns = ["method", *(f"{name}, ms" for name in names), "predict, decoded, over bare", "predict, files, over its parts"]
    text = "\n\n".join([
        f"# Prediction, {options.backbone}, {options.size} pixels, batches of {options.batch_size}",
        f"CPU milliseconds an image on one thread, {options.images} synthetic birds of 500 x 375 pixels as JPEG files, random "
        f"weights, {options.classes} classes; medians of {options.repeats} repeats.",
        heading(where, torch.device("cpu"), options.seed),
        table(columns, [row(method, found) for method, found in measured.items()]),
    ]) + "\n"  # fmt: skip
    deliver(text, {"machine": where, "milliseconds": measured}, "prediction" if options.write else None)


if __name__ == "__main__":
    main()
