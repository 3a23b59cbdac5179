"""How long a run is, in optimiser steps, and the callback that ends it after a number of them."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback


class StopAfter(Callback):
    """Ends a run after a number of optimiser steps; Lightning validates before it stops.

    It stands for Lightning's own `max_steps`, with which a resumed run begins by the end of the epoch that it was saved after.

    Args:
        steps: Optimiser steps of the whole run.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Stop, if that was the last step."""
        # As its schedule counts: what a resumed run did before may have been larger or smaller batches.
        if getattr(pl_module, "position", trainer.global_step) >= self.steps:
            trainer.should_stop = True


def epoch_steps(trainer: L.Trainer) -> float:
    """Optimiser steps of an epoch; infinite where the data has no length."""
    if trainer.limit_train_batches == 0:
        return 0
    trainer.fit_loop.setup_data()  # nobody need have asked for the data yet
    batches = trainer.num_training_batches
    return batches if math.isinf(batches) else math.ceil(batches / trainer.accumulate_grad_batches)


def step_limit(trainer: L.Trainer) -> int | None:
    """After how many optimiser steps a run ends, whoever says so; `None` where their number has no limit."""
    said = [callback.steps for callback in trainer.callbacks if isinstance(callback, StopAfter)]  # type: ignore[attr-defined]
    return min([*said, *([trainer.max_steps] if trainer.max_steps >= 0 else [])], default=None)


def run_steps(trainer: L.Trainer) -> float:
    """Optimiser steps of the whole run; infinite where neither epochs nor steps, but time alone, say when it ends."""
    epochs = math.inf if trainer.max_epochs in (None, -1) else max(1, trainer.max_epochs)
    limit = step_limit(trainer)
    return min(epochs * max(1, epoch_steps(trainer)), math.inf if limit is None else limit)
