"""Files that are whole at every moment, their hashes, and YAML parsed once. Importing this module imports no torch."""

from __future__ import annotations

import copy
import csv
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import yaml

from fgzoo.errors import UsageError


@overload
def user_path(said: str | Path) -> Path: ...
@overload
def user_path(said: None) -> None: ...
@overload
def user_path(said: str | Path | None) -> Path | None: ...
def user_path(said: str | Path | None) -> Path | None:
    """The path that a person means, `~` being their home, wherever it was typed or written; `None` stays."""
    # Of Path.expanduser, a file called `~x` would be the home of a user x, and an error.
    return None if said is None else Path(os.path.expanduser(said))  # noqa: PTH111


def is_file(path: Path) -> bool:
    """Whether a file is there; of a name that no file can have (too long, with a zero byte) it is not."""
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises


def is_stream(path: Path) -> bool:
    """Whether a pipe or a device is there, which is written straight into."""
    return os.path.exists(path) and not is_file(path) and not os.path.isdir(path)  # noqa: PTH110, PTH112 - as above


def prepare_folder(folder: Path, verb: str) -> None:
    """Make a folder to write to.

    Raises:
        UsageError: It cannot be made or written to; in the verb's name.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"cannot be made ({error.strerror or error})"
    else:
        why = "" if os.access(folder, os.W_OK) else "cannot be written to"
    if why:
        raise UsageError(f"{verb}: {folder} {why}; give another place by --output")


#: An absolute path in a text, after what may stand before one; `https://...` and `hf://...` are none.
_PLACE = re.compile(r"""(?<![^\s=:,;('"\[{])(?:file://|~|[A-Za-z]:)?(?:[/\\](?![/\\])[^\s/\\'",;\])}]+)+[/\\]?""")


#: The same where it fills quotation marks, or a whole text, whatever characters it has.
_QUOTED = re.compile(r"""(?P<mark>["'])(?:file://|~|[A-Za-z]:)?[/\\](?![/\\])(?:(?!(?P=mark))[^\n])*(?P=mark)""")
_WHOLE = re.compile(r"""(?:file://|~|[A-Za-z]:)?[/\\](?![/\\])[^\n:,;]*""")


def without_places(text: str) -> str:
    """A text to be handed on: of absolute paths, which say where things lie on one machine, the last names are left.

    Paths are found by what usually stands around them; a name with a space in it is known for a part of one where the path is the
    whole text, stands in quotation marks, or lies in the home folder.
    """
    if _WHOLE.fullmatch(text):
        return _last_name(text)
    home = str(Path.home())
    if len(home) > 1:
        text = re.sub(rf"(?<![\w.-]){re.escape(home)}(?=[/\\])", "~", text)
    text = _QUOTED.sub(lambda found: found["mark"] + _last_name(found.group()[1:-1]) + found["mark"], text)
    return _PLACE.sub(lambda found: _last_name(found.group()), text)


def _last_name(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def handed_on(value: Any) -> Any:
    """A plain value, such as a setting, whose texts are as [without_places][] makes them."""
    if isinstance(value, str):
        return without_places(value)
    if isinstance(value, dict):
        return {name: handed_on(inner) for name, inner in value.items()}
    return type(value)(map(handed_on, value)) if isinstance(value, list | tuple) else value


def names_handed_on(paths: Sequence[str | Path]) -> list[str]:
    """Paths as a page that is handed on names them: of absolute ones the folder that they all lie in, and what follows it.

    Where that would say how the machine, or a home, is laid out, each has its own folder alone.
    """
    absolute = [os.path.dirname(path) for path in paths if os.path.isabs(path)]  # noqa: PTH117, PTH120
    try:
        common = Path(os.path.commonpath(absolute) if absolute else "")
    except ValueError:  # several drives
        return [Path(path).name for path in paths]
    if absolute and (len(common.parts) < 3 or Path.home().is_relative_to(common)):
        return [str(Path(*Path(path).parts[-2:])) if os.path.isabs(path) else str(path) for path in paths]  # noqa: PTH117
    above = common.parent
    return [os.path.relpath(path, above) if os.path.isabs(path) else str(path) for path in paths]  # noqa: PTH117


def shown_folder(path: Path) -> Path:
    """A folder as a page that is handed on names it: from where one is, else by its name, a run's with its data and method."""
    if not path.is_absolute():
        return path
    if path.is_relative_to(Path.cwd()):
        return path.relative_to(Path.cwd())
    return Path(*path.parts[-3 if path.name.isdigit() else -1 :])


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary file beside another, which it replaces when it is whole; what goes wrong leaves the other as it was.

    Args:
        path: The file, or a link to it, which stays one.

    Yields:
        The temporary file, to be written; a pipe or a device itself.

    Raises:
        OSError: It cannot be written; names the file, not the temporary one.
    """
    if is_stream(path):
        yield path
        return
    target = Path(os.path.realpath(path))
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(target)
    except OSError as error:
        if error.filename != str(part):
            raise
        raise type(error)(error.errno, f"cannot be written ({error.strerror})", str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV in one move; names that are no text go in as they are."""
    with atomic_write(path) as part, part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        # A byte of a file's name that is no UTF-8 comes out as \udcXX, which is JSON's own way of writing it.
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def file_hash(path: Path, algorithm: str) -> str:
    """The hash of a file's bytes, read piece by piece.

    Args:
        path: The file.
        algorithm: As hashlib calls it, e.g. `sha256`.

    Returns:
        Hexadecimal digits.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def parse_yaml(text: str) -> Any:
    """The content of YAML, the caller's own; a process parses a text once, which takes a thousand times as long as copying.

    Raises:
        yaml.YAMLError: It is none.
    """
    return copy.deepcopy(_parsed(text))


@functools.cache
def _parsed(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise
    except Exception as error:  # what looks like a date or a number and is none makes PyYAML raise nearly any type
        raise yaml.YAMLError(str(error)) from error
