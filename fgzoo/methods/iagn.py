"""IAGN, "Interpretable Attention Guided Network for Fine-grained Visual Classification", and its parent PMG.

Huang, Duan, Zhao, Lü, Zhang. ICPR workshops 2020, arXiv 2103.04701. No code was published.

From the abstract: attention guides the network to discriminative regions in an interpretable way; progressive training distils
knowledge stage by stage, so that features of several granularities are fused. How, this project decided; it reads the method as
an extension of PMG, whose vocabulary the abstract shares:

PMG (Du et al., "Fine-Grained Visual Classification via Progressive Multi-Granularity Training of Jigsaw Patches", ECCV 2020,
arXiv 2003.03836), from its published code: ResNet-50 at 448 pixels; its last three stages l, each through Conv1x1 -> 512, BN,
ReLU, Conv3x3 -> 1024, BN, ReLU and a global max pool into a classifier BN, Linear -> 512, BN, ELU, Linear -> K; a fused
classifier on the three concatenated. A batch takes four optimiser steps: stage 1 on a jigsaw of 8x8 patches, stage 2 on 4x4,
stage 3 on 2x2, the fused classifier on the whole image with weight 2. It is scored by the fused classifier, or by all four
("combined"). SGD, momentum 0.9, weight decay 5e-4, learning rate 2e-3 (backbone 2e-4), cosine, 200 epochs, batch 16.

On top, each switched by an argument:

* `head="evidence"`: a stage ends in one evidence map a class, and a logit is the mean of its map plus a bias
  ([EvidenceHead][fgzoo.nn.evidence.EvidenceHead]); so are the fused classifier's. The maps shown, the fused one last, are the
  decision and not an interpretation of it.
* `guidance`: the stages see, shuffled, the region where the fused evidence of the true class reaches a share theta of its
  maximum; the fused classifier sees the whole image.
* `distillation`: a stage also learns from the next deeper classifier's prediction for the same shuffled image.
* `alignment_weight`: a stage's mean activation is drawn to where the next deeper classifier finds its evidence.
* `whole_statistics`: batch-norm's running statistics, which testing reads, are those of whole images alone; the stages' pieces of
  crops are normalised by their own batches. PMG's code, which shuffles but does not crop, lets every input move them.

Also decided here: the blocks' widths follow the backbone's (512 and 1024 are made for ResNet-50), max pools take maps of any
size, batch-norm keeps torch's momentum (PMG: 0.01, slow for short runs), every image has its own jigsaw. Testing scores the fused
classifier and logs "combined" beside it. A step runs the backbone, blocks and classifiers that it needs; PMG's code runs all of
them on each of the four inputs, so that every batch-norm counts all four. Here, in PMG too, a stage's classifier counts its own
jigsaw (unless `whole_statistics`) and the whole image, whose maps the fused step has at hand; running all the rest, for its
statistics alone, would make training with ResNet-50 a fifth dearer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgzoo.errors import UsageError
from fgzoo.methods.arguments import require_within
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.nn.backbone import Backbone, Level
from fgzoo.nn.crops import attention_boxes, crop_boxes
from fgzoo.nn.evidence import EvidenceHead, alignment_loss, distillation_loss
from fgzoo.nn.initialization import LayerInit, orthogonal_layers
from fgzoo.nn.jigsaw import jigsaw, jigsaw_order
from fgzoo.nn.maps import normalize_map
from fgzoo.nn.output import MethodOutput
from fgzoo.nn.randomness import draw_uniform
from fgzoo.nn.statistics import still_statistics

Head = Literal["evidence", "pmg"]
Distillation = Literal["deep_to_shallow", "shallow_to_deep", "none"]
TestHeads = Literal["fused", "combined"]

#: Margin of the second view of a test with `test_crop`: WS-DAN's.
TEST_PADDING = 0.05
#: Salts of the random choices: the guiding threshold, and from SALT_JIGSAW on each stage's jigsaw.
SALT_THETA = 10
SALT_JIGSAW = 11
MAX_STAGES = 8


def stage_taps(levels: Sequence[Level], stages: int) -> list[int]:
    """The backbone levels that the stages read: the last ones of different stride.

    Of several levels with one stride the deepest is taken. Where there are fewer strides than stages (a plain vision transformer
    has a single one), levels spread evenly over the depth are taken instead.

    Args:
        levels: The backbone's levels.
        stages: How many to take.

    Returns:
        Indices of levels, ascending; the last one is always the deepest level.

    Raises:
        UsageError: The backbone has fewer levels than that.
    """
    if stages > len(levels):
        raise UsageError(f"model.stages: {stages} stages need as many levels, but this backbone has {len(levels)}")
    deepest = [i for i, level in enumerate(levels) if i + 1 == len(levels) or levels[i + 1].stride != level.stride]
    if len(deepest) >= stages:
        return deepest[-stages:]
    return [(stage + 1) * len(levels) // stages - 1 for stage in range(stages)]


#: Shift of a batch-norm that begins by letting nearly all of what it normalises pass the ReLU or ELU behind it.
OPEN_SHIFT = 2.0
#: Deviation of the features that a block begins to hand on, of the order of a backbone's averaged ones: so a rate means the same
#: to a classifier behind the block. At 1 it moves an evidence map's logits several times as far.
HANDED_ON = 0.1


def stage_block(channels: int, feature_size: int, init: LayerInit) -> nn.Sequential:
    """Conv1x1, BN, ReLU, Conv3x3, BN, ReLU: (B, channels, h, w) -> (B, 2 * feature_size, h, w).

    With `orthogonal` it begins as a projection to `feature_size` channels, which the second convolution hands on (a Dirac
    kernel) beside as many new ones, and the ReLUs let nearly everything pass.
    """
    block = nn.Sequential(
        nn.Conv2d(channels, feature_size, 1, bias=False),
        nn.BatchNorm2d(feature_size),
        nn.ReLU(inplace=True),
        nn.Conv2d(feature_size, 2 * feature_size, 3, padding=1, bias=False),
        nn.BatchNorm2d(2 * feature_size),
        nn.ReLU(inplace=True),
    )
    if init == "orthogonal":
        orthogonal_layers(block)
        nn.init.dirac_(block[3].weight[:feature_size])  # type: ignore[index]
        nn.init.constant_(block[1].bias, OPEN_SHIFT)  # type: ignore[arg-type]
        nn.init.constant_(block[4].weight, HANDED_ON)  # type: ignore[arg-type]
        nn.init.constant_(block[4].bias, HANDED_ON * OPEN_SHIFT)  # type: ignore[arg-type]
    return block


class VectorNorm(nn.BatchNorm1d):
    """Batch-norm of vectors; a single one, which has no variance, is normalised by the running statistics and moves none.

    So a run of single images is trained by what it is tested by, the statistics of the start: all it learns is scale and shift.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Normalise (B, C)."""
        if self.training and len(input) == 1:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(input)


class PMGHead(nn.Module):
    """PMG's classifier: global max pool of each map, concatenated -> BN, Linear, BN, ELU, Linear.

    Arguments are those of [IAGN][], beside the channels C_i of each map.

    Shape:
        - maps: n tensors (B, C_i, h_i, w_i)
        - returns: logits (B, K)
    """

    def __init__(self, channels: Sequence[int], num_classes: int, feature_size: int, init: LayerInit) -> None:
        super().__init__()
        self.classifier = nn.Sequential(
            VectorNorm(sum(channels)),
            nn.Linear(sum(channels), feature_size),
            VectorNorm(feature_size),
            nn.ELU(inplace=True),
            nn.Linear(feature_size, num_classes),
        )
        if init == "orthogonal":
            nn.init.orthogonal_(self.classifier[1].weight)  # type: ignore[arg-type]
            nn.init.constant_(self.classifier[2].bias, OPEN_SHIFT)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Classify."""
        logits: Tensor = self.classifier(torch.cat([features.amax(dim=(2, 3)) for features in maps], dim=1))
        return logits


class IAGNNetwork(nn.Module):
    """A backbone, a block and a classifier for each of its last stages, and a classifier that fuses them.

    Classifiers are counted from the shallowest: 0 .. S - 1 are the stages', S is the fused one. In training each has a *step*:
    the pass that trains it, on its own input.

    Arguments are those of [IAGN][]; `alignment` says whether there is any.

    Shape:
        - images: (B, 3, H, W); targets: (B,); keys: (B, 3)
        - logits: (B, K); heads: `stage1` .. `stageS`, `fused` and, in evaluation, their mean, `combined`
        - attention: (B, S + 1, h, w) on the first stage's grid, the stages' evidence and then the fused classifier's, for the
          predicted class (of the target, where targets are given in evaluation); with PMG's classifier (B, S, h, w), the mean of
          the blocks' channels
        - extra, in training, with l = 1 .. S + 1 for the student: `teacher{l}` (B, K), `attention{l}` (B, h, w), `evidence{l}`
          (B, h', w')
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        head: Head,
        grids: Sequence[int],
        feature_size: int | None,
        init: LayerInit,
        last_level: bool,
        residual: bool,
        guidance: bool,
        distillation: Distillation,
        alignment: bool,
        guide_theta: tuple[float, float],
        guide_padding: float,
        test_crop: bool,
        test_theta: float,
        test_heads: TestHeads,
        whole_statistics: bool,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.grids = tuple(grids)
        #: S, which is also the fused classifier's number.
        self.fused = len(self.grids)
        self.names = (*(f"stage{number}" for number in range(1, self.fused + 1)), "fused")
        self.taps = [len(backbone.levels) - 1] * self.fused if last_level else stage_taps(backbone.levels, self.fused)
        self.residual = residual
        width = feature_size or max(1, backbone.stage_channels // 4)
        read = [backbone.levels[tap].channels for tap in self.taps]
        self.blocks = nn.ModuleList(stage_block(channels, width, init) for channels in read)
        self.heads = nn.ModuleList()
        for number in range(self.fused + 1):
            channels = [2 * width + (read[stage] if residual else 0) for stage in self.stages_of(number)]
            evident = head == "evidence"
            self.heads.append(EvidenceHead(channels, num_classes) if evident else PMGHead(channels, num_classes, width, init))
        self.guidance = guidance
        self.distillation: Distillation = distillation
        self.alignment = alignment
        self.guide_theta = guide_theta
        self.guide_padding = guide_padding
        self.test_crop = test_crop
        self.test_theta = test_theta
        self.test_heads: TestHeads = test_heads
        self.whole_statistics = whole_statistics

    def forward(
        self,
        images: Tensor,
        targets: Tensor | None = None,
        keys: Tensor | None = None,
        step: int | None = None,
        boxes: Tensor | None = None,
    ) -> MethodOutput:
        """Classify.

        Args:
            images: (B, 3, H, W).
            targets: (B,): in training, the classes that guide; in evaluation, the classes whose maps are shown.
            keys: (B, 3); without them training draws from torch's generator.
            step: In training, the classifier to train, whose outputs alone are computed; `None`: all of them, each on its own
                input. Then the whole image's pass, which is trained, also guides the others.
            boxes: (B, 1, 4) from [guide][], for a stage's step.

        Returns:
            The output; in a step its `logits` are those of the step's classifier.
        """
        if not self.training:
            return self._evaluate(images, targets)
        if step == self.fused:
            return self._train(images, targets, step)[0]
        if step is not None:
            with self._stage_statistics():
                return self._train(self.stage_input(images, step, keys, boxes), targets, step)[0]
        whole, maps = self._train(images, targets, self.fused)
        if self.guidance:
            boxes = self._guiding_boxes(maps, targets, keys)
        with self._stage_statistics():
            stages = [self._train(self.stage_input(images, i, keys, boxes), targets, i)[0] for i in range(self.fused)]
        heads = {name: logits for output in (*stages, whole) for name, logits in output.heads.items()}
        extra = {name: value for output in (*stages, whole) for name, value in output.extra.items()}
        return MethodOutput(whole.logits, heads, whole.attention, extra)

    def guide(self, images: Tensor, targets: Tensor | None, keys: Tensor | None) -> Tensor:
        """Where the fused classifier finds its evidence of the true class.

        Called in evaluation mode, it leaves batch-norm statistics alone.

        Args:
            images: (B, 3, H, W).
            targets: (B,), the true classes.
            keys: (B, 3), decide the threshold.

        Returns:
            (B, 1, 4), relative boxes, without gradient; the whole image where no evidence is positive.
        """
        with torch.no_grad():
            return self._guiding_boxes(self._maps(images), targets, keys)

    def stage_input(self, images: Tensor, stage: int, keys: Tensor | None, boxes: Tensor | None = None) -> Tensor:
        """What a stage is trained on: the images, or crops of them, shuffled by the stage's grid.

        Args:
            images: (B, 3, H, W).
            stage: From 0.
            keys: (B, 3), decide the order of the patches.
            boxes: (B, 1, 4), what to crop; `None`: nothing.

        Returns:
            (B, 3, H, W).
        """
        if boxes is not None:
            images = crop_boxes(images, boxes)
        grid = self.grids[stage]
        return jigsaw(images, jigsaw_order(draw_uniform(images, keys, grid * grid, SALT_JIGSAW + stage)), grid)

    def stages_of(self, head: int) -> range:
        """The stages whose maps a classifier reads: its own, or all of them."""
        return range(self.fused) if head == self.fused else range(head, head + 1)

    def teacher_of(self, head: int) -> int | None:
        """The classifier that a classifier learns from, on its own input."""
        teacher = {"deep_to_shallow": head + 1, "shallow_to_deep": head - 1, "none": -1}[self.distillation]
        return teacher if 0 <= teacher <= self.fused else None

    # ------------------------------------------------------------------ passes

    def _stage_statistics(self) -> contextlib.AbstractContextManager[None]:
        return still_statistics(self) if self.whole_statistics else contextlib.nullcontext()

    def _train(self, images: Tensor, targets: Tensor | None, student: int) -> tuple[MethodOutput, dict[int, Tensor]]:
        """The pass that trains one classifier; also the maps that it read, by stage.

        Teachers run in training mode, as in PMG's code, where every classifier sees every input; nothing of them is trained.
        """
        teacher = self.teacher_of(student)
        deeper = student + 1 if self.alignment and student < self.fused else None
        wanted = {stage for head in (student, teacher, deeper) if head is not None for stage in self.stages_of(head)}
        levels = self.backbone(images, depth=self.taps[max(wanted)] + 1)
        maps = {stage: self._map(stage, levels) for stage in self.stages_of(student)}
        logits = self.heads[student](list(maps.values()))

        extra: dict[str, Tensor] = {}
        number = student + 1
        with torch.no_grad():
            known = {i: maps[i] if i in maps else self._map(i, levels) for i in sorted(wanted)}
            if teacher is not None:
                extra[f"teacher{number}"] = self.heads[teacher]([known[i] for i in self.stages_of(teacher)])
            if deeper is not None:
                extra[f"evidence{number}"] = self._evidence(deeper, known, _given(targets))
            if student == self.fused:
                # Testing shows the stages' classifiers whole images, so their norms count them, once.
                for stage, head in enumerate(self.heads):
                    if isinstance(head, PMGHead) and stage not in (student, teacher):
                        head([maps[stage]])
        if deeper is not None:
            extra[f"attention{number}"] = maps[student].mean(dim=1)
        attention = self._attention(maps, logits.argmax(dim=1))
        return MethodOutput(logits, {self.names[student]: logits}, attention, extra), maps

    def _evaluate(self, images: Tensor, targets: Tensor | None) -> MethodOutput:
        maps = self._maps(images)
        heads = self._heads(maps)
        logits = heads[self.test_heads]
        if self.test_crop:
            theta = torch.full((images.shape[0],), self.test_theta, device=images.device)
            evidence = self._evidence(self.fused, maps, logits.argmax(dim=1))
            boxes = attention_boxes(normalize_map(evidence), theta, TEST_PADDING)
            closer = self._heads(self._maps(crop_boxes(images, boxes)))
            heads = {name: (heads[name] + closer[name]) / 2 for name in heads}
            logits = heads[self.test_heads]
        explained = logits.argmax(dim=1) if targets is None else targets
        return MethodOutput(logits, heads, self._attention(maps, explained))

    def _maps(self, images: Tensor) -> dict[int, Tensor]:
        levels = self.backbone(images)
        return {stage: self._map(stage, levels) for stage in range(self.fused)}

    def _map(self, stage: int, levels: Sequence[Tensor]) -> Tensor:
        """What a stage's classifier reads: (B, 2 * feature_size, h, w), with `residual` the level's own channels behind them."""
        level = levels[self.taps[stage]]
        features: Tensor = self.blocks[stage](level)
        return torch.cat([features, level], dim=1) if self.residual else features

    def _heads(self, maps: dict[int, Tensor]) -> dict[str, Tensor]:
        numbered = enumerate(self.names)
        heads = {name: self.heads[number]([maps[i] for i in self.stages_of(number)]) for number, name in numbered}
        # PMG adds the four up; their mean predicts the same class and keeps the scale that the losses gave them.
        return heads | {"combined": torch.stack(list(heads.values())).mean(dim=0)}

    # ------------------------------------------------------------------ maps

    def _evidence(self, number: int, maps: dict[int, Tensor], classes: Tensor) -> Tensor:
        head = self.heads[number]
        assert isinstance(head, EvidenceHead)
        return head.evidence([maps[i] for i in self.stages_of(number)], classes)

    def _guiding_boxes(self, maps: dict[int, Tensor], targets: Tensor | None, keys: Tensor | None) -> Tensor:
        low, high = self.guide_theta
        with torch.no_grad():
            evidence = self._evidence(self.fused, maps, _given(targets))
            theta = low + (high - low) * draw_uniform(evidence, keys, 1, SALT_THETA)[:, 0]
            return attention_boxes(normalize_map(evidence), theta, self.guide_padding)

    def _attention(self, maps: dict[int, Tensor], classes: Tensor) -> Tensor:
        shown: list[Tensor] = []
        for stage, features in maps.items():
            evident = isinstance(self.heads[stage], EvidenceHead)
            found = self._evidence(stage, maps, classes) if evident else features.mean(dim=1)
            size = shown[0].shape[-2:] if shown else found.shape[-2:]
            shown.append(F.interpolate(found.detach().float()[:, None], size=size, mode="bilinear", align_corners=False))
        if len(maps) == self.fused and isinstance(self.heads[self.fused], EvidenceHead):
            shown.append(self._evidence(self.fused, maps, classes).detach().float()[:, None])
        return normalize_map(torch.cat(shown, dim=1))


def _given(targets: Tensor | None) -> Tensor:
    if targets is None:
        raise UsageError("targets: guidance and alignment need the true classes in training; give them, or switch both off")
    return targets


class IAGN(FineGrainedClassifier):
    """Interpretable Attention Guided Network: progressive training with evidence maps, guidance, distillation and alignment.

    The parent, PMG, is `head="pmg", guidance=False, distillation="none", alignment_weight=0, whole_statistics=False`.

    Args:
        num_classes: Number of classes K; the command line takes it from the data.
        backbone: Name of a timm network. PMG's, and our choice for IAGN, is ResNet-50.
        pretrained: Start from timm's pretrained weights.
        backbone_weights: A local `.safetensors` or `.pth` file with the backbone's weights, used instead of timm's.
        head: `evidence`: logits are means of evidence maps. `pmg`: PMG's max pool and two-layer classifier, which has no
            evidence maps, so guidance, alignment, the test crop and `residual` must be off.
        guidance: Train the stages on the region where the fused classifier finds its evidence of the true class. Off: on the
            whole image.
        distillation: `deep_to_shallow`: a stage learns from the next deeper classifier, the last one from the fused classifier.
            `shallow_to_deep`: the other way round, the fused classifier learns from the last stage. `none`: no distillation.
        distillation_weight: Weight of each distillation term; 0 switches them off.
        temperature: T of the distillation.
        alignment_weight: Weight of each alignment term; 0 switches them off.
        stages: S, how many of the backbone's last stages have a classifier, see [stage_taps][]. Three are PMG's, on ResNet-50. A
            thin one does harm: with mobilenetv2's stage of 32 channels, a fold of fifty classes of CUB has 63.1 %, without it
            67.7 (`benchmarks/plans/remedies.yaml`); PMG does not mind.
        grids: Jigsaw of each stage, from the shallowest: n for n x n patches, 1 for none.
        feature_size: Width of the stages' first convolution, the second has twice that; by default a quarter of the backbone's
            deepest stage (512 for ResNet-50, PMG's).
        init: Of blocks and PMG's classifiers: `default`, which is PMG's and torch's, or `orthogonal`, so that they begin by
            handing on a projection of what the backbone tells. Our decision.
        last_level: All stages read the backbone's last level and differ in their grids alone. Our decision for small backbones,
            whose shallower levels hardly tell classes apart.
        residual: An evidence map also reads the level itself, beside what the stage's block makes of it, so that nothing is lost
            to the block's width. Our decision.
        fused_weight: Weight of the fused classifier's cross-entropy (2 in PMG's code). With SGD it multiplies the gradient of the
            fused step. AdamW divides a gradient by its own size: the fused classifier's own layers learn alike whatever the
            weight is (but for AdamW's eps and a distillation beside it), and it acts through backbone and blocks alone, as the
            share of the fused gradient in the moments that all steps move or, with `one_step`, in the summed gradient.
        guide_theta: Range from which training draws the share of the evidence's maximum that is cropped to (WS-DAN's).
        guide_padding: Margin of that crop, relative to the image's side (WS-DAN's).
        test_crop: Test a second view, too: the crop to the predicted class's evidence, with a margin of 0.05; all logits are
            averaged over both. Results must then be called multi-view.
        test_theta: Share of that evidence's maximum that bounds the crop (0.1 in WS-DAN's code).
        test_heads: What is scored: the `fused` classifier, or `combined`, the mean of all classifiers' logits (PMG's sum, by
            which its code chooses the best epoch). The accuracy of both, and of every stage, is logged.
        whole_statistics: Batch-norm's running statistics come from whole images alone, which is what testing sees. Off: the
            stages' shuffled crops move them, too. Our decision: on a fold of fifty classes of CUB it gives 3.6 points
            (`benchmarks/plans/remedies.yaml`).
        one_step: Sum the losses of all classifiers into one optimiser step a batch. Guidance then costs no pass of its own, but
            reads the whole image's training pass, normalised by the batch.
        **training: Optimiser, schedule and so on, see [FineGrainedClassifier][].

    Raises:
        UsageError: An argument is out of its range, or does not go with another.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        pretrained: bool = True,
        backbone_weights: str | Path | None = None,
        *,
        head: Head = "evidence",
        guidance: bool = True,
        distillation: Distillation = "deep_to_shallow",
        distillation_weight: float = 0.5,
        temperature: float = 4.0,
        alignment_weight: float = 0.1,
        stages: int = 3,
        grids: Sequence[int] = (8, 4, 2),
        feature_size: int | None = None,
        init: LayerInit = "default",
        last_level: bool = False,
        residual: bool = False,
        fused_weight: float = 2.0,
        guide_theta: tuple[float, float] = (0.4, 0.6),
        guide_padding: float = 0.1,
        test_crop: bool = False,
        test_theta: float = 0.1,
        test_heads: TestHeads = "fused",
        whole_statistics: bool = True,
        one_step: bool = False,
        **training: Any,
    ) -> None:
        super().__init__(num_classes, backbone, pretrained, backbone_weights, **training)
        needs_evidence = {"guidance": guidance, "alignment_weight": alignment_weight > 0}
        needs_evidence |= {"test_crop": test_crop, "residual": residual}
        for name, wanted in needs_evidence.items():
            if head == "pmg" and wanted:
                off = "0" if name == "alignment_weight" else "false"
                raise UsageError(f"model.{name}: a 'pmg' head has no evidence maps; set {name} to {off}, or head to 'evidence'")
        if not 1 <= stages <= MAX_STAGES:
            raise UsageError(f"model.stages: {stages} is not between 1 and {MAX_STAGES}")
        if len(grids) != stages or min(grids) < 1:
            raise UsageError(f"model.grids: {list(grids)}; give one grid of at least 1 for each of the {stages} stages")
        require_within("[0, inf)", distillation_weight=distillation_weight, alignment_weight=alignment_weight)
        require_within("(0, inf)", fused_weight=fused_weight, temperature=temperature)
        if not 0 <= guide_theta[0] <= guide_theta[1] <= 1:
            raise UsageError(f"model.guide_theta: {list(guide_theta)} is no range within 0 and 1")
        require_within("[0, 1]", test_theta=test_theta)
        require_within("[0, inf)", guide_padding=guide_padding)
        if feature_size is not None and feature_size < 1:
            raise UsageError(f"model.feature_size: {feature_size}; at least 1, or null for a quarter of the deepest stage")

    def build_network(self) -> nn.Module:
        """Backbone, blocks, classifiers."""
        given = self.arguments
        return self.build(
            IAGNNetwork,
            backbone=self.make_backbone(),
            distillation=given.distillation if given.distillation_weight > 0 else "none",
            alignment=given.alignment_weight > 0,
        )

    @property
    def steps_per_batch(self) -> int:
        """One for each classifier; with `one_step` a single one."""
        return 1 if self.arguments.one_step else len(self.arguments.grids) + 1

    def training_outputs(self, images: Tensor, targets: Tensor, keys: Tensor) -> Iterator[MethodOutput]:
        """The stages' steps, from the shallowest, on shuffled images, then the fused classifier's on the whole image.

        With guidance, one pass in evaluation mode comes first, whose boxes hold for all stages: it changes no batch-norm
        statistics, and what it finds in an image does not depend on the others of its batch.

        Args:
            images: (B, 3, H, W), normalised.
            targets: (B,) classes.
            keys: (B, 3), see [forward][fgzoo.methods.base.FineGrainedClassifier.forward].

        Yields:
            One output for each classifier, the fused one's last; with `one_step` a single output with all of them.
        """
        network = self.network
        assert isinstance(network, IAGNNetwork)
        if self.arguments.one_step:
            yield self(images, targets, keys)
            return
        boxes = None
        if self.arguments.guidance:
            with self.evaluating():
                boxes = network.guide(images, targets, keys)
        for step in range(self.steps_per_batch):
            yield network(images, targets, keys, step=step, boxes=boxes)

    def loss(self, output: MethodOutput, targets: Tensor) -> dict[str, Tensor]:
        r"""Cross-entropies, distillation and alignment of the classifiers in an output.

        $$w_l \mathrm{CE}(z_l, y) + \beta T^2\, \mathrm{KL}(\mathrm{softmax}(z_t / T) \| \mathrm{softmax}(z_l / T))
        + \gamma \|\bar{A}_l - \bar{E}_{l+1}\|^2$$

        with w = 1 for the stages and `fused_weight` for the fused classifier, t the teacher, beta `distillation_weight`, gamma
        `alignment_weight`, A a stage's mean activation and E the deeper evidence of the true class, both divided by their maxima.

        Args:
            output: What the network returned.
            targets: (B,) classes, or (B, K) probabilities.

        Returns:
            `stage1` .. `stageS`, `fused`, and for the l-th of them `distill{l}` and `align{l}`.
        """
        given = self.arguments
        terms = super().loss(output, targets)
        if "fused" in terms:
            terms["fused"] = given.fused_weight * terms["fused"]
        extra = output.extra
        assert isinstance(self.network, IAGNNetwork)
        for number, name in enumerate(self.network.names, start=1):
            if f"teacher{number}" in extra:
                distilled = distillation_loss(output.heads[name], extra[f"teacher{number}"], given.temperature)
                terms[f"distill{number}"] = given.distillation_weight * distilled
            if f"evidence{number}" in extra:
                aligned = alignment_loss(extra[f"attention{number}"], extra[f"evidence{number}"])
                terms[f"align{number}"] = given.alignment_weight * aligned
        return terms

    def map_names(self, count: int) -> list[str]:
        """The stages, and where there is evidence the fused classifier, whose map is what the logit is the mean of."""
        last = [] if self.arguments.head == "pmg" else ["fused"]
        return [*(f"stage {number}" for number in range(1, count + 1 - len(last))), *last]
