"""Evidence maps: classifiers whose logit is the mean of a map, and losses that compare heads and maps of different depth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgzoo.nn.maps import normalize_map

#: Below this maximum a map counts as empty in [alignment_loss][]: it bounds the gradient of dividing by the maximum.
EMPTY_MAP = 1e-3


class EvidenceHead(nn.Module):
    r"""A classifier that shows its evidence: each logit is the mean of its class's map, plus a bias.

    $$E = W * [M_1, \dots, M_n], \quad z_k = b_k + \frac{1}{hw} \sum_{ij} E_k(i, j)$$

    with W a 1x1 convolution of K outputs on the maps, resized bilinearly to the first one's grid and concatenated. A 1x1
    convolution and resizing commute, so each map is convolved on its own grid and its evidence is resized: the same numbers for
    a fraction of the cost.

    Source: our decision. With one map it is class activation mapping (Zhou et al., CVPR 2016) made the definition of the head.

    Args:
        channels: Channels of each map; the first map should be the finest.
        num_classes: K.

    Shape:
        - maps: n tensors (B, C_i, h_i, w_i)
        - returns: logits (B, K)
    """

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.channels = list(channels)
        self.conv = nn.Conv2d(sum(channels), num_classes, 1)

    @property
    def bias(self) -> Tensor:
        """(K,), what a logit is without any evidence."""
        assert self.conv.bias is not None
        return self.conv.bias

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Classify."""
        return self.evidence(maps).mean(dim=(2, 3)) + self.bias

    def evidence(self, maps: Sequence[Tensor], classes: Tensor | None = None) -> Tensor:
        """The evidence maps, signed and without the bias, on the first map's grid.

        Args:
            maps: n tensors (B, C_i, h_i, w_i).
            classes: (B,), one class an image; by default all classes.

        Returns:
            (B, h, w) for chosen classes, which costs a K-th; else (B, K, h, w).
        """
        size = maps[0].shape[-2:]
        parts = []
        for weight, features in zip(self.conv.weight.split(self.channels, dim=1), maps, strict=True):
            if classes is None:
                part = F.conv2d(features, weight)
            else:
                part = torch.einsum("bc,bchw->bhw", weight[classes, :, 0, 0], features)[:, None]
            same = part.shape[-2:] == size
            parts.append(part if same else F.interpolate(part, size=size, mode="bilinear", align_corners=False))
        evidence = torch.stack(parts).sum(dim=0)
        return evidence if classes is None else evidence[:, 0]


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    r"""What a student still has to learn from a teacher.

    $$T^2\, \mathrm{KL}\big(\mathrm{softmax}(z_t / T) \,\|\, \mathrm{softmax}(z_s / T)\big)$$

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2 (the factor T^2 keeps the
    gradient's size whatever T).

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits; no gradient flows into them.
        temperature: T.

    Returns:
        A scalar in nats, the mean over the batch, single precision (double for double).
    """
    wide = torch.promote_types(student.dtype, torch.float32)
    own = (student.to(wide) / temperature).log_softmax(dim=1)
    given = (teacher.detach().to(wide) / temperature).log_softmax(dim=1)
    return temperature**2 * F.kl_div(own, given, reduction="batchmean", log_target=True)


def alignment_loss(attention: Tensor, evidence: Tensor) -> Tensor:
    r"""Mean squared difference of an attention map and an evidence map, each clamped at zero and divided by its maximum.

    An image without positive evidence has nothing to align to and counts as zero.

    Source: our decision.

    Args:
        attention: (B, h, w), e.g. a stage's mean over channels; gradients flow into it alone.
        evidence: (B, h', w'), resized bilinearly to the attention's grid.

    Returns:
        A scalar, the mean over the batch.
    """
    resized = F.interpolate(evidence.detach().float()[:, None], size=attention.shape[-2:], mode="bilinear", align_corners=False)
    target = normalize_map(resized[:, 0])
    aligned = normalize_map(attention, eps=EMPTY_MAP)
    has_evidence = target.amax(dim=(1, 2)) > 0
    return ((aligned - target).square().mean(dim=(1, 2)) * has_evidence).mean()
