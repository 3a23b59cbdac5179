"""What a finished training learns of its classes: where each lies in the space of features, and what is far from all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fgzoo.checkpoints.loading import load, read_checkpoint
from fgzoo.checkpoints.run_folder import BEST, LAST
from fgzoo.data.datamodule import FGVCDataModule
from fgzoo.data.tree import Split
from fgzoo.errors import UsageError
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.prediction.rejection import Calibration, ClassMeans
from fgzoo.training.faults import WholeCheckpoints

#: Class means beyond this stay away: safetensors' header, in which they stand as text, ends at 100 MB.
MOST_NUMBERS = 2**24


def learn_known_classes(run: Path, data: FGVCDataModule, device: torch.device) -> Calibration | None:
    """Let the checkpoints of a run reject by features what they reject by probabilities so far.

    Class means are of the training images, thresholds of the held-out ones, both prepared as for testing and computed in single
    precision. It takes one forward pass over these images, or two where the best epoch is not the last one.

    Args:
        run: The run's folder.
        data: Its images.
        device: Where to compute.

    Returns:
        The calibration of the last checkpoint; `None` where it has none, since its weights have not been validated.
    """
    known: dict[int, Calibration | None] = {}
    found = None
    for path in filter(Path.is_file, (run / BEST, run / LAST)):
        content = read_checkpoint(path)
        stored, steps = content["fgzoo"].get("calibration"), content["global_step"]
        if stored is not None and steps not in known:
            before = Calibration.read(stored)
            known[steps] = before if before.score == "cosine" else calibrate(load(path).to(device), data)
        found = known[steps] if stored is not None else None
        if found is not None and stored != (learnt := found.as_dict()):
            content["fgzoo"]["calibration"] = learnt
            WholeCheckpoints().save_checkpoint(content, path)
    return found


def calibrate(model: FineGrainedClassifier, data: FGVCDataModule) -> Calibration | None:
    """Temperature, class means, and the thresholds of their cosines; `None` where an answer is not finite.

    Raises:
        UsageError: The method has no features, or the means are too many numbers for a checkpoint's header.
    """
    features, targets = computed(lambda images: (model.features(images),), model, data, "train")
    if model.num_classes * features.shape[1] > MOST_NUMBERS:
        raise UsageError(f"means of {features.shape[1]} features of {model.num_classes} classes are too many to be kept")
    means = ClassMeans.fit(features, targets, model.num_classes)
    logits, features, targets = computed(model.logits_and_features, model, data, "val")
    finite = all(values.isfinite().all() for values in (logits, features, means.directions))
    return Calibration.fit(logits, targets, "cosine", features, means) if finite else None


@torch.inference_mode()
def computed(
    quantities: Callable[[Tensor], tuple[Tensor, ...]], model: FineGrainedClassifier, data: FGVCDataModule, split: Split
) -> tuple[Tensor, ...]:
    """What is computed of a split's normalised images, (N, D) each, and their classes (N,), on the CPU."""
    found: list[tuple[Tensor, ...]] = []
    with model.evaluating():
        for images, targets, _ in filter(None, data.as_tested(split)):
            normalized = model.normalize(images.to(model.device)).contiguous(memory_format=torch.channels_last)
            found.append((*(values.float().cpu() for values in quantities(normalized)), targets))
    return tuple(map(torch.cat, zip(*found, strict=True)))
