"""What ranks agree on, seen by one process that answers for another."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn
from torch.optim.swa_utils import AveragedModel

from fgzoo.methods.ranks import Ranks


def network() -> nn.Module:
    return nn.ModuleDict({"network": nn.BatchNorm1d(3)})


def test_the_averaged_network_is_saved_with_statistics_of_all_ranks() -> None:
    model, averaging = network(), WeightAveraging()
    averaging._average_model = AveragedModel(network(), use_buffers=True)
    other = SimpleNamespace(reduce=lambda statistic, reduce_op: (statistic + 5) / 2)
    trainer = SimpleNamespace(world_size=2, strategy=other, callbacks=[averaging, WeightAveraging()])
    Ranks().on_train_epoch_end(trainer, SimpleNamespace(network=model["network"]))  # type: ignore[arg-type,index]
    for norm in (model["network"], averaging._average_model.module["network"]):  # type: ignore[index]
        assert torch.equal(norm.running_mean, torch.full((3,), 2.5))
        assert torch.equal(norm.running_var, torch.full((3,), 3.0))
