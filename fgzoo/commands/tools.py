"""`fgzoo list`, `fgzoo download`, `fgzoo publish` and `fgzoo data`: plain functions behind a parser each."""

from __future__ import annotations

import json
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, get_args

from jsonargparse import ArgumentParser, auto_cli
from rich.console import Console
from rich.table import Table

from fgzoo.errors import UsageError

#: What a data set is and what must lie where, for `fgzoo data info`.
DATASETS = {
    "birds": "synthetic birds, built in: nothing to download; size and difficulty by --data.birds.*",
    "cub": "CUB-200-2011: 200 birds, 5,994 training and 5,794 test images",
    "cars": "Stanford Cars: 196 models, 8,144 training and 8,041 test images",
    "aircraft": "FGVC-Aircraft 2013b: 100 variants (70 families, 30 manufacturers), 6,667 and 3,333 images",
    "folder": "your own images: class folders, or a CSV of path,label,split",
}

LAYOUTS = {
    "birds": "Nothing: the images are drawn from a seed. `fgzoo data prepare birds PATH` writes them as files in CUB's format.",
    "cub": "images.txt, image_class_labels.txt, train_test_split.txt, classes.txt and images/ (in PATH or PATH/CUB_200_2011). "
    "bounding_boxes.txt and parts/ serve the interpretability metrics alone. `fgzoo data prepare cub PATH` downloads it.",
    "cars": "One of: devkit/cars_train_annos.mat, devkit/cars_test_annos_withlabels.mat, devkit/cars_meta.mat, cars_train/, "
    "cars_test/ | car_ims/ and cars_annos.mat | train/CLASS/ and test/CLASS/ folders. The official "
    "download is dead: it cannot be fetched.",
    "aircraft": "images/, images_variant_trainval.txt, images_variant_test.txt, variants.txt (in PATH, PATH/data or "
    "PATH/fgvc-aircraft-2013b/data). `fgzoo data prepare aircraft PATH` downloads it.",
    "folder": "train/CLASS/*.jpg, test/CLASS/*.jpg and, if you like, val/CLASS/*.jpg; or one tree CLASS/*.jpg with "
    "--data.test_fraction; or --data.csv FILE with the columns path,label,split.",
}


def list_command(arguments: list[str]) -> int:
    """Run `fgzoo list`."""
    parser = _parser_class("fgzoo list")(prog="fgzoo list", description="Name methods, recipes, data sets and checkpoints.")
    parser.add_argument("what", nargs="?", choices=get_args(Listed), default="all", help="What to list (default: all).")
    parser.add_argument("pattern", nargs="?", default="*", help="A shell pattern that names must match, e.g. 'cub*'.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of tables.")
    given = parser.parse_args(arguments)
    return list_things(given.what, given.pattern, given.json)


def download_command(arguments: list[str]) -> int:
    """Run `fgzoo download`: the files' paths go to standard output, everything else to standard error."""
    parser = _parser_class("fgzoo download")(prog="fgzoo download", description="Fetch checkpoints of the zoo and verify them.")
    parser.add_argument("names", nargs="+", help="Names as in `fgzoo list checkpoints`.")
    names = parser.parse_args(arguments).names
    from fgzoo.checkpoints.download import fetch_checkpoint
    from fgzoo.checkpoints.registry import find_entry

    # A misspelt name is told before anything large is fetched.
    for name in names:
        find_entry(name)
    for name in names:
        sys.stdout.write(f"{fetch_checkpoint(name)}\n")
        sys.stdout.flush()
    return 0


def publish_command(arguments: list[str]) -> int:
    """Run `fgzoo publish`."""
    parser = _parser_class("fgzoo publish")(
        prog="fgzoo publish",
        description="Turn a tested run into a checkpoint that others load by name: NAME.safetensors, which is scored before it "
        "is kept, its model card NAME.md, and its entry in a list of checkpoints.",
    )
    add = parser.add_argument
    add("run", type=Path, help="The run's folder, after `fgzoo fit` and `fgzoo test`.")
    add("--name", required=True, help="What people will type: a-z, 0-9, '.', '_', '-'.")
    add("--output", type=Path, default=Path(), help="Folder of the file and its card (default: this one).")
    add("--registry", type=Path, help="The list of checkpoints that gets the entry (default: zoo.yaml in the output folder).")
    add("--seeds", type=Path, nargs="*", default=[], metavar="RUN", help="Tested runs of other seeds, for mean and spread.")
    add("--dtype", choices=("float32", "float16"), default="float32", help="float16 halves the file (default: float32).")
    add("--licence", help="Of the weights, e.g. CC-BY-NC-4.0 (default for the synthetic birds: Apache-2.0).")
    add("--source", nargs="*", default=[], metavar="ADDRESS", help="Where the file will be found (default: where it is written).")
    given = parser.parse_args(arguments)
    from fgzoo.publish.publishing import publish

    made = publish(
        given.run, given.name, given.output, given.registry, given.seeds, given.dtype, given.licence, given.source
    )  # fmt: skip
    top1 = made.entry.metrics["top1"]["value"]
    Console(soft_wrap=True).print(
        f"{made.file}: {made.entry.size / 1e6:.2f} MB, top-1 {100 * top1:.1f} %. Card: {made.card}. Entry in {made.registry}",
        highlight=False,
        markup=False,
    )
    return 0


def data_command(arguments: list[str]) -> int:
    """Run `fgzoo data`."""
    return _call({"info": info, "verify": verify, "prepare": prepare}, arguments, "fgzoo data")


def _call(component: Any, arguments: list[str], program: str) -> int:
    result = auto_cli(component, args=arguments, prog=program, as_positional=True, parser_class=_parser_class(program))
    return int(result or 0)


def _parser_class(program: str) -> type[ArgumentParser]:
    """A parser whose complaints are one line."""

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
            raise UsageError(f"{program.removeprefix('fgzoo ')}: {message} (see `{program} --help`)")

    return Parser


# ---------------------------------------------------------------------- list

Listed = Literal["all", "methods", "recipes", "datasets", "checkpoints"]


def list_things(what: Listed = "all", pattern: str = "*", as_json: bool = False) -> int:
    """Name methods, recipes, data sets and checkpoints.

    Args:
        what: What to list.
        pattern: A shell pattern that names must match, e.g. `cub*`.
        as_json: Print JSON instead of tables.

    Returns:
        The exit status.
    """
    from fgzoo.checkpoints.registry import read_registry
    from fgzoo.methods import available
    from fgzoo.recipes import list_recipes

    methods = {
        name: path + "".join(f", {key}={value}" for key, value in fixed.items()) for name, (path, fixed) in available().items()
    }
    checkpoints = {name: entry.as_dict() for name, entry in sorted(read_registry().items())}
    sections: dict[str, dict[str, Any]] = {
        "methods": methods,
        "recipes": list_recipes(),
        "datasets": DATASETS,
        "checkpoints": checkpoints,
    }
    chosen = {
        title: {name: text for name, text in rows.items() if fnmatch(name, pattern)}
        for title, rows in sections.items()
        if what in ("all", title)
    }
    if as_json:
        sys.stdout.write(json.dumps(chosen, indent=2) + "\n")
        return 0
    console = Console()
    for title, rows in chosen.items():
        console.print(_checkpoint_table(rows) if title == "checkpoints" else _plain_table(title, rows))
        console.print()
    return 0


def _plain_table(title: str, rows: dict[str, str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(style="dim")
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def _checkpoint_table(rows: dict[str, dict[str, Any]]) -> Table:
    """What one chooses by; `--json` has the rest."""
    if not rows:
        return _plain_table("checkpoints", {"none": "no checkpoint of such a name"})
    table = Table(title="checkpoints", title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
    table.add_column("name", no_wrap=True)
    for column in ("top-1 %", "of seeds", "MB"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("data", style="dim", no_wrap=True)
    for column in ("px", "backbone", "licence"):
        table.add_column(column, style="dim", justify="right" if column == "px" else "left", overflow="fold")
    for name, row in rows.items():
        top1 = row["metrics"]["top1"]
        several = top1["seeds"] > 1
        table.add_row(
            name, f"{100 * top1['value']:.1f}",
            f"{100 * top1['mean']:.1f} ± {100 * top1['std']:.1f} ({top1['seeds']})" if several else "1",
            f"{row['size'] / 1e6:.1f}", row["dataset"], str(row["image_size"]), row["backbone"], row["licence"],
        )  # fmt: skip
    return table


# ---------------------------------------------------------------------- data

Dataset = Literal["birds", "cub", "cars", "aircraft", "folder"]


def info(name: Dataset, root: Path | None = None) -> int:
    """Say what a data set is, what must lie where, and what lies there.

    Args:
        name: The data set.
        root: Its folder, if you have it.

    Returns:
        The exit status.
    """
    console = Console(soft_wrap=True)
    console.print(f"[bold]{name}[/bold]: {DATASETS[name]}", highlight=False)
    console.print(f"Under --data.root PATH: {LAYOUTS[name]}", highlight=False, markup=False)
    if root is None and name != "birds":
        return 0
    from fgzoo.data.datamodule import FGVCDataModule

    data = FGVCDataModule(name, root)
    sizes = ", ".join(f"{len(records)} {split}" for split, records in data.splits.items() if records)
    boxes = sum(record.box is not None for record in data.listing.train)
    parts = sum(bool(record.parts) for record in data.listing.train)
    console.print(f"Here: {data.num_classes} classes, {sizes} images; fingerprint {data.listing.fingerprint()}", highlight=False)
    console.print(f"Training images with a bounding box: {boxes}, with parts: {parts}", highlight=False)
    for note in data.listing.notes:
        console.print(f"Note: {note}", highlight=False, markup=False)
    return 0


def verify(name: Dataset, root: Path, decode: bool = False) -> int:
    """Compare a data set with its official counts, and look for every image.

    Args:
        name: The data set.
        root: Its folder.
        decode: Decode every image, too.

    Returns:
        0 where it is whole, 1 where it is not.
    """
    from fgzoo.data.verify import verify as check

    if name == "birds":
        raise UsageError("data verify: 'birds' are drawn from a seed; there are no files to verify")
    report = check(name, root, decode)
    Console(soft_wrap=True).print(str(report), highlight=False, markup=False)
    return 0 if report.intact and report.complete else 1


def prepare(name: Dataset, root: Path) -> int:
    """Fetch and unpack a data set (birds: draw it into files in CUB's format).

    Args:
        name: The data set.
        root: The folder to put it into.

    Returns:
        The exit status.
    """
    if name == "birds":
        from fgzoo.data.synthetic import SyntheticBirds

        SyntheticBirds().export(root)
        Console().print(f"Drawn into {root}; read it by --data.name cub --data.root {root}", highlight=False)
        return 0
    from fgzoo.data.datamodule import fetch_dataset

    fetch_dataset(name, root)
    Console().print(f"{name} lies in {root}", highlight=False)
    return 0
