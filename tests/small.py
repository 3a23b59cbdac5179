"""What makes methods small enough for tests; and a VGG of that kind, registered with timm under the name `tiny_vgg`."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, register_model
from timm.models.vgg import VGG

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
}
LAYERS = [8, "M", 16, "M", 16, "M", 32, "M", 32, "M"]


def tiny_vgg(pretrained: bool = False, **arguments: Any) -> VGG:
    return build_model_with_cfg(VGG, "vgg11", pretrained, model_cfg=LAYERS, mlp_ratio=0.01, **arguments)


tiny_vgg.__module__ = "timm.models.vgg"
register_model(tiny_vgg)
