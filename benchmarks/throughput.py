"""Training and inference speed and peak memory of every method, beside its bare backbone.

A step is a real one: a Lightning trainer drives the model with the settings of its recipe (loss, backward pass, clipping,
optimiser and schedule; several steps a batch where the method takes them) over one batch of uint8 images that lies in the
device's memory. Every case runs in a process of its own. With --end-to-end the same step is then fed by the data module from JPEG
files.

    python benchmarks/throughput.py                                      # all methods, paper backbones, 448 pixels
    python benchmarks/throughput.py --methods baseline --precision bf16-mixed --compile both --batch 128 --roofline --write
    python benchmarks/throughput.py --methods rra --end-to-end
    python benchmarks/throughput.py --quick                              # does it work? within a minute on a CPU
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import traceback
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from common import (
    GIB,
    Protocol,
    Repeated,
    StepClock,
    build,
    cell,
    deliver,
    forward_operations,
    heading,
    keep_to_stage,
    machine,
    make_trainer,
    paper_backbone,
    paper_batch,
    parse,
    random_batch,
    spread,
    table,
    timed,
    training_operations,
)
from data_loading import draw_birds
from torch import Tensor, nn

from fgzoo import FGVCDataModule, FineGrainedClassifier, list_models
from fgzoo.nn.backbone import Backbone
from fgzoo.training.command import default_precision, quieten

QUICK = {
    "backbone": "test_resnet", "size": 64, "batch": 2, "classes": 10, "precision": ["32-true"], "warmup": 1, "steps": 2,
    "repeats": 2, "in_process": True, "files": 4, "workers": 0, "threads": 1,
}  # fmt: skip
WORK_EXPLAINED = (
    "Work: the multiply-adds of a training image's forward passes, heads included, over those of a forward pass of the bare",
    "backbone. Overhead: the step's time over that of as much work of the bare backbone (forward, backward, a step of",
    "SGD; forward alone for what builds no graph). With heads: over the passes of the network's own backbones alone, as they are",
    "cut, so that all that is added to them counts.",
)
ROOFLINE_EXPLAINED = (
    "Roofline: images/s if the bare backbone's training step took no longer than moving its activations at the bandwidth of a",
    "copy within the device's memory (`moved_elements` in the script says what counts), and the share of it that the bare step",
    "reaches.",
)
#: Bytes copied to measure the bandwidth of a device's memory.
COPIED = {"cuda": 2**30, "cpu": 2**27}


@dataclass(frozen=True)
class Case:
    """What is measured in one process; `root` is where end-to-end training reads its files."""

    method: str
    stage: int
    stage_name: str
    backbone: str
    size: int
    batch: int
    precision: str
    compiled: bool
    classes: int
    device: str
    protocol: Protocol
    seed: int
    threads: int | None
    cudnn_benchmark: bool
    roofline: bool
    data: str
    root: str | None
    workers: int | None
    cache: str


# ---------------------------------------------------------------------- a method


def measure(case: Case) -> dict[str, Any]:
    """Everything about one case: seconds, bytes and work by name."""
    if case.threads:
        torch.set_num_threads(case.threads)
    device = torch.device(case.device)
    model = build(case.method, case.backbone, case.classes, case.compiled, case.seed)
    others = keep_to_stage(model, case.stage)
    batch = random_batch(case.batch, case.size, case.classes, device, case.seed)
    batches = case.protocol.batches + others
    trainer, clock = train(case, model, batches, Repeated(batch, batches))
    found: dict[str, Any] = {"step_s": clock.seconds(), "peak_gib": clock.peak / GIB}
    found["inference_s"] = infer(case, model, trainer, batch[0])
    if case.root is not None:
        found["fed_s"] = train(case, model, batches, data_of(case))[1].seconds()
    model.cpu()
    return found | beside_backbone(case, trainer, batch[0])


def train(case: Case, model: FineGrainedClassifier, batches: int, data: Any) -> tuple[L.Trainer, StepClock]:
    """A short run under the clock."""
    clock = StepClock(case.protocol, skipped=case.stage)
    device = torch.device(case.device)
    trainer = make_trainer(device, case.precision, batches, clock, case.seed, benchmark=case.cudnn_benchmark)
    trainer.fit(model.train(), data)
    return trainer, clock


def infer(case: Case, model: FineGrainedClassifier, trainer: L.Trainer, images: Tensor) -> list[float]:
    """Seconds of classifying a batch, normalisation included."""
    # Outside of inference mode, which would make its parameters useless for training.
    model.to(images.device).eval()

    def classify() -> None:
        with torch.inference_mode(), trainer.precision_plugin.forward_context():
            model(model.normalize(images).contiguous(memory_format=torch.channels_last))

    return timed(classify, images.device, case.protocol)


def data_of(case: Case) -> FGVCDataModule:
    """The data module over the files that were drawn, or over the data set that was given."""
    assert case.root is not None
    table_of_files = Path(case.root) / "images.csv"
    return FGVCDataModule(
        case.data,
        case.root,
        image_size=case.size,
        batch_size=case.batch,
        num_workers=case.workers,
        cache=case.cache,
        seed=case.seed,
        csv=table_of_files if case.data == "folder" and table_of_files.is_file() else None,
    )


def draw_files(folder: Path, drawn: int, wanted: int) -> None:
    """A folder with `wanted` JPEG files of 500 x 375 pixels, `drawn` different ones, and the table that lists them."""
    paths = draw_birds(folder, drawn)
    for number in range(len(paths), wanted):
        paths.append(folder / f"{number:06d}.jpg")
        paths[-1].hardlink_to(paths[number % drawn])
    lines = [f"{path.name},class {number % 2},train" for number, path in enumerate(paths)]
    (folder / "images.csv").write_text("\n".join(["path,label,split", *lines]) + "\n")


# ---------------------------------------------------------------------- the bare backbone


class Work(NamedTuple):
    """Forward passes that train one image, in multiply-adds of a bare pass.

    Attributes:
        whole: All multiply-adds, heads included, over those of the method's backbone, uncut.
        whole_untrained: Those of them in backbones that build no graph.
        own: For each backbone in the network, as it is cut there: its passes with, and without, a graph.
    """

    whole: float
    whole_untrained: float
    own: dict[str, tuple[float, float]]


def count_work(model: FineGrainedClassifier, stage: int, images: Tensor) -> Work:
    """Count multiply-adds of the forward passes of a training batch.

    Args:
        model: An uncompiled model, where the images are.
        stage: The stage it trains in.
        images: (B, 3, H, W), normalised.

    Returns:
        The work.
    """
    found = training_operations(model, stage, images)
    bare = forward_operations(model.make_backbone().to(images.device), images)
    alone = {name: forward_operations(model.network.get_submodule(name), images) for name in found.inside}
    own = {name: (trained / alone[name], untrained / alone[name]) for name, (trained, untrained) in found.inside.items()}
    return Work(found.total / bare, sum(untrained for _, untrained in found.inside.values()) / bare, own)


def beside_backbone(case: Case, trainer: L.Trainer, images: Tensor) -> dict[str, Any]:
    """Work of the method, and the bare backbones' seconds for as many."""
    model = build(case.method, case.backbone, case.classes, seed=case.seed).to(images.device)
    images = model.normalize(images).contiguous(memory_format=torch.channels_last)
    work = count_work(model, case.stage, images[:2])
    seconds: dict[tuple[str, int, bool], list[float]] = {}

    def bare(backbone: Backbone, trained: float, untrained: float) -> float:
        total = 0.0
        for count, learns in ((trained, True), (untrained, False)):
            key = (backbone.name, len(backbone.levels), learns)
            if count and key not in seconds:
                seconds[key] = time_backbone(case, trainer, backbone, images, learns)
            total += count * spread(seconds[key]).median if count else 0.0
        return total

    whole = model.make_backbone().to(images.device, memory_format=torch.channels_last)
    found: dict[str, Any] = {"work": work._asdict(), "whole_s": bare(whole, 1, 0)}
    found["bare_s"] = bare(whole, work.whole - work.whole_untrained, work.whole_untrained)
    found["own_s"] = sum(bare(model.network.get_submodule(name), *counts) for name, counts in work.own.items())
    found["backbones_s"] = {f"{name}, {depth} levels, {'step' if learns else 'forward'}": list(times)
                            for (name, depth, learns), times in seconds.items()}  # fmt: skip
    if case.roofline:
        found["roofline"] = roofline(case, whole, images, found["whole_s"])
    return found


def time_backbone(case: Case, trainer: L.Trainer, backbone: Backbone, images: Tensor, learns: bool) -> list[float]:
    """Seconds of a bare pass: forward, backward and a step of SGD with momentum; without learning the forward pass alone."""
    backbone.train(learns)
    backbone.frozen = not learns
    if case.compiled:
        backbone.compile()
    optimizer = torch.optim.SGD(backbone.parameters(), lr=1e-6, momentum=0.9)

    def step() -> None:
        with trainer.precision_plugin.forward_context():
            loss = backbone(images)[-1].float().mean()
        if learns:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return timed(step, images.device, case.protocol)


# ---------------------------------------------------------------------- the memory's roofline


def roofline(case: Case, backbone: Backbone, images: Tensor, step: float) -> dict[str, float]:
    """How near the backbone's training step comes to what the memory's bandwidth allows."""
    moved = moved_elements(backbone, images[:2]) * (4 if case.precision == "32-true" else 2)
    bandwidth = copy_bandwidth(images.device)
    return {
        "bytes_per_image": moved,
        "bandwidth": bandwidth,
        "images_per_s": bandwidth / moved,
        "share": len(images) / step * moved / bandwidth,
    }


@torch.no_grad()
def moved_elements(backbone: nn.Module, images: Tensor) -> float:
    """Elements of activations that training on one image writes and reads, if all that can be fused is.

    A convolution or linear layer reads its input twice (forward; gradient of the weights) and writes its input's gradient; it
    writes its output once and reads its output's gradient twice. A batch-norm, with the activation behind it, goes over its map
    eight times: forward it reads it twice (statistics, result) and writes the result; backward it reads map and gradient twice
    each (sums, result) and writes a gradient. Activations elsewhere, pools and additions are taken for fused, weights and
    optimiser for small: none of them counts. Attention is not counted either, so this is for convolutional networks.
    """
    moved = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal moved
        moved += 8 * output.numel() if isinstance(module, nn.BatchNorm2d) else 3 * (inputs[0].numel() + output.numel())

    counted = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
    handles = [module.register_forward_hook(add) for module in backbone.modules() if isinstance(module, counted)]
    backbone.forward(images)  # the eager one, where it is compiled
    for handle in handles:
        handle.remove()
    return moved / len(images)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that a copy within the device's memory reads and writes: the best of several."""
    source = torch.ones(COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * len(source) / min(timed(lambda: target.copy_(source), device, Protocol(3, 5, 5)))


# ---------------------------------------------------------------------- cases and rows


def attempt(case: Case) -> dict[str, Any]:
    """Measure; what fails is said in one line under `error`."""
    try:
        return measure(case)
    except Exception as error:  # noqa: BLE001 - whatever a case fails of, the others go on
        traceback.print_exc()
        first = str(error).strip().partition("\n")[0]
        return {"error": cell(f"{type(error).__name__}: {first}")}
    finally:
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()


def attempt_apart(case: Case) -> dict[str, Any]:
    """The same in a process of its own, whose memory and compiled code end with it."""
    command = [sys.executable, __file__, "--case", json.dumps(asdict(case))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return {"error": f"the process ended with status {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def cases(options: argparse.Namespace) -> list[Case]:
    """What the arguments ask for."""
    same = ("size", "classes", "device", "seed", "threads", "cudnn_benchmark", "roofline", "workers", "cache")
    shared = {name: getattr(options, name) for name in same}
    shared |= {
        "protocol": Protocol(options.warmup, options.steps, options.repeats),
        "data": options.data or "folder",
        "root": None,
    }
    modes = {"eager": [False], "compiled": [True], "both": [False, True]}[options.compile]
    found: list[Case] = []
    for method in options.methods:
        # The stages do not depend on the backbone.
        stages = list(enumerate(build(method, "test_resnet", 2).stages()))
        chosen = stages if options.stage == "each" else stages[-1:]
        backbone, batch = options.backbone or paper_backbone(method), options.batch or paper_batch(method)
        found += [
            Case(method, index, stage.name, backbone, batch=batch, precision=precision, compiled=compiled, **shared)
            for (index, stage), precision, compiled in product(chosen, options.precision, modes)
        ]
    return found


def row(case: Case, found: dict[str, Any]) -> dict[str, str]:
    """A line of the table."""
    cells = {
        "method": case.method, "stage": case.stage_name, "backbone": case.backbone, "pixels": str(case.size),
        "batch": str(case.batch), "precision": case.precision, "mode": "compiled" if case.compiled else "eager",
    }  # fmt: skip
    if "error" in found:
        return cells | {"note": found["error"]}
    step, inference = spread(found["step_s"]), spread(found["inference_s"])
    cells |= {
        "training, images/s": f"{case.batch / step.median:.1f}",
        "step, ms": f"{1e3 * step.median:.1f}",
        "spread": f"{1e3 * step.low:.1f}-{1e3 * step.high:.1f}",
        "work": f"{found['work']['whole']:.2f}",
        "overhead %": f"{100 * (step.median / found['bare_s'] - 1):.1f}",
        "with heads %": f"{100 * (step.median / found['own_s'] - 1):.1f}",
        "peak, GiB": f"{found['peak_gib']:.2f}",
        "inference, images/s": f"{case.batch / inference.median:.1f}",
    }
    if "fed_s" in found:
        fed = spread(found["fed_s"]).median
        cells |= {"end to end, images/s": f"{case.batch / fed:.1f}", "share %": f"{100 * step.median / fed:.0f}"}
    if "roofline" in found:
        cells |= {"bare, images/s": f"{case.batch / found['whole_s']:.1f}"}
        cells |= {"roofline, images/s": f"{found['roofline']['images_per_s']:.0f}"}
        cells |= {"roofline %": f"{100 * found['roofline']['share']:.0f}"}
    return cells


def report(rows: list[dict[str, str]], options: argparse.Namespace, found: dict[str, Any]) -> str:
    """The results as Markdown."""
    columns = [name for name in dict.fromkeys(name for cells in rows for name in cells) if name != "note"]
    columns += ["note"] if any("note" in cells for cells in rows) else []
    held = "allocated by torch on the GPU" if options.device == "cuda" else "resident memory of the process"
    text = [
        "# Speed and memory of the methods",
        "",
        heading(found, torch.device(options.device), options.seed),
        "",
        f"{options.classes} classes, random weights, settings of the CUB recipes. Medians of {options.repeats} blocks of "
        f"{options.steps} steps after {options.warmup}; the spread is the fastest and the slowest block. Peak: {held}, during "
        "those blocks.",
        "",
        *WORK_EXPLAINED,
        "",
        table(columns, [[cells.get(name, "-") for name in columns] for cells in rows]),
        "",
    ]
    if options.end_to_end:
        source = "given files" if options.root else f"JPEG files of 500 x 375 pixels ({options.files} different ones)"
        text += [f"End to end: fed by the data module from {source}; share of the speed on data in memory.", ""]
    return "\n".join([*text, *ROOFLINE_EXPLAINED, ""] if options.roofline else text)


def main() -> None:
    """Measure, print, and with --write leave results/throughput.json and .md."""
    if sys.argv[1:2] == ["--case"]:
        quieten()
        given = json.loads(sys.argv[2])
        sys.stdout.write(json.dumps(attempt(Case(**{**given, "protocol": Protocol(*given["protocol"])}))) + "\n")
        return
    parser = arguments()
    options = parse(parser, QUICK)
    if options.data and not options.root:
        parser.error("--data says what lies at --root; give both")
    quieten()
    if options.threads:
        torch.set_num_threads(options.threads)
    chosen = cases(options)
    results, rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        root = str(options.root) if options.root else folder
        if options.end_to_end and options.root is None:
            draw_files(Path(folder), options.files, max((case.protocol.batches + 1) * case.batch for case in chosen))
        for number, case in enumerate(chosen, start=1):
            asked = replace(case, root=root) if options.end_to_end else case
            found = attempt(asked) if options.in_process else attempt_apart(asked)
            results.append({"case": asdict(case), **found})
            rows.append(row(case, found))
            sys.stderr.write(f"{number} of {len(chosen)}: {', '.join(rows[-1].values())}\n")
    about = machine()
    settings = {key: value for key, value in vars(options).items() if key not in ("write", "root")}
    deliver(
        report(rows, options, about), {"settings": settings, "results": results, "rows": rows, "machine": about}, options.write
    )


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list_models(), default=list_models())
    parser.add_argument("--backbone", help="one for all methods; by default each method's paper's")
    parser.add_argument("--size", type=int, default=448, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, help="by default the recipe's")
    parser.add_argument("--classes", type=int, default=200)
    precisions = ["32-true", "bf16-mixed", "16-mixed"]
    parser.add_argument("--precision", nargs="+", choices=precisions, default=[default_precision()])
    parser.add_argument("--compile", choices=["eager", "compiled", "both"], default="eager")
    parser.add_argument("--stage", choices=["each", "last"], default="each", help="of methods that train in stages")
    parser.add_argument("--warmup", type=int, default=10, help="steps before the clock starts")
    parser.add_argument("--steps", type=int, default=20, help="steps a block")
    parser.add_argument("--repeats", type=int, default=5, help="blocks")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="threads of torch on a CPU")
    parser.add_argument("--cudnn-benchmark", action="store_true", help="let cuDNN try its algorithms, as --trainer.benchmark")
    parser.add_argument("--end-to-end", action="store_true", help="also train from files, through the data module")
    parser.add_argument("--data", choices=["cub", "cars", "aircraft", "folder"], help="what lies at --root")
    parser.add_argument("--root", type=Path, help="a data set for --end-to-end; by default synthetic birds are drawn as files")
    parser.add_argument("--files", type=int, default=100, help="how many of those are different")
    parser.add_argument("--workers", type=int, help="loader processes of --end-to-end")
    parser.add_argument("--cache", choices=["none", "ram", "disk"], default="none", help="the data module's, in --end-to-end")
    parser.add_argument("--roofline", action="store_true", help="also compare the bare backbone with the memory's bandwidth")
    alone = argparse.BooleanOptionalAction
    parser.add_argument("--in-process", action=alone, default=False, help="all cases in this process: quicker, and less apart")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", nargs="?", const="throughput", metavar="NAME", help="write the results under this name")
    return parser


if __name__ == "__main__":
    main()
