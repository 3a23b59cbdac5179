"""Differences between two models that were tested on the same images with the same seeds, and how sure they are."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
#: Resamples that are drawn at a time; so many rows of counts are held.
CHUNK = 500

Hits = NDArray[np.bool_]


class Difference(NamedTuple):
    """A difference of accuracies and its 95 % interval, as fractions."""

    mean: float
    low: float
    high: float


def paired_difference(first: Hits, second: Hits, resamples: int = RESAMPLES, seed: int = 0) -> Difference:
    """Accuracy of the first minus that of the second, with its percentile interval by paired bootstrap over images and seeds.

    A resample draws N images and S seeds with replacement, the same ones for both models.

    Args:
        first: (S, N), whether seed s was right on image n.
        second: (S, N), the other model's, of the same seeds and images.
        resamples: How many.
        seed: Of the resamples.

    Returns:
        The difference, from 2.5 % to 97.5 %.

    Raises:
        ValueError: The two are not of the same seeds and images.
    """
    if first.shape != second.shape or first.ndim != 2 or first.size == 0:
        raise ValueError(f"(seeds, images) of both must be equal and not empty: {first.shape} and {second.shape}")
    gained = first.astype(np.float64) - second
    seeds, images = gained.shape
    # A resample's mean is sum_sn u_s v_n gained_sn / (S N), with u and v how often seeds and images were drawn.
    per_seed = np.concatenate([counts @ gained.T for counts in np.array_split(drawn_counts(images, resamples, seed), 20)])
    means = (drawn_counts(seeds, resamples, seed + 1) * per_seed).sum(axis=1) / gained.size
    low, high = np.percentile(means, [2.5, 97.5])
    return Difference(float(gained.mean()), float(low), float(high))


@functools.lru_cache(maxsize=8)
def drawn_counts(things: int, resamples: int, seed: int) -> NDArray[Any]:
    """How often each of some things is drawn, for every resample of as many draws with replacement.

    Args:
        things: How many there are to draw from.
        resamples: How many rows.
        seed: Of the draws.

    Returns:
        (resamples, things) counts.
    """
    generator = np.random.default_rng(seed)
    counts = np.empty((resamples, things), dtype=np.uint16)
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        drawn = generator.integers(0, things, (rows, things)) + things * np.arange(rows)[:, None]
        counts[start : start + rows] = np.bincount(drawn.ravel(), minlength=rows * things).reshape(rows, things)
    return counts


def agreement(first: NDArray[Any], second: NDArray[Any]) -> float:
    """The share of images that two models give the same class, right or wrong, averaged over seeds.

    Args:
        first: (S, N) predicted classes.
        second: (S, N), the other model's.

    Returns:
        A fraction.
    """
    return float((first == second).mean())
