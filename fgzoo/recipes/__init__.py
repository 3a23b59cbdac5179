"""Recipes: `<dataset>/<method>.yaml`, the data-only `<dataset>.yaml`, the preset `small` and what some methods need after it."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from fgzoo.errors import UsageError

FOLDER = Path(__file__).parent


def list_recipes() -> dict[str, str]:
    """Every packaged recipe by name, with the first line of its opening comment."""
    found = {}
    for path in sorted(FOLDER.rglob("*.yaml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        found[path.relative_to(FOLDER).with_suffix("").as_posix()] = first.lstrip("# ").strip()
    return found


def find_recipe(said: str) -> Path:
    """The file that `--config` means: a path, or the name of a packaged recipe.

    Args:
        said: E.g. `cub/rra`, `small`, or `mine/experiment.yaml`.

    Returns:
        The file.

    Raises:
        UsageError: There is no such file and no such recipe.
    """
    path = Path(said).expanduser()
    if path.is_file():
        return path
    if path.is_dir() and (path / "config.yaml").is_file():
        return path / "config.yaml"
    packaged = FOLDER / f"{said}.yaml"
    if packaged.is_file():
        return packaged
    near = difflib.get_close_matches(said, list_recipes(), n=1)
    hint = f"did you mean '{near[0]}'?" if near else "`fgzoo list recipes` names the packaged ones"
    raise UsageError(f"--config: no file and no packaged recipe '{said}'; {hint}")


def read_config(path: Path) -> dict[str, Any]:
    """The content of a config file.

    Args:
        path: The file.

    Returns:
        Settings by name.

    Raises:
        UsageError: It is no YAML, or holds no settings.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise UsageError(f"--config: {path}{line}: no YAML: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config: {path} is no YAML file") from error
    if not isinstance(content, dict):
        raise UsageError(f"--config: {path} holds no settings; expected `data:`, `model:`, `trainer:` and so on")
    return content
