"""`fgzoo download`."""

from __future__ import annotations

import sys

from fgzoo.checkpoints.download import fetch_checkpoint
from fgzoo.checkpoints.hub import SCHEME
from fgzoo.checkpoints.registry import find_entry


def download(names: list[str]) -> int:
    """Fetch checkpoints of the zoo or of the Hugging Face hub, and verify them.

    The files' paths go to standard output, everything else to standard error.

    Args:
        names: Names as in `fgzoo list checkpoints`, or hf://OWNER/NAME.

    Returns:
        The exit status.
    """
    # A misspelt name is told before anything large is fetched.
    for name in names:
        if not name.startswith(SCHEME):
            find_entry(name)
    for name in names:
        sys.stdout.write(f"{fetch_checkpoint(name)}\n")
        sys.stdout.flush()
    return 0
