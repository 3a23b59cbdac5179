"""The methods, by name. Importing this module imports no torch; a method is imported when it is asked for."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from fnmatch import fnmatch
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgzoo.errors import UsageError
from fgzoo.wording import did_you_mean

if TYPE_CHECKING:
    from fgzoo.methods.base import FineGrainedClassifier as FineGrainedClassifier
    from fgzoo.methods.baseline import Baseline as Baseline
    from fgzoo.methods.coarse2fine import Coarse2Fine as Coarse2Fine
    from fgzoo.methods.iagn import IAGN as IAGN
    from fgzoo.methods.rra import RRA as RRA
    from fgzoo.methods.srbn import SRBN as SRBN

#: Class path and fixed arguments by name. A parent is its method's class with the mechanism switched off.
BUILT_IN: dict[str, tuple[str, dict[str, Any]]] = {
    "baseline": ("fgzoo.methods.baseline.Baseline", {}),
    "rra": ("fgzoo.methods.rra.RRA", {}),
    "rra-parent": ("fgzoo.methods.rra.RRA", {"local": False}),
    "iagn": ("fgzoo.methods.iagn.IAGN", {}),
    "pmg": (
        "fgzoo.methods.iagn.IAGN",
        {"head": "pmg", "guidance": False, "distillation": "none", "alignment_weight": 0.0, "whole_statistics": False},
    ),
    "coarse2fine": ("fgzoo.methods.coarse2fine.Coarse2Fine", {}),
    "wsdan": ("fgzoo.methods.coarse2fine.Coarse2Fine", {"fine": "none", "init": "default"}),
    "srbn": ("fgzoo.methods.srbn.SRBN", {}),
    "bcnn": ("fgzoo.methods.srbn.SRBN", {"attention": "none", "spatial_lstm": False}),
    "bcnn-spp": ("fgzoo.methods.srbn.SRBN", {"attention": "none", "spatial_lstm": False, "pyramid": [1, 2]}),
}

_EXPORTED = {path.rpartition(".")[2]: path for path, _ in BUILT_IN.values()} | {
    "FineGrainedClassifier": "fgzoo.methods.base.FineGrainedClassifier"
}

__all__ = [
    "BUILT_IN",
    "IAGN",
    "RRA",
    "SRBN",
    "Baseline",
    "Coarse2Fine",
    "FineGrainedClassifier",
    "available",
    "create_model",
    "find_method",
    "import_path",
    "list_models",
    "method_name",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTED:
        return import_path(_EXPORTED[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def import_path(path: str) -> Any:
    """Import `package.module.Name`."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def available() -> dict[str, tuple[str, dict[str, Any]]]:
    """Every method by name: the built-in ones, then those that installed packages declare under `fgzoo.methods`.

    Returns:
        Name -> (class path, fixed arguments). An entry point can neither replace a built-in method nor fix arguments.
    """
    return {**{name: (path, {}) for name, path in installed().items()}, **BUILT_IN}


@functools.cache
def installed() -> dict[str, str]:
    """Class paths by name of what installed packages declare, read once a process; `installed.cache_clear()` reads anew."""
    return {point.name: point.value.replace(":", ".") for point in entry_points(group="fgzoo.methods")}


def method_name(path: str, arguments: Mapping[str, Any]) -> str:
    """The name under which a model is listed: of those that fit its class and arguments the one that fixes most.

    Args:
        path: Path of the model's class.
        arguments: Its arguments.

    Returns:
        A name of [available][]; the class's path where none fits.
    """
    fitting = {
        name: len(fixed)
        for name, (cls, fixed) in available().items()
        if cls == path and all(_plain(arguments.get(key)) == value for key, value in fixed.items())
    }
    return max(fitting, key=lambda name: fitting[name]) if fitting else path


def _plain(value: Any) -> Any:
    """An argument as a config says it."""
    return list(value) if isinstance(value, tuple) else value


def find_method(name: str) -> tuple[type[FineGrainedClassifier], dict[str, Any]]:
    """The class of a method and the arguments that its name fixes.

    Args:
        name: A name of [available][], or the path of a class.

    Returns:
        The class and the fixed arguments.

    Raises:
        UsageError: There is no such method.
    """
    methods = available()
    if name in methods:
        path, fixed = methods[name]
        return import_path(path), fixed
    if "." in name:
        try:
            return import_path(name), {}
        except (ImportError, AttributeError) as error:
            raise UsageError(f"model: '{name}' cannot be imported ({error})") from error
    raise UsageError(f"model: no method '{name}'{did_you_mean(name, methods)} Known: {', '.join(methods)}")


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
