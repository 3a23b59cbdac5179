"""What to act on: labels in doubt and copies of images, of a whole run, and as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fgzoo.data.datamodule import usable_cores
from fgzoo.data.duplicates import known_near_duplicates
from fgzoo.data.records import Record
from fgzoo.files import write_csv
from fgzoo.reporting.photos import Photos
from fgzoo.reporting.run import Run
from fgzoo.reporting.scores import label_errors


class DoubtfulLabel(NamedTuple):
    """A held-out image whose label is probably wrong, see [label_errors][fgzoo.reporting.scores.label_errors]."""

    part: str
    name: str
    path: str
    label: int
    likely: int
    label_share: float
    likely_share: float


class Copy(NamedTuple):
    """An image that is a near-duplicate of others: its part, its record, and the number of its file's content."""

    part: str
    record: Record
    content: int

    @property
    def path(self) -> str:
        """Where its file lies; its name where there is none."""
        return self.record.name if self.record.path is None else str(self.record.path)


class CopyGroup(list[Copy]):
    """Near-duplicates of one another, in the order training, validation, test."""

    @property
    def leaks(self) -> bool:
        """Whether they lie on both sides of a division into training and held-out images."""
        return len({copy.part == "train" for copy in self}) > 1

    @property
    def contradicts(self) -> bool:
        """Whether they are of several classes, of which all but one are wrong."""
        return len({copy.record.target for copy in self}) > 1

    @property
    def identical(self) -> bool:
        """Whether some of them are the same file."""
        return len({copy.content for copy in self}) < len(self)


class Copies(NamedTuple):
    """All near-duplicates of a run's images, those that matter first, and why others could not be compared."""

    groups: list[CopyGroup]
    unreadable: dict[str, str]

    @property
    def matter(self) -> list[CopyGroup]:
        """Those across parts or of several classes."""
        return [group for group in self.groups if group.leaks or group.contradicts]

    def leaked(self, part: str) -> set[str]:
        """Names of a part's images that have a copy in training."""
        return {copy.record.name for group in self.groups if group.leaks for copy in group if copy.part == part}


def doubtful_labels(run: Run, photos: Photos) -> list[DoubtfulLabel]:
    """The labels in doubt among all held-out images that were scored, the most doubtful first."""
    scored = list(run.scores.values())
    if not scored:
        return []
    places = [(scores, index) for scores in scored for index in range(len(scores))]
    probabilities = np.concatenate([scores.probabilities for scores in scored])
    found = []
    for index, likely, _ in label_errors(probabilities, np.concatenate([scores.targets for scores in scored])):
        scores, place = places[index]
        label, name = int(scores.targets[place]), scores.names[place]
        shares = float(probabilities[index, label]), float(probabilities[index, likely])
        found.append(DoubtfulLabel(scores.part, name, photos.path(scores.part, name), label, likely, *shares))
    return found


def find_copies(run: Run) -> Copies:
    """Compare all images of a run that is known to have its data."""
    assert run.data is not None
    images = list(run.images())
    records = [record for _, record in images]
    found = known_near_duplicates(records, run.data.listing.read, run.data.cache_folder, usable_cores())
    content = {member: number for number, members in enumerate(found.identical) for member in members}
    groups = [
        CopyGroup(Copy(*images[member], content.get(member, -1 - member)) for member in members) for members in found.groups
    ]
    groups.sort(key=lambda group: (not group.leaks, not group.contradicts))
    return Copies(groups, {images[index][1].name: reason for index, reason in found.unreadable.items()})


def write_label_errors(path: Path, doubts: Sequence[DoubtfulLabel], names: Sequence[str]) -> None:
    """A row a label in doubt, the most doubtful first."""
    header = ["path", "part", "label", "likely", "label probability", "likely probability"]
    rows = (
        [one.path, one.part, names[one.label], names[one.likely], f"{one.label_share:.4f}", f"{one.likely_share:.4f}"]
        for one in doubts
    )
    write_csv(path, header, rows)


def write_copies(path: Path, copies: Copies, names: Sequence[str]) -> None:
    """A row an image; those of a group are near-duplicates, and those of a group with the same content the same file."""
    header = ["group", "path", "part", "class", "content", "across parts", "several classes"]
    rows = []
    for number, group in enumerate(copies.groups, start=1):
        contents = {content: place for place, content in enumerate(dict.fromkeys(copy.content for copy in group), start=1)}
        said = ["yes" if flag else "no" for flag in (group.leaks, group.contradicts)]
        rows += [[number, copy.path, copy.part, names[copy.record.target], contents[copy.content], *said] for copy in group]
    write_csv(path, header, rows)
