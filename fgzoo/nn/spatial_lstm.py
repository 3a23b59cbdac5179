"""The spatial LSTM: a two-dimensional recursion over a map, a diagonal at a time; and attention that follows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgzoo.errors import UsageError
from fgzoo.nn.maps import single

Neighbourhood = Literal["none", "own", "causal"]

#: Initial weights are drawn from U(-0.08, 0.08).
INITIAL_RANGE = 0.08
#: Side of the grid on which an attention's weights of locations are kept, that of VGG-16's last map of 224 pixels.
REFERENCE_GRID = 14
#: Rows and columns from a cell to what it reads of the map: of `causal` itself, what is at its left, and the three above.
NEIGHBOURHOODS: dict[Neighbourhood, tuple[tuple[int, int], ...]] = {
    "none": (),
    "own": ((0, 0),),
    "causal": ((0, 0), (0, -1), (-1, -1), (-1, 0), (-1, 1)),
}


class CausalAttention(nn.Module):
    r"""What a scan looks at from a cell: a distribution over the cells it has seen, given the state it has come with.

    $$L_{uv} = \frac{\exp(U_{uv}^\top h)}{\sum_{u' \le i, v' \le j} \exp(U_{u'v'}^\top h)}, \quad u \le i, v \le j$$

    Every location has weights U_uv of its own. With `channels`, what is there, $x_{uv}$, counts, too: $v^\top \tanh(W x_{uv})$ is
    added to its score.

    Source: Wu and Wang, "Where to Focus" (arXiv 1709.05769), which takes the weights from Sharma et al. (arXiv 1511.04119); the
    added score is that of Xu et al., "Show, Attend and Tell" (arXiv 1502.03044). Our decisions: h is the mean of the left and the
    upper neighbour's state, since the cell's own depends on what is looked at; U is on a grid of 14 x 14, which is resized for
    other maps; U and v begin at zero, so that attention begins uniform.

    Args:
        hidden_size: S, channels of the state.
        directions: N, of the scan; each has weights U of its own.
        channels: C of the cells, where what they hold counts; `None`: U alone.
        attention_size: Width of the tanh layer.
    """

    def __init__(self, hidden_size: int, directions: int = 1, channels: int | None = None, attention_size: int = 256) -> None:
        super().__init__()
        self.location = nn.Parameter(torch.zeros(directions, hidden_size, REFERENCE_GRID, REFERENCE_GRID))
        self.content: nn.Sequential | None = None
        if channels is not None:
            score = nn.Linear(attention_size, 1, bias=False)
            nn.init.zeros_(score.weight)
            self.content = nn.Sequential(nn.Linear(channels, attention_size, bias=False), nn.Tanh(), score)

    def on_grid(self, height: int, width: int) -> Tensor:
        """U in a scan's order, (N, L, S)."""
        resized = (height, width) != (REFERENCE_GRID, REFERENCE_GRID)
        location = F.interpolate(self.location, (height, width), mode="bicubic") if resized else self.location
        order = diagonal_order(height, width, device=location.device)
        return location.flatten(2)[:, :, order].transpose(1, 2)

    def forward(self, state: Tensor, location: Tensor, told: Tensor | None, visible: Tensor) -> Tensor:
        """Weights L of the locations.

        Args:
            state: (N, n, B, S), what n cells have come with.
            location: (N, L, S), U.
            told: (N, L, B), what the content adds to a score, or `None`.
            visible: (n, L), which locations a cell has seen.

        Returns:
            (N, B, n, L), each row sums to one.
        """
        scores = torch.einsum("nkbs,nls->nbkl", state, location)
        if told is not None:
            scores = scores + told.transpose(1, 2)[:, :, None]
        return scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)


class Scan(NamedTuple):
    r"""What a scan with attention gives.

    Attributes:
        states: (B, S, H, W).
        attention: (B, H, W), where the last cell looks, which has seen the whole map: the mean over directions; sums to one.
        penalty: A scalar, the mean over images, directions and cells of $\sum_{uv} L_{uv}^2$.
    """

    states: Tensor
    attention: Tensor
    penalty: Tensor


class SpatialLSTM(nn.Module):
    r"""Spatial LSTM: each cell reads its input and the states of its left and upper neighbours.

    With $y_{ij} = [x_{ij}, h_{i, j-1}, h_{i-1, j}]$ and zero states outside the map,

    $$g = \tanh(W_g y + b_g), \quad i, o, f_r, f_c = \sigma(W y + b)$$
    $$c_{ij} = g \odot i + f_c \odot c_{i, j-1} + f_r \odot c_{i-1, j}, \quad h_{ij} = \tanh(o \odot c_{ij})$$

    The cells of an anti-diagonal (i + j constant) do not depend on one another, so H + W - 1 steps do what a double loop does in
    H W: the cells are put in the order of their diagonals, and each step is one matrix product for all cells of a diagonal. The
    recursion is in single precision whatever the autocast, its rounding would add up over the steps; the projection of the
    inputs follows the autocast, but for what the cells attend to.

    Source: Theis and Bethge, "Generative Image Modeling Using Spatial LSTMs" (arXiv 1506.03478), and their published code, which
    has the tanh outside the product in h; the causal neighbourhood of its figure 5b and attention as in "Where to Focus" (arXiv
    1709.05769). Our decisions: weights start from U(-0.08, 0.08); biases start at zero (a positive forget bias makes f_r + f_c
    exceed one, and the memory grows from diagonal to diagonal); each of four directions has weights of its own; a cell reads its
    own location beside what it attends to, which is blurred as long as attention is wide.

    Args:
        input_size: Channels C of the map.
        hidden_size: Channels S of the hidden state.
        directions: 1: from the upper left; 4: from every corner, summed.
        neighbourhood: Whether x_ij holds the feature at the cell (`own`), or that, the one at its left and the three above
            (`causal`), or neither (`none`).
        attends: x_ij also holds what the cell attends to, see [attend][SpatialLSTM.attend].

    Shape:
        - maps: (B, C, H, W)
        - returns: (B, hidden_size, H, W), float32 (float64 for float64)

    Raises:
        UsageError: `directions` is neither 1 nor 4, or cells read nothing.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        directions: Literal[1, 4] = 1,
        neighbourhood: Neighbourhood = "own",
        attends: bool = False,
    ) -> None:
        super().__init__()
        if directions not in (1, 4):
            raise UsageError(f"directions: {directions}; a map is scanned from 1 corner or from all 4")
        if neighbourhood == "none" and not attends:
            raise UsageError("neighbourhood: 'none' leaves cells without attention nothing to read")
        self.hidden_size = hidden_size
        self.directions = directions
        self.neighbourhood = NEIGHBOURHOODS[neighbourhood]
        inputs = input_size * (len(self.neighbourhood) + attends)
        # Rows g, i, o, f_r, f_c; columns of input_weight: neighbourhood, then what is
        # attended to; of hidden_weight: left neighbour, then upper neighbour.
        self.input_weight = nn.Parameter(torch.empty(directions, 5 * hidden_size, inputs))
        self.hidden_weight = nn.Parameter(torch.empty(directions, 5 * hidden_size, 2 * hidden_size))
        self.bias = nn.Parameter(torch.zeros(directions * 5 * hidden_size))
        nn.init.uniform_(self.input_weight, -INITIAL_RANGE, INITIAL_RANGE)
        nn.init.uniform_(self.hidden_weight, -INITIAL_RANGE, INITIAL_RANGE)

    def forward(self, maps: Tensor) -> Tensor:
        """Scan a map."""
        steps = diagonals(*maps.shape[-2:])
        projected = self._project_neighbourhood(maps, steps)
        return self._recur(maps, steps, lambda index, _: projected[index])

    def attend(self, maps: Tensor, attention: CausalAttention) -> Scan:
        r"""Scan a map whose cells also read what they attend to, $\sum_{u \le i, v \le j} L_{uv} x_{uv}$."""
        height, width = maps.shape[-2:]
        steps, order = diagonals(height, width), diagonal_order(height, width, device=maps.device)
        rows, columns = order // width, order % width
        seen = (rows <= rows[:, None]) & (columns <= columns[:, None])
        projected = self._project_neighbourhood(maps, steps) if self.neighbourhood else None
        looks: list[Tensor] = []
        with torch.autocast(maps.device.type, enabled=False):
            cells, location = self._cells(single(maps), NEIGHBOURHOODS["own"]), single(attention.on_grid(height, width))
            own = cells.to(self.input_weight.dtype)
            told = None if attention.content is None else single(attention.content(own)[..., 0])
            weight = single(self.input_weight[:, :, -cells.shape[-1] :])

            def read(index: int, before: Tensor) -> Tensor:
                start, stop = steps[index].start, steps[index].stop
                added = None if told is None else told[:, :stop]
                looks.append(attention(before, location[:, :stop], added, seen[start:stop, :stop]))
                expected = torch.einsum("nbkl,nlbc->nkbc", looks[-1], cells[:, :stop])
                attended = torch.einsum("nlbc,ngc->nlbg", expected, weight)
                return attended if projected is None else attended + projected[index]

            states = self._recur(maps, steps, read)
            last = self._on_map(looks[-1].permute(0, 3, 1, 2), height, width)[:, 0] / self.directions
            penalty = torch.cat([look.square().sum(dim=3) for look in looks], dim=2).mean()
        return Scan(states, last, penalty)

    def _recur(self, maps: Tensor, steps: list[Diagonal], read: Callable[[int, Tensor], Tensor]) -> Tensor:
        """The recursion; `read` gives a diagonal's projected inputs (N, n, B, 5 S) by the mean of its neighbours' states."""
        states: list[Tensor] = []
        with torch.autocast(maps.device.type, enabled=False):
            weight = single(self.hidden_weight).transpose(1, 2)
            h = c = single(maps).new_zeros(self.directions, 0, maps.shape[0], self.hidden_size)
            for index, step in enumerate(steps):
                h, c = step.surround(h), step.surround(c)
                left, upper = h[:, 1:], h[:, :-1]
                own = single(read(index, (left + upper) / 2)) + self.bias.view(self.directions, 1, 1, -1)
                neighbours = torch.cat([left, upper], dim=-1).flatten(1, 2)
                gates = torch.baddbmm(own.flatten(1, 2), neighbours, weight).view_as(own)
                g, i, o, f_r, f_c = gates.chunk(5, dim=-1)
                c = g.tanh() * i.sigmoid() + f_c.sigmoid() * c[:, 1:] + f_r.sigmoid() * c[:, :-1]
                h = (o.sigmoid() * c).tanh()
                states.append(h)
            return self._on_map(torch.cat(states, dim=1), *maps.shape[-2:])

    def _project_neighbourhood(self, maps: Tensor, steps: list[Diagonal]) -> tuple[Tensor, ...]:
        """What a diagonal's gates have of the cells' neighbourhoods, (N, n, B, 5 S) each, in one product."""
        cells = self._cells(maps, self.neighbourhood)
        projected = torch.einsum("nlbc,ngc->nlbg", cells, self.input_weight[:, :, : cells.shape[-1]])
        return projected.split([step.stop - step.start for step in steps], dim=1)

    def _cells(self, maps: Tensor, neighbourhood: tuple[tuple[int, int], ...]) -> Tensor:
        """What is in the cells' neighbourhoods, in the order of each direction's scan, (B, C, H, W) -> (N, L, B, n C)."""
        padded, found = F.pad(maps, (1, 1, 1, 1)), []
        for k, order in enumerate(self._orders(maps.shape[2], maps.shape[3], maps.device)):
            row, column = (-1 if k & 1 else 1), (-1 if k & 2 else 1)
            read = [padded.roll((-row * i, -column * j), (2, 3))[..., 1:-1, 1:-1] for i, j in neighbourhood]
            found.append(torch.cat(read, dim=1).flatten(2).permute(2, 0, 1)[order])
        return torch.stack(found)

    def _on_map(self, scans: Tensor, height: int, width: int) -> Tensor:
        """Values in the order of each direction's scan, (N, L, B, S), summed on the map, (B, S, H, W)."""
        orders = self._orders(height, width, scans.device)
        total = torch.stack([scan[order.argsort()] for scan, order in zip(scans, orders, strict=True)]).sum(dim=0)
        return total.permute(1, 2, 0).unflatten(2, (height, width))

    def _orders(self, height: int, width: int, device: torch.device) -> list[Tensor]:
        return [diagonal_order(height, width, bool(k & 1), bool(k & 2), device) for k in range(self.directions)]


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
