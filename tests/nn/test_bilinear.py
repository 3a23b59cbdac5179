"""Bilinear features beside literal loops, in double precision; their numerics at zero and in half precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fgzoo.nn.bilinear import LowRankBilinear, bilinear_evidence, bilinear_pool, power_normalize, signed_sqrt


def maps(channels: int, height: int = 3, width: int = 4, batch: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, height, width, dtype=torch.double, generator=generator)


def positive(height: int = 3, width: int = 4, batch: int = 2) -> Tensor:
    return torch.rand(batch, height, width, dtype=torch.double, generator=torch.Generator().manual_seed(9))


# ---------------------------------------------------------------------- normalisation


def test_signed_sqrt_equals_its_formula() -> None:
    values = [-9.0, -1e-6, 0.0, 1e-9, 4.0]
    found = signed_sqrt(torch.tensor(values, dtype=torch.double))
    expected = [(x > 0) - (x < 0) and math.copysign(math.sqrt(abs(x) + 1e-12), x) for x in values]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_signed_sqrt_has_its_formulas_slope() -> None:
    x = torch.tensor([-9.0, -1e-6, 1e-9, 4.0], dtype=torch.double, requires_grad=True)
    signed_sqrt(x).sum().backward()
    assert x.grad.tolist() == pytest.approx([0.5 / math.sqrt(abs(v) + 1e-12) for v in x.tolist()])  # type: ignore[union-attr]


def test_signed_sqrt_and_its_slope_are_zero_at_zero() -> None:
    x = torch.zeros(3, requires_grad=True)
    y = signed_sqrt(x)
    y.sum().backward()
    assert y.tolist() == [0, 0, 0]
    assert x.grad.tolist() == [0, 0, 0]  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_signed_sqrt_of_half_precision_is_single(dtype: torch.dtype) -> None:
    x = torch.tensor([-60000.0, 2.0]).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = signed_sqrt(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, signed_sqrt(x.float()))


def test_power_normalised_vectors_have_length_one() -> None:
    torch.testing.assert_close(power_normalize(maps(5)).norm(dim=1), torch.ones(2, 3, 4, dtype=torch.double))


def test_power_normalisation_does_not_depend_on_the_scale() -> None:
    torch.testing.assert_close(power_normalize(1e3 * maps(5)), power_normalize(maps(5)), rtol=1e-9, atol=1e-9)


def test_power_normalisation_of_zero_is_zero_with_finite_gradients() -> None:
    x = torch.zeros(2, 5, requires_grad=True)
    y = power_normalize(x)
    y.backward(torch.randn(2, 5))
    assert y.abs().sum() == 0
    assert x.grad.abs().sum() == 0


# ---------------------------------------------------------------------- the full bilinear vector


def loop_pool(a: Tensor, b: Tensor, weights: Tensor | None) -> Tensor:
    """One outer product at a time."""
    found = []
    for n in range(len(a)):
        total = torch.zeros(a.shape[1], b.shape[1], dtype=a.dtype)
        for i in range(a.shape[2]):
            for j in range(a.shape[3]):
                weight = 1.0 if weights is None else weights[n, i, j]
                total = total + weight * torch.outer(a[n, :, i, j], b[n, :, i, j])
        found.append(total.flatten())
    return torch.stack(found)


@pytest.mark.parametrize("weighted", [False, True])
def test_bilinear_pool_is_the_sum_of_outer_products(weighted: bool) -> None:
    inputs = [maps(5), maps(3, seed=1)] + ([positive()] if weighted else [])
    inputs = [x.requires_grad_() for x in inputs]
    a, b, weights = inputs[0], inputs[1], inputs[2] if weighted else None
    ours, literal = bilinear_pool(a, b, weights), loop_pool(a, b, weights)
    torch.testing.assert_close(ours, literal, rtol=0, atol=1e-12)
    probe = torch.randn_like(ours)
    mine, other = (torch.autograd.grad((probe * y).sum(), inputs) for y in (ours, literal))
    for first, second in zip(mine, other, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-12)


def test_bilinear_pool_does_not_overflow_in_half_precision() -> None:
    a = torch.full((1, 2, 8, 8), 300.0, dtype=torch.float16)
    pooled = bilinear_pool(a, a)
    assert pooled.dtype == torch.float32
    assert pooled.tolist() == [[64 * 300.0 * 300.0] * 4]


def test_bilinear_pool_is_in_single_precision_under_autocast() -> None:
    a, b = maps(5).float(), maps(3, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = bilinear_pool(a, b)
    assert torch.equal(inside, bilinear_pool(a, b))


# ---------------------------------------------------------------------- evidence


@pytest.mark.parametrize("weighted", [False, True])
def test_evidence_sums_to_the_logit(weighted: bool) -> None:
    a, b, weights = maps(5), maps(3, seed=1), positive() if weighted else None
    row = torch.randn(2, 15, dtype=torch.double)
    pooled = bilinear_pool(a, b, weights)
    evidence = bilinear_evidence(a, b, pooled, row, weights)
    torch.testing.assert_close(evidence.sum(dim=(1, 2)), (row * power_normalize(pooled)).sum(dim=1), rtol=0, atol=1e-9)


def test_evidence_of_zero_features_is_zero() -> None:
    zero = torch.zeros(2, 3, 4, 4)
    evidence = bilinear_evidence(zero, zero, bilinear_pool(zero, zero), torch.randn(2, 9))
    assert evidence.abs().sum() == 0


# ---------------------------------------------------------------------- low rank


def test_low_rank_features_follow_the_equation() -> None:
    block = LowRankBilinear(5, 3, rank=7, out=4).double()
    a, b = maps(5), maps(3, seed=1)
    x = block.features(a, b)
    u, v, p = block.u.weight.T, block.v.weight.T, block.p.weight.T
    for n in range(2):
        for i in range(3):
            for j in range(4):
                expected = p.T @ ((u.T @ a[n, :, i, j]) * (v.T @ b[n, :, i, j]))
                torch.testing.assert_close(x[n, :, i, j], expected, rtol=0, atol=1e-12)


def test_low_rank_form_equals_a_full_bilinear_form_exactly() -> None:
    channels, second, out = 4, 3, 5
    torch.manual_seed(0)
    form = torch.randn(out, channels, second, dtype=torch.double)
    block = LowRankBilinear(channels, second, rank=channels * second, out=out).double()
    # Term (c, d) of the rank picks channel c of a and d of b; P holds the form's entries.
    with torch.no_grad():
        block.u.weight.copy_(torch.eye(channels).repeat_interleave(second, dim=0))
        block.v.weight.copy_(torch.eye(second).repeat(channels, 1))
        block.p.weight.copy_(form.flatten(1))
    a, b = maps(channels), maps(second, seed=1)
    full = torch.einsum("bchw,kcd,bdhw->bkhw", a, form, b)
    torch.testing.assert_close(block.features(a, b), full, rtol=0, atol=1e-12)
    torch.testing.assert_close(block(a, b), power_normalize(full), rtol=0, atol=1e-9)


def test_biases_are_the_form_of_vectors_with_another_entry() -> None:
    torch.manual_seed(0)
    block, longer = LowRankBilinear(5, 3, rank=7, out=4, bias=True).double(), LowRankBilinear(6, 4, rank=7, out=4).double()
    with torch.no_grad():
        for with_bias, without in ((block.u, longer.u), (block.v, longer.v)):
            without.weight.copy_(torch.cat([with_bias.weight, torch.ones(7, 1)], dim=1))
        longer.p.weight.copy_(block.p.weight)
    a, b = maps(5), maps(3, seed=1)
    one = torch.ones(2, 1, 3, 4, dtype=torch.double)
    expected = longer.features(torch.cat([a, one], dim=1), torch.cat([b, one], dim=1))
    torch.testing.assert_close(block.features(a, b), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [0.0, 1e-4, 500.0])
@pytest.mark.parametrize("bias", [False, True])
def test_low_rank_form_is_finite_in_half_precision(precision: torch.dtype, value: float, bias: bool) -> None:
    torch.manual_seed(0)
    block = LowRankBilinear(64, 64, rank=128, out=16, bias=bias)
    a = torch.full((1, 64, 2, 2), value, requires_grad=True)
    with torch.autocast("cpu", precision):
        x = block(a, a)
    x.sum().backward()
    assert torch.isfinite(x).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in (a, *block.parameters()))
