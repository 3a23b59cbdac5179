"""How a method is scored: one set of metrics for all of them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassConfusionMatrix

from fgzoo.data.dataset import IGNORED
from fgzoo.nn.output import MethodOutput


class Evaluation(nn.Module):
    """What a round of validation or testing counts, over all processes.

    Args:
        num_classes: K.

    Attributes:
        metrics: The protocol's: `top1`, `top5` (the best of min(5, K)), `macro` (mean accuracy over classes), `nll` (nats) and
            `ece` (expected calibration error, 15 bins), all but `nll` as fractions of one.
        confusion: Counts (K, K), true classes in rows.
        heads: The accuracy of each head by name, where there are several.
        tail: Classes whose mean accuracy is the value `tail`, see [tail_classes][]; without any there is none.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        counted: dict[str, Any] = {"num_classes": num_classes, "ignore_index": IGNORED, "validate_args": False}
        self.metrics = MetricCollection(
            {
                "top1": MulticlassAccuracy(**counted, average="micro"),
                "top5": MulticlassAccuracy(**counted, average="micro", top_k=min(5, num_classes)),
                "macro": MulticlassAccuracy(**counted, average="macro"),
                "nll": NegativeLogLikelihood(),
                "ece": MulticlassCalibrationError(**counted, n_bins=15, norm="l1"),
            },
            compute_groups=False,
        )
        self.confusion = MulticlassConfusionMatrix(**counted)
        self.heads: dict[str, MeanMetric] = {}
        self.tail: list[int] = []

    def update(self, output: MethodOutput, targets: Tensor) -> None:
        """Count a batch.

        Args:
            output: What the network returned, in evaluation mode.
            targets: (B,) classes; those that are [IGNORED][] do not count.
        """
        logits = output.logits.float()
        self.metrics.update(logits, targets)
        self.confusion.update(logits, targets)
        if len(output.heads) > 1:
            for name, head in output.heads.items():
                if name not in self.heads:
                    self.heads[name] = MeanMetric().to(logits.device)
                self.heads[name].update((head.argmax(dim=1) == targets).float(), weight=(targets != IGNORED).float())

    def compute(self) -> dict[str, Tensor]:
        """The round's values by name: the metrics, `top1_{head}` for each of several heads, and `tail` where there is one."""
        values = self.metrics.compute() | {f"top1_{name}": hits.compute() for name, hits in self.heads.items()}
        if self.tail:
            counts = self.confusion.compute()[self.tail]
            hits, images = counts.gather(1, torch.tensor(self.tail, device=counts.device)[:, None])[:, 0], counts.sum(dim=1)
            # A class without an image in this round has no accuracy; not a number where that is all of them.
            values["tail"] = (hits / images)[images > 0].mean()
        return values

    def reset(self) -> None:
        """Forget what was counted."""
        self.metrics.reset()
        self.confusion.reset()
        self.heads.clear()


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


class NegativeLogLikelihood(MeanMetric):
    """Mean negative log-likelihood of the true class, in nats."""

    def update(self, preds: Tensor, target: Tensor) -> None:  # type: ignore[override]
        """Add a batch: logits (B, K) and classes (B,)."""
        nll = F.cross_entropy(preds, target, reduction="none", ignore_index=IGNORED)
        super().update(nll, weight=(target != IGNORED).to(nll.dtype))
