"""Recipes, joined by name from parts: data, methods, and what a data set or a preset has of its own for single methods.

`cub/rra` is `data/cub.yaml` and `methods/rra.yaml`; `birds/rra`, which trains a tiny network instead, is `data/birds.yaml`,
`birds.yaml` and `birds/rra.yaml`. The preset `small` is `small.yaml`, and, where RRA is to run, `small/rra.yaml`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fgzoo.errors import UsageError
from fgzoo.files import parse_yaml, user_path
from fgzoo.wording import did_you_mean

FOLDER = Path(__file__).parent

#: Recipes that are merged over others. `fgzoo.training.arguments` adds the part of the method that is to run.
PRESETS = ("small", "small-0.1", "dinov3")


@functools.cache
def recipe_files() -> dict[str, list[Path]]:
    """The files of every packaged recipe by its name, in the order in which they merge."""
    found = {}
    for preset in PRESETS:
        found[preset] = [FOLDER / f"{preset}.yaml"]
        found |= {f"{preset}/{part.stem}": [*found[preset], part] for part in FOLDER.glob(f"{preset}/*.yaml")}
    for data in FOLDER.glob("data/*.yaml"):
        found[data.stem] = [data]
        shared = [path for path in [FOLDER / data.name] if path.is_file()]
        parts = FOLDER.glob(f"{data.stem}/*.yaml" if shared else "methods/*.yaml")
        found |= {f"{data.stem}/{part.stem}": [data, *shared, part] for part in parts}
    return dict(sorted(found.items()))


def list_recipes() -> dict[str, str]:
    """Every packaged recipe by name, with one line that says what it gives."""
    found = {}
    for name, files in recipe_files().items():
        data, line = (file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for file in (files[0], files[-1]))
        found[name] = line.replace("{data}", data.removeprefix("Data: ").partition(";")[0])
    return found


def find_recipe(said: str) -> list[Path]:
    """The files that `--config` means: one of the user's, or those of a packaged recipe.

    Args:
        said: E.g. `cub/rra`, `small`, `mine/experiment.yaml`, or a run's folder.

    Returns:
        The files, in the order in which they merge.

    Raises:
        UsageError: There is no such file and no such recipe.
    """
    path = user_path(said)
    if path.is_file():
        return [path]
    if path.is_dir() and (path / "config.yaml").is_file():
        return [path / "config.yaml"]
    packaged = recipe_files()
    if said in packaged:
        return packaged[said]
    hint = did_you_mean(said, packaged) or "; `fgzoo list recipes` names the packaged ones"
    raise UsageError(f"--config: no file and no packaged recipe '{said}'{hint}")


def read_recipe(said: str) -> dict[str, Any]:
    """The settings, by section, that `--config` comes to, see [find_recipe][].

    Raises:
        UsageError: There is no such file and no such recipe, or the file holds no settings.
    """
    found: dict[str, Any] = {}
    for file in find_recipe(said):
        merge(found, read_config(file))
    return found


def merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    """Put settings over others, section by section."""
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a config file, by section.

    Raises:
        UsageError: It is no YAML, or holds no settings.
    """
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise UsageError(f"--config: {path}{line}: no YAML: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config: {path} is no YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UsageError(f"--config: {path} holds no settings; expected `data:`, `model:`, `trainer:` and so on")
    return content
