from __future__ import annotations

import pytest

from fgzoo.data.samplers import MASKED, EpochSampler


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
