"""Jigsaw: an image's patches in another order, and back.

A grid is one number (n x n patches) or (rows, columns). An order is a permutation of the patches, row by row: the patch that
is seen at position p comes from position `order[p]`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fgzoo.errors import UsageError


def jigsaw_order(uniform: Tensor) -> Tensor:
    """A random order of patches, decided by uniform numbers: the order that sorts them.

    Args:
        uniform: (B, P) in [0, 1), one number a patch.

    Returns:
        (B, P) int64; each row is a permutation.
    """
    return uniform.argsort(dim=1, stable=True)


def jigsaw(images: Tensor, order: Tensor, grid: int | tuple[int, int]) -> Tensor:
    """Put an image's patches in another order.

    Source: the training input of PMG (Du et al., "Fine-Grained Visual Classification via Progressive Multi-Granularity Training
    of Jigsaw Patches", ECCV 2020, arXiv 2003.03836), whose published code has one order for a batch; here each image has its own.

    Patches are H // rows by W // columns pixels. Where a grid does not divide a side, the last rows or columns of pixels, fewer
    than the grid has patches, stay where they are (our decision): patches of unequal size could not be exchanged, and resizing
    or cropping would change the image.

    Args:
        images: (B, C, H, W); gradients flow back to each pixel's own place.
        order: (B, rows * columns) from [jigsaw_order][].
        grid: n, or (rows, columns).

    Returns:
        (B, C, H, W).

    Raises:
        UsageError: The grid has more rows or columns than the image has pixels.
    """
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    batch, channels, height, width = images.shape
    patch_height, patch_width = height // rows, width // columns
    if patch_height == 0 or patch_width == 0:
        raise UsageError(
            f"model.grids: {rows}x{columns} patches do not fit an image of {height}x{width} pixels; take a smaller grid"
        )
    bottom, right = rows * patch_height, columns * patch_width

    body = images[:, :, :bottom, :right].reshape(batch, channels, rows, patch_height, columns, patch_width)
    patches = body.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # (B, P, C, h, w)
    source = order[:, :, None, None, None].expand_as(patches)
    moved = patches.gather(1, source).unflatten(1, (rows, columns))
    shuffled = moved.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, bottom, right)
    if right < width:
        shuffled = torch.cat([shuffled, images[:, :, :bottom, right:]], dim=3)
    if bottom < height:
        shuffled = torch.cat([shuffled, images[:, :, bottom:]], dim=2)
    return shuffled


def undo_jigsaw(images: Tensor, order: Tensor, grid: int | tuple[int, int]) -> Tensor:
    """Put the patches back: the inverse of [jigsaw][] with the same order and grid.

    Args:
        images: (B, C, H, W), shuffled; also maps of shuffled images, on whatever grid of pixels.
        order: (B, rows * columns), the order they were shuffled by.
        grid: n, or (rows, columns).

    Returns:
        (B, C, H, W).

    Raises:
        UsageError: The grid has more rows or columns than the image has pixels.
    """
    return jigsaw(images, order.argsort(dim=1), grid)
