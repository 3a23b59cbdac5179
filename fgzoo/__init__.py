"""fgzoo: a model zoo for fine-grained visual classification."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fgzoo.allocator import keep_freed_memory as keep_freed_memory
    from fgzoo.data.datamodule import FGVCDataModule as FGVCDataModule
    from fgzoo.methods.base import FineGrainedClassifier as FineGrainedClassifier
    from fgzoo.nn.output import MethodOutput as MethodOutput
    from fgzoo.zoo.checkpoint import load as load
    from fgzoo.zoo.factory import create_model as create_model
    from fgzoo.zoo.factory import list_models as list_models
    from fgzoo.zoo.registry import list_checkpoints as list_checkpoints

try:
    __version__ = version("fgzoo")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

#: Where each public name lives; imported when it is first used, so that `fgzoo --help` need not import torch.
_HOME = {
    "FGVCDataModule": "fgzoo.data.datamodule",
    "FineGrainedClassifier": "fgzoo.methods.base",
    "MethodOutput": "fgzoo.nn.output",
    "create_model": "fgzoo.zoo.factory",
    "keep_freed_memory": "fgzoo.allocator",
    "list_checkpoints": "fgzoo.zoo.registry",
    "list_models": "fgzoo.zoo.factory",
    "load": "fgzoo.zoo.checkpoint",
}
_MODULES = {"data", "errors", "interpret", "methods", "nn", "testing", "training", "zoo"}

__all__ = [
    "FGVCDataModule",
    "FineGrainedClassifier",
    "MethodOutput",
    "__version__",
    "create_model",
    "keep_freed_memory",
    "list_checkpoints",
    "list_models",
    "load",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in _MODULES:
        return import_module(f"fgzoo.{name}")
    raise AttributeError(f"module 'fgzoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES})
