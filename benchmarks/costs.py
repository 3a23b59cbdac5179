"""What methods cost, counted and not timed: parameters, multiply-adds, and passes of a backbone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import Backbone
from filelock import FileLock
from plan import Cell
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fgzoo
from fgzoo import FineGrainedClassifier, create_model


class Cost(NamedTuple):
    """What a method costs; of training the mean over the stages by their share of the run.

    A pass is the multiply-adds of one forward pass of the backbone; those inside the method's backbones, however deep and at
    whatever size they run, are counted in passes.
    """

    parameters: float  # millions
    test_gmac: float  # billions of multiply-adds of testing one image
    train_gmac: float  # of a training image's forward passes, heads included
    passes: float  # of the backbone a training image


def cost_of(cell: Cell, path: Path) -> Cost:
    """The cost of a cell's method, counted once and remembered in a file until the code that is counted changes."""
    left_out = ("backbone", "pretrained", "backbone_weights", "second_backbone_weights")
    given = {name: value for name, value in cell.model.items() if name not in left_out}
    asked = json.dumps([_code(), Cost._fields, cell.row.method, cell.backbone, given, cell.size, cell.classes])
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        known = json.loads(path.read_text()) if path.is_file() else {}
        if asked not in known:
            known[asked] = count(cell.row.method, cell.backbone, given, cell.size, cell.classes)
            path.write_text(json.dumps(known, indent=1))
    return Cost(*known[asked])


def count(method: str, backbone: str, arguments: Mapping[str, Any], size: int, classes: int) -> Cost:
    """Count parameters and multiply-adds of a method with a timm network on square images, of a side in pixels."""
    model = create_model(method, classes, backbone, pretrained=False, **arguments)
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
    """What torch counts in the forward passes of a training batch: two operations a multiply-add.

    Args:
        model: An uncompiled model, where the images are.
        stage: The stage it trains in.
        images: (B, 3, H, W), normalised.

    Returns:
        All operations, and those inside each backbone by its name: where a graph is built, and where none is.
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
    return counter.get_total_flops(), {name: (trained, bare) for name, (trained, bare) in spent.items()}


@torch.no_grad()
def forward_operations(module: nn.Module, images: Tensor) -> int:
    """The same of a forward pass."""
    with FlopCounterMode(display=False) as counter:
        module(images)
    return counter.get_total_flops()


def _code() -> str:
    """A hash of the code that is counted."""
    root = Path(fgzoo.__file__).parent
    code = b"".join(path.read_bytes() for path in sorted([*root.glob("methods/*.py"), *root.glob("nn/*.py")]))
    return hashlib.sha256(code).hexdigest()[:16]
