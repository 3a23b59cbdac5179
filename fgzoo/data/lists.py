"""Reading the list files of data sets, and the checks that every listing passes before it is used."""

from __future__ import annotations

import codecs
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fgzoo.data.records import Box, Listing, Record
from fgzoo.errors import DataError
from fgzoo.files import file_hash, is_file
from fgzoo.wording import first_five

#: Byte order marks and the encodings they stand for; that of UTF-32 begins as that of UTF-16 does.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class Row(NamedTuple):
    """One line of a list file, split into fields, that knows where it stands."""

    path: Path
    line: int
    fields: tuple[str, ...]

    def error(self, problem: str) -> DataError:
        """An error that names this line, to be raised by the caller."""
        return DataError(f"{self.path}, line {self.line}: {problem}")

    def numbers(self, first: int = 1) -> tuple[float, ...]:
        """The fields from index `first` on as numbers.

        Raises:
            DataError: A field is not a number.
        """
        try:
            return tuple(float(field) for field in self.fields[first:])
        except ValueError:
            raise self.error(f"expected numbers, found {' '.join(self.fields[first:])!r}.") from None


def read_text(path: Path, errors: str = "strict") -> str:
    """The text of a list file in UTF-8, or by its byte order mark in UTF-16 or UTF-32; the mark is taken off.

    Args:
        path: The file.
        errors: What becomes of bytes that are not in that encoding, as in [bytes.decode][].

    Returns:
        Its text.

    Raises:
        DataError: The file is missing, unreadable or not in that encoding (the line is named).
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} is missing; it must lie there for the data set to be read.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8-sig")
    try:
        return data.decode(encoding, errors)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        name = encoding.removesuffix("-sig").upper()
        raise DataError(f"{path}, line {line}: not {name} text; save the file in UTF-8.") from None


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a list file that are not blank, with either kind of line end.

    Yields:
        Line number, counted from 1, and the line without surrounding white space.

    Raises:
        DataError: As [read_text][].
    """
    for number, raw in enumerate(read_text(path).split("\n"), start=1):
        if line := raw.strip():
            yield number, line


def read_rows(path: Path, columns: int, *, open_end: bool = False, header: str | None = None) -> list[Row]:
    """Read a list file with a fixed number of columns, separated by white space.

    Args:
        path: The list file.
        columns: Number of columns.
        open_end: The last column is free text and may hold spaces.
        header: A first line that consists of this word alone is skipped; some official files have one.

    Returns:
        One row per line, in the file's order.

    Raises:
        DataError: The file is missing or empty, or a line has another number of columns.
    """
    rows = []
    for number, text in read_lines(path):
        if number == 1 and text == header:
            continue
        fields = tuple(text.split(maxsplit=columns - 1) if open_end else text.split())
        row = Row(path, number, fields)
        if len(fields) != columns:
            raise row.error(f"expected {columns} columns, found {len(fields)}: {text!r}.")
        rows.append(row)
    if not rows:
        raise DataError(f"{path} is empty; the data set is incomplete.")
    return rows


def read_table(path: Path, columns: int, *, open_end: bool = False, header: str | None = None) -> dict[str, Row]:
    """Read a list file as [read_rows][] does, whose first column is an identifier that occurs once.

    Returns:
        Identifier to row, in the file's order.

    Raises:
        DataError: As [read_rows][]; or an identifier occurs twice.
    """
    table: dict[str, Row] = {}
    for row in read_rows(path, columns, open_end=open_end, header=header):
        key = row.fields[0]
        if key in table:
            raise row.error(f"identifier {key!r} stands already on line {table[key].line}; remove one of the two.")
        table[key] = row
    return table


def require_same_ids(table: dict[str, Row], reference: dict[str, Row]) -> None:
    """Check that two list files speak about the same identifiers.

    Raises:
        DataError: Names the line of the first identifier that only one of the two files holds.
    """
    for ours, theirs in ((table, reference), (reference, table)):
        for key, row in ours.items():
            if key not in theirs:
                other = next(iter(theirs.values())).path.name
                raise row.error(f"identifier {key!r} is unknown to {other}; add it there or remove this line.")


def read_box_list(path: Path, to_box: Callable[[float, float, float, float], Box]) -> dict[str, Box]:
    """Read a list of boxes, four numbers each, that a data set need not have.

    Args:
        path: The list file; there are no boxes where it does not exist.
        to_box: Makes a box of the four numbers.

    Returns:
        Identifier to box.

    Raises:
        DataError: As [read_table][]; or a field is not a number.
    """
    if not path.is_file():
        return {}
    return {key: to_box(*row.numbers()) for key, row in read_table(path, 5).items()}


def box_from_one(x0: float, y0: float, x1: float, y1: float) -> Box:
    """The box of pixels that are counted from 1, the last ones included; the image's upper left corner becomes (0, 0)."""
    return (x0 - 1.0, y0 - 1.0, x1, y1)


def by_name(records: Iterable[Record]) -> tuple[Record, ...]:
    """Sort records by name, so that neither the file system nor a list's order matters."""
    return tuple(sorted(records, key=lambda record: record.name))


def missing_images(listing: Listing) -> list[str]:
    """Names of the listed images that do not exist, of a data set whose records have paths."""
    return [record.name for record in listing.records if record.path is None or not is_file(record.path)]


def checked(listing: Listing, root: Path) -> Listing:
    """The checks that every data set passes at set-up.

    Args:
        listing: A data set as its lists describe it; it is returned as it is.
        root: Its folder, for the messages.

    Raises:
        DataError: As [consistent][] raises it; or images are missing.
    """
    if missing := missing_images(consistent(listing, root)):
        raise DataError(
            f"{root}: {len(missing)} of {len(listing.records)} listed images are missing: {first_five(missing)}. "
            "Restore them or remove them from the lists."
        )
    return listing


def consistent(listing: Listing, root: Path) -> Listing:
    """The checks of [checked][] that need the lists alone.

    Raises:
        DataError: Fewer than two classes, a class without a training image, or an image listed twice.
    """
    names = listing.class_names
    if len(names) < 2:
        raise DataError(f"{root} has {len(names)} class ({first_five(names)}); a classifier needs at least two.")
    trained = {record.target for record in listing.train}
    if untrained := [name for target, name in enumerate(names) if target not in trained]:
        raise DataError(
            f"{root}: {len(untrained)} classes have no training image: {first_five(untrained)}. "
            "Add images to the training split or remove the classes from the lists."
        )
    counts = Counter(record.name for record in listing.records)
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise DataError(f"{root}: {len(repeated)} images are listed more than once: {first_five(repeated)}. Keep one each.")
    return listing


class CopiedFiles(NamedTuple):
    """Names of images, sorted, that are byte by byte the file of an earlier one.

    Attributes:
        of_splits: The earlier one is in another split.
        of_classes: It is of another class.
    """

    of_splits: list[str]
    of_classes: list[str]


def copied_files(splits: Mapping[str, Sequence[Record]]) -> CopiedFiles:
    """Images that are in two splits or of two classes. Only files of equal size are read.

    Args:
        splits: Records by split.
    """
    by_size: defaultdict[int, list[tuple[str, Record, Path]]] = defaultdict(list)
    for split, records in splits.items():
        for record in records:
            if record.path is not None and is_file(record.path):
                by_size[record.path.stat().st_size].append((split, record, record.path))
    of_splits, of_classes = [], []
    for alike in by_size.values():
        first: dict[str, tuple[str, int]] = {}
        for split, record, path in alike if len({(split, record.target) for split, record, _ in alike}) > 1 else ():
            other, target = first.setdefault(file_hash(path, "sha256"), (split, record.target))
            of_splits += [record.name] if other != split else []
            of_classes += [record.name] if target != record.target else []
    return CopiedFiles(sorted(of_splits), sorted(of_classes))
