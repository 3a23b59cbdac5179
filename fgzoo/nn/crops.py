"""Boxes in relative coordinates, crops of them, and maps pasted back where the crops came from.

A box is (x0, y0, x1, y1) in [0, 1] relative to the image, so that it means the same on a feature map and on the image.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from fgzoo.nn.maps import pixel_centers, single

#: Pixels this close, in shares of the map's range, are equal: enlarging a map rounds what is equal apart.
TIE = 1e-5


def activation_boxes(features: Tensor, num_boxes: int, percentile: float = 0.95, upsample: int = 4) -> Tensor:
    """Boxes round the strongest activations of the channels that peak highest.

    Takes the `num_boxes` channels with the largest peak, enlarges each map bilinearly and boxes the pixels at or above its
    percentile. Channels come in the order of their peaks, so the first box belongs to the strongest one. Of equal peaks, which
    ReLU6 and half precision make by the dozen, the one with the larger mean comes first, and of equal means the lower number:
    the boxes do not depend on how a runtime orders what is equal, nor, means being hardly ever equal, on the channels' numbers.

    Our decision: "Focus Longer to See Better" reads its boxes from files that a ProtoPNet made (box of the pixels at or above the
    95th percentile of an activation map, at the image's resolution). Enlarging by 4 and not to full resolution moves an edge
    by less than an eighth of a cell of the map and costs a sixtieth.

    Args:
        features: (B, C, h, w); no gradient flows through the boxes.
        num_boxes: Number of boxes of an image.
        percentile: Share of pixels below the threshold.
        upsample: Factor of the enlargement.

    Returns:
        (B, num_boxes, 4); the whole image where a map is constant. With fewer channels than boxes the
        strongest are repeated in turn.
    """
    features = features.detach().float()
    batch, channels, height, width = features.shape
    order = _strongest(features, min(num_boxes, channels))
    order = order.repeat(1, math.ceil(num_boxes / order.shape[1]))[:, :num_boxes]
    chosen = features.gather(1, order[:, :, None, None].expand(-1, -1, height, width))
    maps = F.interpolate(chosen, scale_factor=upsample, mode="bilinear", align_corners=False)
    height, width = height * upsample, width * upsample
    kept = max(1, round((1 - percentile) * height * width))
    flat = maps.flatten(2)
    floor, peak = flat.amin(dim=2, keepdim=True), flat.amax(dim=2, keepdim=True)
    tie = TIE * (peak - floor)
    # A map that is mostly zero, as after a ReLU, has its percentile at zero, too: what lies on its floor is not activated.
    mask = (flat > floor + tie) & (flat >= flat.topk(kept, dim=2).values[:, :, -1:] - tie)
    # A constant map need not be constant when it is enlarged.
    constant = (chosen.amin(dim=(2, 3)) == chosen.amax(dim=(2, 3)))[:, :, None] | (floor == peak)
    return _bounds((mask | constant).view(batch, num_boxes, height, width))


def _strongest(features: Tensor, count: int) -> Tensor:
    """Channels of (B, C, h, w) by peak, then mean, then number, the strongest first: (B, count)."""
    peaks, means = features.amax(dim=(2, 3)), features.mean(dim=(2, 3))
    chosen: list[Tensor] = []
    # topk promises no order among equals, and a stable sort has no ONNX form; argmax takes the first everywhere.
    for _ in range(count):
        highest = peaks == peaks.amax(dim=1, keepdim=True)
        chosen.append(means.masked_fill(~highest, -math.inf).argmax(dim=1, keepdim=True))
        peaks = peaks.scatter(1, chosen[-1], -math.inf)
    return torch.cat(chosen, dim=1)


def _bounds(mask: Tensor) -> Tensor:
    """The relative boxes round what is true in masks (..., h, w): (..., 4)."""
    edges = []
    for occupied in (mask.any(dim=-2), mask.any(dim=-1)):  # along x, along y
        length = occupied.shape[-1]
        position = torch.arange(length, device=mask.device)
        first = torch.where(occupied, position, length - 1).amin(dim=-1)
        last = torch.where(occupied, position, 0).amax(dim=-1)
        edges.append((first.float() / length, (last.float() + 1) / length))
    (x0, x1), (y0, y1) = edges
    return torch.stack([x0, y0, x1, y1], dim=-1)


def center_boxes(batch: int, num_boxes: int, like: Tensor, side: float = 0.5) -> Tensor:
    """The same central box for every image.

    Args:
        batch: Number of images B.
        num_boxes: Number of (equal) boxes of an image.
        like: A tensor on the wanted device.
        side: Side relative to the image's.

    Returns:
        (B, num_boxes, 4).
    """
    low, high = 0.5 - side / 2, 0.5 + side / 2
    corners = [torch.full((2,), value, device=like.device) for value in (low, high)]
    return torch.cat(corners).expand(batch, num_boxes, 4)


def random_boxes(uniform: Tensor, side: float = 0.5) -> Tensor:
    """Boxes of one size at random places: the control that shows whether proposals help.

    Args:
        uniform: (B, N, 2) in [0, 1).
        side: Side relative to the image's.

    Returns:
        (B, N, 4).
    """
    low = uniform * (1 - side)
    return torch.cat([low, low + side], dim=-1)


def crop_boxes(images: Tensor, boxes: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Crop and resize boxes bilinearly, with a 2x2 average per pixel so that large boxes do not alias.

    What is not made smaller is softened by it: of the whole image at its own size a pixel has 3/4 and its neighbours 1/8, along
    both sides. Our decision.

    Args:
        images: (B, 3, H, W).
        boxes: (B, N, 4), relative.
        size: Height and width of a crop in pixels; by default the images'.

    Returns:
        (B * N, 3, *size), the crops of an image after one another.
    """
    batch, count, _ = boxes.shape
    height, width = images.shape[-2:]
    scale = boxes.new_tensor([width, height, width, height])
    pixels = single(images)  # half types cannot tell the images of a large batch apart
    owner = torch.arange(batch, device=boxes.device, dtype=pixels.dtype).repeat_interleave(count)
    rois = torch.cat([owner[:, None], (boxes * scale).flatten(0, 1).to(pixels.dtype)], dim=1)
    return roi_align(pixels, rois, size or (height, width), sampling_ratio=2, aligned=True).to(images.dtype)


def paste_boxes(maps: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Put maps of crops back where the crops came from; outside its box a map is zero.

    The inverse of [crop_boxes][] for a map: the pixel at (x, y) reads the crop's map at ((x - x0) / (x1 - x0), ...), bilinearly.

    Args:
        maps: (B, N, S, h, w), S maps of each of N crops.
        boxes: (B, N, 4), relative.
        size: Height and width of the frame.

    Returns:
        (B, N, S, *size).
    """
    batch, count, steps, map_height, map_width = maps.shape
    values = single(maps)
    boxes = boxes.to(values.dtype).flatten(0, 1)
    y, x = (pixel_centers(side, values) for side in size)
    u = (x - boxes[:, 0:1]) / (boxes[:, 2:3] - boxes[:, 0:1])
    v = (y - boxes[:, 1:2]) / (boxes[:, 3:4] - boxes[:, 1:2])
    grid = torch.stack(torch.broadcast_tensors(u[:, None, :], v[:, :, None]), dim=-1)
    inside = ((grid >= 0) & (grid <= 1)).all(dim=-1)
    flat = values.reshape(batch * count, steps, map_height, map_width)
    pasted = F.grid_sample(flat, grid * 2 - 1, mode="bilinear", padding_mode="border", align_corners=False)
    return (pasted * inside[:, None]).view(batch, count, steps, *size).to(maps.dtype)


def attention_boxes(maps: Tensor, theta: Tensor, padding: float = 0.1, size: tuple[int, int] | None = None) -> Tensor:
    """The padded box round the region where a map reaches a share of its maximum.

    Source: attention cropping of WS-DAN (arXiv 1901.09891, section 3.3) with its published code's padding.

    Args:
        maps: (B, h, w), non-negative; no gradient flows through the boxes.
        theta: (B,), the share of each map's maximum.
        padding: Added on every side, relative to the image's side.
        size: Enlarge the maps bilinearly to this height and width first; by default four times.

    Returns:
        (B, 1, 4), relative; the whole image where a map is zero.
    """
    boxes = _bounds(_region(maps, theta, size or (4 * maps.shape[-2], 4 * maps.shape[-1])))
    return torch.cat([boxes[:, :2] - padding, boxes[:, 2:] + padding], dim=-1).clamp(0, 1)[:, None]


def attention_drop(images: Tensor, maps: Tensor, theta: Tensor) -> Tensor:
    """Erase from the images the region where a map reaches a share of its maximum.

    Source: attention dropping of WS-DAN (arXiv 1901.09891, section 3.3). Our decision: a map of zeros, every pixel of which
    reaches any share of its maximum, erases nothing; the published code erases the whole image, of which nothing is to be learnt.

    Args:
        images: (B, 3, H, W), normalised, so that zero is the mean colour.
        maps: (B, h, w), non-negative; no gradient flows through the region.
        theta: (B,), the share of each map's maximum.

    Returns:
        (B, 3, H, W). Where a map is zero nothing is erased.
    """
    region = _region(maps, theta, (images.shape[-2], images.shape[-1])) & (maps.detach().amax(dim=(1, 2)) > 0)[:, None, None]
    return images.masked_fill(region[:, None], 0.0)


def _region(maps: Tensor, theta: Tensor, size: tuple[int, int]) -> Tensor:
    """Where maps (B, h, w), enlarged to a size, reach theta (B,) times their maximum: (B, *size), boolean."""
    enlarged = F.interpolate(maps.detach().float()[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    return enlarged >= theta.to(enlarged)[:, None, None] * enlarged.amax(dim=(1, 2), keepdim=True)
