"""The data that a run was trained on, in the parts that it had."""

from __future__ import annotations

from argparse import ArgumentError
from pathlib import Path

from jsonargparse import ArgumentParser

from fgzoo.checkpoints.run_folder import CONFIG, SPLIT
from fgzoo.data.datamodule import FGVCDataModule
from fgzoo.errors import DataError
from fgzoo.recipes import read_config


def data_of_run(run: Path, root: Path | None = None) -> FGVCDataModule:
    """The data module that a run's config describes; nothing is downloaded.

    Args:
        run: The run's folder.
        root: Where its images lie now; `None`: where they lay.

    Raises:
        DataError: The config's data is none that this version knows.
    """
    settings = read_config(run / CONFIG)
    said = {**settings["data"], "download": False}
    if said.get("seed") is None:
        # A run's own seed, which Lightning would have put into the environment.
        said["seed"] = settings["seed_everything"]
    if (run / SPLIT).is_file():
        said["split_file"] = str(run / SPLIT)
    if root is not None:
        said["root"] = str(root)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(FGVCDataModule, "data")
    try:
        data: FGVCDataModule = parser.instantiate_classes(parser.parse_object({"data": said})).data
    except (ArgumentError, TypeError) as error:  # written by another version of fgzoo
        raise DataError(f"{run / CONFIG}: {' '.join(str(error).split())}") from error
    return data
