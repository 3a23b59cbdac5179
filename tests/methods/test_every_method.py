"""Every method and every parent passes every check, on five families of backbones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tests.backbones  # noqa: F401 - registers tiny_vgg
from fgzoo.methods import available, find_method
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.testing import CHECKS, NUM_CLASSES

#: One tiny network of each family: resnet, vgg, mobilenet, convnext, vision transformer.
BACKBONES = ("test_resnet", "tiny_vgg", "test_efficientnet", "test_convnext", "test_vit")
#: What makes each method small enough for a test.
SMALL: dict[str, dict[str, Any]] = {
    "rra": {"hidden_size": 32, "global_width": 32, "steps": 3},
    "rra-parent": {"global_width": 32},
}
CONTROLS: dict[str, tuple[str, dict[str, Any]]] = {
    "rra without recursion": ("rra", {"recursion": False}),
    "rra with random patches": ("rra", {"patches": "random", "attend_over_time": False}),
}
#: Slow checks run on one backbone a method.
ONCE = {"exports", "one_graph", "trains_and_reloads"}


def cases() -> list[Any]:
    found = []
    named = {name: (name, {}) for name in available()} | CONTROLS
    for label, (name, more) in named.items():
        for check in CHECKS:
            for backbone in BACKBONES:
                if label in CONTROLS and backbone != "test_efficientnet":
                    continue
                if check in ONCE and backbone not in ("test_efficientnet", "test_vit"):
                    continue
                found.append(pytest.param(name, more, check, backbone, id=f"{label}-{backbone}-{check}"))
    return found


@pytest.mark.parametrize(("name", "more", "check", "backbone"), cases())
def test_method(name: str, more: dict[str, Any], check: str, backbone: str) -> None:
    cls, fixed = find_method(name)

    def make() -> FineGrainedClassifier:
        torch.manual_seed(0)
        arguments = {**fixed, **SMALL.get(name, {}), **more}
        return cls(num_classes=NUM_CLASSES, backbone=backbone, pretrained=False, **arguments)

    CHECKS[check](make)
