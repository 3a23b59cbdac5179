"""Do networks answer better at another size than that of their training? FixRes (Touvron et al., arXiv 1906.06423), untuned.

    python benchmarks/sizes.py preset --runs RUNS --root cub=PATH cars=PATH     # results/sizes.md and .csv

The finished runs of a plan on folds are validated again, at larger sizes; images are resized in proportion.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import common
import numpy as np
import torch
from common import Row, markdown_table, say, write_report
from plan import read_plan
from results import Results, check_answers, predicted_name, targets_name
from runner import paths_by_name, root_of
from tables import percentage_points, with_interval

from fgzoo import FGVCDataModule, FineGrainedClassifier, load
from fgzoo.recipes import read_config


def opened(run: Path, root: Path, size: int) -> tuple[FineGrainedClassifier, FGVCDataModule]:
    """A run's last checkpoint, and the images that it was validated on, at a size in pixels."""
    model, config = load(run).at_size(size), read_config(run / "config.yaml")
    assert model.card is not None
    kept = {name: config["data"][name] for name in ("name", "resize_mode", "folds", "fold", "decoder")}
    images = FGVCDataModule(
        root=root, image_size=size, resize=model.card.resize, num_workers=0, seed=config["seed_everything"], cache="disk", **kept
    )  # fmt: skip
    images.setup("validate")
    return model, images


def finished_runs(results: Results, labels: Sequence[str], runs: Path) -> Iterator[tuple[Row, np.ndarray, np.ndarray]]:
    """The rows of a plan's results whose runs are there; of their validation images the classes, and those that were answered."""
    for row in results.rows:
        if row["label"] in labels and (runs / row["cell"]).is_dir():
            yield row, results.arrays[targets_name(row)], results.arrays[predicted_name(row)]


@torch.no_grad()
def predicted(run: Path, root: Path, size: int) -> np.ndarray:
    """The classes that a run's last checkpoint gives its validation images at a size in pixels."""
    model, images = opened(run, root, size)
    return torch.cat([model(model.normalize(batch[0])).logits.argmax(dim=1) for batch in images.val_dataloader()]).numpy()


def sizes(
    plan: str,
    *,
    runs: Path,
    root: Sequence[str] = (),
    pixels: Sequence[int] = (184, 208, 240),
    labels: Sequence[str] = ("Baseline", "RRA"),
) -> None:
    """Validate finished runs at other sizes.

    Args:
        plan: A plan on folds.
        runs: Where its runs lie.
        root: Folders of data sets, NAME=PATH.
        pixels: Sizes.
        labels: Rows of the plan.
    """
    results, places, gains, rows = Results(read_plan(plan).name), paths_by_name(root, "--root"), {}, []
    for row, targets, known in finished_runs(results, labels, runs):
        run, place, size = runs / row["cell"], root_of(row["dataset"], places), int(row["size"])
        check_answers(row, predicted(run, place, size), known)
        for other in pixels:
            found = predicted(run, place, other)
            gain = (found == targets).astype(float) - (known == targets)
            gains.setdefault((row["dataset"], row["label"], size, other), {}).setdefault(row["seed"], []).append(gain)
            rows.append(
                {"cell": row["cell"], "size": other, "top1": f"{(found == targets).mean():.4f}", "at its own": row["top1"]}
            )
            say(", ".join(map(str, rows[-1].values())))
    table: dict[tuple[str, str, int], Row] = {}
    for (dataset, label, size, other), seeds in gains.items():
        shown = table.setdefault((dataset, label, size), {"data": dataset, "what": label, "trained at": size})
        stacked = np.stack([np.concatenate(folds) for folds in seeds.values()])
        shown["runs"] = sum(map(len, seeds.values()))
        shown[f"{other} pixels"] = percentage_points(*with_interval([stacked]))
    text = "Points more than at the size of training, paired by seed and image; 95 % intervals by a bootstrap of both.\n\n"
    write_report(
        f"Plan `{plan}` at other sizes than it was trained at", text + markdown_table(list(table.values())), rows, "sizes"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(common.main(sizes))
