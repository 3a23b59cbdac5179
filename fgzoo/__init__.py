"""fgzoo: a model zoo for fine-grained visual classification."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fgzoo.version import __version__

if TYPE_CHECKING:
    from fgzoo.allocator import keep_freed_memory as keep_freed_memory
    from fgzoo.checkpoints.loading import load as load
    from fgzoo.checkpoints.registry import list_checkpoints as list_checkpoints
    from fgzoo.data.datamodule import FGVCDataModule as FGVCDataModule
    from fgzoo.methods import create_model as create_model
    from fgzoo.methods import list_models as list_models
    from fgzoo.methods.base import FineGrainedClassifier as FineGrainedClassifier
    from fgzoo.nn.output import MethodOutput as MethodOutput

#: Where each public name lives; imported when it is first used, so that `fgzoo --help` need not import torch.
_HOME = {
    "FGVCDataModule": "fgzoo.data.datamodule",
    "FineGrainedClassifier": "fgzoo.methods.base",
    "MethodOutput": "fgzoo.nn.output",
    "create_model": "fgzoo.methods",
    "keep_freed_memory": "fgzoo.allocator",
    "list_checkpoints": "fgzoo.checkpoints.registry",
    "list_models": "fgzoo.methods",
    "load": "fgzoo.checkpoints.loading",
}
_MODULES = {"checkpoints", "data", "errors", "interpret", "methods", "nn", "prediction", "testing", "training"}

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
