"""Arguments by name: what a constructor was given is what a network is built from, whatever classes lie between."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from fgzoo.checkpoints.loading import class_dependent
from fgzoo.methods.baseline import Baseline
from fgzoo.methods.rra import RRA

TINY: dict[str, Any] = {"backbone": "test_efficientnet", "pretrained": False}


class FourSteps(RRA):
    """A method whose author has decided on two of its arguments, and added one."""

    def __init__(self, num_classes: int, width: int = 8, **others: Any) -> None:
        super().__init__(num_classes, **{**TINY, "global_width": 8, **others}, steps=4, hidden_size=2 * width, lr=0.5)


def test_a_network_is_built_from_what_a_subclass_fixes() -> None:
    stream = FourSteps(5, fusion_weight=0.25).network.local_stream
    assert stream.steps == 4
    assert stream.classifier.in_features == 16


def test_arguments_are_known_by_name_with_their_defaults() -> None:
    given = FourSteps(5, fusion_weight=0.25).arguments
    assert (given.width, given.steps, given.lr, given.fusion_weight) == (8, 4, 0.5, 0.25)
    assert (given.momentum, given.patches) == (0.9, "activation")


def test_hparams_hold_what_makes_the_model_anew() -> None:
    model = FourSteps(5, fusion_weight=0.25)
    assert dict(model.hparams) == {"num_classes": 5, "width": 8, "fusion_weight": 0.25}
    assert "network.global_stream.classifier.weight" in class_dependent(model)  # which makes another one


def test_a_model_made_inside_another_ones_constructor_has_arguments_of_its_own() -> None:
    class Pair(Baseline):
        def __init__(self, num_classes: int) -> None:
            self.inner = (Baseline(num_classes, **TINY, dropout=0.5),)
            super().__init__(num_classes, **TINY)

    model = Pair(3)
    assert (model.arguments.dropout, model.inner[0].arguments.dropout) == (0.0, 0.5)


def test_what_a_network_takes_and_nobody_gives_is_named() -> None:
    class Needy(nn.Module):
        def __init__(self, num_classes: int, momentum: float, colour: str) -> None:
            super().__init__()

    with pytest.raises(TypeError, match="colour"):
        Baseline(3, **TINY).build(Needy)
