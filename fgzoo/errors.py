"""The one family of errors that is written for the person at the keyboard.

Everything that a user can cause by a wrong argument, file or folder is raised as a [UsageError][]: its message says what is
wrong, where, and what to do about it. The command line prints it as one line and exits with status 2; `--debug` shows the
traceback. [TrainingError][] is what happens to a run on its way.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(Exception):
    """Wrong usage or wrong input: one readable line, exit status 2."""


class DataError(UsageError):
    """A data set, list file, image or archive is not what it should be."""


class CheckpointError(UsageError):
    """A checkpoint cannot be read, cannot be trusted, or belongs to something else."""


class ExportError(UsageError):
    """A network cannot be exported, or the exported file does not answer as the network does."""


class TrainingError(Exception):
    """A run cannot go on, though nothing about its arguments is wrong in itself: one readable line, exit status 1."""


class UntrainedError(UsageError):
    """An answer was asked of a network that has never been trained."""


def did_you_mean(said: str, known: Iterable[str], cutoff: float = 0.6, most: int = 1) -> str:
    """The end of a message about a wrong name.

    Args:
        said: The wrong name.
        known: The right ones.
        cutoff: How similar one must be, from 0 to 1.
        most: How many are proposed.

    Returns:
        E.g. `; did you mean 'cub/rra'?`, or nothing where none is near.
    """
    near = difflib.get_close_matches(said, list(known), n=most, cutoff=cutoff)
    return f"; did you mean {', '.join(map(repr, near))}?" if near else ""
