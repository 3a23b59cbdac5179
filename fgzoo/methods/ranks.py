"""What several processes that train together have to agree on, beside the gradients that they average."""

from __future__ import annotations

from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from fgzoo.nn.backbone import reached_by
from fgzoo.nn.statistics import batch_norms


class Ranks(Callback):
    """Lets every loss reach every parameter, and takes the mean of the processes' batch-norm statistics.

    DistributedDataParallel waits for a gradient of every parameter, and a frozen backbone or a head that another step trains has
    none. Searching for unused parameters at every step, its own remedy, would cost time and an argument to remember; which they
    are depends on stage and step alone. So the loss reaches them times zero, and these gradients are dropped again before the
    optimiser's step.

    Each process counts its own images in its statistics, and torch overwrites the others' by the first one's only when the next
    batch begins (never, where a batch takes several steps). Without their mean, every process would validate a network of its
    own, and none of them but the first the one that is saved.
    """

    def __init__(self) -> None:
        self.step = 0
        #: What the loss of a stage's step does not reach by itself.
        self.unreached: dict[tuple[int, int], list[nn.Parameter]] = {}
        self.idle: list[nn.Parameter] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Count the batch's steps from 0."""
        self.step = 0

    def on_before_backward(self, trainer: L.Trainer, pl_module: Any, loss: Tensor) -> None:
        """Let the loss reach every parameter, some of them times zero."""
        if trainer.world_size == 1:
            return
        place = (pl_module.training_stage, self.step)
        self.step += 1
        if place not in self.unreached:
            reached = reached_by(loss)
            self.unreached[place] = [p for p in pl_module.network.parameters() if p.requires_grad and p not in reached]
        self.idle = self.unreached[place]
        if self.idle:
            # In place: what follows differentiates the tensor that this hook is shown.
            loss.add_(torch.stack([parameter.flatten()[0] * 0.0 for parameter in self.idle]).sum())

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients that were made for the other processes' sake."""
        for parameter in self.idle:
            parameter.grad = None

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Agree before the epoch is saved, on the average of the weights, too, which is what is saved."""
        averages = [callback._average_model for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]
        for model in (pl_module, *(average.module for average in averages if average is not None)):
            agree_on_statistics(trainer, model.network)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Agree before anything is validated, on the average of the weights where there is one."""
        if trainer.state.fn == TrainerFn.FITTING:
            agree_on_statistics(trainer, pl_module.network)


def agree_on_statistics(trainer: L.Trainer, network: nn.Module) -> None:
    """Take the mean of batch-norm's running statistics over all processes.

    Args:
        trainer: The trainer.
        network: The network.
    """
    if trainer.world_size == 1:
        return
    for norm in batch_norms(network):
        if norm.running_mean is not None and norm.running_var is not None:
            for statistic in (norm.running_mean, norm.running_var):
                statistic.copy_(cast(Tensor, trainer.strategy.reduce(statistic.clone(), reduce_op="mean")))
