"""Memory that a step frees stays with the process for the next one. Importing this module imports no torch."""

from __future__ import annotations

import ctypes
import os

#: Set to 0, the C library's own settings stay.
VARIABLE = "FGZOO_KEEP_MEMORY"

# From glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_MAX = -4
#: How much more than asked for the heap grows by, in bytes.
TOP_PAD = 256 * 2**20


def keep_freed_memory() -> bool:
    """Have glibc's allocator keep what is freed, for this process and those it forks.

    By default glibc takes every large block from the system and gives it back when it is freed, so that each step of a training
    on the CPU has its activations' pages zeroed by the kernel again: a third of the step's time. Here the heap serves large
    blocks, too (`M_MMAP_MAX` 0), is never trimmed (`M_TRIM_THRESHOLD` at its largest) and grows by 256 MiB at a time
    (`M_TOP_PAD`). No number changes. The price is that resident memory stays near its highest point until the process ends, and
    grows a little by fragmentation; `benchmarks/results/speed.md` has both.

    Every verb of the command line calls it; the environment variable `FGZOO_KEEP_MEMORY=0` turns it off. In Python call it
    before large tensors are made; importing fgzoo does not.

    Returns:
        Whether it was done: not without glibc (macOS, Windows, musl), and not where it is turned off.
    """
    if os.environ.get(VARIABLE) == "0":
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - other C libraries number these options otherwise, or not at all
        mallopt = library.mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # -1 is the largest threshold: the option is an int, the threshold a size_t.
    done = all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, -1), mallopt(M_TOP_PAD, TOP_PAD)])
    os.environ[VARIABLE] = str(int(done))
    return done


def keep_in_worker(_: int) -> None:
    """Do as the process does that started this loader worker, which has forked it or not."""
    if os.environ.get(VARIABLE) == "1":
        keep_freed_memory()
