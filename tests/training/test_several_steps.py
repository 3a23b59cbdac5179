from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from tests.builders import make_cub
from tests.command import breaking_off, fgzoo, fit, metrics, weights
from tests.training.toys import Steps, loader, make, trainer

STEPS = 3


class Witness(Callback):
    """Notes the optimiser's steps."""

    def __init__(self) -> None:
        self.steps: list[dict[str, bool]] = []
        self.norms: list[float] = []
        self.rates: list[float] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        def note(optimizer: Any, *_: Any) -> None:
            gradients = {name: p.grad is not None for name, p in pl_module.network.named_parameters()}
            self.steps.append(gradients)
            norms = [p.grad.norm() for p in pl_module.network.parameters() if p.grad is not None]
            self.norms.append(float(torch.stack(norms).norm()))
            self.rates.append(optimizer.param_groups[-1]["lr"])

        trainer.optimizers[0].register_step_post_hook(note)


def run(folder: Path, model: Any = None, **settings: Any) -> SimpleNamespace:
    witness = Witness()
    model = model or make(Steps, optimizer="adamw", lr=1e-3)
    runner = trainer(folder, callbacks=[witness, *settings.pop("callbacks", [])], **{"max_epochs": 2, **settings})
    runner.fit(model, loader())
    return SimpleNamespace(model=model, witness=witness, trainer=runner)


def test_a_batch_takes_a_step_for_every_output_and_is_counted_once(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert len(result.witness.steps) == 2 * 4 * STEPS
    assert result.trainer.global_step == 2 * 4


def test_max_steps_means_batches(tmp_path: Path) -> None:
    result = run(tmp_path, max_epochs=-1, max_steps=3)
    assert len(result.witness.steps) == 3 * STEPS


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_what_several_steps_share_learns_beside_what_one_step_trains(tmp_path: Path, optimizer: str) -> None:
    model = make(Steps, optimizer=optimizer, lr=1e-2)
    before = {name: value.clone() for name, value in model.network.named_parameters()}
    run(tmp_path, model)
    stuck = [name for name, value in model.network.named_parameters() if torch.equal(before[name], value)]
    assert not stuck


def test_the_schedule_advances_once_a_batch_and_reaches_its_end(tmp_path: Path) -> None:
    rates = run(tmp_path, make(Steps, optimizer="adamw", lr=1e-3, schedule="cosine")).witness.rates
    batches = rates[::STEPS]
    assert rates == [rate for rate in batches for _ in range(STEPS)]
    expected = [1e-3 * (1 + torch.cos(torch.tensor(torch.pi * i / 8))) / 2 for i in range(8)]
    assert batches == pytest.approx([float(x) for x in expected], rel=1e-5)


def test_a_step_leaves_what_it_does_not_reach_alone(tmp_path: Path) -> None:
    for number, gradients in enumerate(run(tmp_path).witness.steps):
        heads = {int(name.split(".")[1]) for name, has in gradients.items() if name.startswith("heads.") and has}
        assert heads == {number % STEPS}


def test_the_second_step_sees_the_first_ones_weights(tmp_path: Path) -> None:
    result = run(tmp_path, make(Steps, lr=1e-2), max_epochs=1, limit_train_batches=1)
    model = make(Steps, lr=1e-2)
    model.train()
    optimizer = torch.optim.SGD(model.parameter_groups(), lr=1e-2, momentum=0.9)
    images, targets, _ = next(iter(loader()))
    images = model.normalize(images).contiguous(memory_format=torch.channels_last)
    for step in range(STEPS):
        optimizer.zero_grad()
        output = model.network(images, targets, step=step)
        torch.nn.functional.cross_entropy(output.logits, targets).backward()
        optimizer.step()
    torch.testing.assert_close(result.model.network.state_dict(), model.network.state_dict())


def test_every_step_is_clipped(tmp_path: Path) -> None:
    norms = run(tmp_path, make(Steps, lr=1e-3, clip_norm=0.01)).witness.norms
    assert norms == pytest.approx([0.01] * len(norms), rel=1e-3)


def test_clipping_comes_after_unscaling_in_half_precision(tmp_path: Path) -> None:
    model = make(Steps, lr=1e-3, clip_norm=0.01)
    half = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
    norms = run(tmp_path, model, plugins=[half]).witness.norms
    assert norms == pytest.approx([0.01] * len(norms), rel=1e-2)


def test_half_precision_takes_every_step(tmp_path: Path) -> None:
    half = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
    result = run(tmp_path, plugins=[half])
    assert len(result.witness.steps) == 2 * 4 * STEPS
    assert all(bool(torch.isfinite(p).all()) for p in result.model.parameters())


def test_the_moving_average_counts_batches(tmp_path: Path) -> None:
    model = make(Steps, optimizer="adamw", lr=1e-3, ema_decay=0.5)
    history: list[Tensor] = []

    class Weights(Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            history.append(pl_module.network.heads[0].weight.detach().clone())

    start = model.network.heads[0].weight.detach().clone()
    run(tmp_path, model, callbacks=[Weights()])
    average = start
    for weight in history:
        average = 0.5 * average + 0.5 * weight
    torch.testing.assert_close(model.network.heads[0].weight.detach(), average)


@pytest.mark.parametrize(("argument", "value"), [("--trainer.accumulate_grad_batches", 2), ("--trainer.gradient_clip_val", 1.0)])
def test_what_several_steps_cannot_do_is_refused_by_name(tmp_path: Path, argument: str, value: object) -> None:
    root = make_cub(tmp_path / "data")
    result = fit(root, argument, value, "--output", tmp_path / "run", model="tests.training.toys.Steps")
    assert result.status == 2
    assert result.err.startswith(f"fgzoo: {argument.removeprefix('--')}: Steps takes 3 optimiser steps a batch")
    assert "Traceback" not in result.err


def test_a_wrong_number_of_outputs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="gave 2 outputs, steps_per_batch says 3"):
        run(tmp_path, make(Steps, given=2))


# ---------------------------------------------------------------------- through the command line

ARGUMENTS = ("--model.optimizer", "adamw", "--model.schedule", "one_cycle", "--model.ema_decay", 0.9, "--model.clip_norm", 1.0)


def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    root = make_cub(tmp_path / "data", per_class=6)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert fit(root, "--output", whole, *ARGUMENTS, model="tests.training.toys.Steps", epochs=3).status == 0
    with breaking_off(Steps, epoch=1, batch=1):
        interrupted = fit(root, "--output", broken, *ARGUMENTS, model="tests.training.toys.Steps", epochs=3)
    assert interrupted.status == 130
    assert fgzoo("fit", "--resume", broken).status == 0
    torch.testing.assert_close(weights(broken), weights(whole), rtol=0, atol=0)
    assert metrics(broken) == metrics(whole)


def test_losses_of_all_steps_are_logged_and_summed(tmp_path: Path) -> None:
    root = make_cub(tmp_path / "data", per_class=6)
    assert fit(root, "--output", tmp_path / "run", model="tests.training.toys.Steps").status == 0
    (row,) = metrics(tmp_path / "run")
    terms = [float(row[f"train/loss_head{step}"]) for step in range(STEPS)]
    assert float(row["train/loss"]) == pytest.approx(sum(terms), rel=1e-5)


def test_what_a_network_asks_to_log_is_logged(tmp_path: Path) -> None:
    root = make_cub(tmp_path / "data")
    assert fit(root, "--output", tmp_path / "run", model="tests.training.toys.Steps").status == 0
    assert metrics(tmp_path / "run")[0]["train/answer"] == "42"
