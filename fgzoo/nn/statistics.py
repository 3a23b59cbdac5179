"""Batch-norm's running statistics, kept from moving for a while, or taken anew."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """A module's batch-norms, its own and its children's."""
    return [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]


@contextlib.contextmanager
def fresh_statistics(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Batch-norms forget their statistics, and those in training mode take the average of all batches that pass meanwhile."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@contextlib.contextmanager
def still_statistics(module: nn.Module) -> Iterator[None]:
    """In training, batch-norms go on normalising by the batch, but what evaluation reads stays as it is.

    Args:
        module: The module whose batch-norms, its own and its children's, hold still.
    """
    norms = batch_norms(module)
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        # A copy counts on: a synchronised batch-norm insists on counting.
        norm.num_batches_tracked = None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
