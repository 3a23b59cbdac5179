"""What the preset `small` reaches on one small data set: the search inside its training split, and the final runs.

Every cell is one `fgzoo fit` (and one `fgzoo test`) as a person would type it. Finished cells are skipped, so the script may be
stopped and started again. Settings are chosen by `search` and `remedies`, which see folds of the training split only; `final`
trains on the whole training split and runs the test split once, at the last epoch.

    python benchmarks/small_machine.py search --root cub50 --weights mobilenetv2_100.safetensors
    python benchmarks/small_machine.py remedies --root cub50 --weights mobilenetv2_100.safetensors --size 160 --epochs 10
    python benchmarks/small_machine.py final --root cub50 --weights mobilenetv2_100.safetensors
    python benchmarks/small_machine.py table
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from fgzoo import create_model

RESULTS = Path(__file__).parent / "results" / "small_machine.csv"


class Cell(NamedTuple):
    """One run: a label, where it belongs, and what is typed."""

    part: str
    label: str
    model: str
    arguments: tuple[str, ...]
    seed: int = 0
    fold: int | None = None
    data: str = "cub"


def search_cells() -> list[Cell]:
    """Learning rates of the preset for the baseline, then RRA's level of the local stream: two folds each."""
    rates = {
        "lr 1e-3, backbone x0.3": ("1e-3", "0.3"),
        "lr 2e-3, backbone x0.15": ("2e-3", "0.15"),
        "lr 2e-3, backbone x0.5": ("2e-3", "0.5"),
        "lr 4e-3, backbone x0.25": ("4e-3", "0.25"),
    }
    cells = []
    for fold in (0, 1):
        for label, (lr, factor) in rates.items():
            arguments = ("--model.lr", lr, "--model.backbone_lr_factor", factor)
            cells.append(Cell("search", label, "baseline", arguments, fold=fold))
    for stride in (16, 32):
        arguments = ("--model.local_stride", str(stride))
        cells += [Cell("search", f"local_stride {stride}", "rra", arguments, fold=fold) for fold in (0, 1)]
    return cells


def remedy_cells() -> list[Cell]:
    """What might help a method against its parent, on the first fold: each beside the method as it is and its parent.

    RRA's local stream reads 96 channels. Coarse2Fine's mask is the whole image at its start, and its second stage trains without
    the parent's crop and drop. B-CNN's first step trains the classifier alone, at a rate that a new layer may not bear.
    """
    tried: dict[str, list[tuple[str, ...]]] = {
        "rra-parent": [()],
        "rra": [(), ("--model.local_stride", "32")],
        "wsdan": [()],
        "coarse2fine": [
            ("--model.fine", "mask", "--model.keep_views", "false", "--model.region_weight", "0"),
            ("--model.fine", "mask", "--model.keep_views", "false"),
            ("--model.fine", "crop", "--model.keep_views", "false"),
            ("--model.fine", "mask", "--model.keep_views", "true"),
            ("--model.fine", "crop", "--model.keep_views", "true"),
            ("--model.fine", "crop", "--model.keep_views", "true", "--model.mask_weight", "0.1"),
            ("--model.fine", "crop", "--model.keep_views", "true", "--model.mask_weight", "0.3"),
        ],
        "bcnn": [(), ("--model.new_share", "0")],
        "srbn": [(), ("--model.new_share", "0"), ("--model.directions", "4")],
        "pmg": [()],
        "iagn": [(), ("--model.guidance", "false"), ("--model.distillation_weight", "0")],
    }
    return [
        Cell("remedies", " ".join(arguments).replace("--model.", "") or "default", model, arguments, fold=0)
        for model, variants in tried.items()
        for arguments in variants
    ]


def final_cells() -> list[Cell]:
    """Baseline with three seeds; every method, its parent, and the controls with two networks and no mechanism with one."""
    cells = [Cell("final", "Baseline", "baseline", (), seed=seed) for seed in (0, 1, 2)]
    return [
        *cells,
        Cell("final", "RRA's parent", "rra-parent", ()),
        Cell("final", "RRA", "rra", ()),
        Cell("final", "WS-DAN, parent of Coarse2Fine", "wsdan", ()),
        Cell("final", "WS-DAN from orthogonal rows", "wsdan", ("--model.init", "orthogonal")),
        Cell("final", "Coarse2Fine", "coarse2fine", ()),
        Cell("final", "B-CNN, parent of SRBN", "bcnn", ()),
        Cell("final", "SRBN", "srbn", ()),
        Cell("final", "PMG, parent of IAGN", "pmg", ()),
        Cell("final", "IAGN", "iagn", ()),
        Cell("final", "two networks, no recursion (control of RRA)", "rra", ("--model.recursion", "false")),
        Cell("final", "two networks, concatenated (control of SRBN)", "bcnn", ("--model.combine", "concat")),
    ]


def cars_cells() -> list[Cell]:
    """The baseline once on Stanford Cars' format."""
    return [Cell("cars", "Baseline", "baseline", (), data="cars")]


def run_cell(cell: Cell, options: argparse.Namespace) -> dict[str, str]:
    """Train, and score, one cell.

    Args:
        cell: What to run.
        options: The script's arguments.

    Returns:
        A row of the results.
    """
    name = "-".join(str(part) for part in (cell.part, cell.data, cell.model, cell.seed, cell.fold, *cell.arguments))
    name += f"-{options.size}-{options.epochs}"
    folder = options.runs / name.replace(" ", "").replace("--model.", "")
    data = ["--config", cell.data, "--model", cell.model, "--config", "small", "--data.root", str(options.root)]
    data += ["--data.image_size", str(options.size), "--data.resize", str(round(options.size * 256 / 224))]
    data += ["--data.num_workers", str(options.workers)]
    model = ["--model.backbone_weights", str(options.weights), *cell.arguments, "--seed_everything", str(cell.seed)]
    epochs = ["--trainer.max_epochs", str(options.epochs)]
    if cell.fold is not None:
        epochs += [
            "--data.folds",
            "2",
            "--data.fold",
            str(cell.fold),
            "--trainer.check_val_every_n_epoch",
            str(options.epochs),
        ]
    if (folder / "checkpoints" / "last.ckpt").is_file():
        fgzoo(["fit", "--resume", str(folder)], folder, options.threads)
    elif not (folder / "config.yaml").exists():
        fgzoo(["fit", *data, *model, *epochs, "--output", str(folder)], folder, options.threads)
    else:
        raise SystemExit(f"{folder} was begun and has no checkpoint yet; remove it")
    cost = json.loads((folder / "cost.json").read_text())
    if cell.fold is None:
        fgzoo(["test", "--ckpt_path", str(folder)], folder, options.threads)
    split = "val" if cell.fold is not None else "test"
    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get(f"{split}/top1")]
    environment = json.loads((folder / "environment.json").read_text())
    precision = yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["precision"]
    metrics = {key: rows[-1][f"{split}/{key}"] for key in ("top1", "top5", "macro", "nll", "ece")}
    return {
        "part": cell.part, "data": json.loads((folder / "data.json").read_text())["fingerprint"], "dataset": cell.data,
        "label": cell.label, "model": cell.model, "arguments": " ".join(cell.arguments), "seed": str(cell.seed),
        "fold": "" if cell.fold is None else f"{cell.fold} of 2", "epochs": str(options.epochs), "size": str(options.size),
        "split": split, **metrics,
        "train_seconds": f"{cost['seconds']:.0f}", "peak_gib": f"{cost['peak_memory_gib']:.2f}",
        "precision": precision, "threads": str(options.threads), "jobs": str(options.jobs),
        "torch": environment["packages"]["torch"], "fgzoo": str(environment["git"]), "processor": environment["processor"],
    }  # fmt: skip


def fgzoo(arguments: list[str], folder: Path, threads: int) -> None:
    """Run the command line in a process of its own, its output into the run's log."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    with (folder / "log.txt").open("a") as log:
        log.write(f"$ fgzoo {' '.join(arguments)}\n")
        log.flush()
        command = [sys.executable, "-m", "fgzoo", *arguments]
        if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode:
            raise SystemExit(f"failed: see {folder / 'log.txt'}")


def read_results() -> list[dict[str, str]]:
    """Rows that were written before."""
    if not RESULTS.is_file():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def write_results(rows: list[dict[str, str]]) -> None:
    """Write all rows, in one move."""
    RESULTS.parent.mkdir(exist_ok=True)
    part = RESULTS.with_suffix(".part")
    with part.open("w", newline="") as file:
        columns = dict.fromkeys(name for row in rows for name in row)
        writer = csv.DictWriter(file, list(columns), restval="")
        writer.writeheader()
        writer.writerows(rows)
    part.replace(RESULTS)


def identity(row: dict[str, str]) -> tuple[str, ...]:
    """What makes a row the result of one cell."""
    return tuple(row[key] for key in ("part", "dataset", "model", "arguments", "seed", "fold", "epochs", "size"))


class Cost(NamedTuple):
    """What a method costs, counted and not timed."""

    parameters: float
    test_gmac: float
    passes: float


@functools.cache
def measure(name: str, arguments: str, size: int = 224, classes: int = 50) -> Cost:
    """Count parameters and multiply-adds of a method with the preset's backbone.

    Args:
        name: The method.
        arguments: What was typed beside it, `--model.NAME VALUE ...`.
        size: Side of the images in pixels.
        classes: K.

    Returns:
        Millions of parameters, billions of multiply-adds of testing one image, and forward passes a training image (the mean over
        the stages, by their share of the run).
    """
    tokens = arguments.split()
    given = {
        option.removeprefix("--model."): yaml.safe_load(value) for option, value in zip(tokens[::2], tokens[1::2], strict=True)
    }
    given = {name: value for name, value in given.items() if name not in ("lr", "backbone_lr_factor")}
    model = create_model(name, classes, "mobilenetv2_100", pretrained=False, **given)
    images, targets = torch.randn(2, 3, size, size), torch.arange(2)
    keys = torch.zeros(2, 3, dtype=torch.long)
    with torch.no_grad():
        with FlopCounterMode(display=False) as test:
            model.eval()(images)
        with FlopCounterMode(display=False) as bare:
            model.make_backbone()(images)
        passes = 0.0
        model.train()
        for index, stage in enumerate(model.stages()):
            if hasattr(model.network, "stage"):
                model.network.stage = index
            with FlopCounterMode(display=False) as train:
                list(model.training_outputs(images, targets, keys))
            passes += stage.share * train.get_total_flops() / bare.get_total_flops()
    parameters = sum(parameter.numel() for parameter in model.network.parameters()) / 1e6
    return Cost(parameters, test.get_total_flops() / 2 / len(images) / 1e9, passes)


def table(rows: list[dict[str, str]]) -> str:
    """The results as Markdown.

    Args:
        rows: All rows.

    Returns:
        One table a part.
    """
    machines = {f"{row['processor']}, {row['threads']} thread(s) a run, torch {row['torch']}" for row in rows}
    text = [
        "# The preset `small` on small data",
        "",
        "mobilenetv2_100 with ImageNet weights, last epoch. A run is a seed (final, cars) or a",
        "fold of the training split (search); the spread is the standard deviation over runs. Settings, seeds, data fingerprints",
        "and versions of every run:",
        "small_machine.csv. Generated by `python benchmarks/small_machine.py table`.",
        "",
        f"{'; '.join(sorted(machines))}. Other work ran on the machine meanwhile, so seconds are an upper bound;",
        "runs in bf16-mixed precision had a processor that computes in it, and are not comparable in time with the others.",
        "Peak memory is the training process's resident memory at batch 32. A pass is one forward pass of the backbone over one",
        "image: passes are the multiply-adds of a training image's forward passes, over those of the backbone alone.",
    ]
    columns = (
        "what", "model", "runs", "pixels", "epochs", "split", "top-1 %", "macro %", "NLL", "precision", "training, s",
        "peak memory, GiB", "parameters, M", "GMAC a test image", "passes a training image",
    )  # fmt: skip
    for part in dict.fromkeys(row["part"] for row in rows):
        groups: dict[tuple[str, str, str, str], list[dict[str, str]]] = defaultdict(list)
        for row in rows:
            if row["part"] == part:
                groups[row["label"], row["model"], row["arguments"], row["size"]].append(row)
        text += ["", f"## {part}: {next(row['dataset'] for row in rows if row['part'] == part)}", ""]
        text += [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        for (label, model, arguments, size), members in groups.items():
            top1 = [100 * float(member["top1"]) for member in members]
            spread = f" ± {statistics.stdev(top1):.1f}" if len(top1) > 1 else ""
            mean = {key: statistics.mean(float(member[key]) for member in members) for key in ("macro", "nll", "train_seconds")}
            cost = measure(model, arguments, int(size))
            cells = [label, model, len(members), size, members[0]["epochs"], members[0]["split"]]
            cells += [f"{statistics.mean(top1):.1f}{spread}", f"{100 * mean['macro']:.1f}", f"{mean['nll']:.3f}"]
            peaks = [float(member["peak_gib"]) for member in members if member.get("peak_gib")]
            cells.append(members[0]["precision"])
            cells += [f"{mean['train_seconds']:.0f}", f"{max(peaks):.1f}" if peaks else "-"]
            cells += [f"{cost.parameters:.1f}", f"{cost.test_gmac:.2f}", f"{cost.passes:.1f}"]
            text.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    return "\n".join(text)


def main() -> None:
    """Parse the command line and run the cells that are not done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["search", "remedies", "final", "cars", "table"])
    parser.add_argument("--root", type=Path, help="folder of the data set, in its official file format")
    parser.add_argument("--weights", type=Path, help="ImageNet weights of mobilenetv2_100")
    parser.add_argument("--runs", type=Path, default=Path("runs/small_machine"))
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of a cell")
    parser.add_argument("--workers", type=int, default=0, help="loader processes of a cell")
    parser.add_argument("--only", default="", help="cells with this label, or of this model")
    parser.add_argument("--seed", type=int, help="cells of this seed")
    options = parser.parse_args()
    if options.what != "table":
        cells = {"search": search_cells, "remedies": remedy_cells, "final": final_cells, "cars": cars_cells}[options.what]()
        done = {identity(row) for row in read_results()}

        def work(cell: Cell) -> None:
            fold = "" if cell.fold is None else f"{cell.fold} of 2"
            key = (
                cell.part,
                cell.data,
                cell.model,
                " ".join(cell.arguments),
                str(cell.seed),
                fold,
                str(options.epochs),
                str(options.size),
            )
            if key in done or (options.only and options.only not in (cell.label, cell.model)):
                return
            if options.seed is not None and cell.seed != options.seed:
                return
            row = run_cell(cell, options)
            write_results([*read_results(), row])
            sys.stdout.write(f"{cell.label} {cell.model} seed {cell.seed} fold {cell.fold}: {100 * float(row['top1']):.2f} %\n")
            sys.stdout.flush()

        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(work, cells))
    text = table(read_results()) + "\n"
    RESULTS.with_suffix(".md").write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
