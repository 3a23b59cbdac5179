"""What the verbs that compute share: checkpoints by what was typed, and the processes that read images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fgzoo.checkpoints.run_folder import find_checkpoint

if TYPE_CHECKING:
    import torch

    from fgzoo.methods.base import FineGrainedClassifier

#: Where runs are looked for by `last` and `best`.
RUNS = Path("runs")


def load_models(checkpoints: Sequence[str], trust: Sequence[str], device: torch.device) -> list[FineGrainedClassifier]:
    """The models of checkpoints (files, runs' folders, names of the zoo, `last` or `best`), on a device."""
    from fgzoo.checkpoints.loading import load

    paths = [find_checkpoint(said, RUNS) for said in checkpoints]
    return [load(path, trust).to(device) for path in paths]


def loader_processes(asked: int | None, single_batch: bool = False) -> int:
    """How many processes read images: as many as were asked for, by default as many as suit this machine.

    None by default for a single batch, which one process would read in any case: starting one takes longer than a photo.
    """
    if asked is not None or single_batch:
        return asked or 0
    from fgzoo.data.datamodule import default_workers

    return default_workers("folder")
