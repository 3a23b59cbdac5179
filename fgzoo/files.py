"""Files that are whole at every moment. Importing this module imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
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
