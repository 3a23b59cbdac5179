"""`birds_resnet`: timm's smallest ResNet with weights that travel in this package, pretrained on synthetic birds.

The weights are from other species than the first twelve, so that these are new to it, as the birds of a photographer are new to
a network trained on ImageNet; `benchmarks/traits.py pretrain` made them. Registered with timm: any function that takes the name
of a timm network builds it once this module is imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet

#: In half precision.
WEIGHTS = Path(__file__).with_suffix(".safetensors")

#: timm looks here for what is known of the weights.
default_cfgs = generate_default_cfgs({
    "birds_resnet.fgzoo": {
        "file": str(WEIGHTS), "num_classes": 0, "input_size": (3, 96, 96), "pool_size": (3, 3), "first_conv": "conv1.0",
        "mean": IMAGENET_INCEPTION_MEAN, "std": IMAGENET_INCEPTION_STD, "classifier": "fc",
    }
})  # fmt: skip


@register_model
def birds_resnet(pretrained: bool = False, **arguments: Any) -> ResNet:
    """Build the network.

    Args:
        pretrained: Load the packaged weights.
        **arguments: Further ones of timm's `ResNet`.

    Returns:
        A network of five levels, 32, 32, 48, 192 and 96 channels of strides 2 to 32.
    """
    shape: dict[str, Any] = {
        "block": [BasicBlock, BasicBlock, Bottleneck, BasicBlock], "layers": (1, 1, 1, 1), "channels": (32, 48, 48, 96),
        "stem_width": 16, "stem_type": "deep", "avg_down": True,
    }  # fmt: skip
    model: ResNet = build_model_with_cfg(ResNet, "birds_resnet", pretrained, **shape | arguments)
    return model
