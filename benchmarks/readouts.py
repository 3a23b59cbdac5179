"""What a linear classifier can tell from what each method's classifiers read, before the method is trained.

Backbones have pretrained weights, the rest has those that training starts from, before and after the preset kept what pretraining
gave. Features are averaged over an image. Those of one of two folds of the training split train a ridge classifier, whose penalty
cross-validation chooses; its accuracy is on the other fold. What the layers between lose here, training must find again; "kept"
is the share of what the backbone's averaged features give, the baseline's. The test split is not read.

    python benchmarks/readouts.py --data cub --root PATH --backbone mobilenetv2_100 --weights PATH --write
    python benchmarks/readouts.py --data cub --root PATH --weights PATH --second tf_efficientnet_lite0 --second-weights PATH
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from common import AFTER, BEFORE, deliver, heading, machine, table

from fgzoo import FGVCDataModule, create_model, list_models
from fgzoo.interpret.readout import readout

TWO_STREAMS = ("bcnn", "srbn")


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for every method, before and after."""
    kept: dict[str, Any] = {"image_size": options.image_size, "resize": round(options.image_size * 8 / 7), "num_workers": 0}
    data = [FGVCDataModule(options.data, options.root, folds=2, fold=fold, seed=options.seed, **kept) for fold in (1, 0)]
    for fold in data:
        fold.setup("fit")
    folds = [[(images, targets) for images, targets, *_ in fold.val_dataloader()] for fold in data]
    weights = {"backbone": options.backbone, "pretrained": options.weights is None, "backbone_weights": options.weights}
    cases = [
        (method, when, {**given.get(method, {})})
        for method in options.methods
        for when, given in (("before", BEFORE), ("after", AFTER))
    ]
    if options.second is not None:
        second = {"second_backbone": options.second, "second_backbone_weights": options.second_weights}
        cases += [
            (method, "after, two networks", {**AFTER[method], **second}) for method in TWO_STREAMS if method in options.methods
        ]
    rows = []
    for method, when, own in cases:
        if when == "after" and own == BEFORE.get(method, {}):
            continue  # nothing of it changed
        torch.manual_seed(options.seed)
        model = create_model(method, data[0].num_classes, optimizer="adamw", **weights, **own)
        top1, features = readout(model, *folds)
        said = " ".join(f"{name} {given}" for name, given in own.items() if not name.endswith("_weights"))
        rows.append({"method": method, "when": when, "arguments": said, "features": features, "top1": top1})
    return rows


def main() -> None:
    """Measure, print, and with --write leave results/readouts.json and .md (readouts_DATA for other data than cub)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="birds", help="name of a data set")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--methods", nargs="+", default=["baseline", *(name for name in list_models() if name != "baseline")])
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--weights", type=Path, help="the backbone's weights, instead of timm's hub")
    parser.add_argument("--second", help="another network for the second stream of B-CNN and SRBN")
    parser.add_argument("--second-weights", type=Path)
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    about, rows = machine(), measure(options)
    base = rows[0]["top1"]
    shown = [
        [
            f"`{row['method']}`",
            row["when"],
            f"{row['features']:,}",
            f"{100 * row['top1']:.1f}",
            f"{100 * row['top1'] / base:.0f} %",
            row["arguments"],
        ]
        for row in rows
    ]
    text = [
        "# What can be read from features before training",
        heading(about, torch.device("cpu"), options.seed),
        (__doc__ or "").split("\n\n")[1].replace("\n", " "),
        f"`{options.data}`, `{options.backbone}`, {options.image_size} pixels.",
        table(["method", "preset", "features", "top-1 % of a ridge classifier, held out", "kept", "arguments"], shown),
    ]
    name = "readouts" if options.data == "cub" else f"readouts_{options.data}"
    deliver("\n\n".join(text) + "\n", {"machine": about, "rows": rows}, name if options.write else None)


if __name__ == "__main__":
    main()
