"""Cross-entropies for classes of unequal size, by how many training images each has."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

#: What a class weighs in the loss: as much as any other, or by the inverse (square root) of its number of training images.
ClassWeights = Literal["none", "sqrt", "full"]


def weighted_cross_entropy(
    logits: Tensor, targets: Tensor, counts: tuple[int, ...], kind: Literal["sqrt", "full"], label_smoothing: float = 0.0
) -> Tensor:
    r"""Cross-entropy in which classes weigh differently, over the number of images in the batch.

    $$-\frac{1}{B} \sum_b \sum_k w_k\, t_{bk} \log \mathrm{softmax}(z_b)_k$$

    with t the targets, smoothed, and w the [class_weights][].

    Source: torch's weighted cross-entropy, but for the denominator, which is our decision. Torch divides by the weights of the
    batch's classes: a batch of rare classes would weigh no more than any other, and two processes would not compute what one does
    with both halves.

    Args:
        logits: (B, K).
        targets: (B,) classes, or (B, K) probabilities.
        counts: Training images by class, K.
        kind: See [class_weights][].
        label_smoothing: Share of the target spread over all classes.

    Returns:
        A scalar in nats, at least single precision.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    weights = class_weights(counts, kind, logits.device).to(wide.dtype)
    return F.cross_entropy(wide, targets, weights, reduction="sum", label_smoothing=label_smoothing) / len(logits)


def adjusted_cross_entropy(
    logits: Tensor, targets: Tensor, counts: tuple[int, ...], tau: float, label_smoothing: float = 0.0
) -> Tensor:
    r"""Logit-adjusted cross-entropy: that of $z + \tau \log \pi$, with $\pi_k$ the share of class k in the training images.

    The logits without the adjustment, which testing reads, are then those of classes that are equally frequent.

    Source: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, arXiv 2007.07314, equation 10.

    Args:
        logits: (B, K).
        targets: (B,) classes, or (B, K) probabilities.
        counts: Training images by class, K.
        tau: How much of the priors is taken up by the adjustment; 1 is the paper's.
        label_smoothing: Share of the target spread over all classes.

    Returns:
        A scalar in nats, at least single precision.
    """
    return F.cross_entropy(logits + tau * log_priors(counts, logits.device), targets, label_smoothing=label_smoothing)


@lru_cache(maxsize=16)
def class_weights(counts: tuple[int, ...], kind: Literal["sqrt", "full"], device: torch.device | None = None) -> Tensor:
    """Weights whose mean over training images is 1.

    Args:
        counts: Training images by class, K, each at least 1.
        kind: `full`: in proportion to 1 / count; `sqrt`: to its square root.
        device: Where they are kept, so that no step copies them.

    Returns:
        (K,) float32.
    """
    with torch.inference_mode(False):
        images = torch.tensor(counts, dtype=torch.float64)
        inverse = images ** {"sqrt": -0.5, "full": -1.0}[kind]
        return (inverse * images.sum() / (images * inverse).sum()).float().to(device)


@lru_cache(maxsize=16)
def log_priors(counts: tuple[int, ...], device: torch.device | None = None) -> Tensor:
    """Logarithms of the classes' shares in the training images; arguments and result as those of [class_weights][]."""
    with torch.inference_mode(False):
        images = torch.tensor(counts, dtype=torch.float64)
        return (images / images.sum()).log().float().to(device)
