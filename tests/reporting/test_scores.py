from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from fgzoo.errors import UsageError
from fgzoo.methods.evaluation import CalibrationError
from fgzoo.reporting.scores import (
    BINS,
    Scores,
    at_share,
    calibration_error,
    confident_joint,
    coverage,
    interval,
    label_errors,
    reliability,
)
from fgzoo.training.report import write_probabilities


def scores(probabilities: np.ndarray, targets: list[int] | np.ndarray) -> Scores:
    names = [f"{number}.jpg" for number in range(len(targets))]
    return Scores("test", names, np.asarray(targets), probabilities.argmax(axis=1), probabilities)


def drawn(count: int = 400, classes: int = 5, sharpness: float = 1.0, seed: int = 0) -> Scores:
    """Answers that are as right as they claim to be where the sharpness is 1, and too sure of themselves above it."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, 1.5, (count, classes))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    said = np.exp(sharpness * logits) / np.exp(sharpness * logits).sum(axis=1, keepdims=True)
    return scores(said, np.array([draw.choice(classes, p=row) for row in true]))


def test_interval_is_wilsons() -> None:
    assert interval(7, 10) == pytest.approx((0.39678, 0.89221), abs=1e-5)
    assert interval(10, 10)[1] == pytest.approx(1)


def test_confusion_and_the_accuracy_of_classes() -> None:
    found = scores(np.eye(4)[[0, 1, 1, 2]], [0, 0, 1, 1])
    assert found.confusion.tolist() == [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert found.accuracy == 0.5
    np.testing.assert_array_equal(found.class_accuracy, [0.5, 0.5, np.nan, np.nan])


def test_the_most_confused_pairs_are_the_largest_counts_off_the_diagonal() -> None:
    found = scores(np.eye(3)[[1, 1, 2, 0, 0, 0, 2]], [0, 0, 1, 0, 2, 2, 2])
    assert found.confused(2) == [(0, 1, 2), (2, 0, 2)]
    assert found.confused(9) == [(0, 1, 2), (2, 0, 2), (1, 2, 1)]


def test_the_worst_mistakes_are_the_surest() -> None:
    found = scores(np.array([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.3, 0.7]]), [0, 1, 1, 0])
    assert found.worst(9) == [2, 3, 1]
    assert found.worst(1) == [2]


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_calibration_error_is_torchmetrics(sharpness: float) -> None:
    found = drawn(sharpness=sharpness)
    said, targets = torch.from_numpy(found.probabilities), torch.from_numpy(found.targets)
    wanted = multiclass_calibration_error(said, targets, 5, n_bins=15, norm="l1")
    assert calibration_error(reliability(found)) == pytest.approx(float(wanted), abs=1e-6)


def test_coverage_is_the_accuracy_of_what_reaches_each_threshold() -> None:
    found = drawn()
    curve = coverage(found)
    assert [one.share for one in curve] == sorted(one.share for one in curve)
    assert curve[-1].share == 1
    assert curve[-1].accuracy == pytest.approx(found.accuracy)
    for one in curve:
        reached = found.confidence >= one.threshold
        assert (one.share, one.accuracy) == pytest.approx((reached.mean(), found.right[reached].mean()))


def test_equally_sure_answers_are_accepted_together() -> None:
    curve = coverage(scores(np.array([[0.8, 0.2], [0.8, 0.2], [0.6, 0.4]]), [0, 1, 0]))
    assert [(one.share, one.accuracy) for one in curve] == [(pytest.approx(2 / 3), 0.5), (1.0, pytest.approx(2 / 3))]
    assert at_share(curve, 0.5) == curve[0]
    assert at_share(curve, 1.0) == curve[1]


def joint_oracle(probabilities: np.ndarray, labels: list[int]) -> list[list[float]]:
    """The paper's equations, read aloud."""
    classes = range(probabilities.shape[1])
    threshold = {j: np.mean([p[j] for p, y in zip(probabilities, labels, strict=True) if y == j]) for j in set(labels)}
    counts = [[0] * len(classes) for _ in classes]
    for p, label in zip(probabilities, labels, strict=True):
        passed = [j for j in classes if j in threshold and p[j] >= threshold[j]]
        if passed:
            counts[label][max(passed, key=lambda j: p[j])] += 1
    return [[count / max(sum(row), 1) * labels.count(label) for count in row] for label, row in enumerate(counts)]


def test_the_joint_is_that_of_the_papers_equations() -> None:
    found = drawn(sharpness=2.0)
    labels = np.where(found.targets == 4, 0, found.targets)  # a class without an image
    joint = confident_joint(found.probabilities, labels)
    np.testing.assert_allclose(joint, joint_oracle(found.probabilities, labels.tolist()))
    assert joint[4].sum() == joint[:, 4].sum() == 0


def test_as_many_labels_are_doubted_as_the_joint_says_and_none_that_is_the_answer() -> None:
    found = drawn(sharpness=2.0)
    doubts = label_errors(found.probabilities, found.targets)
    joint = np.rint(confident_joint(found.probabilities, found.targets))
    assert 20 < len(doubts) <= joint.sum() - np.trace(joint)
    assert [one.margin for one in doubts] == sorted(one.margin for one in doubts)
    assert all(one.margin < 0 and one.likely == found.predicted[one.place] != found.targets[one.place] for one in doubts)


def test_most_planted_label_errors_are_found_and_put_right() -> None:
    draw = np.random.default_rng(1)
    true = draw.integers(0, 10, 1000)
    probabilities = draw.dirichlet(np.full(10, 0.2), 1000) * 0.25 + 0.75 * np.eye(10)[true]
    labels, planted = true.copy(), draw.choice(1000, 50, replace=False)
    labels[planted] = (labels[planted] + draw.integers(1, 10, 50)) % 10
    doubts = label_errors(probabilities, labels)
    assert {one.place for one in doubts} <= set(planted.tolist())
    assert len(doubts) >= 40
    assert all(one.likely == true[one.place] for one in doubts)


def test_files_are_read_by_part(tmp_path: Path) -> None:
    assert Scores.read(tmp_path, 2, steps=7) == {}
    said = {"names": ["a", "b"], "targets": [0, 1], "predicted": [1, 1], "probabilities": np.eye(2)[[1, 1]], "steps": 7}
    np.savez(tmp_path / "val_probabilities.npz", **said)
    found = Scores.read(tmp_path, 2, steps=7)
    assert list(found) == ["val"]
    assert found["val"].names == ["a", "b"]
    assert found["val"].accuracy == 0.5
    with pytest.raises(UsageError, match=r"val_probabilities.npz is of 2 classes, the checkpoint of 3"):
        Scores.read(tmp_path, 3, steps=7)


def test_answers_of_other_weights_are_left_out(tmp_path: Path) -> None:
    write_probabilities(tmp_path / "test_probabilities.npz", torch.eye(2), torch.arange(2), ["a", "b"], steps=7)
    assert list(Scores.read(tmp_path, 2, steps=7)) == ["test"]
    assert Scores.read(tmp_path, 2, steps=8) == {}


@pytest.mark.parametrize("temperature", [0.3, 3.0])
def test_what_is_read_is_calibrated_as_logits_are(tmp_path: Path, temperature: float) -> None:
    logits = torch.randn(50, 200) + 25 * torch.nn.functional.one_hot(torch.arange(50), 200)
    write_probabilities(tmp_path / "test_probabilities.npz", logits, torch.arange(50), [*map(str, range(50))], steps=1)
    found = Scores.read(tmp_path, 200, 1, temperature)["test"]
    expected = (logits.double() / temperature).softmax(dim=1)
    assert np.allclose(found.probabilities, expected, rtol=1e-4, atol=1e-9)


def test_the_calibration_error_is_that_of_the_metric() -> None:
    # Many answers are as good as certain, and some lie on a border of two bins.
    confidence = torch.tensor([1.0] * 30 + [0.2] * 5 + [0.4, 0.55, 0.8, 0.97])
    logits = torch.stack([confidence.log(), torch.log1p(-confidence).clamp(min=-200)], dim=1)
    logits = torch.cat([logits, logits.new_full((len(logits), 4), -300)], dim=1)
    targets = torch.arange(len(logits)) % 3 // 2
    metric = CalibrationError(num_classes=6, n_bins=BINS)
    metric.update(logits, targets)
    probabilities = logits.softmax(dim=1).numpy()
    scores = Scores("test", [*map(str, range(len(targets)))], targets.numpy(), probabilities.argmax(axis=1), probabilities)
    assert calibration_error(reliability(scores)) == pytest.approx(float(metric.compute()), abs=1e-6)
    assert max(one.high for one in reliability(scores)) == 1


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "test_probabilities.npz").write_bytes(b"PK")
    with pytest.raises(UsageError, match=r"test_probabilities.npz is not what `fgzoo test` writes"):
        Scores.read(tmp_path, 3, steps=7)
