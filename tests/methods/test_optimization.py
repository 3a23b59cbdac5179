from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fgzoo import create_model
from fgzoo.errors import UsageError
from fgzoo.methods.baseline import Baseline
from fgzoo.methods.optimization import schedule_factor, split_decay
from fgzoo.nn.backbone import Backbone
from fgzoo.training.faults import rate_at
from tests.training.toys import loader, make, trainer

# ---------------------------------------------------------------------- schedules, 100 batches in 10 epochs


@pytest.mark.parametrize(("batch", "expected"), [(0, 1.0), (25, (1 + math.sqrt(0.5)) / 2), (50, 0.5), (100, 0.0)])
def test_cosine(batch: int, expected: float) -> None:
    assert schedule_factor("cosine", 100, 10)(batch) == pytest.approx(expected)


@pytest.mark.parametrize(("batch", "expected"), [(0, 1 / 21), (9, 10 / 21), (19, 20 / 21), (20, 1.0), (60, 0.5), (100, 0.0)])
def test_cosine_after_a_warm_up_of_two_epochs(batch: int, expected: float) -> None:
    assert schedule_factor("cosine", 100, 10, warmup_epochs=2)(batch) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("batch", "expected"), [(0, 1.0), (29, 1.0), (30, 0.2), (59, 0.2), (60, 0.04), (99, 0.04)])
def test_step_falls_at_its_milestones(batch: int, expected: float) -> None:
    factor = schedule_factor("step", 100, 10, milestones=(3, 6), gamma=0.2)
    assert factor(batch) == pytest.approx(expected)


@pytest.mark.parametrize(("batch", "expected"), [(0, 1 / 11), (9, 10 / 11), (10, 1.0), (99, 1.0)])
def test_constant_after_a_warm_up_of_one_epoch(batch: int, expected: float) -> None:
    assert schedule_factor("constant", 100, 10, warmup_epochs=1)(batch) == pytest.approx(expected)


@pytest.mark.parametrize("total", [10, 37, 100])
def test_one_cycle_is_torchs(total: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    oracle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=total, cycle_momentum=False)
    factor = schedule_factor("one_cycle", total, total / 5)
    for batch in range(total):
        assert 0.1 * factor(batch) == pytest.approx(oracle.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        if batch < total - 1:
            oracle.step()


@pytest.mark.parametrize("schedule", ["cosine", "step", "one_cycle", "constant"])
@pytest.mark.parametrize("total", [1, 2, 3])
def test_the_shortest_runs_have_finite_rates(schedule: str, total: int) -> None:
    factor = schedule_factor(schedule, total, 1, milestones=(1,))  # type: ignore[arg-type]
    assert all(0 <= factor(batch) <= 1 for batch in range(total + 1))


@pytest.mark.parametrize(
    "limits",
    [{"max_epochs": 9, "max_steps": 1}, {"max_epochs": -1, "max_steps": 1}, {"max_epochs": -1, "max_time": "00:00:00:01"}],
)
def test_an_epoch_of_warm_up_is_one_of_the_data_whatever_ends_the_run(tmp_path: Path, limits: dict[str, Any]) -> None:
    # Four batches an epoch.
    runner = trainer(tmp_path, **limits)
    runner.fit(make(Baseline, lr=1.0, schedule="step", warmup_epochs=1, milestones=(3,)), loader())
    assert [rate_at(runner, step) for step in (0, 3, 4, 11, 12)] == pytest.approx([0.2, 0.8, 1.0, 1.0, 0.1])


def test_a_schedule_that_falls_to_the_end_needs_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a schedule needs an end"):
        trainer(tmp_path, max_epochs=-1, max_time="00:00:00:01").fit(make(Baseline, schedule="cosine"), loader())


# ---------------------------------------------------------------------- groups


def test_norms_and_biases_do_not_decay() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    decayed, spared = split_decay(network.named_parameters(), "new", 0.1, 0.01)
    assert [p.ndim for p in decayed["params"]] == [4, 2]
    assert [p.ndim for p in spared["params"]] == [1, 1, 1, 1]
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.01, 0.0)


@pytest.mark.parametrize("layer_decay", [None, 0.5])
@pytest.mark.parametrize(
    ("backbone", "spared"),
    [("test_vit", {"cls_token", "pos_embed"}), ("xcit_nano_12_p16_224", {"pos_embed", "blocks"})],  # temperatures of blocks
)
def test_tokens_and_position_embeddings_do_not_decay(backbone: str, spared: set[str], layer_decay: float | None) -> None:
    model = create_model("baseline", 3, backbone, pretrained=False, layer_decay=layer_decay)
    decayed = {id(p) for group in model.parameter_groups() if group["weight_decay"] for p in group["params"]}
    weights = {name: p for name, p in model.network.backbone.model.named_parameters() if p.requires_grad and p.ndim > 1}
    assert {name.partition(".")[0] for name, p in weights.items() if id(p) not in decayed} == spared


def test_frozen_parameters_are_left_out() -> None:
    network = nn.Linear(3, 2)
    network.weight.requires_grad_(False)
    groups = split_decay(network.named_parameters(), "new", 0.1, 0.01)
    assert [[p.shape for p in group["params"]] for group in groups] == [[(2,)]]


def test_backbones_learn_at_their_own_rate() -> None:
    model = create_model("rra", 3, "test_efficientnet", pretrained=False, lr=0.5, backbone_lr_factor=0.1)
    inside = {id(p) for module in model.modules() if isinstance(module, Backbone) for p in module.parameters()}
    rates = {(id(p) in inside, round(group["lr"], 9)) for group in model.parameter_groups() for p in group["params"]}
    assert rates == {(True, 0.05), (False, 0.5)}


def test_layer_decay_lowers_the_rate_towards_the_input() -> None:
    model = create_model("baseline", 3, "test_vit", pretrained=False, lr=1.0, backbone_lr_factor=1.0, layer_decay=0.5)
    rate = {id(p): group["lr"] for group in model.parameter_groups() for p in group["params"]}
    backbone = next(module for module in model.modules() if isinstance(module, Backbone)).model
    patches = rate[id(backbone.patch_embed.proj.weight)]
    blocks = [rate[id(block.mlp.fc1.weight)] for block in backbone.blocks]
    assert patches < blocks[0]
    assert all(lower / upper == pytest.approx(0.5) for lower, upper in pairwise(blocks))


def test_a_layer_with_a_rate_of_its_own_stands_beside_those_that_decay() -> None:
    class Patched(Baseline):
        def learning_rates(self) -> dict[str, float]:
            return {**super().learning_rates(), "backbone.model.patch_embed": 3.0}

    model = Patched(3, "test_vit", pretrained=False, lr=1.0, layer_decay=0.5)
    groups = model.parameter_groups()
    torch.optim.AdamW(groups)  # which refuses a parameter that stands in two groups
    patches = model.network.backbone.model.patch_embed.proj.weight
    assert [group["lr"] for group in groups if any(p is patches for p in group["params"])] == [3.0]


def test_a_parameter_that_no_group_has_is_refused(tmp_path: Path) -> None:
    class Scaled(Baseline):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self.scale = torch.nn.Parameter(torch.ones(()))

    class Grouped(Scaled):
        def parameter_groups(self) -> list[dict[str, Any]]:
            return [*super().parameter_groups(), {"params": [self.scale], "lr": 0.1, "name": "scale"}]

    with pytest.raises(UsageError, match=r"model: scale is in no parameter group, so that nothing trains it"):
        trainer(tmp_path, max_epochs=1).fit(make(Scaled), loader())
    trainer(tmp_path, max_epochs=1).fit(make(Grouped), loader())
