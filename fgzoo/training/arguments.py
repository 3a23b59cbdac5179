"""What a command line implies: recipes by name, a run's own config, one method at a time."""

from __future__ import annotations

import inspect
import json
from argparse import ArgumentError
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, Namespace

from fgzoo.checkpoints.loading import arguments_of, data_card, method_class, read_checkpoint
from fgzoo.checkpoints.run_folder import CONFIG, find_checkpoint, newest_run, run_of
from fgzoo.errors import UntrainedError, UsageError
from fgzoo.methods import available, import_path
from fgzoo.recipes import find_recipe, read_config
from fgzoo.training.messages import MisconfiguredError

#: What `fgzoo fit` runs when nothing is said.
DEFAULT_RECIPE = "birds/rra"


class RecipeFile(ActionConfigFile):
    """`--config`, which knows the packaged recipes by name."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Apply a file, a packaged recipe, or YAML itself."""
        said = str(values)
        if said.startswith("{"):
            self.apply_config(parser, cfg, self.dest, said)
            return
        path = find_recipe(said)
        read_config(path)
        try:
            self.apply_config(parser, cfg, self.dest, str(path))
        except (ArgumentError, TypeError) as error:
            raise MisconfiguredError(path, str(error)) from error


def complete(verb: str, arguments: list[str]) -> list[str]:
    """Put in front what the arguments imply: a run's own config, a checkpoint's own arguments, or the default recipe.

    Args:
        verb: The verb.
        arguments: What followed it.

    Returns:
        Complete arguments for the parser.
    """
    arguments = expand_method_names(arguments)
    if any(token.partition("=")[0] in ("--model.num_classes", "--model.init_args.num_classes") for token in arguments):
        raise UsageError("--model.num_classes: the data says how many classes there are; leave it away")
    if {"-h", "--help"} & set(arguments):
        return arguments
    configured = _value(arguments, "--config", "-c") is not None or _value(arguments, "--model") is not None
    resumed = _value(arguments, "--resume")
    if verb == "fit" and resumed is not None:
        if configured:
            raise UsageError("--resume: a run continues with its own config; leave --config and --model away")
        folder = Path(resumed)
        if not (folder / CONFIG).is_file():
            raise UsageError(f"--resume: {folder} is no run's folder (it holds no {CONFIG})")
        return ["--config", str(folder / CONFIG), *arguments]
    said = _value(arguments, "--ckpt_path")
    if said is not None and not configured:
        path = find_checkpoint(said, Path(_value(arguments, "--trainer.default_root_dir") or "runs"))
        # The checkpoint's own run may have been a fine-tuning that did reset its head.
        return ["--config", config_of(path, values_of(arguments, "--trust")), "--reset_head", "false", *arguments]
    if configured:
        return arguments
    if verb != "fit":
        run_folder = newest_run(Path(_value(arguments, "--trainer.default_root_dir") or "runs"))
        if run_folder is None:
            raise UntrainedError(
                f"{verb}: there is no trained run below runs, and an untrained model would score by chance; train one by "
                f"`fgzoo fit`, or give --ckpt_path"
            )
        return ["--config", str(run_folder / CONFIG), "--ckpt_path", str(run_folder), *arguments]
    return ["--config", DEFAULT_RECIPE, *arguments]


def expand_method_names(arguments: list[str]) -> list[str]:
    """Replace `--model NAME` by its class path and the arguments that its name, or another name of its class, fixes.

    So `rra-parent` is RRA with `local=false`, and `rra` is RRA with `local=true` even after a recipe of its parent.
    """
    expanded: list[str] = []
    tokens = iter(arguments)
    for token in tokens:
        option, equals, value = token.partition("=")
        if option != "--model":
            expanded.append(token)
            continue
        value = value if equals else next(tokens, "")
        known = available()
        path, fixed = known.get(value, (value, {}))
        expanded += ["--model", path]
        for name in dict.fromkeys(
            name for other, theirs in known.values() if other == path and value in known for name in theirs
        ):
            value = fixed.get(name, inspect.signature(import_path(path)).parameters[name].default)
            expanded += [f"--model.{name}", value if isinstance(value, str) else json.dumps(value)]
    return expanded


def config_of(checkpoint: Path, trust: list[str]) -> str:
    """The config that belongs to a checkpoint: its run's, else what the checkpoint itself carries."""
    folder = run_of(checkpoint)
    if folder is not None:
        return str(folder / CONFIG)
    content = read_checkpoint(checkpoint)
    cls = method_class(content["fgzoo"]["method"], trust)
    arguments = arguments_of(content, cls)
    arguments.pop("num_classes", None)
    config: dict[str, Any] = {"model": {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": arguments}}
    card = data_card(content)
    if card is not None:
        config["data"] = {
            "name": card.dataset, "image_size": card.image_size, "resize": card.resize, "resize_mode": card.resize_mode,
        }  # fmt: skip
    return json.dumps(config)


def values_of(arguments: Iterable[str], *options: str) -> list[str]:
    """Every value that options were given on a command line."""
    found = []
    tokens = iter(arguments)
    for token in tokens:
        option, equals, value = token.partition("=")
        if option in options:
            found.append(value if equals else next(tokens, ""))
    return found


def _value(arguments: Iterable[str], *options: str) -> str | None:
    """The last value that an option was given; `None` where it was not."""
    return next(reversed(values_of(arguments, *options)), None)


def check_one_method(config: Namespace) -> None:
    """Refuse a mixture of two methods: `--model X` after a recipe of Y would keep Y's arguments.

    Args:
        config: The parsed arguments of a verb.

    Raises:
        UsageError: A config file names another method than the one that is to run.
    """
    if config.model is None:
        raise UsageError("--model: which method? Give --model NAME (see `fgzoo list`) or a recipe such as --config cub/rra")
    for file in config.config or []:
        if file is None:
            continue
        content = read_config(Path(str(file)))
        named = (content.get("model") or {}).get("class_path") if isinstance(content.get("model"), dict) else None
        if named is None:
            continue
        theirs = import_path(available().get(named, (named, {}))[0]) if "." in named else None
        mine = import_path(config.model.class_path)
        if theirs is not None and theirs is not mine:
            raise UsageError(
                f"--model: {mine.__name__} is asked for, but {file} sets up {theirs.__name__}, whose arguments would be kept; "
                "use the "
                f"data's own recipe with it: --config {config.data.name} --model {mine.__module__}.{mine.__name__}"
            )
