"""A run's folder: where it lies, and what is written into it."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import platform
import resource
import subprocess
import sys
from argparse import Namespace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

import fgzoo
from fgzoo.errors import CheckpointError, UsageError
from fgzoo.files import whole
from fgzoo.zoo.checkpoint import BEST, LAST

CONFIG = "config.yaml"
METRICS = "metrics.csv"
#: What every image of a split was given, by the split.
PROBABILITIES = {split: f"{split}_probabilities.npz" for split in ("val", "test")}


def next_folder(base: Path) -> Path:
    """The first free numbered folder: base/000, base/001 and so on.

    Args:
        base: E.g. `runs/cub-rra`.

    Returns:
        A folder that does not exist yet; another process may make it, see [new_folder][].
    """
    taken = [int(path.name) for path in base.glob("[0-9]*") if path.name.isdigit()] if base.is_dir() else []
    return base / f"{max(taken, default=-1) + 1:03d}"


def new_folder(base: Path) -> Path:
    """Make the next numbered folder; runs that start at the same moment get folders of their own.

    Args:
        base: E.g. `runs/cub-rra`.

    Returns:
        The folder, empty.
    """
    while True:
        folder = next_folder(base)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder


def newest_run(base: Path) -> Path | None:
    """The run below a folder whose last checkpoint is the most recent; `None` without any.

    Args:
        base: E.g. `runs` or `runs/cub-rra`.

    Returns:
        The run's folder.
    """
    found = list(base.glob(f"**/{LAST.as_posix()}")) if base.is_dir() else []
    return max(found, key=lambda path: path.stat().st_mtime).parents[1] if found else None


def find_checkpoint(said: str, base: Path) -> Path:
    """The file that `--ckpt_path` means.

    Args:
        said: A file, a run's folder, `last` or `best` (of the newest run below base).
        base: Where runs are.

    Returns:
        The file.

    Raises:
        CheckpointError: There is none.
    """
    from fgzoo.zoo.checkpoint import resolve

    if said not in ("last", "best"):
        return resolve(said)
    run = newest_run(base)
    if run is None:
        raise CheckpointError(f"--ckpt_path {said}: there is no trained run below {base}")
    path = run / (LAST if said == "last" else BEST)
    if not path.is_file():
        raise CheckpointError(
            f"--ckpt_path best: {run} has no {BEST}, because nothing was held out for validation "
            f"(--data.val_fraction, --data.folds); use --ckpt_path last"
        )
    return path


def run_of(checkpoint: Path) -> Path | None:
    """The run's folder that a checkpoint lies in; `None` where it lies elsewhere."""
    folder = checkpoint.resolve().parents[1] if checkpoint.parent.name == LAST.parent.name else checkpoint.parent
    return folder if (folder / CONFIG).is_file() else None


class RunLogger(Logger):
    """metrics.csv of a run: a row per logging step, columns as they come, never a row lost or doubled.

    Lightning's own CSV logger deletes the file when a run resumes. This one reads it, drops the rows of epochs that the resumed
    run does again, and goes on. `test` adds its row to the same file, once for a checkpoint.

    Args:
        folder: The run's folder.

    Attributes:
        place: Epoch and step of the checkpoint that is being scored; `None` in training, where the trainer knows them.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.rows: list[dict[str, str]] = _read_rows(folder / METRICS)
        self.place: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return self.folder.name

    @property
    def version(self) -> str:
        """Runs have a folder each, so there are no versions."""
        return ""

    @property
    def log_dir(self) -> str:
        """The run's folder."""
        return str(self.folder)

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.folder)

    def forget_from(self, epoch: int) -> None:
        """Drop the training and validation rows of this epoch and later ones: they are about to be done (again)."""
        self.rows = [row for row in self.rows if int(row["epoch"]) < epoch or _is_test(row)]

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add values to the row of this epoch and step."""
        values = {name: f"{float(value):.9g}" for name, value in metrics.items() if name != "epoch"}
        epoch, step = self.place or (int(metrics.get("epoch", 0)), step or 0)
        place = {"epoch": str(epoch), "step": str(step)}
        last = self.rows[-1] if self.rows else {}
        if _is_test(values):
            self.rows = [row for row in self.rows if not (_is_test(row) and place.items() <= row.items())]
            self.rows.append({**place, **values})
        elif place.items() <= last.items() and not _is_test(last) and all(last.get(n, v) == v for n, v in values.items()):
            last.update(values)
        else:
            self.rows.append({**place, **values})
        self.save()

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The run's config.yaml holds them already."""

    @rank_zero_only
    def save(self) -> None:
        """Write the file anew and move it into place, so that it is whole at every moment."""
        if not self.rows:
            return
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        self.folder.mkdir(parents=True, exist_ok=True)
        with whole(self.folder / METRICS) as part, part.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)


def _is_test(row: dict[str, str]) -> bool:
    return any(name.startswith("test/") for name in row)


def _read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(file)]


def peak_memory(device: torch.device) -> int:
    """The most memory that this process has held so far.

    Args:
        device: Where the model is.

    Returns:
        Bytes: allocated by torch on a GPU, else resident in the machine's memory.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak if sys.platform == "darwin" else 1024 * peak


def environment() -> dict[str, Any]:
    """Versions, hardware, git revision and command line of this process.

    Returns:
        Plain types, for environment.json.
    """
    packages = {}
    for name in ("torch", "torchvision", "lightning", "timm", "torchmetrics", "torchcodec", "jsonargparse", "numpy"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "absent"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "fgzoo": fgzoo.__version__,
        "git": _git_revision(),
        "python": platform.python_version(),
        "packages": packages,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def _git_revision() -> str | None:
    """Revision of the source tree this package runs from, with `+` where it has uncommitted changes; `None` outside of one."""
    root = Path(fgzoo.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part:
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def check_new(folder: Path) -> None:
    """Refuse a folder that another run has filled.

    Args:
        folder: Where a new run is to go.

    Raises:
        UsageError: It holds a run.
    """
    if (folder / CONFIG).exists():
        raise UsageError(f"--output: {folder} holds a run already; continue it by --resume {folder}, or name another folder")
