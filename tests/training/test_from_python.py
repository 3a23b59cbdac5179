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
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fgzoo import FGVCDataModule, FineGrainedClassifier, create_model, load
from fgzoo.checkpoints.run_folder import LAST
from fgzoo.errors import CheckpointError, UntrainedError, UsageError
from fgzoo.methods import available
from fgzoo.methods.baseline import Baseline
from fgzoo.training.callbacks import ImageScores
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


def test_another_number_of_classes_than_the_datas_is_refused(tmp_path: Path) -> None:
    model = create_model("baseline", 7, "test_efficientnet", pretrained=False)
    with pytest.raises(UsageError, match=r"model\.num_classes: 7, and the data has 3 classes"):
        quiet(tmp_path).fit(model, datamodule=birds())


def test_a_test_at_another_size_leaves_the_model_its_own(tmp_path: Path) -> None:
    model, data = make(Baseline), birds()
    quiet(tmp_path).fit(model, datamodule=data)
    card, larger = model.card, birds()
    larger.image_size, larger.resize = 64, 72
    quiet(tmp_path).test(model, datamodule=larger)
    assert model.card == card == data.card


@pytest.mark.parametrize("network", ["test_efficientnet", "mobilenetv2_035"])
def test_norms_that_apply_activations_are_not_synchronised_without_them(network: str, tmp_path: Path) -> None:
    model = create_model("baseline", 3, network, pretrained=False)
    runner = quiet(tmp_path)
    runner.strategy._layer_sync = TorchSyncBatchNorm()
    with pytest.raises(UsageError, match=rf"trainer\.sync_batchnorm: the batch-norms of '{network}' apply its activations, too"):
        runner.fit(model, datamodule=birds())


def test_a_checkpoint_of_a_finished_fit_goes_on_with_the_next_epoch(tmp_path: Path) -> None:
    data = birds()
    quiet(tmp_path).fit(make(Baseline), datamodule=data)
    assert data.state_dict() == {"next_epoch": 1, "batches": 0, "images": data.batch_size}


def test_a_model_of_ones_own_loaders_lacks_a_card_and_not_a_training(tmp_path: Path) -> None:
    model, data = make(Baseline), birds()
    data.setup("fit")
    quiet(tmp_path).fit(model, data.train_dataloader())
    assert model.trained
    with pytest.raises(
        CheckpointError, match=r"model\.transform: these weights do not say which classes they know .* model\.card"
    ):
        _ = model.transform


def test_a_batch_of_other_parts_is_named(tmp_path: Path) -> None:
    loader = DataLoader(TensorDataset(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.arange(4) % 3), batch_size=2)
    with pytest.raises(UsageError, match="a batch is images, classes, and the images' indices, and this one has 2 parts"):
        quiet(tmp_path).fit(make(Baseline), loader)


def test_data_without_a_length_needs_a_number_of_steps(tmp_path: Path) -> None:
    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([])

    with pytest.raises(UsageError, match=r"trainer\.max_steps: a schedule needs an end, and the data has no length"):
        quiet(tmp_path).fit(make(Baseline, schedule="cosine"), DataLoader(Endless()))


def test_images_without_a_data_module_have_no_file_of_scores(tmp_path: Path) -> None:
    model, data = make(Baseline), birds()
    quiet(tmp_path).fit(model, datamodule=data)
    trainer(tmp_path, callbacks=[ImageScores(tmp_path / "scores")]).test(model, dataloaders=data.test_dataloader())
    assert not (tmp_path / "scores").exists()


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
@pytest.mark.parametrize(
    ("name", "arguments"),
    [*((name, {}) for name in ("baseline", "rra", "iagn", "coarse2fine", "srbn")), ("srbn", {"batch_norm": True})],
)
def test_a_model_answers_in_another_precision(name: str, arguments: dict[str, Any], dtype: torch.dtype) -> None:
    image = picture(1)
    expected = small(name, **arguments).predict([image])[0]
    found = small(name, **arguments).to(dtype).predict([image])[0]
    assert found.error is None
    shares = dict(zip(found.classes, found.probabilities, strict=True))
    tolerance = 1e-4 if dtype == torch.float64 else 0.1
    for label, share in zip(expected.classes, expected.probabilities, strict=True):
        assert shares[label] == pytest.approx(share, abs=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", available())
def test_a_model_explains_in_another_precision(name: str, dtype: torch.dtype) -> None:
    model = small(name, **{"batch_norm": True} if name == "srbn" else {}).eval().to(dtype)
    images = torch.randn(2, 3, 64, 64, dtype=dtype, generator=torch.Generator().manual_seed(0))
    assert model.explain(images).isfinite().all()
    assert model.map_shares(images, torch.tensor([0, 1])).isfinite().all()


def test_a_model_without_memory_has_its_shapes() -> None:
    model = small("rra").to("meta")
    assert model(torch.empty(2, 3, 64, 64, device="meta")).logits.shape == (2, 4)
