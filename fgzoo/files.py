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
from typing import Any

import yaml


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
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


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
