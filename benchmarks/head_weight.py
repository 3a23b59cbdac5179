"""How much one head of a trained network should count beside another, on the images that its run held out.

The scores are z = z_beside + w z_head, for several w. Heads are not trained again: this is for methods whose heads have losses of
their own. The run must hold a fold or a fraction of its training split out; the test split is not read.

    python benchmarks/head_weight.py RUN --head hidden --beside bilinear --root PATH --write      # SRBN
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from common import data_of, deliver, heading, machine, table
from torch import Tensor

from fgzoo.checkpoints.loading import load
from fgzoo.checkpoints.run_folder import CONFIG, LAST

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5)


@torch.inference_mode()
def scores(run: Path, root: Path | None, names: tuple[str, str]) -> tuple[Tensor, Tensor, Tensor]:
    """Both heads' logits (N, K) of the images held out, and their classes (N,)."""
    model = load(run / LAST).eval()
    data = data_of(run, root)
    data.setup("fit")
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for images, targets, *_ in data.val_dataloader():
        heads = model(model.normalize(images)).heads
        found.append((heads[names[0]], heads[names[1]], targets))
    one, other, targets = (torch.cat(parts) for parts in zip(*found, strict=True))
    return one, other, targets


def rows(one: Tensor, other: Tensor, targets: Tensor) -> list[list[str]]:
    """Accuracy and negative log-likelihood by weight, with the standard error that so many images leave."""
    lines = []
    for weight in WEIGHTS:
        z = other + weight * one
        top1 = (z.argmax(dim=1) == targets).double().mean()
        error = (top1 * (1 - top1) / len(targets)).sqrt()
        lines.append([f"{weight:g}", f"{100 * top1:.1f} ± {100 * error:.1f}", f"{F.cross_entropy(z, targets):.3f}"])
    return lines


def main() -> None:
    """Measure, print, and with --write leave results/head_weight.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run that held something out")
    parser.add_argument("--head", required=True)
    parser.add_argument("--beside", required=True)
    parser.add_argument("--root", type=Path, help="the data, where they lie elsewhere now")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    one, other, targets = scores(options.run, options.root, (options.head, options.beside))
    about, lines = machine(), rows(one, other, targets)
    text = [
        f"# The weight of `{options.head}` beside `{options.beside}`",
        heading(about, torch.device("cpu"), 0),
        f"The run: `{(options.run / CONFIG).read_text().partition(chr(10))[0].removeprefix('# ').partition(' --data.root')[0]}`; "
        f"{len(targets)} images that it held out of the training split.",
        table(["weight", "top-1 %", "NLL"], lines),
    ]
    deliver("\n\n".join(text) + "\n", {"machine": about, "rows": lines}, "head_weight" if options.write else None)


if __name__ == "__main__":
    main()
