"""What `check_method` says of methods that do not keep the contract, each in another way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fgzoo import MethodOutput
from fgzoo.errors import UsageError
from fgzoo.methods.baseline import Baseline, BaselineNetwork
from fgzoo.methods.training_stages import TrainingStage
from fgzoo.testing import check_method
from tests.training.toys import make


class DrawnHead(Baseline):
    """A head that only training reads, and that follows the generator."""

    def __call__(self, *given: Any, **named: Any) -> Any:
        output = super().__call__(*given, **named)
        if not self.training:
            return output
        return output._replace(heads={**output.heads, "drawn": output.logits * torch.rand_like(output.logits)})


class MapOfABatch(Baseline):
    """Maps normalised over the whole batch."""

    def explain(self, images: Tensor, classes: Tensor | None = None) -> Tensor:
        """Of the sum of the pixels."""
        maps = images.abs().sum(dim=1, keepdim=True)
        return maps / maps.max()


class UnmappedNetwork(BaselineNetwork):
    """The baseline's, without its map."""

    def forward(self, images: Tensor, targets: Tensor | None = None, keys: Tensor | None = None) -> MethodOutput:
        """Classify."""
        output = super().forward(images, targets, keys)
        return output._replace(attention=output.attention[:, :0])


class Unmapped(Baseline):
    """A method that shows nothing, which the contract allows."""

    def build_network(self) -> nn.Module:
        """Its own."""
        return self.build(UnmappedNetwork, backbone=self.make_backbone())


class LossOfNothing(Baseline):
    """A loss of a head that is not there."""

    def loss(self, output: MethodOutput, targets: Tensor) -> dict[str, Tensor]:
        """Fails."""
        return {"nope": output.heads["nope"].mean()}


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (DrawnHead, "DrawnHead .* fails keys_decide: drawn differ by"),
        (MapOfABatch, "MapOfABatch .* fails batch_independence: maps of explain differ by"),
        (LossOfNothing, "LossOfNothing .* fails finite: KeyError: 'nope'"),
    ],
)
def test_the_check_that_fails_is_named(method: type[Baseline], said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_method(method)


def test_a_rate_of_no_parameter_group_is_refused() -> None:
    class Misspelt(Baseline):
        def stages(self) -> tuple[TrainingStage, ...]:
            return TrainingStage("warm", 0.5, {"backbon": 0.0}), TrainingStage("all", 0.5)

    with pytest.raises(UsageError, match="stage 'warm' has a rate for backbon; parameter groups are backbone, new"):
        make(Misspelt)


def test_a_rate_of_no_part_of_the_network_is_refused() -> None:
    class Misspelt(Baseline):
        def learning_rates(self) -> dict[str, float]:
            return {**super().learning_rates(), "classifer": 2.0}

    with pytest.raises(UsageError, match=r"a rate for 'classifer', .* no submodule of the network; did you mean 'classifier'"):
        make(Misspelt)


def test_a_rate_inside_of_what_a_stage_freezes_is_refused() -> None:
    class Nested(Baseline):
        def learning_rates(self) -> dict[str, float]:
            return {**super().learning_rates(), "backbone.model.conv_head": 1.0}

        def stages(self) -> tuple[TrainingStage, ...]:
            return TrainingStage("warm", 0.5, {"backbone": 0.0}), TrainingStage("all", 0.5)

    with pytest.raises(UsageError, match=r"a stage freezes 'backbone', and 'backbone\.model\.conv_head' in it has a rate"):
        make(Nested)


def test_a_network_without_maps_passes() -> None:
    check_method(Unmapped)
