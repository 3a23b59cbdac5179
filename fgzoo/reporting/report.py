"""A run's report: the page, and its lists of labels in doubt and of near-duplicates as CSV beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from fgzoo.errors import UsageError
from fgzoo.files import atomic_write, prepare_folder
from fgzoo.reporting.findings import doubtful_labels, find_copies, write_copies, write_label_errors
from fgzoo.reporting.page import page
from fgzoo.reporting.photos import Photos
from fgzoo.reporting.run import read_run
from fgzoo.reporting.scores import HELD_OUT, interval
from fgzoo.wording import plural

#: Where a run keeps its report, below its folder.
FOLDER = "report"
PAGE, LABEL_ERRORS, NEAR_DUPLICATES = "index.html", "label_errors.csv", "near_duplicates.csv"
#: Confused pairs that are named in a line.
PAIRS = 3


class Report(NamedTuple):
    """What [write_report][] wrote.

    Attributes:
        page: The page.
        lines: What a person wants to know at once: accuracy with its interval, the most confused pairs, how long the lists are.
    """

    page: Path
    lines: list[str]


def write_report(
    run: Path,
    output: Path | None = None,
    root: Path | None = None,
    mistakes: int = 24,
    duplicates: bool = True,
    device: torch.device | None = None,
    trust: Sequence[str] = (),
) -> Report:
    """Write the report of a finished run, from whatever its folder holds; the page says what is missing and how to get it.

    Args:
        run: A folder that `fgzoo fit` wrote, best after `fgzoo test`.
        output: The folder to write to; by default `report` in the run's.
        root: Where the run's images lie now; by default where they lay in training.
        mistakes: How many of the worst mistakes to show.
        duplicates: Look for near-duplicates, for which every image is read once.
        device: Where the model looks at its mistakes; by default the CPU.
        trust: Packages whose classes the checkpoint may name.

    Returns:
        Where everything is, and what it says in short.

    Raises:
        UsageError: The folder holds no finished run, or `output` is a file or cannot be written to.
        CheckpointError: The run's checkpoint cannot be read.
    """
    output = run / FOLDER if output is None else output
    if output.exists() and not output.is_dir():
        raise UsageError(f"report: {output} is a file; give a folder")
    found = read_run(run, root, trust, device)
    prepare_folder(output, "report")
    names = found.card.class_names
    photos = Photos(found)
    doubts = doubtful_labels(found, photos) if found.scores else None
    copies = find_copies(found) if duplicates and found.data is not None else None
    # What this report does not know, an older one's list shall not say.
    for name in (LABEL_ERRORS, NEAR_DUPLICATES):
        (output / name).unlink(missing_ok=True)
    if doubts is not None:
        write_label_errors(output / LABEL_ERRORS, doubts, names)
    if copies is not None:
        write_copies(output / NEAR_DUPLICATES, copies, names)
    with atomic_write(output / PAGE) as part:
        part.write_text(page(found, photos, doubts, copies, mistakes), encoding="utf-8", errors="replace", newline="\n")
    lines = []
    for scores in found.scores.values():
        low, high = interval(int(scores.right.sum()), len(scores))
        kind = HELD_OUT[scores.part]
        share = f"{100 * scores.accuracy:.1f} % of {plural(len(scores), f'{kind} image', f'{kind} images')} right"
        lines.append(f"{share} (95 % interval {100 * low:.1f} to {100 * high:.1f} %)")
    for scores in list(found.scores.values())[:1]:
        pairs = [f"{names[true]} taken for {names[answer]} ({count})" for true, answer, count in scores.confused(PAIRS)]
        lines += [f"Most confused: {', '.join(pairs)}"] if pairs else []
    if doubts:
        lines.append(f"{plural(len(doubts), 'label', 'labels')} in doubt: {output / LABEL_ERRORS}")
    groups = [] if copies is None else copies.groups
    for what, count in (
        ("across training and held-out images", sum(group.leaks for group in groups)),
        ("that are of several classes", sum(group.contradicts for group in groups)),
    ):
        if count:
            lines.append(f"{plural(count, 'group', 'groups')} of near-duplicates {what}: {output / NEAR_DUPLICATES}")
    return Report(output / PAGE, lines)
