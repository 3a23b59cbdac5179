"""Real photographs and real weights, where there are any."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command import fgzoo


@pytest.mark.parametrize(("data", "folder"), [("cub", "cub50"), ("cars", "cars60")])
def test_real_photographs_train_real_weights(real_data: Path, tmp_path: Path, data: str, folder: str) -> None:
    (weights,) = (real_data / "weights").glob("mobilenetv2_100.*.safetensors")
    arguments = ["--config", data, "--model", "rra", "--config", "small", "--data.root", str(real_data / folder)]
    arguments += ["--model.backbone_weights", str(weights), "--model.hidden_size", "32", "--model.global_width", "32"]
    arguments += ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--data.batch_size", "4"]
    arguments += ["--data.num_workers", "0", "--data.image_size", "96", "--data.resize", "112"]
    result = fgzoo("fit", *arguments, "--output", str(tmp_path / "run"))
    assert result.status == 0, result.err
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
