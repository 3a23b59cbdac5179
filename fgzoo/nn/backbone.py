"""Any timm network as a list of feature maps."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fgzoo.errors import UsageError
from fgzoo.nn.frozen import fold_batch_norms, freeze_batch_norms
from fgzoo.nn.low_rank import add_low_rank
from fgzoo.nn.statistics import still_statistics
from fgzoo.nn.timm_networks import (
    SizeLimits,
    build_network,
    find_config,
    is_fixed,
    load_weights,
    needs_contiguous,
    own_size,
    timm_name,
)

FreezeNorm = Literal["none", "statistics", "affine"]
Tuning = Literal["full", "lora", "frozen"]

#: Side of the image that is sent through a network once to see which modules its levels run, where its size is free.
EXAMPLE_SIDE = 96
#: Side of an image whose maps no window divides.
UNEVEN_SIDE = 72


class Level(NamedTuple):
    """One feature map of a backbone: its channels, and its stride in pixels of the input."""

    channels: int
    stride: int


class Backbone(nn.Module):
    """A timm network without its classifier, as feature maps from shallow to deep.

    The last level is what the network's own `forward_features` gives, which for some networks is more than their deepest
    stage: mobilenetv2_100 ends in 1,280 channels, its deepest stage in 320. Tokens come as maps, those of vision transformers
    after the final norm, and all levels of these share one stride.

    Networks take images of any size where timm can build them so. Those that take a single size (CoAtNet, MaxViT, BEiT, Hiera,
    MLP-Mixer and others) are shown every image, crop and patch resized to it; for networks that need a smallest side (mostly 32
    pixels) or whole multiples (Swin 4, HRNet and DLA 32) images are enlarged to that.

    Args:
        name: A timm model name with or without the tag of its weights, e.g. `resnet50` or `resnet50.a1_in1k`; `hf-hub:USER/NAME`
            or `local-dir:PATH` for one whose config and weights lie on the Hugging Face hub or in a folder; or `birds_resnet`.
        pretrained: Load timm's pretrained weights (downloads them, unless cached; those of `birds_resnet` are in the package).
        weights: A local `.safetensors` or `.pth` file with the network's weights, with or without a classifier. Takes precedence
            over `pretrained`.
        max_stride: Cut the network after its deepest level of at most this stride; without such a level, or by default, nothing
            is cut.
        freeze: How many levels, from the lowest, stay as they are: what computes them does not learn, builds no graph of its own
            and is in evaluation mode. Of a cut network at most those that are left.
        freeze_norm: `statistics`: batch-norms normalise by the statistics of the weights, in training, too; `affine`: their scale
            and shift are not learnt either; `none`: they normalise by the batch. Nothing to do without batch-norms.
        output_stride: Stride of the last level, where timm can build the network so: deeper convolutions are dilated instead of
            strided. `None`: the network's own.
        backbone_size: Side of the images that a network of a single size is built for, its position embeddings and biases
            interpolated. `None`: its own. Networks that take any size have none.
        backbone_tuning: `full`: what `freeze` leaves learns; `frozen`: nothing does, as if `freeze` were all levels; `lora`: of
            what `freeze` leaves the attention's projections learn a sum of low rank, see [fgzoo.nn.low_rank][].
        lora_rank: Its rank.

    Attributes:
        levels: Channels and stride of each map that `forward` returns, in pixels of what the network is shown.
        stage_channels: Channels of the deepest stage, before what the network counts to its head: 320 for mobilenetv2_100.
        size: Height and width that every image is resized to; `None`: the network takes any.
        config: What a config on a hub or in a folder said of it, see [NetworkConfig][fgzoo.nn.timm_networks.NetworkConfig].
        mean: Channel means the weights were trained with.
        std: Channel standard deviations the weights were trained with.
        frozen: Build no graph, because no gradient is wanted at the moment, but for images that want one themselves. Its
            parameters stay trainable.
        frozen_norms: How many batch-norms normalise by fixed statistics.
        recomputes: Keep few activations of a training pass, see [recompute][Backbone.recompute].

    Shape:
        - images: (B, 3, H, W)
        - returns: list of (B, C_l, ceil(H / stride_l), ceil(W / stride_l)); some networks floor

    Raises:
        UsageError: The name is unknown, its weights cannot be fetched, there are fewer levels than shall be frozen, or timm
            cannot build it as it is asked for.
        CheckpointError: The weight file cannot be read or belongs to another network.
    """

    #: What is in evaluation mode always.
    _always_evaluating: tuple[nn.Module, ...] = ()

    def __init__(
        self,
        name: str,
        pretrained: bool = True,
        weights: str | Path | None = None,
        max_stride: int | None = None,
        freeze: int = 0,
        freeze_norm: FreezeNorm = "none",
        output_stride: int | None = None,
        backbone_size: int | None = None,
        backbone_tuning: Tuning = "full",
        lora_rank: int = 8,
    ) -> None:
        super().__init__()
        self.name = timm_name(name)
        pretrained = pretrained and weights is None
        self.config = find_config(self.name, pretrained)
        self.model = self._build(pretrained, output_stride)
        config = self.model.pretrained_cfg
        self.mean: tuple[float, ...] = tuple(config.get("mean", IMAGENET_DEFAULT_MEAN))
        self.std: tuple[float, ...] = tuple(config.get("std", IMAGENET_DEFAULT_STD))
        self.size: tuple[int, int] | None = None
        self._limits = SizeLimits.of(self.model)
        self._contiguous = needs_contiguous(self.model)
        self.frozen = False
        self.recomputes = False
        self._recomputes_at_once = False
        self.frozen_norms = 0
        self._statistics_hold: contextlib.ExitStack | None = None
        #: Tokens, or maps with channels last: their maps come from forward_intermediates, after the final norm.
        self._reshaped = hasattr(self.model, "num_prefix_tokens") or getattr(self.model, "output_fmt", "NCHW") == "NHWC"

        levels = [Level(info["num_chs"], info["reduction"]) for info in self.model.feature_info]
        last = len(levels) - 1
        if not 0 <= freeze <= len(levels):
            raise UsageError(f"model.freeze: {freeze}; '{name}' has {len(levels)} levels")
        if max_stride is not None:
            last = max((i for i, level in enumerate(levels) if level.stride <= max_stride), default=last)
        self._uncut = last == len(levels) - 1
        self._indices = list(range(last + 1))
        full_keys = set(self.model.state_dict())
        # Where forward_features goes beyond the deepest stage (mobilenetv2's conv_head), timm counts that layer to the head.
        extended = self._uncut and not self._reshaped and self.model.num_features != levels[-1].channels
        features = self.model.num_features
        self.model.prune_intermediate_layers(self._indices, prune_norm=not self._uncut, prune_head=not extended)
        if extended:
            self.model.reset_classifier(0)
        self.levels = levels[: last + 1]
        self.stage_channels: int = levels[last].channels
        if self._uncut and not self._reshaped:
            self.levels[-1] = Level(features, levels[-1].stride)
        if weights is not None:
            load_weights(self.model, Path(weights), name, full_keys)
        if is_fixed(self.model):
            self._fix_size(backbone_size)
        if freeze or backbone_tuning == "frozen":
            self._freeze_levels(len(self.levels) if backbone_tuning == "frozen" else min(freeze, len(self.levels)))
        if freeze_norm != "none" or backbone_tuning == "lora":
            self.freeze_statistics(affine=freeze_norm == "affine" or backbone_tuning == "lora")
        if backbone_tuning == "lora" and not add_low_rank(self.model, lora_rank):
            raise UsageError(
                f"model.backbone_tuning: 'lora' adapts the projections of attention, of which '{name}' has none that "
                "model.freeze leaves; take 'full' or 'frozen'"
            )

    def _build(self, pretrained: bool, output_stride: int | None) -> Any:
        finer: dict[str, Any] = {} if output_stride is None else {"output_stride": output_stride}
        try:
            model = build_network(self.name, self.config, pretrained, **finer)
        except (TypeError, AssertionError, NotImplementedError) as error:
            if not finer:
                raise
            raise UsageError(
                f"model.output_stride: timm cannot build '{self.name}' with a stride of {output_stride}; leave it away"
            ) from error
        if finer and model.feature_info[-1]["reduction"] != output_stride:
            raise UsageError(f"model.output_stride: timm builds '{self.name}' with strides of 8, 16 and 32, not {output_stride}")
        return model

    def _fix_size(self, side: int | None) -> None:
        """Find out whether the network takes a single size of image only, and make that another one where it is asked for."""
        if all(self._takes((side, side)) for side in (EXAMPLE_SIDE, UNEVEN_SIDE)):
            return
        self.size = own_size(self.model)
        if side is None or (side, side) == self.size:
            return
        try:
            self.model.set_input_size(img_size=(side, side))
            possible = self._takes((side, side))
        except (AttributeError, AssertionError, ValueError):
            possible = False
        if not possible:
            raise UsageError(
                f"model.backbone_size: timm cannot make '{self.name}' for {side} pixels; its own size is {self.size[0]}, which "
                "images are resized to without this argument. Those it can are mostly made for multiples of 32"
            )
        self.size = side, side

    def _takes(self, size: tuple[int, int]) -> bool:
        """Whether the network takes images of a size; tried, since what timm says of it is not reliable."""
        training = self.model.training
        self.model.eval()
        image = next(self.model.parameters()).new_zeros(1, 3, *size)
        try:
            with torch.no_grad():
                return all(level.ndim == 4 for level in self._levels_of(image, None))
        except (AssertionError, RuntimeError):  # by which timm's networks and torch refuse a size
            return False
        finally:
            self.model.train(training)

    def freeze_statistics(self, affine: bool = False) -> None:
        """From now on, batch-norms normalise by their running statistics, in training, too.

        Args:
            affine: Scale and shift are not learnt either.
        """
        self.frozen_norms = freeze_batch_norms(self.model, affine=not affine)
        if self.frozen_norms:
            self._fold()

    def _freeze_levels(self, depth: int) -> None:
        """Let the lowest levels stay as they are."""
        run: set[nn.Module] = set()
        training = self.model.training
        self.model.eval()
        with contextlib.ExitStack() as hooks:
            for module in self.model.modules():
                hooks.enter_context(module.register_forward_hook(lambda module, *_: run.add(module)))
            maps = self.model.forward_intermediates(
                self._example(), indices=self._indices[:depth], norm=False, stop_early=True, intermediates_only=True
            )
        self.model.train(training)
        if depth == len(self.levels) and self._uncut:  # with what lies beyond the deepest stage
            run = set(self.model.modules())
            reached: set[Tensor] = set(self.model.parameters())
        else:
            reached = reached_by(*maps)
        for parameter in reached:
            parameter.requires_grad_(False)
        freeze_batch_norms(self.model, affine=False, inside=run)
        self._fold()
        # A module that runs deeper, too, has parameters or modules of its own there.
        self._always_evaluating = tuple(
            module for module in self.model.modules() if module in run and not any(p.requires_grad for p in module.parameters())
        )

    def _fold(self) -> None:
        training = self.model.training
        self.model.eval()
        fold_batch_norms(self.model, lambda: self._levels_of(self._example(), None))
        self.model.train(training)

    def _example(self) -> Tensor:
        """An image of the size that the network insists on, or a small one."""
        return next(self.model.parameters()).new_zeros(1, 3, *(self.size or (EXAMPLE_SIDE, EXAMPLE_SIDE)))

    def _apply(self, fn: Any, recurse: bool = True) -> Backbone:
        """Move or convert as asked, but for the memory format of networks that need theirs."""
        super()._apply(fn, recurse)
        for parameter in self.parameters() if self._contiguous else ():
            # contiguous() would leave a kernel of one input channel as it is, whose strides still say channels-last.
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
        return self

    def train(self, mode: bool = True) -> Backbone:
        """Training or evaluation mode, but for what stands still."""
        super().train(mode)
        for module in self._always_evaluating:
            module.training = False
        return self

    def forward(self, images: Tensor, depth: int | None = None) -> list[Tensor]:
        """Compute all levels, or the first `depth` of them, without running what lies deeper."""
        shown = self.size
        if shown is None and self._limits != SizeLimits():
            shown = self._limits.enlarged(images.shape[-2], images.shape[-1])
        if shown is not None and shown != images.shape[-2:]:
            images = F.interpolate(images, shown, mode="bilinear", align_corners=False, antialias=True)
        if self._contiguous:
            images = images.clone(memory_format=torch.contiguous_format)
        if self.frozen and not images.requires_grad:
            with torch.no_grad():
                return self._levels_of(images, depth)
        if not self.recomputes:
            return self._levels_of(images, depth)
        if self._recomputes_at_once and self.training and torch.is_grad_enabled():
            maps: list[Tensor] = checkpoint(self._levels_of, images, depth, use_reentrant=False)
        else:
            maps = self._levels_of(images, depth)
        for level in maps:
            if level.requires_grad:
                level.register_hook(self._hold_statistics)
        return maps

    def recompute(self) -> None:
        """From now on, compute activations of a training pass a second time in the backward pass instead of keeping them.

        Block by block where timm's network can (gradient checkpointing, arXiv 1604.06174); others (VGG, Inception) as a whole,
        which helps where an image passes several times. Gradients are the same, and batch-norm counts an image once, where the
        second computation would count it again.
        """
        self.recomputes = True
        try:
            self.model.set_grad_checkpointing(True)
        except (AssertionError, AttributeError):
            self._recomputes_at_once = True

    def _hold_statistics(self, _: Tensor) -> None:
        """A gradient has come back to the backbone: until the end of this backward pass, batch-norms do not move."""
        if self._statistics_hold is None:
            self._statistics_hold = contextlib.ExitStack()
            self._statistics_hold.enter_context(still_statistics(self.model))
            torch.autograd.Variable._execution_engine.queue_callback(self._release_statistics)

    def _release_statistics(self) -> None:
        assert self._statistics_hold is not None
        self._statistics_hold.close()
        self._statistics_hold = None

    def _levels_of(self, images: Tensor, depth: int | None) -> list[Tensor]:
        stops_early = depth is not None and depth < len(self.levels)
        if stops_early or not self._uncut:
            maps: list[Tensor] = self.model.forward_intermediates(
                images,
                indices=self._indices[:depth],
                norm=self._reshaped and self._uncut,
                stop_early=True,
                output_fmt="NCHW",
                intermediates_only=True,
            )
            return maps
        final, maps = self.model.forward_intermediates(images, indices=self._indices, norm=self._reshaped, output_fmt="NCHW")
        return maps if self._reshaped else [*maps[:-1], as_map(final, maps[-1])]


def as_map(features: Any, deepest: Tensor) -> Tensor:
    """What a network's `forward_features` gives as a map.

    Args:
        features: (B, C, h, w), or tokens (B, P + h w, C) behind P of their own; anything else, such as the tokens of several
            branches, is no map.
        deepest: (B, C', h, w), the deepest stage's map, which stands for what is no map.

    Returns:
        (B, C, h, w).
    """
    height, width = deepest.shape[-2:]
    if not isinstance(features, Tensor) or (features.ndim == 3 and features.shape[1] < height * width):
        return deepest
    if features.ndim == 3:
        return features[:, features.shape[1] - height * width :].transpose(1, 2).unflatten(2, (height, width))
    return features


def reached_by(*tensors: Tensor) -> set[Tensor]:
    """The parameters that tensors depend on, found by walking their graph.

    Args:
        *tensors: Each with a graph.

    Returns:
        The leaves that a backward pass gives a gradient.
    """
    seen: set[Any] = set()
    pending: list[Any] = [tensor.grad_fn for tensor in tensors]
    found: set[Tensor] = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(node.variable)
        pending += [following for following, _ in node.next_functions]
    return found
