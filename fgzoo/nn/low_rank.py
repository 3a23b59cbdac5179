"""LoRA: a network whose weights stand still learns sums of low rank beside some of them.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv 2106.09685: W + (alpha / r) B A with A (r, in)
drawn and B (out, r) zero at the start, so that the network begins as it was; in the attention's projections alone. Here alpha is
r, so that a rate means the same at every rank.

The sum stands where the weight stood: several of timm's attentions (BEiT, EVA, Swin v2) read `qkv.weight` themselves instead of
calling the layer, and would pass by a wrapper round it.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

#: What timm calls the projections of its attentions.
PROJECTIONS = frozenset({"qkv", "q", "k", "v", "kv", "q_proj", "k_proj", "v_proj", "proj", "out_proj"})


class LowRankLinear(nn.Linear):
    """A linear layer whose weight is the sum of one that stands still and one of low rank that learns.

    Its state dict has the linear layer's names, and `lora_a` (r, in) and `lora_b` (out, r).
    """

    lora_a: Tensor
    lora_b: Tensor

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """W + B A."""
        return self._parameters["weight"] + self.lora_b @ self.lora_a  # type: ignore[operator]

    def reset_parameters(self) -> None:
        """As torch initialises a linear layer; the sum of low rank begins at zero, as the authors' code has it."""
        whole = self._parameters["weight"]
        assert whole is not None
        nn.init.kaiming_uniform_(whole, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features)
            nn.init.uniform_(self.bias, -bound, bound)
        self.reset_low_rank()

    def reset_low_rank(self) -> None:
        """A as torch initialises a linear layer, B zero."""
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        nn.init.zeros_(self.lora_b)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{super().extra_repr()}, rank={len(self.lora_a)}"


def add_low_rank(model: nn.Module, rank: int) -> int:
    """Let the projections of a network's attentions learn a sum of low rank; every other parameter stands still.

    Args:
        model: The network, changed in place; what it computes stays the same. Projections that stand still already stay so.
        rank: r.

    Returns:
        How many layers learn.
    """
    layers = [
        module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and name.rpartition(".")[2] in PROJECTIONS and "attn" in name and module.weight.requires_grad
    ]
    model.requires_grad_(False)
    for layer in layers:
        like = layer.weight
        layer.__class__ = LowRankLinear
        layer.register_parameter("lora_a", nn.Parameter(like.new_empty(rank, layer.in_features)))
        layer.register_parameter("lora_b", nn.Parameter(like.new_empty(layer.out_features, rank)))
        cast(LowRankLinear, layer).reset_low_rank()
    return len(layers)


def merge_low_rank(model: nn.Module) -> int:
    """Add what was learnt to the weights, so that plain linear layers are left which compute the same.

    Args:
        model: A network, changed in place.

    Returns:
        How many layers there were.
    """
    layers = [module for module in model.modules() if isinstance(module, LowRankLinear)]
    for layer in layers:
        with torch.no_grad():
            layer._parameters["weight"].copy_(layer.weight)  # type: ignore[union-attr]
        del layer.lora_a, layer.lora_b
        layer.__class__ = nn.Linear  # type: ignore[assignment]
    return len(layers)
