"""How layers on pretrained features begin: so that what the features tell can still be told behind them."""

from __future__ import annotations

from typing import Literal

from torch import nn

LayerInit = Literal["default", "orthogonal"]


def orthogonal_layers(module: nn.Module) -> None:
    """Start linear layers and convolutions of one pixel with orthonormal rows (columns, where they widen).

    They then project or rotate: of the lengths and angles that a classifier tells classes apart by, a projection to half as many
    channels keeps most. Biases stay as they are.

    Args:
        module: The module itself and all below it.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)):
            nn.init.orthogonal_(layer.weight)
