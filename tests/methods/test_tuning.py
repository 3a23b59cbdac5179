"""Backbones that stand still, or learn by sums of low rank, under every method."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fgzoo
from fgzoo.checkpoints.safetensors import save_safetensors
from fgzoo.export.exporting import export
from fgzoo.methods import list_models
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.nn import Backbone
from fgzoo.nn.low_rank import LowRankLinear, add_low_rank
from tests.families import FAMILIES
from tests.small import CARD, small
from tests.training.toys import trainer

DINOV3 = FAMILIES["dinov3"]


def batches() -> DataLoader[tuple[torch.Tensor, ...]]:
    images = torch.randint(0, 256, (4, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return DataLoader(TensorDataset(images, torch.tensor([0, 1, 2, 3]), torch.arange(4)), batch_size=4)


def trained(method: str, folder: Path, backbone: str = DINOV3, **arguments: Any) -> tuple[FineGrainedClassifier, set[str]]:
    """A model that took one step, and the names of what moved."""
    model = small(method, backbone=backbone, lr=0.1, backbone_lr_factor=1.0, **arguments).train()
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    runner = trainer(folder, max_epochs=1)
    runner.fit(model, batches())
    runner.save_checkpoint(folder / "last.ckpt")
    moved = {name for name, value in model.network.state_dict().items() if not torch.equal(value, before[name])}
    return model.eval(), moved


@pytest.mark.parametrize("tuning", ["lora", "frozen"])
@pytest.mark.parametrize("method", list_models())
def test_a_step_moves_the_head_and_what_is_tuned_alone(method: str, tuning: str, tmp_path: Path) -> None:
    stages = {"new_share": 0.0} if method in ("srbn", "bcnn", "bcnn-spp") else {}
    model, moved = trained(method, tmp_path, backbone_tuning=tuning, **stages)
    inside = {f"{name}." for name, module in model.network.named_modules() if isinstance(module, Backbone)}
    in_backbones = {name for name in moved if name.startswith(tuple(inside))}
    assert moved - in_backbones
    assert all(name.endswith((".lora_a", ".lora_b")) for name in in_backbones)
    assert any(name.endswith(".lora_b") for name in in_backbones) == (tuning == "lora")


def test_a_layer_of_low_rank_begins_anew_in_all_its_parts() -> None:
    layer = nn.Linear(6, 4)
    parent = nn.ModuleDict({"attn": nn.ModuleDict({"qkv": layer})})
    assert add_low_rank(parent, 2) == 1
    with torch.no_grad():
        layer.lora_b.fill_(1.0)
    before = layer.weight.detach().clone()
    layer.reset_parameters()
    assert layer.lora_b.count_nonzero() == 0
    assert not (layer.weight == before).any()
    assert float(layer.weight.detach().abs().max()) <= 1 / math.sqrt(6)


def test_a_model_tuned_by_low_rank_saves_loads_pickles_and_exports(tmp_path: Path) -> None:
    # BEiT reads its weights itself, and is built for 64 pixels, to which the export resizes the data's 80.
    card = replace(CARD, image_size=80, resize=80)
    model, _ = trained("baseline", tmp_path, FAMILIES["beit"], card=card, backbone_tuning="lora", lora_rank=2)
    images = model.normalize(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    expected = model(images).logits
    save_safetensors(model, tmp_path / "model.safetensors")
    for source in ("last.ckpt", "model.safetensors"):
        again = fgzoo.load(tmp_path / source)
        assert any(isinstance(module, LowRankLinear) for module in again.modules())
        assert torch.equal(again(images).logits, expected)
    for twin in (copy.deepcopy(again), pickle.loads(pickle.dumps(again))):
        assert torch.equal(twin(images).logits, expected)
    _, parity = export(model, tmp_path / "model.onnx")
    assert max(output.difference for output in parity) < 1e-3
    assert b"lora_a" not in (tmp_path / "model.onnx").read_bytes().partition(b"fgzoo")[0]
