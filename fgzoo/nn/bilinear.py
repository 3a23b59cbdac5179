"""Bilinear features: pooled over an image in full, or at each location in a low-rank form."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgzoo.nn.maps import single

#: Added below the root of [signed_sqrt][].
ROOT_EPS = 1e-12


def signed_sqrt(x: Tensor, eps: float = ROOT_EPS) -> Tensor:
    r"""Signed square root, $\operatorname{sign}(x) \sqrt{|x| + \epsilon}$, in single precision whatever the autocast.

    Its slope at zero is infinite, and squares overflow in half precision: so the input is computed in float32 (float64 stays),
    and `eps` bounds the slope by $1 / (2 \sqrt{\epsilon})$; at exactly zero, value and gradient are zero.

    Source: Perronnin et al., "Improving the Fisher Kernel", ECCV 2010 (power normalisation); with `eps` as in WS-DAN's published
    code.

    Args:
        x: Any shape.
        eps: Added below the root.

    Returns:
        The shape of `x`, float32 (float64 for float64).
    """
    with torch.autocast(x.device.type, enabled=False):
        x = single(x)
        return x.sign() * (x.abs() + eps).sqrt()


def smooth_root(x: Tensor, eps: float = 1e-5) -> Tensor:
    r"""Signed square root without a jump at zero, $x / \sqrt{|x| + 4 \epsilon}$, in single precision whatever the autocast.

    Published B-CNN code takes $\sqrt{x + \epsilon}$ of features that are not negative. This is that root, continued to both
    signs: it has its slope at zero, $1 / (2 \sqrt{\epsilon})$, where most products of sparse features lie, and is the same far
    from it. A root whose epsilon is next to nothing, as [signed_sqrt][]'s, has gradients of another direction there.

    Source: our decision.

    Args:
        x: Any shape.
        eps: Of the published root.

    Returns:
        The shape of `x`, float32 (float64 for float64).
    """
    with torch.autocast(x.device.type, enabled=False):
        x = single(x)
        return x * (x.abs() + 4 * eps).rsqrt()


def power_normalize(x: Tensor, dim: int = 1, eps: float = 1e-6, root_eps: float | None = None) -> Tensor:
    r"""Signed square root, then division by the Euclidean length: $y = s / \max(\|s\|, \epsilon)$ with $s$ = `signed_sqrt(x)`.

    A zero vector stays zero, and so does its gradient. Source: Lin et al., "Bilinear CNN Models for Fine-grained Visual
    Recognition", ICCV 2015.

    Args:
        x: Any shape.
        dim: The dimension of the vectors.
        eps: Floor of the divisor.
        root_eps: Take [smooth_root][] with this epsilon instead.

    Returns:
        The shape of `x`, float32 (float64 for float64).
    """
    return F.normalize(signed_sqrt(x) if root_eps is None else smooth_root(x, root_eps), dim=dim, eps=eps)


def bilinear_pool(a: Tensor, b: Tensor, weights: Tensor | None = None) -> Tensor:
    r"""The bilinear vector of an image, $\sum_l \alpha_l a_l b_l^\top$, as one row; all $\alpha_l = 1$ without weights.

    The sum is one matrix product, so the outer product of a single location is never stored. It is computed in single precision
    whatever the autocast: sums of hundreds of products overflow float16.

    Source: Lin et al., "Bilinear CNN Models for Fine-grained Visual Recognition", ICCV 2015; the weights are
    our reading of attention in "Where to Focus" (arXiv 1709.05769).

    Args:
        a: The first stream's map.
        b: The second stream's map, on the same grid.
        weights: Weight of each location.

    Returns:
        The vector; entry c D + d belongs to channel c of `a` and d of `b`.

    Shape:
        - a: (B, C, h, w); b: (B, D, h, w); weights: (B, h, w)
        - returns: (B, C * D), float32 (float64 for float64)
    """
    with torch.autocast(a.device.type, enabled=False):
        a, b = single(a), single(b)
        if weights is not None:
            a = a * weights[:, None]
        return torch.einsum("bcl,bdl->bcd", a.flatten(2), b.flatten(2)).flatten(1)


def bilinear_evidence(
    a: Tensor, b: Tensor, pooled: Tensor, weight: Tensor, weights: Tensor | None = None, root_eps: float | None = None
) -> Tensor:
    r"""What each location adds to a logit of a linear classifier over the power-normalised bilinear vector.

    With the pooled vector p and y = `power_normalize(p)` the logit is $w \cdot y$, and each entry of y is p's times a factor,
    $y_k = q_k p_k$ with $q_k = s_k / (p_k \|s\|)$. Since p is a sum over locations, so is the logit:

    $$w \cdot y = \sum_l e_l, \quad e_l = \alpha_l\, a_l^\top (w \odot q) b_l$$

    So the maps sum to the logit without its bias; the factors q hold for this image only. Our decision: B-CNN has no map of its
    own.

    Args:
        a: The first stream's map.
        b: The second stream's map.
        pooled: `bilinear_pool(a, b, weights)`.
        weight: The classifier's row of the explained class.
        weights: As given to [bilinear_pool][].
        root_eps: As given to [power_normalize][].

    Returns:
        The evidence, of both signs.

    Shape:
        - a: (B, C, h, w); b: (B, D, h, w); pooled: (B, C * D); weight: (B, C * D); weights: (B, h, w)
        - returns: (B, h, w), float32 (float64 for float64), without gradient
    """
    with torch.no_grad(), torch.autocast(a.device.type, enabled=False):
        a, b, pooled, weight = single(a), single(b), single(pooled), single(weight)
        root = signed_sqrt(pooled) if root_eps is None else smooth_root(pooled, root_eps)
        length = root.norm(dim=1, keepdim=True).clamp_min(1e-6)
        below = pooled.abs() + (ROOT_EPS if root_eps is None else 4 * root_eps)
        factors = weight / (below.sqrt() * length)
        form = factors.unflatten(1, (a.shape[1], b.shape[1]))
        evidence = torch.einsum("bchw,bcd,bdhw->bhw", a, form, b)
        return evidence if weights is None else evidence * weights


class LowRankBilinear(nn.Module):
    r"""Bilinear features at every location in a low-rank form, $x_l = P^\top (U^\top a_l \odot V^\top b_l)$, power-normalised.

    Entry k before normalisation is the bilinear form $a^\top W_k b$ with $W_k = U \operatorname{diag}(P_{:k}) V^\top$: every
    bilinear map of two vectors whose matrices share `rank` rank-one terms is of this form exactly, and no outer product of C D
    numbers is stored. Signed square root and division by the length follow at each location, see [power_normalize][]. The
    product of the factors and what follows is in single precision whatever the autocast.

    With biases, $x_l = P^\top ((U^\top a_l + u) \odot (V^\top b_l + v))$, features of a and of b alone stand beside those of
    products. u and v start from one, as if each vector had one more entry, a one.

    Source: Kim et al., "Hadamard Product for Low-rank Bilinear Pooling" (arXiv 1610.04325), without its non-linearity; its use in
    place of the outer product, and where biases start, are our decisions.

    Args:
        channels: Channels C of the first stream.
        second_channels: Channels D of the second stream.
        rank: Width of the product.
        out: Width of x_l.
        bias: With u and v.

    Shape:
        - a: (B, C, h, w); b: (B, D, h, w)
        - returns: (B, out, h, w), each location of length one, or zero; float32 (float64 for float64)
    """

    def __init__(self, channels: int, second_channels: int, rank: int, out: int, bias: bool = False) -> None:
        super().__init__()
        self.u = nn.Linear(channels, rank, bias=bias)
        self.v = nn.Linear(second_channels, rank, bias=bias)
        self.p = nn.Linear(rank, out, bias=False)
        if bias:
            nn.init.ones_(self.u.bias)
            nn.init.ones_(self.v.bias)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Local bilinear features, power-normalised."""
        return power_normalize(self.features(a, b))

    def features(self, a: Tensor, b: Tensor) -> Tensor:
        """P^T (U^T a * V^T b), with biases where there are some, at every location, (B, out, h, w), before normalisation."""
        first, second = self.u(a.movedim(1, -1)), self.v(b.movedim(1, -1))
        with torch.autocast(a.device.type, enabled=False):
            product = single(first) * single(second)
            return F.linear(product, self.p.weight.to(product.dtype)).movedim(-1, 1)
