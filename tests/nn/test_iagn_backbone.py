"""A backbone that stops early."""

from __future__ import annotations

import pytest
import torch

import tests.small  # noqa: F401 - registers tiny_vgg
from fgzoo.nn import Backbone

FAMILIES = ("test_resnet", "tiny_vgg", "test_efficientnet", "test_convnext", "test_vit")


@pytest.mark.parametrize("name", FAMILIES)
def test_stopping_early_gives_the_first_levels_unchanged(name: str) -> None:
    backbone = Backbone(name, pretrained=False).eval()
    images = torch.randn(2, 3, 96, 64)
    levels = backbone(images)
    for depth in range(1, len(levels) + 1):
        for early, whole in zip(backbone(images, depth=depth), levels[:depth], strict=True):
            torch.testing.assert_close(early, whole)


def test_stopping_early_gives_the_first_levels_of_a_cut_network() -> None:
    backbone = Backbone("test_resnet", pretrained=False, max_stride=16).eval()
    images = torch.randn(1, 3, 64, 64)
    for early, whole in zip(backbone(images, depth=2), backbone(images)[:2], strict=True):
        torch.testing.assert_close(early, whole)


@pytest.mark.parametrize("name", FAMILIES)
def test_stopping_early_runs_nothing_deeper(name: str) -> None:
    backbone = Backbone(name, pretrained=False)
    backbone(torch.randn(2, 3, 64, 64), depth=1)[-1].sum().backward()
    reached = sum(parameter.grad is not None for parameter in backbone.parameters())
    assert 0 < reached < len(list(backbone.parameters())) / 2
