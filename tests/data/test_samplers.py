from __future__ import annotations

from collections import Counter
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from lightning.pytorch.trainer.connectors.data_connector import _DataConnector
from torch.utils.data import DataLoader

from fgzoo.data.samplers import MASKED, ClassDecks, EpochSampler

#: Classes of 1, 2, 7, 20 and 3 images; class 3 has none, and the order is mixed.
SIZES = {0: 1, 1: 2, 2: 7, 4: 20, 5: 3}
TARGETS = [target for place in range(20) for target, size in SIZES.items() if place < size]


def indices(sampler: EpochSampler) -> list[int]:
    return [index for _, index in sampler]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [1, 2, 7, 10])
def test_evaluation_gives_every_sample_to_exactly_one_rank(length: int, world_size: int) -> None:
    shares = [indices(EpochSampler(length, False, 0, rank, world_size)) for rank in range(world_size)]
    assert sorted(index for share in shares for index in share if index != MASKED) == list(range(length))
    assert [share for share in shares if MASKED in share] == [[MASKED]] * max(0, world_size - length)


@pytest.mark.parametrize(("length", "world_size"), [(10, 2), (11, 2), (11, 3), (4, 4)])
def test_training_ranks_are_disjoint_and_equally_long(length: int, world_size: int) -> None:
    shares = [indices(EpochSampler(length, True, 0, rank, world_size)) for rank in range(world_size)]
    together = [index for share in shares for index in share]
    assert {len(share) for share in shares} == {length // world_size}
    assert len(set(together)) == len(together)


def test_lightning_divides_no_share_once_more() -> None:
    two = SimpleNamespace(_accelerator_connector=SimpleNamespace(use_distributed_sampler=True, is_distributed=True))
    divides = partial(_DataConnector._requires_distributed_sampler, SimpleNamespace(trainer=two))  # type: ignore[arg-type]
    images: Any = range(8)
    assert divides(DataLoader(images))
    assert not divides(DataLoader(images, sampler=EpochSampler(8, shuffle=True, seed=0, rank=0, world_size=2)))


def test_with_fewer_samples_than_ranks_training_gives_each_rank_one() -> None:
    shares = [indices(EpochSampler(3, True, 0, rank, 5)) for rank in range(5)]
    assert [len(share) for share in shares] == [1] * 5
    assert {index for share in shares for index in share} == {0, 1, 2}


def test_without_samples_there_is_nothing() -> None:
    assert indices(EpochSampler(0, False, 0, 0, 2)) == []


def test_what_one_epoch_leaves_out_another_has() -> None:
    samplers = [EpochSampler(11, True, 0, rank, 3) for rank in range(3)]
    seen: set[int] = set()
    for epoch in range(20):
        for sampler in samplers:
            sampler.set_epoch(epoch)
            seen.update(indices(sampler))
    assert seen == set(range(11))


def test_without_shuffling_the_order_is_the_lists() -> None:
    assert indices(EpochSampler(5, False, 3)) == [0, 1, 2, 3, 4]


def test_seed_and_epoch_decide_the_order() -> None:
    sampler = EpochSampler(50, True, 0)
    first = indices(sampler)
    assert indices(sampler) == first
    assert indices(EpochSampler(50, True, 1)) != first
    sampler.set_epoch(1)
    assert indices(sampler) != first


def test_workers_are_told_the_epoch() -> None:
    sampler = EpochSampler(3, True, 0)
    sampler.set_epoch(4)
    assert [epoch for epoch, _ in sampler] == [4, 4, 4]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_length_is_the_number_of_samples(shuffle: bool, rank: int) -> None:
    sampler = EpochSampler(11, shuffle, 0, rank, 3)
    assert len(sampler) == len(indices(sampler))


def test_without_decks_an_epoch_has_the_order_that_it_always_had() -> None:
    sampler = EpochSampler(11, True, 5)
    sampler.set_epoch(3)
    assert indices(sampler) == torch.randperm(11, generator=torch.Generator().manual_seed(5 * 1_000_003 + 3)).tolist()


# ---------------------------------------------------------------------- classes of unequal size


def epoch_of(decks: ClassDecks, epoch: int, rank: int = 0, world_size: int = 1) -> list[int]:
    sampler = EpochSampler(len(TARGETS), True, 0, rank, world_size, decks)
    sampler.set_epoch(epoch)
    return indices(sampler)


@pytest.mark.parametrize(("balance", "power"), [("full", 0.0), ("sqrt", 0.5)])
def test_every_class_has_its_share_of_an_epoch_to_one_image(balance: Literal["sqrt", "full"], power: float) -> None:
    decks = ClassDecks(TARGETS, balance, seed=0)
    expected = {target: len(TARGETS) * size**power / sum(n**power for n in SIZES.values()) for target, size in SIZES.items()}
    total: Counter[int] = Counter()
    for epoch in range(200):
        shown = Counter(TARGETS[index % len(TARGETS)] for index in epoch_of(decks, epoch))
        assert shown.total() == len(TARGETS)
        assert all(abs(shown[target] - wanted) < 1 for target, wanted in expected.items())
        total += shown
    assert total == pytest.approx({target: 200 * wanted for target, wanted in expected.items()}, abs=3)


def test_equal_classes_are_shown_as_without_balance() -> None:
    decks = ClassDecks([0, 1, 2] * 4, "sqrt", seed=0)
    for epoch in range(5):
        assert sorted(index % 12 for index in decks.deal(epoch)) == list(range(12))


@pytest.mark.parametrize("balance", ["sqrt", "full"])
def test_a_class_shows_all_its_images_before_any_comes_again(balance: Literal["sqrt", "full"]) -> None:
    decks = ClassDecks(TARGETS, balance, seed=0)
    for target, size in SIZES.items():
        images = [index for index, other in enumerate(TARGETS) if other == target]
        dealt = [index % len(TARGETS) for epoch in range(30) for index in decks.deal(epoch)]
        stream = [index for index in dealt if index in images]
        turns = [stream[start : start + size] for start in range(0, len(stream) - size + 1, size)]
        assert all(sorted(turn) == images for turn in turns)
        assert size < 3 or len(set(map(tuple, turns))) > 1  # shuffled anew


def test_a_repetition_in_an_epoch_has_an_index_of_its_own() -> None:
    dealt = ClassDecks(TARGETS, "full", seed=0).deal(2)
    assert len(set(dealt)) == len(dealt)
    only = TARGETS.index(0)
    assert sorted(index for index in dealt if index % len(TARGETS) == only) == [
        only + n * len(TARGETS) for n in range(len(dealt) // 5)
    ]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_what_one_process_shows(world_size: int) -> None:
    decks = ClassDecks(TARGETS, "sqrt", seed=0)
    for epoch in range(3):
        shares = [epoch_of(decks, epoch, rank, world_size) for rank in range(world_size)]
        whole = epoch_of(decks, epoch)
        assert [index for turn in zip(*shares, strict=True) for index in turn] == whole[: len(whole) - len(whole) % world_size]


def test_a_resumed_epoch_deals_on() -> None:
    decks = ClassDecks(TARGETS, "full", seed=3)
    through = [decks.deal(epoch) for epoch in range(6)]
    assert ClassDecks(TARGETS, "full", seed=3).deal(5) == through[5]
    assert ClassDecks(TARGETS, "full", seed=4).deal(5) != through[5]
