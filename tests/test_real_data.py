"""Real photographs and real weights, where there are any."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fgzoo import FGVCDataModule, create_model
from fgzoo.interpret.readout import readout
from fgzoo.methods import available
from tests.command import fgzoo
from tests.interpret.test_readout import KEPT, preset


@pytest.fixture(scope="module")
def folds(real_data: Path) -> list[list[tuple[Tensor, Tensor]]]:
    """Both halves of the training images of fifty classes of CUB."""
    found = []
    for fold in (1, 0):
        data = FGVCDataModule("cub", real_data / "cub50", image_size=160, resize=183, num_workers=0, folds=2, fold=fold)
        data.setup("fit")
        found.append([(images, targets) for images, targets, _ in data.val_dataloader()])
    return found


def weights_of(real_data: Path, backbone: str) -> Path:
    """A file of a network's weights."""
    return max((real_data / "weights").glob(f"{backbone}.*.safetensors"))


@pytest.fixture(scope="module")
def kept(real_data: Path, folds: list[list[tuple[Tensor, Tensor]]]) -> dict[str, float]:
    """Accuracy of a ridge classifier of what each method's classifiers read, before it is trained by the preset `small`."""
    found = {}
    for name in available():
        torch.manual_seed(0)
        arguments = preset(name)
        arguments |= {"backbone_weights": weights_of(real_data, arguments["backbone"])}
        if "second_backbone" in arguments:
            arguments |= {"second_backbone_weights": weights_of(real_data, arguments["second_backbone"])}
        model = create_model(name, 50, pretrained=False, **arguments)
        found[name] = readout(model, *folds).top1
    return found


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", available())
def test_what_classifiers_of_real_photographs_read_keeps_what_pooled_features_tell(kept: dict[str, float], name: str) -> None:
    assert kept[name] >= KEPT * kept["baseline"]


@pytest.mark.parametrize(("data", "folder"), [("cub", "cub50"), ("cars", "cars60")])
def test_real_photographs_train_real_weights(real_data: Path, tmp_path: Path, data: str, folder: str) -> None:
    arguments = ["--config", data, "--model", "rra", "--config", "small", "--data.root", str(real_data / folder)]
    arguments += [
        "--model.backbone_weights",
        str(weights_of(real_data, "mobilenetv2_100")),
        "--model.hidden_size",
        "32",
        "--model.global_width",
        "32",
    ]
    arguments += ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--data.batch_size", "4"]
    arguments += ["--data.num_workers", "0", "--data.image_size", "96", "--data.resize", "112"]
    result = fgzoo("fit", *arguments, "--output", str(tmp_path / "run"))
    assert result.status == 0, result.err
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
