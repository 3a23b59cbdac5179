"""One of two processes that train the toys together: `python -m tests.training.two_ranks FOLDER`, with the rank in LOCAL_RANK."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

import tests.backbones  # noqa: F401 - registers tiny_vgg
from fgzoo.methods import find_method
from tests.training.toys import Staged, Steps, loader, make, trainer

#: Without batch statistics, two ranks of two images are one process of four.
SCENARIOS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "staged": (Staged, {"optimizer": "adamw", "lr": 1e-3, "clip_norm": 1.0}),
    "steps": (Steps, {"optimizer": "adamw", "lr": 1e-3, "clip_norm": 1.0}),
    "steps with momentum": (Steps, {"optimizer": "sgd", "lr": 1e-2}),
}
#: Real methods, whose batch-norm statistics are a rank's own: ranks agree on what is trained and on the class centres.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "coarse2fine": ("coarse2fine", {"num_maps": 4, "decoder_widths": (8, 4)}),
    "iagn": ("iagn", {"feature_size": 16}),
    "srbn": ("srbn", {"hidden_size": 16, "rank": 32, "projection": 16, "attention_size": 16}),
}


def main(folder: Path) -> None:
    rank = int(os.environ["LOCAL_RANK"])
    found = {name: (find_method(method)[0], arguments) for name, (method, arguments) in METHODS.items()}
    for name, (cls, arguments) in {**SCENARIOS, **found}.items():
        model = make(cls, "tiny_vgg", **arguments)
        runner = trainer(folder, devices=2, strategy="ddp")
        runner.fit(model, loader(batch_size=2, first=rank, every=2))
        weights = {key: value for key, value in model.state_dict().items() if "running_" not in key}
        torch.save({"weights": weights, "steps": runner.global_step}, folder / f"{name} {rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
