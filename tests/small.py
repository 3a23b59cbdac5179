"""What makes methods small enough for tests; and a VGG of that kind, registered with timm under the name `tiny_vgg`."""

from __future__ import annotations

from typing import Any

import torch
from timm.models import build_model_with_cfg, register_model
from timm.models.vgg import VGG
from torch import Tensor, nn

from fgzoo import create_model
from fgzoo.data.card import DataCard
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.nn.output import MethodOutput

#: What makes each method small enough for a test.
SMALL: dict[str, dict[str, Any]] = {
    "rra": {"hidden_size": 32, "global_width": 32, "steps": 3},
    "rra-parent": {"global_width": 32},
    "iagn": {"feature_size": 16},
    "pmg": {"feature_size": 16},
    "coarse2fine": {"num_maps": 4, "decoder_widths": (8, 4)},
    "wsdan": {"num_maps": 4},
    "srbn": {"hidden_size": 16, "rank": 32, "projection": 16, "attention_size": 16},
    "bcnn": {"bilinear_size": 4096},
    "bcnn-spp": {"bilinear_size": 1024},
}
LAYERS = [8, "M", 16, "M", 16, "M", 32, "M", 32, "M"]


def tiny_vgg(pretrained: bool = False, num_classes: int = 10, **arguments: Any) -> VGG:
    """Of few classes: behind 4,096 channels, those of ImageNet would be four million weights to draw."""
    model: VGG = build_model_with_cfg(
        VGG, "vgg11", pretrained, model_cfg=LAYERS, mlp_ratio=0.01, num_classes=num_classes, **arguments
    )
    return model


tiny_vgg.__module__ = "timm.models.vgg"
register_model(tiny_vgg)

NAMES = ["Cardinal", "Crow", "Gull", "Ovenbird"]
#: No margin round the crop, as for the augmentation `paper`.
CARD = DataCard("folder", NAMES, 64, 64, "squash", "bilinear", "pillow", "0" * 16)


def seen_by(module: nn.Module) -> list[Tensor]:
    """The first input of every later call of a module."""
    found: list[Tensor] = []
    module.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].detach()))
    return found


def total(model: FineGrainedClassifier, output: MethodOutput, targets: Tensor) -> Tensor:
    return torch.stack(list(model.loss(output, targets).values())).sum()


def require_projections(*layers: Any) -> None:
    """Each layer's weights are orthonormal along their shorter side."""
    for layer in layers:
        weight = layer.weight.flatten(1)
        weight = weight if weight.shape[0] <= weight.shape[1] else weight.T
        torch.testing.assert_close(weight @ weight.T, torch.eye(len(weight)), rtol=0, atol=1e-5)


def without_dropout(method: type[FineGrainedClassifier]) -> dict[str, float]:
    """The argument that leaves dropout away, where a method has one: its noise is a device's and a process's own."""
    return {"dropout": 0.0} if "dropout" in method.__init__.__annotations__ else {}


def small(
    name: str = "baseline", card: DataCard = CARD, seed: int = 0, backbone: str = "test_efficientnet", **more: Any
) -> FineGrainedClassifier:
    """A model that counts as trained."""
    torch.manual_seed(seed)
    arguments = {**SMALL.get(name, {}), **more}
    model = create_model(name, len(card.class_names), backbone, pretrained=False, **arguments)
    model.card, model.trained = card, True
    if name == "baseline":
        with torch.no_grad():
            model.network.classifier.weight.mul_(300)  # type: ignore[operator, union-attr] # so that images differ by percents
    return model.eval()
