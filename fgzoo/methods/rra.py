"""RRA, "Focus Longer to See Better": recursively refined attention for fine-grained image classification.

Shroff, Chen, Wei, Wang. CVPR workshops 2020, arXiv 2005.10979.

From the authors' published code: two streams with separate weights (VGG-19 both); the global one sees the image, two 1x1
convolutions of width 1024 and a linear classifier; the local one sees a patch of the image, and its pooled features x feed the
*same* vector at every step into a two-layer LSTM of width 512; attention over the steps' states; z = z_g + lambda z_l with
lambda = 1; the sum of both cross-entropies; T = 10 steps; classifiers N(0, 0.01) with zero bias, added convolutions Kaiming
fan-out; SGD, momentum 0.9, weight decay 5e-4, learning rate 1e-3 falling tenfold at epochs 30 and 60, batch 32, images of
448x448. An explanation is Grad-CAM of each step's logit on the patch stream's last map.

This project's decisions, each an argument: where patches come from (the authors drew one of ten stored boxes at random, at test
time too; here the global stream's own strongest channels propose them, see [activation_boxes][fgzoo.nn.crops.activation_boxes],
and testing averages the first four, so it is deterministic); the linear projection of x to the LSTM's width where the backbone's
differs; which level of another backbone the local stream reads (`local_stride`). How much a patch bounds (`patch_percentile`) and
at what size it is seen (`local_scale`) are the authors' unless they are given; so are the states' normalisation, the path round
the recursion (`residual`) and how added layers begin (`init`). Attention over locations at every step (`refocus`) is our
extension: the paper's recursion has one vector to look at, however long it looks.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgzoo.errors import DataError, UsageError
from fgzoo.files import user_path
from fgzoo.methods.arguments import require_within
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.nn.attention import TemporalAttention
from fgzoo.nn.backbone import Backbone
from fgzoo.nn.crops import activation_boxes, center_boxes, crop_boxes, paste_boxes, random_boxes
from fgzoo.nn.initialization import LayerInit, orthogonal_layers
from fgzoo.nn.local_attention import LocalAttention
from fgzoo.nn.maps import class_activation_map, grid_of, normalize_map, single
from fgzoo.nn.output import MethodOutput
from fgzoo.nn.randomness import draw_uniform, keyed_uniform
from fgzoo.nn.recurrent import RepeatedInputLSTM

Patches = Literal["activation", "center", "random", "file"]

#: The side of `center` and `random` boxes, relative to the image's.
BOX_SIDE = 0.5
#: Attention maps of a forward pass come at this stride, fine enough for a pasted patch.
ATTENTION_STRIDE = 8


class GlobalStream(nn.Module):
    """The image: features -> Conv1x1, ReLU, Conv1x1, ReLU -> global average pooling -> linear.

    Arguments are those of [RRA][], beside the channels C of the features.

    Shape:
        - features: (B, C, h, w)
        - returns: logits z_g (B, K) and the maps that were pooled (B, global_width, h, w), the features themselves without
          convolutions
    """

    def __init__(self, channels: int, num_classes: int, global_width: int) -> None:
        super().__init__()
        added: list[nn.Module] = []
        for inputs in (channels, global_width) if global_width > 0 else ():
            added += [nn.Conv2d(inputs, global_width, 1), nn.ReLU(inplace=True)]
        self.added = nn.Sequential(*added)
        self.classifier = linear_classifier(global_width or channels, num_classes)
        for layer in self.added:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Classify the image."""
        maps = self.added(features)
        return self.classifier(maps.mean(dim=(2, 3))), maps


class Steps(NamedTuple):
    """What the recursion does at each of its T steps; where it is off, T = 1.

    Attributes:
        states: (N, T, hidden), h_t, with `residual` x_t + h_t; x itself where the recursion is off.
        inputs: T times (N, C), the pooled features x_t, before their projection.
        alpha: (N, T, h, w), the attention that pools them; `None`: they are averaged.
    """

    states: Tensor
    inputs: list[Tensor]
    alpha: Tensor | None


class LocalStream(nn.Module):
    """A patch: pooled features -> the recursion -> attention over its steps -> linear.

    With `refocus` features are pooled anew at every step, by attention that reads the top layer's state.

    Arguments are those of [RRA][], beside the channels C of the patch features.

    Shape:
        - features: (N, C, h, w)
        - returns: logits z_l (N, K)
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        steps: int,
        hidden_size: int,
        recursion: bool,
        attend_over_time: bool,
        normalize_states: bool,
        residual: bool,
        refocus: bool,
    ) -> None:
        super().__init__()
        self.residual = residual and recursion
        self.steps = steps if recursion else 1
        self.project = nn.Identity() if channels == hidden_size else nn.Linear(channels, hidden_size)
        self.recursion = RepeatedInputLSTM(hidden_size, hidden_size) if recursion else None
        self.attention = TemporalAttention(hidden_size) if recursion and attend_over_time else None
        self.norm = nn.LayerNorm(hidden_size) if normalize_states else nn.Identity()
        self.classifier = linear_classifier(hidden_size, num_classes)
        self.refocus = LocalAttention(channels, hidden_size, hidden_size) if refocus else None
        if self.refocus is not None:
            nn.init.zeros_(self.refocus.score.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Classify patches by their features."""
        return self.summarize(self.unroll(features).states)

    def summarize(self, states: Tensor) -> Tensor:
        """Classify by the states of all steps, (N, T, hidden) -> (N, K)."""
        context = states[:, -1] if self.attention is None else self.attention(states)[0]
        return self.classify(context)

    def unroll(self, features: Tensor) -> Steps:
        """Run the recursion on features (N, C, h, w)."""
        if self.recursion is None or self.refocus is None:
            pooled = features.mean(dim=(2, 3))
            x = self.project(pooled)
            if self.recursion is None:
                return Steps(x[:, None], [pooled], None)
            hidden = self.recursion(x, self.steps)
            # Attention over time weighs them as without x, which adds the same to each step's energy.
            return Steps(hidden + x[:, None] if self.residual else hidden, [pooled] * self.steps, None)
        layers, inner = self.recursion.start(features), self.refocus.inner(features)
        states, inputs, alphas = [], [], []
        for _ in range(self.steps):
            alpha = self.refocus.weigh(inner, layers[-1][0][:, :, None, None])
            pooled = (alpha[:, None] * features).sum(dim=(2, 3))
            x = self.project(pooled)
            layers = self.recursion.step(x, layers)
            states.append(layers[-1][0] + x if self.residual else layers[-1][0])
            inputs.append(pooled)
            alphas.append(alpha)
        return Steps(torch.stack(states, dim=1), inputs, torch.stack(alphas, dim=1))

    def classify(self, states: Tensor) -> Tensor:
        """Classify states, (..., hidden) -> (..., K)."""
        logits: Tensor = self.classifier(self.norm(states))
        return logits


class RRANetwork(nn.Module):
    """Both streams and their fusion, z = z_g + lambda z_l.

    Arguments are those of [RRA][], beside the backbones and streams, of which the local ones are `None` in the parent.

    Attributes:
        stored_boxes: (number of images, num_patches, 4) for `file`, looked up by the samples' index.

    Shape:
        - images: (B, 3, H, W); keys: (B, 3)
        - logits: (B, K); heads: `global` and `local`; attention: (B, 2, ceil(H / 8), ceil(W / 8)), the global stream's class
          activation map of the predicted class, then the mean activation of the local stream's map, pasted where the patches are
          (without a local stream: the first only)
    """

    def __init__(
        self,
        global_backbone: Backbone,
        global_stream: GlobalStream,
        local_backbone: Backbone | None,
        local_stream: LocalStream | None,
        init: LayerInit,
        fusion_weight: float,
        patches: Patches,
        num_patches: int,
        test_patches: int,
        patch_percentile: float,
        local_scale: float,
    ) -> None:
        super().__init__()
        self.global_backbone = global_backbone
        self.global_stream = global_stream
        self.local_backbone = local_backbone
        self.local_stream = local_stream
        if init == "orthogonal":
            orthogonal_layers(global_stream.added)
            if local_stream is not None:
                orthogonal_layers(local_stream.project)
        self.fusion_weight = fusion_weight
        self.patches = patches
        self.num_patches = num_patches
        self.test_patches = test_patches
        self.patch_percentile = patch_percentile
        self.local_scale = local_scale
        self.stored_boxes: Tensor | None = None

    def forward(self, images: Tensor, targets: Tensor | None = None, keys: Tensor | None = None) -> MethodOutput:
        """Classify; in evaluation `targets` chooses the class whose activation map is shown."""
        features = self.global_backbone(images)[-1]
        z_g, maps = self.global_stream(features)
        if self.local_backbone is None or self.local_stream is None:
            return MethodOutput(z_g, {"global": z_g}, self._global_map(images, maps, z_g, targets))

        boxes = self.boxes(images, features, keys)
        patch_maps = self.patch_features(images, boxes)
        z_l = self.local_stream(patch_maps).unflatten(0, boxes.shape[:2]).mean(dim=1)
        z = z_g + self.fusion_weight * z_l
        attention = torch.cat([self._global_map(images, maps, z, targets), self._local_map(images, patch_maps, boxes)], dim=1)
        return MethodOutput(z, {"global": z_g, "local": z_l}, attention)

    def boxes(self, images: Tensor, features: Tensor, keys: Tensor | None) -> Tensor:
        """The boxes of this pass, relative to the image: in training one drawn for every sample, else the first few.

        Args:
            images: (B, 3, H, W).
            features: (B, C, h, w), the global backbone's last level.
            keys: (B, 3); without them training draws from torch's generator.

        Returns:
            (B, N, 4) with N = 1 in training, `test_patches` in evaluation.
        """
        candidates = self._candidates(images, features, keys)
        if not self.training:
            return candidates[:, : self.test_patches]
        # Not the salt of the mirror images, which would each see one half of the patches.
        choice = (draw_uniform(images, keys, salt=3) * candidates.shape[1]).long()
        return candidates.gather(1, choice[:, :, None].expand(-1, -1, 4))

    def _candidates(self, images: Tensor, features: Tensor, keys: Tensor | None) -> Tensor:
        batch = images.shape[0]
        if self.patches == "activation":
            return activation_boxes(features, self.num_patches, self.patch_percentile)
        if self.patches == "center":
            return center_boxes(batch, self.num_patches, images, BOX_SIDE)
        if self.patches == "random":
            # In evaluation the same boxes for every image, so that testing is deterministic.
            if keys is None or not self.training:
                keys = torch.zeros(batch, 3, dtype=torch.long, device=images.device)
            uniform = keyed_uniform(keys, 2 * self.num_patches, salt=2)
            return random_boxes(uniform.view(batch, self.num_patches, 2), BOX_SIDE)
        if self.stored_boxes is None or keys is None:
            raise UsageError(
                "patches: 'file' looks boxes up by the images' names, which only images of a data module have; take "
                "'activation', 'center' or 'random' for other images"
            )
        # An image that is repeated in an epoch has further indices.
        return self.stored_boxes.to(images.device)[keys[:, 2] % len(self.stored_boxes)]

    def patch_features(self, images: Tensor, boxes: Tensor) -> Tensor:
        """The local backbone's last maps of the patches, which are seen at 32 pixels a side at least.

        Args:
            images: (B, 3, H, W).
            boxes: (B, N, 4).

        Returns:
            (B * N, C, h, w).
        """
        if self.local_backbone is None:
            raise UsageError("patches: this network has no local stream (local=False)")
        height, width = (max(32, int(side * self.local_scale)) for side in images.shape[-2:])
        return self.local_backbone(crop_boxes(images, boxes, (height, width)))[-1]

    def _global_map(self, images: Tensor, maps: Tensor, logits: Tensor, targets: Tensor | None) -> Tensor:
        explained = logits.argmax(dim=1) if targets is None or self.training else targets
        cam = class_activation_map(maps, self.global_stream.classifier.weight, explained)[:, None]
        enlarged = F.interpolate(cam, size=grid_of(images, ATTENTION_STRIDE), mode="bilinear", align_corners=False)
        return normalize_map(enlarged)

    def _local_map(self, images: Tensor, patch_maps: Tensor, boxes: Tensor) -> Tensor:
        energy = normalize_map(patch_maps.detach().mean(dim=1)).unflatten(0, boxes.shape[:2])
        return normalize_map(paste_boxes(energy[:, :, None], boxes, grid_of(images, ATTENTION_STRIDE)).mean(dim=1))


class RRA(FineGrainedClassifier):
    """Focus Longer to See Better: recursively refined attention.

    The parent is `local=False`; the control with two networks and no mechanism is `recursion=False`.

    Args:
        num_classes: Number of classes K; the command line takes it from the data.
        backbone: Name of a timm network; both streams use it, with weights of their own. The paper's is VGG-19.
        pretrained: Start from timm's pretrained weights.
        backbone_weights: A local `.safetensors` or `.pth` file with the backbone's weights, used instead of timm's.
        local: Off: the global stream alone.
        recursion: Off: the local classifier reads the pooled features without the recursion.
        steps: T, the number of steps of the recursion (10 in the authors' command).
        attend_over_time: Off: the last step's state instead of attention over all.
        normalize_states: The local classifier reads what attention gives after layer normalisation. Our decision: an LSTM's
            states are small at the start, so that a pretrained patch network learns slowly through them.
        residual: The local classifier reads x beside the states, sum_t a_t (x + h_t). Our decision: with x the same at every step
            the states are close to a linear map of it, which has to be learnt, where x tells classes apart from the start.
        refocus: Step t reads x_t = sum_l alpha_t(l) F(l) of the patch's map F, with attention alpha_t by the top layer's state
            h_(t-1), see [LocalAttention][fgzoo.nn.local_attention.LocalAttention]; it begins uniform, when x_t is the paper's x.
            Our extension, not the paper's: looking longer can then see more.
        init: Of the global stream's added convolutions and of the projection of x: `default`, which is the authors' and torch's,
            or `orthogonal` rows or columns, so that they begin as projections. Our decision.
        hidden_size: Width of the LSTM (512 in the authors' code).
        global_width: Width of the global stream's added convolutions (1024 in the authors' code). 0: there are none, so that the
            stream is plain fine-tuning. Our decision for backbones that end in many channels, and for training from scratch,
            where two more layers without batch-norm learn slowly.
        fusion_weight: lambda in z = z_g + lambda z_l and in the loss.
        patches: Where patches come from: `activation`, `center`, `random` or `file`. Our decision, see the module.
        num_patches: Candidates, of which training draws one for every sample.
        test_patches: How many of the first candidates testing averages. Our decision; the authors drew one at random.
        patch_percentile: For `activation`: a patch bounds the pixels of a channel at or above this share of them, see
            [activation_boxes][fgzoo.nn.crops.activation_boxes] (0.95 in the authors' files).
        patch_file: For `file`: an `.npz` with, under each image's name, (num_patches, 4) relative boxes x0, y0, x1, y1.
        local_stride: The local stream reads its backbone's deepest level of at most this stride (VGG-19 without its last pool:
            16), else the last level. Our decision for other backbones.
        local_scale: The side to which patches are resized, relative to the image's: 0.5 in the authors' code, 224 of 448 pixels.
            Small images leave small patches; see `benchmarks/plans/remedies.yaml` for what helps them.
        **training: Optimiser, schedule and so on, see [FineGrainedClassifier][].

    Raises:
        UsageError: An argument is out of its range.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "vgg19",
        pretrained: bool = True,
        backbone_weights: str | Path | None = None,
        *,
        local: bool = True,
        recursion: bool = True,
        steps: int = 10,
        attend_over_time: bool = True,
        normalize_states: bool = False,
        residual: bool = False,
        refocus: bool = False,
        init: LayerInit = "default",
        hidden_size: int = 512,
        global_width: int = 1024,
        fusion_weight: float = 1.0,
        patches: Patches = "activation",
        num_patches: int = 10,
        test_patches: int = 4,
        patch_percentile: float = 0.95,
        patch_file: str | Path | None = None,
        local_stride: int = 16,
        local_scale: float = 0.5,
        **training: Any,
    ) -> None:
        super().__init__(num_classes, backbone, pretrained, backbone_weights, **training)
        if steps < 1:
            raise UsageError(f"model.steps: {steps}; the recursion needs at least one step")
        if refocus and not (local and recursion):
            raise UsageError(
                "model.refocus: it is the local stream's recursion that refocuses; leave --model.local and --model.recursion on"
            )
        if global_width < 0:
            raise UsageError(f"model.global_width: {global_width}; give 0 for no added convolutions")
        if not 1 <= test_patches <= num_patches:
            raise UsageError(f"model.test_patches: {test_patches} is not between 1 and num_patches ({num_patches})")
        require_within("[0, 1)", patch_percentile=patch_percentile)
        require_within("(0, inf)", local_scale=local_scale)
        require_within("[0, inf)", fusion_weight=fusion_weight)
        if (patches == "file") != (patch_file is not None):
            raise UsageError("model.patches: 'file' and model.patch_file go together; give both or neither")

    def build_network(self) -> nn.Module:
        """Two backbones (one without a local stream) and both streams."""
        given = self.arguments
        global_backbone = self.make_backbone()
        local_backbone = self.make_backbone(max_stride=given.local_stride) if given.local else None
        return self.build(
            RRANetwork,
            global_backbone=global_backbone,
            global_stream=self.build(GlobalStream, channels=global_backbone.levels[-1].channels),
            local_backbone=local_backbone,
            local_stream=None if local_backbone is None else self.build(LocalStream, channels=local_backbone.levels[-1].channels),
        )

    def loss(self, output: MethodOutput, targets: Tensor) -> dict[str, Tensor]:
        """CE(z_g, y) + lambda CE(z_l, y)."""
        terms = super().loss(output, targets)
        if "local" in terms:
            terms["local"] = self.arguments.fusion_weight * terms["local"]
        return terms

    def explain(self, images: Tensor, targets: Tensor | None = None) -> Tensor:
        r"""The focus at each step of the recursion: S = T maps; without a local stream the global map alone.

        For every step t the local classifier is applied to h_t; Grad-CAM (Selvaraju et al., arXiv 1610.02391) of that logit on
        the patch stream's last map F gives

        $$\alpha^t_c = \frac{1}{hw} \frac{\partial z^t_y}{\partial x_c}, \quad M^t = \max(0, \sum_c \alpha^t_c F_c)$$

        since x is F's average. So only the head is differentiated. With `refocus`, a step's map shows what that step reads, where
        it reads it: with $g^t$ the gradient of its logit with respect to $x_t$ alone,

        $$M^t_l = \max(0, \alpha_t(l) \, g^t \cdot F_l)$$

        which without the maximum sum to $g^t \cdot x_t$. The patches' maps are pasted into the image frame and summed, weighted
        by each patch's probability of the explained class.

        Args:
            images: (B, 3, H, W), normalised.
            targets: (B,), the classes to explain; by default the predicted ones.

        Returns:
            (B, T, H, W) in [0, 1].
        """
        network = self.network
        assert isinstance(network, RRANetwork)
        if network.local_stream is None:
            return super().explain(images, targets)
        with self.evaluating():
            with torch.no_grad():
                if targets is None:
                    targets = network(images).logits.argmax(dim=1)
                boxes = network.boxes(images, network.global_backbone(images)[-1], None)
                features = single(network.patch_features(images, boxes))
            maps, probability = _step_maps(network.local_stream, features, targets.repeat_interleave(boxes.shape[1]))
        cams = normalize_map(maps).unflatten(0, boxes.shape[:2])
        pasted = paste_boxes(cams, boxes, (images.shape[-2], images.shape[-1]))
        return normalize_map(torch.einsum("bn,bnthw->bthw", probability.view(boxes.shape[:2]), pasted))

    def map_names(self, count: int) -> list[str]:
        """The steps of the recursion."""
        if not self.arguments.local:
            return super().map_names(count)
        return [f"step {number} of {count}" for number in range(1, count + 1)]

    # ------------------------------------------------------------------ boxes from a file

    def setup(self, stage: str) -> None:
        """Check the box file against the data, before anything is trained."""
        super().setup(stage)
        if self.arguments.patch_file is None:
            return
        size = self._of_data("image_size")
        whole = {"augmentation": "paper", "resize": size, "resize_mode": "squash"}
        if any(self._of_data(name, wanted) != wanted for name, wanted in whole.items()):
            raise UsageError(
                "model.patches: boxes from a file fit whole images only, which nothing crops; use --data.augmentation paper "
                f"--data.resize {size} --data.resize_mode squash"
            )

    def on_train_epoch_start(self) -> None:
        """Look boxes up by the training images' names."""
        super().on_train_epoch_start()
        self._store_boxes("train")

    def on_validation_epoch_start(self) -> None:
        """Look boxes up by the validation images' names."""
        super().on_validation_epoch_start()
        self._store_boxes("val")

    def on_validation_epoch_end(self) -> None:
        """Back to the training images' names: validation may run within an epoch."""
        super().on_validation_epoch_end()
        if self.trainer.state.fn == "fit":
            self._store_boxes("train")

    def on_test_epoch_start(self) -> None:
        """Look boxes up by the test images' names."""
        super().on_test_epoch_start()
        self._store_boxes("test")

    def on_predict_epoch_start(self) -> None:
        """Images that are predicted are in no split, and have none of its boxes."""
        super().on_predict_epoch_start()
        if isinstance(self.network, RRANetwork):
            self.network.stored_boxes = None

    def _store_boxes(self, split: str) -> None:
        given = self.arguments
        if given.patch_file is None:
            return
        find_names = self._of_data("names")
        if find_names is None:
            raise UsageError("model.patches: 'file' looks boxes up by the images' names, which only a data module's have")
        names = find_names(split)
        assert isinstance(self.network, RRANetwork)
        self.network.stored_boxes = read_boxes(user_path(given.patch_file), names, given.num_patches).to(self.device)


def _step_maps(stream: LocalStream, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The map of every step, which may be negative, and the probability of the explained class.

    Args:
        stream: The local stream.
        features: (N, C, h, w), the patches' last maps.
        targets: (N,).

    Returns:
        (N, T, h, w) and (N,).
    """
    height, width = features.shape[-2:]
    # Explanations work inside inference_mode, too: the head alone is differentiated, on a copy that autograd may follow.
    with torch.inference_mode(False), torch.enable_grad():
        steps = stream.unroll(features.clone().requires_grad_())
        logits = stream.classify(steps.states)
        chosen = logits.gather(2, targets.clone()[:, None, None].expand(-1, logits.shape[1], 1)).squeeze(2)
        # Of each step's logit with respect to every step's input, by one backward pass.
        one_step = torch.eye(chosen.shape[1], device=chosen.device)
        gradients = torch.autograd.grad(chosen.sum(dim=0), steps.inputs, one_step, is_grads_batched=True)
    with torch.no_grad():
        weights = torch.stack([gradient[step] for step, gradient in enumerate(gradients)], dim=1)
        if steps.alpha is None:
            maps = torch.einsum("ntc,nchw->nthw", weights / (height * width), features)
        else:
            maps = steps.alpha * torch.einsum("ntc,nchw->nthw", weights, features)
        return maps, stream.summarize(steps.states).float().softmax(dim=1).gather(1, targets[:, None]).squeeze(1)


def read_boxes(path: Path, names: list[str], num_patches: int) -> Tensor:
    """Read relative boxes from an `.npz`.

    Args:
        path: Its arrays are named like the images and hold at least `num_patches` boxes x0, y0, x1, y1 in [0, 1].
        names: The images, in the order of their index.
        num_patches: How many boxes to take.

    Returns:
        (len(names), num_patches, 4).

    Raises:
        DataError: The file is missing or damaged, an image has no boxes, or boxes are not boxes.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            absent = [name for name in names if name not in stored]
            if absent:
                shown = ", ".join(absent[:5])
                raise DataError(f"model.patch_file: {path} has no boxes for {len(absent)} images, e.g. {shown}")
            arrays = [np.asarray(stored[name], dtype=np.float32) for name in names]
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"model.patch_file: {path} cannot be read as .npz: {error}") from error
    rows = []
    for name, boxes in zip(names, arrays, strict=True):
        if boxes.ndim != 2 or boxes.shape[1] != 4 or len(boxes) < num_patches:
            raise DataError(f"model.patch_file: {path}, {name}: shape {boxes.shape}, needed ({num_patches}, 4)")
        if not ((boxes >= 0) & (boxes <= 1)).all() or not (boxes[:, :2] < boxes[:, 2:]).all():
            raise DataError(f"model.patch_file: {path}, {name}: boxes must be x0 < x1, y0 < y1 within [0, 1]")
        rows.append(torch.from_numpy(boxes[:num_patches]))
    return torch.stack(rows)


def linear_classifier(width: int, num_classes: int) -> nn.Linear:
    """A linear classifier with weights N(0, 0.01) and zero bias, as in the authors' code."""
    layer = nn.Linear(width, num_classes)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer
