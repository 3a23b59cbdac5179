"""A method's stages, entered one after the other while a run trains."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from fgzoo.methods.optimization import stage_at
from fgzoo.nn.backbone import Backbone


class Stages(Callback):
    """Enters the stage that each batch belongs to; what its rates freeze stands still and costs no graph.

    Attributes:
        index: The current stage, from 0.
        frozen: Paths of the network's modules that stand still in it.
    """

    def __init__(self) -> None:
        self.index = 0
        self.frozen: set[str] = set()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Note the stage beside the metrics, where there are several."""
        if len(pl_module.stage_ends) > 1:
            stage = stage_at(pl_module.stage_ends, trainer.global_step)
            pl_module.log("train/stage", float(stage), on_step=False, on_epoch=True)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Enter the batch's stage."""
        self.enter(pl_module, stage_at(pl_module.stage_ends, trainer.global_step))

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients of what stands still, so that momentum and weight decay leave it alone, too."""
        stage = pl_module.stages()[self.index]
        for group in optimizer.param_groups:
            if stage.rate(group["name"]) == 0:
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
        self._freeze_only(model, {name for name in model.learning_rates() if stage.rate(name) == 0})

    def _freeze_only(self, model: Any, names: set[str]) -> None:
        for name in self.frozen - names:
            _freeze(model.network.get_submodule(name), False)
        # At every batch, because callbacks may set the whole model to training mode at any time.
        for name in names:
            _freeze(model.network.get_submodule(name), True)
        self.frozen = names


def _freeze(module: torch.nn.Module, frozen: bool) -> None:
    module.train(not frozen)
    if isinstance(module, Backbone):
        module.frozen = frozen
