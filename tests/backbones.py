"""A VGG small enough for tests, registered with timm under the name `tiny_vgg`."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, register_model
from timm.models.vgg import VGG

LAYERS = [8, "M", 16, "M", 16, "M", 32, "M", 32, "M"]


def tiny_vgg(pretrained: bool = False, **arguments: Any) -> VGG:
    return build_model_with_cfg(VGG, "vgg11", pretrained, model_cfg=LAYERS, mlp_ratio=0.01, **arguments)


tiny_vgg.__module__ = "timm.models.vgg"
register_model(tiny_vgg)
