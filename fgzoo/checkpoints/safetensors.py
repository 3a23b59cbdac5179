"""Trained models as one `.safetensors` file: the weights, and in its header as JSON all that loading them needs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from fgzoo.checkpoints.registry import SUFFIX
from fgzoo.errors import CheckpointError, UntrainedError
from fgzoo.files import atomic_write, user_path
from fgzoo.methods.base import FineGrainedClassifier


def save_safetensors(model: FineGrainedClassifier, path: str | Path, dtype: Literal["float32", "float16"] = "float32") -> None:
    """Write a trained model as a file that [load][fgzoo.load] reads, and that other programs read as tensors.

    Args:
        model: The model.
        path: The file, `.safetensors`; one that is there is replaced when the new one is whole.
        dtype: `float16` stores floating-point weights in half the bytes; loading turns them back to float32. Integers stay.
            What only training reads (see [training_only][]) is left out; loading leaves it as it is in a new model.

    Raises:
        UntrainedError: The model has never been trained.
        CheckpointError: A weight is too large for float16, an argument is no plain value, or the file cannot be written.
    """
    path = user_path(path)
    if path.suffix != SUFFIX:
        raise CheckpointError(f"checkpoint: {path} must end with {SUFFIX}, by which loading knows what it is")
    if not model.trained:
        raise UntrainedError(f"checkpoint: this {type(model).__name__} has never been trained, so {path} is not written")
    content: dict[str, Any] = {"hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(content)
    metadata: dict[str, str] = {}
    for key, value in content.items():
        try:
            metadata[key] = json.dumps(value)  # tuples come back as lists
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"checkpoint: {path}: {key} cannot be stored: {error}") from error
    metadata["format"] = "pt"  # where other programs look for the name of the framework
    data = save(_storable(model, dtype), metadata)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as part, part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CheckpointError(
            f"checkpoint: {path} cannot be written ({error.strerror or error}); what was there before is as it was"
        ) from error


def read_safetensors(path: Path) -> dict[str, Any]:
    """Read what [save_safetensors][] wrote.

    Args:
        path: The file.

    Returns:
        The same dictionary as Lightning's checkpoints, less what only resuming needs; half-precision weights as float32.

    Raises:
        CheckpointError: The file is damaged, or is no safetensors file.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"checkpoint: {path} is damaged or no safetensors file: {error}") from error
    if "fgzoo" not in metadata:
        return {"state_dict": state}
    content: dict[str, Any] = {}
    for key, text in metadata.items():
        if key == "format":
            continue
        try:
            content[key] = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"checkpoint: {path} is damaged: '{key}' in its header is no JSON: {error}") from error
    content["state_dict"] = {name: value.float() if value.dtype == torch.float16 else value for name, value in state.items()}
    return content


def training_only(model: FineGrainedClassifier) -> list[str]:
    """Names in a model's state dict of the tensors that only training reads, which modules declare as `training_only`."""
    return [f"{prefix}.{name}" for prefix, module in model.named_modules() for name in getattr(type(module), "training_only", ())]


def _storable(model: FineGrainedClassifier, dtype: str) -> dict[str, Tensor]:
    """The weights on the CPU, each with memory of its own, which the format asks for."""
    if dtype not in ("float32", "float16"):
        raise CheckpointError(f"checkpoint: dtype '{dtype}'; float32 or float16")
    tensors, left_out = {}, training_only(model)
    for name, value in model.state_dict().items():
        if name in left_out:
            continue
        stored = value.detach().cpu()
        if dtype == "float16" and stored.is_floating_point():
            half = stored.half()
            if (half.isfinite() != stored.isfinite()).any():
                raise CheckpointError(
                    f"checkpoint: {name} holds {stored.abs().max():.4g}, too large for float16; save as float32"
                )
            stored = half
        tensors[name] = stored.clone(memory_format=torch.contiguous_format)
    return tensors
