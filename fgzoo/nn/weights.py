"""Weight files, read as tensors and plain values: nothing in them is executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from fgzoo.errors import CheckpointError

#: Of zip archives, and of the pickles that torch wrote before version 1.6.
_BEGINNINGS = (b"PK\x03\x04", b"\x80")


def read_plain(path: Path, what: str) -> Any:
    """Read what `torch.save` wrote, if it holds tensors and plain values only.

    Args:
        path: The file.
        what: What it is meant to be, for messages.

    Returns:
        Its content.

    Raises:
        CheckpointError: The file is damaged, or holds objects whose loading could run code.
    """
    try:
        with path.open("rb") as file:
            if not file.read(4).startswith(_BEGINNINGS):  # torch would look for a tar archive, in a folder that it makes
                raise ValueError("it does not begin as what torch.save writes")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch raise nearly any type
        if "unsupported" in str(error).lower() and "GLOBAL" in str(error):
            raise CheckpointError(
                f"{what}: {path} cannot be read as tensors alone: it holds objects whose loading could run code, so it is refused"
            ) from error
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{what}: {path} is damaged or no file of tensors: {reason}") from error


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
    content = read_plain(path, "weights")
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"weights: {path} holds no state dict (tensors by name)")
    return content
