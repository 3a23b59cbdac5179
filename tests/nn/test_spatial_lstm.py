"""The diagonal scan beside literal loops over cells and what they look at, in double precision."""

from __future__ import annotations

import itertools
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fgzoo.errors import UsageError
from fgzoo.nn.spatial_lstm import CausalAttention, Neighbourhood, SpatialLSTM, diagonal_order

SIZES = ((3, 5), (5, 3), (4, 4), (1, 4), (4, 1), (1, 1), (2, 7))
Directions = Literal[1, 4]
Cell = tuple[int, int]


def make(
    input_size: int = 3,
    hidden_size: int = 2,
    directions: Directions = 1,
    neighbourhood: Neighbourhood = "own",
    attends: bool = False,
) -> SpatialLSTM:
    """A block in double precision whose biases and weights are large enough to matter."""
    torch.manual_seed(0)
    block = SpatialLSTM(input_size, hidden_size, directions, neighbourhood, attends).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return block


def make_attention(hidden_size: int = 2, directions: Directions = 1, channels: int | None = None) -> CausalAttention:
    """The same for what a scan attends to."""
    attention = CausalAttention(hidden_size, directions, channels, attention_size=4).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=2.0)
    return attention


def literal_loop(
    block: SpatialLSTM, maps: Tensor, direction: int, attention: CausalAttention | None = None
) -> tuple[Tensor, dict[Cell, dict[Cell, Tensor]]]:
    """The equations, one cell at a time, and for each cell one after the other what it looks at: states and weights L."""
    flipped = [dimension for dimension, bit in ((2, 1), (3, 2)) if direction & bit]
    maps = maps.flip(flipped)
    height, width = maps.shape[2:]
    weight = torch.cat([block.input_weight[direction], block.hidden_weight[direction]], dim=1)
    bias = block.bias.view(block.directions, -1)[direction]
    zero, nothing = maps.new_zeros(len(maps), block.hidden_size), torch.zeros_like(maps[:, :, 0, 0])
    x: dict[Cell, Tensor] = {}
    for i, j in itertools.product(range(height), range(width)):
        read = [(i + di, j + dj) for di, dj in block.neighbourhood]
        inside = [maps[:, :, k, m] if 0 <= k < height and 0 <= m < width else nothing for k, m in read]
        x[i, j] = torch.cat(inside, dim=1) if inside else maps[:, :0, i, j]
    h: dict[Cell, Tensor] = {}
    c: dict[Cell, Tensor] = {}
    looks: dict[Cell, dict[Cell, Tensor]] = {}
    for i, j in itertools.product(range(height), range(width)):
        left, upper = (i, j - 1), (i - 1, j)
        expected = maps[:, :0, i, j]
        if attention is not None:
            looks[i, j] = literal_attention(attention, (h.get(left, zero) + h.get(upper, zero)) / 2, maps, (i, j), direction)
            expected = sum((L[:, None] * maps[:, :, u, v] for (u, v), L in looks[i, j].items()), nothing)
        y = torch.cat([x[i, j], expected, h.get(left, zero), h.get(upper, zero)], dim=1)
        g, i_gate, o, f_r, f_c = (y @ weight.T + bias).chunk(5, dim=1)
        c[i, j] = g.tanh() * i_gate.sigmoid() + f_c.sigmoid() * c.get(left, zero) + f_r.sigmoid() * c.get(upper, zero)
        h[i, j] = (o.sigmoid() * c[i, j]).tanh()
    rows = [torch.stack([h[i, j] for j in range(width)], dim=-1) for i in range(height)]
    return torch.stack(rows, dim=-2).flip(flipped), looks


def literal_attention(attention: CausalAttention, state: Tensor, maps: Tensor, cell: Cell, direction: int) -> dict[Cell, Tensor]:
    """L_uv of one cell, for every u and v that it has seen."""
    weights = F.interpolate(attention.location, maps.shape[2:], mode="bicubic")[direction]
    scores: dict[Cell, Tensor] = {}
    for u, v in itertools.product(range(cell[0] + 1), range(cell[1] + 1)):
        scores[u, v] = state @ weights[:, u, v]
        if attention.content is not None:
            inner, _, score = attention.content
            scores[u, v] = scores[u, v] + (maps[:, :, u, v] @ inner.weight.T).tanh() @ score.weight[0]
    exponentials = {key: score.exp() for key, score in scores.items()}
    total = sum(exponentials.values(), torch.zeros_like(scores[0, 0]))
    return {key: value / total for key, value in exponentials.items()}


@pytest.mark.parametrize("neighbourhood", ["own", "causal"])
@pytest.mark.parametrize("directions", [1, 4])
@pytest.mark.parametrize("size", SIZES)
def test_scan_equals_the_double_loop(size: tuple[int, int], directions: Directions, neighbourhood: Neighbourhood) -> None:
    block = make(directions=directions, neighbourhood=neighbourhood)
    maps = torch.randn(2, 3, *size, dtype=torch.double, requires_grad=True)
    ours = block(maps)
    literal = torch.stack([literal_loop(block, maps, k)[0] for k in range(directions)]).sum(dim=0)
    assert_same_gradients(ours, literal, (maps, *block.parameters()))


@pytest.mark.parametrize(("neighbourhood", "channels"), [("none", None), ("own", 3), ("causal", 3)])
@pytest.mark.parametrize("directions", [1, 4])
@pytest.mark.parametrize("size", SIZES)
def test_attending_scan_equals_the_quadruple_loop(
    size: tuple[int, int], directions: Directions, neighbourhood: Neighbourhood, channels: int | None
) -> None:
    block = make(directions=directions, neighbourhood=neighbourhood, attends=True)
    attention = make_attention(directions=directions, channels=channels)
    maps = torch.randn(2, 3, *size, dtype=torch.double, requires_grad=True)
    states, last, penalty = block.attend(maps, attention)
    literal, looks = zip(*(literal_loop(block, maps, k, attention) for k in range(directions)), strict=True)
    inputs = (maps, *block.parameters(), *attention.parameters())
    assert_same_gradients(states, torch.stack(literal).sum(dim=0), inputs)
    squares = [L.square() for look in looks for cell in look.values() for L in cell.values()]
    assert_same_gradients(penalty, torch.stack(squares).sum() / (2 * directions * size[0] * size[1]), inputs)
    corner = (size[0] - 1, size[1] - 1)
    for i, j in itertools.product(range(size[0]), range(size[1])):
        seen = [look[corner][corner[0] - i if k & 1 else i, corner[1] - j if k & 2 else j] for k, look in enumerate(looks)]
        torch.testing.assert_close(last[:, i, j], torch.stack(seen).mean(dim=0), rtol=0, atol=1e-12)


def test_attention_begins_uniform_and_learns() -> None:
    block, attention = make(attends=True), CausalAttention(2, channels=3).double()
    maps = torch.randn(2, 3, 3, 4, dtype=torch.double)
    states, last, _ = block.attend(maps, attention)
    torch.testing.assert_close(last, torch.full_like(last, 1 / 12))
    loss: Tensor = (states * torch.randn_like(states)).sum()
    loss.backward()
    assert all(weight.grad.abs().sum() > 0 for weight in (attention.location, attention.content[2].weight))


def assert_same_gradients(ours: Tensor, literal: Tensor, inputs: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(ours, literal, rtol=0, atol=1e-12)
    probe = torch.randn_like(ours)
    mine, other = (
        torch.autograd.grad((probe * y).sum(), inputs, retain_graph=True, allow_unused=True, materialize_grads=True)
        for y in (ours, literal)
    )
    for first, second in zip(mine, other, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-10)


def test_a_cell_sees_what_lies_above_and_left_of_it_and_nothing_else() -> None:
    block = make()
    maps = torch.randn(1, 3, 4, 5, dtype=torch.double, requires_grad=True)
    block(maps)[0, :, 2, 3].sum().backward()
    seen = maps.grad[0].abs().sum(dim=0) > 0
    expected = torch.zeros(4, 5, dtype=torch.bool)
    expected[:3, :4] = True
    assert torch.equal(seen, expected)


def test_diagonals_of_a_small_map() -> None:
    assert diagonal_order(2, 3).tolist() == [0, 1, 3, 2, 4, 5]
    assert diagonal_order(2, 3, flip_rows=True).tolist() == [3, 4, 0, 5, 1, 2]
    assert diagonal_order(2, 3, flip_columns=True).tolist() == [2, 1, 5, 0, 4, 3]


def test_weights_are_drawn_from_a_small_uniform_range_and_biases_are_zero() -> None:
    torch.manual_seed(0)
    block = SpatialLSTM(64, 32)
    for weight in (block.input_weight, block.hidden_weight):
        assert weight.detach().abs().max().item() == pytest.approx(0.08, rel=0.01)
        assert weight.detach().std().item() == pytest.approx(0.08 / 3**0.5, rel=0.02)
    assert block.bias.detach().abs().sum() == 0


def test_recursion_is_in_single_precision_under_autocast() -> None:
    torch.manual_seed(0)
    block = SpatialLSTM(8, 16)
    maps = torch.randn(2, 8, 6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        inside = block(maps)
        inside.sum().backward()
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, block(maps), rtol=0, atol=5e-3)
    lowered = {name: parameter.grad for name, parameter in block.named_parameters()}
    block.zero_grad(set_to_none=True)
    block(maps).sum().backward()
    for name, parameter in block.named_parameters():
        torch.testing.assert_close(lowered[name], parameter.grad, rtol=0.05, atol=0.05 * float(parameter.grad.abs().max()))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_zero_and_extreme_maps_give_finite_values_and_gradients(precision: torch.dtype) -> None:
    torch.manual_seed(0)
    block, attention = SpatialLSTM(4, 8, directions=4, attends=True), make_attention(8, 4, channels=4).float()
    for value in (0.0, 1e3, -1e3):
        maps = torch.full((1, 4, 3, 3), value, requires_grad=True)
        with torch.autocast("cpu", precision):
            hidden = block.attend(maps, attention).states
        hidden.sum().backward()
        assert torch.isfinite(hidden).all()
        assert torch.isfinite(maps.grad).all()


def test_scan_compiles_as_one_graph_with_its_gradient() -> None:
    torch._dynamo.reset()
    block = make(directions=4, attends=True)
    maps = torch.randn(2, 3, 3, 4, dtype=torch.double, requires_grad=True)
    attention = make_attention(directions=4, channels=3)
    compiled = torch.compile(block.attend, backend="eager", fullgraph=True)
    inputs = (maps, *block.parameters(), *attention.parameters())
    mine, other = (torch.autograd.grad(f(maps, attention).states.square().sum(), inputs) for f in (compiled, block.attend))
    for first, second in zip(mine, other, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-12)


def test_a_number_of_directions_that_does_not_exist_is_named() -> None:
    with pytest.raises(UsageError, match="directions: 2"):
        SpatialLSTM(3, 2, directions=2)  # type: ignore[arg-type]
