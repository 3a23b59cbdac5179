"""The recursion of RRA: an LSTM that reads the same vector at every step."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RepeatedInputLSTM(nn.Module):
    r"""A stack of LSTM layers whose input is one vector, repeated for every step.

    With $h^0_t = x$ for all t and zero initial states, layer l computes

    $$i, f, g, o = W^l_x h^{l-1}_t + W^l_h h^l_{t-1} + b^l, \quad
      c^l_t = \sigma(f) c^l_{t-1} + \sigma(i) \tanh(g), \quad h^l_t = \sigma(o) \tanh(c^l_t)$$

    It is `torch.nn.LSTM` in cells: the same equations, the same parameters. Cells are used because `nn.LSTM` breaks
    full-graph compilation and cuDNN refuses its backward pass in evaluation mode, which explanations need.

    Source: the recursion of "Focus Longer to See Better" (arXiv 2005.10979), authors' code: two layers of width 512, zero state.

    Args:
        input_size: Width of x.
        hidden_size: Width of every layer's state.
        num_layers: Number of layers.

    Shape:
        - x: (B, input_size)
        - returns: (B, steps, hidden_size), the last layer's h_1 .. h_T
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 2) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        sizes = [input_size] + [hidden_size] * (num_layers - 1)
        self.cells = nn.ModuleList(nn.LSTMCell(size, hidden_size) for size in sizes)

    def forward(self, x: Tensor, steps: int) -> Tensor:
        """Unroll the recursion for `steps` steps."""
        states, hidden = self.start(x), []
        for _ in range(steps):
            states = self.step(x, states)
            hidden.append(states[-1][0])
        return torch.stack(hidden, dim=1)

    def start(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The zero states (h, c) of every layer for a batch like x, (B, ...)."""
        zero = x.new_zeros(x.shape[0], self.hidden_size)
        return [(zero, zero)] * len(self.cells)

    def step(self, x: Tensor, states: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """The states of every layer after a step that reads x, from those before it."""
        after: list[tuple[Tensor, Tensor]] = []
        for cell, state in zip(self.cells, states, strict=True):
            after.append(cell(after[-1][0] if after else x, state))
        return after
