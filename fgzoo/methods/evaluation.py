"""How a method is scored: one set of metrics for all of them."""

from __future__ import annotations

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
        metrics: See [evaluation_metrics][].
        confusion: Counts (K, K), true classes in rows.
        heads: The accuracy of each head by name, where there are several.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.metrics = evaluation_metrics(num_classes)
        self.confusion = MulticlassConfusionMatrix(num_classes, ignore_index=IGNORED, validate_args=False)
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


def evaluation_metrics(num_classes: int) -> MetricCollection:
    """The protocol's metrics over logits (N, K) and classes (N,).

    Args:
        num_classes: K.

    Returns:
        `top1`, `top5` (the best of min(5, K)), `macro` (mean accuracy over classes), `nll` (nats) and `ece` (expected
        calibration error, 15 bins), all but `nll` as fractions of one. Samples of the class [IGNORED][] do not count.
    """
    return MetricCollection(
        {
            "top1": MulticlassAccuracy(num_classes, average="micro", ignore_index=IGNORED, validate_args=False),
            "top5": MulticlassAccuracy(
                num_classes, average="micro", top_k=min(5, num_classes), ignore_index=IGNORED, validate_args=False
            ),
            "macro": MulticlassAccuracy(num_classes, average="macro", ignore_index=IGNORED, validate_args=False),
            "nll": NegativeLogLikelihood(),
            "ece": MulticlassCalibrationError(num_classes, n_bins=15, norm="l1", ignore_index=IGNORED, validate_args=False),
        },
        compute_groups=False,
    )


class NegativeLogLikelihood(MeanMetric):
    """Mean negative log-likelihood of the true class, in nats."""

    def update(self, preds: Tensor, target: Tensor) -> None:  # type: ignore[override]
        """Add a batch: logits (B, K) and classes (B,)."""
        nll = F.cross_entropy(preds, target, reduction="none", ignore_index=IGNORED)
        super().update(nll, weight=(target != IGNORED).to(nll.dtype))
