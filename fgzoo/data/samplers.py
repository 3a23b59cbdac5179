"""Which sample comes when: a function of (seed, epoch) alone, on any number of ranks and workers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) pairs, so that a loader's workers know the epoch without being told.

    Args:
        length: Number of samples.
        shuffle: A new order every epoch, else 0, 1, 2 ...
        seed: Seed of the orders.
        rank: This process.
        world_size: Number of processes; they share the samples without overlap. When shuffling, at most `world_size - 1` samples
            of an epoch's end are left out so that all ranks do equally many steps; otherwise every sample comes exactly once.
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
            order = order[: self._even(self.length)]
        else:
            order = list(range(self.length))
        return iter([(self.epoch, index) for index in order[self.rank :: self.world_size]])

    def __len__(self) -> int:
        length = self._even(self.length) if self.shuffle else self.length
        return len(range(self.rank, length, self.world_size))

    def _even(self, length: int) -> int:
        """The largest number that the ranks can share equally; everything where there are fewer samples than ranks."""
        return length - length % self.world_size if length >= self.world_size else length
