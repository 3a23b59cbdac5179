"""Arguments by name: what a constructor was given is what a network is built from, whatever classes lie between."""

from __future__ import annotations

import re
from typing import Any, Literal

import pytest
from torch import nn

from fgzoo import create_model
from fgzoo.checkpoints.loading import class_dependent
from fgzoo.errors import UsageError
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


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("baseline", {"optimizer": "SGD"}, "model.optimizer: 'SGD' is none of sgd, adamw"),
        ("baseline", {"schedule": "linear"}, "model.schedule: 'linear' is none of cosine, step, one_cycle, constant"),
        ("bcnn", {"combine": "concatenate"}, "model.combine: 'concatenate' is none of bilinear, concat"),
        ("rra", {"patches": "centre"}, "model.patches: 'centre' is none of activation, center, random, file"),
        ("srbn", {"directions": 2}, "model.directions: '2' is none of 1, 4"),
        ("baseline", {"clip_norm": 0}, "model.clip_norm: 0 would take every gradient away"),
        ("baseline", {"weight_decay": -1.0}, "model.weight_decay: -1.0 is not in [0, inf)"),
        ("baseline", {"layer_decay": 0.0}, "model.layer_decay: 0.0 is not in (0, 1]"),
        ("baseline", {"warmup_epochs": -1}, "model.warmup_epochs: -1 is not in [0, inf)"),
        ("baseline", {"lr": float("nan")}, "model.lr: nan is not in [0, inf)"),
        ("baseline", {"ema_decay": 1.0}, "model.ema_decay: 1.0 is not in [0, 1)"),
        ("baseline", {"dropout": 1.0}, "model.dropout: 1.0 is not in [0, 1)"),
        ("coarse2fine", {"mask_weight": -0.1}, "model.mask_weight: -0.1 is not in [0, inf)"),
    ],
)
def test_values_that_no_argument_has_are_refused(name: str, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        create_model(name, 3, **TINY, **arguments)


def test_choices_of_a_subclass_are_checked_too() -> None:
    class Pooled(Baseline):
        def __init__(self, num_classes: int, pool: Literal["mean", "max"] = "mean", **others: Any) -> None:
            super().__init__(num_classes, **others)

    assert Pooled(3, "max", **TINY).arguments.pool == "max"
    with pytest.raises(UsageError, match=r"model\.pool: 'sum' is none of mean, max"):
        Pooled(3, "sum", **TINY)


def test_an_annotation_that_cannot_be_read_switches_off_no_other() -> None:
    class Pooled(Baseline):
        def __init__(self, num_classes: int, pool: Literal["mean", "max"] | None = None, prior: Any = 0, **others: Any) -> None:
            super().__init__(num_classes, **others)

    for annotation in ("torch.Nothing", "no name", "Unknown", "Any.nothing"):
        Pooled.__init__.__annotations__["prior"] = annotation
        assert Pooled(3, **TINY).arguments.pool is None
        with pytest.raises(UsageError, match=r"model\.pool: 'sum' is none of mean, max"):
            Pooled(3, "sum", **TINY)


class HandsOn(Baseline):
    """A subclass that hands on what it does not know by place."""

    def __init__(self, num_classes: int, *given: Any, focus: float = 2.0, **named: Any) -> None:
        super().__init__(num_classes, *given, **named)


class HandsOnAgain(HandsOn):
    """And one of that, whose arguments are all handed on."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)


@pytest.mark.parametrize("cls", [HandsOn, HandsOnAgain])
@pytest.mark.parametrize("given", [(3, "test_efficientnet", False), (3,)])
def test_what_is_handed_on_by_place_makes_the_model_anew(cls: type[Baseline], given: tuple[Any, ...]) -> None:
    named = {"lr": 0.5} | ({} if len(given) > 1 else {"backbone": "test_efficientnet", "pretrained": False})
    model = cls(*given, **named)
    again = cls(**model.hparams)
    assert dict(again.hparams) == dict(model.hparams)
    assert (again.hparams["backbone"], again.hparams["lr"], again.num_classes) == ("test_efficientnet", 0.5, 3)
    assert "given" not in again.hparams
