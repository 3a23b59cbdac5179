"""Weight files, read as tensors and plain values: nothing in them is executed."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from fgzoo.errors import CheckpointError

#: What torch's reader raises on files that are no (whole) weight file.
DAMAGED = (
    pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, TypeError, KeyError, IndexError, AttributeError,
    zipfile.BadZipFile,
)  # fmt: skip


def read_plain(path: Path) -> Any:
    """Read what `torch.save` wrote, if it holds tensors and plain values only.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        CheckpointError: The file is damaged, or holds objects whose loading could run code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        if "Unsupported" in str(error) and "GLOBAL" in str(error):
            raise CheckpointError(
                f"{path} cannot be read as tensors alone: it holds objects whose loading could run code, so it is refused"
            ) from error
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path} cannot be read as tensors alone, it is damaged or no weight file: {reason}") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a weight file by name.

    Args:
        path: `.safetensors`, or a `.pth`/`.pt` file holding a state dict, bare or under `state_dict` or `model`.

    Returns:
        Tensors by name.

    Raises:
        CheckpointError: The file is missing, damaged, or holds something else than tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"weights: no file {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise CheckpointError(f"weights: {path} is no whole safetensors file: {error}") from error
    content = read_plain(path)
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"weights: {path} holds no state dict (tensors by name)")
    return content
