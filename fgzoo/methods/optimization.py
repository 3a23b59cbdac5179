"""Learning-rate schedules as functions of the batch, and parameter groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from torch import nn

from fgzoo.nn.backbone import Backbone

Schedule = Literal["cosine", "step", "one_cycle", "constant"]

#: One-cycle's usual shape: 30 % of the run rises from 1/25 of the peak, the rest falls to 1/250,000 of it.
ONE_CYCLE_RISE = 0.3
ONE_CYCLE_START = 1 / 25
ONE_CYCLE_END = 1 / 25e4


def schedule_factor(
    schedule: Schedule,
    total: int,
    per_epoch: float,
    warmup_epochs: float = 0.0,
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
) -> Callable[[int], float]:
    """The learning rate's factor as a function of the batches done.

    Args:
        schedule: `cosine` falls to zero over the whole run; `step` multiplies by `gamma` at the epochs in `milestones`;
            `one_cycle` rises for 30 % of the run and falls for the rest (Smith, arXiv 1708.07120), without cycling momentum;
            `constant` stays.
        total: Batches of the whole run.
        per_epoch: Batches of an epoch.
        warmup_epochs: Linear rise before `cosine`, `step` and `constant`; `one_cycle` has its own.
        milestones: Epochs at which `step` falls.
        gamma: Factor of each fall.

    Returns:
        batch -> factor of the peak learning rate.
    """
    warmup = warmup_epochs * per_epoch

    def factor(batch: int) -> float:
        if schedule == "one_cycle":
            rise = max(1.0, ONE_CYCLE_RISE * total - 1)
            if batch < rise:
                return _cosine(ONE_CYCLE_START, 1.0, batch / rise)
            return _cosine(1.0, ONE_CYCLE_END, (batch - rise) / max(1.0, total - 1 - rise))
        if batch < warmup:
            return (batch + 1) / (warmup + 1)
        if schedule == "cosine":
            return _cosine(1.0, 0.0, (batch - warmup) / max(1.0, total - warmup))
        if schedule == "step":
            return gamma ** sum(batch >= milestone * per_epoch for milestone in milestones)
        return 1.0

    return factor


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def split_decay(named: Iterable[tuple[str, nn.Parameter]], name: str, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of one learning rate: weights that decay; norms and biases (one dimension or none) that do not.

    Args:
        named: Parameters by name; frozen ones are left out.
        name: Name of the groups, shown by learning-rate monitors.
        lr: Peak learning rate.
        weight_decay: Weight decay of the first group.

    Returns:
        At most two optimiser groups, empty ones left out.
    """
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for _, parameter in named:
        if parameter.requires_grad:
            (spared if parameter.ndim <= 1 else decayed).append(parameter)
    groups = [
        {"params": decayed, "lr": lr, "weight_decay": weight_decay, "name": name},
        {"params": spared, "lr": lr, "weight_decay": 0.0, "name": f"{name}/norm+bias"},
    ]
    return [group for group in groups if group["params"]]


def layer_decay_groups(backbone: Backbone, name: str, lr: float, weight_decay: float, decay: float) -> list[dict[str, Any]]:
    """Groups of a backbone whose learning rate falls by `decay` from each layer to the one below it.

    Args:
        backbone: The backbone; timm knows its layers.
        name: Name of the groups.
        lr: Learning rate of the deepest layer.
        weight_decay: Weight decay; norms and biases have none.
        decay: Factor from layer to layer, e.g. 0.75.

    Returns:
        Optimiser groups.
    """
    from timm.optim import param_groups_layer_decay

    groups = param_groups_layer_decay(backbone.model, weight_decay=weight_decay, layer_decay=decay)
    return [
        {
            "params": group["params"],
            "lr": lr * group["lr_scale"],
            "weight_decay": group["weight_decay"],
            "name": f"{name}/{index}",
        }
        for index, group in enumerate(groups)
    ]
