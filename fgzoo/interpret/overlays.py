"""Maps drawn over the images they belong to."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

#: The colours of a map's values.
COLOURS = colormaps["inferno"]


def overlay(image: Tensor, attention: Tensor, strength: float = 0.6) -> np.ndarray:
    """Blend one map over one image: where the map is zero the image is grey and dim, where it is one it is coloured.

    Args:
        image: (3, H, W) uint8.
        attention: (H, W) in [0, 1].
        strength: Share of the map's colour where it is largest.

    Returns:
        (H, W, 3) floats in [0, 1].
    """
    picture = image.permute(1, 2, 0).cpu().numpy().astype(np.float32) / 255
    weight = attention.cpu().numpy()[..., None]
    grey = picture.mean(axis=2, keepdims=True).repeat(3, axis=2) * 0.6
    heat = COLOURS(attention.cpu().numpy())[..., :3]
    mixed = (1 - weight) * grey + weight * picture
    blended: np.ndarray = np.clip((1 - strength * weight) * mixed + strength * weight * heat, 0, 1)
    return blended


def drawn(image: Tensor, attention: Tensor) -> Image.Image:
    """A map (H, W) over its image (3, H, W), as a picture."""
    return Image.fromarray((255 * overlay(image, attention)).round().astype(np.uint8))


def in_input_frame(x: float, y: float, size: int, resize: int, crop: int) -> tuple[float, float]:
    """Where a point of a square image lies after resizing and the central crop.

    Args:
        x: Horizontal position in pixels of the original image.
        y: Vertical position in pixels of the original image.
        size: Side of the original image.
        resize: Side after resizing.
        crop: Side of the central crop.

    Returns:
        (x, y) in pixels of the crop; may lie outside of it.
    """
    offset = round((resize - crop) / 2)
    return x * resize / size - offset, y * resize / size - offset
