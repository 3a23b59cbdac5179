"""What the benchmarks of speed share: real training steps under a clock, and how results are written down.

Weights are random and nothing is learned (the learning rate is too small to move them): neither matters to speed or memory.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import itertools
import json
import os
import platform
import re
import shlex
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fgzoo import create_model, keep_freed_memory
from fgzoo.checkpoints.run_folder import CONFIG
from fgzoo.data.datamodule import FGVCDataModule
from fgzoo.methods import find_method
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.nn.backbone import Backbone
from fgzoo.recipes import read_config, read_recipe, recipe_files
from fgzoo.training.callbacks import ReproducibleSteps
from fgzoo.training.environment import environment, peak_memory
from fgzoo.training.faults import FiniteLoss

# As every verb does.
keep_freed_memory()

RESULTS = Path(__file__).parent / "results"
GIB = 2**30

#: The preset `small` before and after pretraining was kept: what each method has beside it, and what all have.
FROZEN: dict[str, Any] = {"freeze": 3, "freeze_norm": "statistics"}
RRA: dict[str, Any] = {"local_scale": 1.0, "local_stride": 32, "patch_percentile": 0.75, "normalize_states": True}
SRBN: dict[str, Any] = {"rank": 512, "projection": 256, "batch_norm": True}
BILINEAR: dict[str, Any] = {"stride": 32, "bilinear_size": 122_880, "init": "orthogonal"}
STAGES: dict[str, Any] = {"stages": 2, "grids": (4, 2), "init": "orthogonal", "feature_size": 320, "last_level": True}
BEFORE: dict[str, dict[str, Any]] = {"rra": RRA, "iagn": {"stages": 2, "grids": (4, 2)}, "srbn": SRBN}
AFTER: dict[str, dict[str, Any]] = {
    "rra": {**RRA, "global_width": 0, "init": "orthogonal", "residual": True},
    "rra-parent": {"init": "orthogonal"},
    "iagn": STAGES,
    "pmg": STAGES,
    "srbn": {**SRBN, **BILINEAR},
    "bcnn": BILINEAR,
}

# ---------------------------------------------------------------------- what is measured


def recipe(method: str) -> dict[str, Any]:
    """The method's recipe for CUB, from which optimiser, clipping and batch size are taken; empty where there is none."""
    name = f"cub/{method}"
    return read_recipe(name) if name in recipe_files() else {}


def paper_backbone(method: str) -> str:
    """The backbone that a method's class has by default."""
    return str(inspect.signature(find_method(method)[0]).parameters["backbone"].default)


def paper_batch(method: str) -> int:
    """The batch size of the method's recipe."""
    return int(recipe(method).get("data", {}).get("batch_size", 16))


def build(method: str, backbone: str, classes: int, compiled: bool = False, seed: int = 0) -> FineGrainedClassifier:
    """The model of the method's recipe with another backbone and random weights.

    Args:
        method: A name of `fgzoo.list_models()`.
        backbone: Name of a timm network.
        classes: K.
        compiled: Compile the network.
        seed: Seed of the weights.

    Returns:
        The model.
    """
    torch.manual_seed(seed)
    arguments = recipe(method).get("model", {}).get("init_args", {})
    return create_model(method, classes, backbone, pretrained=False, **{**arguments, "lr": 1e-6, "compile": compiled})


def keep_to_stage(model: FineGrainedClassifier, chosen: int) -> int:
    """Let a run spend all its batches in one stage, but for one batch in each of the others, which come in their order.

    Args:
        model: The model, whose stages are changed.
        chosen: The stage, from 0.

    Returns:
        How many other stages there are.
    """
    stages = model.stages()
    others, rest = len(stages) - 1, 1e-9
    shares = [1 - rest * others if index == chosen else rest for index in range(len(stages))]
    changed = tuple(stage._replace(share=share) for stage, share in zip(stages, shares, strict=True))
    model.stages = lambda: changed
    return others


def random_batch(batch: int, size: int, classes: int, device: torch.device, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A batch as the data module gives it, already on the device: uint8 images, classes, indices."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (batch, 3, size, size), generator=generator, dtype=torch.uint8)
    targets = torch.randint(0, classes, (batch,), generator=generator)
    return images.to(device), targets.to(device), torch.arange(batch, device=device)


class Repeated:
    """A loader that gives one batch again and again."""

    def __init__(self, batch: Any, length: int) -> None:
        self.batch = batch
        self.length = length

    def __iter__(self) -> Iterator[Any]:
        return itertools.repeat(self.batch, self.length)

    def __len__(self) -> int:
        return self.length


# ---------------------------------------------------------------------- the clock


class Protocol(NamedTuple):
    """How often is measured: `repeats` blocks of `steps` steps each, after `warmup` steps that do not count."""

    warmup: int
    steps: int
    repeats: int

    @property
    def batches(self) -> int:
        """Batches of a run; the start of the last one ends the last block."""
        return self.warmup + self.steps * self.repeats + 1


class StepClock(Callback):
    """Times blocks of training steps inside a trainer, from a step's start to a later step's start.

    The device is waited for at the borders of blocks alone, so that within a block it may lag behind as it does in a real run.

    Args:
        protocol: How often to measure.
        skipped: Further batches to pass over before the warm-up.

    Attributes:
        peak: The most memory held during the blocks, bytes.
    """

    def __init__(self, protocol: Protocol, skipped: int = 0) -> None:
        self.protocol = protocol
        self.seen = -skipped - protocol.warmup
        self.marks: list[float] = []
        self.peak = 0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Read the clock where a block ends and the next begins."""
        border = self.seen >= 0 and self.seen % self.protocol.steps == 0
        self.seen += 1
        if not border or len(self.marks) > self.protocol.repeats:
            return
        synchronize(pl_module.device)
        if not self.marks:
            reset_peak(pl_module.device)
        self.marks.append(time.perf_counter())
        if len(self.marks) == self.protocol.repeats + 1:
            self.peak = peak_memory(pl_module.device)

    def seconds(self) -> list[float]:
        """Mean seconds of a step, for each block."""
        return [(end - start) / self.protocol.steps for start, end in itertools.pairwise(self.marks)]


def make_trainer(device: torch.device, precision: str, batches: int, clock: Callback, seed: int, **more: Any) -> L.Trainer:
    """The trainer of a real run, without what writes files or prints.

    Args:
        device: `cpu` or `cuda`.
        precision: Lightning's name of it.
        batches: Length of the run.
        clock: The callback that measures.
        seed: Seed of the steps.
        **more: Further arguments of the trainer.

    Returns:
        The trainer.

    Raises:
        ValueError: The device does not compute in this precision.
    """
    settings: dict[str, Any] = {
        "accelerator": "gpu" if device.type == "cuda" else "cpu", "devices": 1, "precision": precision, "max_steps": batches,
        "max_epochs": -1, "limit_val_batches": 0, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "use_distributed_sampler": False,
        "callbacks": [ReproducibleSteps(seed), FiniteLoss(), clock],
        "plugins": [LightningEnvironment()],  # not a cluster's, where the script runs inside of one of its jobs
    }  # fmt: skip
    trainer = L.Trainer(**{**settings, **more})
    if trainer.precision != precision:
        # Lightning takes another one instead, with a warning, where a device cannot do what was asked for.
        raise ValueError(f"precision {precision} is not to be had on {device.type}")
    return trainer


def timed(function: Callable[[], Any], device: torch.device, protocol: Protocol) -> list[float]:
    """Mean seconds of a call, for each block of calls."""
    for _ in range(protocol.warmup):
        function()
    found = []
    for _ in range(protocol.repeats):
        synchronize(device)
        started = time.perf_counter()
        for _ in range(protocol.steps):
            function()
        synchronize(device)
        found.append((time.perf_counter() - started) / protocol.steps)
    return found


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Count the peak of memory from here on; on systems without Linux's /proc it counts from the process's start."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


# ---------------------------------------------------------------------- what is counted


class Operations(NamedTuple):
    """What torch counts in the forward passes of a training batch: two operations a multiply-add.

    Attributes:
        total: All of them.
        inside: Those inside each backbone by its name: where a graph is built, and where none is.
    """

    total: int
    inside: dict[str, tuple[int, int]]


def training_operations(model: FineGrainedClassifier, stage: int, images: Tensor) -> Operations:
    """Count the forward passes of a training batch.

    Args:
        model: An uncompiled model, where the images are.
        stage: The stage it trains in.
        images: (B, 3, H, W), normalised.

    Returns:
        The operations.
    """
    network = model.network.train()
    if hasattr(network, "stage"):
        network.stage = stage
    backbones = {name: module for name, module in network.named_modules() if isinstance(module, Backbone)}
    frozen = {name for name in backbones if model.stages()[stage].rate(name) == 0}
    spent = {name: [0, 0] for name in backbones}
    starts: list[int] = []

    def end(name: str, *_: Any) -> None:
        spent[name][name in frozen or not torch.is_grad_enabled()] += counter.get_total_flops() - starts.pop()

    handles = []
    with FlopCounterMode(display=False) as counter:
        for name, module in backbones.items():
            handles.append(module.register_forward_pre_hook(lambda *_: starts.append(counter.get_total_flops())))
            handles.append(module.register_forward_hook(partial(end, name)))
        targets = torch.arange(len(images), device=images.device)
        for _ in model.training_outputs(images, targets, torch.zeros(len(images), 3, dtype=torch.long, device=images.device)):
            pass
    for handle in handles:
        handle.remove()
    return Operations(counter.get_total_flops(), {name: (trained, bare) for name, (trained, bare) in spent.items()})


@torch.no_grad()
def forward_operations(module: nn.Module, images: Tensor) -> int:
    """The same of a forward pass."""
    with FlopCounterMode(display=False) as counter:
        module(images)
    return counter.get_total_flops()


# ---------------------------------------------------------------------- processes, arguments, results


def fgzoo(arguments: Sequence[str], folder: Path, threads: int) -> None:
    """Run the command line in a process of its own, its output into the log of the run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as log:
        log.write(f"$ {shlex.join(['fgzoo', *arguments])}\n")
        log.flush()
        command = [sys.executable, "-m", "fgzoo", *arguments]
        if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=process_environment(threads)).returncode:
            raise SystemExit(f"failed: see {folder / 'log.txt'}")


def process_environment(threads: int) -> dict[str, str]:
    """The environment of a process with so many threads."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}


def free_port() -> int:
    """A port of this machine that nothing listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def data_of(run: Path, root: Path | None) -> FGVCDataModule:
    """The data of a run's folder, which may lie elsewhere now; read in this process."""
    settings = read_config(run / CONFIG)["data"]
    return FGVCDataModule(**{**settings, "root": root or settings["root"], "num_workers": 0})


def parse(parser: argparse.ArgumentParser, quick: dict[str, Any]) -> argparse.Namespace:
    """Parse the command line; with --quick other defaults hold, and what is typed still wins."""
    parser.add_argument("--quick", action="store_true", help="a tiny configuration, to see that the script works")
    options = parser.parse_args()
    if options.quick:
        parser.set_defaults(**quick)
        options = parser.parse_args()
    return options


class Spread(NamedTuple):
    """The middle of several measurements, and their range."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Median, smallest and largest."""
    return Spread(statistics.median(values), min(values), max(values))


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def cell(message: str) -> str:
    """A message for a cell of a table: short, files without the folders of this machine."""
    return re.sub(r"/(?:[^\s/]+/)+", "", message)[:200].replace("|", "/")


def machine() -> dict[str, Any]:
    """Hardware, versions and the command as typed, without the folders of this machine."""
    typed = [re.sub(r"(^|=)[/~].*", r"\1PATH", argument) for argument in sys.argv[1:]]
    return {**environment(), "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *typed])}


def heading(found: dict[str, Any], device: torch.device, seed: int) -> str:
    """Hardware, versions, seed and command in a few lines."""
    gpus = found["gpus"]
    where = f"{len(gpus)} x {gpus[0]}" if device.type == "cuda" and gpus else f"{found['threads']} thread(s) a process"
    versions = ", ".join(f"{name} {found['packages'][name]}" for name in ("torch", "lightning", "timm"))
    return (
        f"{where}; {found['processor']}, {found['cores']} cores; Python {platform.python_version()}, {versions}; "
        f"fgzoo {found['git']}; seed {seed}.\n\n`{found['command']}`"
    )


def deliver(text: str, content: dict[str, Any], name: str | None) -> None:
    """Print the report, and with a name write results/NAME.md and NAME.json."""
    sys.stdout.write(text)
    if name is not None:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.md").write_text(text)
        (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
