"""Coarse2Fine: a two-stage training method for attention networks; its parent is WS-DAN.

Eshratifar, Eigen, Gormish, Pedram. Machine Vision and Applications 2021, arXiv 1909.02680. No code published.

From the abstract: a differentiable path between the input space and the attended feature maps; an *inverse mapping*, learned from
the attended maps to the informative regions of the raw image, guides the attention maps; orthogonal initialisation of the
attention weights; two stages of training. Why: WS-DAN thresholds its crops and drops outside the graph, so that its second pass
sends no gradient to the attention weights.

WS-DAN (Hu, Qi, Huang, Lu, "See Better Before Looking Closer", arXiv 1901.09891), from its paper and published code: Inception-v3
to Mixed_6e; M = 32 attention maps; bilinear attention pooling; features times 100 into a linear classifier without bias; a pull
towards the class centres; training averages the cross-entropies of the image, of a crop round one of the maps and of the image
without the region of another; testing averages the predictions on the image and on a crop round the mean map. SGD 1e-3, times 0.9
every second epoch, 80 epochs (160 in the code), weight decay 1e-5, batch 12, images of 448x448.

This project's decisions, each an argument: that WS-DAN is the parent and stage 1; the form of the inverse mapping, that it reads
the mean attended map, mean_k A_k F, and that stage 1 teaches it the box round the mean attention map, so that stage 2 begins with
a region and not with the whole image; what the fine pass sees (the image times the mask, or a crop by the mask's moments), with
the same backbone, attention and classifier; the loss of stage 2, the mean of the passes' cross-entropies and the mask's mean,
since otherwise a mask of ones would be optimal; whether stage 2 keeps the parent's crop and drop beside the fine pass; its share
of the run and its rates; the rates of attention and classifier under AdamW. And, without an argument: testing averages
probabilities, where WS-DAN's code averages logits; a map of zeros erases nothing, where there it erases the whole image (a crop
round one is the whole image in both).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgzoo.errors import UsageError
from fgzoo.methods.arguments import require_within
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.methods.training_stages import TrainingStage
from fgzoo.nn.attention_pooling import (
    AttentionInit,
    AttentionMaps,
    ClassCenters,
    bilinear_attention_pooling,
    draw_map,
    map_similarity,
)
from fgzoo.nn.backbone import Backbone
from fgzoo.nn.crops import attention_boxes, attention_drop, crop_boxes
from fgzoo.nn.inverse_mapping import InverseMapping, box_region, soft_boxes, soft_crop
from fgzoo.nn.maps import grid_of, normalize_map
from fgzoo.nn.output import MethodOutput
from fgzoo.nn.randomness import draw_uniform

Fine = Literal["mask", "crop", "none"]

#: Where WS-DAN's published code reads features and attention: Inception-v3's Mixed_6e.
PAPER_STRIDE = {"inception_v3": 16}
#: In the fine stage the maps and the mask come at one grid of this stride.
ATTENTION_STRIDE = 4


class Pass(NamedTuple):
    """What one pass through backbone, attention and classifier gives.

    Shape:
        - features: F, (B, C, h, w)
        - maps: A, (B, M, h, w), non-negative
        - pooled: f, (B, M * C), of length one
        - logits: z, (B, K)
    """

    features: Tensor
    maps: Tensor
    pooled: Tensor
    logits: Tensor


class Coarse2FineNetwork(nn.Module):
    """WS-DAN in stage 0, the coarse and the fine pass in stage 1.

    Arguments are those of [Coarse2Fine][]; `region_theta` is `None` where the decoder does not run before stage 1. The backbone's
    last level carries features and attention.

    Attributes:
        stage: 0: WS-DAN, beside which the decoder learns a box; 1: coarse and fine.

    Shape:
        - images: (B, 3, H, W); targets: (B,), needed in training by the centres where there are crop and drop; keys: (B, 3)
        - stage 0: heads `raw`, `crop` and, in training, `drop`; attention: (B, M + 1, h, w), the maps, then their mean
        - stage 1: heads `coarse` and `fine`, with `keep_views` also `crop` and `drop` as in stage 0; attention: (B, M + 1,
          ceil(H / 4), ceil(W / 4)), the maps, then the mask
        - logits: (B, K), in evaluation the log of the heads' mean probability, in training those of the first head
        - extra, in training: the scalars `log_map_similarity`; `center`, where there are crop and drop; `region` in stage 0,
          unless the decoder does not run; `mask` in stage 1
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        num_maps: int,
        init: AttentionInit,
        fine: Fine,
        detach_attention: bool,
        region_theta: float | None,
        keep_views: bool,
        feature_scale: float,
        center_rate: float,
        crop_theta: tuple[float, float],
        drop_theta: tuple[float, float],
        crop_padding: float,
        test_theta: float,
        test_padding: float,
        decoder_widths: Sequence[int],
        mask_bias: float,
    ) -> None:
        super().__init__()
        channels = backbone.levels[-1].channels
        self.backbone = backbone
        self.attention = AttentionMaps(channels, num_maps, init)
        self.classifier = nn.Linear(num_maps * channels, num_classes, bias=False)
        self.centers = ClassCenters(num_classes, num_maps * channels, center_rate)
        self.decoder = None if fine == "none" else InverseMapping(channels, decoder_widths, mask_bias)
        self.stage = 0 if fine == "none" else 1
        self.fine = fine
        self.detach_attention = detach_attention
        self.region_theta = region_theta
        self.keep_views = keep_views
        self.feature_scale = feature_scale
        self.crop_theta = crop_theta
        self.drop_theta = drop_theta
        self.crop_padding = crop_padding
        self.test_theta = test_theta
        self.test_padding = test_padding

    def forward(self, images: Tensor, targets: Tensor | None = None, keys: Tensor | None = None) -> MethodOutput:
        """Classify as the stage and the mode ask for; no map depends on a class."""
        raw = self.classify(images)
        finer = self.stage == 1 and self.decoder is not None
        heads = {"coarse" if finer else "raw": raw.logits}
        extra = {"log_map_similarity": map_similarity(raw.maps)}
        maps = raw.maps.detach()
        attention = normalize_map(torch.cat([maps, maps.mean(dim=1, keepdim=True)], dim=1))
        if not finer or self.keep_views:
            views, of_views = self._crop_drop(images, raw, targets, keys) if self.training else self._crop(images, raw)
            heads, extra = heads | views, extra | of_views
        if finer:
            heads["fine"], extra["mask"], attention = self._fine(images, raw)
        elif self.decoder is not None and self.region_theta is not None and self.training:
            extra["region"] = self._region_loss(images, raw, self.region_theta)
        if self.training:
            return MethodOutput(raw.logits, heads, attention, extra)
        return MethodOutput(log_mean_probability(heads), heads, attention)

    def classify(self, images: Tensor) -> Pass:
        """Backbone, attention maps, bilinear attention pooling, classifier."""
        features = self.backbone(images)[-1]
        maps = self.attention(features)
        pooled = bilinear_attention_pooling(features, maps)
        return Pass(features, maps, pooled, self.classifier(pooled * self.feature_scale))

    # ------------------------------------------------------------------ the parent: WS-DAN

    def _crop_drop(
        self, images: Tensor, raw: Pass, targets: Tensor | None, keys: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Training: a crop round one drawn map, the image without the region of another, and the distance to the centres."""
        if targets is None:
            raise UsageError("targets: training pulls features towards their class's centre; give the images' classes")
        crop_draw, drop_draw, crop_theta, drop_theta = draw_uniform(images, keys, 4, salt=20).unbind(dim=1)
        boxes = attention_boxes(draw_map(raw.maps, crop_draw), _between(self.crop_theta, crop_theta), self.crop_padding)
        erased = attention_drop(images, draw_map(raw.maps, drop_draw), _between(self.drop_theta, drop_theta))
        # Passes of their own, as in the published code: batch-norm sees images, crops and erased images separately.
        crop = self.classify(crop_boxes(images, boxes))
        drop = self.classify(erased)
        return {"crop": crop.logits, "drop": drop.logits}, {"center": self.centers(raw.pooled, targets)}

    def _crop(self, images: Tensor, raw: Pass) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Evaluation: a crop round the mean map."""
        return {"crop": self.classify(crop_boxes(images, self._boxes(raw.maps, self.test_theta))).logits}, {}

    def _boxes(self, maps: Tensor, theta: float) -> Tensor:
        """The padded box round the mean map, (B, 1, 4), relative."""
        thetas = torch.full((maps.shape[0],), theta, device=maps.device)
        return attention_boxes(maps.mean(dim=1), thetas, self.test_padding)

    # ------------------------------------------------------------------ from coarse to fine

    def _mask(self, images: Tensor, raw: Pass, detach: bool) -> Tensor:
        """The inverse mapping of the mean attended map: (B, 1, H, W)."""
        assert self.decoder is not None
        attended = raw.features * raw.maps.mean(dim=1, keepdim=True)
        return self.decoder(attended.detach() if detach else attended, (images.shape[-2], images.shape[-1]))

    def _region_loss(self, images: Tensor, raw: Pass, theta: float) -> Tensor:
        """Stage 0: how far the mask is from the box round the mean map; the gradient stops at the decoder."""
        mask = self._mask(images, raw, detach=True)
        region = box_region(self._boxes(raw.maps, theta)[:, 0], (images.shape[-2], images.shape[-1]))
        with torch.autocast(mask.device.type, enabled=False):
            return F.binary_cross_entropy(mask, region.to(mask.dtype))

    def _fine(self, images: Tensor, raw: Pass) -> tuple[Tensor, Tensor, Tensor]:
        """Stage 1: the fine pass sees what the mask leaves; its gradient reaches the first pass's maps through the mask.

        Returns:
            The logits, (B, K); how much the mask leaves, a scalar; maps and mask, (B, M + 1, ceil(H / 4), ceil(W / 4)).
        """
        mask = self._mask(images, raw, self.detach_attention)
        if self.fine == "mask":
            seen, kept = images * mask, mask.mean()
        else:
            boxes = soft_boxes(mask)
            # The crop does not change with the mask's scale: what shall be small is the box, in shares of the image.
            seen, kept = soft_crop(images, boxes), (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).mean()
        grid = grid_of(images, ATTENTION_STRIDE)
        resized = [F.interpolate(x.detach().float(), grid, mode="bilinear", align_corners=False) for x in (raw.maps, mask)]
        return self.classify(seen).logits, kept, normalize_map(torch.cat(resized, dim=1))


def log_mean_probability(heads: dict[str, Tensor]) -> Tensor:
    """The logarithm of the mean of the heads' probabilities, (B, K), single precision."""
    logs = torch.stack([logits.float().log_softmax(dim=1) for logits in heads.values()])
    return logs.logsumexp(dim=0) - math.log(len(heads))


def _between(bounds: tuple[float, float], uniform: Tensor) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * uniform


class Coarse2Fine(FineGrainedClassifier):
    """Coarse2Fine: stage 1 trains WS-DAN, stage 2 trains a coarse and a fine pass that a mask connects differentiably.

    The parent, WS-DAN, is `fine="none", init="default"`; the control without the gradient is `detach_attention=True`.

    Args:
        num_classes: Number of classes K; the command line takes it from the data.
        backbone: Name of a timm network. The parent's is Inception-v3.
        pretrained: Start from timm's pretrained weights.
        backbone_weights: A local `.safetensors` or `.pth` file with the backbone's weights, used instead of timm's.
        num_maps: M, the number of attention maps (32 in WS-DAN's code).
        init: Of the attention layer: `orthogonal` rows, which is Coarse2Fine's, or torch's `default`.
        attention_stride: Attention and features come from the backbone's deepest level of at most this stride. `None`: 16 for
            `inception_v3`, which is WS-DAN's Mixed_6e; of any other backbone the last level.
        fine: What the fine pass sees: a `crop` by the mask's moments, or the image times the `mask`. `none`: there is no fine
            pass and no second stage.
        detach_attention: Cut the gradient from the mask to the coarse pass.
        region_weight: Weight, in stage 1, of the mask's binary cross-entropy with the box round the mean attention map; no
            gradient of it reaches the attention. 0: the inverse mapping stands still until stage 2. Our decision.
        region_theta: The share of the mean map's maximum that bounds that box; its padding is `test_padding`. Our decision.
        keep_views: Stage 2 adds the fine pass to the parent's passes, crop and drop in training and crop in testing, where
            otherwise it replaces them. Our decision: without them the second stage overfits (`benchmarks/plans/remedies.yaml`).
        feature_scale: Factor of the unit-length features before the classifier (100 in WS-DAN's code).
        center_weight: Weight of the distance to the class centres.
        center_rate: beta, the rate at which the centres move (0.05 in WS-DAN's code).
        crop_theta: Range in (0, 1) from which training draws the share of a map's maximum that bounds the crop.
        drop_theta: Range in (0, 1) from which training draws the share of a map's maximum above which it erases.
        crop_padding: Padding of the training crop, relative to the image's side.
        test_theta: The share of the mean map's maximum that bounds the test crop.
        test_padding: Padding of the test crop, relative to the image's side.
        decoder_widths: Channels of the inverse mapping after every doubling of its grid. Our decision.
        mask_bias: The inverse mapping's bias at the start; 2 begins with a mask near 0.88. Our decision.
        mask_weight: eta, the weight of the mask's mean; with `fine="crop"` of its box's area. Our decision.
        fine_share: Share of the run that is stage 2. Our decision.
        fine_backbone_rate: The backbone's learning rate in stage 2 relative to that in stage 1. Our decision.
        fine_head_rate: The same for attention layer and classifier. Our decision.
        decoder_lr_factor: The inverse mapping's learning rate relative to `lr`. Our decision.
        attention_lr_factor: The attention layer's; `None`: 1 with `sgd`, 0.5 with `adamw`.
        classifier_lr_factor: The classifier's; `None`: 1 with `sgd`, 0.05 with `adamw`, whose steps do not shrink as inputs
            multiply: at the full rate, M * C inputs times 100 diverge. Our decision.
        **training: Optimiser, schedule and so on, see [FineGrainedClassifier][].

    Raises:
        UsageError: An argument is out of its range.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "inception_v3",
        pretrained: bool = True,
        backbone_weights: str | Path | None = None,
        *,
        num_maps: int = 32,
        init: AttentionInit = "orthogonal",
        attention_stride: int | None = None,
        fine: Fine = "crop",
        detach_attention: bool = False,
        region_weight: float = 1.0,
        region_theta: float = 0.5,
        keep_views: bool = True,
        feature_scale: float = 100.0,
        center_weight: float = 1.0,
        center_rate: float = 0.05,
        crop_theta: tuple[float, float] = (0.4, 0.6),
        drop_theta: tuple[float, float] = (0.2, 0.5),
        crop_padding: float = 0.1,
        test_theta: float = 0.1,
        test_padding: float = 0.05,
        decoder_widths: Sequence[int] = (64, 32, 16, 8),
        mask_bias: float = 2.0,
        mask_weight: float = 0.1,
        fine_share: float = 1 / 3,
        fine_backbone_rate: float = 0.1,
        fine_head_rate: float = 1.0,
        decoder_lr_factor: float = 1.0,
        attention_lr_factor: float | None = None,
        classifier_lr_factor: float | None = None,
        **training: Any,
    ) -> None:
        super().__init__(num_classes, backbone, pretrained, backbone_weights, **training)
        if num_maps < 1:
            raise UsageError(f"model.num_maps: {num_maps}; pooling needs at least 1 attention map")
        for name, bounds in (
            ("crop_theta", crop_theta),
            ("drop_theta", drop_theta),
            ("test_theta", (test_theta,) * 2),
            ("region_theta", (region_theta,) * 2),
        ):
            if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] < 1:
                raise UsageError(f"model.{name}: {list(bounds)}; shares of a maximum lie in (0, 1), the lower one first")
        if not 0 < fine_share < 1:
            raise UsageError(f"model.fine_share: {fine_share} is not in (0, 1); for a run without stage 2 take fine: none")
        require_within("(0, 1]", center_rate=center_rate)
        require_within("[0, inf)", region_weight=region_weight, center_weight=center_weight, mask_weight=mask_weight)
        require_within("[0, inf)", fine_backbone_rate=fine_backbone_rate, fine_head_rate=fine_head_rate)
        require_within("[0, inf)", decoder_lr_factor=decoder_lr_factor, attention_lr_factor=attention_lr_factor)
        require_within("[0, inf)", classifier_lr_factor=classifier_lr_factor, crop_padding=crop_padding)
        require_within("[0, inf)", test_padding=test_padding)
        if not decoder_widths or min(decoder_widths) < 1:
            raise UsageError(f"model.decoder_widths: {list(decoder_widths)}; give at least one positive width")

    def build_network(self) -> nn.Module:
        """Backbone, attention layer, classifier, centres, and the inverse mapping where there is a fine pass."""
        given = self.arguments
        # A name may carry the tag of its weights, inception_v3.tv_in1k.
        stride = PAPER_STRIDE.get(self.backbone.partition(".")[0]) if given.attention_stride is None else given.attention_stride
        return self.build(
            Coarse2FineNetwork,
            backbone=self.make_backbone(max_stride=stride),
            region_theta=given.region_theta if given.region_weight > 0 else None,
        )

    def loss(self, output: MethodOutput, targets: Tensor) -> dict[str, Tensor]:
        """The mean of the heads' cross-entropies, and the weighted terms of the stage: centres, region, mean of the mask."""
        terms = {name: self.cross_entropy(logits, targets) / len(output.heads) for name, logits in output.heads.items()}
        given = self.arguments
        weights = {"center": given.center_weight, "region": given.region_weight, "mask": given.mask_weight}
        return terms | {name: weight * output.extra[name] for name, weight in weights.items() if name in output.extra}

    def learning_rates(self) -> dict[str, float]:
        """Attention layer, classifier and inverse mapping have rates of their own."""
        given = self.arguments
        attention, classifier = (0.5, 0.05) if given.optimizer == "adamw" else (1.0, 1.0)
        rates = super().learning_rates() | {
            "attention": attention if given.attention_lr_factor is None else given.attention_lr_factor,
            "classifier": classifier if given.classifier_lr_factor is None else given.classifier_lr_factor,
        }
        return rates if given.fine == "none" else rates | {"decoder": given.decoder_lr_factor}

    def stages(self) -> tuple[TrainingStage, ...]:
        """WS-DAN, beside which the inverse mapping learns; then coarse and fine."""
        given = self.arguments
        if given.fine == "none":
            return super().stages()
        rates = {"backbone": given.fine_backbone_rate, "attention": given.fine_head_rate, "classifier": given.fine_head_rate}
        parent = {} if given.region_weight > 0 else {"decoder": 0.0}
        return TrainingStage("parent", 1 - given.fine_share, parent), TrainingStage("fine", given.fine_share, rates)

    def map_names(self, count: int) -> list[str]:
        """The attention maps, then the mask, or their mean where there is no fine pass (yet)."""
        network = self.network
        assert isinstance(network, Coarse2FineNetwork)
        return [*super().map_names(count - 1), "mask" if network.stage == 1 else "mean map"]

    def map_shares(self, images: Tensor, targets: Tensor) -> Tensor:
        r"""What each attention map gives to the first pass's logit of a class, beyond what it gives to the mean class.

        The classifier has no bias and reads what each map k pooled, $f_k$, with weights $w_{yk}$ of its own, so the logit is a
        sum over maps, and with $c_k = (w_{yk} - \operatorname{mean}_j w_{jk}) \cdot f_k$ the shares are

        $$s_k = \max(0, c_k) / \sum_m \max(0, c_m)$$

        Adding the same to all logits changes no probability, and no share. The last map, which is all of them, has none.
        """
        network = self.network
        assert isinstance(network, Coarse2FineNetwork)
        with self.evaluating(), torch.no_grad():
            pooled, weight = network.classify(images).pooled, network.classifier.weight.float()
            given = (weight[targets] - weight.mean(dim=0)) * pooled
        return F.normalize(given.unflatten(1, (self.arguments.num_maps, -1)).sum(dim=2).clamp_min(0), p=1, dim=1)
