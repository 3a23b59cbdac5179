"""Scores, temperature and thresholds against slow, literal oracles."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fgzoo.errors import CheckpointError, UsageError
from fgzoo.prediction.rejection import Calibration, ClassMeans, energy, fit_temperature, maximum_probability

#: Numbers in half precision as checkpoints hold them, for three classes of six features.
ZEROS, INFINITE = (base64.b64encode(np.full(18, value, "<f2").tobytes()).decode() for value in (0, np.inf))


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
    return (total + 2 * math.log(temperature) ** 2) / len(logits)


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


def test_cosine() -> None:
    features, targets = clusters(60, 6)
    means = literal_means(features, targets)
    scores = ClassMeans.fit(features, targets, 3).cosine(drawn(7, 10, 6))
    for row, score in zip(drawn(7, 10, 6).numpy(), scores.tolist(), strict=True):
        expected = max(row @ mean / math.sqrt((row @ row) * (mean @ mean)) for mean in means)
        assert score == pytest.approx(expected, abs=1e-3)  # means are kept in half precision


def test_a_cosine_is_as_exact_in_mixed_precision() -> None:
    features, targets = clusters(60, 6)
    means = ClassMeans.fit(features, targets, 3)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = means.cosine(features)
    assert torch.equal(mixed, means.cosine(features))


def test_a_class_without_an_image_has_no_direction() -> None:
    features, targets = clusters(60, 6)
    found = ClassMeans.fit(features, 2 * targets, 6)
    assert found.directions[1::2].count_nonzero() == 0
    torch.testing.assert_close(found.cosine(features), ClassMeans.fit(features, targets, 3).cosine(features))


# ---------------------------------------------------------------------- thresholds


@pytest.mark.parametrize("score", ["probability", "energy", "cosine"])
@pytest.mark.parametrize("rate", [0.0, 0.05, 0.1, 0.5])
def test_a_threshold_rejects_its_share_of_the_held_out_images(score: Any, rate: float) -> None:
    logits, targets = labelled(images=200)
    known = (drawn(8, 200, 6), ClassMeans.fit(*clusters(60, 6), 3)) if score == "cosine" else ()
    found = Calibration.fit(logits, targets, score, *known)
    rejected = sum(value < found.threshold(rate) for value in found.scores(logits, *known[:1]).tolist())
    assert 200 * rate - 1 <= rejected <= 200 * rate


@pytest.mark.parametrize("score", ["probability", "energy"])
def test_the_held_out_image_of_the_lowest_score_is_known_in_another_batch_too(score: Any) -> None:
    logits, targets = labelled(images=12)
    found = Calibration.fit(logits, targets, score)
    rounded = logits * (1 + 1e-6 * torch.randn_like(logits))
    assert (found.scores(rounded) >= found.threshold(0.0)).all()
    assert found.threshold(0.0) == pytest.approx(float(found.scores(logits).min()), rel=2e-4)


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


def by_cosine() -> Calibration:
    return Calibration.fit(*labelled(), "cosine", drawn(8, 300, 6), ClassMeans.fit(*clusters(60, 6), 3))


def test_class_means_come_back_to_the_bit() -> None:
    found = by_cosine()
    again = Calibration.read(json.loads(json.dumps(found.as_dict())))
    features = drawn(9, 20, 6)
    assert again == found
    assert torch.equal(again.scores(features, features), found.scores(features, features))


@pytest.mark.parametrize(
    "wrong",
    [None, {}, {"shape": [3, 6], "float16": "AAAA"}, {"shape": [3, 6], "float16": "?"}, {"shape": [18], "float16": ZEROS},
     {"shape": 7, "float16": ZEROS}, {"shape": [3, 6], "float16": None}, {"shape": [3, 6], "float16": INFINITE}],
)  # fmt: skip
def test_class_means_that_cannot_be_are_refused(wrong: Any) -> None:
    with pytest.raises(CheckpointError, match="calibration"):
        Calibration.read(by_cosine().as_dict() | {"means": wrong})


def test_class_means_of_other_features_are_refused() -> None:
    with pytest.raises(CheckpointError, match="class means of 6 features, and the network has 7"):
        by_cosine().scores(drawn(1, 2, 3), drawn(1, 2, 7))


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
