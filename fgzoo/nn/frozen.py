"""Batch-norms whose statistics stand still, folded into the convolutions before them where that changes nothing.

A network that is fine-tuned from few images keeps more of its pretraining when its batch-norms go on normalising by the
statistics that they were trained with. Such a batch-norm is an affine map of each channel, so that a convolution before it can
do its work: weights w s and bias b - m s with s = g / sqrt(v + eps), where m and v are the statistics, g and b what is learnt.
Gradients reach w, g and b through these products, the same ones up to rounding. On a CPU that takes a quarter off a training
step, and the memory of one activation a layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from timm.layers.conv2d_same import Conv2dSame, conv2d_same
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


class FrozenBatchNorm(nn.Module):
    """A batch-norm that always normalises by its running statistics, whatever the mode; nothing can move them.

    Tensors have the names of the batch-norm's, so that checkpoints fit either. It is no torch batch-norm: what looks for those
    (synchronisation between devices, averaging of statistics, momenta) passes it by.

    Args:
        norm: The batch-norm, whose tensors it takes over; of timm's that include an activation, this too.
        affine: Whether scale and shift are learnt.

    Attributes:
        folded: The convolution before it has done its work; what is left is the activation.

    Shape:
        - x: (B, C, ...), returned in its shape
    """

    running_mean: Tensor
    running_var: Tensor
    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, norm: _BatchNorm, affine: bool = True) -> None:
        super().__init__()
        self.eps = norm.eps
        self.folded = False
        self.register_parameter("weight", norm.weight)
        self.register_parameter("bias", norm.bias)
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        if isinstance(norm, BatchNormAct2d):
            self.drop, self.act = norm.drop, norm.act
        else:
            self.drop, self.act = nn.Identity(), nn.Identity()
        for parameter in self.parameters(recurse=False):
            parameter.requires_grad_(affine)
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, and activate where the batch-norm did."""
        if not self.folded:
            x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return self.act(self.drop(x))

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{len(self.running_mean)}, eps={self.eps}, folded={self.folded}"


def folded_weights(conv: nn.Conv2d, norm: FrozenBatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that does both, with gradients to what is learnt of either."""
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    return conv.weight * scale[:, None, None, None], shift


class FoldedConv2d(nn.Conv2d):
    """A convolution that also does what the frozen batch-norm after it did."""

    #: In a tuple, so that it is not a child: it stays where it was in the network.
    norm: tuple[FrozenBatchNorm]

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Convolve and normalise."""
        return self._conv_forward(input, *folded_weights(self, self.norm[0]))


class FoldedConv2dSame(Conv2dSame):
    """The same for timm's convolutions that pad as TensorFlow does."""

    norm: tuple[FrozenBatchNorm]

    def forward(self, x: Tensor) -> Tensor:
        """Pad, convolve and normalise."""
        weight, bias = folded_weights(self, self.norm[0])
        return conv2d_same(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)  # type: ignore[arg-type]


#: By exact type: a subclass may compute something else.
FOLDABLE: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: FoldedConv2d, Conv2dSame: FoldedConv2dSame}


def freeze_batch_norms(model: nn.Module, affine: bool = True, inside: set[nn.Module] | None = None) -> int:
    """Replace batch-norms by frozen ones.

    Args:
        model: The network, changed in place.
        affine: Whether their scale and shift are learnt.
        inside: Only those among these modules; by default all.

    Returns:
        How many were replaced or had been before.
    """
    frozen: dict[nn.Module, FrozenBatchNorm] = {}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, FrozenBatchNorm):
                frozen[child] = child
            elif isinstance(child, _BatchNorm) and child.track_running_stats and (inside is None or child in inside):
                # One that stands in several places stays one.
                frozen.setdefault(child, FrozenBatchNorm(child, affine))
                parent._modules[name] = frozen[child]
    return len(set(frozen.values()))


def fold_batch_norms(model: nn.Module, run: Callable[[], Any]) -> int:
    """Let convolutions do the work of the frozen batch-norms that alone read them.

    Which these are is found by running the network once and watching which tensor goes where, so it works for any architecture.

    Args:
        model: The network, changed in place; its state dict keeps its keys.
        run: Runs it once, in evaluation mode, through everything that may ever run.

    Returns:
        How many pairs were folded.
    """
    pairs = _pairs(model, run)
    for conv, norm in pairs:
        conv.__class__ = FOLDABLE[type(conv)]  # as torch's own parametrizations do it: the module keeps its place and its tensors
        conv.__dict__["norm"] = (norm,)
        norm.folded = True
    return len(pairs)


def _pairs(model: nn.Module, run: Callable[[], Any]) -> list[tuple[nn.Module, FrozenBatchNorm]]:
    """Convolutions and the frozen batch-norms that alone read what they give, each of which runs exactly once."""
    watch = _Watch()
    with contextlib.ExitStack() as hooks:
        for module in model.modules():
            if type(module) in FOLDABLE:
                hooks.enter_context(module.register_forward_hook(watch.convolved))
            elif isinstance(module, FrozenBatchNorm) and not module.folded:
                hooks.enter_context(module.register_forward_pre_hook(watch.normalises))
                hooks.enter_context(module.register_forward_hook(watch.normalised))
        with torch.no_grad(), watch:
            watch.read(run())
    once = [pair for pair in watch.pairs if watch.calls[pair[0]] == 1 == watch.calls[pair[1]]]
    return [(conv, norm) for conv, norm in once if not watch.read_elsewhere & {id(watch.given[conv])}]


class _Watch(TorchFunctionMode):
    """Notes what reads the outputs of convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[nn.Module, Tensor] = {}  # keeps the tensors alive, so that an id means one of them
        self.makers: dict[int, nn.Module] = {}
        self.calls: dict[nn.Module, int] = {}
        self.pairs: list[tuple[nn.Module, FrozenBatchNorm]] = []
        self.read_elsewhere: set[int] = set()
        self.normalising = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Asking for a shape or a dtype reads no number.
        if not self.normalising and getattr(func, "__name__", "") not in ("__get__", "size", "dim"):
            self.read((args, kwargs))
        return func(*args, **(kwargs or {}))

    def read(self, what: Any) -> None:
        self.read_elsewhere |= {id(x) for x in tree_leaves(what) if id(x) in self.makers}

    def convolved(self, conv: nn.Module, _: Any, output: Tensor) -> None:
        self.calls[conv] = self.calls.get(conv, 0) + 1
        self.given[conv] = output
        self.makers[id(output)] = conv

    def normalises(self, norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.calls[norm] = self.calls.get(norm, 0) + 1
        maker = self.makers.get(id(args[0]))
        if maker is not None:
            assert isinstance(norm, FrozenBatchNorm)
            self.pairs.append((maker, norm))
        self.normalising = True

    def normalised(self, *_: Any) -> None:
        self.normalising = False
