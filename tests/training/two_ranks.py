"""One of two processes that train the toys together: `python -m tests.training.two_ranks FOLDER`, with the rank in LOCAL_RANK."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

import tests.backbones  # noqa: F401 - registers tiny_vgg
from tests.training.toys import Staged, Steps, loader, make, trainer

#: Without batch statistics, two ranks of two images are one process of four.
SCENARIOS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "staged": (Staged, {"optimizer": "adamw", "lr": 1e-3, "clip_norm": 1.0}),
    "steps": (Steps, {"optimizer": "adamw", "lr": 1e-3, "clip_norm": 1.0}),
    "steps with momentum": (Steps, {"optimizer": "sgd", "lr": 1e-2}),
}


def main(folder: Path) -> None:
    rank = int(os.environ["LOCAL_RANK"])
    for name, (cls, arguments) in SCENARIOS.items():
        model = make(cls, "tiny_vgg", **arguments)
        runner = trainer(folder, devices=2, strategy="ddp")
        runner.fit(model, loader(batch_size=2, first=rank, every=2))
        torch.save({"weights": model.state_dict(), "steps": runner.global_step}, folder / f"{name} {rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
