"""One of two processes that train and test together: `python -m tests.training.two_ranks FOLDER`, with the rank in LOCAL_RANK."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from fgzoo.data.datamodule import FGVCDataModule
from fgzoo.data.synthetic import Birds
from fgzoo.methods import available, find_method
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.training.callbacks import ImageScores, ReproducibleSteps
from tests.small import SMALL, without_dropout
from tests.training.toys import CLASSES, Staged, Steps, Unequal, loader, make, trainer

#: Without batch statistics, two ranks of two images are one process of four.
TOYS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "staged": (Staged, {"optimizer": "adamw", "lr": 1e-3, "clip_norm": 1.0}),
    "weighted": (Unequal, {"optimizer": "adamw", "lr": 1e-3, "class_weights": "full", "label_smoothing": 0.1}),
    "adjusted": (Unequal, {"optimizer": "adamw", "lr": 1e-3, "logit_adjustment": 1.0}),
    "steps": (Steps, {"optimizer": "adamw", "lr": 1e-3, "clip_norm": 1.0}),
    "steps with momentum": (Steps, {"optimizer": "sgd", "lr": 1e-2}),
    "frozen": (
        Staged,
        {"backbone": "test_efficientnet", "freeze": 2, "freeze_norm": "statistics", "optimizer": "adamw", "lr": 1e-3},
    ),
}
METHODS = tuple(available())
#: Nine test images leave one over for two ranks; of one, a rank has nothing.
TEST_IMAGES = {"nine": 9, "one": 1}


def method(name: str, **arguments: Any) -> FineGrainedClassifier:
    """A small one, without dropout."""
    cls, fixed = find_method(name)
    model: FineGrainedClassifier = make(cls, "tiny_vgg", **{**fixed, **SMALL.get(name, {}), **without_dropout(cls), **arguments})
    return model


def birds(test_images: int = 9, batch_size: int = 2, **arguments: Any) -> FGVCDataModule:
    data = FGVCDataModule(
        birds=Birds(classes=CLASSES, train_per_class=3, test_per_class=3, size=64),
        image_size=64, resize=72, batch_size=batch_size, eval_batch_size=2, seed=0, **arguments,
    )  # fmt: skip
    data.splits = {**data.splits, "test": data.splits["test"][:test_images]}
    return data


class Gradients(L.Callback):
    """Keeps what every optimiser step was given, with batch-norm as it is in evaluation: batch statistics are a rank's own."""

    def __init__(self) -> None:
        self.found: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        for module in pl_module.modules():
            if isinstance(module, _BatchNorm):
                module.eval()

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        named = pl_module.named_parameters()
        self.found.append({name: p.grad.clone() for name, p in named if p.grad is not None})


def gradients(name: str, folder: Path, batch_size: int, first: int = 0, every: int = 1, **how: Any) -> list[dict[str, Tensor]]:
    """Of one batch of the noise images."""
    kept = Gradients()
    runner = trainer(folder, max_epochs=1, limit_train_batches=1, callbacks=[kept], **how)
    # No rate, so that the later steps of a batch start from the same weights.
    runner.fit(method(name, lr=0.0), loader(batch_size, first, every))
    return kept.found


def scores(name: str, folder: Path, test_images: int, **how: Any) -> dict[str, float]:
    """Test metrics of untrained weights, which a test can only be talked into, and each image's in the folder."""
    model = method(name)
    model.trained = True
    each = ImageScores(folder / f"{name} {test_images}")
    return dict(trainer(folder, callbacks=[each], **how).test(model, datamodule=birds(test_images, tail=1.0), verbose=False)[0])


def epochs(model: FineGrainedClassifier) -> int:
    """Enough for each of its stages, and for a resume on either side of a boundary where there is one."""
    return 3 if len(model.stages()) > 1 else 2


def unfinished(name: str) -> list[str]:
    """The checkpoints that [fit][] leaves, without the last."""
    return [f"epoch={done}.ckpt" for done in range(epochs(method(name)) - 1)]


def fit(name: str, folder: Path, workers: int = 0, resume: str | None = None, **how: Any) -> dict[str, Tensor]:
    """Weights after some epochs, of which each leaves a checkpoint; or after what is left of them from one on."""
    keep = ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    model = method(name, optimizer="adamw", lr=1e-3)
    how = {"max_epochs": epochs(model), "enable_checkpointing": True, "limit_val_batches": 0, **how}
    runner = trainer(folder, callbacks=[keep, ReproducibleSteps(0)], **how)
    runner.fit(model, datamodule=birds(num_workers=workers, augmentation="standard"), ckpt_path=resume and folder / resume)
    return model.state_dict()


def main(folder: Path) -> None:
    rank = int(os.environ["LOCAL_RANK"])
    two: dict[str, Any] = {"devices": 2, "strategy": "ddp"}
    for name, (cls, arguments) in TOYS.items():
        model = make(cls, **{"backbone": "tiny_vgg", **arguments})
        runner = trainer(folder, **two)
        runner.fit(model, loader(batch_size=2, first=rank, every=2))
        weights = {key: value for key, value in model.state_dict().items() if "running_" not in key}
        torch.save({"weights": weights, "steps": runner.global_step}, folder / f"{name} {rank}.pt")
    for name in METHODS:
        found = {
            "gradients": gradients(name, folder, 2, rank, 2, **two),
            "scores": {label: scores(name, folder, images, **two) for label, images in TEST_IMAGES.items()},
            "whole": fit(name, folder / name, **two),
            "resumed": {checkpoint: fit(name, folder / name, resume=checkpoint, **two) for checkpoint in unfinished(name)},
        }
        torch.save(found, folder / f"{name} {rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
