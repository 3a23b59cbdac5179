"""Splits that depend on a seed and on the images' names alone: not on their order, and not on the machine."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

from fgzoo.data.records import Record
from fgzoo.errors import UsageError

#: Records to train on and records held out, each in the order given.
Parted = tuple[tuple[Record, ...], tuple[Record, ...]]

#: Names of images that belong together.
Groups = Sequence[Collection[str]]

_Unit = Sequence[Record]


def stratified_holdout(records: Sequence[Record], fraction: float, seed: int, groups: Groups = ()) -> Parted:
    """Hold out the same fraction of every class.

    A class of n images gives up n x `fraction`, rounded, but at least one and at most n - 1; a class of one keeps it. Groups
    that do not fit into that stay; a class of large groups alone gives up its smallest one, unless it is the only one.

    Args:
        records: Records with distinct names.
        fraction: Fraction to hold out, in [0, 1).
        seed: Another seed, another choice.
        groups: Names of images that must not be parted, such as photos of one moment; a name is in one group at most.

    Returns:
        Records to train on and records held out, each in the order given.

    Raises:
        UsageError: `fraction` is outside [0, 1).
    """
    if not 0.0 <= fraction < 1.0:
        raise UsageError(f"A fraction of {fraction} cannot be held out; choose one from 0 to below 1.")
    if fraction == 0.0:
        return tuple(records), ()
    sizes = Counter(record.target for record in records)
    wanted = {target: min(max(round(fraction * size), 1), size - 1) for target, size in sizes.items()}
    taken: Counter[int] = Counter()
    held_out: set[str] = set()

    def fits(unit: _Unit, limits: Mapping[int, int]) -> bool:
        return all(taken[target] + count <= limits[target] for target, count in _targets(unit).items())

    def take(unit: _Unit) -> None:
        taken.update(_targets(unit))
        held_out.update(record.name for record in unit)

    for target, units in _shuffled_classes(records, seed, groups).items():
        for unit in units:
            if fits(unit, wanted):
                take(unit)
        if not taken[target]:
            all_but_one = {other: size - 1 for other, size in sizes.items()}
            small = [unit for unit in sorted(units, key=len) if fits(unit, all_but_one)]
            for unit in small[:1]:
                take(unit)
    return _parted(records, held_out)


def k_folds(records: Sequence[Record], k: int, seed: int, groups: Groups = ()) -> list[Parted]:
    """k-fold cross-validation in which every fold has its share of every class.

    Args:
        records: Records with distinct names.
        k: Number of folds, at least 2.
        seed: Another seed, another partition.
        groups: Names of images that must not be parted; a name is in one group at most.

    Returns:
        k pairs of training and validation records, each in the order given. The validation parts are disjoint and cover
        all records; without groups their sizes differ by at most one.

    Raises:
        UsageError: `k` is below 2 or above the number of records, or a class would have no image to train on.
    """
    if not 2 <= k <= len(records):
        raise UsageError(f"{len(records)} images cannot be cut into {k} folds; choose 2 to {len(records)}.")
    units: list[_Unit] = []
    for members in _shuffled_classes(records, seed, groups).values():
        units += members
    # Dealt out across classes: folds of equal size.
    folds = [_parted(records, {record.name for unit in units[fold::k] for record in unit}) for fold in range(k)]
    sizes = _targets(records)
    for train, _ in folds:
        for target in sorted(sizes.keys() - _targets(train).keys()):
            of = "a single image" if sizes[target] == 1 else "images that are all alike"
            raise UsageError(f"Class {target} has {of}; cross-validation needs two of every class.")
    return folds


def long_tail(records: Sequence[Record], exponent: float, seed: int) -> tuple[Record, ...]:
    """Thin classes out to a long tail: of the k-th class, k = 1, 2 ..., at most n_max k^-exponent records stay, rounded.

    n_max is the size of the largest class, and at least one record of every class stays. Zipf's law has the exponent 1.

    Source: our decision; the order of the classes and what stays of each are drawn by the seed.

    Args:
        records: Records with distinct names.
        exponent: At least 0, by which everything stays.
        seed: Another seed, another order of the classes, another choice.

    Returns:
        The records that stay, in the order given.
    """
    classes = _shuffled_classes(records, seed)
    largest = max(map(len, classes.values()), default=0)
    kept: set[str] = set()
    order = sorted(classes, key=lambda target: _draw(seed, f"class {target}"))
    for k, target in enumerate(order, start=1):
        kept.update(record.name for [record] in classes[target][: max(1, round(largest * k**-exponent))])
    return tuple(record for record in records if record.name in kept)


def _parted(records: Sequence[Record], held_out: set[str]) -> Parted:
    return (
        tuple(record for record in records if record.name not in held_out),
        tuple(record for record in records if record.name in held_out),
    )


def _shuffled_classes(records: Sequence[Record], seed: int, groups: Groups = ()) -> dict[int, list[_Unit]]:
    """Units by class, ascending; within a class in an order drawn by hashing seed and name, of a unit its first name.

    A unit is a group's records, of the class that most of them have, or a single record.
    """
    group_of = {name: index for index, names in enumerate(groups) for name in names}
    units: dict[int | str, list[Record]] = defaultdict(list)
    for record in records:
        units[group_of.get(record.name, record.name)].append(record)
    classes: dict[int, list[_Unit]] = defaultdict(list)
    for unit in units.values():
        counts = _targets(unit)
        classes[min(counts, key=lambda target: (-counts[target], target))].append(unit)

    def drawn(unit: _Unit) -> bytes:
        return _draw(seed, min(record.name for record in unit))

    return {target: sorted(classes[target], key=drawn) for target in sorted(classes)}


def _targets(unit: _Unit) -> Counter[int]:
    return Counter(record.target for record in unit)


def _draw(seed: int, name: str) -> bytes:
    # File names need not be valid UTF-8.
    return hashlib.sha256(f"{seed} {name}".encode(errors="surrogateescape")).digest()
