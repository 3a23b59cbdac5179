"""A GPU does what a CPU does; skipped where there is none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fgzoo.methods import available, find_method
from fgzoo.testing import example_batch
from tests.builders import make_cub
from tests.command import IMAGES, NETWORK, breaking_off, fgzoo, metrics, rows, weights
from tests.small import SMALL, small, without_dropout

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

METHODS = tuple(available())
#: Whose gradients pass through a kernel that torch has no deterministic one for: sampling by a grid, bicubic resizing.
WITHOUT_DETERMINISTIC_KERNELS = ("coarse2fine", "srbn")
#: Everything that draws at random, and batch statistics.
RANDOM = ("--data.augmentation", "strong", "--model.optimizer", "adamw", "--model.schedule", "one_cycle")


def fit(root: Path, name: str, output: Path, *more: object) -> None:
    """Two epochs on the GPU, by the device's own precision; of a method in two stages one of each."""
    of_method = [word for key, value in SMALL.get(name, {}).items() for word in (f"--model.{key}", json.dumps(value))]
    what = ("--config", "cub", "--model", name, "--data.root", root, "--trainer.max_epochs", 2, "--data.num_workers", 0)
    result = fgzoo("fit", *what, *NETWORK, *IMAGES, *of_method, *RANDOM, "--output", output, *more)
    assert result.status == 0, result.err


@pytest.mark.parametrize("name", METHODS)
def test_a_training_pass_gives_the_cpus_loss_and_gradients(name: str) -> None:
    def trained_on(device: str) -> dict[str, torch.Tensor]:
        model = small(name, **without_dropout(find_method(name)[0])).double().to(device).train()
        images, targets, keys = (part.to(device) for part in example_batch((96, 96)))
        targets = targets % model.num_classes
        found: dict[str, torch.Tensor] = {}
        for number, output in enumerate(model.training_outputs(images.double(), targets, keys)):
            terms = model.loss(output, targets)
            model.zero_grad()
            torch.stack(list(terms.values())).sum().backward()
            found |= {f"{number} {term}": value.detach().cpu() for term, value in terms.items()}
            found |= {f"{number} {key}": p.grad.cpu() for key, p in model.named_parameters() if p.grad is not None}
        return found

    torch.testing.assert_close(trained_on("cuda"), trained_on("cpu"), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_takes_bf16_by_itself_and_answers_as_a_cpu_does(tmp_path: Path, name: str) -> None:
    root = make_cub(tmp_path / "data", per_class=6)
    fit(root, name, tmp_path / "run")
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "precision: bf16-mixed" in config
    assert all(math.isfinite(float(row["train/loss"])) for row in metrics(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "cost.json").read_text())["device"].startswith("cuda")
    assert fgzoo("test", "--ckpt_path", tmp_path / "run").status == 0
    photos = sorted((root / "images").rglob("*.jpg"))

    def answers(device: str) -> list[dict[str, str]]:
        return rows(fgzoo("predict", tmp_path / "run", *photos, "--device", device, "--output", "-", "--format", "csv"))

    for ours, theirs in zip(answers("cuda"), answers("cpu"), strict=True):
        assert float(ours["probability_1"]) == pytest.approx(float(theirs["probability_1"]), abs=5e-3)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in WITHOUT_DETERMINISTIC_KERNELS])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path, name: str) -> None:
    root = make_cub(tmp_path / "data", per_class=6)
    exactly = ("--trainer.deterministic", "true", "--trainer.precision", "32-true")
    fit(root, name, tmp_path / "whole", *exactly)
    with breaking_off(find_method(name)[0], epoch=1, batch=1), pytest.raises(AssertionError, match="interrupted"):
        fit(root, name, tmp_path / "broken", *exactly)
    assert fgzoo("fit", "--resume", tmp_path / "broken").status == 0
    torch.testing.assert_close(weights(tmp_path / "broken"), weights(tmp_path / "whole"), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["baseline", "rra"])
def test_a_compiled_network_answers_as_it_does_uncompiled(name: str) -> None:
    images, _, _ = example_batch((64, 64))
    logits: list[Any] = []
    for compiled in (False, True):
        model = small(name, compile=compiled).cuda()
        with torch.no_grad():
            logits.append(model(images.cuda()).logits)
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-3, atol=1e-3)


def test_a_compiled_network_trains_and_is_tested(tmp_path: Path) -> None:
    fit(make_cub(tmp_path / "data", per_class=6), "baseline", tmp_path / "run", "--model.compile", "true")
    assert fgzoo("test", "--ckpt_path", tmp_path / "run").status == 0
