"""Files that are whole at every moment, their hashes, and YAML parsed once. Importing this module imports no torch."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import yaml


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


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary file beside another, which it replaces when it is whole; what goes wrong leaves the other as it was.

    Args:
        path: The file.

    Yields:
        The temporary file, to be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


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
    return yaml.safe_load(text)
