"""Networks by name: timm's own, with tags, of a hub, of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf

import fgzoo
from fgzoo.checkpoints.safetensors import save_safetensors
from fgzoo.errors import CheckpointError, UsageError
from fgzoo.nn import Backbone
from fgzoo.nn.timm_networks import SizeLimits
from tests.small import CARD, small

OWN = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ResNet of other widths and of its own pixel statistics, as timm saves it for a hub."""
    network = timm.create_model("test_resnet", num_classes=5, channels=(8, 16, 24, 32), pretrained_cfg_overlay=OWN)
    save_for_hf(network, tmp_path / "birdnet", model_args={"channels": (8, 16, 24, 32)}, safe_serialization=True)
    return tmp_path / "birdnet"


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same on a hub."""

    def fetch(repo_id: str, filename: str, **_: Any) -> str:
        assert repo_id == "someone/birdnet"
        return str(folder / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", fetch)
    return "hf-hub:someone/birdnet"


@pytest.mark.parametrize("name", ["hf-hub:timm/test_resnet", "hf_hub:timm/test_resnet.r160_in1k"])
def test_names_on_timms_own_hub_are_its_short_names(name: str) -> None:
    backbone = Backbone(name, pretrained=False)
    assert backbone.name == name.rpartition("/")[2]
    assert backbone.config is None


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_a_network_of_a_folder_or_hub_has_its_own_widths_statistics_and_weights(place: str, folder: Path, hub: str) -> None:
    backbone = Backbone(f"local-dir:{folder}" if place == "folder" else hub, pretrained=True)
    assert backbone.levels[-1].channels == 32
    assert (backbone.mean, backbone.std) == (OWN["mean"], OWN["std"])
    saved = timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict()
    for name, value in backbone.model.state_dict().items():
        assert torch.equal(value, saved[name])


def test_a_checkpoint_of_a_folders_network_loads_without_the_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small("baseline", backbone=f"local-dir:{folder}")
    save_safetensors(model, tmp_path / "model.safetensors")
    folder.rename(tmp_path / "elsewhere")
    monkeypatch.setattr("fgzoo.nn.timm_networks._kept_configs", {})
    again = fgzoo.load(tmp_path / "model.safetensors")
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(again(again.normalize(images)).logits, model(model.normalize(images)).logits)


def test_a_checkpoint_cannot_say_which_file_its_network_reads(tmp_path: Path, folder: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    model = small("baseline", backbone=f"local-dir:{folder}")
    save_safetensors(model, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        metadata = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for planted, refused in (('"arguments": {"checkpoint_path": "/x.pth", ', False), ('"arguments": [], "more": {', True)):
        evil = metadata | {"fgzoo": metadata["fgzoo"].replace('"arguments": {', planted)}
        save_file(state, tmp_path / "evil.safetensors", evil)
        if refused:
            with pytest.raises(CheckpointError, match="its field 'networks' is not what fgzoo writes"):
                fgzoo.load(tmp_path / "evil.safetensors")
        else:
            assert fgzoo.load(tmp_path / "evil.safetensors").card == CARD


def test_tags_that_do_not_exist_are_named_beside_those_that_do() -> None:
    with pytest.raises(UsageError, match="no weights 'foo' of 'test_resnet'; it has r160_in1k"):
        Backbone("test_resnet.foo", pretrained=False)


def test_a_hubs_name_without_its_prefix_says_what_to_type() -> None:
    with pytest.raises(UsageError, match="hf-hub:someone/birdnet"):
        Backbone("someone/birdnet", pretrained=False)


@pytest.mark.parametrize("name", ["hf-hub:someone/birdnet", "local-dir:nowhere"])
def test_a_config_that_cannot_be_read_says_what_to_give(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", refuse)
    with pytest.raises(UsageError, match=rf"backbone: what '{name}' is could not be read .* --model\.backbone_weights FILE"):
        Backbone(name, pretrained=False)


def test_an_architecture_that_timm_does_not_know_is_named(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace("test_resnet", "resnet_of_tomorrow"), encoding="utf-8")
    with pytest.raises(UsageError, match="is a 'resnet_of_tomorrow', which this timm"):
        Backbone(f"local-dir:{folder}", pretrained=False)


def test_networks_of_several_grids_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="'crossvit_tiny_240' gives no feature maps"):
        Backbone("crossvit_tiny_240", pretrained=False)


@pytest.mark.parametrize(
    ("limits", "size", "shown"),
    [
        (SizeLimits(), (97, 5), (97, 5)),
        (SizeLimits(smallest=32), (64, 20), (103, 32)),
        (SizeLimits(multiple=32), (97, 64), (128, 64)),
        (SizeLimits(75, 4), (30, 40), (76, 100)),
    ],
)
def test_images_are_enlarged_to_what_a_network_takes(limits: SizeLimits, size: tuple[int, int], shown: tuple[int, int]) -> None:
    assert limits.enlarged(*size) == shown


def test_a_network_that_adds_up_its_levels_takes_any_size() -> None:
    backbone = Backbone("hrnet_w18_small", pretrained=False).eval()
    with torch.no_grad():
        assert [tuple(level.shape[2:]) for level in backbone(torch.zeros(1, 3, 50, 70))][-1] == (2, 3)
