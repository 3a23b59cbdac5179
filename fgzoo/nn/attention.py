"""Attention over the steps of a recursion."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TemporalAttention(nn.Module):
    r"""Attention over time: $e_t = w \cdot h_t + b$, $a = \mathrm{softmax}_t(e)$, $c = \sum_t a_t h_t$.

    Source: "Focus Longer to See Better" (arXiv 2005.10979), authors' code.

    Args:
        hidden_size: Width of h_t.

    Shape:
        - hidden: (B, T, hidden_size)
        - returns: context (B, hidden_size) and weights (B, T), which sum to one over t
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.score = nn.Linear(hidden_size, 1)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Weigh the steps and sum them."""
        weights = self.score(hidden).squeeze(-1).softmax(dim=1)
        return torch.einsum("bt,bth->bh", weights, hidden), weights
