"""Images per second and core of the image pipeline, beside the usual Pillow recipe.

Both turn a JPEG file into a crop of 448 pixels out of 600 (or what --image-size and --resize say). The usual recipe: Pillow
decodes, Pillow resizes, a random crop, a flip, floats in [0, 1], normalisation. Ours: torchcodec (or Pillow) decodes, torchvision
resizes uint8, a random crop; flip and normalisation are left to the device. From the cache: what is decoded and resized already,
and a random crop. One process, one thread, medians over repeats.

    python benchmarks/data_loading.py                    # on synthetic birds, drawn at CUB's usual size
    python benchmarks/data_loading.py --images cub/images
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from fgzoo.data.cache import ImageCache
from fgzoo.data.images import decode
from fgzoo.data.records import Record
from fgzoo.data.synthetic import Birds, SyntheticBirds
from fgzoo.data.transforms import augmentation_transform, evaluation_transform, resize_transform, training_transform
from fgzoo.training.environment import environment

RESULTS = Path(__file__).parent / "results"


def pillow_recipe(size: int, resize: int) -> Callable[[Path], Tensor]:
    """What most repositories do."""
    transform = v2.Compose(
        [
            v2.Resize([resize, resize]),
            v2.RandomCrop(size),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    return lambda path: transform(Image.open(path).convert("RGB"))


def cached(paths: list[Path], folder: Path, size: int, resize: int) -> Callable[[Path], Tensor]:
    """Our pipeline over a cache of these files, which is filled here."""
    records = {path: Record(str(path), 0, path) for path in paths}

    def read(record: Record) -> Tensor:
        assert record.path is not None
        return decode(record.path)

    cache = ImageCache(folder, "benchmark", {}, read, resize_transform(resize, "squash"), resize, limit_gb=64)
    cache.prepare(list(records.values()))
    augmentation = augmentation_transform("standard", size)
    return lambda path: augmentation(cache.read(records[path]))


def stages(paths: list[Path], folder: Path, size: int, resize: int) -> dict[str, Callable[[Path], Tensor]]:
    """What is measured, by name."""
    transform = training_transform("standard", size, resize, "squash")
    return {
        "Pillow recipe": pillow_recipe(size, resize),
        "ours": lambda path: transform(decode(path)),
        "ours, from the cache": cached(paths, folder, size, resize),
        "ours, Pillow decoder": lambda path: transform(decode(path, "pillow")),
        "decode alone, torchcodec": lambda path: decode(path, "torchcodec"),
        "decode alone, Pillow": lambda path: decode(path, "pillow"),
    }


def rates(function: Callable[[Path], Tensor], paths: list[Path], repeats: int) -> list[float]:
    """Images per second of each pass over the files, after one pass to warm up."""
    found = []
    for repeat in range(repeats + 1):
        started = time.process_time()
        for path in paths:
            function(path)
        if repeat:
            found.append(len(paths) / (time.process_time() - started))
    return found


def worst_difference(paths: list[Path], size: int, resize: int) -> tuple[int, float]:
    """Largest and mean difference in levels between our evaluation crop and the same done by Pillow."""
    ours = evaluation_transform(size, resize, "squash")
    theirs = v2.Compose([v2.Resize([resize, resize]), v2.CenterCrop(size), v2.PILToTensor()])
    largest, means = 0, []
    for path in paths:
        difference = (ours(decode(path)).int() - theirs(Image.open(path).convert("RGB")).int()).abs()
        largest = max(largest, int(difference.max()))
        means.append(float(difference.float().mean()))
    return largest, statistics.mean(means)


def draw_birds(folder: Path, count: int) -> list[Path]:
    """Synthetic birds as JPEG files of 500 x 375 pixels, quality 90, CUB's usual size."""
    birds = SyntheticBirds(Birds(size=500))
    paths = []
    for record in birds.listing().train[:count]:
        path = folder / f"{record.name.replace('/', '_')}.jpg"
        picture = birds.read(record).permute(1, 2, 0).numpy()
        Image.fromarray(picture).crop((0, 62, 500, 437)).save(path, quality=90)
        paths.append(path)
    return paths


def main() -> None:
    """Measure, print, and write results/data_loading.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of JPEG files; by default synthetic birds")
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=448)
    parser.add_argument("--resize", type=int, default=600)
    parser.add_argument("--write", action="store_true", help="write the results beside this script")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = sorted(options.images.rglob("*.jpg")) if options.images else draw_birds(Path(folder), options.count)
        paths = found[:: max(1, len(found) // options.count)][: options.count]
        widths, heights = zip(*(Image.open(path).size for path in paths), strict=True)
        measured = {
            name: rates(function, paths, options.repeats)
            for name, function in stages(paths, Path(folder), options.image_size, options.resize).items()
        }
        largest, mean = worst_difference(paths, options.image_size, options.resize)

    base = statistics.median(measured["Pillow recipe"])
    lines = ["| stage | images/s on one core | spread | against the Pillow recipe |", "|---|---|---|---|"]
    for name, values in measured.items():
        middle = statistics.median(values)
        lines.append(f"| {name} | {middle:.0f} | {min(values):.0f}-{max(values):.0f} | {middle / base:.2f}x |")
    machine = {key: value for key, value in environment().items() if key != "command"}  # it may name folders of this machine
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "torchcodec", "pillow"))
    source = "photographs" if options.images else "synthetic birds"
    text = "\n".join(
        [
            f"# Data pipeline, {options.image_size} of {options.resize} pixels",
            "",
            f"{len(paths)} {source}, median {statistics.median(widths):.0f} x {statistics.median(heights):.0f} pixels; "
            f"{options.repeats} repeats, one thread, CPU time.",
            "",
            f"{machine['processor']}, {machine['cores']} cores; Python {platform.python_version()}, {packages}; "
            f"fgzoo {machine['git']}.",
            "",
            *lines,
            "",
            f"Evaluation crops differ from Pillow's by at most {largest} levels of 255, {mean:.3f} on average.",
            "",
        ]
    )
    sys.stdout.write(text)
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "data_loading.md").write_text(text)
        content = {"measured": measured, "largest_difference": largest, "mean_difference": mean, "machine": machine}
        (RESULTS / "data_loading.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
