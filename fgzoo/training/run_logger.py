"""metrics.csv of a run."""

from __future__ import annotations

import csv
import os
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

    Lightning's own CSV logger deletes the file when a run resumes. This one reads it, drops the rows of steps that the resumed
    run does again, and goes on. `test` adds its row to the same file, once for a checkpoint. A row is appended; the file is
    written anew, and moved into place when it is whole, where there is a new column or a row is dropped.

    Args:
        folder: The run's folder.

    Attributes:
        place: Epoch and step of the checkpoint that is being scored; `None` in training, where the trainer knows them.
        trainer: Knows the epoch of what a callback logs without one.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.rows: list[dict[str, str]] = _read_rows(folder / METRICS)
        self.columns = list(dict.fromkeys(name for row in self.rows for name in row))
        self.place: tuple[int, int] | None = None
        self.trainer: L.Trainer | None = None
        #: Where in the file its last row begins; `None` where it has to be written anew.
        self._last: int | None = None

    @property
    def name(self) -> str:
        """Where below the run's folder Lightning's own checkpoint callbacks write, apart from the run's checkpoints."""
        return "lightning"

    @property
    def version(self) -> str:
        """Runs have a folder each, so there are no versions."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.folder)

    log_dir = save_dir

    def forget_from(self, step: int) -> None:
        """Drop the training and validation rows of this step and later ones: they are about to be done (again)."""
        self.rows = [row for row in self.rows if int(row["step"]) < step or _is_test(row)]
        self._last = None

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add values to the row of this epoch and step."""
        values = {name: f"{float(value):.9g}" for name, value in metrics.items() if name != "epoch"}
        now = 0 if self.trainer is None else self.trainer.current_epoch
        epoch, step = self.place or (int(metrics.get("epoch", now)), step or 0)
        place = {"epoch": str(epoch), "step": str(step)}
        last = self.rows[-1] if self.rows else {}
        if _is_test(values):
            self.rows = [row for row in self.rows if not (_is_test(row) and place.items() <= row.items())]
            self._write_all({**place, **values})
        elif place.items() <= last.items() and not _is_test(last) and all(last.get(n, v) == v for n, v in values.items()):
            self.rows.pop()
            self._write({**last, **values}, instead=True)
        else:
            self._write({**place, **values}, instead=False)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The run's config.yaml holds them already."""

    def _write(self, row: dict[str, str], instead: bool) -> None:
        """Put a row at the file's end, or in the place of its last one."""
        if self._last is None or not row.keys() <= set(self.columns):
            self._write_all(row)
            return
        self.rows.append(row)
        with (self.folder / METRICS).open("r+", newline="", encoding="utf-8") as file:
            self._last = file.seek(self._last) if instead else file.seek(0, os.SEEK_END)
            file.truncate()
            csv.DictWriter(file, self.columns, restval="").writerow(row)

    def _write_all(self, row: dict[str, str]) -> None:
        """Write the file anew, with a further row."""
        self.rows.append(row)
        self.columns = list(dict.fromkeys((*self.columns, *row)))
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.folder / METRICS) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows[:-1])
            self._last = file.tell()
            writer.writerow(row)


def run_loggers(trainer: L.Trainer) -> list[RunLogger]:
    """Those of a trainer's loggers that write a run's metrics.csv."""
    return [logger for logger in trainer.loggers if isinstance(logger, RunLogger)]


def _is_test(row: dict[str, str]) -> bool:
    return any(name.startswith("test/") for name in row)


def _read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    # A row that was being written when the machine went down is not whole.
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(lines)]
