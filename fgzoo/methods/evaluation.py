"""How a method is scored: one set of metrics for all of them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassCalibrationError
from torchmetrics.utilities.data import dim_zero_cat

from fgzoo.data.dataset import IGNORED
from fgzoo.nn.output import MethodOutput


class Evaluation(nn.Module):
    """What a round of validation or testing counts, over all processes.

    Args:
        num_classes: K. What is kept grows with it, and with the number of images, but not with its square.

    Attributes:
        counts: See [ClassCounts][].
        others: `nll` (nats) and `ece` (expected calibration error, 15 bins, a fraction of one), of the logits as they are.
        calibrated: `nll_calibrated` and `ece_calibrated`, the same of logits / temperature.
        temperature: That one; `None` where the model has none, and nothing is counted.
        answers: The true and the predicted class of every image.
        heads: The accuracy of each head by name, where there are several.
        tail: Classes whose mean accuracy is the value `tail`, see [tail_classes][]; without any there is none.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.counts = ClassCounts(num_classes)
        self.others = _of_probabilities(num_classes)
        self.calibrated = _of_probabilities(num_classes, "_calibrated")
        self.temperature: float | None = None
        self.answers = Answers()
        self.heads: dict[str, MeanMetric] = {}
        self.tail: list[int] = []

    def update(self, output: MethodOutput, targets: Tensor) -> None:
        """Count a batch.

        Args:
            output: What the network returned, in evaluation mode.
            targets: (B,) classes; those that are [IGNORED][] do not count.
        """
        logits = output.logits.float()
        self.counts.update(logits, targets)
        self.others.update(logits, targets)
        if self.temperature is not None:
            self.calibrated.update(logits / self.temperature, targets)
        self.answers.update(logits, targets)
        if len(output.heads) > 1:
            for name, head in output.heads.items():
                if name not in self.heads:
                    self.heads[name] = MeanMetric().to(logits.device)
                self.heads[name].update((head.argmax(dim=1) == targets).float(), weight=(targets != IGNORED).float())

    def compute(self) -> dict[str, Tensor]:
        """The round's values by name: the metrics, `top1_{head}` for each of several heads, and `tail` where there is one."""
        counted = self.counts.compute()
        images, hits = (counted.pop(name)[self.tail] for name in ("images", "hits"))
        values = counted | self.others.compute() | {f"top1_{name}": right.compute() for name, right in self.heads.items()}
        if self.temperature is not None:
            values |= self.calibrated.compute()
        if self.tail:
            # A class without an image in this round has no accuracy; not a number where that is all of them.
            values["tail"] = (hits / images)[images > 0].mean()
        return values

    def reset(self) -> None:
        """Forget what was counted."""
        for metric in (self.counts, self.others, self.calibrated, self.answers):
            metric.reset()
        self.heads.clear()


def _of_probabilities(num_classes: int, postfix: str | None = None) -> MetricCollection:
    calibration = CalibrationError(num_classes, n_bins=15, norm="l1", ignore_index=IGNORED, validate_args=False)
    both: dict[str, Metric | MetricCollection] = {"nll": NegativeLogLikelihood(), "ece": calibration}
    return MetricCollection(both, compute_groups=False, postfix=postfix)


class ClassCounts(Metric):
    """`top1`, `top5` (the best of min(5, K)) and `macro` (mean accuracy over classes), by counts of every class.

    The macro accuracy leaves out classes that this round showed no image of, which have none (as scikit-learn's
    `balanced_accuracy_score`; torchmetrics' counts such a class as 0 where something was taken for it).

    Args:
        num_classes: K.
    """

    images: Tensor
    hits: Tensor
    near: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.most = min(5, num_classes)
        for name in ("images", "hits"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.long), "sum")
        self.add_state("near", torch.zeros((), dtype=torch.long), "sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count a batch: logits (B, K) and classes (B,); an answer that is no number is wrong."""
        counts = (targets != IGNORED).long()
        targets, found = targets.clamp(min=0), logits.argmax(dim=1)
        self.images.scatter_add_(0, targets, counts)
        answered = counts * ~logits.isnan().any(dim=1)
        self.hits.scatter_add_(0, targets, answered * (found == targets))
        best = logits.topk(self.most, dim=1).indices
        self.near += ((best == targets[:, None]).any(dim=1) * answered).sum()

    def compute(self) -> dict[str, Tensor]:
        """The values by name, and `images` and `hits`, (K,)."""
        total = self.images.sum().clamp(min=1)
        accuracy = self.hits / self.images.clamp(min=1)
        return {
            "top1": self.hits.sum() / total,
            "top5": self.near / total,
            "macro": accuracy.sum() / (self.images > 0).sum().clamp(min=1),
            "images": self.images,
            "hits": self.hits,
        }


class Answers(Metric):
    """The true and the predicted class of every image of a round."""

    pairs: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("pairs", [], "cat")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Note a batch: logits (B, K) and classes (B,)."""
        self.pairs.append(torch.stack([targets, logits.argmax(dim=1)], dim=1))

    def compute(self) -> Tensor:
        """(N, 2), without what does not count."""
        pairs = dim_zero_cat(self.pairs) if len(self.pairs) else torch.empty(0, 2, dtype=torch.long)
        return pairs[pairs[:, 0] != IGNORED]


def tail_classes(counts: Sequence[int] | None) -> list[int]:
    """The tail: the rarest third of the classes by training images.

    Of equally rare classes all belong to it or none, so that it is at most a third (rounded up), but for the rarest ones, which
    always do. There is none where the largest class has less than twice the images of the smallest, as in CUB-200-2011 and
    FGVC-Aircraft.

    Source: our decision.

    Args:
        counts: Training images by class, K; `None` where they are not known.

    Returns:
        Class indices.
    """
    if not counts or max(counts) < 2 * max(1, min(counts)):
        return []
    ordered = sorted(counts)
    most = max((count for count in counts if bisect_right(ordered, count) <= math.ceil(len(counts) / 3)), default=ordered[0])
    return [target for target, count in enumerate(counts) if count <= most]


class CalibrationError(MulticlassCalibrationError):
    """The expected calibration error of logits, which the metric would take for probabilities where a batch's lie in [0, 1].

    Confidences that are rounded to 1 are of the last bin, and not of one beyond it.
    """

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch: logits (B, K) and classes (B,)."""
        super().update(preds.softmax(dim=1).clamp(max=1 - 2**-24), target)


class NegativeLogLikelihood(MeanMetric):
    """Mean negative log-likelihood of the true class, in nats; no number where one image's is none."""

    def __init__(self) -> None:
        super().__init__(nan_strategy="disable")

    def update(self, preds: Tensor, target: Tensor) -> None:  # type: ignore[override]
        """Add a batch: logits (B, K) and classes (B,)."""
        counts = target != IGNORED
        # Not by weights, which torchmetrics drops together with its check for what is no number.
        super().update(F.cross_entropy(preds[counts], target[counts], reduction="none"))
