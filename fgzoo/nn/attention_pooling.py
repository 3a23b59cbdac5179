"""Features pooled under several attention maps: the attention layer, the pooling, its class centres, and the maps' similarity.

Source throughout: Hu, Qi, Huang, Lu, "See Better Before Looking Closer" (WS-DAN, arXiv 1901.09891) and its published code.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from fgzoo.nn.bilinear import signed_sqrt
from fgzoo.nn.maps import single

AttentionInit = Literal["orthogonal", "default"]


class AttentionMaps(nn.Module):
    """M attention maps of a feature map: 1x1 convolution, batch-norm, ReLU.

    Orthonormal rows at the start are Coarse2Fine's (arXiv 1909.02680, abstract): no two maps then look for the same thing. Where
    there are more maps than channels no such rows exist, and the columns are orthonormal.

    Args:
        channels: Channels C of the features.
        num_maps: M.
        init: `orthogonal`, or torch's `default`.

    Shape:
        - features: (B, C, h, w); in training B * h * w must be at least 2, as batch-norm needs
        - returns: (B, M, h, w), non-negative
    """

    def __init__(self, channels: int, num_maps: int, init: AttentionInit) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, num_maps, 1, bias=False)
        self.norm = nn.BatchNorm2d(num_maps, eps=1e-3)
        if init == "orthogonal":
            nn.init.orthogonal_(self.conv.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Compute the maps."""
        return self.norm(self.conv(features)).relu()


def bilinear_attention_pooling(features: Tensor, maps: Tensor) -> Tensor:
    r"""Bilinear attention pooling, in single precision whatever the autocast.

    $$f_k = \frac{1}{hw} \sum_{ij} A_k(i, j) F(i, j), \quad
    f = \frac{s}{\lVert s \rVert_2}, \quad s = \operatorname{signed\_sqrt}([f_1; \dots; f_M])$$

    Source: WS-DAN, section 3.2; the signed root and the length over the whole vector are its published code's.

    Args:
        features: F, (B, C, h, w).
        maps: A, (B, M, h, w).

    Returns:
        (B, M * C), of length one; zero where all products are. Entry k * C + c is map k's average of channel c.
    """
    with torch.autocast(features.device.type, enabled=False):
        features, maps = single(features), single(maps)
        pooled = torch.einsum("bmhw,bchw->bmc", maps / (maps.shape[-2] * maps.shape[-1]), features)
        return F.normalize(signed_sqrt(pooled.flatten(1)), dim=1)


def draw_map(maps: Tensor, uniform: Tensor, eps: float = 1e-12) -> Tensor:
    r"""One map of every image, drawn with probability $p_k \propto \sqrt{\overline{A_k} + \epsilon}$ by inverting its sums.

    Source: WS-DAN's published code.

    Args:
        maps: (B, M, h, w), non-negative.
        uniform: (B,) in [0, 1), what decides.
        eps: Makes all maps equally likely where all are zero.

    Returns:
        (B, h, w).
    """
    sums = (maps.detach().float().mean(dim=(2, 3)) + eps).sqrt().cumsum(dim=1)
    index = (uniform[:, None] * sums[:, -1:] >= sums).sum(dim=1).clamp_max(maps.shape[1] - 1)
    return maps.gather(1, index[:, None, None, None].expand(-1, 1, *maps.shape[-2:]))[:, 0]


def map_similarity(maps: Tensor) -> Tensor:
    r"""Mean cosine similarity of all pairs of an image's maps, averaged over the images.

    $$\frac{1}{M (M - 1)} \sum_{j \ne k} \frac{\langle A_j, A_k \rangle}{\lVert A_j \rVert \lVert A_k \rVert}
    = \frac{\lVert \sum_k u_k \rVert^2 - \sum_k \lVert u_k \rVert^2}{M (M - 1)}, \quad u_k = A_k / \lVert A_k \rVert$$

    One means that all maps have collapsed into one. Our measure; nothing is trained by it.

    Args:
        maps: (B, M, h, w), non-negative; no gradient flows.

    Returns:
        A scalar in [0, 1]; zero for a single map. A map that is zero resembles none.
    """
    units = F.normalize(maps.detach().float().flatten(2), dim=2)
    pairs = units.shape[1] * (units.shape[1] - 1)
    both = units.sum(dim=1).square().sum(dim=1) - units.square().sum(dim=(1, 2))
    return both.mean() / max(1, pairs)


class ClassCenters(nn.Module):
    r"""A moving centre of every class's pooled features, and the distance to it.

    $$L = \frac{1}{B} \sum_b \lVert f_b - \hat c_{y_b} \rVert_2^2, \quad \hat c = c / \lVert c \rVert_2,
    \quad c_{y_b} \leftarrow c_{y_b} + \beta (f_b - \hat c_{y_b})$$

    The squares are summed over the features and averaged over the batch. Centres are stored as they come and normalised when
    they are read, in the loss and in the update; a class's centre is zero until its first sample, which then gives its direction.
    Both the loss and the update read the centres of before the batch; several samples of one class add up.

    Source: WS-DAN, equation 5, and its published code.

    Args:
        num_classes: K.
        features: D.
        rate: beta.

    Attributes:
        centers: (K, D), moved by every training pass like the statistics of a batch-norm, and equally on all ranks.

    Shape:
        - pooled: (B, D)
        - targets: (B,)
        - returns: the scalar L
    """

    #: Evaluation reads no centre: files that are made for use go without.
    training_only = ("centers",)
    centers: Tensor

    def __init__(self, num_classes: int, features: int, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("centers", torch.zeros(num_classes, features))

    def forward(self, pooled: Tensor, targets: Tensor) -> Tensor:
        """The mean squared distance to the centres; then, in training, move them."""
        with torch.autocast(pooled.device.type, enabled=False):
            pooled = pooled.to(self.centers.dtype)
            distance = (pooled - F.normalize(self.centers[targets], dim=1)).square().sum(dim=1).mean()
            if self.training:
                pooled, targets = all_ranks(pooled.detach()), all_ranks(targets)
                step = pooled - F.normalize(self.centers[targets], dim=1)
                self.centers.index_add_(0, targets, step, alpha=self.rate)
        return distance


def all_ranks(x: Tensor) -> Tensor:
    """The batches of all processes after one another, in the order of the ranks; `x` itself where there is one process.

    Args:
        x: (B, ...), of one shape on all ranks; no gradient flows to other ranks.

    Returns:
        (world size * B, ...).
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return x
    gathered = x.new_empty(dist.get_world_size() * x.shape[0], *x.shape[1:])
    dist.all_gather_into_tensor(gathered, x.contiguous())
    return gathered
