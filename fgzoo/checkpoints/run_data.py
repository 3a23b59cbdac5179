"""The data that a run, or a checkpoint that lies in none, was trained on."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from fgzoo.checkpoints.run_folder import CONFIG, SPLIT
from fgzoo.data.card import DataCard
from fgzoo.data.datamodule import FGVCDataModule
from fgzoo.errors import DataError
from fgzoo.recipes import read_config, read_recipe


def data_trained_on(card: DataCard, run: Path | None, root: Path | None = None) -> FGVCDataModule:
    """The data module with the images that weights were trained and tested on.

    Args:
        card: What the weights remember of their data.
        run: The folder of the run that made them; `None`: the card's settings describe the data.
        root: Where the images lie now; `None`: where they lay, or in the folder that `FGZOO_DATA` names.

    Raises:
        CheckpointError: The classes of the data there are others.
        DataError: The images there are others, or not to be found.
    """
    data = data_of_card(card, root) if run is None else data_of_run(run, root)
    card.check_classes(data.card)
    if not data.matches(card):
        raise DataError(f"the images listed in {data.root or data.dataset_name} are not those that the weights were trained on")
    return data


def data_of_run(run: Path, root: Path | None = None) -> FGVCDataModule:
    """The data module that a run's config describes, with its images in the parts that they had; nothing is downloaded.

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
        # A table among the images moved with them.
        if said.get("csv") and said.get("root") and Path(said["csv"]).is_relative_to(said["root"]):
            said["csv"] = str(root / Path(said["csv"]).relative_to(said["root"]))
        said["root"] = str(root)
    return _module(said, str(run / CONFIG))


def settings_of_card(card: DataCard) -> dict[str, Any]:
    """The settings of the data that weights were trained on, as far as these say it.

    Of synthetic birds, which lie nowhere, the packaged recipe says the rest; whether rightly, [FGVCDataModule.matches][] tells.
    """
    own = read_recipe("birds")["data"] if card.dataset == "birds" else {}
    sizes = {"image_size": card.image_size, "resize": card.resize, "resize_mode": card.resize_mode}
    return {**own, "name": card.dataset, **sizes}


def data_of_card(card: DataCard, root: Path | None = None) -> FGVCDataModule:
    """The data module that these settings describe, of images in a folder, by default that which `FGZOO_DATA` names.

    Raises:
        DataError: The card's data is none that this version knows.
    """
    return _module({**settings_of_card(card), "root": root and str(root)}, "checkpoint")


def _module(settings: Mapping[str, Any], place: str) -> FGVCDataModule:
    if named := _named_classes(settings):
        raise DataError(f"{place}: the data is of the class {named[0]}, and importing what a run names would run its code")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(FGVCDataModule, "data")
    try:
        data: FGVCDataModule = parser.instantiate(parser.parse_object({"data": settings})).data
    except (ArgumentError, TypeError) as error:  # of another version of fgzoo, or of a data module of one's own
        raise DataError(f"{place}: {' '.join(str(error).split())}") from error
    return data


def _named_classes(value: Any) -> list[Any]:
    """The classes that settings name, at any depth; a parser imports them, whatever it expects there."""
    if not isinstance(value, Mapping):
        return []
    own = [value["class_path"]] if "class_path" in value else []
    return own + [name for inner in value.values() for name in _named_classes(inner)]
