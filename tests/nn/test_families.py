"""What can be asked of a backbone, on every family of timm's networks: it works, or is refused by name."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from fgzoo.errors import UsageError
from fgzoo.nn import Backbone
from fgzoo.nn.low_rank import LowRankLinear, merge_low_rank
from tests.families import ATTENTIVE, FAMILIES, FIXED

#: Those whose last stage timm can build without a stride.
DILATED = {"resnet", "resnext", "regnet", "efficientnet", "efficientnet_lite", "mobilenetv2", "convnext", "convnextv2"}
#: Fixed ones that timm makes for another size.
RESIZABLE = {"beit", "maxvit", "coatnet"}
IMAGES = torch.Generator().manual_seed(0)

every_family = pytest.mark.parametrize("family", FAMILIES)


def make(family: str, **arguments: Any) -> Backbone:
    torch.manual_seed(0)
    return Backbone(FAMILIES[family], pretrained=False, **arguments)


def images(height: int = 64, width: int = 64) -> Tensor:
    return torch.randn(2, 3, height, width, generator=IMAGES.manual_seed(0))


def loss_of(maps: list[Tensor]) -> Tensor:
    return torch.stack([level.square().mean() for level in maps]).sum()


def with_gradient(backbone: Backbone) -> set[str]:
    return {name for name, p in backbone.named_parameters() if p.grad is not None and bool(p.grad.any())}


@every_family
def test_levels_are_maps_of_any_image(family: str) -> None:
    backbone = make(family).eval()
    assert (backbone.size is not None) == (family in FIXED)
    for height, width in ((64, 64), (96, 64), (97, 65), (40, 20)):
        maps = backbone(images(height, width))
        assert [(level.channels, 4) for level in backbone.levels] == [(level.shape[1], level.ndim) for level in maps]
        assert all(level.isfinite().all() for level in maps)


@every_family
def test_frozen_levels_learn_nothing_and_the_others_do(family: str) -> None:
    backbone = make(family, freeze=1).train()
    still = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    before = backbone.eval()(images(), depth=1)[0]
    loss_of(backbone.train()(images())).backward()
    assert still
    assert with_gradient(backbone)
    assert not still & with_gradient(backbone)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            # All levels of a vision transformer pass its final norm, which learns.
            if parameter.requires_grad and not name.startswith("model.norm."):
                parameter.add_(1.0)
    torch.testing.assert_close(backbone.eval()(images(), depth=1)[0], before)


@every_family
def test_statistics_that_are_frozen_do_not_move(family: str) -> None:
    backbone = make(family, freeze_norm="statistics").train()
    buffers = {name: value.clone() for name, value in backbone.named_buffers()}
    loss_of(backbone(images())).backward()
    assert with_gradient(backbone)
    assert all(torch.equal(value, buffers[name]) for name, value in backbone.named_buffers())


@every_family
def test_a_finer_last_level_is_built_or_refused_by_name(family: str) -> None:
    if family not in DILATED:
        with pytest.raises(UsageError, match=rf"model\.output_stride: timm .*'{re.escape(FAMILIES[family])}'"):
            make(family, output_stride=16)
        return
    backbone = make(family, output_stride=16)
    assert backbone.levels[-1].stride == 16
    assert backbone(images())[-1].shape[2:] == (4, 4)


@every_family
def test_recomputing_gives_the_same_gradients(family: str) -> None:
    found = []
    for recomputes in (False, True):
        backbone = make(family).train()
        if recomputes:
            backbone.recompute()
        torch.manual_seed(1)
        loss_of(backbone(images())).backward()
        found.append({name: p.grad for name, p in backbone.named_parameters() if p.grad is not None})
    torch.testing.assert_close(found[1], found[0])


@every_family
def test_a_frozen_backbone_hands_a_gradient_on_to_images(family: str) -> None:
    backbone = make(family, backbone_tuning="frozen").train()
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    shown = images().requires_grad_()
    loss_of(backbone(shown)).backward()
    assert shown.grad.isfinite().all()
    assert shown.grad.any()
    assert not with_gradient(backbone)
    torch.testing.assert_close(backbone(images()), backbone.eval()(images()))
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())


@every_family
def test_low_rank_learns_beside_attention_alone_or_is_refused_by_name(family: str) -> None:
    if family not in ATTENTIVE:
        with pytest.raises(UsageError, match=rf"model\.backbone_tuning: 'lora' .*'{re.escape(FAMILIES[family])}'"):
            make(family, backbone_tuning="lora")
        return
    plain, adapted = make(family).eval(), make(family, backbone_tuning="lora", lora_rank=2).eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            if not parameter.any():  # branches that begin at zero, behind which nothing learns
                parameter.fill_(0.5)
    adapted.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(adapted(images()), plain(images()))
    state = {name: value.clone() for name, value in adapted.state_dict().items()}
    loss_of(adapted.train()(images())).backward()
    assert all(torch.equal(value, state[name]) for name, value in adapted.eval().state_dict().items())
    learns = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert learns == {name for name in dict(adapted.named_parameters()) if name.endswith((".lora_a", ".lora_b"))}
    # B is zero at the start, so that A has no gradient yet; every B has one, however timm's attention reads its weights.
    assert with_gradient(adapted) == {name for name in learns if name.endswith(".lora_b")}
    with torch.no_grad():
        for layer in adapted.modules():
            if isinstance(layer, LowRankLinear):
                layer.lora_b.normal_(std=0.1)
    expected = adapted(images())
    assert not torch.allclose(expected[-1], plain(images())[-1])
    assert merge_low_rank(adapted.model) == len(learns) // 2
    torch.testing.assert_close(adapted(images()), expected)
    assert set(adapted.state_dict()) == set(plain.state_dict())


@pytest.mark.parametrize("family", sorted(FIXED))
def test_networks_of_a_single_size_are_made_for_another_or_refused_by_name(family: str) -> None:
    if family not in RESIZABLE:
        with pytest.raises(
            UsageError, match=r"model\.backbone_size: timm cannot make 'tiny_hiera' for 128 pixels; its own .* 64"
        ):
            make(family, backbone_size=128)
        return
    backbone = make(family, backbone_size=128).eval()
    assert backbone.size == (128, 128)
    last = backbone(images(80, 80))[-1]
    assert last.shape[2:] == (128 // backbone.levels[-1].stride,) * 2
    again = make(family, backbone_size=128)
    again.load_state_dict(backbone.state_dict())
    torch.testing.assert_close(again.eval()(images(80, 80))[-1], last)


def test_a_size_between_two_grids_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"model\.backbone_size: timm cannot make 'tiny_maxvit' for 100 pixels"):
        make("maxvit", backbone_size=100)
