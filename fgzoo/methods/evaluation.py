"""How a method is scored: one set of metrics for all of them."""

from __future__ import annotations

from typing import Any

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
        """The round's values by name: the metrics, and `top1_{head}` for each of several heads."""
        return self.metrics.compute() | {f"top1_{name}": hits.compute() for name, hits in self.heads.items()}

    def reset(self) -> None:
        """Forget what was counted."""
        self.metrics.reset()
        self.confusion.reset()
        self.heads.clear()


class NegativeLogLikelihood(MeanMetric):
    """Mean negative log-likelihood of the true class, in nats."""

    def update(self, preds: Tensor, target: Tensor) -> None:  # type: ignore[override]
        """Add a batch: logits (B, K) and classes (B,)."""
        nll = F.cross_entropy(preds, target, reduction="none", ignore_index=IGNORED)
        super().update(nll, weight=(target != IGNORED).to(nll.dtype))
