"""Stages and several steps a batch with two processes: what one process would have done with the whole batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tests.backbones  # noqa: F401 - registers tiny_vgg
from tests.training.toys import loader, make, trainer
from tests.training.two_ranks import METHODS, SCENARIOS

SECONDS = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
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


@pytest.mark.parametrize("name", [*SCENARIOS, *METHODS])
def test_ranks_agree_to_the_last_bit(folder: Path, name: str) -> None:
    one, other = (torch.load(folder / f"{name} {rank}.pt", weights_only=True)["weights"] for rank in (0, 1))
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_ranks_do_what_one_process_does_with_both_halves(folder: Path, tmp_path: Path, name: str) -> None:
    cls, arguments = SCENARIOS[name]
    model = make(cls, "tiny_vgg", **arguments)
    runner = trainer(tmp_path)
    runner.fit(model, loader(batch_size=4))
    both = torch.load(folder / f"{name} 0.pt", weights_only=True)
    assert both["steps"] == runner.global_step
    for key, value in model.state_dict().items():
        if key in both["weights"]:
            torch.testing.assert_close(both["weights"][key], value, rtol=1e-3, atol=2e-5, msg=key)
