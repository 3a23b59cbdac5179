"""What methods cost, counted and not timed: parameters, multiply-adds, and passes of a backbone."""

from __future__ import annotations

import functools
import json
from typing import Any, NamedTuple

import torch
from plan import Cell
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fgzoo import FineGrainedClassifier, create_model
from fgzoo.nn.backbone import Backbone


class Cost(NamedTuple):
    """What a method costs; of training the mean over the stages by their share of the run.

    A pass is the multiply-adds of one forward pass of the backbone; those inside the method's backbones, however deep and at
    whatever size they run, are counted in passes.
    """

    parameters: float  # millions
    test_gmac: float  # billions of multiply-adds of testing one image
    train_gmac: float  # of a training image's forward passes, heads included
    passes: float  # of the backbone a training image


def cost_of(cell: Cell) -> Cost:
    """The cost of a cell's method."""
    left_out = ("backbone", "pretrained", "backbone_weights", "second_backbone_weights")
    arguments = {name: value for name, value in cell.model.items() if name not in left_out}
    return count(cell.experiment.method, cell.backbone, json.dumps(arguments), cell.size, cell.classes)


@functools.cache
def count(method: str, backbone: str, arguments: str, size: int, classes: int) -> Cost:
    """Count parameters and multiply-adds of a method, its arguments as JSON, on square images of a side in pixels."""
    model = create_model(method, classes, backbone, pretrained=False, **json.loads(arguments))
    images = torch.randn(2, 3, size, size)
    train = inside = 0.0
    with torch.no_grad():
        test = forward_operations(model.eval(), images)
        bare = forward_operations(model.make_backbone(), images)
        for index, stage in enumerate(model.stages()):
            total, spent = training_operations(model, index, images)
            train += stage.share * total
            inside += stage.share * sum(map(sum, spent.values()))
    parameters = sum(parameter.numel() for parameter in model.network.parameters()) / 1e6
    # Two operations are a multiply-add, and there are two images.
    return Cost(parameters, test / 4e9, train / 4e9, inside / bare)


def training_operations(model: FineGrainedClassifier, stage: int, images: Tensor) -> tuple[int, dict[str, tuple[int, int]]]:
    """What torch counts in the forward passes of a training batch (B, 3, H, W), normalised: two operations a multiply-add.

    All operations of an uncompiled model in one of its stages, and those inside each backbone by its name: where a graph is
    built, and where none is.
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
            handles.append(module.register_forward_hook(functools.partial(end, name)))
        targets = torch.arange(len(images), device=images.device)
        for _ in model.training_outputs(images, targets, torch.zeros(len(images), 3, dtype=torch.long, device=images.device)):
            pass
    for handle in handles:
        handle.remove()
    return counter.get_total_flops(), {name: (trained, bare) for name, (trained, bare) in spent.items()}


@torch.no_grad()
def forward_operations(module: nn.Module, images: Tensor) -> int:
    """The same of a forward pass."""
    with FlopCounterMode(display=False) as counter:
        module(images)
    return counter.get_total_flops()
