"""How a method is trained and scored: the steps that Lightning asks for, the same for all methods."""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torchmetrics.classification import MulticlassAccuracy

from fgzoo.errors import UntrainedError, UsageError
from fgzoo.methods.arguments import HasArguments
from fgzoo.methods.evaluation import Evaluation
from fgzoo.methods.optimization import StagedSchedule, make_optimizer, schedule_factor
from fgzoo.methods.ranks import Ranks
from fgzoo.methods.run_length import epoch_steps, run_steps
from fgzoo.methods.training_stages import EnterStages, TrainingStage, stage_at, stage_ends
from fgzoo.nn.output import MethodOutput
from fgzoo.prediction.rejection import Calibration
from fgzoo.wording import first_five

Batch = tuple[Tensor, Tensor, Tensor]


class LightningSteps(HasArguments):
    """Training and evaluation of what [FineGrainedClassifier][fgzoo.methods.base.FineGrainedClassifier] declares.

    Batches are (images, classes, indices). A data module may have `augment_batch(images, targets, keys)`, which every training
    batch passes on its device, see [FGVCDataModule.augment_batch][fgzoo.data.datamodule.FGVCDataModule.augment_batch].

    Args:
        num_classes: Number of classes K.

    Attributes:
        trained: Whether the weights have been trained. An untrained model is not tested.
        evaluation: What the current round of validation or testing has counted.
        stage_ends: The batch at which each of a run's stages ends; none before there is a run.
    """

    # What it asks of a method.
    network: nn.Module
    normalize: Callable[[Tensor], Tensor]
    computing: Callable[[], AbstractContextManager[object]]
    loss: Callable[[MethodOutput, Tensor], dict[str, Tensor]]
    taught: Callable[[dict[str, Tensor], MethodOutput, Tensor], dict[str, Tensor]]
    teachers: Sequence[LightningSteps]
    calibration: Calibration | None
    stages: Callable[[], tuple[TrainingStage, ...]]
    parameter_groups: Callable[[], list[dict[str, Any]]]
    training_outputs: Callable[[Tensor, Tensor, Tensor], Iterator[MethodOutput]]

    @property
    @abstractmethod
    def steps_per_batch(self) -> int:
        """Optimiser steps a batch."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.trained = False
        self.train_top1 = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.evaluation = Evaluation(num_classes)
        self.stage_ends: list[float] = []
        self._ahead = 0

    @property
    def position(self) -> int:
        """How many batches of this run are done; a resumed run's others may have been larger or smaller."""
        return self.global_step + self._ahead

    @property
    def training_stage(self) -> int:
        """The stage that the current batch belongs to, from 0."""
        return stage_at(self.stage_ends, self.position)

    def on_fit_start(self) -> None:
        """Refuse to train without the callbacks that the steps need, and bring the teachers to the device."""
        for teacher in self.teachers:
            teacher.to(self.device).eval()
        present: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, EnterStages) for callback in present):
            raise UsageError(
                f"{type(self).__name__}.configure_callbacks: add to what super().configure_callbacks() returns, without which no "
                "stage is entered"
            )

    def _prepare(self, batch: Batch) -> Batch:
        """Normalise on the device, and let the data augment there what is trained on.

        Part of the step, because Lightning's hook for transferred batches comes before the step is seeded.
        """
        if len(batch) != 3:
            raise UsageError(f"data: a batch is images, classes, and the images' indices, and this one has {len(batch)} parts")
        images, targets, index = batch
        images = self.normalize(images).contiguous(memory_format=torch.channels_last)
        augment = self._of_data("augment_batch")
        if augment is not None and self.trainer.training:
            images, targets = augment(images, targets, self.sample_keys(index))
        return images, targets, index

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One batch: an optimiser step on the sum of the loss terms, or several."""
        images, targets, index = self._prepare(batch)
        classes = targets if targets.ndim == 1 else targets.argmax(dim=1)
        totals: list[Tensor] = []
        terms: dict[str, Tensor] = {}
        shown: dict[str, Tensor] = {}
        with self.computing():
            for output in self.training_outputs(images, classes, self.sample_keys(index)):
                step_terms, last = self.loss(output, targets), len(totals) == self.steps_per_batch - 1
                if last:
                    step_terms = self.taught(step_terms, output, images)
                total = torch.stack(list(step_terms.values())).sum()
                if not self.automatic_optimization:
                    self._optimize(total, last)
                totals.append(total)
                terms.update({f"loss_{name}": term.detach() for name, term in step_terms.items()})
                shown.update({name.removeprefix("log_"): x for name, x in output.extra.items() if name.startswith("log_")})
        if len(totals) != self.steps_per_batch:
            raise RuntimeError(f"training_outputs() gave {len(totals)} outputs, steps_per_batch says {self.steps_per_batch}")
        loss = totals[0] if self.automatic_optimization else torch.stack(totals).detach().sum()
        values = {f"train/{name}": value for name, value in ({**terms, **shown} if len(terms) > 1 else shown).items()}
        how: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": len(images), "sync_dist": True}
        self.log("train/loss", loss, prog_bar=True, **how)
        self.log_dict(values, **how)
        self.train_top1.update(output.logits.detach(), classes)
        return loss * self._share_of_step(batch_idx)

    def _share_of_step(self, batch_idx: int) -> float:
        """By what a batch counts more where an epoch has fewer left than are accumulated, so that a step is their mean.

        Lightning divides every batch's loss by the number that is accumulated.
        """
        every, batches = self.trainer.accumulate_grad_batches, self.trainer.num_training_batches
        left = 0 if math.isinf(batches) else int(batches) % every
        return every / left if left and batch_idx >= batches - left else 1.0

    def _optimize(self, loss: Tensor, last: bool) -> None:
        """One of several optimiser steps of a batch; the last one counts the batch and advances the schedule.

        The others go through the strategy, so that mixed precision and hooks are the same, but are not counted: `global_step`,
        `max_steps`, the schedule and the moving average mean batches for every method.
        """
        optimizer = cast(LightningOptimizer, self.optimizers())
        optimizer.zero_grad()
        self.manual_backward(loss)
        if last:
            optimizer.step()
            cast(torch.optim.lr_scheduler.LRScheduler, self.lr_schedulers()).step()
        else:
            self.trainer.strategy.optimizer_step(optimizer.optimizer, lambda: None)

    def on_train_epoch_end(self) -> None:
        """Log the training accuracy of the epoch."""
        self.log("train/top1", self.train_top1.compute())
        self.train_top1.reset()

    def on_train_end(self) -> None:
        """From here on the model may be tested."""
        self.trained = True

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Collect the metrics of a batch, and hand on what single images were given: `logits`, `targets` and `index`."""
        images, targets, index = self._prepare(batch)
        output = self(images, None, self.sample_keys(index))
        self.evaluation.update(output, targets)
        return {"logits": output.logits.float(), "targets": targets, "index": index}

    test_step = validation_step

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """What single images are given: `logits` (B, K), and their `targets` and `index` as the data has them."""
        images, targets, index = self._prepare(batch)
        return {"logits": self(images, None, self.sample_keys(index)).logits.float(), "targets": targets, "index": index}

    def on_validation_epoch_start(self) -> None:
        """Forget the counts of earlier rounds; refuse to score what was never trained, unless it is being trained."""
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            self._require_training("validate")
        # A temperature was fitted to these very images.
        self.evaluation.temperature = None
        self.evaluation.reset()

    def on_test_epoch_start(self) -> None:
        """Refuse to test what was never trained: its accuracy would be chance."""
        self._require_training("test")
        found = self.calibration
        self.evaluation.temperature = None if found is None else found.temperature
        self.evaluation.reset()

    def on_predict_epoch_start(self) -> None:
        """Refuse to answer what was never trained."""
        self._require_training("predict")

    def _require_training(self, verb: str) -> None:
        if not self.trained:
            raise UntrainedError(
                f"{verb}: this {type(self).__name__} has never been trained, and chance is no result; give a checkpoint by "
                f"--ckpt_path, or train it first"
            )

    def on_validation_epoch_end(self) -> None:
        """Log `val/...`."""
        self.log_dict({f"val/{name}": value for name, value in self.evaluation.compute().items()})

    def on_test_epoch_end(self) -> None:
        """Log `test/...`."""
        self.log_dict({f"test/{name}": value for name, value in self.evaluation.compute().items()})

    def configure_optimizers(self) -> Any:
        """The optimiser over [parameter_groups][], and its schedule, advanced every batch."""
        given, stages = self.arguments, self.stages()
        groups = self.parameter_groups()
        listed = {id(parameter) for group in groups for parameter in group["params"]}
        if left := [name for name, one in self.named_parameters() if one.requires_grad and id(one) not in listed]:
            raise UsageError(
                f"model: {first_five(left)} is in no parameter group, so that nothing trains it; put it into build_network(), "
                "or give it a group in parameter_groups()"
            )
        for group in groups:
            group["lr"] *= self.lr_factor()
        # Fused steps unscale half-precision gradients themselves, which leaves clipping nothing unscaled to measure.
        fused = not (given.clip_norm is not None and str(self.trainer.precision) == "16-mixed")
        optimizer = make_optimizer(groups, given.optimizer, given.lr, given.momentum, fused)
        total, per_epoch = run_steps(self.trainer), epoch_steps(self.trainer)
        if math.isinf(total) and (given.schedule in ("cosine", "one_cycle") or len(stages) > 1):
            if self.trainer.max_epochs not in (None, -1):
                raise UsageError("trainer.max_steps: a schedule needs an end, and the data has no length; give a number of steps")
            raise UsageError("trainer.max_epochs: a schedule needs an end; give a number of epochs, or trainer.max_steps")
        if math.isinf(per_epoch) and (given.warmup_epochs or given.milestones):
            raise UsageError("model.warmup_epochs, model.milestones: how long an epoch of this data is is not known")
        per_epoch = total if math.isinf(per_epoch) else per_epoch
        self.stage_ends = stage_ends(stages, total, per_epoch)

        def factor_over(batches: float) -> Callable[[float], float]:
            return schedule_factor(given.schedule, batches, per_epoch, given.warmup_epochs, given.milestones, given.gamma)

        scheduler = StagedSchedule(optimizer, stages, self.stage_ends, factor_over)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def resume_schedule(self) -> None:
        """Let the settings of this run hold from a checkpoint on, and its schedule go on by the share of epochs that are done.

        A checkpoint's optimiser brings its own rates, and its number of steps is that of its own batches; where nothing has
        changed, neither does this change a bit.
        """
        schedules = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        per_epoch = epoch_steps(self.trainer)
        if len(schedules) != 1 or not isinstance(schedules[0], StagedSchedule) or math.isinf(per_epoch):
            return
        loop = self.trainer.fit_loop
        begun = loop.batch_idx + 1 if loop.restarted_mid_epoch else 0
        done = self.trainer.current_epoch * int(per_epoch) + begun // self.trainer.accumulate_grad_batches
        self._ahead = done - self.global_step
        schedules[0].go_on(done)

    def lr_factor(self) -> float:
        """By what this run's batch changes the learning rates, see `lr_batch`."""
        meant_for = self.arguments.lr_batch
        if meant_for is None or self._trainer is None:
            return 1.0
        size = self._of_data("batch_size")
        if size is None:
            self.trainer.fit_loop.setup_data()  # nobody need have asked for the data yet
            size = getattr(self.trainer.train_dataloader, "batch_size", None)
        if size is None:
            raise UsageError("model.lr_batch: the data does not say how large its batches are; leave it away (null)")
        batch = size * self.trainer.world_size * self.trainer.accumulate_grad_batches
        return batch / meant_for if self.arguments.optimizer == "sgd" else math.sqrt(batch / meant_for)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients' norm, where that is asked for; those of what stands still are gone by now."""
        if self.arguments.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.arguments.clip_norm)

    def configure_callbacks(self) -> list[Callback]:
        """The moving average of the weights, where it is asked for, and what a training consists of beside its steps."""
        # By interpolation, so that the average of what stands still is what it is, to the bit.
        decay = self.arguments.ema_decay
        average = [] if decay is None else [WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(decay))]
        if self.trainer.state.fn != TrainerFn.FITTING:
            return [*average]
        if not self.automatic_optimization:
            self._check_trainer()
        # After the average, which takes the weights' place in validation: ranks agree on what is validated.
        return [*average, EnterStages(), Ranks()]

    def _check_trainer(self) -> None:
        """Refuse what Lightning cannot do where a batch takes several optimiser steps."""
        name = type(self).__name__
        if self.trainer.accumulate_grad_batches != 1:
            raise UsageError(
                f"trainer.accumulate_grad_batches: {name} takes {self.steps_per_batch} optimiser steps a batch, and steps "
                "cannot be accumulated over batches; lower the learning rate or the batch size instead"
            )
        if self.trainer.gradient_clip_val:
            raise UsageError(
                f"trainer.gradient_clip_val: {name} takes {self.steps_per_batch} optimiser steps a batch, which the trainer "
                "cannot clip; use --model.clip_norm, which clips for every method"
            )

    def sample_keys(self, index: Tensor) -> Tensor:
        """The (seed, epoch, index) of a batch's samples.

        Args:
            index: (B,), positions in the data set.

        Returns:
            (B, 3) int64.
        """
        seed = self._of_data("seed")
        if seed is None:
            seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        return torch.stack([torch.full_like(index, seed), torch.full_like(index, self.current_epoch), index], dim=1)

    def _of_data(self, name: str, default: Any = None) -> Any:
        """What the trainer's data module knows or does, where there is one that does."""
        return default if self._trainer is None else getattr(getattr(self._trainer, "datamodule", None), name, default)
