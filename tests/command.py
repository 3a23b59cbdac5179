"""The command line called in this process, on networks and images so small that a run takes a second."""

from __future__ import annotations

import contextlib
import csv
import io
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import yaml

from fgzoo.cli import main

MACHINE = ("--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--data.num_workers", "0")
NETWORK = ("--model.backbone", "test_efficientnet", "--model.pretrained", "false")
IMAGES = ("--data.image_size", "64", "--data.resize", "64", "--data.batch_size", "3")
ON_CPU = ("--device", "cpu", "--num-workers", 0)


class Result(NamedTuple):
    status: int
    out: str
    err: str


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def fgzoo(*arguments: object, cwd: Path | None = None) -> Result:
    """`fgzoo ARGUMENTS` in a folder, with what it printed."""
    out, err = io.StringIO(), io.StringIO()
    handlers = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        if cwd is not None:
            stack.enter_context(contextlib.chdir(cwd))
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        finally:
            # Lightning ignores Ctrl-C from its first one on.
            for name, handler in handlers.items():
                signal.signal(name, handler)
    return Result(status, out.getvalue(), err.getvalue())


def fit(root: Path, *arguments: object, model: str = "baseline", epochs: int = 1, cwd: Path | None = None) -> Result:
    """Train on a data set in CUB's format."""
    what = ("--config", "cub", "--model", model, "--data.root", root, "--trainer.max_epochs", epochs)
    return fgzoo("fit", *what, *NETWORK, *IMAGES, *MACHINE, *arguments, cwd=cwd)


def resolved(*arguments: object) -> dict[str, Any]:
    """What `fgzoo fit ARGUMENTS` would run."""
    result = fgzoo("fit", *arguments, "--print_config")
    assert result.status == 0, result.err
    return yaml.safe_load(result.out)


def predict(run: SimpleNamespace | Path, *arguments: object) -> Result:
    return fgzoo("predict", run.run if isinstance(run, SimpleNamespace) else run, *arguments, *ON_CPU)


def rows(table: Result | Path, status: int = 0) -> list[dict[str, str]]:
    """The rows that a command printed, or those of a file."""
    if isinstance(table, Result):
        assert table.status == status, table.err
    text = table.out if isinstance(table, Result) else table.read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text)))


@contextlib.contextmanager
def breaking_off(
    method: type[Any], epoch: int, batch: int, error: BaseException | type[BaseException] = KeyboardInterrupt
) -> Iterator[None]:
    """Trainings of a method break off before a batch of an epoch, both counted from 0."""
    step = method.training_step

    def breaking_step(self: Any, images: Any, batch_idx: int) -> Any:
        if (self.current_epoch, batch_idx) == (epoch, batch):
            raise error
        return step(self, images, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "training_step", breaking_step)
        yield


def metrics(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, without their empty cells."""
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint file, or in the last checkpoint of a run's folder."""
    path = checkpoint / "checkpoints" / "last.ckpt" if checkpoint.is_dir() else checkpoint
    state: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    return state
