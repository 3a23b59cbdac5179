"""SRBN, "Where to Focus": deep attention-based spatially recurrent bilinear networks.

Wu, Wang. arXiv 1709.05769; IEEE Transactions on Cybernetics 49(5), 2019.

From the paper, whose equations and figures are reproduced in a survey's slides (no usable code is published): two different
networks see the image; their maps meet in bilinear features at every location, without the sum; what a cell reads is the expected
feature of all that was seen before it, under an attention that is causal and depends on the hidden state
([CausalAttention][fgzoo.nn.spatial_lstm.CausalAttention]); two layers of spatial LSTM (Theis and Bethge, arXiv 1506.03478) run
over the map; the states of the second, summed over the map, are classified; a penalty keeps attention from one cell. Without
attention and recurrence it is the parent, B-CNN (Lin et al., ICCV 2015): the bilinear vector summed over locations, signed square
root, Euclidean length one, linear classifier; trained in two steps, the new layers first. `pyramid` adds the vectors of a spatial
pyramid: the paper's B-CNN + SPP.

This project's decisions, each an argument: the networks (the paper's are VGG-M and VGG-16; VGG-M is in no maintained library, so
ResNet-34 stands beside VGG-16); a low-rank form of the local bilinear features, since the outer product would have 131,072 or
more entries at every location (see [LowRankBilinear][fgzoo.nn.bilinear.LowRankBilinear]); the parent's readout beside the states'
(`bilinear_head`, `hidden_weight`), which the attention of the last cell weighs, since that is the expected outer product of the
whole map; what stands beside the states (`residual`); attention that also depends on what is at a location (`content`); attention
that sees the whole map, static or in glimpses that read the scan before, as this method had before its equations could be read;
the weight of the penalty; the scale of the normalised vectors; the length and learning rate of the first training step.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgzoo.errors import UsageError
from fgzoo.methods.arguments import require_within
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.methods.training_stages import TrainingStage
from fgzoo.nn.backbone import Backbone
from fgzoo.nn.bilinear import LowRankBilinear, bilinear_evidence, bilinear_pool, power_normalize
from fgzoo.nn.initialization import LayerInit, orthogonal_layers
from fgzoo.nn.local_attention import LocalAttention, attend, coverage_penalty
from fgzoo.nn.maps import class_activation_map, normalize_map
from fgzoo.nn.output import MethodOutput
from fgzoo.nn.randomness import keyed_uniform
from fgzoo.nn.spatial_lstm import CausalAttention, Neighbourhood, SpatialLSTM

Attention = Literal["none", "causal", "static", "recurrent"]
Combine = Literal["bilinear", "concat"]


class BilinearReadout(nn.Module):
    """B-CNN's head: the (attended) mean of bilinear vectors -> signed square root -> length one -> linear.

    With a `pyramid` every cell of each of its grids has a vector of its own, of length one; what is classified is all of them.

    Arguments are those of [SRBN][], beside the channels C and D of the streams. Where C D is more than `bilinear_size`, a 1x1
    convolution first narrows the wider stream, so that a vector has at most this length, or the narrower stream's.

    Shape:
        - a: (B, C, h, w); b: (B, D, h, w); alpha: (B, h, w) or `None`; explained: (B,) or `None`
        - beside: (B, K) or `None`, scores of another head, which are added before a class is predicted
        - returns: logits (B, K), and the evidence for the explained (by default the predicted) class at each location (B, h, w)
    """

    def __init__(
        self,
        channels: int,
        second_channels: int,
        num_classes: int,
        bilinear_size: int,
        pyramid: Sequence[int],
        scale: float,
        root_eps: float,
        init: LayerInit,
    ) -> None:
        super().__init__()
        narrowed = max(1, bilinear_size // min(channels, second_channels))
        self.narrow_first: nn.Module = nn.Identity()
        self.narrow_second: nn.Module = nn.Identity()
        if channels >= second_channels and channels > narrowed:
            self.narrow_first = nn.Conv2d(channels, narrowed, 1, bias=False)
            channels = narrowed
        elif second_channels > narrowed:
            self.narrow_second = nn.Conv2d(second_channels, narrowed, 1, bias=False)
            second_channels = narrowed
        if init == "orthogonal":
            orthogonal_layers(self)
        self.pyramid = tuple(pyramid)
        vectors = sum(side**2 for side in pyramid)
        self.scale = scale / vectors**0.5
        self.root_eps = root_eps
        self.classifier = nn.Linear(vectors * channels * second_channels, num_classes)

    def forward(
        self, a: Tensor, b: Tensor, alpha: Tensor | None, explained: Tensor | None, beside: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Classify, and say where the evidence lies."""
        a, b = self.narrow_first(a), self.narrow_second(b)
        height, width = a.shape[2:]
        if alpha is None:
            alpha = a.new_full((a.shape[0], height, width), 1 / (height * width))
        cells = [(*cell, alpha[:, cell[0], cell[1]]) for cell in pyramid_cells(height, width, self.pyramid)]
        if len(cells) > 1:
            cells = [(i, j, inside / inside.sum(dim=(1, 2), keepdim=True).clamp_min(1e-6)) for i, j, inside in cells]
        pooled = [bilinear_pool(a[..., i, j], b[..., i, j], inside) for i, j, inside in cells]
        vectors = [power_normalize(vector, root_eps=self.root_eps) for vector in pooled]
        logits = self.classifier(self.scale * torch.cat(vectors, dim=1))
        if explained is None:
            explained = (logits if beside is None else logits + beside).argmax(dim=1)
        weights = self.scale * self.classifier.weight[explained]
        evidence = torch.zeros_like(alpha, dtype=torch.promote_types(alpha.dtype, torch.float32))
        for (i, j, inside), vector, weight in zip(cells, pooled, weights.chunk(len(cells), dim=1), strict=True):
            told = bilinear_evidence(a[..., i, j], b[..., i, j], vector, weight, inside, self.root_eps)
            evidence = evidence + F.pad(told, (j.start, width - j.stop, i.start, height - i.stop))
        return logits, evidence


def pyramid_cells(height: int, width: int, sides: Sequence[int]) -> list[tuple[slice, slice]]:
    """Rows and columns of each cell of grids of n x n cells, which overlap where n does not divide a side (adaptive pooling)."""

    def bounds(length: int, n: int) -> list[slice]:
        return [slice(k * length // n, -(-(k + 1) * length // n)) for k in range(n)]

    return [(rows, columns) for n in sides for rows in bounds(height, n) for columns in bounds(width, n)]


class HiddenReadout(nn.Module):
    """The spatial LSTM's head: hidden states averaged over the map -> dropout -> linear.

    With `residual` the streams stand beside the states, summed by attention (without it: averaged). An attention that saw the
    whole map before the scan also sums the states.

    Arguments are those of [SRBN][], beside the channels of what is read beside the states: C + D with `residual`, else 0.

    Shape:
        - hidden: (B, hidden_size, h, w); a: (B, C, h, w); b: (B, D, h, w); alpha: (B, h, w) or `None`; explained: (B,)
        - returns: logits (B, K)
    """

    def __init__(
        self, hidden_size: int, beside: int, num_classes: int, dropout: float, batch_norm: bool, attention: Attention
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(hidden_size) if batch_norm else None
        self.attends_states = attention in ("static", "recurrent")
        self.residual = beside > 0
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden_size + beside, num_classes)

    def forward(self, hidden: Tensor, a: Tensor, b: Tensor, alpha: Tensor | None) -> Tensor:
        """Classify."""
        if isinstance(self.norm, nn.BatchNorm2d):
            hidden = self.norm(hidden.to(self.norm.weight.dtype))
        pooled = averaged(hidden, alpha if self.attends_states else None)
        if self.residual:
            pooled = torch.cat([pooled, averaged(a, alpha), averaged(b, alpha)], dim=1)
        logits: Tensor = self.classifier(self.dropout(pooled))
        return logits

    @torch.no_grad()
    def evidence(self, a: Tensor, b: Tensor, alpha: Tensor | None, explained: Tensor) -> Tensor:
        """What each location of the streams adds to a class's logit, (B, h, w); a state tells of other locations, too."""
        streams = torch.cat([a, b], dim=1).float()
        weight = self.classifier.weight[explained, -streams.shape[1] :].float()
        evidence = torch.einsum("bc,bchw->bhw", weight, streams)
        return evidence / evidence[0].numel() if alpha is None else evidence * alpha


def averaged(maps: Tensor, alpha: Tensor | None) -> Tensor:
    """Maps (B, C, h, w) summed over locations by weights (B, h, w), without them averaged, (B, C)."""
    return maps.mean(dim=(2, 3)) if alpha is None else (alpha[:, None] * maps).sum(dim=(2, 3))


class ConcatReadout(nn.Module):
    """The control's head: both streams averaged and concatenated -> dropout -> linear.

    Arguments are those of [SRBN][], beside the channels C + D of both streams.

    Shape:
        - a: (B, C, h, w); b: (B, D, h, w); explained: (B,) or `None`
        - returns: logits (B, K), and the class activation map of the explained (by default the predicted) class (B, h, w)
    """

    def __init__(self, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, a: Tensor, b: Tensor, explained: Tensor | None) -> tuple[Tensor, Tensor]:
        """Classify."""
        maps = torch.cat([a, b], dim=1).float()
        logits = self.classifier(self.dropout(maps.mean(dim=(2, 3))))
        chosen = logits.argmax(dim=1) if explained is None else explained
        return logits, class_activation_map(maps, self.classifier.weight, chosen)


class Focus(NamedTuple):
    """What attention and scan give.

    Attributes:
        alpha: (B, h, w), the attention with which the streams are read; `None` without one.
        hidden: (B, hidden_size, h, w), the states of the last layer; `None` without the LSTM.
        penalty: A scalar, what the attention is to avoid; `None` where it has nothing to avoid.
    """

    alpha: Tensor | None = None
    hidden: Tensor | None = None
    penalty: Tensor | None = None


class SRBNNetwork(nn.Module):
    r"""Two streams -> local bilinear features -> attention -> spatial LSTM -> readout, each of the last three optional.

    With `bilinear_head` the scores are $z = z_b + \lambda z_h$: the parent's readout of the attended bilinear vector, and the
    LSTM's.

    Arguments are those of [SRBN][], beside the backbones of the streams: a is the first one's last level, b the second one's, or,
    with `average_levels`, the mean of the second one's levels, which are then alike (a vision transformer's).

    Shape:
        - images: (B, 3, H, W)
        - logits: (B, K); heads: `global`, or `hidden` and `bilinear`
        - attention: (B, S, h, w) on the finer stream's grid: where the last cell (of whole-map attention the last glimpse) looks,
          where there is attention; then the length of the hidden states, with the LSTM; then the bilinear readout's evidence for
          the predicted class (for the target, where targets are given in evaluation), where there is one, with `residual` that of
          the streams in the LSTM's head, too. Only the evidence depends on the class.
        - extra, in training with causal or recurrent attention: `penalty`, a scalar
    """

    def __init__(
        self,
        backbone: Backbone,
        second_backbone: Backbone,
        num_classes: int,
        average_levels: bool,
        combine: Combine,
        attention: Attention,
        content: bool,
        spatial_lstm: bool,
        layers: int,
        neighbourhood: Neighbourhood,
        shuffle: bool,
        bilinear_head: bool,
        hidden_weight: float,
        directions: Literal[1, 4],
        hidden_size: int,
        rank: int,
        projection: int,
        attention_size: int,
        glimpses: int,
        dropout: float,
        bilinear_size: int,
        pyramid: Sequence[int],
        scale: float,
        root_eps: float,
        batch_norm: bool,
        init: LayerInit,
        residual: bool,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.second_backbone = second_backbone
        self.average_levels = average_levels
        self.glimpses = glimpses if attention == "recurrent" else 1
        self.scale = scale
        self.shuffle = shuffle
        self.batch_norm: nn.BatchNorm2d | None = None
        self.hidden_weight = hidden_weight
        self.second_ratio: Tensor
        self.second_shift: Tensor
        # From the first backbone's normalisation of images to the second one's.
        ratio = torch.tensor(backbone.std) / torch.tensor(second_backbone.std)
        shift = (torch.tensor(backbone.mean) - torch.tensor(second_backbone.mean)) / torch.tensor(second_backbone.std)
        self.register_buffer("second_ratio", ratio.view(-1, 1, 1), persistent=False)
        self.register_buffer("second_shift", shift.view(-1, 1, 1), persistent=False)

        c, d = backbone.levels[-1].channels, second_backbone.levels[-1].channels
        self.local: LowRankBilinear | None = None
        self.attention: CausalAttention | LocalAttention | None = None
        self.spatial_lstm: SpatialLSTM | None = None
        self.deeper = nn.ModuleList()
        if attention != "none" or spatial_lstm:
            self.local = LowRankBilinear(c, d, rank, projection, bias=batch_norm)
            if init == "orthogonal":
                orthogonal_layers(self.local)
            if batch_norm:
                self.batch_norm = nn.BatchNorm2d(projection)
        if spatial_lstm:
            self.spatial_lstm = SpatialLSTM(projection, hidden_size, directions, neighbourhood, attends=attention == "causal")
            self.deeper.extend(SpatialLSTM(hidden_size, hidden_size, directions) for _ in range(layers - 1))
        if attention == "causal":
            self.attention = CausalAttention(hidden_size, directions, projection if content else None, attention_size)
        elif attention != "none":
            self.attention = LocalAttention(projection, attention_size, hidden_size if attention == "recurrent" else None)
        self.readout: BilinearReadout | HiddenReadout | ConcatReadout
        self.bilinear: BilinearReadout | None = None
        bilinear = partial(BilinearReadout, c, d, num_classes, bilinear_size, pyramid, scale, root_eps, init)
        if combine == "concat":
            self.readout = ConcatReadout(c + d, num_classes, dropout)
        elif spatial_lstm:
            self.readout = HiddenReadout(hidden_size, c + d if residual else 0, num_classes, dropout, batch_norm, attention)
            if bilinear_head:
                self.bilinear = bilinear()
        else:
            self.readout = bilinear()

    def forward(self, images: Tensor, targets: Tensor | None = None, keys: Tensor | None = None) -> MethodOutput:
        """Classify; in evaluation `targets` chooses the class whose evidence is shown. `keys` decide how cells are shuffled."""
        explained = None if self.training else targets
        a, b = self.streams(images)
        alpha, hidden, penalty = self.focus(a, b, keys)
        maps = [] if alpha is None else [alpha.detach()]
        if isinstance(self.readout, ConcatReadout):
            logits, shown = self.readout(a, b, explained)
        elif isinstance(self.readout, BilinearReadout):
            logits, shown = self.readout(a, b, alpha, explained)
        else:
            assert hidden is not None
            logits, shown = self.readout(hidden, a, b, alpha), hidden.detach().norm(dim=1)
        maps.append(shown)
        heads = {"global": logits}
        if self.bilinear is not None:
            bilinear, evidence = self.bilinear(a, b, alpha, explained, beside=self.hidden_weight * logits)
            heads = {"hidden": logits, "bilinear": bilinear}
            logits = bilinear + self.hidden_weight * logits
            if isinstance(self.readout, HiddenReadout) and self.readout.residual:
                chosen = logits.argmax(dim=1) if explained is None else explained
                evidence = evidence + self.hidden_weight * self.readout.evidence(a, b, alpha, chosen)
            maps.append(evidence)
        extra = {} if penalty is None or not self.training else {"penalty": penalty}
        return MethodOutput(logits, heads, normalize_map(torch.stack(maps, dim=1)), extra)

    def streams(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Both streams' maps on the finer one's grid, whose cells count as the same places. Our decision.

        They are not quite where networks pad otherwise: VGG's cells lie half a cell from ResNet's, and those of networks with
        TensorFlow's padding (`tf_...`) a whole one from others'.

        Args:
            images: (B, 3, H, W).

        Returns:
            a (B, C, h, w) and b (B, D, h, w).
        """
        a = self.backbone(images)[-1]
        levels = self.second_backbone(images * self.second_ratio + self.second_shift)
        b = torch.stack(levels).mean(dim=0) if self.average_levels else levels[-1]
        grid = (max(a.shape[2], b.shape[2]), max(a.shape[3], b.shape[3]))
        return _resize(a, grid), _resize(b, grid)

    def local_features(self, a: Tensor, b: Tensor) -> Tensor:
        """What attention and scan read, (B, C, h, w) and (B, D, h, w) -> (B, projection, h, w)."""
        if self.local is None:
            raise UsageError("local_features: this network has neither attention nor spatial LSTM")
        if self.batch_norm is None:
            return self.scale * self.local(a, b)
        normalized: Tensor = self.batch_norm(self.local.features(a, b).to(self.batch_norm.weight.dtype))
        return normalized

    def focus(self, a: Tensor, b: Tensor, keys: Tensor | None = None) -> Focus:
        """Attention and scan.

        Args:
            a: (B, C, h, w).
            b: (B, D, h, w).
            keys: (B, 3), of the samples whose cells are shuffled.

        Returns:
            Attention, states and penalty.
        """
        if self.local is None:
            return Focus()
        x = self.local_features(a, b)
        if not self.shuffle:
            return self._scan(x)
        # In evaluation the same order for every image, so that testing is deterministic.
        drawn = keys if keys is not None and self.training else torch.zeros(x.shape[0], 3, dtype=torch.long, device=x.device)
        order = keyed_uniform(drawn, x[0, 0].numel(), salt=30).argsort(dim=1)
        alpha, hidden, penalty = self._scan(reordered(x, order))
        back = order.argsort(dim=1)
        return Focus(
            None if alpha is None else reordered(alpha[:, None], back)[:, 0],
            None if hidden is None else reordered(hidden, back),
            penalty,
        )

    def _scan(self, x: Tensor) -> Focus:
        alpha = hidden = penalty = None
        if isinstance(self.attention, CausalAttention):
            assert self.spatial_lstm is not None
            hidden, alpha, penalty = self.spatial_lstm.attend(x, self.attention)
            return Focus(alpha, self._deeper(hidden), penalty)
        alphas = []
        for _ in range(self.glimpses):
            attended = x
            if self.attention is not None:
                alpha = self.attention(x, hidden)
                alphas.append(alpha)
                attended = attend(x, alpha)
            if self.spatial_lstm is not None:
                hidden = self._deeper(self.spatial_lstm(attended))
        if len(alphas) > 1:
            penalty = coverage_penalty(torch.stack(alphas, dim=1))
        return Focus(alpha, hidden, penalty)

    def _deeper(self, hidden: Tensor) -> Tensor:
        for layer in self.deeper:
            hidden = layer(hidden)
        return hidden


def reordered(maps: Tensor, order: Tensor) -> Tensor:
    """Maps (B, C, h, w) whose locations are put in another order, (B, h w)."""
    return maps.flatten(2).gather(2, order[:, None].expand(-1, maps.shape[1], -1)).view_as(maps)


class SRBN(FineGrainedClassifier):
    """Deep attention-based spatially recurrent bilinear networks.

    The parent, B-CNN, is `attention="none", spatial_lstm=False`; the rows between are attention alone (`spatial_lstm=False`) and
    the LSTM alone (`attention="none"`). The control with two networks and no mechanism is the parent with `combine="concat"`.

    Args:
        num_classes: Number of classes K; the command line takes it from the data.
        backbone: Name of the first stream's timm network.
        pretrained: Start from timm's pretrained weights.
        backbone_weights: A local `.safetensors` or `.pth` file with the backbone's weights, used instead of timm's. A second copy
            of the same network reads it, too.
        second_backbone: Name of the second stream's timm network. `None`: a second copy of `backbone` with weights of its own,
            tapped at another depth; the streams then differ in depth and weights only. `auto`: `resnet34` beside `vgg16`, else
            `None`.
        second_backbone_weights: A weight file for the second stream.
        stride: Two different networks are both read at their deepest level of at most this stride (else the last). Of two
            copies, the first is read at its last level, the second at its deepest of at most this stride; where all levels share
            one stride (vision transformers), the second stream is their mean.
        combine: `bilinear`, or `concat` for the control.
        attention: `causal`, the paper's: a cell of the scan looks back at what lies above and left of it, see
            [CausalAttention][fgzoo.nn.spatial_lstm.CausalAttention]. Our decision: over the whole map before the scan, `static`,
            or `recurrent` in glimpses that read the scan before. `none`: every cell reads its own location.
        content: What is at a location counts in the causal attention's scores, too. Our decision.
        spatial_lstm: Off: the readout is the (attended) bilinear vector of B-CNN.
        layers: Layers of spatial LSTM, 2 in the paper; causal attention reads the first one's states, recurrent
            attention the last one's. Our decision on that.
        neighbourhood: What a cell of the first layer reads of the local features beside what it attends to: its `own`, or, as in
            the paper, those of its `causal` neighbourhood, too, or `none`. Our decision on the default.
        shuffle: The control: attention and scan meet the locations in an order drawn anew for every training image (in evaluation
            always the same one), so that neighbours on the map are no neighbours in the scan.
        bilinear_head: Beside the LSTM's readout stands B-CNN's on the attended vector; each has its own cross-entropy. Without it
            everything that learns does so through the scan, which takes far more epochs than B-CNN
            (`benchmarks/results/accuracy/remedies.md`).
        hidden_weight: lambda, the share of the LSTM's scores beside B-CNN's, which have weight 1; it changes no gradient but that
            of teachers. The default is good on a fold of the training split of fifty classes of CUB after ten epochs, when the
            scan still knows little (`benchmarks/results/head_weight.md`); after long training 1 may be better.
        directions: Corners that the LSTM scans from: 1, or 4, summed.
        hidden_size: Channels of the LSTM's state.
        rank: Rank of the local bilinear features.
        projection: Channels of the local bilinear features.
        attention_size: Width of the attention's tanh layer.
        glimpses: Scans of the recurrent attention, at least 2.
        penalty_weight: lambda. The paper's penalty, sum_uv (tau - L_uv)^2, is the sum of squares but for a constant, since the
            L_uv sum to one: tau is left away, and cells are averaged. Of recurrent attention it is the weight of
            [coverage_penalty][fgzoo.nn.local_attention.coverage_penalty]. The paper's lambda is not known.
        dropout: Before the classifier that reads hidden states or concatenated features; B-CNN has none.
        bilinear_size: Largest length of the full bilinear vector; for networks with more channels a 1x1 convolution narrows the
            wider stream, to one channel at least. The default is 512 x 512, B-CNN's with two VGG-16.
        pyramid: Cells a side of each grid whose bilinear vectors are classified: [1] is B-CNN, [1, 2] B-CNN + SPP. Our decision:
            the vectors together are as long as one alone.
        scale: Factor of the vectors of length one, the local features and the full bilinear vector. `None`: 10 with `sgd`, where
            B-CNN's classifier at learning rate 0.01 then learns as at rate 1, the order of published B-CNN code; 1 with `adamw`,
            whose steps do not shrink with the features, so that long vectors would overshoot.
        root_eps: Of the root of the mean bilinear vector, published B-CNN code's; see
            [smooth_root][fgzoo.nn.bilinear.smooth_root].
        init: Of the layers between streams and classifiers: torch's `default`, or `orthogonal` rows or columns, so that they
            begin as projections, which keep what the streams tell. Our decision.
        residual: The LSTM's head reads the streams themselves, averaged by the same attention, beside its states. Our decision:
            so it begins with what two networks tell, to which the scan adds.
        batch_norm: Local features are batch-normalised instead of power-normalised, and hold, besides products of the streams'
            features, these themselves (biases of the low-rank form); hidden states are batch-normalised before they are
            classified. Products alone, through random projections, tell classes apart far worse at the start
            (`benchmarks/results/readouts_layers.md`), and what a scan tells is small beside what all its states have in common.
        new_share: Share of the run in which the backbones stand still and only the new layers learn (B-CNN's first step);
            0: everything learns from the start, as it must where backbones are not pretrained.
        new_rate: Factor of the new layers' learning rate in that step.
        joint_rate: Factor of the bilinear classifier's learning rate in the second step. `None`: 0.02 with `sgd`, where published
            B-CNN code lowers the rate from 1 to 0.01 (here `lr` 0.005 times `scale` squared), 1 with `adamw`. Our decision.
        **training: Optimiser, schedule and so on, see [FineGrainedClassifier][].

    Raises:
        UsageError: An argument is out of its range, or two exclude one another.
    """

    implied_arguments: ClassVar[dict[str, Any]] = {"root_eps": 1e-12, "layers": 1}

    def __init__(
        self,
        num_classes: int,
        backbone: str = "vgg16",
        pretrained: bool = True,
        backbone_weights: str | Path | None = None,
        *,
        second_backbone: str | None = "auto",
        second_backbone_weights: str | Path | None = None,
        stride: int = 16,
        combine: Combine = "bilinear",
        attention: Attention = "causal",
        content: bool = False,
        spatial_lstm: bool = True,
        layers: int = 2,
        neighbourhood: Neighbourhood = "own",
        shuffle: bool = False,
        bilinear_head: bool = True,
        hidden_weight: float = 0.3,
        directions: Literal[1, 4] = 1,
        hidden_size: int = 256,
        rank: int = 2048,
        projection: int = 512,
        attention_size: int = 256,
        glimpses: int = 2,
        penalty_weight: float = 0.01,
        dropout: float = 0.5,
        bilinear_size: int = 262_144,
        pyramid: Sequence[int] = (1,),
        scale: float | None = None,
        root_eps: float = 1e-5,
        batch_norm: bool = False,
        init: LayerInit = "default",
        residual: bool = False,
        new_share: float = 1 / 3,
        new_rate: float = 2.0,
        joint_rate: float | None = None,
        **training: Any,
    ) -> None:
        super().__init__(num_classes, backbone, pretrained, backbone_weights, **training)
        sizes = {"stride": stride, "hidden_size": hidden_size, "rank": rank, "projection": projection}
        sizes |= {"attention_size": attention_size, "bilinear_size": bilinear_size, "layers": layers}
        sizes |= {"pyramid": min(pyramid, default=0)}
        for name, value in sizes.items():
            if value < 1:
                raise UsageError(f"model.{name}: {value}; it must be at least 1")
        if combine == "concat" and (attention != "none" or spatial_lstm):
            raise UsageError(
                "model.combine: 'concat' is the control without a mechanism; set --model.attention none and "
                "--model.spatial_lstm false, too"
            )
        if attention in ("causal", "recurrent") and not spatial_lstm:
            raise UsageError(
                f"model.attention: '{attention}' reads the spatial LSTM's states; take 'static', or --model.spatial_lstm true"
            )
        if content and attention != "causal":
            raise UsageError(f"model.content: of causal attention; '{attention}' reads what is at a location in any case")
        if attention == "recurrent" and glimpses < 2:
            raise UsageError(f"model.glimpses: {glimpses}; recurrent attention needs at least 2, one glimpse is 'static'")
        require_within("[0, 1)", dropout=dropout, new_share=new_share)
        require_within("[0, inf)", hidden_weight=hidden_weight, penalty_weight=penalty_weight, new_rate=new_rate)
        require_within("[0, inf)", joint_rate=joint_rate, scale=scale, root_eps=root_eps)

    def build_network(self) -> nn.Module:
        """Two backbones, and what the arguments ask for on top of them."""
        first, second, average_levels = self._streams()
        scale = self.arguments.scale
        if scale is None:
            # Part of what the network computes, so a checkpoint keeps the number itself.
            scale = self.hparams["scale"] = 10.0 if self.arguments.optimizer == "sgd" else 1.0
        return self.build(SRBNNetwork, backbone=first, second_backbone=second, average_levels=average_levels, scale=scale)

    def _streams(self) -> tuple[Backbone, Backbone, bool]:
        """Both backbones, and whether the second stream is the mean of its levels."""
        given = self.arguments
        name = second_network(self.backbone, given.second_backbone)
        second = partial(self.make_backbone, name, weights=given.second_backbone_weights)
        if name is not None:
            other = second(max_stride=given.stride)
            return self.make_backbone(max_stride=given.stride), other, False
        first = self.make_backbone()
        if all(level == first.levels[-1] for level in first.levels):
            return first, second(), True
        finest = min(level.stride for level in first.levels)
        if given.stride < finest:
            raise UsageError(f"model.stride: {given.stride}; the finest level of '{self.backbone}' has stride {finest}")
        return first, second(max_stride=given.stride), False

    def features(self, images: Tensor) -> Tensor:
        """Both streams, averaged over locations; each network sees the images as its own weights were trained."""
        assert isinstance(self.network, SRBNNetwork)
        return torch.cat([stream.float().mean(dim=(2, 3)) for stream in self.network.streams(images)], dim=1)

    def loss(self, output: MethodOutput, targets: Tensor) -> dict[str, Tensor]:
        """The cross-entropy of every head, and lambda times the penalty of recurrent attention."""
        terms = super().loss(output, targets)
        if "penalty" in output.extra:
            terms["penalty"] = self.arguments.penalty_weight * output.extra["penalty"]
        return terms

    def stages(self) -> tuple[TrainingStage, ...]:
        """The new layers alone, then everything, as B-CNN is trained."""
        given = self.arguments
        if given.new_share == 0:
            return (TrainingStage("everything", 1.0),)
        alone = {"backbone": 0.0, "second_backbone": 0.0, "new": given.new_rate}
        together: dict[str, float] = {}
        classifier = self._bilinear_classifier()
        if classifier is not None:
            alone[classifier] = given.new_rate
            usual = 0.02 if given.optimizer == "sgd" else 1.0
            together[classifier] = usual if given.joint_rate is None else given.joint_rate
        return TrainingStage("new layers", given.new_share, alone), TrainingStage("everything", 1 - given.new_share, together)

    def learning_rates(self) -> dict[str, float]:
        """The bilinear classifier has a rate of its own, where there are two steps."""
        classifier = self._bilinear_classifier() if self.arguments.new_share > 0 else None
        return super().learning_rates() | ({} if classifier is None else {classifier: 1.0})

    def _bilinear_classifier(self) -> str | None:
        """The path of the classifier that reads the bilinear vector."""
        paths = (name for name, module in self.network.named_modules() if isinstance(module, BilinearReadout))
        return next((f"{path}.classifier" for path in paths), None)

    def map_names(self, count: int) -> list[str]:
        """The attention, where there is one, and the readouts' maps."""
        given = self.arguments
        names = [] if given.attention == "none" else ["attention"]
        if given.combine == "concat":
            return [*names, "activation"]
        if not given.spatial_lstm:
            return [*names, "evidence"]
        return [*names, "hidden states", "evidence"] if given.bilinear_head else [*names, "hidden states"]


def second_network(backbone: str, said: str | None) -> str | None:
    """The name of the second stream's network, as `second_backbone` has it; `None` where it is the first one's, once more."""
    if said == "auto":
        return "resnet34" if backbone.partition(".")[0] == "vgg16" else None
    return said


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if maps.shape[2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
