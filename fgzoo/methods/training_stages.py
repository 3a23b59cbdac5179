"""The stages of a training: what they are, when each ends, and the callback that enters one after the other."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from fgzoo.errors import UsageError
from fgzoo.nn.backbone import Backbone


class TrainingStage(NamedTuple):
    """A part of the run with learning rates of its own.

    Every parameter group exists from the start and nothing is switched but numbers: what torch's DistributedDataParallel and a
    resumed optimiser rely on. A factor of zero freezes: the group's gradients are dropped before the step (so that momentum and
    weight decay leave it alone, too), it is in evaluation mode, and a frozen backbone builds no graph. A backbone that any stage
    freezes normalises by its running statistics in all of them, so that its function is the one that was learnt on.

    Attributes:
        name: What it is called in logs.
        share: Share of the run, in (0, 1]; the shares of all stages sum to one.
        rates: Further factors of the learning rate by name of the parameter group; 1 where none is given.
    """

    name: str
    share: float
    rates: dict[str, float] = {}  # noqa: RUF012 - a NamedTuple's default; nobody writes into it

    def rate(self, group: str) -> float:
        """The factor of a parameter group, whose name is that of its module, with or without a part after a slash."""
        return self.rates.get(group.partition("/")[0], 1.0)


def stage_ends(stages: Sequence[TrainingStage], total: float, per_epoch: float) -> list[float]:
    """The batch at which each stage ends.

    A boundary is rounded to a whole epoch where every stage keeps at least one; shorter runs are divided by batches.

    Args:
        stages: The stages in order.
        total: Batches of the whole run; infinite where a single stage has no end.
        per_epoch: Batches of an epoch.

    Returns:
        As many batches as there are stages; the last is `total`.

    Raises:
        UsageError: The shares do not sum to one, or one is not positive.
    """
    if any(stage.share <= 0 for stage in stages) or not math.isclose(sum(stage.share for stage in stages), 1.0):
        shown = ", ".join(f"{stage.name} {stage.share:g}" for stage in stages)
        raise UsageError(f"model: the shares of the training stages must be positive and sum to 1, not {shown}")
    if len(stages) == 1:
        return [total]
    unit = per_epoch if total >= len(stages) * per_epoch else 1.0
    units = total / unit
    ends: list[float] = []
    share = 0.0
    for done, stage in enumerate(stages, start=1):
        share += stage.share
        ends.append(round(unit * min(max(round(share * units), done), units - (len(stages) - done))))
    return [*ends[:-1], total]


def stage_at(ends: Sequence[float], batch: float) -> int:
    """The stage that a batch belongs to; batches after the end count to the last.

    Args:
        ends: See [stage_ends][].
        batch: Batches done before it.

    Returns:
        From 0.
    """
    return min(bisect_right(ends, batch), len(ends) - 1)


class EnterStages(Callback):
    """Enters the stage that each batch belongs to; what its rates freeze stands still and costs no graph.

    Attributes:
        index: The current stage, from 0.
        frozen: Paths of the network's modules that stand still in it, and `new`, where the rest does.
    """

    def __init__(self) -> None:
        self.index = 0
        self.frozen: set[str] = set()

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Let a resumed run go on by its own schedule."""
        pl_module.resume_schedule()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Note the stage beside the metrics, where there are several."""
        if len(pl_module.stage_ends) > 1:
            pl_module.log("train/stage", float(pl_module.training_stage), on_step=False, on_epoch=True)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Enter the batch's stage."""
        self.enter(pl_module, pl_module.training_stage)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients of what stands still, so that momentum and weight decay leave it alone, too."""
        stage = pl_module.stages()[self.index]
        for group in optimizer.param_groups:
            if stage.rate(group.get("name", "new")) == 0:
                for parameter in group["params"]:
                    parameter.grad = None

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Nothing stays frozen."""
        self._freeze_only(pl_module, set())

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Nothing stays frozen after a run that broke off, either."""
        self._freeze_only(pl_module, set())

    def enter(self, model: Any, index: int) -> None:
        """Let a model compute and stand still as a stage asks for.

        Args:
            model: A [FineGrainedClassifier][fgzoo.methods.base.FineGrainedClassifier].
            index: The stage, from 0.
        """
        self.index = index
        if hasattr(model.network, "stage"):
            model.network.stage = index
        stage = model.stages()[index]
        self._freeze_only(model, {name for name in (*model.learning_rates(), "new") if stage.rate(name) == 0})

    def _freeze_only(self, model: Any, names: set[str]) -> None:
        # What stands still at every batch, because callbacks may set the whole model to training mode at any time.
        for name in (*(self.frozen - names), *names):
            if name == "new":
                for module in _outside(model.network, model.learning_rates()):
                    module.training = name not in names
                continue
            module = model.network.get_submodule(name)
            module.train(name not in names)
            if isinstance(module, Backbone):
                module.frozen = name in names
        self.frozen = names


def _outside(network: nn.Module, groups: Collection[str]) -> list[nn.Module]:
    """The modules that lie in none of these and hold none, which the group `new` stands for; the network itself is not one."""
    paths = [f"{name}." for name in groups]
    return [
        module
        for name, module in network.named_modules()
        if name and not any(f"{name}.".startswith(path) or path.startswith(f"{name}.") for path in paths)
    ]
