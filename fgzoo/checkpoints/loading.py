"""Reading checkpoints: nothing in them is executed, and what does not fit is said by name."""

from __future__ import annotations

import csv
import inspect
import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from fgzoo.checkpoints.registry import SUFFIX
from fgzoo.checkpoints.run_folder import LAST, METRICS, resolve
from fgzoo.checkpoints.safetensors import read_safetensors, training_only
from fgzoo.data.card import DataCard
from fgzoo.data.images import MAX_PIXELS
from fgzoo.data.transforms import ResizeMode
from fgzoo.errors import CheckpointError, UsageError
from fgzoo.methods import available, import_path
from fgzoo.methods.arguments import without_files
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.nn.timm_networks import remember_configs
from fgzoo.nn.weights import read_plain
from fgzoo.version import __version__


def read_checkpoint(source: str | Path) -> dict[str, Any]:
    """Read a checkpoint as tensors and plain values, executing nothing.

    Args:
        source: A checkpoint file (Lightning's, or `.safetensors`), a run's folder, a name of the zoo, or `hf://OWNER/NAME`.

    Returns:
        Lightning's checkpoint dictionary, with fgzoo's card under `fgzoo`.

    Raises:
        CheckpointError: The file is damaged, holds objects that would run code, was not written by fgzoo, or by a newer one.
    """
    path = resolve(source)
    content = read_safetensors(path) if path.suffix == SUFFIX else read_plain(path, "checkpoint")
    card = content.get("fgzoo") if isinstance(content, dict) else None
    if not isinstance(card, dict) or not {"method", "backbone", "num_classes"} <= set(card) or "state_dict" not in content:
        raise CheckpointError(
            f"checkpoint: {path} was not written by fgzoo; weights of a bare backbone go to --model.backbone_weights"
        )
    written = str(card.get("version", "0"))
    if _release(written) > _release(__version__):
        raise CheckpointError(f"checkpoint: {path} was written by fgzoo {written}, newer than this {__version__}; update fgzoo")
    _check_card(content, path)
    return content


def last_test(run: Path) -> dict[str, str] | None:
    """The row of metrics.csv in which a run's last checkpoint was tested; `None` where it was not."""
    content = read_checkpoint(run / LAST)
    place = content["epoch"], max(0, content["global_step"] - 1)
    with (run / METRICS).open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("test/top1")]
    return next((row for row in reversed(rows) if (int(row["epoch"]), int(row["step"])) == place), None)


def _check_card(content: dict[str, Any], path: Path) -> None:
    """Refuse fields that have another type than they are written with."""
    card = content["fgzoo"]
    data, arguments, state = card.get("data"), content.get("hyper_parameters", {}), content["state_dict"]
    for what, fine in (
        ("method", isinstance(card["method"], str)),
        ("backbone", isinstance(card["backbone"], str)),
        ("num_classes", type(card["num_classes"]) is int),
        ("networks", _are_networks(card.get("networks", {}))),
        ("stage", card.get("stage") is None or type(card["stage"]) is int),
        ("data", data is None or _is_data_card(data, card["num_classes"])),
        ("hyper_parameters", isinstance(arguments, dict) and all(isinstance(name, str) for name in arguments)),
        ("state_dict", isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())),
    ):
        if not fine:
            raise CheckpointError(f"checkpoint: {path} is damaged: its field '{what}' is not what fgzoo writes")


def _is_data_card(written: Any, num_classes: int) -> bool:
    """Whether this is what [DataCard.as_dict][fgzoo.data.card.DataCard.as_dict] gives, for images that can be made."""
    try:
        card = DataCard(**written)
    except TypeError:
        return False
    names, counts, sides = card.class_names, card.class_counts, (card.image_size, card.resize)
    texts = (card.dataset, card.interpolation, card.decoder, card.fingerprint)
    return (
        all(isinstance(text, str) for text in texts) and card.resize_mode in get_args(ResizeMode)
        and all(type(side) is int and 0 < side**2 <= MAX_PIXELS for side in sides)
        and isinstance(names, list) and len(names) == num_classes and all(isinstance(name, str) for name in names)
        and (counts is None or (isinstance(counts, list) and len(counts) == num_classes and all(type(n) is int for n in counts)))
    )  # fmt: skip


def _are_networks(written: Any) -> bool:
    """Whether this is what [NetworkConfig.as_dict][fgzoo.nn.timm_networks.NetworkConfig.as_dict] gives, by name."""
    parts = {"architecture": str, "arguments": dict, "pretrained_cfg": dict}
    return isinstance(written, dict) and all(
        isinstance(config, dict) and all(isinstance(config.get(part), kind) for part, kind in parts.items())
        for config in written.values()
    )


def load(source: str | Path, trust: Sequence[str] = ()) -> FineGrainedClassifier:
    """Load a trained model; nothing but the checkpoint is needed.

    Args:
        source: A checkpoint file (Lightning's, or `.safetensors`), a run's folder, a name of the zoo, or `hf://OWNER/NAME`.
        trust: Packages whose classes the checkpoint may name. fgzoo's own methods, those of installed plug-ins and classes that
            are already imported need no trust.

    Returns:
        The model, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: The checkpoint cannot be read, or names a class that is neither known nor trusted.
    """
    checkpoint = read_checkpoint(source)
    with naming(source):
        model = _made(checkpoint, trust)
        _load_state(model, checkpoint["state_dict"], str(source))
        model.on_load_checkpoint(checkpoint)
    return model.eval()


@contextmanager
def naming(source: str | Path) -> Iterator[None]:
    """Errors about what a checkpoint holds say which one it is.

    Raises:
        CheckpointError: Something was wrong with it.
    """
    try:
        yield
    except UsageError as error:
        if str(source) in str(error):
            raise
        raise CheckpointError(f"checkpoint: {source}: {str(error).removeprefix('checkpoint: ')}") from error


def _made(checkpoint: Mapping[str, Any], trust: Sequence[str]) -> FineGrainedClassifier:
    """The model that a checkpoint is of, with weights of its own."""
    card = checkpoint["fgzoo"]
    cls = method_class(card["method"], trust)
    arguments = arguments_of(checkpoint, cls)
    parameters = inspect.signature(cls).parameters
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        arguments = {name: value for name, value in arguments.items() if name in parameters}
    arguments["num_classes"] = card["num_classes"]
    remember_networks(checkpoint)
    try:
        return cls(**arguments)
    except UsageError:
        raise
    except Exception as error:  # values that are damaged make networks raise nearly any type
        raise CheckpointError(f"checkpoint: {cls.__name__} cannot be made with its arguments: {error}") from error


def remember_networks(checkpoint: Mapping[str, Any]) -> None:
    """From now on, build networks of hubs and folders by what a checkpoint says of them; it alone may be left of them."""
    remember_configs(checkpoint["fgzoo"].get("networks", {}))


def arguments_of(checkpoint: Mapping[str, Any], cls: type[FineGrainedClassifier]) -> dict[str, Any]:
    """The arguments that make a checkpoint's model anew, whose weights follow at once: none are fetched or read for backbones.

    Args:
        checkpoint: From [read_checkpoint][].
        cls: Its class.

    Returns:
        Arguments by name; those that are younger than the checkpoint have the values that it was trained by, see
        [implied_arguments][FineGrainedClassifier.implied_arguments].
    """
    kept = {k: v for k, v in checkpoint.get("hyper_parameters", {}).items() if not k.startswith("_")}
    # Where it lacks the argument, the default would fetch weights.
    implied = {"pretrained": False} if "pretrained" in inspect.signature(cls).parameters else {}
    return {**cls.implied_arguments, **implied, **_untrained(kept)}


def _untrained(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that read and fetch no weights."""
    return without_files(arguments) | ({"pretrained": False} if "pretrained" in arguments else {})


def method_class(path: str, trust: Sequence[str] = ()) -> type[FineGrainedClassifier]:
    """Import the class that a checkpoint names, if that is safe.

    Args:
        path: Path of the class.
        trust: Packages whose classes may be imported.

    Raises:
        CheckpointError: It is neither known, imported nor trusted, or it is no method.
    """
    module = path.rpartition(".")[0]
    known = {known_path for known_path, _ in available().values()}
    trusted = any(module == package or module.startswith(f"{package}.") for package in trust)
    if path not in known and module not in sys.modules and not trusted:
        raise CheckpointError(
            f"checkpoint: it names the class {path}, which is not part of fgzoo; importing it would run its code. Import it "
            f"first, or allow it by --trust {module.partition('.')[0]}"
        )
    try:
        cls = import_path(path)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(f"checkpoint: the class {path} cannot be imported ({error})") from error
    if not (isinstance(cls, type) and issubclass(cls, FineGrainedClassifier)):
        raise CheckpointError(f"checkpoint: {path} is no FineGrainedClassifier")
    return cls


def load_weights(model: FineGrainedClassifier, checkpoint: dict[str, Any], source: str | Path, reset_head: bool = False) -> None:
    """Load a checkpoint's weights into a model that a configuration made, or say how the two differ.

    Args:
        model: The model.
        checkpoint: What [read_checkpoint][] gave.
        source: Where it lies, for messages.
        reset_head: Leave every weight whose shape depends on the number of classes as it is, for fine-tuning on other classes.

    Raises:
        CheckpointError: Method, backbone, class count or weights differ.
    """
    card = checkpoint["fgzoo"]
    cls = type(model)
    mine = {
        "method": f"{cls.__module__}.{cls.__qualname__}",
        "backbone": model.backbone,
        "num_classes": model.num_classes,
    }
    differing = [key for key in mine if card[key] != mine[key] and not (reset_head and key == "num_classes")]
    if differing:
        said = ", ".join(f"{key} is {card[key]} there and {mine[key]} here" for key in differing)
        add = _own_arguments(model, checkpoint) if "method" not in differing else ""
        head = " --reset_head true, for other classes" if "num_classes" in differing and "method" not in differing else ""
        hint = f"; add{add}{head}" if add or head else ""
        raise CheckpointError(f"checkpoint: {source} does not fit: {said}{hint}")
    state: dict[str, Tensor] = checkpoint["state_dict"]
    if reset_head:
        own = model.state_dict()
        state = {**state, **{key: own[key] for key in class_dependent(model)}}
    try:
        _load_state(model, state, str(source))
    except CheckpointError as error:
        if add := _own_arguments(model, checkpoint):
            raise CheckpointError(f"{error}; add{add}") from error
        raise
    if not reset_head:
        model.on_load_checkpoint(checkpoint)


def _own_arguments(model: FineGrainedClassifier, checkpoint: Mapping[str, Any]) -> str:
    """What to type so that a model has the network of a checkpoint of its class: the method's own arguments that differ."""
    shared = inspect.signature(FineGrainedClassifier).parameters
    kept, own = without_files(checkpoint.get("hyper_parameters", {})), without_files(model.hparams)
    values = [("backbone", checkpoint["fgzoo"]["backbone"], model.backbone)]
    values += [(name, kept[name], own[name]) for name in kept if name in own and name not in shared]
    texts = [(name, *(one if isinstance(one, str) else json.dumps(one) for one in both)) for name, *both in values]
    return "".join(f" --model.{name} {shlex.quote(theirs)}" for name, theirs, mine in texts if theirs != mine)


def class_dependent(model: FineGrainedClassifier) -> list[str]:
    """Names in a model's state dict of the weights whose shape depends on the number of classes, whatever the method.

    Found by building the same network for one class more, without memory (on the meta device).
    """
    arguments = {k: v for k, v in dict(model.hparams).items() if not k.startswith("_")}
    with torch.device("meta"):
        other = type(model)(**_untrained(arguments) | {"num_classes": model.num_classes + 1})
    shapes = {key: value.shape for key, value in other.state_dict().items()}
    return [key for key, value in model.state_dict().items() if shapes.get(key) != value.shape]


def _load_state(model: FineGrainedClassifier, state: dict[str, Tensor], source: str) -> None:
    own = model.state_dict()
    state = {**{key: own[key] for key in training_only(model)}, **state}
    for what, keys in (
        ("lacks", sorted(set(own) - set(state))),
        ("has unknown", sorted(set(state) - set(own))),
        ("has other shapes for", sorted(key for key in set(own) & set(state) if own[key].shape != state[key].shape)),
    ):
        if keys:
            raise CheckpointError(
                f"checkpoint: {source} does not fit the model's arguments: it {what} {len(keys)} tensors, e.g. "
                f"{', '.join(keys[:3])}"
            )
    model.load_state_dict(state)


def data_card(checkpoint: dict[str, Any]) -> DataCard | None:
    """The data a checkpoint was trained on, where it says so."""
    data = checkpoint["fgzoo"].get("data")
    return None if data is None else DataCard(**data)


def _release(text: str) -> tuple[int, ...]:
    """The numbers before any suffix: 1.2.0rc1 -> (1, 2, 0)."""
    leading = [re.match(r"\d*", part) for part in text.split("+")[0].split(".")[:3]]
    return tuple(int(found.group() or 0) for found in leading if found)
