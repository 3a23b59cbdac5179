"""Soft attention over the locations of a map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fgzoo.errors import UsageError


class LocalAttention(nn.Module):
    r"""Soft attention over locations: $e_l = v^\top \tanh(W x_l + U h_l)$, $\alpha = \mathrm{softmax}_l(e)$.

    The term $U h_l$ is there only for a second look, see `hidden_size`. The softmax is in single precision whatever the autocast.

    Source: the abstract of "Where to Focus" (arXiv 1709.05769) says soft attention; this form, that of Xu et al., "Show, Attend
    and Tell" (arXiv 1502.03044), without biases, is our decision.

    Args:
        channels: Channels C of the local features x_l.
        attention_size: Width of the tanh layer.
        hidden_size: Channels of the hidden map h of an earlier look, which the scores then read, too; `None`: there is none.

    Shape:
        - x: (B, C, h, w); hidden: (B, hidden_size, h, w), or (B, hidden_size, 1, 1), one state for all locations, or `None` for a
          first look (h = 0)
        - returns: alpha (B, h, w), each map sums to one

    Raises:
        UsageError: A hidden map is given, but `hidden_size` was not.
    """

    def __init__(self, channels: int, attention_size: int, hidden_size: int | None = None) -> None:
        super().__init__()
        self.input = nn.Linear(channels, attention_size, bias=False)
        self.hidden = None if hidden_size is None else nn.Linear(hidden_size, attention_size, bias=False)
        self.score = nn.Linear(attention_size, 1, bias=False)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Weigh the locations."""
        return self.weigh(self.inner(x), hidden)

    def inner(self, x: Tensor) -> Tensor:
        """W x_l, (B, C, h, w) -> (B, h, w, attention_size), which several looks share."""
        inner: Tensor = self.input(x.movedim(1, -1))
        return inner

    def weigh(self, inner: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Weigh the locations by what [inner][LocalAttention.inner] gave."""
        if hidden is not None:
            if self.hidden is None:
                raise UsageError("hidden: this attention was built without hidden_size, so it reads no hidden map")
            inner = inner + self.hidden(hidden.movedim(1, -1))
        energy = self.score(inner.tanh()).squeeze(-1)
        return energy.flatten(1).softmax(dim=1, dtype=torch.promote_types(energy.dtype, torch.float32)).view_as(energy)


def attend(x: Tensor, alpha: Tensor) -> Tensor:
    r"""Attended local features, $\tilde x_l = L \alpha_l x_l$ over L locations: uniform attention leaves them as they are.

    Source: our decision; L keeps the scale independent of the map's size.

    Args:
        x: (B, C, h, w).
        alpha: (B, h, w), each map sums to one.

    Returns:
        (B, C, h, w).
    """
    return x * (alpha * alpha[0].numel())[:, None]


def coverage_penalty(alphas: Tensor) -> Tensor:
    r"""Doubly stochastic penalty, $\sum_l (1 - \sum_r \alpha_{r, l})^2$, averaged over the batch.

    Source: Xu et al., "Show, Attend and Tell" (arXiv 1502.03044), its doubly stochastic attention, with glimpses r
    in place of words. R glimpses cannot cover each of L locations once where R is less than L: as every map sums to one,

    $$\sum_l (1 - s_l)^2 = L - 2 R + \sum_l s_l^2, \quad s_l = \sum_r \alpha_{r, l}$$

    so the value is about L (784 for a map of 28 x 28), nearly all of it constant; what is minimised is the last sum, between
    R^2 / L (together the glimpses look everywhere alike) and R^2 (all at one location).

    Args:
        alphas: (B, R, h, w), each map sums to one.

    Returns:
        A scalar.
    """
    return (1 - alphas.sum(dim=1)).square().sum(dim=(1, 2)).mean()
