"""`fgzoo report`; torch is imported once the arguments are known."""

from __future__ import annotations

import sys
from pathlib import Path

from jsonargparse.typing import NonNegativeInt

from fgzoo.checkpoints.run_folder import find_run
from fgzoo.commands.models import RUNS


def report(
    run: Path,
    *,
    output: Path | None = None,
    root: Path | None = None,
    mistakes: NonNegativeInt = 24,
    skip_duplicates: bool = False,
    device: str = "auto",
    trust: list[str] = [],  # noqa: B006 - it is read only
) -> int:
    """One page about a finished run: curves, accuracy, calibration, confusion, its worst mistakes with maps, doubtful labels.

    The page needs no network. Labels in doubt and near-duplicates are written beside it, as label_errors.csv and
    near_duplicates.csv. What the run's folder lacks, the page says, and what to type to have it.

    Args:
        run: The run's folder, or `last` for the newest below runs/.
        output: The folder to write to; without it `report` in the run's folder.
        root: Where the run's images lie now, if not where they lay in training.
        mistakes: How many of the worst mistakes to show.
        skip_duplicates: Do not look for near-duplicates, for which every image is read once.
        device: auto, cpu, cuda, cuda:0 or mps.
        trust: A package whose classes a checkpoint may name (repeatable).

    Returns:
        The exit status.
    """
    from fgzoo.prediction.files import find_device
    from fgzoo.reporting.report import write_report

    found = write_report(find_run(run, RUNS), output, root, mistakes, not skip_duplicates, find_device(device, "report"), trust)
    sys.stdout.write("".join(f"{line}\n" for line in (*found.lines, found.page)))
    return 0
