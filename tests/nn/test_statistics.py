"""Batch-norms that hold still."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fgzoo.nn.statistics import still_statistics


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_the_batch_normalises_and_moves_nothing(norm: type[nn.BatchNorm2d]) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), norm(4)).train()
    images = torch.randn(2, 3, 5, 4)
    before, expected = copy.deepcopy(network.state_dict()), copy.deepcopy(network)(images)
    with still_statistics(network):
        assert torch.equal(network(images), expected)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    network(images)
    assert network.state_dict()["1.num_batches_tracked"] == 1
    assert not torch.equal(network.state_dict()["1.running_mean"], before["1.running_mean"])


def test_an_error_lets_them_move_again() -> None:
    norm = nn.BatchNorm1d(2, momentum=0.3)
    with pytest.raises(ValueError, match="stop"), still_statistics(norm):
        raise ValueError("stop")
    assert norm.momentum == 0.3
