"""The spatial LSTM: a two-dimensional recursion over a map, computed a diagonal at a time."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgzoo.errors import UsageError
from fgzoo.nn.bilinear import single

#: Initial weights are drawn from U(-0.08, 0.08).
INITIAL_RANGE = 0.08


class SpatialLSTM(nn.Module):
    r"""Spatial LSTM: each cell reads its input and the states of its left and upper neighbours.

    With $y_{ij} = [x_{ij}, h_{i, j-1}, h_{i-1, j}]$ and zero states outside the map,

    $$g = \tanh(W_g y + b_g), \quad i, o, f_r, f_c = \sigma(W y + b)$$
    $$c_{ij} = g \odot i + f_c \odot c_{i, j-1} + f_r \odot c_{i-1, j}, \quad h_{ij} = \tanh(o \odot c_{ij})$$

    The cells of an anti-diagonal (i + j constant) do not depend on one another, so H + W - 1 steps do what a double loop does in
    H W: the cells are put in the order of their diagonals, all inputs are projected in one matrix product, and each step is one
    matrix product for all cells of a diagonal. The recursion is in single precision whatever the autocast, its rounding would
    add up over the steps; the projection of the inputs follows the autocast.

    Source: Theis and Bethge, "Generative Image Modeling Using Spatial LSTMs" (arXiv 1506.03478), and their published code, which
    has the tanh outside the product in h. Our decisions: weights start from U(-0.08, 0.08); biases start at zero (a positive
    forget bias makes f_r + f_c exceed one, and the memory grows from diagonal to diagonal); each of four directions has weights
    of its own.

    Args:
        input_size: Channels C of the map.
        hidden_size: Channels of the hidden state.
        directions: 1: from the upper left; 4: from every corner, summed.

    Shape:
        - maps: (B, C, H, W)
        - returns: (B, hidden_size, H, W), float32 (float64 for float64)

    Raises:
        UsageError: `directions` is neither 1 nor 4.
    """

    def __init__(self, input_size: int, hidden_size: int, directions: Literal[1, 4] = 1) -> None:
        super().__init__()
        if directions not in (1, 4):
            raise UsageError(f"directions: {directions}; a map is scanned from 1 corner or from all 4")
        self.hidden_size = hidden_size
        self.directions = directions
        # Rows g, i, o, f_r, f_c; the columns of hidden_weight: left neighbour, then upper neighbour.
        self.input_weight = nn.Parameter(torch.empty(directions, 5 * hidden_size, input_size))
        self.hidden_weight = nn.Parameter(torch.empty(directions, 5 * hidden_size, 2 * hidden_size))
        self.bias = nn.Parameter(torch.zeros(directions * 5 * hidden_size))
        nn.init.uniform_(self.input_weight, -INITIAL_RANGE, INITIAL_RANGE)
        nn.init.uniform_(self.hidden_weight, -INITIAL_RANGE, INITIAL_RANGE)

    def forward(self, maps: Tensor) -> Tensor:
        """Scan a map."""
        height, width = maps.shape[-2:]
        cells = maps.flatten(2).permute(2, 0, 1)  # (H W, B, C)
        orders = [diagonal_order(height, width, bool(k & 1), bool(k & 2), maps.device) for k in range(self.directions)]
        inputs = torch.stack([cells[order] for order in orders])
        projected = torch.einsum("nlbc,ngc->nlbg", inputs, self.input_weight)
        with torch.autocast(maps.device.type, enabled=False):
            projected = single(projected) + self.bias.view(self.directions, 1, 1, -1)
            hidden = _Scan.apply(projected, self.hidden_weight, height, width)
            scans = [scan[order.argsort()] for scan, order in zip(hidden, orders, strict=True)]
            return torch.stack(scans).sum(dim=0).permute(1, 2, 0).unflatten(2, (height, width))


class _Scan(torch.autograd.Function):
    """The recursion over the diagonals, with its gradient written out.

    Plain autograd gives the same numbers, but adds up the weights' gradient at every step; here that is one matrix product at the
    end. N directions, L = H W cells in diagonal order, B samples, S hidden channels; gate rows are g, i, o, f_r, f_c.
    """

    @staticmethod
    def forward(ctx: Any, projected: Tensor, weight: Tensor, height: int, width: int) -> Tensor:
        """(N, L, B, 5 S), (N, 5 S, 2 S) -> hidden states (N, L, B, S)."""
        size = weight.shape[2] // 2
        h = c = projected.new_zeros(projected.shape[0], 0, projected.shape[2], size)
        kept: list[tuple[Tensor, ...]] = []
        for step in diagonals(height, width):
            h, c = step.surround(h), step.surround(c)
            neighbours = torch.cat([h[:, 1:], h[:, :-1]], dim=-1)
            own = projected[:, step.start : step.stop]
            gates = torch.baddbmm(own.flatten(1, 2), neighbours.flatten(1, 2), weight.transpose(1, 2)).view_as(own)
            gates = torch.cat([gates[..., :size].tanh(), gates[..., size:].sigmoid()], dim=-1)
            g, i, o, f_r, f_c = gates.chunk(5, dim=-1)
            c = g * i + f_c * c[:, 1:] + f_r * c[:, :-1]
            h = (o * c).tanh()
            kept.append((h, gates, neighbours, c))
        hidden, *others = (torch.cat(values, dim=1) for values in zip(*kept, strict=True))
        ctx.save_for_backward(weight, hidden, *others)
        ctx.sides = height, width
        return hidden

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Gradients of the projected inputs and of the weight."""
        weight, hidden, all_gates, all_neighbours, all_c = ctx.saved_tensors
        steps = diagonals(*ctx.sides)
        d_h = d_c = torch.zeros_like(hidden[:, -1:])
        all_d_gates = []
        with torch.autocast(hidden.device.type, enabled=False):
            for k in range(len(steps) - 1, -1, -1):
                step = steps[k]
                own = slice(step.start, step.stop)
                before = slice(steps[k - 1].start, steps[k - 1].stop) if k else slice(0, 0)
                g, i, o, f_r, f_c = all_gates[:, own].chunk(5, dim=-1)
                h, c, c_before = hidden[:, own], all_c[:, own], step.surround(all_c[:, before])
                d_product = (d_h + gradients[0][:, own]) * (1 - h * h)
                d_c = d_c + d_product * o
                d_sigmoid = torch.cat([d_c * g, d_product * c, d_c * c_before[:, :-1], d_c * c_before[:, 1:]], dim=-1)
                sigmoid = all_gates[:, own, :, g.shape[-1] :]
                d_gates = torch.cat([d_c * i * (1 - g * g), d_sigmoid * sigmoid * (1 - sigmoid)], dim=-1)
                all_d_gates.append(d_gates)
                left, upper = torch.bmm(d_gates.flatten(1, 2), weight).unflatten(1, h.shape[1:3]).chunk(2, dim=-1)
                d_h = step.gather(left, upper)
                d_c = step.gather(d_c * f_c, d_c * f_r)
            d_projected = torch.cat(all_d_gates[::-1], dim=1)
            d_weight = torch.bmm(d_projected.flatten(1, 2).transpose(1, 2), all_neighbours.flatten(1, 2))
        return d_projected, d_weight, None, None


class Diagonal(NamedTuple):
    """An anti-diagonal: its cells' range in diagonal order, and the rows of zeros round the diagonal before it.

    With these zeros, which stand for what lies outside the map, the diagonal before has one row more than this one has cells:
    row k is the upper neighbour of cell k and the left one of cell k - 1.
    """

    start: int
    stop: int
    above: int
    below: int

    def surround(self, before: Tensor) -> Tensor:
        """The states of the diagonal before, with the zeros: (N, cells, B, S) -> (N, cells of this one + 1, B, S)."""
        return F.pad(before, (0, 0, 0, 0, self.above, self.below))

    def gather(self, left: Tensor, upper: Tensor) -> Tensor:
        """Gradients of this one's left and upper neighbours, added up over the cells of the diagonal before."""
        total = F.pad(left, (0, 0, 0, 0, 1, 0)) + F.pad(upper, (0, 0, 0, 0, 0, 1))
        return total[:, self.above : total.shape[1] - self.below]


def diagonals(height: int, width: int) -> list[Diagonal]:
    """The anti-diagonals of a map, from the upper left corner.

    Args:
        height: Rows H.
        width: Columns W.

    Returns:
        H + W - 1 diagonals.
    """
    found: list[Diagonal] = []
    start = 0
    for d in range(height + width - 1):
        count = min(height - 1, d) - max(0, d - width + 1) + 1
        # Row 0 lacks an upper neighbour while the diagonals begin there, column 0 a left one while they end there.
        found.append(Diagonal(start, start + count, int(d < width), int(d < height)))
        start += count
    return found


def diagonal_order(
    height: int, width: int, flip_rows: bool = False, flip_columns: bool = False, device: torch.device | None = None
) -> Tensor:
    """The cells of a map in the order of its anti-diagonals, each from its top.

    Args:
        height: Rows H.
        width: Columns W.
        flip_rows: Begin at the bottom.
        flip_columns: Begin at the right.
        device: Where to compute it, so that nothing is copied there.

    Returns:
        (H W,) positions i W + j.
    """
    i, j = torch.arange(height, device=device), torch.arange(width, device=device)
    i = i.flip(0) if flip_rows else i
    j = j.flip(0) if flip_columns else j
    # By diagonal, then by row; every cell has a number of its own.
    return ((i[:, None] + j) * height + i[:, None]).flatten().argsort()
