"""Attention maps: normalisation, class activation maps, and where their pixels lie."""

from __future__ import annotations

import torch
from torch import Tensor


def normalize_map(maps: Tensor, eps: float = 1e-6) -> Tensor:
    """Clamp maps at zero and divide each by its own maximum; a map without a positive value stays zero.

    Args:
        maps: (..., h, w).
        eps: Floor of the divisor.

    Returns:
        (..., h, w) in [0, 1], float32.
    """
    maps = maps.float().clamp_min(0)
    return maps / maps.amax(dim=(-2, -1), keepdim=True).clamp_min(eps)


def single(x: Tensor) -> Tensor:
    """At least single precision: half types become float32, float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


def pixel_centers(count: int, like: Tensor) -> Tensor:
    """Where the centres of `count` pixels lie along a side of length one, (count,), of the type and on the device of `like`."""
    return (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) / count


def grid_of(images: Tensor, stride: int) -> tuple[int, int]:
    """Height and width of a map of images (..., H, W) at a stride, rounded up."""
    height, width = images.shape[-2:]
    return -(-height // stride), -(-width // stride)


def class_activation_map(features: Tensor, weight: Tensor, classes: Tensor) -> Tensor:
    r"""Class activation map of a linear classifier over global average pooling.

    $$M_b(i, j) = \max\big(0, \sum_c w_{y_b c} F_{b c}(i, j)\big) / \max_{i, j}$$

    Source: Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, eq. 2.

    Args:
        features: (B, C, h, w), what was pooled.
        weight: (K, C), the classifier's weight.
        classes: (B,), the class to explain.

    Returns:
        (B, h, w) in [0, 1].
    """
    chosen = weight.detach().float()[classes]
    return normalize_map(torch.einsum("bc,bchw->bhw", chosen, features.detach().float()))
