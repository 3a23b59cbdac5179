"""`fgzoo explain`; torch is imported once the arguments are known."""

from __future__ import annotations

import sys
from pathlib import Path

from jsonargparse.typing import NonNegativeInt, PositiveInt

from fgzoo.commands.models import load_models, loader_processes
from fgzoo.errors import UsageError
from fgzoo.files import is_file, prepare_folder


def explain(
    checkpoint: str,
    images: list[str],
    *,
    output: Path,
    class_: str = "predicted",
    png: bool = False,
    top_k: PositiveInt = 5,
    batch_size: PositiveInt = 8,
    num_workers: NonNegativeInt | None = None,
    device: str = "auto",
    trust: list[str] = [],  # noqa: B006 - it is read only
) -> int:
    """Where a checkpoint looked: a page of every image's classes, the method's maps over it, and Grad-CAM for comparison.

    The page is OUTPUT/index.html, one file that needs no network. What predict calls unknown is called so there, too.
    Exit status: 0, or 1 where not one image could be read.

    Args:
        checkpoint: A checkpoint file, a run's folder, a name of `fgzoo list checkpoints`, hf://OWNER/NAME, or `last` or `best` of
            the newest run below runs/.
        images: A file, a folder (every image below it), a quoted pattern such as 'photos/**/*.jpg', or - for a list of paths, one
            a line, on standard input.
        output: The folder to write to.
        class_: The class that the maps explain, by name; `predicted`: each image's most probable one.
        png: Beside the page, the same maps as PNG files, a folder an image.
        top_k: Classes to name, at most all of them.
        batch_size: Images that pass the network at once.
        num_workers: Loader processes; without it one per usable core, at most 8, and none for a single batch.
        device: auto, cpu, cuda, cuda:0 or mps.
        trust: A package whose classes a checkpoint may name (repeatable).

    Returns:
        0, or 1 where not one image could be read.
    """
    if is_file(output):
        raise UsageError(f"explain: --output {output} is a file; give a folder")
    from fgzoo.interpret import explanation, page, pictures
    from fgzoo.prediction import files

    paths = files.image_paths(images, sys.stdin, "explain")
    (model,) = load_models([checkpoint], trust, files.find_device(device, "explain"))
    explained = None if class_ == "predicted" else class_
    workers = loader_processes(num_workers, single_batch=len(paths) <= batch_size)
    found = explanation.explain(model, list(paths), top_k, explained, batch_size, workers)
    prepare_folder(output, "explain")
    with files.Watch(len(paths), "explain") as watch:
        counted = watch.predictions(found)
        drawn = pictures.write_pictures(output, paths, counted) if png else counted
        written = page.write_page(output / "index.html", model, paths, drawn, checkpoint, explained)
    watch.report()
    sys.stdout.write(f"{written}\n")
    return 1 if watch.failed == len(paths) else 0
