"""The diagonal scan beside the literal double loop, in double precision."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from fgzoo.errors import UsageError
from fgzoo.nn.spatial_lstm import SpatialLSTM, diagonal_order

SIZES = ((3, 5), (5, 3), (4, 4), (1, 4), (4, 1), (1, 1), (2, 7))
Directions = Literal[1, 4]


def make(input_size: int = 3, hidden_size: int = 2, directions: Directions = 1) -> SpatialLSTM:
    """A block in double precision whose biases and weights are large enough to matter."""
    torch.manual_seed(0)
    block = SpatialLSTM(input_size, hidden_size, directions).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return block


def double_loop(block: SpatialLSTM, maps: Tensor, direction: int) -> Tensor:
    """The equations, one cell at a time."""
    flipped = [dimension for dimension, bit in ((2, 1), (3, 2)) if direction & bit]
    maps = maps.flip(flipped)
    weight = torch.cat([block.input_weight[direction], block.hidden_weight[direction]], dim=1)
    bias = block.bias.view(block.directions, -1)[direction]
    zero = maps.new_zeros(len(maps), block.hidden_size)
    h: dict[tuple[int, int], Tensor] = {}
    c: dict[tuple[int, int], Tensor] = {}
    for i in range(maps.shape[2]):
        for j in range(maps.shape[3]):
            left, upper = (i, j - 1), (i - 1, j)
            y = torch.cat([maps[:, :, i, j], h.get(left, zero), h.get(upper, zero)], dim=1)
            g, i_gate, o, f_r, f_c = (y @ weight.T + bias).chunk(5, dim=1)
            c[i, j] = g.tanh() * i_gate.sigmoid() + f_c.sigmoid() * c.get(left, zero) + f_r.sigmoid() * c.get(upper, zero)
            h[i, j] = (o.sigmoid() * c[i, j]).tanh()
    rows = [torch.stack([h[i, j] for j in range(maps.shape[3])], dim=-1) for i in range(maps.shape[2])]
    return torch.stack(rows, dim=-2).flip(flipped)


@pytest.mark.parametrize("directions", [1, 4])
@pytest.mark.parametrize("size", SIZES)
def test_scan_equals_the_double_loop(size: tuple[int, int], directions: Directions) -> None:
    block = make(directions=directions)
    maps = torch.randn(2, 3, *size, dtype=torch.double, requires_grad=True)
    ours = block(maps)
    literal = torch.stack([double_loop(block, maps, k) for k in range(directions)]).sum(dim=0)
    torch.testing.assert_close(ours, literal, rtol=0, atol=1e-12)

    probe, inputs = torch.randn_like(ours), (maps, *block.parameters())
    mine, other = (torch.autograd.grad((probe * y).sum(), inputs) for y in (ours, literal))
    for first, second in zip(mine, other, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-11)


def test_a_cell_sees_what_lies_above_and_left_of_it_and_nothing_else() -> None:
    block = make()
    maps = torch.randn(1, 3, 4, 5, dtype=torch.double, requires_grad=True)
    block(maps)[0, :, 2, 3].sum().backward()
    assert maps.grad is not None
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
        assert parameter.grad is not None
        torch.testing.assert_close(lowered[name], parameter.grad, rtol=0.05, atol=0.05 * float(parameter.grad.abs().max()))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_zero_and_extreme_maps_give_finite_values_and_gradients(precision: torch.dtype) -> None:
    torch.manual_seed(0)
    block = SpatialLSTM(4, 8, directions=4)
    for value in (0.0, 1e3, -1e3):
        maps = torch.full((1, 4, 3, 3), value, requires_grad=True)
        with torch.autocast("cpu", precision):
            hidden = block(maps)
        hidden.sum().backward()
        assert torch.isfinite(hidden).all()
        assert maps.grad is not None
        assert torch.isfinite(maps.grad).all()


def test_scan_compiles_as_one_graph_with_its_gradient() -> None:
    torch._dynamo.reset()
    block = make(directions=4)
    maps = torch.randn(2, 3, 3, 4, dtype=torch.double, requires_grad=True)
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    mine, other = (torch.autograd.grad(f(maps).square().sum(), (maps, *block.parameters())) for f in (compiled, block))
    for first, second in zip(mine, other, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-12)


def test_a_number_of_directions_that_does_not_exist_is_named() -> None:
    with pytest.raises(UsageError, match="directions: 2"):
        SpatialLSTM(3, 2, directions=2)  # type: ignore[arg-type]
