"""What loaders' workers hand their batches on by, and what is said where there is too little of it."""

from __future__ import annotations

import re
import shutil

_NO_ROOM = re.compile(r"shared memory ?\(shm\)|out of shared memory|</torch_\w+>")


def no_room(error: BaseException, option: str) -> str | None:
    """What to say of a loader's error that is one of too little shared memory, as Docker gives by default.

    Args:
        error: What the loader raised.
        option: The option that says how many workers there are.

    Returns:
        The line, without what was being done; `None` where the error is about something else.
    """
    if not _NO_ROOM.search(str(error)):
        return None
    try:
        size = f", which has {shutil.disk_usage('/dev/shm').total / 2**20:.0f} MiB"
    except OSError:
        size = ""
    return (
        f"the loader's workers have no room for their batches in shared memory (/dev/shm{size}). In Docker start the container "
        f"with --shm-size 2g or --ipc host; or take fewer workers, or none: {option} 0"
    )
