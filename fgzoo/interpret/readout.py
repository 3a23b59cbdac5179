"""What a linear classifier can tell from the features that a network's own classifiers read.

Before any training it says what the layers between a pretrained backbone and the classifiers pass on; what they lose, training
must find again. Our measure.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgzoo.errors import UsageError
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.nn.backbone import Backbone
from fgzoo.nn.evidence import EvidenceHead
from fgzoo.nn.statistics import batch_norms, fresh_statistics

#: Ridge penalties that cross-validation chooses from, and into how many parts it divides the images.
PENALTIES = tuple(10.0**exponent for exponent in range(-1, 6))
PARTS = 5
#: Batches whose statistics new batch-norms take.
CALIBRATION = 4

Batches: TypeAlias = Sequence[tuple[Tensor, Tensor]]


class Readout(NamedTuple):
    """What a ridge classifier made of a method's features.

    Attributes:
        top1: The share of held-out images that it is right about.
        features: How many features it read.
    """

    top1: float
    features: int


def readout(model: FineGrainedClassifier, train: Batches, held_out: Batches) -> Readout:
    """Train a ridge classifier on what the model's own classifiers read, and score it on other images.

    Args:
        model: Any method, as its training would begin. Afterwards its new batch-norms know the training images' statistics, and
            it is in evaluation mode.
        train: Batches of images, (B, 3, H, W), uint8 or normalised, and classes, (B,).
        held_out: The same of the images that are scored.

    Returns:
        Accuracy, and number of features.
    """
    calibrate(model, [model.normalize(images) for images, _ in train[:CALIBRATION]])
    classifiers = final_classifiers(model, model.normalize(train[0][0][:2]))
    (features, targets), (others, wanted) = (
        (
            torch.cat([classifier_inputs(model, model.normalize(images), classifiers) for images, _ in batches]).double(),
            torch.cat([classes for _, classes in batches]),
        )
        for batches in (train, held_out)
    )
    return Readout(ridge_accuracy(features, targets, others, wanted), features.shape[1])


def final_classifiers(model: FineGrainedClassifier, images: Tensor) -> list[nn.Module]:
    """The layers whose outputs the scored logits are made of: those of K outputs that the logits depend on.

    Args:
        model: Any method; no hidden layer of it may be K wide.
        images: (B, 3, H, W), normalised; what is run once, in evaluation mode.

    Returns:
        Linear layers, convolutions and evidence heads, in the network's order.

    Raises:
        UsageError: There are none.
    """
    heads = [module for module in model.network.modules() if isinstance(module, EvidenceHead)]
    inside = {child for head in heads for child in head.modules()} - set(heads)
    found: list[nn.Module] = [
        module
        for module in model.network.modules()
        if module not in inside
        and (
            isinstance(module, EvidenceHead)
            or (isinstance(module, nn.Linear) and module.out_features == model.num_classes)
            or (isinstance(module, nn.Conv2d) and module.out_channels == model.num_classes)
        )
    ]
    if not found:
        raise UsageError(f"readout: no layer of {model.num_classes} outputs makes the logits of {type(model).__name__}")
    weights = [next(module.parameters()) for module in found]
    with model.evaluating(), torch.enable_grad():
        gradients = torch.autograd.grad(model.network(images).logits.sum(), weights, allow_unused=True)
    return [module for module, gradient in zip(found, gradients, strict=True) if gradient is not None]


@torch.no_grad()
def classifier_inputs(model: FineGrainedClassifier, images: Tensor, classifiers: Iterable[nn.Module]) -> Tensor:
    """What classifiers read of images in evaluation mode: maps averaged over locations, several views of an image over the views.

    Args:
        model: Any method.
        images: (B, 3, H, W), normalised.
        classifiers: From [final_classifiers][].

    Returns:
        (B, D), the classifiers' inputs one after the other.
    """
    read: dict[nn.Module, list[Tensor]] = defaultdict(list)

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        maps = args[0] if isinstance(args[0], list | tuple) else [args[0]]
        pooled = torch.cat([x.mean(dim=(2, 3)) if x.ndim == 4 else x for x in maps], dim=1)
        # Patches of an image stand one after the other.
        read[module].append(pooled.unflatten(0, (len(images), -1)).mean(dim=1))

    classifiers = list(classifiers)
    with contextlib.ExitStack() as hooks, model.evaluating():
        for module in classifiers:
            hooks.enter_context(module.register_forward_pre_hook(note))
        model.network(images)
    return torch.cat([torch.stack(read[module]).mean(dim=0) for module in classifiers], dim=1)


@torch.no_grad()
def calibrate(model: FineGrainedClassifier, batches: Iterable[Tensor]) -> None:
    """Give batch-norms outside of backbones the statistics of images, as the first steps of a training do.

    Args:
        model: Any method; afterwards it is in evaluation mode.
        batches: (B, 3, H, W) each, normalised.
    """
    inside = {module for backbone in model.network.modules() if isinstance(backbone, Backbone) for module in backbone.modules()}
    norms = [norm for norm in batch_norms(model.network) if norm not in inside]
    model.eval()
    for norm in norms:
        norm.train()
    with fresh_statistics(norms):
        for images in batches if norms else ():
            model.network(images)
    model.eval()


def ridge_accuracy(train: Tensor, train_targets: Tensor, held_out: Tensor, targets: Tensor) -> float:
    """Accuracy of a ridge classifier of standardised features; cross-validation on the training images chooses its penalty.

    Args:
        train: (N, C), float64.
        train_targets: (N,) classes.
        held_out: (M, C).
        targets: (M,) classes.

    Returns:
        The share of held-out images that it is right about.
    """
    classes = int(max(train_targets.max(), targets.max())) + 1
    part = torch.arange(len(train)) % PARTS
    hits = torch.zeros(len(PENALTIES))
    for one in range(PARTS):
        inside, outside = part != one, part == one
        found = ridge_predictions(train[inside], train_targets[inside], train[outside], classes)
        hits += (found == train_targets[outside]).sum(dim=1)
    best = int(hits.argmax())
    found = ridge_predictions(train, train_targets, held_out, classes)[best]
    return (found == targets).double().mean().item()


def ridge_predictions(train: Tensor, train_targets: Tensor, others: Tensor, classes: int) -> Tensor:
    """What ridge classifiers with each of the P penalties make of M other images: their classes, (P, M)."""
    mean, deviation = train.mean(dim=0), train.std(dim=0).clamp_min(1e-12)
    x, others = (train - mean) / deviation, (others - mean) / deviation
    y = F.one_hot(train_targets, classes).double()
    shares = y.mean(dim=0)
    # In the space of the images, of which there are fewer than features.
    values, vectors = torch.linalg.eigh(x @ x.T)
    turned, seen = vectors.T @ (y - shares), others @ x.T @ vectors
    scores = [seen / (values.clamp_min(0) + penalty) @ turned + shares for penalty in PENALTIES]
    return torch.stack(scores).argmax(dim=2)
