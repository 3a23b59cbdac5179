"""Which sample comes when: a function of (seed, epoch) alone, on any number of ranks and workers."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Literal

import numpy as np
import torch
from torch.utils.data import DistributedSampler

#: How often training shows the images of a class: as often as there are, by the square root of that, or every class equally.
Balance = Literal["none", "sqrt", "full"]

#: The index of a sample that is there only so that a process has one, and counts for nothing.
MASKED = -1

#: Multiples of it, modulo one, are spread evenly over [0, 1).
GOLDEN_RATIO = (5**0.5 - 1) / 2


class ClassDecks:
    r"""Which images an epoch shows where classes of unequal size are shown in other proportions than their sizes.

    Of the N images of an epoch, class j with n_j images is shown in proportion to n_j^q: in the mean over epochs exactly

    $$N n_j^q / \sum_i n_i^q$$

    images, and in every epoch that number rounded down or up. The images of a class are a shuffled deck that is dealt on from
    epoch to epoch and shuffled anew when it is through: every image comes once before one comes again, so that rare images are
    repeated, and of a common class every epoch shows the next ones. What ranks and batches leave over at an epoch's end counts as
    shown.

    Source: the proportions, of square-root (q = 1/2) and class-balanced (q = 0) sampling, are those of Kang et al., "Decoupling
    Representation and Classifier for Long-Tailed Recognition", ICLR 2020, arXiv 1910.09217, equation 1, which draws with
    replacement. Decks and exact counts, by systematic sampling with an offset of its own every epoch, are our decision.

    Args:
        targets: Class of every image.
        balance: `sqrt` or `full`.
        seed: Seed of the decks.
    """

    def __init__(self, targets: Sequence[int], balance: Literal["sqrt", "full"], seed: int) -> None:
        self.length = len(targets)
        self.seed = seed
        members: dict[int, list[int]] = defaultdict(list)
        for index, target in enumerate(targets):
            members[target].append(index)
        #: Images of every class that has any, by class.
        self.members = dict(sorted(members.items()))
        power = {"sqrt": 0.5, "full": 0.0}[balance]
        sums = list(accumulate(len(images) ** power for images in self.members.values()))
        #: The classes' intervals on [0, N], each as long as its expected number of images.
        self.edges = np.array([0.0, *(self.length * total / sums[-1] for total in sums[:-1]), self.length])

    def counts(self, epochs: range) -> np.ndarray:
        """How many images of every class each of some epochs shows, (epochs, classes); a row's sum is N."""
        # Rounded, so that the sum with the largest edge, too, is below the next whole number.
        offsets = np.round((self.seed + np.array(epochs, dtype=float)) * GOLDEN_RATIO % 1, 6) % 1
        return np.diff(np.floor(self.edges + offsets[:, None]), axis=1).astype(int)

    def deal(self, epoch: int) -> list[int]:
        """The N indices of an epoch, class by class.

        An image's r-th repetition in the epoch has its index plus r N, so that (seed, epoch, index) tells samples apart and each
        is augmented in its own way.
        """
        dealt: list[int] = []
        before, now = self.counts(range(epoch)).sum(axis=0), self.counts(range(epoch, epoch + 1))[0]
        for (target, images), first, count in zip(self.members.items(), before.tolist(), now.tolist(), strict=True):
            turns = range(first // len(images), -(-(first + count) // len(images)))
            cards = [image for turn in turns for image in self._shuffled(target, turn)]
            start = first - turns.start * len(images)
            dealt += cards[start : start + count]
        shown: Counter[int] = Counter()
        for place, image in enumerate(dealt):
            dealt[place] = image + self.length * shown[image]
            shown[image] += 1
        return dealt

    def _shuffled(self, target: int, turn: int) -> list[int]:
        """A class's deck when it is dealt for the `turn`-th time."""
        images = self.members[target]
        return random.Random(f"{self.seed} {target} {turn}").sample(images, len(images))


class EpochSampler(DistributedSampler[tuple[int, int]]):
    """Yields (epoch, index) pairs, so that a loader's workers know the epoch without being told.

    It is torch's `DistributedSampler` in name alone: of any other sampler Lightning divides a process's share once more.

    Args:
        length: Number of samples.
        shuffle: A new order every epoch, else 0, 1, 2 ...
        seed: Seed of the orders.
        rank: This process.
        world_size: Number of processes; they share the samples without overlap. When shuffling, at most `world_size - 1` samples
            of an epoch's end are left out so that all ranks do equally many steps; otherwise every sample comes exactly once.
            With fewer samples than processes, training repeats samples, and a process of evaluation that is left without one
            gets the index [MASKED][]: Lightning refuses empty loaders, and what counts for the metrics must not change.
        decks: Which samples an epoch of training has, as many as there are; by default each once.
    """

    def __init__(
        self, length: int, shuffle: bool, seed: int, rank: int = 0, world_size: int = 1, decks: ClassDecks | None = None
    ) -> None:
        self.length = length
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.decks = decks
        self.epoch = 0
        #: Samples of this process that the next iteration, and it alone, leaves out: those that came before an interruption.
        self.done = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration has."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.length, generator=generator).tolist()
            if self.decks is not None:
                dealt = self.decks.deal(self.epoch)
                order = [dealt[place] for place in order]
            order = (order if self._total() <= self.length else order * self.world_size)[: self._total()]
        else:
            order = list(range(self.length)) + [MASKED] * (self._total() - self.length)
        done, self.done = self.done, 0
        return iter([(self.epoch, index) for index in order[self.rank :: self.world_size]][done:])

    def __len__(self) -> int:
        return len(range(self.rank, self._total(), self.world_size))

    def _total(self) -> int:
        """Samples of all ranks: when shuffling, the most that they can share equally; at least one for each."""
        if self.length == 0:
            return 0
        length = self.length - self.length % self.world_size if self.shuffle else self.length
        return max(length, self.world_size)
