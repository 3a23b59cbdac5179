"""What the plan `full` costs on 1, 8 and 64 GPUs, on paper: multiply-adds counted, communication modelled, one speed assumed.

The assumed speed is that of a network which everyone has measured: training ResNet-50 at 224 pixels. A step of a method takes the
time in which such a GPU does as many multiply-adds, three forward passes' worth for forward and backward; communication follows
`scaling.py`'s model. Where a step can be measured, `throughput.py` and `scaling.py --predict` take the place of this page.

    python benchmarks/cost.py --write
    python benchmarks/cost.py --images-per-second 5000 --gpu "one of ours"
"""

from __future__ import annotations

import argparse
import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accuracy_plan import Cell, Cost, Costs, Data, cells_of, read_plan
from common import deliver, heading, machine, table
from scaling import PREDICTED, Links, predict, stops_scaling

from fgzoo import create_model
from fgzoo.data.datamodule import FGVCDataModule

#: ResNet-50, 224 pixels, batch 256, mixed precision, on one A100 with 80 GB: images a second that its maker publishes.
PUBLISHED, GPU = 2470.0, "A100, 80 GB"
#: Multiply-adds of that network and image, in billions.
RESNET50 = 4.09
#: A backward pass has twice the multiply-adds of a forward pass.
FORWARD_AND_BACKWARD = 3
#: Images of a batch where a recipe says nothing.
BATCH = int(inspect.signature(FGVCDataModule).parameters["batch_size"].default)


class CountedOnce(Costs):
    """Costs of the first data set's number of classes for all: a classifier is next to nothing of a network at 448 pixels.

    Args:
        path: As for [Costs][].
        data: The data set.
    """

    def __init__(self, path: Path, data: Data) -> None:
        super().__init__(path)
        self.data = data

    def of(self, cell: Cell) -> Cost:
        """The cost of a cell's method."""
        return super().of(replace(cell, data=self.data))


class Bill(NamedTuple):
    """What a cell takes.

    Attributes:
        cell: The run.
        cost: Its multiply-adds.
        batch: Images a GPU.
        step: Seconds of a step on one GPU.
        gradients: Bytes.
        reduces: All-reduces a batch.
    """

    cell: Cell
    cost: Cost
    batch: int
    step: float
    gradients: float
    reduces: int

    def seconds(self, gpus: int, overlapped: bool = True) -> float:
        """Seconds of the run's training on so many GPUs, each with the same batch."""
        found = predict(self.step, self.gradients, gpus, self.reduces)
        step = found.overlapped if overlapped else found.step
        return self.cell.epochs * self.cell.train_images / (self.batch * gpus) * step

    @property
    def end(self) -> int | None:
        """From how many GPUs on communication takes longer than computation."""
        return stops_scaling(self.step, self.gradients, self.reduces)


def bill(cell: Cell, costs: Costs, gmacs: float) -> Bill:
    """What a cell takes on a GPU that does so many billions of multiply-adds a second."""
    cost = costs.of(cell)
    batch = int(cell.settings.get("data", {}).get("batch_size", BATCH))
    step = batch * FORWARD_AND_BACKWARD * cost.train_gmac / gmacs
    arguments = {**cell.settings["model"].get("init_args", {}), "backbone": "test_resnet", "pretrained": False}
    tiny = create_model(cell.method, cell.data.classes, **without_networks(arguments))
    return Bill(cell, cost, batch, step, 4e6 * cost.parameters, tiny.steps_per_batch)


def without_networks(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments without those that fit the paper's backbones alone."""
    return {name: value for name, value in arguments.items() if "weights" not in name and name != "second_backbone"}


def steps_table(bills: list[Bill]) -> str:
    """A line a method: its step, and where it stops scaling."""
    columns = ["what", "backbone", "GMAC a pass", "passes an image", "GMAC an image", "parameters, M"]
    columns += ["images a GPU", "step, ms", "all-reduces", "efficiency on 8, %", "on 64, %"]
    columns += ["communication exceeds computation from", "steps an epoch of CUB on 64"]
    lines = []
    for one in bills:
        alone = one.seconds(1)
        line: list[Any] = [one.cell.label, one.cell.backbone, f"{one.cost.backbone_gmac:.1f}", f"{one.cost.passes:.1f}"]
        line += [f"{one.cost.train_gmac:.1f}", f"{one.cost.parameters:.0f}", one.batch, f"{1e3 * one.step:.0f}", one.reduces]
        for gpus in PREDICTED[1:]:
            worst, best = (100 * alone / gpus / one.seconds(gpus, overlapped) for overlapped in (False, True))
            line.append(f"{worst:.0f} to {best:.0f}")
        line += ["no number" if one.end is None else f"{one.end} GPUs", f"{one.cell.train_images / one.batch / 64:.1f}"]
        lines.append(line)
    return table(columns, lines)


def hours_table(bills: dict[tuple[str, str], Bill], datasets: list[str], seeds: int) -> str:
    """A line a method: hours of a run, and GPU-hours of all seeds on all data sets."""
    columns = ["what", "epochs", *(f"{name}: hours on 1, 8, 64 GPUs" for name in datasets), f"GPU-hours, {seeds} seeds each"]
    lines = []
    labels = list(dict.fromkeys(label for label, _ in bills))
    for label in labels:
        runs = [bills[label, name] for name in datasets]
        hours = [" / ".join(f"{one.seconds(gpus) / 3600:.1f}" for gpus in PREDICTED) for one in runs]
        total = seeds * sum(one.seconds(1) for one in runs) / 3600
        lines.append([label, runs[0].cell.epochs, *hours, f"{total:.0f}"])
    every = seeds * sum(one.seconds(1) for one in bills.values()) / 3600
    lines.append(["all", "", *("" for _ in datasets), f"{every:.0f}"])
    return table(columns, lines)


def main() -> None:
    """Count, predict, print, and with --write leave results/cost.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images-per-second", type=float, default=PUBLISHED, help="of ResNet-50 in training, 224 pixels")
    parser.add_argument("--gpu", default=GPU, help="its name")
    parser.add_argument("--costs", type=Path, default=Path("runs/accuracy/costs.json"), help="counted multiply-adds")
    parser.add_argument("--write", nargs="?", const="cost", metavar="NAME", help="write the results under this name")
    options = parser.parse_args()
    plan = read_plan("full")
    costs = CountedOnce(options.costs, next(iter(plan.datasets.values())))
    cells = [cell for cell in cells_of(plan, costs) if cell.seed == 0]
    gmacs = options.images_per_second * FORWARD_AND_BACKWARD * RESNET50
    bills = {(cell.label, cell.dataset): bill(cell, costs, gmacs) for cell in cells}
    datasets, seeds = list(plan.datasets), len(plan.variants[0].seeds)
    links, about = Links(), machine()
    text = [
        "# What the plan `full` costs, on paper",
        "",
        heading(about, torch.device("cpu"), 0),
        "",
        "**Nothing here was timed.** Assumed: a GPU that trains ResNet-50 at 224 pixels with "
        f"{options.images_per_second:g} images/s ({options.gpu}), {gmacs / 1e3:.1f} billion multiply-adds a millisecond, and "
        "does as many of every method. Counted: multiply-adds at 448 pixels. Modelled: all-reduces over "
        f"{links.inside / 1e9:g} GB/s inside a machine of {links.gpus_per_node} GPUs and {8 * links.between / 1e9:g} Gbit/s "
        f"between machines, {1e6 * links.latency:g} µs a hop (`scaling.py`). Not counted: images that arrive late, evaluation, "
        "start-up, stragglers. Small batches run below such a rate, large matrix products above it: expect a factor of two "
        "either way.",
        "",
        "## A step, and where it stops scaling",
        "",
        "Efficiency: from communication after computation to communication beside the backward pass. The batch of a GPU stays, "
        "so on 64 GPUs an epoch has few steps: there the learning, not the communication, is what stops first.",
        "",
        steps_table([one for (_, name), one in bills.items() if name == datasets[0]]),
        "",
        "## Hours",
        "",
        hours_table(bills, datasets, seeds),
        "",
    ]
    content = {
        "settings": {key: str(value) for key, value in vars(options).items() if key not in ("write", "costs")},
        "links": links._asdict(),
        "machine": about,
        "runs": [
            {
                "what": label, "dataset": name, "backbone": one.cell.backbone, **one.cost._asdict(), "epochs": one.cell.epochs,
                "batch": one.batch, "step_s": one.step, "all_reduces": one.reduces, "stops_scaling": one.end,
                "hours": {str(gpus): one.seconds(gpus) / 3600 for gpus in PREDICTED},
            }
            for (label, name), one in bills.items()
        ],
    }  # fmt: skip
    deliver("\n".join(text), content, options.write)


if __name__ == "__main__":
    main()
