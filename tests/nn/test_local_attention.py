"""Attention over locations beside literal loops, in double precision."""

from __future__ import annotations

import math

import pytest
import torch

from fgzoo.errors import UsageError
from fgzoo.nn.local_attention import LocalAttention, attend, coverage_penalty


@pytest.mark.parametrize("again", [False, True])
def test_attention_follows_the_equations(again: bool) -> None:
    torch.manual_seed(0)
    block = LocalAttention(5, 4, hidden_size=3).double()
    x, hidden = torch.randn(2, 5, 3, 4, dtype=torch.double), torch.randn(2, 3, 3, 4, dtype=torch.double)
    alpha = block(x, hidden if again else None)
    for n in range(2):
        energies = []
        for i in range(3):
            for j in range(4):
                inner = block.input.weight @ x[n, :, i, j]
                if again:
                    inner = inner + block.hidden.weight @ hidden[n, :, i, j]
                energies.append(math.exp(float((block.score.weight[0] @ inner.tanh()).detach())))
        expected = torch.tensor(energies, dtype=torch.double).view(3, 4) / sum(energies)
        torch.testing.assert_close(alpha[n].detach(), expected, rtol=0, atol=1e-12)


def test_softmax_is_in_single_precision_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        alpha = LocalAttention(5, 4)(torch.randn(1, 5, 28, 28))
    assert alpha.dtype == torch.float32
    assert abs(float(alpha.sum().detach()) - 1) < 1e-5


def test_uniform_attention_leaves_the_features_as_they_are() -> None:
    x = torch.randn(2, 3, 2, 4)
    torch.testing.assert_close(attend(x, torch.full((2, 2, 4), 1 / 8)), x)


def test_attended_features_are_weighted_by_the_number_of_locations() -> None:
    x, alpha = torch.randn(2, 3, 2, 4), torch.rand(2, 2, 4)
    attended = attend(x, alpha)
    for i in range(2):
        for j in range(4):
            torch.testing.assert_close(attended[1, :, i, j], 8 * alpha[1, i, j] * x[1, :, i, j])


def test_penalty_is_literal() -> None:
    torch.manual_seed(0)
    alphas = torch.rand(2, 3, 2, 4, dtype=torch.double)
    expected = 0.0
    for n in range(2):
        for i in range(2):
            for j in range(4):
                expected += float((1 - sum(alphas[n, r, i, j] for r in range(3))) ** 2) / 2
    assert float(coverage_penalty(alphas)) == pytest.approx(expected, rel=1e-12)


def test_a_hidden_map_that_nothing_reads_is_refused() -> None:
    with pytest.raises(UsageError, match="built without hidden_size"):
        LocalAttention(5, 4)(torch.randn(1, 5, 2, 2), torch.randn(1, 3, 2, 2))
