"""Two processes: what they train is what one process would have, they score what it scores, and they resume as it does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fgzoo.checkpoints.run_folder import PROBABILITIES
from tests.training.toys import loader, make, trainer
from tests.training.two_ranks import METHODS, TEST_IMAGES, TOYS, gradients, method, scores

SECONDS = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one pool of two processes left, for all tests."""
    path = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.training.two_ranks", str(path)]
    ranks = [
        subprocess.Popen(
            command, env={**environment, "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for rank in (0, 1)
    ]
    try:
        for rank in ranks:
            said, _ = rank.communicate(timeout=SECONDS)
            assert rank.returncode == 0, said[-3000:]
    finally:
        for rank in ranks:
            rank.kill()
    return path


def of_rank(folder: Path, name: str, rank: int = 0) -> Any:
    return torch.load(folder / f"{name} {rank}.pt", weights_only=True)


@pytest.mark.parametrize("name", TOYS)
def test_ranks_agree_to_the_last_bit(folder: Path, name: str) -> None:
    one, other = (of_rank(folder, name, rank)["weights"] for rank in (0, 1))
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("name", TOYS)
def test_two_ranks_do_what_one_process_does_with_both_halves(folder: Path, tmp_path: Path, name: str) -> None:
    cls, arguments = TOYS[name]
    model = make(cls, **{"backbone": "tiny_vgg", **arguments})
    runner = trainer(tmp_path)
    runner.fit(model, loader(batch_size=4))
    both = of_rank(folder, name)
    assert both["steps"] == runner.global_step
    for key, value in model.state_dict().items():
        if key in both["weights"]:
            torch.testing.assert_close(both["weights"][key], value, rtol=1e-3, atol=2e-5, msg=key)


@pytest.mark.parametrize("name", METHODS)
def test_weights_and_statistics_of_the_ranks_agree_to_the_last_bit(folder: Path, name: str) -> None:
    torch.testing.assert_close(*(of_rank(folder, name, rank)["whole"] for rank in (0, 1)), rtol=0, atol=0)


@pytest.mark.parametrize("name", METHODS)
def test_gradients_of_two_ranks_are_those_of_one_process(folder: Path, tmp_path: Path, name: str) -> None:
    alone = gradients(name, tmp_path, batch_size=4)
    together = of_rank(folder, name)["gradients"]
    assert len(together) == len(alone) == method(name).steps_per_batch
    for one, two in zip(alone, together, strict=True):
        # What the step leaves alone has a gradient of zero in each rank, which the model drops.
        assert all(not two[key].any() for key in two.keys() - one.keys())
        largest = max(float(gradient.abs().max()) for gradient in one.values())
        for key, gradient in one.items():
            torch.testing.assert_close(two[key], gradient, rtol=1e-4, atol=1e-6 * largest, msg=key)


@pytest.mark.parametrize("images", TEST_IMAGES)
@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_score_what_one_process_scores(folder: Path, tmp_path: Path, name: str, images: str) -> None:
    alone = scores(name, tmp_path, TEST_IMAGES[images])
    for rank in (0, 1):
        together = of_rank(folder, name, rank)["scores"][images]
        assert together.keys() == alone.keys()
        for key, value in alone.items():
            if key == "test/ece":
                # Of an untrained network: probabilities lie at 1/3, which is the border of two of its bins.
                continue
            # Counts are exact; means of floats are summed in another order.
            exact = key.startswith("test/top") or key in ("test/macro", "test/tail")
            # The only image of a test may be of no class of the tail, whose accuracy is no number then.
            within = {"rel": 0.0, "abs": 0.0} if exact else {"rel": 1e-5, "abs": 1e-6}
            assert together[key] == pytest.approx(value, **within, nan_ok=True), key


@pytest.mark.parametrize("images", TEST_IMAGES.values())
def test_two_ranks_write_every_image_once_and_in_order(folder: Path, tmp_path: Path, images: int) -> None:
    scores("rra", tmp_path, images)
    alone, together = (np.load(place / f"rra {images}" / PROBABILITIES["test"]) for place in (tmp_path, folder))
    assert together["names"].tolist() == alone["names"].tolist()
    assert len(together["names"]) == images
    assert together["targets"].tolist() == alone["targets"].tolist()
    assert together["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-3)
    assert np.unique(alone["probabilities"], axis=0).shape[0] == images


@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_resume_to_the_last_bit(folder: Path, name: str) -> None:
    for rank in (0, 1):
        found = of_rank(folder, name, rank)
        torch.testing.assert_close(found["resumed"], dict.fromkeys(found["resumed"], found["whole"]), rtol=0, atol=0)
