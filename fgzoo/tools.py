"""`fgzoo list` and `fgzoo data`: plain functions behind the same parser library as the training verbs."""

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
    parser = _parser_class("fgzoo list")(prog="fgzoo list", description="Name methods, recipes and data sets.")
    parser.add_argument("what", nargs="?", choices=get_args(Listed), default="all", help="What to list (default: all).")
    parser.add_argument("pattern", nargs="?", default="*", help="A shell pattern that names must match, e.g. 'cub*'.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of tables.")
    given = parser.parse_args(arguments)
    return list_things(given.what, given.pattern, given.json)


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

Listed = Literal["all", "methods", "recipes", "datasets"]


def list_things(what: Listed = "all", pattern: str = "*", as_json: bool = False) -> int:
    """Name methods, recipes and data sets.

    Args:
        what: What to list.
        pattern: A shell pattern that names must match, e.g. `cub*`.
        as_json: Print JSON instead of tables.

    Returns:
        The exit status.
    """
    from fgzoo.methods import available
    from fgzoo.recipes import list_recipes

    methods = {
        name: path + "".join(f", {key}={value}" for key, value in fixed.items()) for name, (path, fixed) in available().items()
    }
    sections = {"methods": methods, "recipes": list_recipes(), "datasets": DATASETS}
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
        table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(style="dim")
        for name, text in rows.items():
            table.add_row(name, text)
        console.print(table)
        console.print()
    return 0


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
