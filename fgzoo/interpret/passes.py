"""Logits, maps and Grad-CAM of the same images ask for the same passes through the backbones; here each is computed once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from fgzoo.nn.backbone import Backbone


@contextmanager
def shared_passes(network: nn.Module) -> Iterator[None]:
    """For a while, every backbone in evaluation mode answers images that it has seen with what it computed then.

    The same images are those that are equal, whoever made them: a crop that is cut a second time passes once. Where a gradient
    is to reach the images themselves, the pass is computed with its graph, as ever; no other pass builds one, so weights get no
    gradients here.

    Args:
        network: Any network; afterwards its backbones are as they were, and what they computed is forgotten.
    """
    with ExitStack() as restored:
        for backbone in {module for module in network.modules() if isinstance(module, Backbone)}:
            backbone.forward = _Remembering(backbone)  # type: ignore[method-assign]
            restored.callback(delattr, backbone, "forward")
        yield


class _Remembering:
    """A backbone's forward pass, and what it gave."""

    def __init__(self, backbone: Backbone) -> None:
        self.compute = backbone.forward
        self.known: list[tuple[Tensor, int | None, list[Tensor]]] = []

    def __call__(self, images: Tensor, depth: int | None = None) -> list[Tensor]:
        """The levels of [Backbone][fgzoo.nn.backbone.Backbone.forward], which the caller may write into."""
        if torch.is_grad_enabled() and images.requires_grad:
            return self.compute(images, depth)
        for seen, its_depth, maps in self.known:
            if its_depth == depth and seen.shape == images.shape and torch.equal(seen, images):
                return [level.clone() for level in maps]
        with torch.no_grad():
            self.known.append((images.clone(), depth, self.compute(images, depth)))
        return [level.clone() for level in self.known[-1][2]]
