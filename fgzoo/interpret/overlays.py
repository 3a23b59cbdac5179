"""Maps drawn over the images they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
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


def attention_picture(
    path: Path,
    images: Tensor,
    maps: Tensor,
    map_names: Sequence[str],
    captions: Sequence[str],
    marks: Sequence[tuple[float, float] | None] | None = None,
) -> Path:
    """A row for every image: the image itself, then its maps from coarse to fine.

    Args:
        path: Where to write the PNG.
        images: (B, 3, H, W) uint8.
        maps: (B, S, H, W) in [0, 1].
        map_names: S column titles.
        captions: B captions, shown beside each row.
        marks: B points (x, y) in pixels to circle, where something is known to matter; `None` for none.

    Returns:
        The path.
    """
    from matplotlib.figure import Figure

    count, steps = maps.shape[:2]
    figure = Figure(figsize=(1.65 * (steps + 1) + 2.2, 1.75 * count + 0.4), layout="constrained")
    axes = figure.subplots(count, steps + 1, squeeze=False)
    for row in range(count):
        shown = [images[row].permute(1, 2, 0).cpu().numpy(), *(overlay(images[row], maps[row, s]) for s in range(steps))]
        for column, picture in enumerate(shown):
            cell = axes[row][column]
            cell.imshow(picture)
            cell.set_xticks([])
            cell.set_yticks([])
            cell.spines[:].set_visible(False)
            if row == 0:
                cell.set_title(["image", *map_names][column], fontsize=9)
            mark = None if marks is None else marks[row]
            if mark is not None:
                cell.plot(
                    *mark, marker="o", markersize=13, markerfacecolor="none", markeredgecolor="#35c2ff", markeredgewidth=1.4
                )
        axes[row][0].set_ylabel(captions[row], fontsize=8, rotation=0, ha="right", va="center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


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
