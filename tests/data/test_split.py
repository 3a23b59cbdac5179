from __future__ import annotations

from collections import Counter

import pytest

from fgzoo.data.records import Record
from fgzoo.data.split import k_folds, long_tail, stratified_holdout
from fgzoo.errors import UsageError


def records(*sizes: int) -> list[Record]:
    return [Record(f"{target}/{index}.jpg", target) for target, size in enumerate(sizes) for index in range(size)]


def per_class(some: tuple[Record, ...]) -> dict[int, int]:
    return dict(Counter(record.target for record in some))


def test_holdout_takes_the_fraction_of_every_class() -> None:
    train, held_out = stratified_holdout(records(30, 20, 10), 0.2, seed=0)
    assert per_class(held_out) == {0: 6, 1: 4, 2: 2}
    assert per_class(train) == {0: 24, 1: 16, 2: 8}


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.99])
def test_every_class_keeps_one_and_gives_one_where_it_can(fraction: float) -> None:
    train, held_out = stratified_holdout(records(1, 2, 3), fraction, seed=0)
    assert set(per_class(train)) == {0, 1, 2}
    assert set(per_class(held_out)) == {1, 2}


def test_holdout_keeps_the_order_given() -> None:
    everything = records(9, 9)
    for part in stratified_holdout(everything, 0.4, seed=3):
        assert list(part) == [record for record in everything if record in part]


def test_holdout_does_not_depend_on_the_order_given() -> None:
    everything = records(9, 9)
    assert set(stratified_holdout(everything[::-1], 0.4, 3)[1]) == set(stratified_holdout(everything, 0.4, 3)[1])


def test_holdout_depends_on_the_seed() -> None:
    assert stratified_holdout(records(20), 0.5, 0) != stratified_holdout(records(20), 0.5, 1)


def test_holdout_is_the_same_on_every_machine() -> None:
    held_out = stratified_holdout(records(6), 0.5, seed=0)[1]
    assert [record.name for record in held_out] == ["0/0.jpg", "0/1.jpg", "0/5.jpg"]


def test_nothing_held_out() -> None:
    assert stratified_holdout(records(3), 0.0, 0) == (tuple(records(3)), ())


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_impossible_fraction(fraction: float) -> None:
    with pytest.raises(UsageError, match="cannot be held out"):
        stratified_holdout(records(3), fraction, 0)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_folds_cover_everything_once(k: int) -> None:
    everything = records(7, 4, 5)
    parts = k_folds(everything, k, seed=0)
    assert len(parts) == k
    assert sorted(record.name for _, val in parts for record in val) == sorted(record.name for record in everything)
    for train, val in parts:
        assert sorted((*train, *val), key=everything.index) == everything


def test_folds_are_stratified_and_of_equal_size() -> None:
    validation = [val for _, val in k_folds(records(7, 4, 5), 3, seed=0)]
    assert sorted(map(len, validation)) == [5, 5, 6]
    for target, size in enumerate((7, 4, 5)):
        counts = [per_class(val).get(target, 0) for val in validation]
        assert max(counts) - min(counts) <= 1
        assert sum(counts) == size


def test_folds_do_not_depend_on_the_order_given() -> None:
    everything = records(7, 4)
    mirrored = k_folds(everything[::-1], 3, 0)
    assert [set(val) for _, val in mirrored] == [set(val) for _, val in k_folds(everything, 3, 0)]


@pytest.mark.parametrize("k", [0, 1, 12])
def test_impossible_number_of_folds(k: int) -> None:
    with pytest.raises(UsageError, match="11 images cannot be cut"):
        k_folds(records(7, 4), k, 0)


def test_class_of_one_image_has_no_folds() -> None:
    with pytest.raises(UsageError, match="Class 1 has a single image"):
        k_folds(records(7, 1), 2, 0)


def test_a_class_whose_images_are_all_like_those_of_another_is_refused() -> None:
    listed = records(6, 2)
    alike = [record.name for record in (*listed[:3], *listed[6:])]
    with pytest.raises(UsageError, match="Class 1 has images that are all alike"):
        k_folds(listed, 2, seed=0, groups=[alike])


# ---------------------------------------------------------------------- long tails


def test_a_long_tail_falls_with_a_power_of_the_rank() -> None:
    thinned = per_class(long_tail(records(*[30] * 8), 1.0, seed=0))
    assert sorted(thinned.values(), reverse=True) == [30, 15, 10, 8, 6, 5, 4, 4]  # round(30 / k): 7.5 is 8, 3.75 is 4


def test_a_long_tail_takes_no_more_than_there_is_and_leaves_one() -> None:
    sizes = (40, 1, 9, 2, 3)
    thinned = per_class(long_tail(records(*sizes), 9.0, seed=0))
    assert sorted(thinned) == [0, 1, 2, 3, 4]
    assert all(1 <= count <= sizes[target] for target, count in thinned.items())


def test_a_long_tail_of_exponent_zero_keeps_everything_in_order() -> None:
    everything = records(5, 9, 2)
    assert list(long_tail(everything, 0.0, seed=0)) == everything


def test_the_seed_decides_which_classes_are_rare_and_the_order_given_does_not() -> None:
    everything = records(*[12] * 6)
    thinned = long_tail(everything, 1.0, seed=0)
    assert set(long_tail(everything[::-1], 1.0, seed=0)) == set(thinned)
    assert list(thinned) == [record for record in everything if record in thinned]
    assert per_class(long_tail(everything, 1.0, seed=1)) != per_class(thinned)
