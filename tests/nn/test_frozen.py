"""Backbones that keep their batch statistics, or their lowest levels."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import tests.small  # noqa: F401 - registers tiny_vgg
from fgzoo.errors import UsageError
from fgzoo.nn import Backbone
from fgzoo.nn.frozen import FrozenBatchNorm, fold_batch_norms, freeze_batch_norms


def pretend_pretrained(module: nn.Module, seed: int = 0) -> None:
    """Statistics and affine parameters as after some training."""
    generator = torch.Generator().manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, _BatchNorm | FrozenBatchNorm):
            for tensor, low, high in ((norm.running_mean, -0.5, 0.5), (norm.running_var, 0.5, 2.0), (norm.bias, -0.5, 0.5)):
                tensor.data.uniform_(low, high, generator=generator)  # type: ignore[union-attr]
            norm.weight.data.uniform_(0.5, 1.5, generator=generator)


def both(name: str, **arguments: object) -> tuple[Backbone, Backbone]:
    """A backbone as it is, and the same weights frozen as asked."""
    torch.manual_seed(0)
    plain = Backbone(name, pretrained=False).double()
    pretend_pretrained(plain)
    frozen = Backbone(name, pretrained=False, **arguments).double()  # type: ignore[arg-type]
    frozen.load_state_dict(plain.state_dict())
    return plain, frozen


def images(size: int = 64, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def gradients(backbone: Backbone, depth: int | None = None) -> dict[str, Tensor]:
    torch.stack([level.square().mean() for level in backbone(images(), depth)]).sum().backward()
    return {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "mobilenetv2_100", "tf_efficientnet_lite0", "resnetv2_50"])
def test_frozen_norms_are_those_of_evaluation_in_values_and_gradients(name: str) -> None:
    # The oracle: torch's own batch-norms in evaluation mode, after every convolution.
    plain, frozen = both(name, freeze_norm="statistics")
    for expected, found in zip(plain.eval()(images()), frozen.train()(images()), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradients(frozen), gradients(plain), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["test_efficientnet", "tf_efficientnet_lite0"])
def test_most_norms_are_folded(name: str) -> None:
    backbone = Backbone(name, pretrained=False, freeze_norm="statistics")
    norms = [module for module in backbone.modules() if isinstance(module, FrozenBatchNorm)]
    assert backbone.frozen_norms == len(norms) == sum(norm.folded for norm in norms)


def test_a_norm_whose_convolution_something_else_reads_is_not_folded() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            self.other, self.after = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
            self.given, self.last = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            raw = self.conv(x)
            x = self.norm(raw) + raw  # a shortcut round the norm
            x = self.after(self.other(x))
            raw = self.given(x)
            return self.last(raw), raw  # an answer of its own

    model = Shared().eval()
    pretend_pretrained(model)
    x = torch.randn(2, 3, 4, 4)
    expected = model(x)
    assert freeze_batch_norms(model) == 3
    assert fold_batch_norms(model, lambda: model(x)) == 1
    assert model.after.folded
    torch.testing.assert_close(model(x), expected)


def test_a_norm_that_runs_twice_is_not_folded() -> None:
    norm = nn.BatchNorm2d(3)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), norm, nn.Conv2d(3, 3, 1), norm).eval()
    freeze_batch_norms(model)
    assert fold_batch_norms(model, lambda: model(torch.randn(1, 3, 4, 4))) == 0


def test_training_moves_no_statistic() -> None:
    backbone = Backbone("test_efficientnet", pretrained=False, freeze_norm="statistics").train()
    before = {key: value.clone() for key, value in backbone.named_buffers()}
    torch.stack([level.mean() for level in backbone(torch.randn(2, 3, 64, 64))]).sum().backward()
    assert before
    torch.testing.assert_close(dict(backbone.named_buffers()), before, rtol=0, atol=0)


@pytest.mark.parametrize(("freeze_norm", "learns"), [("statistics", True), ("affine", False)])
def test_affine_parameters_learn_unless_they_are_frozen_too(freeze_norm: str, learns: bool) -> None:
    backbone = Backbone("test_efficientnet", pretrained=False, freeze_norm=freeze_norm)  # type: ignore[arg-type]
    norms = [module for module in backbone.modules() if isinstance(module, FrozenBatchNorm)]
    assert all(p.requires_grad is learns for norm in norms for p in norm.parameters(recurse=False))
    assert all(module.weight.requires_grad for module in backbone.modules() if isinstance(module, nn.Conv2d))


def test_a_checkpoint_fits_with_and_without_freezing() -> None:
    plain, frozen = both("test_efficientnet", freeze_norm="statistics", freeze=2)
    assert set(plain.state_dict()) == set(frozen.state_dict())
    again = Backbone("test_efficientnet", pretrained=False).double()
    again.load_state_dict(frozen.state_dict())
    torch.testing.assert_close(again.eval()(images())[-1], frozen.eval()(images())[-1])


def test_a_copy_folds_its_own_norms() -> None:
    backbone = Backbone("test_efficientnet", pretrained=False, freeze_norm="statistics")
    twin = copy.deepcopy(backbone)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    x = torch.randn(1, 3, 64, 64)
    assert twin(x)[-1].abs().max() == 0
    assert backbone(x)[-1].abs().max() > 0


# ---------------------------------------------------------------------- lowest levels


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "tiny_vgg", "test_convnext", "test_vit"])
@pytest.mark.parametrize("freeze", [1, 2])
def test_frozen_levels_are_those_that_the_gradient_of_a_level_reaches(name: str, freeze: int) -> None:
    # The oracle: what a backward pass of the plain network from the last frozen level gives a gradient. A final norm belongs
    # to no level, though token networks apply it to each.
    plain, frozen = both(name, freeze=freeze)
    below = set(gradients(plain.eval(), depth=freeze)) - {"model.norm.weight", "model.norm.bias"}
    still = {key for key, parameter in frozen.named_parameters() if not parameter.requires_grad}
    assert below
    assert still == below


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit"])
def test_frozen_levels_build_no_graph_and_the_others_learn(name: str) -> None:
    backbone = Backbone(name, pretrained=False, freeze=2).train()
    maps = backbone(torch.randn(2, 3, 64, 64))
    if name != "test_vit":  # whose final norm learns, and makes a map of every level
        assert [level.requires_grad for level in maps[:3]] == [False, False, True]
    maps[-1].sum().backward()
    assert all((p.grad is not None) is p.requires_grad for p in backbone.parameters())


def test_a_gradient_reaches_the_image_through_frozen_levels() -> None:
    # A mask that another part of a method has made learns through the whole network.
    x = torch.randn(1, 3, 64, 64, requires_grad=True)
    Backbone("test_efficientnet", pretrained=False, freeze=2).train()(x)[-1].sum().backward()
    assert x.grad.abs().max() > 0


def test_frozen_levels_stay_in_evaluation_mode() -> None:
    backbone = Backbone("test_efficientnet", pretrained=False, freeze=2)
    x = torch.randn(2, 3, 64, 64)
    lowest = backbone.eval()(x)[:2]
    assert all(torch.equal(one, other) for one, other in zip(backbone.train()(x)[:2], lowest, strict=True))
    assert any(isinstance(module, _BatchNorm) and module.training for module in backbone.modules())


def test_everything_can_be_frozen() -> None:
    backbone = Backbone("mobilenetv2_100", pretrained=False, freeze=5).train()
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(isinstance(module, _BatchNorm) for module in backbone.modules())


def test_a_cut_network_freezes_at_most_what_is_left() -> None:
    backbone = Backbone("test_efficientnet", pretrained=False, max_stride=8, freeze=5)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize("freeze", [-1, 6])
def test_more_levels_than_there_are_cannot_be_frozen(freeze: int) -> None:
    with pytest.raises(UsageError, match=rf"model\.freeze: {freeze}; 'test_efficientnet' has 5 levels"):
        Backbone("test_efficientnet", pretrained=False, freeze=freeze)


def test_building_a_frozen_backbone_moves_nothing_of_it(tmp_path: Path) -> None:
    plain = Backbone("test_efficientnet", pretrained=False)
    state = {f"model.{key}": value for key, value in plain.model.state_dict().items()}
    weights = tmp_path / "timm.pth"
    torch.save(plain.model.state_dict(), weights)
    frozen = Backbone("test_efficientnet", weights=weights, freeze=2, freeze_norm="affine")
    assert all(torch.equal(value, state[key]) for key, value in frozen.state_dict().items())
