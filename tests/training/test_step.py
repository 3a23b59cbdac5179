"""A training step: no question to the device, the batch's learning rate, and activations computed twice instead of kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fgzoo.errors import UsageError
from fgzoo.methods.baseline import Baseline
from fgzoo.training.callbacks import ReproducibleSteps
from fgzoo.training.faults import FiniteLoss
from tests import THOROUGH
from tests.training.toys import loader, make, trainer
from tests.training.two_ranks import METHODS, birds, method

#: What cannot be answered before the device has done all that was asked of it: values, and shapes that depend on values.
QUESTIONS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "bincount", "equal", "is_nonzero")


class Questions(TorchDispatchMode):
    """Notes operations whose answer the host would wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put_") and any(x is not None and x.dtype == torch.bool for x in args[1])
        if name in QUESTIONS or by_mask:
            self.asked.append(name)
        return func(*args, **(kwargs or {}))


class WatchedSteps(L.Callback):
    """Watches all steps but the first, in which optimisers and metrics set themselves up."""

    def __init__(self) -> None:
        self.mode = Questions()
        self.steps = 0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx > 0:
            self.mode.__enter__()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx > 0:
            self.mode.__exit__(None, None, None)
            self.steps += 1


@pytest.mark.parametrize("name", METHODS)
def test_a_step_asks_the_device_nothing(tmp_path: Path, name: str) -> None:
    watched = WatchedSteps()
    model = method(name, optimizer="adamw", clip_norm=1.0)
    callbacks: list[L.Callback] = [ReproducibleSteps(0), FiniteLoss(), watched]
    runner = trainer(tmp_path, callbacks=callbacks, limit_val_batches=0)
    runner.fit(model, datamodule=birds(augmentation="standard"))
    assert watched.steps == 3 * 3
    assert watched.mode.asked == []


def test_a_question_would_be_noticed() -> None:
    with Questions() as mode:
        x = torch.arange(3.0)
        float(x[0])
        x[x > 1]
    assert mode.asked == ["_local_scalar_dense", "index"]


# ---------------------------------------------------------------------- learning rate and batch


def rates(tmp_path: Path, batch_size: int = 2, **arguments: Any) -> list[float]:
    model = make(Baseline, lr=1.0, backbone_lr_factor=0.1, schedule="constant", **arguments)
    trainer(tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=0).fit(
        model, datamodule=birds(batch_size=batch_size)
    )
    return sorted({round(group["lr"], 9) for group in model.optimizers().optimizer.param_groups})


@pytest.mark.parametrize(("optimizer", "factor"), [("sgd", 4.0), ("adamw", 2.0)])
def test_rates_follow_the_batch(tmp_path: Path, optimizer: str, factor: float) -> None:
    assert rates(tmp_path, batch_size=8, lr_batch=2, optimizer=optimizer) == pytest.approx([0.1 * factor, factor])


def test_rates_are_as_given_at_the_batch_they_are_meant_for(tmp_path: Path) -> None:
    assert rates(tmp_path, batch_size=4, lr_batch=4) == pytest.approx([0.1, 1.0])


def test_rates_are_as_given_where_no_batch_is_named(tmp_path: Path) -> None:
    assert rates(tmp_path, batch_size=8) == pytest.approx([0.1, 1.0])


def test_rates_follow_the_batch_of_any_loader(tmp_path: Path) -> None:
    model = make(Baseline, lr=1.0, backbone_lr_factor=1.0, schedule="constant", lr_batch=8)
    trainer(tmp_path, max_epochs=1).fit(model, loader(batch_size=2))
    assert {group["lr"] for group in model.optimizers().optimizer.param_groups} == {0.25}


def test_a_batch_of_unknown_size_is_refused_where_rates_should_follow_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.lr_batch: the data does not say how large its batches are"):
        trainer(tmp_path, max_epochs=1).fit(make(Baseline, lr_batch=8), list(loader()))


@pytest.mark.parametrize("batches", [2, 3])
def test_a_step_is_the_mean_of_the_batches_that_an_epoch_has_left_for_it(tmp_path: Path, batches: int) -> None:
    def trained(every: int, limit: int) -> dict[str, torch.Tensor]:
        plain = {"momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "freeze_norm": "affine", "lr": 0.1}
        model = make(Baseline, backbone_lr_factor=0.0, **plain)
        run = trainer(tmp_path, max_epochs=1, accumulate_grad_batches=every, limit_train_batches=limit, limit_val_batches=0)
        run.fit(model, loader())
        return model.state_dict()

    whole, cut = trained(batches, batches), trained(8, batches)
    assert all(torch.allclose(value, cut[name], atol=1e-7) for name, value in whole.items() if value.is_floating_point())


def test_no_batch_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^model\.lr_batch: 0"):
        make(Baseline, lr_batch=0)


# ---------------------------------------------------------------------- activations


@pytest.mark.parametrize("name", METHODS)
def test_recomputing_changes_no_weight(tmp_path: Path, name: str) -> None:
    found = []
    for recompute in (False, True):
        model = method(name, recompute_backbone=recompute)
        trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(model, datamodule=birds())
        found.append(model.state_dict())
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_recomputing_a_compiled_network_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^model\.recompute_backbone: "):
        make(Baseline, recompute_backbone=True, compile=True)


# ---------------------------------------------------------------------- what is left of the augmentation to the device


@pytest.mark.parametrize(("augmentation", "mirrors"), [("paper", False), ("standard", True)])
def test_training_mirrors_on_the_device(tmp_path: Path, augmentation: str, mirrors: bool) -> None:
    seen: dict[int, set[bool]] = {}

    class Watched(Baseline):
        def forward(self, images: torch.Tensor, *arguments: Any) -> Any:
            for image, (_, _, index) in zip(images, arguments[1].tolist(), strict=True):
                plain = self.normalize(data.dataset("train")[(self.current_epoch, index)][0][None])[0]  # type: ignore[index]
                assert torch.equal(image, plain) or torch.equal(image, plain.flip(-1))
                seen.setdefault(index, set()).add(torch.equal(image, plain))
            return super().forward(images, *arguments)

    data = birds(augmentation=augmentation)
    trainer(tmp_path, max_epochs=6, limit_val_batches=0).fit(make(Watched), datamodule=data)
    assert (False in set.union(*seen.values())) == mirrors
    assert len(seen) == 9


def test_a_data_module_of_ones_own_need_not_augment(tmp_path: Path) -> None:
    class Plain(L.LightningDataModule):
        def train_dataloader(self) -> Any:
            return loader()

    model = make(Baseline)
    runner = trainer(tmp_path, max_epochs=1)
    runner.fit(model, datamodule=Plain())
    assert runner.global_step == 4


def test_evaluation_augments_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = birds()
    monkeypatch.setattr(data, "augment_batch", lambda *_: pytest.fail("images of the test split were augmented"))
    model = make(Baseline)
    model.trained = True
    trainer(tmp_path).test(model, datamodule=data, verbose=False)


# ---------------------------------------------------------------------- compiled


#: Parents train as their methods do, without what could break a graph. The two that take longest by FGZOO_THOROUGH=1.
COMPILED = ["baseline", "rra", "coarse2fine", *(["iagn", "srbn"] if THOROUGH else [])]


@pytest.mark.parametrize("name", COMPILED)
def test_training_and_testing_break_no_graph_and_stay_below_the_limit_of_recompilations(tmp_path: Path, name: str) -> None:
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    model = method(name, optimizer="adamw", clip_norm=1.0)
    model.network.compile(backend="eager")
    # Otherwise it would go on without compiling, with a warning.
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        trainer(tmp_path, max_epochs=2, limit_val_batches=0).fit(model, datamodule=birds())
        # Nine images: the last batch is a single one.
        trainer(tmp_path).test(model, datamodule=birds(), verbose=False)
    assert counters["frames"]["ok"] > 0
    assert not counters["graph_break"]
    assert counters["frames"]["total"] == counters["frames"]["ok"]
