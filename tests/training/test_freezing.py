"""Levels and statistics that stay as they are, in every method's training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from fgzoo import create_model
from fgzoo.checkpoints.loading import load
from fgzoo.errors import UsageError
from fgzoo.export.graph import evaluation_network
from fgzoo.methods import available
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.nn import Backbone
from tests.small import SMALL
from tests.training.toys import CLASSES, Staged, loader, make, trainer

FROZEN: dict[str, Any] = {"freeze": 2, "freeze_norm": "statistics", "optimizer": "adamw", "lr": 1e-2, "ema_decay": 0.9}
#: Two stages need two epochs.
EPOCHS = 2


def method(name: str, backbone: str = "test_efficientnet", **arguments: Any) -> FineGrainedClassifier:
    torch.manual_seed(0)
    return create_model(name, CLASSES, backbone, pretrained=False, **{**SMALL.get(name, {}), **FROZEN, **arguments})


def frozen_part(model: FineGrainedClassifier) -> dict[str, Tensor]:
    """The frozen levels' weights, and every statistic of the backbones."""
    found = {name: p.clone() for name, p in model.network.named_parameters() if not p.requires_grad}
    for path, module in model.network.named_modules():
        if isinstance(module, Backbone):
            found.update({f"{path}.{name}": buffer.clone() for name, buffer in module.named_buffers()})
    return found


@pytest.fixture(scope="module", params=available())
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Tensor], Path]:
    folder = tmp_path_factory.mktemp("freezing")
    model = method(request.param)
    before = frozen_part(model)
    start = {name: value.clone() for name, value in model.network.state_dict().items()}
    runner = trainer(folder, max_epochs=EPOCHS)
    runner.fit(model, loader())
    runner.save_checkpoint(folder / "last.ckpt")
    model.start = start  # type: ignore[assignment]
    return model, before, folder / "last.ckpt"


def test_what_is_frozen_is_bit_identical_afterwards(run: tuple[Any, dict[str, Tensor], Path]) -> None:
    # With crops, jigsaws, masks, stages, several steps a batch, and a moving average of the weights.
    model, before, _ = run
    after = frozen_part(model)
    assert len(before) > 20
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_what_is_not_frozen_has_learnt(run: tuple[Any, dict[str, Tensor], Path]) -> None:
    model, *_ = run
    still = [name for name, p in model.network.named_parameters() if p.requires_grad and torch.equal(p, model.start[name])]
    assert not still


def test_a_frozen_run_loads_and_answers_as_it_did(run: tuple[Any, dict[str, Tensor], Path]) -> None:
    model, _, path = run
    images = torch.randn(2, 3, 64, 64)
    again = load(path)
    assert again.hparams["freeze"] == 2
    with torch.no_grad():
        expected = model.eval().network(images).logits
        assert torch.equal(again.network(images).logits, expected)
        torch.testing.assert_close(evaluation_network(again)(images)["logits"], expected)


@pytest.mark.parametrize("name", available())
def test_frozen_levels_are_in_no_optimiser_group(name: str) -> None:
    model = method(name)
    listed = {parameter for group in model.parameter_groups() for parameter in group["params"]}
    assert listed == {parameter for parameter in model.network.parameters() if parameter.requires_grad}


def test_a_backbone_without_batch_norm_says_that_there_is_nothing_to_freeze(tmp_path: Path) -> None:
    model = method("baseline", "test_convnext", ema_decay=None)
    with pytest.warns(UserWarning, match=r"model\.freeze_norm: 'test_convnext' has no batch-norms"):
        trainer(tmp_path, max_epochs=1, limit_train_batches=1).fit(model, loader())


def test_a_backbone_that_a_stage_freezes_keeps_its_statistics() -> None:
    assert not any(isinstance(module, _BatchNorm) for module in make(Staged).network.backbone.modules())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"freeze": 9}, r"model\.freeze: 9; 'test_efficientnet' has 5 levels"),
        ({"freeze_norm": "batch"}, r"model\.freeze_norm: 'batch' is none of none, statistics, affine"),
    ],
)
def test_what_cannot_be_frozen_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        method("baseline", **arguments)
