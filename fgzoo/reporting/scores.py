"""What every held-out image was given, and what that says: accuracy, calibration, coverage, confusion, doubtful labels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from fgzoo.checkpoints.run_folder import PROBABILITIES
from fgzoo.errors import UsageError

HeldOut = Literal["test", "val"]
#: Parts that are held out of training, and what people call them; the one that counts most comes first.
HELD_OUT: dict[HeldOut, str] = {"test": "test", "val": "validation"}
#: What a file of probabilities holds.
STORED = ("names", "targets", "predicted", "probabilities", "steps")
#: Bins of the calibration plot and error, as in [Evaluation][fgzoo.methods.evaluation.Evaluation].
BINS = 15


class Scores:
    """A run's answers on one part.

    Args:
        part: Which part.
        names: N images, as their data set lists them.
        targets: (N,) classes.
        predicted: (N,) classes that were answered.
        probabilities: (N, K).
        temperature: By which they are calibrated here: those of logits / temperature.

    Attributes:
        confidence: (N,) probabilities of the answers.
        uncalibrated: (N,) the same as they were given, before they are calibrated here.
        right: (N,) whether the answers are right.
    """

    def __init__(
        self,
        part: HeldOut,
        names: Sequence[str],
        targets: NDArray[np.integer],
        predicted: NDArray[np.integer],
        probabilities: NDArray[np.floating],
        temperature: float = 1.0,
    ) -> None:
        self.part = part
        self.names = list(names)
        self.targets = targets
        self.predicted = predicted
        everyone = np.arange(len(predicted))
        self.probabilities = np.array(probabilities, np.float32)
        self.uncalibrated = self.probabilities[everyone, predicted] / self.probabilities.sum(axis=1)
        self.probabilities **= np.float32(1 / temperature)
        self.probabilities /= self.probabilities.sum(axis=1, keepdims=True)
        self.confidence = self.probabilities[everyone, predicted]
        self.right = targets == predicted

    @classmethod
    def read(cls, run: Path, num_classes: int, steps: int, temperature: float = 1.0) -> dict[HeldOut, Scores]:
        """Those of a run's folder, by part, as far as weights that were trained for so many steps gave them.

        Another checkpoint's lie there where the run went on after a test, or its best epoch was tested.

        Raises:
            UsageError: A file is not what `fgzoo test` writes, or belongs to other classes.
        """
        found: dict[HeldOut, Scores] = {}
        for part in get_args(HeldOut):
            path = run / PROBABILITIES[part]
            if not path.is_file():
                continue
            try:
                with np.load(path) as file:
                    names, targets, predicted, probabilities, trained = (file[name] for name in STORED)
                scores = cls(part, names, targets, predicted, probabilities, temperature)
            except (ValueError, KeyError, OSError, IndexError) as error:
                raise UsageError(f"report: {path} is not what `fgzoo test` writes ({error}); run it again") from error
            if scores.probabilities.shape != (len(scores.names), num_classes):
                raise UsageError(f"report: {path} is of {scores.probabilities.shape[1]} classes, the checkpoint of {num_classes}")
            if len(scores.names) and trained == steps:
                found[part] = scores
        return found

    def __len__(self) -> int:
        return len(self.names)

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return float(self.right.mean())

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """(K, K) counts; row: true class, column: answer."""
        counts = np.zeros((self.probabilities.shape[1],) * 2, np.int64)
        np.add.at(counts, (self.targets, self.predicted), 1)
        return counts

    @property
    def class_accuracy(self) -> NDArray[np.float64]:
        """(K,) share of right answers by true class; not a number where there is no image."""
        images = self.confusion.sum(axis=1)
        return np.divide(self.confusion.diagonal(), images, out=np.full(len(images), np.nan), where=images > 0)

    def confused(self, most: int) -> list[tuple[int, int, int]]:
        """True class, answer and number of images of the pairs confused most often, the worst first."""
        true, answers = np.nonzero(self.confusion)
        return confused_pairs(true, answers, self.confusion[true, answers], most)

    def worst(self, most: int) -> list[int]:
        """Indices of the wrong answers that were given with most confidence."""
        wrong = np.flatnonzero(~self.right)
        order: list[int] = wrong[np.argsort(-self.confidence[wrong], kind="stable")][:most].tolist()
        return order


def confused_pairs(
    true: NDArray[np.integer], answers: NDArray[np.integer], images: NDArray[np.integer], most: int
) -> list[tuple[int, int, int]]:
    """The pairs of a true class and another one answered that came most often, with their number of images, the worst first.

    Args:
        true: (P,) classes.
        answers: (P,) classes, such that no pair comes twice.
        images: (P,) how often each pair came.
        most: At most so many pairs.
    """
    wrong = true != answers
    pairs = true[wrong], answers[wrong], images[wrong]
    order = np.lexsort((pairs[1], pairs[0], -pairs[2]))[:most]
    return list(zip(*(values[order].tolist() for values in pairs), strict=True))


def interval(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share, Wilson's: so many hits, of at least one."""
    found = binomtest(hits, count).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


class Bin(NamedTuple):
    """Answers whose confidence lies between two values: their number, mean confidence and share of right ones."""

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


def reliability(scores: Scores, bins: int = BINS, calibrated: bool = True) -> list[Bin]:
    """The bins of equal width that hold an answer, from low confidence, calibrated or as it was given, to high.

    What lies between two bins is of the higher one.
    """
    confidence = scores.confidence if calibrated else scores.uncalibrated
    place = np.clip(np.digitize(confidence, np.linspace(0, 1, bins + 1, dtype=np.float32)) - 1, 0, bins - 1)
    found = []
    for index in np.unique(place).tolist():
        inside = place == index
        means = float(confidence[inside].mean()), float(scores.right[inside].mean())
        found.append(Bin(index / bins, (index + 1) / bins, int(inside.sum()), *means))
    return found


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: the mean distance of confidence and accuracy over bins, each weighted by its images."""
    return sum(one.images * abs(one.confidence - one.accuracy) for one in bins) / sum(one.images for one in bins)


class Accepted(NamedTuple):
    """What a threshold of confidence does: the share of images that reach it, and the share of right answers among them."""

    share: float
    threshold: float
    accuracy: float


def coverage(scores: Scores) -> list[Accepted]:
    """Every threshold, from the one that accepts the fewest images to the one that accepts all."""
    order = np.argsort(-scores.confidence, kind="stable")
    confidence, hits = scores.confidence[order], np.cumsum(scores.right[order])
    # Images of equal confidence are accepted together.
    last = np.flatnonzero(np.append(np.diff(confidence) < 0, True))
    return [Accepted((end + 1) / len(order), float(confidence[end]), float(hits[end]) / (end + 1)) for end in last.tolist()]


def at_share(curve: Sequence[Accepted], share: float) -> Accepted:
    """The threshold that accepts at least a share of the images, and as few more as can be."""
    return next(one for one in curve if one.share >= share - 1e-9)


class Doubt(NamedTuple):
    """An image whose label is probably wrong: its place, the class it is taken for, and by how much less likely its own is."""

    place: int
    likely: int
    margin: float


def confident_joint(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """How many images labelled i are estimated to be of class j, (K, K); rows sum to the images with that label.

    An image counts as confidently of class j where its probability of j is at least the mean one of the images labelled j; of
    several such classes the most probable. What these counts are to each other, a row's images are taken to be.

    Source: C. Northcutt, L. Jiang, I. Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 2021,
    arXiv 1911.00068, equations 1 to 3 (times N).

    Args:
        probabilities: (N, K) of images that were not trained on.
        labels: (N,) their classes as labelled.
    """
    everyone, classes = np.arange(len(labels)), probabilities.shape[1]
    images = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, probabilities[everyone, labels], minlength=classes)
    # A class without an image has no threshold, and nothing is confidently of it.
    thresholds = np.divide(sums, images, out=np.full(classes, np.inf), where=images > 0)
    confident = np.where(probabilities >= thresholds, probabilities, -1)
    counted = confident.max(axis=1) >= 0
    joint = np.zeros((classes, classes))
    np.add.at(joint, (labels[counted], confident.argmax(axis=1)[counted]), 1)
    totals = joint.sum(axis=1, keepdims=True)
    return np.divide(joint, totals, out=np.diag(images.astype(float)), where=totals > 0) * np.where(totals, images[:, None], 1)


def label_errors(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> list[Doubt]:
    """Images whose labels are probably wrong: for each pair of classes as many as [confident_joint][] says there are.

    Of the images labelled i, those whose probability of j is larger than that of i by the most; not those that are answered by
    their label. They come in the order of p_label - p_answer.

    Source: as there, section 3.2, "prune by noise rate".

    Args:
        probabilities: (N, K) of images that were not trained on.
        labels: (N,) their classes as labelled.

    Returns:
        The images in doubt, the most doubtful first; each is taken for the class it is answered by.
    """
    joint = np.rint(confident_joint(probabilities, labels)).astype(int)
    np.fill_diagonal(joint, 0)
    doubtful: set[int] = set()
    for label, other in zip(*np.nonzero(joint), strict=True):
        members = np.flatnonzero(labels == label)
        margins = probabilities[members, label] - probabilities[members, other]
        doubtful.update(members[np.argsort(margins, kind="stable")[: joint[label, other]]].tolist())
    answers = probabilities.argmax(axis=1)
    found = [
        Doubt(index, int(answers[index]), float(probabilities[index, labels[index]] - probabilities[index, answers[index]]))
        for index in sorted(doubtful)
        if answers[index] != labels[index]
    ]
    return sorted(found, key=lambda doubt: doubt.margin)
