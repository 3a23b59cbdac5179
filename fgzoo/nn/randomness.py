"""Random numbers that are a function of a sample's key, computed on the sample's device.

A key is (seed, epoch, index). Drawing from it, and not from a generator's state, makes every choice inside a method
independent of batch size, number of ranks, number of workers, and of where a run was interrupted.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _mix(x: Tensor) -> Tensor:
    """Finaliser of MurmurHash3 (32 bits), on int64 tensors that hold 32-bit values."""
    mask = 0xFFFFFFFF
    x = (x ^ (x >> 16)) * 0x85EBCA6B & mask
    x = (x ^ (x >> 13)) * 0xC2B2AE35 & mask
    return x ^ (x >> 16)


def keyed_uniform(keys: Tensor, count: int = 1, salt: int = 0) -> Tensor:
    """Uniform numbers decided by the samples' keys alone.

    Args:
        keys: (B, 3) int64: seed, epoch and index of each sample.
        count: How many numbers a sample draws.
        salt: A constant of the place that draws, so that two places do not draw the same numbers; 1 mirrors training images.

    Returns:
        (B, count) float32 in [0, 1).
    """
    state = torch.full((keys.shape[0], 1), (salt * 0x9E3779B1 + 0x2545F491) & 0xFFFFFFFF, device=keys.device)
    for column in keys.unbind(dim=1):
        state = _mix(state ^ _mix((column & 0xFFFFFFFF)[:, None]) + 0x9E3779B9 & 0xFFFFFFFF)
    draws = torch.arange(1, count + 1, device=keys.device)[None] * 0x9E3779B1 & 0xFFFFFFFF
    return (_mix(_mix(state ^ draws) + 0x7F4A7C15 & 0xFFFFFFFF) >> 8).float() / (1 << 24)


def draw_uniform(like: Tensor, keys: Tensor | None, count: int = 1, salt: int = 0) -> Tensor:
    """Uniform numbers for a batch: from the samples' keys, or from torch's generator where there are none.

    Args:
        like: Any tensor of the batch, (B, ...), on the wanted device.
        keys: (B, 3), see [keyed_uniform][], or `None`.
        count: How many numbers a sample draws.
        salt: See [keyed_uniform][].

    Returns:
        (B, count) float32 in [0, 1).
    """
    return torch.rand(len(like), count, device=like.device) if keys is None else keyed_uniform(keys, count, salt)
