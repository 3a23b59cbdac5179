"""A model as other programs use it: Lightning's Trainer, threads, copies, other precisions."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from fgzoo import FGVCDataModule, FineGrainedClassifier, load
from fgzoo.checkpoints.run_folder import LAST
from fgzoo.errors import UntrainedError
from fgzoo.methods.baseline import Baseline
from tests.builders import picture
from tests.small import small
from tests.training.toys import make, trainer
from tests.training.two_ranks import birds


def quiet(folder: Path) -> L.Trainer:
    return trainer(folder, max_epochs=1)


@pytest.mark.parametrize("how", ["data module", "loader"])
def test_a_trainer_predicts_the_test_split(tmp_path: Path, how: str) -> None:
    model, data, runner = make(Baseline), birds(), quiet(tmp_path)
    runner.fit(model, datamodule=data)
    given: dict[str, Any] = {"datamodule": data} if how == "data module" else {"dataloaders": data.test_dataloader()}
    found = runner.predict(model, **given)
    assert torch.cat([batch["index"] for batch in found]).tolist() == list(range(9))  # type: ignore[index]
    images = torch.stack([data.dataset("test")[index][0] for index in range(9)])  # type: ignore[index]
    with torch.no_grad():
        expected = model.eval()(model.normalize(images)).logits
    torch.testing.assert_close(torch.cat([batch["logits"] for batch in found]), expected, rtol=1e-4, atol=1e-5)  # type: ignore[index]


def test_an_untrained_model_is_not_asked(tmp_path: Path) -> None:
    with pytest.raises(UntrainedError, match="never been trained"):
        quiet(tmp_path).predict(make(Baseline), datamodule=birds())


def test_a_training_in_a_thread(tmp_path: Path) -> None:
    from tests.command import MACHINE, fgzoo

    told: list[int] = []
    tiny = ["--config", "birds/baseline", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--output", "run"]
    thread = threading.Thread(target=lambda: told.append(_main(["fit", *tiny, *MACHINE])))
    thread.start()
    thread.join()
    assert told == [0]
    assert (tmp_path / "run" / LAST).is_file()
    assert fgzoo("--version").status == 0


def _main(arguments: list[str]) -> int:
    from fgzoo.cli import main

    return main(arguments)


def _saved(model: nn.Module) -> nn.Module:
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)  # type: ignore[no-any-return]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), _saved])
@pytest.mark.parametrize("name", ["baseline", "rra", "iagn", "coarse2fine", "srbn"])
def test_a_copy_answers_as_its_model(name: str, copied: Callable[[Any], Any]) -> None:
    model = small(name)
    other = copied(model)
    image = picture(1)
    assert other.predict([image])[0].probabilities == model.predict([image])[0].probabilities
    assert other.card == model.card


def test_a_copy_of_a_loaded_checkpoint_answers_as_it_does() -> None:
    model = load("rra_birds")
    assert copy.deepcopy(model).predict([picture(1)]) == model.predict([picture(1)])


def _answers(model: FineGrainedClassifier, data: FGVCDataModule) -> tuple[Any, ...]:
    """What a process makes of a model and a data module; batches as lists, which pass between processes by value."""
    loader: Any = data.train_dataloader()
    loader.sampler.set_epoch(1)
    return model.predict([picture(1)]), [batch[0].tolist() for batch in loader]


@pytest.mark.timeout(900)  # a process that imports everything anew
def test_a_spawned_process_answers_and_reads_as_this_one(tmp_path: Path) -> None:
    model, data = small("rra"), birds(augmentation="standard")
    quiet(tmp_path).fit(make(Baseline), datamodule=data)  # a copy must not take the trainer with it
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(_answers, model, data).result() == _answers(model, data)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["baseline", "rra", "iagn", "coarse2fine", "srbn"])
def test_a_model_answers_in_another_precision(name: str, dtype: torch.dtype) -> None:
    image = picture(1)
    expected = small(name).predict([image])[0]
    found = small(name).to(dtype).predict([image])[0]
    assert found.error is None
    shares = dict(zip(found.classes, found.probabilities, strict=True))
    tolerance = 1e-4 if dtype == torch.float64 else 0.1
    for label, share in zip(expected.classes, expected.probabilities, strict=True):
        assert shares[label] == pytest.approx(share, abs=tolerance)


def test_a_model_without_memory_has_its_shapes() -> None:
    model = small("rra").to("meta")
    assert model(torch.empty(2, 3, 64, 64, device="meta")).logits.shape == (2, 4)
