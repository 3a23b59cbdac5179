"""timm's families at the size of a test: the smallest variant, or one whose width and depth are cut."""

from __future__ import annotations

from typing import Any

import timm
from timm.models import register_model
from torch import nn

import tests.small  # noqa: F401 - registers tiny_vgg

VIT = {"img_size": 64, "embed_dim": 32, "depth": 3, "num_heads": 2}
SWIN = {"img_size": 64, "embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 4), "window_size": 4}

#: Family -> a timm network, and what makes it tiny.
TABLE: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": ("test_resnet", {}),
    "resnext": ("resnext50_32x4d", {"layers": (1, 1, 1, 1), "channels": (8, 16, 32, 64), "cardinality": 2, "base_width": 32}),
    "regnet": ("regnetx_002", {}),
    "efficientnet": ("test_efficientnet", {}),
    "efficientnet_lite": ("tf_efficientnet_lite0", {}),
    "mobilenetv2": ("mobilenetv2_035", {}),
    "mobilenetv3": ("mobilenetv3_small_050", {}),
    "mobilenetv4": ("mobilenetv4_conv_small_035", {}),
    "convnext": ("test_convnext", {}),
    "convnextv2": ("convnextv2_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 32, 64)}),
    "vgg": ("tiny_vgg", {}),
    "densenet": ("densenet121", {"block_config": (1, 1, 2, 1), "growth_rate": 8}),
    "inception": ("inception_v3", {}),
    "vit": ("test_vit", {}),
    "deit": ("deit_tiny_distilled_patch16_224", VIT),
    "dinov2": ("vit_small_patch14_reg4_dinov2", {**VIT, "img_size": 56}),
    "dinov3": ("vit_small_patch16_dinov3", VIT),
    "beit": ("beit_base_patch16_224", VIT),
    "eva02": ("eva02_tiny_patch14_224", {**VIT, "img_size": 56}),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
    "swinv2": ("swinv2_tiny_window8_256", SWIN),
    "maxvit": ("test_maxvit", {"img_size": 64}),
    "coatnet": ("test_coatnet", {"img_size": 64}),
    "hiera": ("hiera_tiny_224", {"img_size": (64, 64), "embed_dim": 16, "num_heads": 1, "stages": (1, 1, 2, 1)}),
    "fastvit": ("fastvit_t8", {"layers": (1, 1, 1, 1), "embed_dims": (8, 16, 32, 64)}),
    "ghostnet": ("ghostnet_050", {}),
}


def register(family: str) -> str:
    """The name of a family's tiny network, which timm knows from here on."""
    base, cut = TABLE[family]
    if not cut:
        return base

    def build(pretrained: bool = False, **arguments: Any) -> nn.Module:
        network: nn.Module = timm.create_model(base, **{**cut, **arguments})
        return network

    build.__name__ = f"tiny_{family}"
    build.__module__ = timm.model_entrypoint(base).__module__
    return str(register_model(build).__name__)


#: Family -> name of its tiny network.
FAMILIES = {family: register(family) for family in TABLE}
#: Those that timm builds for a single size of image.
FIXED = {"beit", "maxvit", "coatnet", "hiera"}
#: Those whose attention has linear projections.
ATTENTIVE = {"vit", "deit", "dinov2", "dinov3", "beit", "eva02", "swin", "swinv2", "maxvit", "hiera"}
