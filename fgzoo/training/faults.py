"""What a run does when something goes wrong: a loss that is no number, a full disk or GPU, a signal, a dead loader worker."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from fgzoo.data.datamodule import FGVCDataModule
from fgzoo.data.shared_memory import no_room
from fgzoo.errors import TrainingError

#: Status of a process that SIGTERM ended, as a shell reports it.
TERMINATED = 128 + signal.SIGTERM

_DEAD_WORKER = re.compile(r"DataLoader worker \(pid\(?s?\)? (?P<pid>\d+)")
_NOT_DETERMINISTIC = re.compile(r"(?P<kernel>\w+) does not have a deterministic implementation")


class FiniteLoss(Callback):
    """Stops a run whose loss has become NaN or infinite, before that reaches a checkpoint.

    Which step was the first is noted on the device; the question is put to it every `every` batches, and before anything is
    validated or saved, so that no step waits for an answer.

    Args:
        every: Batches between two questions.

    Raises:
        TrainingError: The loss is no longer a number; names epoch, step and learning rate.
    """

    def __init__(self, every: int = 50) -> None:
        self.every = every
        self.first = torch.tensor(torch.inf)
        #: The first batch of this epoch, and the steps before it.
        self.begun = 0, 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing has gone wrong yet."""
        self.first = torch.full((), torch.inf, device=pl_module.device)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the step that an epoch begins with; it need not begin with its first batch."""
        if batch_idx == 0 or self.begun == (0, 0):
            self.begun = batch_idx, trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss of the batch."""
        loss: Tensor = outputs["loss"]
        # Positions are exact in single precision up to 2^24 batches of an epoch.
        position = torch.where(torch.isfinite(loss.detach()), torch.inf, float(batch_idx))
        self.first = torch.minimum(self.first, position)
        if (batch_idx + 1) % self.every == 0:
            self._check(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before the best checkpoint is chosen."""
        if trainer.training or trainer.state.fn == "fit":
            self._check(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before the last checkpoint is written."""
        self._check(trainer)

    def _check(self, trainer: L.Trainer) -> None:
        # One process may have met it a batch before the others, and all must stop together.
        first = self.first if trainer.world_size == 1 else trainer.strategy.reduce(self.first.clone(), reduce_op="min")
        if torch.isinf(torch.as_tensor(first)):
            return
        batch = int(first)
        step = self.begun[1] + (batch - self.begun[0]) // trainer.accumulate_grad_batches
        raise TrainingError(
            f"the loss is not a finite number: epoch {trainer.current_epoch + 1}, batch {batch + 1} (step {step + 1}), learning "
            f"rate {rate_at(trainer, step):.3g}. Lower --model.lr, limit the gradient by --model.clip_norm, or train in "
            f"--trainer.precision 32-true; the last checkpoint is the one of the epoch before"
        )


def rate_at(trainer: L.Trainer, step: int) -> float:
    """The highest learning rate of any parameter group at a step of this run."""
    if not trainer.lr_scheduler_configs:
        return max(float(group["lr"]) for group in trainer.optimizers[0].param_groups)
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
    return max(float(base) * factor(step) for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True))


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside the one it replaces, and moves it into place when it is whole.

    Lightning's own writes into the system's folder for temporary files first; where that is another file system, moving from
    there is copying over the old checkpoint, and a full disk leaves neither.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint file.

        Raises:
            TrainingError: It cannot be written; the file that was there before is as it was.
        """
        final = Path(path)
        part = final.with_name(f".{final.name}.part")
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            part.replace(final)
        except OSError as error:
            part.unlink(missing_ok=True)
            way = "Make room, then continue" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Continue"
            raise TrainingError(
                f"{final}: the checkpoint cannot be written ({error.strerror or error}); the one before it is as it was. "
                f"{way} by --resume {final.parent.parent}"
            ) from error


class EndOnSigterm(Callback):
    """SIGTERM (a scheduler's preemption, a time limit) ends the run at once, with status 143.

    Nothing has to be saved: the last epoch's checkpoint is whole at every moment, and a resumed run continues from there to the
    bit. Lightning's own handler broadcasts to the other processes from within the signal, which may come while they wait for
    another exchange; then all of them hang.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signal over; Lightning gives it back at the end."""
        launcher = trainer.strategy.launcher

        def end(_number: int, _frame: FrameType | None) -> None:
            # Who ends a whole group of processes ends the loaders' workers, too; what torch raises for them is not why this ends.
            if hasattr(signal, "SIGCHLD"):
                signal.signal(signal.SIGCHLD, lambda *_: None)
            if launcher is not None:
                launcher.kill(signal.SIGTERM)
            raise SystemExit(TERMINATED)

        # A training in a thread leaves the process's signals alone.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, end)


def name_failure(error: RuntimeError, data: FGVCDataModule) -> TrainingError | None:
    """The error to raise instead of torch's, where a person can do something about it.

    Returns:
        `None` where the error is about something else.
    """
    if line := no_room(error, "--data.num_workers"):
        return TrainingError(line)
    if isinstance(error, torch.OutOfMemoryError):
        return TrainingError(
            f"the GPU has no memory left for batches of {data.batch_size} images of {data.image_size} pixels. Lower "
            f"--data.batch_size (--trainer.accumulate_grad_batches keeps the images of a step), or add "
            f"--model.recompute_backbone true: less memory for more time ({str(error).splitlines()[0]})"
        )
    if found := _NOT_DETERMINISTIC.search(str(error)):
        return TrainingError(
            f"trainer.deterministic: torch has no deterministic form of {found['kernel']}, which this method needs on a GPU; "
            f"with --trainer.deterministic warn all else stays deterministic"
        )
    return _name_dead_worker(error, data)


def _name_dead_worker(error: RuntimeError, data: FGVCDataModule) -> TrainingError | None:
    """What a loader's worker was reading when it died."""
    said = _DEAD_WORKER.search(str(error))
    if said is None:
        return None
    path = data.read_by(int(said["pid"]))
    what = f"while it read {path}" if path else "between two images"
    how = str(error).strip().splitlines()[0]
    return TrainingError(
        f"a loader worker died {what} ({how}). Where that was for want of memory, lower --data.num_workers; where a file crashes "
        f"the decoder, take it out of the data or use --data.decoder pillow"
    )
