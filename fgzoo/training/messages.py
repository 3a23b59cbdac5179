"""A parser's complaints, put into one line for the person who typed."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fgzoo.errors import UsageError
from fgzoo.methods import available, import_path
from fgzoo.recipes import read_recipe
from fgzoo.wording import did_you_mean

#: How similar a name must be to be proposed: options are long and misspelt in one of their parts.
NEAR = 0.5
#: What a command line is told that chooses no method.
NO_METHOD = "--model: which method? Give --model NAME (see `fgzoo list`) or a recipe such as --config cub/rra"


class MisconfiguredError(UsageError):
    """A parser's complaint about a config file, not yet put into one line."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
        self.message = message


def explain_parser_error(message: str, options: Iterable[str], arguments: Iterable[str]) -> str:
    """One readable line out of a parser's message, with the nearest valid name where a name was wrong.

    Args:
        message: What jsonargparse said; often a tree of alternatives.
        options: Valid option names, without dashes.
        arguments: Valid arguments of the methods.
    """
    options, arguments = list(options), list(arguments)
    if found := re.search(r"unrecognized arguments: -*([\w.]+)|does not accept option '([^']+)'", message):
        said = found[1] or found[2]
        known = [*options, *(f"model.{name}" for name in arguments), *(f"model.init_args.{name}" for name in arguments)]
        return f"no option '{said}'{did_you_mean(said, known, NEAR)}"
    keys = re.findall(r'Parser key "([^"]+)":', message)
    key = keys[0] if keys else "model"
    method = key.partition(".")[0] == "model"
    if found := re.search(r"class_path '([^']+)':\s+Option '([^']+)' is not accepted", message):
        own: Iterable[str] = arguments if method else get_parameter_names(import_path(found[1]))
        return f"{key}: {_short(found[1])} has no argument '{found[2]}'{did_you_mean(found[2], own, NEAR)}"
    if found := re.search(r"class_path '([^']+)':\s+the following arguments are required: ([\w, ]+)", message):
        needed = found[2].split(", ")
        typed = " ".join(f"--{key}.{name} VALUE" for name in needed)
        return f"{key}: {_short(found[1])} needs {' and '.join(needed)}; give {typed} behind it"
    if found := re.search(
        r"dot import path string: (\S+)|Problem with given class_path '([^']+)':\s+(?!\s|Parser key)(.+)"
        r"|path but (\S+) either not accessible(?s:.*)does not correspond to a subclass",
        message,
    ):
        said = found[1] or found[2] or found[4]
        reason = f" ({found[3].strip()})" if found[3] else ""
        if not method:
            kind = key.rpartition(".")[2].removesuffix("s")
            return f"{key}: '{said}' is no {kind}{reason}{did_you_mean(said, _classes(key), NEAR)}"
        names = [*available(), *(_short(path) for path, _ in available().values())]
        return f"model: '{said}' is no method{reason}{did_you_mean(said, names, NEAR)}; `fgzoo list` names them all"
    if re.search(r"required: \w+\.model", message):
        return NO_METHOD
    wanted = re.findall(r"Expected an? (?:<class '([^']+)'>|(.+?))(?:\. |\.?\n|\.?$)", message)
    given = re.search(r"Got value: (.+)|val='([^']*)'|Given value: (.+)", message)
    if keys and wanted and given:
        types = dict.fromkeys((a or b).replace("typing.", "").replace("NoneType", "null") for a, b in wanted)
        value = next(group for group in given.groups() if group)
        return f"{'.'.join(dict.fromkeys(keys))}: expected {' or '.join(types)}, got '{value}'"
    return " ".join(message.split())


def file_that_says(line: str, configs: Iterable[str]) -> str | None:
    """The recipe or config file that holds the option which a line complains about; `None` where it was typed."""
    said = re.match(r"no option '([^']+)'", line)
    if said is None:
        return None
    for config in configs:
        inner: Any = {} if config.startswith("{") else read_recipe(config)
        for key in said[1].split("."):
            inner = inner.get(key, said) if isinstance(inner, dict) else said
        if inner is not said:
            return config
    return None


def get_parameter_names(method: type) -> set[str]:
    """Names of all arguments of a method's class, those of its base classes included."""
    return {name for cls in method.__mro__ if "__init__" in vars(cls) for name in inspect.signature(cls).parameters}


def _short(path: str) -> str:
    """A class's own name."""
    return path.rpartition(".")[2]


def _classes(key: str) -> list[str]:
    """Names that Lightning knows for what a setting, such as `trainer.callbacks`, is."""
    from lightning.pytorch import callbacks, loggers

    modules = {"trainer.callbacks": callbacks, "trainer.logger": loggers}
    return [name for name, value in vars(modules.get(key)).items() if isinstance(value, type)] if key in modules else []
