"""Logits, features, maps and Grad-CAM of the same images ask for the same passes of backbones; here each is computed once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from fgzoo.nn.backbone import Backbone


@contextmanager
def shared_passes(network: nn.Module, traced: bool = False) -> Iterator[None]:
    """For a while, every backbone in evaluation mode answers images that it has seen with what it computed then.

    The same images are those that are equal, whoever made them: a crop that is cut a second time passes once. A pass through
    which a gradient is to reach the images is computed with its graph, as ever; no other builds one, so weights get no gradients.

    Args:
        network: Any network; afterwards its backbones are as they were, and what they computed is forgotten.
        traced: The network is being traced, where no values are known: the same images are those of one tensor.
    """
    with ExitStack() as restored:
        for backbone in {module for module in network.modules() if isinstance(module, Backbone)}:
            backbone.forward = _Remembering(backbone, traced)  # type: ignore[method-assign]
            restored.callback(delattr, backbone, "forward")
        yield


class _Remembering:
    """A backbone's forward pass, and what it gave."""

    def __init__(self, backbone: Backbone, traced: bool) -> None:
        self.compute = backbone.forward
        self.traced = traced
        self.known: list[tuple[Tensor, int | None, list[Tensor]]] = []

    def __call__(self, images: Tensor, depth: int | None = None) -> list[Tensor]:
        """The levels of [Backbone][fgzoo.nn.backbone.Backbone.forward], which the caller may write into."""
        graph = torch.is_grad_enabled() and images.requires_grad
        for seen, its_depth, maps in () if graph else self.known:
            if its_depth == depth and self._are_same(seen, images):
                return [level.clone() for level in maps]
        with torch.set_grad_enabled(graph):
            maps = self.compute(images, depth)
        seen = images if self.traced else images.detach().clone()
        self.known.append((seen, depth, [level.detach().clone() for level in maps]))
        return maps

    def _are_same(self, seen: Tensor, images: Tensor) -> bool:
        if self.traced:
            return seen is images
        return seen.shape == images.shape and torch.equal(seen, images)
