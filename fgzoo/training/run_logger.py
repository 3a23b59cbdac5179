"""metrics.csv of a run."""

from __future__ import annotations

import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from fgzoo.checkpoints.run_folder import METRICS
from fgzoo.files import atomic_write


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
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.folder)

    log_dir = save_dir

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
        with atomic_write(self.folder / METRICS) as part, part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)


def run_loggers(trainer: L.Trainer) -> list[RunLogger]:
    """Those of a trainer's loggers that write a run's metrics.csv."""
    return [logger for logger in trainer.loggers if isinstance(logger, RunLogger)]


def _is_test(row: dict[str, str]) -> bool:
    return any(name.startswith("test/") for name in row)


def _read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(file)]
