"""Scores, temperature and thresholds against slow, literal oracles."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fgzoo.errors import CheckpointError, UsageError
from fgzoo.prediction.rejection import Calibration, ClassMeans, energy, fit_temperature, maximum_probability, shrunk_covariance


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labelled(seed: int = 0, images: int = 300, classes: int = 5, sharpness: float = 1.0) -> tuple[Tensor, Tensor]:
    """Logits, and classes drawn by their softmax: calibrated where the sharpness is 1."""
    logits = 2 * drawn(seed, images, classes)
    targets = torch.multinomial(logits.softmax(dim=1), 1, generator=torch.Generator().manual_seed(seed + 100))[:, 0]
    return sharpness * logits, targets


# ---------------------------------------------------------------------- temperature


def literal_loss(logits: Tensor, targets: Tensor, temperature: float) -> float:
    total = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        total += math.log(sum(math.exp((value - row[target]) / temperature) for value in row))
    return (total + math.log(temperature) ** 2 / 2) / len(logits)


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_no_temperature_of_a_grid_is_more_likely(sharpness: float) -> None:
    logits, targets = labelled(sharpness=sharpness, images=60)
    best = literal_loss(logits, targets, fit_temperature(logits, targets))
    assert all(literal_loss(logits, targets, 1.05**power) >= best - 1e-9 for power in range(-55, 56))


def test_logits_that_are_too_sharp_get_their_factor_as_temperature() -> None:
    logits, targets = labelled(images=4000, sharpness=3.0)
    assert fit_temperature(logits, targets) == pytest.approx(3, rel=0.06)


def test_a_few_images_that_are_all_right_do_not_make_the_network_certain() -> None:
    targets = torch.arange(20) % 4
    logits = 5 * torch.nn.functional.one_hot(targets).double()
    temperature = fit_temperature(logits, targets)
    assert 0.9 < maximum_probability(logits, temperature).mean() < 0.9999


# ---------------------------------------------------------------------- scores


def test_maximum_probability() -> None:
    logits = drawn(0, 20, 4)
    for row, score in zip(logits.tolist(), maximum_probability(logits, 1.7).tolist(), strict=True):
        shares = [math.exp(value / 1.7) for value in row]
        assert score == pytest.approx(max(shares) / sum(shares))


def test_energy() -> None:
    logits = drawn(1, 20, 4)
    for row, score in zip(logits.tolist(), energy(logits).tolist(), strict=True):
        assert score == pytest.approx(math.log(sum(map(math.exp, row))))


def clusters(images: int, size: int) -> tuple[Tensor, Tensor]:
    """Three classes that differ in their mean; the features depend on each other."""
    targets = torch.arange(images) % 3
    mixing = torch.eye(size, dtype=torch.float64) + drawn(5, size, size) / size
    return drawn(4, 3, size)[targets] * 3 + drawn(6, images, size) @ mixing, targets


def literal_means(features: Tensor, targets: Tensor) -> list[np.ndarray]:
    rows = features.numpy()
    return [np.mean([row for row, target in zip(rows, targets, strict=True) if target == k], axis=0) for k in range(3)]


@pytest.mark.parametrize(("images", "size"), [(60, 6), (12, 30)], ids=["many images", "more features than images"])
def test_mahalanobis(images: int, size: int) -> None:
    features, targets = clusters(images, size)
    means = literal_means(features, targets)
    centred = np.array([row - means[k] for row, k in zip(features.numpy(), targets.tolist(), strict=True)])
    precision = np.linalg.inv(literal_shrinkage(centred))
    scores = ClassMeans.fit(features, targets).mahalanobis(drawn(7, 10, size))
    for row, score in zip(drawn(7, 10, size).numpy(), scores.tolist(), strict=True):
        assert score == pytest.approx(-min((row - mean) @ precision @ (row - mean) for mean in means), rel=1e-6)


def test_cosine() -> None:
    features, targets = clusters(60, 6)
    means = literal_means(features, targets)
    scores = ClassMeans.fit(features, targets).cosine(drawn(7, 10, 6))
    for row, score in zip(drawn(7, 10, 6).numpy(), scores.tolist(), strict=True):
        assert score == pytest.approx(max(row @ mean / math.sqrt((row @ row) * (mean @ mean)) for mean in means))


def literal_shrinkage(centred: np.ndarray) -> np.ndarray:
    """As the paper's section 3.3 writes it: d^2, b^2, m from the points one by one."""
    count, size = centred.shape
    covariance = sum(np.outer(point, point) for point in centred) / count

    def norm(matrix: np.ndarray) -> float:
        return float(np.trace(matrix @ matrix.T)) / size

    m = np.trace(covariance) / size
    d = norm(covariance - m * np.eye(size))
    b = min(sum(norm(np.outer(point, point) - covariance) for point in centred) / count**2, d)
    return b / d * m * np.eye(size) + (d - b) / d * covariance


@pytest.mark.parametrize(("images", "size"), [(40, 3), (8, 12)])
def test_the_shrunk_covariance_is_ledoit_and_wolfs(images: int, size: int) -> None:
    points = drawn(2, images, size) * torch.arange(1, size + 1)
    assert shrunk_covariance(points).numpy() == pytest.approx(literal_shrinkage(points.numpy()))


@pytest.mark.parametrize("name", ["mahalanobis", "cosine"])
def test_what_is_far_from_every_class_scores_lower(name: str) -> None:
    features, targets = clusters(90, 8)
    score: Callable[[Tensor], Tensor] = getattr(ClassMeans.fit(features, targets), name)
    assert score(features).min() > score(-30 * features.mean(dim=0, keepdim=True)).max()


# ---------------------------------------------------------------------- thresholds


@pytest.mark.parametrize("score", ["probability", "energy"])
@pytest.mark.parametrize("rate", [0.0, 0.05, 0.1, 0.5])
def test_a_threshold_rejects_its_share_of_the_held_out_images(score: Any, rate: float) -> None:
    logits, targets = labelled(images=200)
    found = Calibration.fit(logits, targets, score)
    rejected = sum(value < found.threshold(rate) for value in found.scores(logits).tolist())
    assert 200 * rate - 1 <= rejected <= 200 * rate


def test_between_stored_rates_thresholds_lie_on_a_line() -> None:
    found = Calibration(1.0, "energy", (0.0, 0.1, 0.3), (2.0, 3.0, 7.0), 50)
    assert [found.threshold(rate) for rate in (0.0, 0.05, 0.1, 0.2, 0.3)] == pytest.approx([2, 2.5, 3, 5, 7])


@pytest.mark.parametrize(
    ("rate", "said"), [(-0.1, "share of known"), (0.95, "to accept 95% of them, give 0.05"), (5.0, "0 to 0.5")]
)
def test_a_rate_without_a_threshold_is_refused(rate: float, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Calibration.fit(*labelled()).threshold(rate)


# ---------------------------------------------------------------------- plain values


def test_plain_values_and_back() -> None:
    found = Calibration.fit(*labelled(), "energy")
    assert Calibration.read(found.as_dict()) == found


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": 0.0}, {"temperature": math.nan}, {"temperature": "hot"}, {"score": "luck"}, {"thresholds": [1.0]},
     {"rates": [], "thresholds": []}, {"rates": None}],
)  # fmt: skip
def test_values_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="calibration"):
        Calibration.read(Calibration.fit(*labelled()).as_dict() | wrong)


def test_scores_follow_the_temperature() -> None:
    logits, targets = labelled()
    found = replace(Calibration.fit(logits, targets, "probability"), temperature=2.0)
    assert torch.equal(found.scores(logits), maximum_probability(logits, 2.0))
