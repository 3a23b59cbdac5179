"""Parameter groups, the optimiser over them, and learning-rate schedules as functions of the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import nn

from fgzoo.methods.training_stages import TrainingStage, stage_at
from fgzoo.nn.backbone import Backbone

Schedule = Literal["cosine", "step", "one_cycle", "constant"]

#: One-cycle's usual shape: 30 % of the run rises from 1/25 of the peak, the rest falls to 1/250,000 of it.
ONE_CYCLE_RISE = 0.3
ONE_CYCLE_START = 1 / 25
ONE_CYCLE_END = 1 / 25e4


def schedule_factor(
    schedule: Schedule,
    total: float,
    per_epoch: float,
    warmup_epochs: float = 0.0,
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
) -> Callable[[float], float]:
    """The learning rate's factor as a function of the batches done; batches that accumulate count as one.

    Args:
        schedule: `cosine` falls to zero over the whole run; `step` multiplies by `gamma` at the epochs in `milestones`;
            `one_cycle` rises for 30 % of the run and falls for the rest (Smith, arXiv 1708.07120), without cycling momentum;
            `constant` stays.
        total: Batches of the whole run; infinite where `step` or `constant` have no end.
        per_epoch: Batches of an epoch.
        warmup_epochs: Linear rise before `cosine`, `step` and `constant`; `one_cycle` has its own.
        milestones: Epochs at which `step` falls.
        gamma: Factor of each fall.

    Returns:
        batch -> factor of the peak learning rate.
    """
    warmup = warmup_epochs * per_epoch if warmup_epochs else 0.0

    def factor(batch: float) -> float:
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


class StagedSchedule(torch.optim.lr_scheduler.LambdaLR):
    """The schedule of every parameter group, advanced every batch; it starts anew in each stage.

    Args:
        optimizer: The optimiser over the groups.
        stages: The stages in order.
        ends: See [stage_ends][fgzoo.methods.training_stages.stage_ends].
        factor_over: Number of batches -> schedule over that many batches.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        stages: Sequence[TrainingStage],
        ends: Sequence[float],
        factor_over: Callable[[float], Callable[[float], float]],
    ) -> None:
        starts = [0, *ends[:-1]]
        schedules = [factor_over(end - start) for start, end in zip(starts, ends, strict=True)]

        def factor_of(group: str) -> Callable[[float], float]:
            def factor(batch: float) -> float:
                index = stage_at(ends, batch)
                return stages[index].rate(group) * schedules[index](batch - starts[index])

            return factor

        self._configured = [
            {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
        ]
        self._factors: list[Callable[[int], float]] = [factor_of(group["name"]) for group in optimizer.param_groups]
        super().__init__(optimizer, self._factors)

    def state_dict(self) -> dict[str, Any]:
        """How far it is; all else is said by the run's arguments."""
        return {name: value for name, value in super().state_dict().items() if name not in ("_configured", "_factors")}

    def go_on(self, done: int) -> None:
        """Continue what a checkpoint restored by the settings of this run: its rates, decay and momentum, its schedule.

        Args:
            done: What is done, in batches of this run; another number than of batches done where those were larger or smaller.
        """
        ahead = done - self.last_epoch

        def moved(factor: Callable[[int], float]) -> Callable[[int], float]:
            return lambda batch: factor(batch + ahead)

        self.lr_lambdas = [moved(factor) for factor in self._factors]
        self.base_lrs = [group["lr"] for group in self._configured]
        for group, configured, factor in zip(self.optimizer.param_groups, self._configured, self._factors, strict=True):
            group.update({**configured, "initial_lr": configured["lr"], "lr": configured["lr"] * factor(done)})
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def make_optimizer(
    groups: list[dict[str, Any]], name: Literal["sgd", "adamw"], lr: float, momentum: float, fused: bool
) -> torch.optim.Optimizer:
    """The optimiser over [parameter_groups][]; `fused`: `adamw` may take a step for all parameters at once."""
    if name == "sgd":
        # Its fused step fails where a group's parameters had their first gradients at different steps, as those of a method
        # with stages or several steps a batch do.
        return torch.optim.SGD(groups, lr=lr, momentum=momentum)
    return torch.optim.AdamW(groups, lr=lr, fused=fused)


def parameter_groups(
    network: nn.Module, factors: Mapping[str, float], lr: float, weight_decay: float, layer_decay: float | None
) -> list[dict[str, Any]]:
    """Optimiser groups of a network; norms, biases and what timm says of its networks (tokens, position embeddings) do not decay.

    Args:
        network: The network.
        factors: Factors of `lr` by submodule, see [learning_rates][fgzoo.methods.base.FineGrainedClassifier.learning_rates].
        lr: Peak learning rate.
        weight_decay: Weight decay of weights.
        layer_decay: Factor of a backbone's rate from each layer to the one below; `None`: one rate for all.

    Returns:
        Groups named like their submodule, `new` for the rest, with `/norm+bias` or the layer's number behind it.
    """
    groups: list[dict[str, Any]] = []
    inside: set[nn.Parameter] = set()
    spared = _spared(network)
    # The innermost first, so that a module inside a named one keeps its own rate.
    for name, factor in sorted(factors.items(), key=lambda item: -item[0].count(".")):
        module = network.get_submodule(name)
        named = [(path, parameter) for path, parameter in module.named_parameters() if parameter not in inside]
        inside.update(parameter for _, parameter in named)
        if isinstance(module, Backbone) and layer_decay is not None:
            groups += layer_decay_groups(module, named, name, lr * factor, weight_decay, layer_decay, spared)
        else:
            groups += split_decay(named, name, lr * factor, weight_decay, spared)
    rest = [(name, parameter) for name, parameter in network.named_parameters() if parameter not in inside]
    return groups + split_decay(rest, "new", lr, weight_decay, spared)


def _spared(network: nn.Module) -> set[nn.Parameter]:
    """What timm says that weight decay spares in its networks, by names or patterns of names."""
    return {
        parameter
        for module in network.modules()
        for pattern in getattr(module, "no_weight_decay", tuple)()
        for name, parameter in module.named_parameters()
        if fnmatchcase(name, pattern)
    }


def split_decay(
    named: Iterable[tuple[str, nn.Parameter]],
    name: str,
    lr: float,
    weight_decay: float,
    spared: Set[nn.Parameter] = frozenset(),
) -> list[dict[str, Any]]:
    """At most two groups of one peak learning rate: weights that decay; norms and biases (one dimension or none) that do not.

    Args:
        named: Parameters by name; frozen ones are left out.
        name: Name of the groups, shown by learning-rate monitors.
        lr: Peak learning rate.
        weight_decay: Weight decay of the first group.
        spared: Others that do not decay.
    """
    learnt = [parameter for _, parameter in named if parameter.requires_grad]
    decayed = [parameter for parameter in learnt if parameter.ndim > 1 and parameter not in spared]
    others = [parameter for parameter in learnt if parameter.ndim <= 1 or parameter in spared]
    groups = [
        {"params": decayed, "lr": lr, "weight_decay": weight_decay, "name": name},
        {"params": others, "lr": lr, "weight_decay": 0.0, "name": f"{name}/norm+bias"},
    ]
    return [group for group in groups if group["params"]]


def layer_decay_groups(
    backbone: Backbone,
    named: Iterable[tuple[str, nn.Parameter]],
    name: str,
    lr: float,
    weight_decay: float,
    decay: float,
    spared: Set[nn.Parameter],
) -> list[dict[str, Any]]:
    """Groups of these parameters of a backbone; the rate is `lr` at the deepest layer and falls by `decay` to each one below."""
    from timm.optim import param_groups_layer_decay

    own = {parameter for _, parameter in named}
    without = [path for path, parameter in backbone.model.named_parameters() if parameter in spared]
    groups = param_groups_layer_decay(backbone.model, weight_decay, without, layer_decay=decay)
    found = [
        {
            "params": [parameter for parameter in group["params"] if parameter in own],
            "lr": lr * group["lr_scale"],
            "weight_decay": group["weight_decay"],
            "name": f"{name}/{index}",
        }
        for index, group in enumerate(groups)
    ]
    return [group for group in found if group["params"]]
