"""Which sample comes when: a function of (seed, epoch) alone, on any number of ranks and workers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

#: The index of a sample that is there only so that a process has one, and counts for nothing.
MASKED = -1


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) pairs, so that a loader's workers know the epoch without being told.

    Args:
        length: Number of samples.
        shuffle: A new order every epoch, else 0, 1, 2 ...
        seed: Seed of the orders.
        rank: This process.
        world_size: Number of processes; they share the samples without overlap. When shuffling, at most `world_size - 1` samples
            of an epoch's end are left out so that all ranks do equally many steps; otherwise every sample comes exactly once.
            With fewer samples than processes, training repeats samples, and a process of evaluation that is left without one
            gets the index [MASKED][]: Lightning refuses empty loaders, and what counts for the metrics must not change.
    """

    def __init__(self, length: int, shuffle: bool, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.length = length
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration has."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.length, generator=generator).tolist()
            order = (order if self._total() <= self.length else order * self.world_size)[: self._total()]
        else:
            order = list(range(self.length)) + [MASKED] * (self._total() - self.length)
        return iter([(self.epoch, index) for index in order[self.rank :: self.world_size]])

    def __len__(self) -> int:
        return len(range(self.rank, self._total(), self.world_size))

    def _total(self) -> int:
        """Samples of all ranks: when shuffling, the most that they can share equally; at least one for each."""
        if self.length == 0:
            return 0
        length = self.length - self.length % self.world_size if self.shuffle else self.length
        return max(length, self.world_size)
