"""Plain fine-tuning: the row that every table starts with.

Backbone, global average pooling, dropout, linear classifier. Nothing here is a paper's; a weak baseline would make every method
look good, so it shares the recipes' augmentation and schedule.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fgzoo.methods.arguments import require_within
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.nn.backbone import Backbone
from fgzoo.nn.maps import class_activation_map
from fgzoo.nn.output import MethodOutput


class BaselineNetwork(nn.Module):
    """Backbone -> global average pooling -> dropout -> linear; the arguments are those of [Baseline][].

    Shape:
        - images: (B, 3, H, W)
        - logits: (B, K); heads: `global`; attention: (B, 1, h, w), the class activation map of the predicted class (of the
          target, where targets are given in evaluation)
    """

    def __init__(self, backbone: Backbone, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(backbone.levels[-1].channels, num_classes)

    def forward(self, images: Tensor, targets: Tensor | None = None, keys: Tensor | None = None) -> MethodOutput:
        """Classify; `keys` is not used."""
        features = self.backbone(images)[-1]
        logits = self.classifier(self.dropout(features.mean(dim=(2, 3))))
        explained = logits.argmax(dim=1) if targets is None or self.training else targets
        attention = class_activation_map(features, self.classifier.weight, explained)
        return MethodOutput(logits, {"global": logits}, attention[:, None])


class Baseline(FineGrainedClassifier):
    """Plain fine-tuning of a backbone.

    Args:
        num_classes: Number of classes K; the command line takes it from the data.
        backbone: Name of a timm network.
        pretrained: Start from timm's pretrained weights.
        backbone_weights: A local `.safetensors` or `.pth` file with the backbone's weights, used instead of timm's.
        dropout: Probability of dropping a pooled feature before the classifier.
        **training: Optimiser, schedule and so on, see [FineGrainedClassifier][].
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        pretrained: bool = True,
        backbone_weights: str | Path | None = None,
        *,
        dropout: float = 0.0,
        **training: Any,
    ) -> None:
        super().__init__(num_classes, backbone, pretrained, backbone_weights, **training)
        require_within("[0, 1)", dropout=dropout)

    def build_network(self) -> nn.Module:
        """Backbone, pooling, dropout, classifier."""
        return self.build(BaselineNetwork, backbone=self.make_backbone())
