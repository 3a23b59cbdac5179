"""What does a trained SRBN read? Its validation images again, with a part of it replaced that the others have learnt beside.

    python benchmarks/reading.py --runs RUNS --root cub=PATH cars=PATH     # results/reading.md and .csv, of the runs of plan srbn

Either its cells are shuffled (one order for all images), or its attention is uniform over the cells that a cell has seen. Beside
that stand how many cells the last cell attends to, exp of the attention's entropy, and how alike the cells are: the mean cosine
of the scan's inputs, less their mean over all images and cells, at neighbouring locations and at any two locations of an image.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import common
import numpy as np
import torch
import torch.nn.functional as F
from common import Row, markdown_table, say, write_report
from plan import read_plan
from results import Results, check_answers
from runner import paths_by_name, root_of
from sizes import finished_runs, opened
from tables import mean_std, percentage_points, with_interval
from torch import Tensor

from fgzoo.methods.srbn import SRBNNetwork

#: What is replaced; each alone.
AS_TRAINED, SHUFFLED, UNIFORM = "as trained", "cells shuffled", "attention uniform"


def likeness(cells: Tensor) -> tuple[float, float]:
    """Mean cosine of neighbouring cells, to the right and below, and of any two different cells, of maps (N, C, h, w)."""
    units = F.normalize(cells - cells.mean(dim=(0, 2, 3), keepdim=True), dim=1)
    beside = [(units[..., 1:] * units[..., :-1]).sum(dim=1), (units[..., 1:, :] * units[..., :-1, :]).sum(dim=1)]
    flat = units.flatten(2)
    count = flat.shape[2]
    pairs = flat.sum(dim=2).square().sum(dim=1) - count
    return float(torch.cat([one.flatten() for one in beside]).mean()), float(pairs.mean() / (count * (count - 1)))


@torch.no_grad()
def read(run: Path, root: Path, size: int) -> tuple[dict[str, np.ndarray], Row]:
    """The classes that a run's network gives its validation images, by what is replaced; and what its cells are like."""
    model, images = opened(run, root, size)
    network = model.network
    assert isinstance(network, SRBNNetwork)
    assert network.attention is not None
    batches = [model.normalize(batch[0]) for batch in images.val_dataloader()]
    streams = [network.streams(batch) for batch in batches]
    beside, apart = likeness(torch.cat([network.local_features(a, b) for a, b in streams]))

    def answers() -> tuple[np.ndarray, Tensor]:
        """The classes, and where the last cell looks."""
        outputs = [model(batch) for batch in batches]
        looked = torch.cat([output.attention[:, 0].flatten(1) for output in outputs])
        return torch.cat([output.logits.argmax(dim=1) for output in outputs]).numpy(), looked / looked.sum(dim=1, keepdim=True)

    as_trained, attention = answers()
    wide = torch.special.entr(attention).sum(dim=1).exp()
    network.shuffle = True
    shuffled, _ = answers()
    network.shuffle = False
    for parameter in network.attention.parameters():
        parameter.zero_()
    found = {AS_TRAINED: as_trained, SHUFFLED: shuffled, UNIFORM: answers()[0]}
    about = {"cells": attention.shape[1], "attended": f"{wide.mean():.2f}"}
    return found, about | {"cosine of neighbours": f"{beside:.4f}", "cosine of any two": f"{apart:.4f}"}


def reading(*, runs: Path, root: Sequence[str] = (), plan: str = "srbn", label: str = "SRBN") -> None:
    """Validate finished runs of SRBN with parts replaced.

    Args:
        runs: Where the runs lie.
        root: Folders of data sets, NAME=PATH.
        plan: A plan on folds.
        label: The row whose runs these are.
    """
    results, places, rows = Results(read_plan(plan).name), paths_by_name(root, "--root"), []
    lost: dict[tuple[str, str], list[np.ndarray]] = {}
    for row, targets, known in finished_runs(results, [label], runs):
        found, about = read(runs / row["cell"], root_of(row["dataset"], places), int(row["size"]))
        check_answers(row, found[AS_TRAINED], known)
        for what in (SHUFFLED, UNIFORM):
            difference = (found[what] == targets).astype(float) - (found[AS_TRAINED] == targets)
            lost.setdefault((row["dataset"], what), []).append(difference)
        top1 = {f"{what}, top-1": f"{(answers == targets).mean():.4f}" for what, answers in found.items()}
        rows.append({"cell": row["cell"], "data": row["dataset"], **top1, **about})
        say(", ".join(map(str, rows[-1].values())))
    shown = []
    for dataset in dict.fromkeys(row["data"] for row in rows):
        ours = [row for row in rows if row["data"] == dataset]
        line: Row = {"data": dataset, "runs": len(ours)}
        line["top-1 %"] = mean_std([float(row[f"{AS_TRAINED}, top-1"]) for row in ours])
        for what in (SHUFFLED, UNIFORM):
            line[what] = percentage_points(*with_interval([np.stack(lost[dataset, what])]))
        line |= {"cells": ours[0]["cells"]}
        for name in ("attended", "cosine of neighbours", "cosine of any two"):
            line[name] = mean_std([float(row[name]) for row in ours], factor=1, digits=2)
        shown.append(line)
    about_it = (__doc__ or "").split("\n\n")[2]
    text = f"{about_it}\n\nDifferences in points, paired by seed and image; 95 % intervals by a bootstrap of both.\n\n"
    write_report(f"What `{label}` of plan `{plan}` reads", text + markdown_table(shown), rows, "reading")


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(common.main(reading))
