"""Pieces of sentences that messages and pages share. Importing this module imports no torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def plural(count: int, one: str, many: str) -> str:
    """A number and what it counts."""
    return f"{count:,} {one if count == 1 else many}"


def first_five(names: Sequence[str]) -> str:
    """The first five of many names, separated by commas; an ellipsis where there are more."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


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
