"""The one family of errors that is written for the person at the keyboard.

Everything that a user can cause by a wrong argument, file or folder is raised as a [UsageError][]: its message says what is
wrong, where, and what to do about it. The command line prints it as one line and exits with status 2; `--debug` shows the
traceback. [TrainingError][] is what happens to a run on its way.
"""

from __future__ import annotations


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
