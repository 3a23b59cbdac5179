"""`fgzoo data`: what a data set needs, whether it is whole, and fetching it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rich.console import Console

from fgzoo.errors import UsageError

Dataset = Literal["birds", "cub", "cars", "aircraft", "folder"]

#: What a data set is and what must lie where, for `fgzoo data info`.
DATASETS = {
    "birds": "synthetic birds, built in: nothing to download; size and difficulty by --data.birds.*",
    "cub": "CUB-200-2011: 200 birds, 5,994 training and 5,794 test images",
    "cars": "Stanford Cars: 196 models, 8,144 training and 8,041 test images",
    "aircraft": "FGVC-Aircraft 2013b: 100 variants (70 families, 30 manufacturers), 6,667 and 3,333 images",
    "folder": "your own images: class folders, or a table of path, label and split",
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
    "--data.test_fraction; or a table with the columns path, label and, if you like, split, which --data.csv takes, too.",
}


def info(name: Dataset, *, root: Path | None = None) -> int:
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


def verify(name: Dataset, root: Path, *, decode: bool | None = None) -> int:
    """Compare a data set with its official counts, and look for every image; images of your own are decoded, too.

    Args:
        name: The data set.
        root: Its folder.
        decode: Decode every image; by default those of your own.

    Returns:
        0 where it is whole, 1 where it is not.
    """
    from fgzoo.data.verify import verify as check

    if name == "birds":
        raise UsageError("data verify: 'birds' are drawn from a seed; there are no files to verify")
    report = check(name, root, decode)
    Console(soft_wrap=True).print(str(report), highlight=False, markup=False)
    return 0 if report.passed else 1


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


ACTIONS = {"info": info, "verify": verify, "prepare": prepare}
