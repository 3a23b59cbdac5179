from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from fgzoo.checkpoints.loading import load
from fgzoo.errors import UsageError
from fgzoo.methods.training_stages import EnterStages, TrainingStage, stage_ends
from tests.builders import make_cub
from tests.command import breaking_off, fgzoo, fit, metrics, weights
from tests.training.toys import Staged, loader, make, trainer

# ---------------------------------------------------------------------- boundaries


@pytest.mark.parametrize(
    ("shares", "total", "per_epoch", "expected"),
    [
        ((1.0,), 100, 10, [100]),
        ((0.5, 0.5), 100, 10, [50, 100]),
        ((2 / 3, 1 / 3), 150, 10, [100, 150]),
        ((0.34, 0.66), 100, 10, [30, 100]),  # rounded to whole epochs
        ((0.01, 0.99), 30, 10, [10, 30]),  # every stage keeps an epoch
        ((0.99, 0.01), 30, 10, [20, 30]),
        ((0.5, 0.5), 7, 7, [4, 7]),  # a single epoch is divided by batches
        ((0.5, 0.5), 2, 7, [1, 2]),
    ],
)
def test_stage_ends(shares: tuple[float, ...], total: int, per_epoch: float, expected: list[int]) -> None:
    stages = [TrainingStage(str(number), share) for number, share in enumerate(shares)]
    assert stage_ends(stages, total, per_epoch) == expected


@pytest.mark.parametrize("shares", [(0.5, 0.4), (1.5, -0.5), (0.0, 1.0)])
def test_shares_that_do_not_make_a_run_are_named(shares: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="shares of the training stages"):
        stage_ends([TrainingStage("one", shares[0]), TrainingStage("two", shares[1])], 100, 10)


# ---------------------------------------------------------------------- a run of 12 batches, stage 0 the first 4


class Witness(Callback):
    """Notes what a run looks like before every batch."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.rates: list[dict[str, float]] = []
        self.modes: list[tuple[int, bool, bool]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        backbone = pl_module.network.backbone
        self.modes.append((pl_module.network.stage, backbone.training, backbone.frozen))
        self.weights.append({name: value.clone() for name, value in pl_module.network.state_dict().items()})

    def on_before_zero_grad(self, trainer: L.Trainer, *_: Any) -> None:
        self.rates.append({group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups})


@pytest.fixture(scope="module", params=["sgd", "adamw"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    model = make(Staged, optimizer=request.param, lr=1e-3, schedule="one_cycle", weight_decay=0.1)
    start = {name: value.clone() for name, value in model.network.state_dict().items()}
    witness = Witness()
    trainer(tmp_path_factory.mktemp("stages"), callbacks=[witness]).fit(model, loader())
    return SimpleNamespace(model=model, start=start, witness=witness)


def part(state: dict[str, Tensor], name: str) -> list[Tensor]:
    return [value for key, value in state.items() if key.startswith(f"{name}.")]


def moved(before: dict[str, Tensor], after: dict[str, Tensor], name: str) -> list[bool]:
    return [not torch.equal(x, y) for x, y in zip(part(before, name), part(after, name), strict=True)]


def test_a_frozen_backbone_keeps_weights_and_statistics(run: SimpleNamespace) -> None:
    assert not any(moved(run.start, run.witness.weights[3], "backbone"))


def test_what_is_not_frozen_moves(run: SimpleNamespace) -> None:
    assert all(moved(run.start, run.witness.weights[3], "first"))


def test_what_a_stage_does_not_use_stays(run: SimpleNamespace) -> None:
    assert not any(moved(run.start, run.witness.weights[3], "second"))


def test_the_last_stage_moves_everything_but_statistics(run: SimpleNamespace) -> None:
    parameters = {name for name, _ in run.model.network.named_parameters()}
    for name, value in run.witness.weights[-1].items():
        assert torch.equal(run.witness.weights[3][name], value) is (name not in parameters), name


def test_the_last_stage_begins_with_the_function_that_was_learnt_on() -> None:
    # Batches of other statistics than the network's would change it, where batch-norms followed the mode.
    model = make(Staged)
    images = 3 + 2 * torch.randn(2, 3, 64, 64)
    stages = EnterStages()
    with torch.no_grad():
        stages.enter(model, 0)
        learnt_on = model.train().network.backbone(images)[-1]
        stages.enter(model, 1)
        found = model.train().network.backbone(images)[-1]
    assert torch.equal(found, learnt_on)


def test_networks_modes_and_frozen_backbones_follow_the_stage(run: SimpleNamespace) -> None:
    assert run.witness.modes == [(0, False, True)] * 4 + [(1, True, False)] * 8


def test_the_schedule_starts_anew_in_each_stage(run: SimpleNamespace) -> None:
    rates = [row["second"] if "second" in row else row["new"] for row in run.witness.rates]
    peak = 1e-3
    assert rates[0] == pytest.approx(peak / 25)
    assert rates[4] == pytest.approx(peak / 25)
    assert max(rates[:4]) == pytest.approx(peak)
    assert rates[3] == pytest.approx(peak / 25e4)
    assert rates[11] == pytest.approx(peak / 25e4)


def test_groups_have_their_own_rates_in_each_stage(run: SimpleNamespace) -> None:
    for batch, row in enumerate(run.witness.rates):
        assert row["first"] == pytest.approx(row["new"] * (2.0 if batch < 4 else 0.2))
        assert row["backbone"] == pytest.approx(row["new"] * (0.0 if batch < 4 else 0.1))


def test_nothing_stays_frozen_after_a_run(run: SimpleNamespace) -> None:
    assert not run.model.network.backbone.frozen
    assert all(parameter.requires_grad for parameter in run.model.parameters())


def test_nothing_stays_frozen_after_a_run_that_broke_off(tmp_path: Path) -> None:
    class Breaks(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise RuntimeError("broken off")

    model = make(Staged)
    with pytest.raises(RuntimeError, match="broken off"):
        trainer(tmp_path, callbacks=[Breaks()]).fit(model, loader())
    assert model.network.backbone.training
    assert not model.network.backbone.frozen


def test_a_method_that_forgets_the_callbacks_of_its_stages_is_not_trained(tmp_path: Path) -> None:
    class Forgets(Staged):
        def configure_callbacks(self) -> list[Callback]:
            return []

    with pytest.raises(UsageError, match=r"^Forgets\.configure_callbacks: add to what super"):
        trainer(tmp_path).fit(make(Forgets), loader())


def test_adamw_starts_fresh_where_a_parameter_was_frozen(tmp_path: Path) -> None:
    # Zero gradients, instead of none, would let AdamW's second moment lag behind and its first steps be several times too long.
    steps: list[float] = []

    class FirstStep(Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            weight = next(pl_module.network.backbone.parameters())
            steps.append(float((weight - self.before).detach().abs().max()))

        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            self.before = next(pl_module.network.backbone.parameters()).detach().clone()

    model = make(Staged, optimizer="adamw", lr=1e-3, schedule="constant", weight_decay=0.0, backbone_lr_factor=1.0)
    trainer(tmp_path, callbacks=[FirstStep()]).fit(model, loader())
    assert steps[:4] == [0.0] * 4
    assert max(steps[4:]) <= 1.05e-3


def test_an_unfinished_run_is_evaluated_in_its_stage(tmp_path: Path) -> None:
    runner = trainer(tmp_path, max_epochs=3, callbacks=[StopAfter(2)])
    model = make(Staged)
    runner.fit(model, loader())
    runner.save_checkpoint(tmp_path / "early.ckpt")
    early = load(tmp_path / "early.ckpt")
    assert early.network.stage == 0
    assert set(early(torch.zeros(1, 3, 64, 64)).heads) == {"first"}


class StopAfter(Callback):
    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.batches


# ---------------------------------------------------------------------- through the command line

EPOCHS = 3
STAGED = ("--model.optimizer", "adamw", "--model.schedule", "one_cycle", "--model.ema_decay", 0.9, "--model.clip_norm", 1.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("staged")
    root = make_cub(folder / "data", per_class=6)
    result = fit(root, "--output", folder / "run", *STAGED, model="tests.training.toys.Staged", epochs=EPOCHS)
    assert result.status == 0, result.err
    return SimpleNamespace(root=root, run=folder / "run")


@pytest.mark.parametrize(("epoch", "batch"), [(1, 0), (1, 1), (2, 1)])
def test_a_resume_on_either_side_of_a_boundary_ends_in_the_same_bits(
    whole: SimpleNamespace, tmp_path: Path, epoch: int, batch: int
) -> None:
    # After the first epoch, stage 0, is saved; in the middle of an epoch; or just before the end.
    with breaking_off(Staged, epoch, batch):
        broken = fit(whole.root, "--output", tmp_path / "run", *STAGED, model="tests.training.toys.Staged", epochs=EPOCHS)
    assert broken.status == 130
    assert fgzoo("fit", "--resume", tmp_path / "run").status == 0
    torch.testing.assert_close(weights(tmp_path / "run"), weights(whole.run), rtol=0, atol=0)
    assert metrics(tmp_path / "run") == metrics(whole.run)


def test_the_stage_stands_beside_the_metrics(whole: SimpleNamespace) -> None:
    assert [row["train/stage"] for row in metrics(whole.run)] == ["0", "1", "1"]


def test_terms_of_a_stage_are_logged_in_that_stage_only(whole: SimpleNamespace) -> None:
    assert ["train/loss_second" in row for row in metrics(whole.run)] == [False, True, True]


def test_the_rest_of_the_network_stands_still_where_its_rate_is_zero(tmp_path: Path) -> None:
    class Normed(Staged):
        def build_network(self) -> nn.Module:
            network = super().build_network()
            network.second = nn.Sequential(nn.BatchNorm1d(network.second.in_features), nn.Dropout(), network.second)
            return network

        def stages(self) -> tuple[TrainingStage, ...]:
            return TrainingStage("backbone", 1 / 2, {"new": 0.0}), TrainingStage("all", 1 / 2)

    model = make(Normed)
    start = {name: value.clone() for name, value in model.network.second.state_dict().items()}
    seen = []

    class Look(Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            now = pl_module.network.second.state_dict()
            seen.append((pl_module.network.second[0].training, all(torch.equal(now[name], start[name]) for name in start)))

    trainer(tmp_path, max_epochs=2, callbacks=[Look()]).fit(model, loader())
    half = len(seen) // 2
    assert seen == [(False, True)] * half + [(True, False)] * half
    assert model.network.training


def test_an_optimizer_of_ones_own_needs_no_names(tmp_path: Path) -> None:
    class Plain(Staged):
        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), 1e-3)

        def stages(self) -> tuple[TrainingStage, ...]:
            return (TrainingStage("train", 1.0),)

    model = make(Plain)
    before = model.network.first.weight.clone()
    trainer(tmp_path, max_epochs=1).fit(model, loader())
    assert not torch.equal(model.network.first.weight, before)
