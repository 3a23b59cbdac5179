"""Any timm network as feature maps."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import tests.small  # noqa: F401 - registers tiny_vgg
from fgzoo.errors import CheckpointError, UsageError
from fgzoo.nn import Backbone
from fgzoo.nn.birds_resnet import WEIGHTS
from tests.builders import Bomb

FAMILIES = ("test_resnet", "tiny_vgg", "test_efficientnet", "test_convnext", "test_vit")


@pytest.mark.parametrize("name", FAMILIES)
def test_levels_are_what_forward_returns(name: str) -> None:
    backbone = Backbone(name, pretrained=False)
    for level, maps in zip(backbone.levels, backbone(torch.randn(1, 3, 96, 64)), strict=True):
        assert maps.shape[1] == level.channels
        assert maps.shape[2:] == (96 // level.stride, 64 // level.stride)


@pytest.mark.parametrize("name", FAMILIES)
def test_last_level_is_forward_features(name: str) -> None:
    backbone = Backbone(name, pretrained=False).eval()
    images = torch.randn(2, 3, 64, 64)
    expected = backbone.model.forward_features(images)
    if expected.ndim == 3:
        tokens = expected[:, backbone.model.num_prefix_tokens :]
        expected = tokens.transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(backbone(images)[-1], expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_max_stride_cuts_after_the_deepest_level_that_fits(name: str) -> None:
    backbone = Backbone(name, pretrained=False, max_stride=16)
    maps = backbone(torch.randn(1, 3, 64, 64))[-1]
    assert backbone.levels[-1].stride == 16
    assert maps.shape[2:] == (4, 4)
    maps.sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


@pytest.mark.parametrize(("name", "max_stride"), [*((name, None) for name in FAMILIES), ("test_resnet", 16)])
def test_stopping_early_gives_the_first_levels_unchanged(name: str, max_stride: int | None) -> None:
    backbone = Backbone(name, pretrained=False, max_stride=max_stride).eval()
    images = torch.randn(2, 3, 96, 64)
    levels = backbone(images)
    for depth in range(1, len(levels) + 1):
        for found, expected in zip(backbone(images, depth=depth), levels[:depth], strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_stopping_early_runs_nothing_deeper(name: str) -> None:
    backbone = Backbone(name, pretrained=False)
    backbone(torch.randn(2, 3, 64, 64), depth=1)[-1].sum().backward()
    reached = sum(parameter.grad is not None for parameter in backbone.parameters())
    assert 0 < reached < len(list(backbone.parameters())) / 2


def test_mobilenetv2_ends_in_its_1280_channels() -> None:
    assert Backbone("mobilenetv2_100", pretrained=False).levels[-1].channels == 1280


def test_the_last_level_can_be_finer_with_the_same_weights(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_efficientnet").state_dict(), path)
    backbone = Backbone("test_efficientnet", weights=path, output_stride=16)
    assert backbone.levels[-1].stride == 16
    assert backbone(torch.randn(1, 3, 64, 64))[-1].shape[2:] == (4, 4)


@pytest.mark.parametrize(("name", "stride"), [("test_vit", 8), ("vgg16", 16), ("resnet18", 12), ("test_efficientnet", 12)])
def test_strides_that_timm_cannot_build_are_named(name: str, stride: int) -> None:
    with pytest.raises(UsageError, match=r"model\.output_stride: timm"):
        Backbone(name, pretrained=False, output_stride=stride)


def test_unreachable_stride_leaves_the_network_whole() -> None:
    assert Backbone("test_vit", pretrained=False, max_stride=8).levels[-1].stride == 16


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_with_a_classifier_load_into_every_cut(tmp_path: Path, suffix: str) -> None:
    source = timm.create_model("test_resnet", num_classes=7)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": source.state_dict()}, path)
    else:
        save_file(source.state_dict(), path)
    for stride in (None, 16):
        backbone = Backbone("test_resnet", weights=path, max_stride=stride)
        assert torch.equal(backbone.model.conv1[0].weight, source.conv1[0].weight)


def test_weights_of_another_network_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file(timm.create_model("test_convnext").state_dict(), path)
    with pytest.raises(CheckpointError, match=r"other\.safetensors does not fit timm's 'test_resnet'"):
        Backbone("test_resnet", weights=path)


@pytest.mark.parametrize("make", [Path.touch, os.mkdir])  # torch knows the first as no tensor, the second as forbidden
def test_weights_with_code_are_not_executed(make: Callable[[Path], None], tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "evil.pth"
    torch.save({"weight": Bomb(canary, make)}, path)
    with pytest.raises(CheckpointError, match=r"evil\.pth cannot be read as tensors alone"):
        Backbone("test_resnet", weights=path)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("name", "content"), [("bad.safetensors", b"\xff" * 64), ("bad.pth", b"text"), ("empty.safetensors", b"")]
)
def test_damaged_weights_are_refused_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        Backbone("test_resnet", weights=tmp_path / name)


def test_missing_weights_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no file"):
        Backbone("test_resnet", weights=tmp_path / "absent.pth")


def test_unknown_network_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="no network 'resnet5'; did you mean 'resnet50'"):
        Backbone("resnet5", pretrained=False)


def test_unreachable_hub_says_how_to_supply_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refuse)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", refuse, raising=False)
    with pytest.raises(UsageError, match=r"--model\.backbone_weights PATH"):
        Backbone("test_resnet", pretrained=True)


def test_statistics_are_those_of_the_weights() -> None:
    assert Backbone("test_vit", pretrained=False).mean == (0.5, 0.5, 0.5)
    assert Backbone("mobilenetv2_100", pretrained=False).mean == (0.485, 0.456, 0.406)


# ---------------------------------------------------------------------- activations computed twice


def kept_bytes(backbone: Backbone, images: torch.Tensor) -> tuple[int, torch.Tensor]:
    """Bytes of activations that a training pass keeps, and a loss."""
    parameters = {p.untyped_storage().data_ptr() for p in backbone.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        maps = backbone(images)
    return sum(kept.values()), torch.stack([level.square().mean() for level in maps]).sum()


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "tiny_vgg", "test_convnext", "test_vit"])
def test_recomputing_keeps_less_and_gives_the_same_gradients_and_statistics(name: str) -> None:
    images = torch.randn(2, 3, 64, 64)
    found = []
    for recomputes in (False, True):
        torch.manual_seed(0)
        backbone = Backbone(name, pretrained=False).train()
        if recomputes:
            backbone.recompute()
        for _ in range(2):
            kept, loss = kept_bytes(backbone, images)
            loss.backward()
        found.append((kept, [p.grad for p in backbone.parameters() if p.grad is not None], backbone.state_dict()))
    (kept, gradients, state), (kept_again, gradients_again, state_again) = found
    assert kept_again < kept
    torch.testing.assert_close(gradients_again, gradients, rtol=0, atol=0)
    torch.testing.assert_close(state_again, state, rtol=0, atol=0)


def test_birds_resnet_has_its_weights_in_the_package() -> None:
    assert WEIGHTS.stat().st_size < 1_000_000
    packaged, loaded = load_file(WEIGHTS), Backbone("birds_resnet").model.state_dict()
    assert set(packaged) == {name for name in loaded if not name.endswith("num_batches_tracked")}
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in packaged.items())


def test_timm_itself_builds_birds_resnet_with_a_new_classifier() -> None:
    network = timm.create_model("birds_resnet", pretrained=True, num_classes=7).eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(network.forward_features(images), Backbone("birds_resnet").eval()(images)[-1])
    assert network(images).shape == (2, 7)
