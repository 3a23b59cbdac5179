"""Any timm network as a list of feature maps."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Literal, NamedTuple

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fgzoo.errors import CheckpointError, UsageError, did_you_mean
from fgzoo.nn import birds_resnet  # noqa: F401 - timm knows it from here on
from fgzoo.nn.frozen import fold_batch_norms, freeze_batch_norms
from fgzoo.nn.statistics import still_statistics
from fgzoo.nn.weights import read_weights

FreezeNorm = Literal["none", "statistics", "affine"]

#: Side of the image that is sent through a network once to see which modules its levels run, where its size is free.
EXAMPLE_SIDE = 96


class Level(NamedTuple):
    """One feature map of a backbone: its channels, and its stride in pixels of the input."""

    channels: int
    stride: int


class Backbone(nn.Module):
    """A timm network without its classifier, as feature maps from shallow to deep.

    The last level is what the network's own `forward_features` gives, which for some networks is more than their deepest
    stage: mobilenetv2_100 ends in 1,280 channels, its deepest stage in 320. Transformers are built for any image size; their
    tokens come as maps, after the final norm, and all their levels share one stride.

    Args:
        name: A timm model name, e.g. `resnet50`; or `birds_resnet`, which is registered here.
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

    Attributes:
        levels: Channels and stride of each map that `forward` returns.
        stage_channels: Channels of the deepest stage, before what the network counts to its head: 320 for mobilenetv2_100.
        mean: Channel means the weights were trained with.
        std: Channel standard deviations the weights were trained with.
        frozen: Build no graph, because no gradient is wanted at the moment. Its parameters stay trainable.
        frozen_norms: How many batch-norms normalise by fixed statistics.
        recomputes: Keep few activations of a training pass, see [recompute][Backbone.recompute].

    Shape:
        - images: (B, 3, H, W)
        - returns: list of (B, C_l, ceil(H / stride_l), ceil(W / stride_l)); some networks floor

    Raises:
        UsageError: The name is unknown, the pretrained weights cannot be fetched, or there are fewer levels than shall be frozen.
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
    ) -> None:
        super().__init__()
        self.name = name
        self.model = _create(name, pretrained and weights is None, output_stride)
        config = self.model.pretrained_cfg
        self.mean: tuple[float, ...] = tuple(config.get("mean", IMAGENET_DEFAULT_MEAN))
        self.std: tuple[float, ...] = tuple(config.get("std", IMAGENET_DEFAULT_STD))
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
            _load_weights(self.model, Path(weights), name, full_keys)
        if freeze:
            self._freeze_levels(min(freeze, len(self.levels)))
        if freeze_norm != "none":
            self.freeze_statistics(affine=freeze_norm == "affine")

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
        config = self.model.pretrained_cfg
        size = config.get("input_size", (3, 224, 224)) if config.get("fixed_input_size") else (3, EXAMPLE_SIDE, EXAMPLE_SIDE)
        return next(self.model.parameters()).new_zeros(1, *size)

    def train(self, mode: bool = True) -> Backbone:
        """Training or evaluation mode, but for what stands still."""
        super().train(mode)
        for module in self._always_evaluating:
            module.training = False
        return self

    def forward(self, images: Tensor, depth: int | None = None) -> list[Tensor]:
        """Compute all levels, or the first `depth` of them, without running what lies deeper."""
        if self.frozen:
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
        return maps if self._reshaped else [*maps[:-1], final]


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


def _create(name: str, pretrained: bool, output_stride: int | None) -> Any:
    """Build a timm network whose input size is free."""
    if not timm.is_model(name):
        hint = did_you_mean(name.partition(".")[0], timm.list_models(), most=3) or "; timm.list_models() names them all"
        raise UsageError(f"backbone: timm knows no network '{name}'{hint}")
    finer: dict[str, Any] = {} if output_stride is None else {"output_stride": output_stride}
    model: Any
    try:
        try:
            # Vision transformers only; every other network refuses the arguments at once.
            model = timm.create_model(name, pretrained=pretrained, dynamic_img_size=True, dynamic_img_pad=True, **finer)
        except TypeError:
            model = timm.create_model(name, pretrained=pretrained, **finer)
    except Exception as error:
        if finer and isinstance(error, TypeError | AssertionError | NotImplementedError):
            raise UsageError(f"model.output_stride: timm cannot build '{name}' with a stride of {output_stride}") from error
        if not pretrained:
            raise
        # The hub's clients raise errors of their own families, so this cannot be narrower.
        raise UsageError(
            f"backbone: the pretrained weights of '{name}' could not be fetched ({type(error).__name__}); give a local file by "
            f"--model.backbone_weights PATH (.safetensors or .pth), or train from scratch by --model.pretrained false"
        ) from error
    if finer and model.feature_info[-1]["reduction"] != output_stride:
        raise UsageError(f"model.output_stride: timm builds '{name}' with strides of 8, 16 and 32, not {output_stride}")
    if not hasattr(model, "forward_intermediates") or not hasattr(model, "prune_intermediate_layers"):
        raise UsageError(f"backbone: timm's '{name}' gives no intermediate features; take another network")
    return model


def _load_weights(model: nn.Module, path: Path, name: str, full_keys: set[str]) -> None:
    """Load a file into a pruned network; what the full network has and the pruned one lacks may lie in the file."""
    state = read_weights(path)
    own = model.state_dict()
    # A counter that most exporters leave out; timm's networks do not use it.
    missing = sorted(key for key in set(own) - set(state) if not key.endswith("num_batches_tracked"))
    foreign = sorted(set(state) - set(own) - full_keys)
    shapes = sorted(key for key in set(own) & set(state) if own[key].shape != state[key].shape)
    for what, keys in (("lacks", missing), ("has unknown", foreign), ("has other shapes for", shapes)):
        if keys:
            raise CheckpointError(
                f"weights: {path} does not fit timm's '{name}': it {what} {len(keys)} tensors, e.g. {', '.join(keys[:3])}"
            )
    model.load_state_dict({key: state.get(key, own[key]) for key in own})
