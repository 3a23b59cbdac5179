"""What every network of the zoo returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class MethodOutput(NamedTuple):
    """The result of one forward pass.

    Shape:
        - logits: (B, K), the fused prediction, the one that is scored.
        - heads: name -> (B, K), every head that the loss sees.
        - attention: (B, S, h, w) in [0, 1], the maps of the pass from coarse to fine, each divided by its own maximum.
        - extra: name -> tensor, what else the loss needs of a training pass (a penalty, the maps of a distillation); empty in
          evaluation, so that exported programs return the three fields above.
    """

    logits: Tensor
    heads: dict[str, Tensor]
    attention: Tensor
    extra: dict[str, Tensor] = {}  # noqa: RUF012 - a NamedTuple's default; nobody writes into it
