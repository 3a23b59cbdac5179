"""From attended feature maps back to the image: a decoder to a mask, and a crop that is differentiable in the mask.

Coarse2Fine (Eshratifar, Eigen, Gormish, Pedram; arXiv 1909.02680) names the inverse mapping; its form here is our decision.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgzoo.nn.maps import pixel_centers, single


class InverseMapping(nn.Module):
    """Attended feature maps -> where in the image the information is: a soft mask.

    Conv1x1 to the first width -> for every width [bilinear x2, Conv3x3, batch-norm, ReLU] -> Conv1x1 -> sigmoid, enlarged to the
    image. Nothing is thresholded, so it is differentiable throughout. Our decision; the narrow widths keep it at a few per cent
    of a ResNet-50's cost, where 128 channels throughout would cost more than the network itself.

    Args:
        channels: Channels C of the attended maps.
        widths: Channels after every doubling of the grid.
        bias: The last layer's bias at the start. A sigmoid round zero would begin by halving the image's contrast, which no
            backbone was trained on; at 2 the mask begins near 0.88, where its slope is still 0.1.

    Shape:
        - attended: (B, C, h, w); in training 4 * B * h * w must be at least 2, as batch-norm needs
        - size: height and width (H, W) of the image
        - returns: (B, 1, H, W) in [0, 1], single precision
    """

    def __init__(self, channels: int, widths: Sequence[int], bias: float) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, widths[0], 1)
        inputs = [widths[0], *widths[:-1]]
        self.steps = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True))
            for before, after in zip(inputs, widths, strict=True)
        )
        self.last = nn.Conv2d(widths[-1], 1, 1)
        nn.init.constant_(self.last.bias, bias)  # type: ignore[arg-type]

    def forward(self, attended: Tensor, size: tuple[int, int]) -> Tensor:
        """Compute the mask."""
        x = self.reduce(attended)
        for step in self.steps:
            x = step(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))
        mask = self.last(x)
        mask = mask.to(torch.promote_types(mask.dtype, torch.float32)).sigmoid()
        return F.interpolate(mask, size=size, mode="bilinear", align_corners=False)


def soft_boxes(mask: Tensor, scale: float = 3**0.5, eps: float = 1e-6) -> Tensor:
    r"""The box of a mask's moments: its mean, and `scale` standard deviations to each side, per axis.

    $$\mu_x = \frac{\sum m x}{\sum m}, \quad \sigma_x^2 = \frac{\sum m (x - \mu_x)^2}{\sum m} + \frac{1}{12 W^2}, \quad
    x_{0, 1} = \mu_x \mp s \sigma_x$$

    x is a pixel's centre; a pixel's own width adds 1 / (12 W^2). So with s = sqrt(3), a mask that is one inside an axis-parallel
    box and zero outside gives exactly that box, and a constant mask the whole image. Our decision.

    Args:
        mask: (B, 1, H, W), non-negative.
        scale: s.
        eps: Added to the mask: where it is zero the box is the whole image.

    Returns:
        (B, 4), relative x0, y0, x1, y1, differentiable in the mask; a box may reach beyond the image.
    """
    weight = mask[:, 0] + eps
    sides = []
    for profile in (weight.sum(dim=1), weight.sum(dim=2)):  # along x, along y
        length = profile.shape[1]
        position = pixel_centers(length, mask)
        share = profile / profile.sum(dim=1, keepdim=True)
        mean = (share * position).sum(dim=1)
        variance = (share * (position - mean[:, None]).square()).sum(dim=1) + 1 / (12 * length**2)
        sides.append((mean, scale * variance.sqrt()))
    (x, half_width), (y, half_height) = sides
    return torch.stack([x - half_width, y - half_height, x + half_width, y + half_height], dim=1)


def box_region(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The pixels whose centres lie inside a box, as a mask: what [soft_boxes][] takes back to the box, to half a pixel.

    Args:
        boxes: (B, 4), relative x0, y0, x1, y1.
        size: Height and width (H, W) of the image.

    Returns:
        (B, 1, H, W), boolean.
    """
    y, x = (pixel_centers(side, boxes) for side in size)
    columns = (x >= boxes[:, 0:1]) & (x < boxes[:, 2:3])
    rows = (y >= boxes[:, 1:2]) & (y < boxes[:, 3:4])
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def soft_crop(images: Tensor, boxes: Tensor) -> Tensor:
    """Enlarge a box of every image to the image's own size, differentiably in images and boxes.

    Args:
        images: (B, 3, H, W), normalised, so that zero is the mean colour.
        boxes: (B, 4), relative x0, y0, x1, y1.

    Returns:
        (B, 3, H, W); mean colour where a box lies outside the image.
    """
    pixels = single(images)  # half types cannot tell the columns of an image apart
    boxes = boxes.to(pixels.dtype)
    y, x = (pixel_centers(side, pixels) for side in images.shape[-2:])
    u = boxes[:, 0:1] + x * (boxes[:, 2:3] - boxes[:, 0:1])
    v = boxes[:, 1:2] + y * (boxes[:, 3:4] - boxes[:, 1:2])
    grid = torch.stack(torch.broadcast_tensors(u[:, None, :], v[:, :, None]), dim=-1)
    cropped = F.grid_sample(pixels, grid * 2 - 1, mode="bilinear", padding_mode="zeros", align_corners=False)
    return cropped.to(images.dtype)
