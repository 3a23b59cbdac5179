"""What a linear classifier can tell from the features inside a method, before it is trained.

Backbones have pretrained weights, the rest has those that training starts from. A row is one place in a network: its features,
averaged over an image. Those of one of two folds of the training split train a ridge classifier, whose penalty cross-validation
chooses; its accuracy is on the other fold. What a layer loses here, training must find again. The test split is not read.

    python benchmarks/readouts.py --data cub --root PATH --backbone mobilenetv2_100 --weights PATH --write
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import deliver, heading, machine, table
from torch import Tensor, nn

from fgzoo import FGVCDataModule, create_model
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.methods.rra import RRANetwork
from fgzoo.methods.srbn import SRBNNetwork
from fgzoo.recipes import find_recipe, read_config

PENALTIES = tuple(10.0**exponent for exponent in range(-1, 6))
PARTS = 5
#: The settings of the tables' RRA.
RRA = read_config(find_recipe("small-rra"))["model"]["init_args"]
#: What is looked at: a method, and arguments beside its own.
MODELS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("rra", RRA),
    ("srbn", {}),
    ("srbn", {"scale": 22.6}),
    ("srbn", {"batch_norm": True}),
)


def rra_places(network: RRANetwork, images: Tensor) -> dict[str, Tensor]:
    """RRA's patches before and after the recursion, averaged over an image's patches."""
    stream = network.local_stream
    assert stream is not None
    features = network.global_backbone(images)[-1]
    boxes = network.boxes(images, features, None)
    pooled = network.patch_features(images, boxes).mean(dim=(2, 3))
    states = stream.states(pooled)
    context = states[:, -1] if stream.attention is None else stream.attention(states)[0]
    patches = {"patches": pooled, "recursion": context}
    return {"image": features.mean(dim=(2, 3)), **{k: v.unflatten(0, boxes.shape[:2]).mean(dim=1) for k, v in patches.items()}}


def srbn_places(network: SRBNNetwork, images: Tensor) -> dict[str, Tensor]:
    """SRBN's streams, local features and scan."""
    assert network.local is not None
    a, b = network.streams(images)
    alphas, hidden = network.focus(a, b)
    assert hidden is not None
    places = {"first stream": a, "second stream": b, "local features": network.local_features(a, b)}
    return {**{name: maps.mean(dim=(2, 3)) for name, maps in places.items()}, "scan": (alphas[-1][:, None] * hidden).sum((2, 3))}


@torch.inference_mode()
def calibrate(model: FineGrainedClassifier, data: FGVCDataModule) -> None:
    """Give batch normalisation outside of pretrained backbones the statistics of the images that a fold holds out."""
    norms = [m for name, m in model.network.named_modules() if isinstance(m, nn.BatchNorm2d) and "backbone" not in name]
    for norm in norms:
        norm.train()
        norm.momentum = None
    for images, *_ in data.val_dataloader() if norms else ():
        model(model.normalize(images))
    for norm in norms:
        norm.eval()


@torch.inference_mode()
def features(model: FineGrainedClassifier, data: FGVCDataModule) -> tuple[dict[str, Tensor], Tensor]:
    """Features (N, C) by place, and classes (N,), of the images that a fold holds out."""
    places: dict[str, list[Tensor]] = defaultdict(list)
    found = []
    look: Callable[..., dict[str, Tensor]] = rra_places if isinstance(model.network, RRANetwork) else srbn_places
    for images, targets, *_ in data.val_dataloader():
        for name, value in look(model.network, model.normalize(images)).items():
            places[name].append(value)
        found.append(targets)
    return {name: torch.cat(parts).double() for name, parts in places.items()}, torch.cat(found)


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
    """What ridge classifiers with each of the penalties make of other images, (P, M)."""
    mean, deviation = train.mean(dim=0), train.std(dim=0).clamp_min(1e-12)
    x, others = (train - mean) / deviation, (others - mean) / deviation
    y = F.one_hot(train_targets, classes).double()
    shares = y.mean(dim=0)
    values, vectors = torch.linalg.eigh(x @ x.T)
    turned, seen = vectors.T @ (y - shares), others @ x.T @ vectors
    scores = [seen / (values.clamp_min(0) + penalty) @ turned + shares for penalty in PENALTIES]
    return torch.stack(scores).argmax(dim=2)


def measure(options: argparse.Namespace) -> list[list[str]]:
    """A row for every place of every model."""
    kept: dict[str, Any] = {"image_size": options.image_size, "resize": round(options.image_size * 8 / 7), "num_workers": 0}
    folds = [FGVCDataModule(options.data, options.root, folds=2, fold=fold, seed=options.seed, **kept) for fold in (1, 0)]
    for data in folds:
        data.setup("fit")
    rows = []
    for method, arguments in MODELS:
        torch.manual_seed(options.seed)
        weights = {"pretrained": options.weights is None, "backbone_weights": options.weights}
        model = create_model(method, folds[0].num_classes, options.backbone, optimizer="adamw", **weights, **arguments).eval()
        calibrate(model, folds[0])
        (train, train_targets), (held_out, targets) = (features(model, data) for data in folds)
        for place, value in train.items():
            accuracy = ridge_accuracy(value, train_targets, held_out[place], targets)
            said = " ".join(f"{name} {given}" for name, given in arguments.items())
            rows.append([f"`{method} {said}`".replace(" `", "`"), place, f"{value.shape[1]:,}", f"{100 * accuracy:.1f}"])
    return rows


def main() -> None:
    """Measure, print, and with --write leave results/readouts.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="birds", help="name of a data set")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--weights", type=Path, help="the backbone's weights, instead of timm's hub")
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    about, rows = machine(), measure(options)
    text = [
        "# What can be read from features before training",
        heading(about, torch.device("cpu"), options.seed),
        (__doc__ or "").split("\n\n")[1].replace("\n", " "),
        table(["model", "features", "channels", "top-1 % of a ridge classifier, held out"], rows),
    ]
    deliver("\n\n".join(text) + "\n", {"machine": about, "rows": rows}, "readouts" if options.write else None)


if __name__ == "__main__":
    main()
