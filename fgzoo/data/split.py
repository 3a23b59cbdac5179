"""Splits that depend on a seed and on the images' names alone: not on their order, and not on the machine."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from fgzoo.data.records import Record
from fgzoo.errors import UsageError

#: Records to train on and records held out, each in the order given.
Parted = tuple[tuple[Record, ...], tuple[Record, ...]]


def stratified_holdout(records: Sequence[Record], fraction: float, seed: int) -> Parted:
    """Hold out the same fraction of every class.

    A class of n images gives up n x `fraction`, rounded, but at least one and at most n - 1; a class of one keeps it.

    Args:
        records: Records with distinct names.
        fraction: Fraction to hold out, in [0, 1).
        seed: Another seed, another choice.

    Returns:
        Records to train on and records held out, each in the order given.

    Raises:
        UsageError: `fraction` is outside [0, 1).
    """
    if not 0.0 <= fraction < 1.0:
        raise UsageError(f"A fraction of {fraction} cannot be held out; choose one from 0 to below 1.")
    if fraction == 0.0:
        return tuple(records), ()
    held_out: set[str] = set()
    for members in _shuffled_classes(records, seed):
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        held_out.update(record.name for record in members[:count])
    return _parted(records, held_out)


def k_folds(records: Sequence[Record], k: int, seed: int) -> list[Parted]:
    """k-fold cross-validation in which every fold has its share of every class.

    Args:
        records: Records with distinct names.
        k: Number of folds, at least 2.
        seed: Another seed, another partition.

    Returns:
        k pairs of training and validation records, each in the order given. The validation parts are disjoint and cover
        all records; their sizes differ by at most one.

    Raises:
        UsageError: `k` is below 2 or above the number of records, or a class has a single image.
    """
    if not 2 <= k <= len(records):
        raise UsageError(f"{len(records)} images cannot be cut into {k} folds; choose 2 to {len(records)}.")
    names: list[str] = []
    for members in _shuffled_classes(records, seed):
        if len(members) < 2:
            raise UsageError(f"Class {members[0].target} has a single image; cross-validation needs two of every class.")
        names += [record.name for record in members]
    # Dealt out across classes: folds of equal size.
    return [_parted(records, set(names[fold::k])) for fold in range(k)]


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
    largest = max(map(len, classes), default=0)
    kept: set[str] = set()
    order = sorted(classes, key=lambda members: _draw(seed, f"class {members[0].target}"))
    for k, members in enumerate(order, start=1):
        kept.update(record.name for record in members[: max(1, round(largest * k**-exponent))])
    return tuple(record for record in records if record.name in kept)


def _parted(records: Sequence[Record], held_out: set[str]) -> Parted:
    return (
        tuple(record for record in records if record.name not in held_out),
        tuple(record for record in records if record.name in held_out),
    )


def _shuffled_classes(records: Sequence[Record], seed: int) -> list[list[Record]]:
    """The records by class; within a class in an order drawn by hashing seed and name."""
    classes: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        classes[record.target].append(record)

    return [sorted(classes[target], key=lambda record: _draw(seed, record.name)) for target in sorted(classes)]


def _draw(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed} {name}".encode()).digest()
