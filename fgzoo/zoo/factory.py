"""Models by name."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from fgzoo.methods import available, find_method
from fgzoo.methods.base import FineGrainedClassifier


def list_models(pattern: str = "*") -> list[str]:
    """Names that [create_model][] knows, those of installed plug-ins included.

    Args:
        pattern: A shell pattern, e.g. `rra*`.

    Returns:
        Sorted names.
    """
    return sorted(name for name in available() if fnmatch(name, pattern))


def create_model(
    name: str,
    num_classes: int,
    backbone: str = "resnet50",
    pretrained: bool = True,
    backbone_weights: str | Path | None = None,
    **method_arguments: Any,
) -> FineGrainedClassifier:
    """Make a model.

    Args:
        name: A name of [list_models][], or the path of a class.
        num_classes: Number of classes K.
        backbone: Name of a timm network.
        pretrained: Start from timm's pretrained weights.
        backbone_weights: A local `.safetensors` or `.pth` file with the backbone's weights, used instead of timm's.
        **method_arguments: Arguments of the method's class.

    Returns:
        An untrained classifier (its backbone may be pretrained).

    Raises:
        UsageError: There is no such method, or an argument that it does not know.
    """
    cls, fixed = find_method(name)
    return cls(
        num_classes=num_classes,
        backbone=backbone,
        pretrained=pretrained,
        backbone_weights=backbone_weights,
        **{**fixed, **method_arguments},
    )
