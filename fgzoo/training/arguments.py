"""What a command line implies: recipes by name, a run's own config, one method at a time."""

from __future__ import annotations

import inspect
import json
import os
from argparse import ArgumentError
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, Namespace

from fgzoo.checkpoints.loading import arguments_of, data_card, method_class, naming, read_checkpoint
from fgzoo.checkpoints.run_data import settings_of_card
from fgzoo.checkpoints.run_folder import CONFIG, LAST, SPLIT, find_checkpoint, find_run, newest_run, run_of
from fgzoo.errors import UntrainedError, UsageError
from fgzoo.files import parse_yaml, user_path
from fgzoo.methods import BUILT_IN, available, import_path, method_name
from fgzoo.recipes import PRESETS, find_recipe, merge, read_config, read_recipe, recipe_files
from fgzoo.training.messages import NO_METHOD, MisconfiguredError

#: Tells the other processes of a run, which Lightning starts by the same command line, where its folder is.
RUN_VARIABLE = "FGZOO_RUN_FOLDER"
#: What `fgzoo fit` runs when nothing is said: of all methods worth most for its CPU time there (benchmarks/results/traits.md).
DEFAULT_RECIPE = "birds/rra"
#: Arguments of the data that draw its parts.
DRAWN = ("test_fraction", "val_fraction", "folds", "fold")


class RecipeFile(ActionConfigFile):
    """`--config`, which knows the packaged recipes by name."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Apply a file, a packaged recipe, or YAML itself."""
        said = str(values)
        if said.startswith("{"):
            self.apply_config(parser, cfg, self.dest, said)
            return
        for path in find_recipe(said):
            read_config(path)
            try:
                self.apply_config(parser, cfg, self.dest, str(path))
            except (ArgumentError, TypeError) as error:
                raise MisconfiguredError(path, str(error)) from error


def with_implied(verb: str, arguments: list[str]) -> tuple[list[str], Path | None]:
    """Put in front what a verb's arguments imply: a run's own config, a checkpoint's own arguments, or the default recipe.

    Returns:
        The arguments, and the checkpoint whose own they are; it is not looked for again, when `last` may be another one.
    """
    arguments = expand_method_names(arguments)
    if any(token.partition("=")[0] in ("--model.num_classes", "--model.init_args.num_classes") for token in arguments):
        raise UsageError("--model.num_classes: the data says how many classes there are; leave it away")
    if {"-h", "--help"} & set(arguments):
        return arguments, None
    configured = _value(arguments, "--config", "-c") is not None or _value(arguments, "--model") is not None
    resumed, base = _value(arguments, "--resume"), user_path(_value(arguments, "--trainer.default_root_dir") or "runs")
    if verb == "fit" and resumed is not None:
        if configured:
            raise UsageError("--resume: a run continues with its own config; leave --config and --model away")
        # Beside the first process of a run, others may see a newer one.
        told = os.environ.get(RUN_VARIABLE) if resumed == "last" else None
        folder = find_run(told or resumed, base, begun=True)
        if not (folder / CONFIG).is_file():
            raise UsageError(f"--resume: {folder} is no run's folder (it holds no {CONFIG})")
        return ["--config", str(folder / CONFIG), *_split_of(folder, arguments), *arguments, "--resume", str(folder)], None
    if configured:
        return expand_presets([*_scored_run(verb, arguments), *arguments]), None
    said = _value(arguments, "--ckpt_path")
    if said is not None:
        path = find_checkpoint(said, base)
        # The checkpoint's own run may have been a fine-tuning that did reset its head, or one to be tested at once.
        own = [*_split_of(run_of(path), arguments), "--reset_head", "false", "--report", "false"]
        return ["--config", config_of(path, values_of(arguments, "--trust")), *own, *arguments], path
    if verb != "fit":
        run_folder = newest_run(base)
        if run_folder is None:
            raise UntrainedError(
                f"{verb}: there is no trained run below runs, and an untrained model would score by chance; train one by "
                "`fgzoo fit`, or give --ckpt_path"
            )
        own = [*_split_of(run_folder, arguments), "--ckpt_path", str(run_folder)]
        return ["--config", str(run_folder / CONFIG), *own, *arguments], None
    return expand_presets(["--config", DEFAULT_RECIPE, *arguments]), None


def _scored_run(verb: str, arguments: Sequence[str]) -> list[str]:
    """The checkpoint that is scored where the config is a run's, which may itself name the one that it began from."""
    folders = [user_path(said) for said in values_of(arguments, "--config", "-c") if not said.startswith("{")]
    folders = [folder.parent if folder.name == CONFIG else folder for folder in folders]
    runs = [folder for folder in folders if (folder / LAST).is_file()]
    return ["--ckpt_path", str(runs[-1])] if runs and verb != "fit" else []


def _split_of(run: Path | None, arguments: Sequence[str]) -> list[str]:
    """The argument by which the images of a run's data stay in the parts that they had; none where other data is given.

    Raises:
        UsageError: Parts are asked for that are not those.
    """
    typed = {token.partition("=")[0] for token in arguments}
    if run is None or not (run / SPLIT).is_file() or {"--data.root", "--data.csv", "--data.split_file"} & typed:
        return []
    if drawn := [f"--data.{name}" for name in DRAWN if f"--data.{name}" in typed]:
        raise UsageError(
            f"{drawn[0]}: images stay in the parts that they have in {run / SPLIT}, so that none is tested on that was learnt "
            f"from; leave it away, or draw parts anew by --data.split_file null"
        )
    return ["--data.split_file", str(run / SPLIT)]


def expand_method_names(arguments: Iterable[str]) -> list[str]:
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


def expand_presets(arguments: Sequence[str]) -> list[str]:
    """Put recipes in front, so that what is typed wins over them, and presets in the form that they have for the method.

    So `--model.lr 0.1 --config cub/rra --config small` becomes `--config cub/rra --config small/rra --model.lr 0.1`. A built-in
    method's class comes first of all, so that the parser knows the arguments that follow.
    """
    configs, others = _split(arguments)
    method = _method_of(settings_of(expand_method_names(arguments)))
    expanded = [f"{said}/{method}" if said in PRESETS and f"{said}/{method}" in recipe_files() else said for said in configs]
    known = ["--model", BUILT_IN[method][0]] if method in BUILT_IN else []
    return [*known, *(word for said in expanded for word in ("--config", said)), *others]


def settings_of(arguments: Sequence[str]) -> dict[str, Any]:
    """The settings that arguments as [expand_presets][] gives them come to, recipes included, defaults not.

    Returns:
        Settings by section, as in a recipe; of `--model NAME` it has the name as `class_path`.

    Raises:
        UsageError: There is no such recipe, or a file holds no settings.
    """
    found: dict[str, Any] = {}
    configs, others = _split(arguments)
    for said in configs:
        content = _parse(said) if said.startswith("{") else read_recipe(said)
        if isinstance(content, dict):
            merge(found, _with_class_path(content))
    for token, following in pairwise([*others, "--"]):
        option, equals, value = token.partition("=")
        value = value if equals else following
        if not option.startswith("--") or value.startswith("--"):
            continue
        path = option[2:].split(".")
        if path[0] == "model" and path[1:2] not in ([], ["class_path"], ["init_args"]):
            path.insert(1, "init_args")
        inner = _parse(value)
        for key in reversed(path):
            inner = {key: inner}
        merge(found, _with_class_path(inner))
    return found


def _split(arguments: Iterable[str]) -> tuple[list[str], list[str]]:
    """The values of `--config`, and everything else."""
    configs, others, rest = [], [], list(arguments)
    while rest:
        token = rest.pop(0)
        option, equals, value = token.partition("=")
        named = option in ("--config", "-c")
        if named and equals:
            configs.append(value)
        elif named and rest and not rest[0].startswith("-"):
            configs.append(rest.pop(0))
        else:
            others.append(token)
    return configs, others


def _parse(text: str) -> Any:
    """What a typed value means: YAML, or else the text itself."""
    try:
        return parse_yaml(text)
    except yaml.YAMLError:
        return text


def _with_class_path(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with the model's section in its long form, for which its class alone may stand."""
    model = settings.get("model")
    return {**settings, "model": {"class_path": model}} if isinstance(model, str) else settings


def _method_of(settings: dict[str, Any]) -> str | None:
    """The name of the method that settings are for; `None` where they name no class."""
    model = settings.get("model")
    if not isinstance(model, dict) or not isinstance(said := model.get("class_path"), str):
        return None
    # A built-in class also goes by `RRA` and `fgzoo.methods.RRA`.
    paths = {path.rpartition(".")[2]: path for path, _ in BUILT_IN.values()}
    arguments = model.get("init_args")  # of another type it is refused by the parser
    return method_name(paths.get(said.removeprefix("fgzoo.methods."), said), arguments if isinstance(arguments, dict) else {})


def config_of(checkpoint: Path, trust: list[str]) -> str:
    """The config that belongs to a checkpoint: its run's, else what the checkpoint itself carries."""
    folder = run_of(checkpoint)
    if folder is not None:
        return str(folder / CONFIG)
    content = read_checkpoint(checkpoint)
    with naming(checkpoint):
        cls = method_class(content["fgzoo"]["method"], trust)
    arguments = arguments_of(content, cls)
    arguments.pop("num_classes", None)
    config: dict[str, Any] = {"model": {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": arguments}}
    card = data_card(content)
    if card is not None:
        config["data"] = settings_of_card(card)
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


def check_one_method(config: Namespace, configs: Iterable[str]) -> None:
    """Refuse a mixture of two methods: `--model X` after a recipe of Y would keep Y's arguments.

    Raises:
        UsageError: A recipe or config file names another method than the one that is to run.
    """
    if config.model is None:
        raise UsageError(NO_METHOD)
    for said in configs:
        model = None if said.startswith("{") else read_recipe(said).get("model")
        named = model.get("class_path") if isinstance(model, dict) else None
        if named is None or "." not in named:
            continue
        theirs, mine = import_path(named), import_path(config.model.class_path)
        if theirs is not mine:
            raise UsageError(
                f"--model: {mine.__name__} is asked for, but {said} sets up {theirs.__name__}, whose arguments would be kept; "
                f"use the data's own recipe with it: --config {config.data.name} --model {mine.__module__}.{mine.__name__}"
            )
